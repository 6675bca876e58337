"""Sizes of networks: measured once by a child process, then read from the store."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from controller import networks
from controller.networks import read_sizes
from trainer.sizes import Shape, Size
from trainer.spec import ModelSpec
from trainer.store import FileStore

SHAPE = Shape(model=ModelSpec(architecture="networks:usual"), num_classes=5, crop=32)
OTHER = Shape(model=ModelSpec(architecture="networks:no_such_network"), num_classes=5, crop=32)
SIZE = Size(
    num_parameters=7, num_trainable_parameters=5, num_buffers=0, image_bytes=3, largest_bytes=1, process_bytes=9
)


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def no_child(*_command: object, **_settings: object) -> None:
    raise AssertionError("a child process was started")


def test_a_size_that_the_store_has_needs_no_torch(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(SHAPE.key, SIZE.model_dump_json().encode())
    monkeypatch.setattr(subprocess, "run", no_child)

    assert read_sizes(store, [SHAPE]).known == {SHAPE.key: SIZE}
    assert read_sizes(store, []).known == {}


@pytest.mark.slow
def test_sizes_are_measured_once_and_what_cannot_be_built_says_why(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    found = read_sizes(store, [SHAPE, OTHER])

    assert found.known[SHAPE.key].num_parameters > 0
    assert found.known[SHAPE.key].image_bytes > 3 * 32 * 32 * 4
    assert "no_such_network" in found.unknown[OTHER.key]
    monkeypatch.setattr(subprocess, "run", no_child)
    assert read_sizes(store, [SHAPE]).known == found.known


@pytest.mark.parametrize(
    ("command", "why"),
    [
        pytest.param("import sys; sys.exit('no torch here')", "no torch here", id="fails"),
        pytest.param("print('nothing')", "torch did not answer: ", id="says-nothing-that-is-json"),
        pytest.param("import time; time.sleep(60)", "torch took longer than", id="takes-too-long"),
    ],
)
def test_a_child_that_does_not_answer_leaves_sizes_unknown(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, command: str, why: str
) -> None:
    monkeypatch.setattr(networks, "CHILD", ("-c", command))
    monkeypatch.setattr(networks, "CHILD_SECONDS", 3.0)

    assert read_sizes(store, [SHAPE]).unknown[SHAPE.key].startswith(why)


def test_what_is_measured_is_told_before_by_name(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def child(*_command: object, **_settings: object) -> None:
        told.append("measured")
        raise OSError("no child")

    monkeypatch.setattr(subprocess, "run", child)
    store.put(SHAPE.key, SIZE.model_dump_json().encode())
    read_sizes(store, [SHAPE], told.append)
    assert told == []
    read_sizes(store, [SHAPE, OTHER, OTHER.model_copy(update={"crop": 64})], told.append)
    assert told == ["measuring networks:no_such_network, once: the store keeps what is found", "measured"]


def test_too_many_networks_are_not_measured_at_once(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MAX_SHAPES", 0)

    assert read_sizes(store, [SHAPE]).unknown[SHAPE.key].startswith("more than 0 networks")


def test_the_key_follows_what_the_size_hangs_on() -> None:
    model = SHAPE.model
    others = [
        SHAPE.model_copy(update={"crop": 64}),
        SHAPE.model_copy(update={"num_classes": 6}),
        SHAPE.model_copy(update={"model": model.model_copy(update={"freeze": "convolutional"})}),
        SHAPE.model_copy(update={"model": model.model_copy(update={"source_hash": "0" * 64})}),
    ]

    assert len({shape.key for shape in (SHAPE, *others)}) == 5
