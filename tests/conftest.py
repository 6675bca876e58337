"""Stores for tests: a folder, real S3 servers on loopback, and the one that GRID_TEST_STORE names."""

from __future__ import annotations

import functools
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader, create_loader

sys.path.insert(0, str(Path(__file__).parent / "trainer"))  # `stores` is needed by tests of every package

from stores import BUCKET, FlakyServer, Server, moto_server, rclone_server

from trainer.store import FileStore, S3Store, open_store

NAMED_STORE = os.environ.get("GRID_TEST_STORE", "")


@dataclass(frozen=True)
class Place:
    """Somewhere to keep objects, empty at first; `connect` opens it once more."""

    name: str
    uri: str
    is_conditional: bool | None  # None where nobody has said

    def connect(self, **settings: Any) -> FileStore | S3Store:
        return open_store(self.uri) if self.uri.startswith("file:") else S3Store(self.uri, **settings)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is not None:
        import torch  # here, since most tests do without it for seconds less

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


def use_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the AWS environment of this process point to `server` alone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.session.create_loader", _api_models)


@functools.cache
def _api_models(_: str | None = None) -> Loader:
    """botocore's descriptions of the S3 API, parsed once for all tests: most of what opening a store costs."""
    return create_loader()


def place_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A prefix of its own in the server's bucket."""
    use_server(server, monkeypatch)
    return Place(server.name, f"s3://{BUCKET}/{uuid.uuid4().hex}", server.is_conditional)


@pytest.fixture(
    params=[
        "folder",
        pytest.param("rclone", marks=pytest.mark.server),
        pytest.param("moto", marks=pytest.mark.server),
        *(["named"] if NAMED_STORE else []),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each kind of place that a store can be in, in turn."""
    if request.param == "folder":
        yield Place("folder", f"file://{tmp_path}/store", is_conditional=True)
    elif request.param == "named":
        named = Place("named", f"{NAMED_STORE.rstrip('/')}/{uuid.uuid4().hex}", is_conditional=None)
        yield named
        store = named.connect()
        for entry in store.list(""):
            store.delete(entry.key)
    else:
        yield place_on(request.getfixturevalue(request.param), monkeypatch)


@pytest.fixture
def store(place: Place) -> FileStore | S3Store:
    return place.connect()


@pytest.fixture
def file_store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def flaky(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    """A server that honours conditions and breaks requests on demand; the environment points to it."""
    with FlakyServer(moto).running() as server:
        use_server(server.server, monkeypatch)
        yield server
