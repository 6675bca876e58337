"""The small data set of `blobs` in a store, and its training part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blobs import CONTENTS, SPEC, write_dataset

from trainer.cache import Cache
from trainer.dataset import DatasetIndex
from trainer.part import Part, open_part
from trainer.spec import DataSpec
from trainer.store import FileStore


@pytest.fixture
def index(file_store: FileStore) -> DatasetIndex:
    return write_dataset(file_store, CONTENTS)


@pytest.fixture
def open_train(tmp_path: Path, file_store: FileStore, index: DatasetIndex) -> Callable[..., Part]:
    def opened(data: DataSpec = SPEC, folder: str = "cache", **cache: Any) -> Part:
        return open_part(index, data, "train", file_store, Cache(tmp_path / folder, threads=2, **cache))

    return opened


@pytest.fixture
def data(
    pictures: tuple[FileStore, DatasetIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[FileStore, DatasetIndex]:
    """A store of this test's own that has the `pictures` of its module."""
    shared, index = pictures
    store = FileStore(tmp_path / "folder")
    for entry in shared.list("datasets/"):
        store.put(entry.key, shared.get(entry.key))
    monkeypatch.setenv("GRID_CACHE", str(shared.root.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return store, index
