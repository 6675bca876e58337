from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.document import Document, read_document, validate
from trainer.failure import SpecError
from trainer.identity import (
    Identifier,
    canonical_json,
    factory_source_hash,
    read_spec,
    run_hash,
    run_id,
    with_seed,
    write_spec,
)
from trainer.spec import Frozen, Neutral, NoIdentity, RunSpec

BASE: dict[str, Any] = {
    "data": {"name": "digits", "fingerprint": "0" * 64},
    "model": {"architecture": "alexnet"},
    "seed": 0,
}


def run_of(**values: Any) -> RunSpec:
    return validate(RunSpec, Document("x.yaml", {**BASE, **values}, {}))


# Ids that must never change: whoever makes this test fail has made every stored result unfindable.
GOLDEN = {
    "defaults": ({}, "alexnet-afe9530cc64a"),
    "seed": ({"seed": 1}, "alexnet-568b19b8503a"),
    "learning rate": ({"optimizer": {"lr": 0.01}}, "alexnet-569eca1fe8c8"),
    "adamw and cosine": ({"optimizer": {"name": "adamw"}, "schedule": {"name": "cosine"}}, "alexnet-16332df035a3"),
    "augmentation": ({"augmentation": "report_2"}, "alexnet-f9f6bd62d5a2"),
    "weights": (
        {
            "model": {
                "architecture": "resnet50",
                "weights": "r.pth",
                "weights_fingerprint": "1" * 64,
                "freeze": ("a.*",),
            }
        },
        "resnet50-0b06ff679a4a",
    ),
    "factory": (
        {"model": {"architecture": "my.nets:TinyNet", "source_hash": "2" * 64, "arguments": {"b": 1.5, "a": True}}},
        "tinynet-70df471d878b",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_ids_are_what_they_always_were(case: str) -> None:
    values, golden = GOLDEN[case]

    assert run_id(run_of(**values)) == golden


NUMBERS = st.sampled_from(["1e-3", "0.001", "1E-03", "0.0010", "10e-4"])


@settings(deadline=None)
@given(NUMBERS, st.permutations(["name: sgd", "lr: {lr}", "momentum: 0.5"]), st.sampled_from(["30", "30.0", "3e1"]))
def test_the_order_of_keys_and_the_spelling_of_numbers_change_no_id(lr: str, lines: list[str], epochs: str) -> None:
    optimizer = ", ".join(lines).format(lr=lr)
    text = f"seed: 0\nepochs: {epochs}\noptimizer: {{{optimizer}}}\nmodel: {{architecture: alexnet}}\n"
    text += f"data: {{fingerprint: '{'0' * 64}', name: digits}}\n"

    run = validate(RunSpec, read_document(text, "x.yaml"))

    assert run_id(run) == run_id(run_of(optimizer={"name": "sgd", "lr": 0.001, "momentum": 0.5}, epochs=30))


CHANGES: dict[str, Any] = {
    "seed": 1,
    "epochs": 31,
    "batch_size": 255,
    "micro_batch": 8,
    "precision": "fp32",
    "deterministic": False,
    "compile": True,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "recipe": {"version": 2},
    "augmentation": {"hue": 0.1},
    "best": {"patience": None},
    "best.metric": {"metric": "validation_accuracy"},
    "best.optimizer": {"optimizer": "keep"},
    "restart": {"times": 0},
    "schedule": {"gamma": 0.2},
    "schedule.warmup_epochs": {"warmup_epochs": 1},
    "optimizer": {"lr": 0.0010000000000000002},
    "optimizer.nesterov": {"nesterov": True},
    "model": {"architecture": "resnet18"},
    "model.freeze": {"architecture": "alexnet", "freeze": "convolutional"},
    "model.arguments": {"architecture": "alexnet", "arguments": {"dropout": 0.1}},
    "data.fingerprint": {"name": "digits", "fingerprint": "1" * 64},
    "data.images_per_class": {"name": "digits", "fingerprint": "0" * 64, "images_per_class": 3},
    "data.normalize": {"name": "digits", "fingerprint": "0" * 64, "normalize": "imagenet"},
}


def test_every_hyperparameter_changes_the_id() -> None:
    hashes = [run_hash(run_of())] + [run_hash(run_of(**{key.partition(".")[0]: v})) for key, v in CHANGES.items()]

    assert len(set(hashes)) == len(hashes)
    assert {key.partition(".")[0] for key in CHANGES} == set(RunSpec.model_fields) - {"checkpoint"}


@settings(deadline=None)
@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3), st.integers(0, 2**31), st.integers(0, 2**31))
def test_two_runs_have_one_hash_only_if_they_are_equal(lr: float, other: float, seed: int, other_seed: int) -> None:
    one, two = run_of(optimizer={"lr": lr}, seed=seed), run_of(optimizer={"lr": other}, seed=other_seed)

    assert (run_hash(one) == run_hash(two)) == (one == two)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"data": {"name": "other", "fingerprint": "0" * 64}}, id="name of the data set"),
        pytest.param({"checkpoint": {"every": 5, "keep": "all"}}, id="checkpoints"),
    ],
)
def test_what_cannot_change_the_numbers_changes_no_id(values: dict[str, Any]) -> None:
    assert run_id(run_of(**values)) == run_id(run_of())


def test_the_file_name_of_weights_is_no_part_of_the_id_and_their_content_is() -> None:
    def weighted(name: str, digit: str) -> str:
        return run_id(run_of(model={"architecture": "a", "weights": name, "weights_fingerprint": digit * 64}))

    assert weighted("x.pth", "1") == weighted("y.pth", "1")
    assert weighted("x.pth", "1") != weighted("x.pth", "2")


def test_a_later_field_is_left_out_at_its_neutral_value() -> None:
    class Old(Frozen):
        lr: float

    class New(Old):
        ema: Annotated[float, Neutral(0)] = 0.5
        label: Annotated[str, NoIdentity()] = ""

    assert canonical_json(New(lr=0.1, ema=0)) == canonical_json(Old(lr=0.1)) == '{"lr":0.1}'
    assert canonical_json(New(lr=0.1)) == '{"ema":0.5,"lr":0.1}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats().filter(lambda number: not number.is_integer()) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)
@given(JSON)
def test_the_canonical_text_is_what_pythons_own_json_writes(value: Any) -> None:
    assert canonical_json(value) == json.dumps(value, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.0, "1"), (-0.0, "0"), (1e21, "1000000000000000000000"), (0.1, "0.1"), (1e-7, "1e-07"), (True, "true")],
    ids=str,
)
def test_a_number_has_one_text_however_it_is_spelt(number: float, text: str) -> None:
    assert canonical_json(number) == text


@settings(deadline=None)
@given(st.integers(0, 9), st.sampled_from(list(CHANGES)))
def test_shared_parts_written_once_give_the_same_ids(seed: int, key: str) -> None:
    identifier = Identifier()
    for spec in (run_of(), run_of(**{key.partition(".")[0]: CHANGES[key]}), run_of()):
        assert identifier.run_ids(spec, [seed, seed + 1]) == [
            run_id(with_seed(spec, seed)),
            run_id(with_seed(spec, seed + 1)),
        ]


@pytest.mark.parametrize(
    "architecture",
    ["alexnet", "shufflenet_v2_x0_5", "My.Nets:Tiny_Net2", "a:" + "x" * 90, "_:__"],
    ids=lambda name: name[:12],
)
def test_an_id_names_a_kubernetes_job(architecture: str) -> None:
    found = run_id(run_of(model={"architecture": architecture, "source_hash": "0" * 64}))

    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", found)
    assert len(found) <= 63


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"data": {"name": "digits"}}, "data.fingerprint: missing"),
        ({"model": {"architecture": "a", "weights": "x.pth"}}, "model.weights_fingerprint: missing"),
        ({"model": {"architecture": "a:b"}}, "model.source_hash: missing"),
    ],
    ids=["data", "weights", "factory"],
)
def test_a_run_without_a_fingerprint_has_no_id(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        run_id(run_of(**values))


@pytest.mark.parametrize("case", GOLDEN)
def test_a_spec_file_reads_back_as_the_same_run(case: str) -> None:
    run = run_of(**GOLDEN[case][0])
    text = write_spec(run)

    assert read_spec(text, "spec.yaml") == run
    assert f"run: {run_id(run)}\nhash: {run_hash(run)}\n" in text
    assert json.loads(json.dumps(run.model_dump(mode="json"))) == run.model_dump(mode="json")


def test_a_spec_file_that_was_changed_is_refused() -> None:
    text = write_spec(run_of()).replace("epochs: 30", "epochs: 31")

    with pytest.raises(SpecError, match=r"spec\.yaml:4: hash: got '[0-9a-f]{64}', expected '[0-9a-f]{64}'"):
        read_spec(text, "spec.yaml")


def test_a_spec_written_by_hand_needs_no_hash() -> None:
    run = run_of()
    text = "\n".join(line for line in write_spec(run).splitlines() if not line.startswith(("run:", "hash:", "#")))

    assert read_spec(text, "spec.yaml") == run


def test_a_factorys_hash_follows_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alone.py").write_text("x = 1\n")
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "nets.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    before = factory_source_hash("alone:build"), factory_source_hash("package.inner.nets:build")
    (package / "__init__.py").write_text("z = 1\n")
    after = factory_source_hash("alone:build"), factory_source_hash("package.inner.nets:build")

    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_factory_that_is_not_there_is_told() -> None:
    with pytest.raises(SpecError, match="no module 'no_such_module'"):
        factory_source_hash("no_such_module.nets:build")
