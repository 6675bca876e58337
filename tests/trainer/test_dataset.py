from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from images import some_images, write_tree

from trainer.dataset import (
    PARTS,
    DatasetIndex,
    dataset_key,
    fingerprint_of,
    load_index,
    order,
    paths_sha256,
    resized_shape,
)
from trainer.decode import decode_image
from trainer.failure import DataError
from trainer.importing import import_dataset
from trainer.store import FileStore, open_store

CALTECH = os.environ.get("CALTECH101_DIR")
TEST_SHA256 = "f451420d1e4cb038096f4a9cca2c79702176e0bcea4298df20a603fee3e7650f"  # of the report's test.txt
TRAINING_SHA256 = "9b67d0462c1edd5cad1fd423cd39e48ec28b89846d877eaa45c9572841bac6a9"  # and of its train.txt


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = open_store(f"file://{tmp_path}/store")
    assert isinstance(store, FileStore)
    return store


@pytest.fixture
def index(tmp_path: Path, store: FileStore) -> DatasetIndex:
    tree = write_tree(tmp_path / "tree", some_images({"ant": 10, "Bee": 20, "cat": 5}))
    return import_dataset(tree, "animals", store, shard_bytes=8 << 10).index


def test_every_image_lies_where_the_index_says(tmp_path: Path, index: DatasetIndex, store: FileStore) -> None:
    assert len(index.shards) > 3
    for part in PARTS:
        for entry in index.entries(part):
            shard = store.get(index.shard_key(entry.shard))
            data = shard[entry.offset : entry.offset + entry.size]
            assert data == (tmp_path / "tree" / entry.path).read_bytes()
            assert decode_image(data).size == (entry.width, entry.height)
            assert index.classes[entry.label] == entry.path.split("/")[0]
            assert index.shards[entry.shard].part == part


def test_the_counts_are_those_of_the_entries(index: DatasetIndex) -> None:
    assert index.num_classes == 3
    assert index.num_images() == 35
    for part in PARTS:
        labels = [entry.label for entry in index.entries(part)]
        assert index.num_images(part) == len(labels)
        assert index.class_counts(part) == tuple(labels.count(label) for label in range(3))
        assert labels == sorted(labels)


def test_what_is_loaded_is_what_was_written(index: DatasetIndex, store: FileStore) -> None:
    loaded = load_index(store, "animals")
    assert loaded == index
    assert loaded.entries("validation") == index.entries("validation")


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (200, 300, (256, 384)),
        (300, 200, (384, 256)),
        (301, 200, (385, 256)),
        (256, 256, (256, 256)),
        (7, 5, (358, 256)),
    ],
)
def test_a_resized_image_has_the_shape_that_torchvision_gives_it(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert resized_shape(height, width, 256) == expected


def test_the_cache_of_resized_images_has_three_bytes_a_pixel(index: DatasetIndex) -> None:
    assert index.resized_bytes(24, ["test"]) == 7 * 24 * 32 * 3
    assert index.resized_bytes(24) == 35 * 24 * 32 * 3


def test_order_is_without_case_by_category_then_by_file() -> None:
    paths = ["b/1", "a b/1", "B/0", "a/Z", "a/y", "a-b/1", "a/Y"]
    assert sorted(paths, key=order) == ["a/Y", "a/y", "a/Z", "a b/1", "a-b/1", "B/0", "b/1"]


def test_the_fingerprint_can_be_computed_from_the_index(index: DatasetIndex) -> None:
    entries = [entry for part in PARTS for entry in index.entries(part)]
    rows = [(entry.path, entry.label, entry.part, bytes.fromhex(entry.sha256)) for entry in entries]
    assert fingerprint_of(index.classes, rows) == index.fingerprint


def test_the_fingerprint_is_golden() -> None:
    rows = [("ant/ä.png", 0, PARTS[0], bytes(32)), ("bee/1.png", 1, PARTS[2], bytes(range(32)))]
    assert fingerprint_of(["ant", "bee"], rows) == "6d32c3dad2ff83e0ce6bd7537548463c95922e91cdaa349578fcad8323b9ccaa"


def test_a_data_set_that_is_not_there_is_an_error_with_the_command_that_imports_it(store: FileStore) -> None:
    with pytest.raises(DataError, match=r"data set .birds.: no datasets/birds/index\.json in file://") as caught:
        load_index(store, "birds")
    assert "grid data import birds" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, "is not an index: classes: "),
        ({"version": 9}, "has format version 9, expected 1"),
        ({"parts": {}}, "does not agree with itself"),
    ],
    ids=["a wrong type", "another version", "no parts"],
)
def test_an_index_that_cannot_be_read_is_an_error_that_says_where(
    change: dict[str, object], message: str, index: DatasetIndex, store: FileStore
) -> None:
    key = dataset_key("animals", "index.json")
    store.put(key, json.dumps(json.loads(store.get(key)) | change).encode())
    with pytest.raises(DataError, match=message):
        load_index(store, "animals")


def test_an_index_cut_short_is_an_error(index: DatasetIndex, store: FileStore) -> None:
    key = dataset_key("animals", "index.json")
    store.put(key, store.get(key)[:-100])
    with pytest.raises(DataError, match="is not an index: the file: Invalid JSON"):
        load_index(store, "animals")


@pytest.mark.data
@pytest.mark.skipif(not CALTECH, reason="needs the real Caltech-101 in CALTECH101_DIR")
def test_caltech_101_is_split_as_the_report_split_it(store: FileStore) -> None:
    assert CALTECH is not None
    index = import_dataset(CALTECH, "caltech101", store, split="every-third", exclude=["BACKGROUND_Google"]).index
    assert index.num_classes == 101
    assert [index.num_images(part) for part in PARTS] == [2892, 2892, 2893]
    assert index.parts["test"].paths_sha256 == TEST_SHA256
    assert index.split.training_paths_sha256 == TRAINING_SHA256
    halves = np.subtract(index.class_counts("train"), index.class_counts("validation"))
    odd = halves[halves != 0]
    assert np.array_equal(odd, [1, -1] * (len(odd) // 2))  # in category order, odd leftovers alternate
    assert index.parts["validation"].paths_sha256 == "7eaa5006651b0b33598a3b31ffefe5f726f5e2a4b7749ea53caf644f4ce01bb8"
    assert index.fingerprint == "f4baa6f672dd16780b8bd31ff645946cfea6566ac30a68eacdce15f602ce8f3a"
    largest = np.argmax(index.class_counts("train"))
    assert round(index.class_counts("validation")[largest] / index.num_images("validation"), 3) == 0.092
    assert (index.skipped, index.notes) == ((), ())
    assert 2.5e9 < index.resized_bytes(256) < 2.6e9
    assert len(store.get(dataset_key("caltech101", "index.json"))) < 1 << 20


def test_paths_are_hashed_in_order_with_newlines_between() -> None:
    assert paths_sha256(["a/1", "b/2"]) == hashlib.sha256(b"a/1\nb/2").hexdigest()
