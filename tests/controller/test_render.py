"""`grid render` prints the Jobs that are still to be done, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kubernetes_objects import check_schema
from PIL import Image
from results import result

from controller.cli import main
from trainer.failure import Failure
from trainer.identity import read_spec, run_id
from trainer.store import FileStore

GRID = """
grid: tiny
base:
  data: {name: shades, resize: 8, crop: 8}
  model: {architecture: squeezenet1_1}
  batch_size: 4
  epochs: 1
stages:
  - name: rate
    vary: {optimizer.lr: [1e-3, 1e-2, 1e-1]}
  - name: best
    test: {best: 1}
"""
SETTINGS = "image: registry.lab/grid:1\nnamespace: lab\nstore: {uri: 's3://lab/grids', secret: s3}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GRID_STORE", "GRID_SETTINGS"):
        monkeypatch.delenv(name, raising=False)
    for name, shade in (("dark", 30), ("light", 220)):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (9, 8), (shade + number,) * 3).save(tmp_path / "shades" / name / f"{number}.png")
    (tmp_path / "tiny.yaml").write_text(GRID)
    (tmp_path / "lab.yaml").write_text(SETTINGS)
    call("data", "import", "shades", "shades", "--split", "fraction=0.2")
    return tmp_path


def call(*words: str, expected: int = 0) -> str:
    done = CliRunner().invoke(main, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == expected, done.output
    return done.stdout if expected == 0 else done.output


def rendered(*words: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(call("render", "tiny.yaml", "--settings", "lab.yaml", *words)) if each]


def spec_of(job: dict[str, Any]) -> str:
    text: str = job["spec"]["template"]["metadata"]["annotations"]["experiment-grid.dev/spec"]
    return text


def test_the_jobs_are_valid_and_carry_their_own_specs(folder: Path) -> None:
    jobs = rendered()
    assert len(jobs) == 3
    for job in jobs:
        check_schema(job)
        assert run_id(read_spec(spec_of(job), "spec.yaml")) == job["metadata"]["name"]
        assert job["metadata"]["namespace"] == "lab"
        assert job["metadata"]["labels"]["grid.experiment-grid.dev/tiny"] == "rate"
        assert "s3://lab/grids" in job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert not (folder / "store" / "runs").exists()


def test_what_is_in_the_store_is_left_out_unless_all_is_asked_for(folder: Path) -> None:
    done, failed, left = (job["metadata"]["name"] for job in rendered())
    store = FileStore(folder / "store")
    store.put(f"results/{done}.json", result(done).model_dump_json().encode())
    failure = Failure(run=failed, attempt=None, exit_code=70, reason="diverged", message="no", final=True)
    store.put(f"failures/{failed}.json", failure.model_dump_json().encode())
    assert [job["metadata"]["name"] for job in rendered()] == [left]
    assert [job["metadata"]["name"] for job in rendered("--all")] == [done, failed, left]


def test_a_part_of_the_grid_is_rendered_as_it_is_asked_for(folder: Path) -> None:
    assert len(rendered("--only", "*lr=0.01", "--seeds", "2")) == 2
    (job,) = rendered("--only", "*lr=0.1", "--set", "epochs=7", "--setting", "threads=3", "--setting", "namespace=b")
    assert "epochs: 7" in spec_of(job)
    env = {each["name"]: each.get("value") for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert (job["metadata"]["namespace"], env["OMP_NUM_THREADS"]) == ("b", "3")


def test_a_program_gets_a_list_that_kubectl_takes_too(folder: Path) -> None:
    listed = json.loads(call("render", "tiny.yaml", "--settings", "lab.yaml", "--json"))
    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    assert listed["items"] == rendered()


def test_the_jobs_are_written_to_a_file(folder: Path) -> None:
    assert call("render", "tiny.yaml", "--settings", "lab.yaml", "-o", "jobs.yaml") == ""
    assert list(yaml.safe_load_all((folder / "jobs.yaml").read_text())) == rendered()
    assert "cannot be written" in call(
        "render", "tiny.yaml", "--settings", "lab.yaml", "-o", "no/jobs.yaml", expected=64
    )


def test_stages_that_wait_are_told(folder: Path) -> None:
    done = CliRunner().invoke(main, ["render", "tiny.yaml", "--settings", "lab.yaml"])
    assert "tiny: 3 Jobs" in done.stderr
    assert "stage best waits" in done.stderr


def test_settings_may_be_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRID_SETTINGS", "lab.yaml")
    assert "namespace: lab" in call("render", "tiny.yaml")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(("--settings", "lap.yaml"), "settings: got 'lap.yaml', expected a file", id="no file"),
        pytest.param(("--settings", "gpu"), "image: missing key", id="no image"),
        pytest.param(("--settings", "lab.yaml", "--setting", "gpus=1"), "unknown key; got 'gpus'", id="no setting"),
        pytest.param(("--settings", "kind"), "which no pod has, expected s3://", id="folder as store"),
        pytest.param(("--settings", "lab.yaml", "--stage", "x"), "stage: got 'x'", id="no stage"),
    ],
)
def test_what_cannot_be_rendered_says_why(folder: Path, words: tuple[str, ...], told: str) -> None:
    assert told in call("render", "tiny.yaml", *words, expected=64)
