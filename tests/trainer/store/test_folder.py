"""What is particular to a store in a folder."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stores import keys_of

from trainer.failure import StoreError
from trainer.store import Conflict, FileStore, NotFound, Request


def test_a_store_that_was_never_written_to_is_empty(file_store: FileStore):
    assert keys_of(file_store) == []
    with pytest.raises(NotFound):
        file_store.get("a")


def test_each_request_is_told_with_what_came_of_it(tmp_path: Path):
    told: list[Request] = []
    store = FileStore(tmp_path / "store", on_request=told.append)
    store.put("a/b", b"x")
    store.replace("a/b", b"y", store.get_versioned("a/b")[1])
    assert keys_of(store) == ["a/b"]
    with pytest.raises(NotFound):
        store.get("none")
    with store.open("a/b") as stream:
        assert stream.read() == b"y"
    store.delete("a/b")
    (tmp_path / "store" / "c").write_bytes(b"")
    with pytest.raises(StoreError):
        store.put("c/d", b"x")
    assert [(each.operation, each.fault) for each in told] == [
        ("writing", None),
        ("reading", None),
        ("replacing", None),
        ("listing", None),
        ("listing", None),
        ("reading", None),
        ("reading", None),
        ("deleting", None),
        ("writing", "refused"),
    ]
    assert min(each.seconds for each in told) >= 0


def test_a_folder_below_one_that_was_removed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StoreError, match="store: opening the store failed: got No such file or directory"):
        FileStore(Path("store"))


def test_a_folder_below_a_missing_one_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="got no folder") as caught:
        FileStore(tmp_path / "none" / "store")
    assert "mkdir -p" in str(caught.value.hint)


def test_a_file_is_no_folder_store(tmp_path: Path):
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreError, match="got a file, expected a folder"):
        FileStore(tmp_path / "store")


@pytest.mark.parametrize("key", ["a/b", "a/b/c"])
def test_an_object_cannot_lie_below_an_object(file_store: FileStore, key: str):
    file_store.put("a", b"x")
    with pytest.raises(StoreError, match="writing failed") as caught:
        file_store.put(key, b"x")
    assert "move it away" in str(caught.value.hint)


def test_an_object_cannot_take_the_place_of_a_folder(file_store: FileStore):
    file_store.put("a/b", b"x")
    with pytest.raises(StoreError, match="writing failed: got Is a directory"):
        file_store.put("a", b"x")
    assert file_store.get("a/b") == b"x"


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """This process without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_must_not_be_written_to_is_told(file_store: FileStore, request: pytest.FixtureRequest):
    file_store.put("a/b", b"x")
    (file_store.root / "a").chmod(0o555)
    request.getfixturevalue("unprivileged")
    with pytest.raises(StoreError, match="Permission denied") as caught:
        file_store.put("a/c", b"x")
    assert "read and write the folder" in str(caught.value.hint)


def test_a_write_that_the_disk_refuses_leaves_the_old_object(file_store: FileStore):
    file_store.put("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match="File too large") as caught:
            file_store.put("a", b"n" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.hint is not None
    assert file_store.get("a") == b"old"
    assert list(file_store.root.rglob(".tmp-*")) == []


def test_a_large_write_that_the_disk_refuses_leaves_the_old_object(file_store: FileStore):
    file_store.put("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, hard))
    try:
        with memoryview(mmap.mmap(-1, 9 << 20)) as view, pytest.raises(StoreError, match="File too large"):
            file_store.put("a", view)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file_store.get("a") == b"old"
    assert list(file_store.root.rglob(".tmp-*")) == []


def test_a_large_write_goes_past_the_page_cache_where_it_can(file_store: FileStore):
    size = 8 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory, memoryview(memory) as view:
        file_store.put("large", view)
        path = file_store.local_path("large")
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            pytest.skip("this file system has no direct access")
    assert num_cached_pages(path) == 0


def num_cached_pages(path: Path) -> int:
    """Pages of the file that the kernel holds, as mincore(2) counts them."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        num_pages = -(-len(mapped) // mmap.PAGESIZE)
        seen = (ctypes.c_ubyte * num_pages)()
        start = ctypes.c_char.from_buffer(mapped)
        answer = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), seen)
        del start
        assert answer == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in seen)


def test_a_writer_killed_in_the_middle_leaves_no_object(file_store: FileStore, tmp_path: Path):
    source = tmp_path / "source"
    os.mkfifo(source)
    program = (
        "import sys; from pathlib import Path; from trainer.store import FileStore\n"
        "FileStore(Path(sys.argv[1])).put_file('runs/a/blob', Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(file_store.root), str(source)]
    with subprocess.Popen(command) as writer, source.open("wb", buffering=0) as pipe:
        pipe.write(b"x" * 60_000)
        until = time.monotonic() + 30
        while not list(file_store.root.rglob(".tmp-*")):
            assert time.monotonic() < until
            time.sleep(0.01)
        writer.kill()
        writer.wait()
    assert keys_of(file_store) == []
    with pytest.raises(NotFound):
        file_store.get("runs/a/blob")
    assert file_store.sweep_temporary(older_than_seconds=3600) == 0
    assert file_store.sweep_temporary(older_than_seconds=0) == 1
    assert list(file_store.root.rglob(".tmp-*")) == []
    file_store.put("runs/a/blob", b"whole")
    assert keys_of(file_store) == ["runs/a/blob"]


def test_processes_that_create_the_same_object_agree_on_one(file_store: FileStore):
    program = (
        "import sys; from pathlib import Path; from trainer.store import Conflict, FileStore\n"
        "store = FileStore(Path(sys.argv[1])); sys.stdin.readline(); won = 0\n"
        "for number in range(50):\n"
        "    try: store.create(f'results/{number}', sys.argv[2].encode()); won += 1\n"
        "    except Conflict: pass\n"
        "print(won)"
    )
    command = [sys.executable, "-c", program, str(file_store.root)]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    won = [int(writer.communicate("go\n")[0]) for writer in writers]
    assert sum(won) == len(keys_of(file_store)) == 50
    assert sorted(won) == sorted(
        [file_store.get(key) for key in keys_of(file_store)].count(name.encode()) for name in "abc"
    )


def test_no_replacement_is_lost_among_threads(file_store: FileStore):
    file_store.put("count", b"0")

    def increment(_: int) -> None:
        while True:
            data, version = file_store.get_versioned("count")
            try:
                file_store.replace("count", str(int(data) + 1).encode(), version)
                return
            except Conflict:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(60)))
    assert file_store.get("count") == b"60"


def test_versions_differ_however_fast_they_follow(file_store: FileStore):
    versions = []
    for number in range(50):
        file_store.put("lease", b"%02d" % number)
        versions.append(file_store.get_versioned("lease")[1])
    assert len(set(versions)) == 50


def test_a_file_system_without_links_still_creates_only_once(file_store: FileStore, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    file_store.create("a", b"first")
    with pytest.raises(Conflict):
        file_store.create("a", b"second")
    assert file_store.get("a") == b"first"


def test_deleting_the_last_object_removes_the_folders_it_was_in(file_store: FileStore):
    file_store.put("runs/a/blobs/1", b"x")
    file_store.put("runs/b", b"x")
    file_store.delete("runs/a/blobs/1")
    assert not (file_store.root / "runs" / "a").exists()
    assert keys_of(file_store) == ["runs/b"]


def test_an_open_stream_keeps_its_content_while_the_object_is_replaced(file_store: FileStore):
    file_store.put("a", b"old content")
    with file_store.open("a") as stream:
        start = stream.read(3)
        file_store.put("a", b"new")
        assert start + stream.read() == b"old content"


def test_an_object_lies_where_its_local_path_says(file_store: FileStore):
    file_store.put("datasets/x/shard-0.tar", b"x")
    assert file_store.local_path("datasets/x/shard-0.tar").read_bytes() == b"x"
