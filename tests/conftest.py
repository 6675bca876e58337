"""Stores for tests: a folder, real S3 servers on loopback, and the one that GRID_TEST_STORE names."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "trainer"))  # `stores` is needed by tests of every package

from stores import FlakyServer, Place, Server, moto_server, place_on, rclone_server, use_server

from trainer.store import FileStore, S3Store

NAMED_STORE = os.environ.get("GRID_TEST_STORE", "")


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
