"""Settings are read like a grid: strictly, with errors that name the line; and none of them is part of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controller.patch import OWN_ENV
from controller.quantities import quantity
from controller.settings import (
    Settings,
    parse_settings,
    read_settings,
    settings_text,
    shipped_settings,
)
from trainer.document import read_document
from trainer.failure import SpecError
from trainer.store import STORE_PATIENCE_SECONDS

IMAGE = "image: registry.lab/grid:1\n"


def problem(text: str, *assignments: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_settings(text, "lab.yaml", assignments)
    return str(caught.value)


def test_an_image_is_all_that_must_be_said() -> None:
    settings = parse_settings(IMAGE, "lab.yaml")
    assert settings.image == "registry.lab/grid:1"
    assert settings.gpu is None
    assert settings.max_tries == 3


def test_a_setting_is_changed_on_the_command_line() -> None:
    settings = parse_settings(
        IMAGE,
        "lab.yaml",
        (
            "parallelism=4",
            "gpu.resource=nvidia.com/mig-1g.5gb",
            "node_selector.topology.kubernetes.io/zone=a",
            "env.TORCH_LOGS=+all",
            "image=registry.lab/grid:2",
            "resources.requests.cpu=0.5",
            "tolerations=[{key: spot, operator: Exists}]",
        ),
    )
    assert settings.parallelism == 4
    assert settings.gpu is not None
    assert (settings.gpu.resource, settings.gpu.count) == ("nvidia.com/mig-1g.5gb", 1)
    assert settings.node_selector == {"topology.kubernetes.io/zone": "a"}
    assert settings.env == {"TORCH_LOGS": "+all"}
    assert settings.image == "registry.lab/grid:2"
    assert settings.resources.requests.cpu == "0.5"
    assert settings.tolerations[0].key == "spot"


def test_a_setting_on_the_command_line_takes_a_part_away() -> None:
    assert parse_settings(IMAGE + "gpu: {count: 2}\n", "lab.yaml", ("gpu=null",)).gpu is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("paralelism: 2", ["lab.yaml:2: paralelism: unknown key", "did you mean 'parallelism'?"], id="key"),
        pytest.param("count: 2", ["did you mean 'gpu.count'?"], id="key of a part"),
        pytest.param("parallelism: 0", ["lab.yaml:2: parallelism: got 0, expected"], id="number"),
        pytest.param("resources: {requests: {cpu: 4Gi}}", ["got '4Gi', expected processors"], id="cpu in bytes"),
        pytest.param("resources: {requests: {cpu: 0}}", ["got 0, expected processors"], id="no cpu"),
        pytest.param("resources: {requests: {memory: 4}}", ["got 4, expected a size with its unit"], id="bare bytes"),
        pytest.param("resources: {requests: {memory: 4 GB}}", ["expected a size with its unit"], id="unit unknown"),
        pytest.param(
            "resources: {requests: {cpu: 2}, limits: {cpu: 500m}}",
            ["resources.limits.cpu: got '500m', expected at least what is requested: 2"],
            id="limit below request",
        ),
        pytest.param("namespace: Lab_1", ["namespace: got 'Lab_1', expected text that matches"], id="namespace"),
        pytest.param("env: {A: 1}", ["env.A: got 1, expected text", "put it in quotes: '1'"], id="env number"),
        pytest.param("env: {OMP_NUM_THREADS: '4'}", ["set by the manifest itself", "`threads` sets it"], id="own env"),
        pytest.param("store: {endpoint: minio:9000}", ["store.endpoint: got 'minio:9000'"], id="endpoint"),
        pytest.param("store: {ca: {}}", ["expected one of them"], id="no CA named"),
        pytest.param("store: {ca: {secret: a, config_map: b}}", ["expected one of them"], id="two CAs named"),
        pytest.param("tolerations: [{value: x}]", ["tolerations[0]: got no key with operator Equal"], id="toleration"),
        pytest.param("tolerations: [{key: a, operator: Exists, value: x}]", ["expected none"], id="toleration value"),
        pytest.param("tolerations: [{key: a, tolerationSeconds: 5}]", ["expected effect NoExecute"], id="seconds"),
        pytest.param("progress: {every: 5}", ["progress.every: got 5, expected a number of at least 60"], id="often"),
        pytest.param("queue: {}", ["queue.name: missing key"], id="queue without a name"),
        pytest.param("gpu: {product: A100}", ["gpu.product: got 'A100', expected a list"], id="product"),
    ],
)
def test_a_wrong_setting_is_told_with_its_line(text: str, told: list[str]) -> None:
    message = problem(IMAGE + text)
    for each in told:
        assert each in message


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        pytest.param("paralelism=2", "did you mean 'parallelism'?", id="key"),
        pytest.param("parallelism", "expected key=value", id="no value"),
        pytest.param("parallelism=many", "--setting parallelism=many: parallelism: got 'many'", id="value"),
        pytest.param("gpu.product_lable=x", "did you mean 'gpu.product_label'?", id="inner key"),
    ],
)
def test_a_wrong_setting_on_the_command_line_is_told_by_it(assignment: str, told: str) -> None:
    assert told in problem(IMAGE, assignment)


@pytest.mark.parametrize("text", ["", "[1, 2]", "just text"], ids=["nothing", "list", "text"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "image" in problem(text, "parallelism=1")


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        pytest.param({"spec": {"restartPolicy": "Always"}}, "the Job's failure rules need Never", id="restart"),
        pytest.param({"spec": {"automountServiceAccountToken": True}}, "no business with the API", id="token"),
        pytest.param({"spec": {"hostNetwork": True}}, "`restricted` admits no such pod", id="host network"),
        pytest.param({"spec": {"terminationGracePeriodSeconds": 1}}, "`grace_period` sets it", id="grace"),
        pytest.param({"spec": {"containers": [{"name": "trainer", "args": ["x"]}]}}, "decide them", id="args"),
        pytest.param({"spec": {"containers": [{"name": "trainer", "image": "x"}]}}, "`image` sets it", id="image"),
        pytest.param({"spec": {"containers": [{"name": "proxy"}]}}, "which makes it a sidecar", id="container"),
        pytest.param({"spec": {"containers": [{"image": "x"}]}}, "missing key name", id="container without a name"),
        pytest.param({"spec": {"containers": None}}, "got null, expected a list", id="no containers"),
        pytest.param(
            {"spec": {"containers": [{"name": "trainer", "env": [{"name": "AWS_ACCESS_KEY_ID", "value": "x"}]}]}},
            "AWS_ACCESS_KEY_ID is set by the manifest itself",
            id="own variable",
        ),
        pytest.param(
            {"spec": {"containers": [{"name": "trainer", "volumeMounts": [{"name": "a", "mountPath": "/cache"}]}]}},
            "/cache is a place of the trainer's own",
            id="own mount",
        ),
        pytest.param({"spec": {"volumes": [{"name": "spec"}]}}, "a volume of the trainer's own", id="own volume"),
        pytest.param({"spec": {"volumes": "x"}}, "got 'x', expected a list", id="volumes that are text"),
        pytest.param(
            {"metadata": {"labels": {"experiment-grid.dev/run": "x"}}}, "the controller's own", id="own label"
        ),
        pytest.param(
            {"metadata": {"annotations": {"experiment-grid.dev/spec": None}}}, "the controller's own", id="own spec"
        ),
        pytest.param({"metadata": {"name": "x"}}, "expected labels or annotations", id="name"),
        pytest.param({"metadata": {"labels": {"a": 1}}}, "got 1, expected text", id="label that is a number"),
        pytest.param({"spec": None}, "got null, expected a mapping", id="no spec"),
        pytest.param({"kind": "Pod"}, "expected metadata or spec", id="no template"),
        pytest.param({"spec": {"$patch": "replace"}}, "is not understood here", id="directive"),
    ],
)
def test_a_patch_may_not_touch_what_the_contract_needs(patch: dict[str, Any], told: str) -> None:
    text = settings_text(parse_settings(IMAGE, "lab.yaml")).replace("pod_template_patch: {}\n", "")
    message = problem(text + f"pod_template_patch: {json.dumps(patch)}\n")
    assert "lab.yaml:" in message
    assert "pod_template_patch." in message
    assert told in message


@pytest.mark.parametrize("name", shipped_settings())
def test_shipped_settings_are_valid(name: str) -> None:
    settings = read_settings(name, ("image=registry.lab/grid:1",))
    assert settings.namespace == "experiment-grid"
    assert (settings.gpu is not None) == (name == "gpu")


def test_settings_come_for_kind_and_for_gpus() -> None:
    assert shipped_settings() == ["gpu", "kind"]


def test_an_unknown_name_of_settings_is_told_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="expected a file, or one of gpu, kind") as caught:
        read_settings("kin")
    assert caught.value.hint == "did you mean 'kind'?"


def test_a_path_wins_where_no_name_is_meant(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(IMAGE)
    assert read_settings(tmp_path / "lab.yaml").image == "registry.lab/grid:1"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not readable as UTF-8"):
        read_settings(tmp_path / "lab.yaml")


@pytest.mark.parametrize("name", shipped_settings())
def test_the_text_of_settings_reads_back_as_they_are(name: str) -> None:
    settings = read_settings(
        name,
        (
            "image=registry.lab/grid:1",
            "tolerations=[{key: a, effect: NoExecute, tolerationSeconds: 3}]",
            "pod_template_patch={spec: {hostAliases: [{ip: 10.0.0.1, hostnames: [a, b]}]}}",
        ),
    )
    text = settings_text(settings)
    again = parse_settings(text, "grids/demo/settings.yaml")
    assert settings_text(again) == text
    assert again == settings


def test_every_default_is_written_out() -> None:
    held = read_document(settings_text(parse_settings(IMAGE, "lab.yaml")), "x").value
    assert set(held) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("cpu", "threads"),
    [("500m", 1), ("1", 1), ("1.9", 1), ("2", 2), ("3500m", 3), ("16", 16)],
    ids=["half", "one", "nearly two", "two", "three and a half", "sixteen"],
)
def test_threads_are_the_whole_processors_asked_for(cpu: str, threads: int) -> None:
    assert parse_settings(IMAGE, "x", (f"resources.requests.cpu={cpu}",)).num_threads == threads


def test_threads_can_be_pinned() -> None:
    assert parse_settings(IMAGE + "threads: 3\n", "x").num_threads == 3


def test_the_store_is_asked_as_long_as_the_trainer_asks_it() -> None:
    assert parse_settings(IMAGE, "x").store_patience == STORE_PATIENCE_SECONDS


def test_the_schema_for_editors_takes_what_is_shipped() -> None:
    schema = Settings.model_json_schema(by_alias=True)
    folder = Path(__file__).parents[2] / "controller" / "environments"
    for name in shipped_settings():
        value = {"image": "a/b:1", **read_document((folder / f"{name}.yaml").read_text(), name).value}
        jsonschema.validate(_lists(value), schema)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


@hypothesis_settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    told = ""
    try:
        settings = parse_settings(IMAGE, "x", (f"env.A={text}", f"shared_memory={text}"))
        assert quantity(settings.shared_memory) >= 1 << 20
    except SpecError as error:
        told = error.message
    assert not told or "--setting" in told


def test_each_variable_of_the_manifest_is_kept_from_the_settings() -> None:
    for name in OWN_ENV:
        assert "set by the manifest itself" in problem(IMAGE + f"env: {{{name}: x}}\n")


def test_the_patch_that_the_reference_shows_is_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings-reference.md").read_text(encoding="utf-8")
    shown = "".join(f"{line[4:]}\n" for line in page.splitlines() if line.startswith("    "))
    assert parse_settings(IMAGE + shown, "page").pod_template_patch["spec"]["securityContext"]["runAsUser"] is None
