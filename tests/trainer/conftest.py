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
