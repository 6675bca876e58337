"""The contract that every store keeps, and which store a URI names."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stores import SMALL_PARTS, Place, Server, keys_of, pattern, place_on

from trainer.failure import SpecError
from trainer.store import Conflict, NotFound, Store, open_store

MIB = 1 << 20


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff\r\n", pattern(300_000)], ids=["empty", "control bytes", "larger than a buffer"]
)
def test_what_is_put_is_what_is_got(store: Store, data: bytes):
    store.put("runs/a/blob", data)
    assert store.get("runs/a/blob") == data
    assert [(entry.key, entry.size) for entry in store.list("")] == [("runs/a/blob", len(data))]


def test_a_second_put_takes_the_place_of_the_first(store: Store):
    store.put("a", b"first, and longer")
    store.put("a", b"second")
    assert store.get("a") == b"second"


def test_an_object_that_is_not_there_is_not_found(store: Store):
    for read in (store.get, store.get_versioned, store.open, lambda key: dict(store.get_many([key]))):
        with pytest.raises(NotFound):
            read("runs/none")
    with pytest.raises(NotFound):
        store.replace("runs/none", b"x", "00000000000000000000000000000000")


def test_a_folder_of_objects_is_no_object(store: Store):
    store.put("runs/a/spec.yaml", b"x")
    with pytest.raises(NotFound):
        store.get("runs/a")


def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(store: Store):
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    assert keys_of(store) == []
    with pytest.raises(NotFound):
        store.get("a/b")


def test_a_key_may_hold_any_character_that_prints(store: Store):
    keys = [
        "two words/a b",
        "Größe/日本語.txt",
        "a+b",
        "50%25",
        "what?",
        "a#b",
        "a&b=c",
        "it's",
        'say "x"',
        "a:b",
        "<b>",
    ]
    for key in keys:
        store.put(key, key.encode())
    assert dict(store.get_many(keys)) == {key: key.encode() for key in keys}
    assert keys_of(store) == sorted(keys)
    assert [keys_of(store, key) for key in keys] == [[key] for key in keys]
    for key in keys:
        store.delete(key)
    assert keys_of(store) == []


MALFORMED = [
    "",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    "a/./b",
    ".hidden",
    "a/.tmp-1",
    "a\nb",
    "a\0b",
    "\udcff",
    "k" * 901,
]


def test_a_malformed_key_is_refused_before_anything_happens(store: Store):
    for key in MALFORMED:
        for use in (store.get, store.open, store.delete, store.local_path, lambda key: store.put(key, b"x")):
            with pytest.raises(SpecError, match="store key: got"):
                use(key)
    assert keys_of(store) == []


def test_objects_are_listed_in_the_order_of_their_whole_keys(store: Store):
    keys = ["B", "a-b", "a.txt", "a/x", "a/y/z", "a0", "ab", "é", "日"]
    for key in reversed(keys):
        store.put(key, key.encode())
    assert keys_of(store) == keys
    assert keys == sorted(keys, key=str.encode)


def test_a_listing_holds_the_keys_that_start_with_the_prefix(store: Store):
    for key in ["runs/a/1", "runs/a/2", "runs/ab/1", "tests/a"]:
        store.put(key, b"x")
    assert keys_of(store) == ["runs/a/1", "runs/a/2", "runs/ab/1", "tests/a"]
    assert keys_of(store, "runs/a") == keys_of(store, "runs/") == ["runs/a/1", "runs/a/2", "runs/ab/1"]
    assert keys_of(store, "runs/a/") == ["runs/a/1", "runs/a/2"]
    assert keys_of(store, "runs/a/2") == ["runs/a/2"]
    assert keys_of(store, "none/") == keys_of(store, "tests/a/") == []


def test_a_listing_tells_size_time_and_version(store: Store):
    before = time.time()
    store.put("a", b"four")
    (entry,) = store.list("a")
    assert entry.size == 4
    assert before - 60 < entry.modified < time.time() + 60
    assert entry.version == store.get_versioned("a")[1]
    store.put("a", b"five")
    assert next(store.list("a")).version != entry.version


def fill(store: Store, num_objects: int) -> list[str]:
    keys = [f"results/{number:04}.json" for number in range(num_objects)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, key.encode()), keys))
    return keys


def test_more_than_a_page_of_objects_is_listed_and_read(place: Place):
    store = place.connect(page_keys=30)
    keys = fill(store, 101)
    assert keys_of(store, "results/") == keys
    assert list(store.get_many(reversed(keys), workers=8)) == [(key, key.encode()) for key in reversed(keys)]


@pytest.mark.server
def test_more_objects_than_a_server_gives_at_once_are_listed(rclone: Server, monkeypatch: pytest.MonkeyPatch):
    store = place_on(rclone, monkeypatch).connect()
    keys = fill(store, 1001)
    assert keys_of(store) == keys


def test_reading_many_can_stop_early(store: Store):
    for number in range(5):
        store.put(f"a/{number}", b"x")
    many = store.get_many([f"a/{number}" for number in range(5)] + ["none"], workers=2)
    assert next(iter(many)) == ("a/0", b"x")
    many.close()


@pytest.mark.parametrize("size", [0, 5 * MIB, 11 * MIB + 3], ids=["empty", "one part", "three parts"])
def test_a_file_goes_up_in_parts_and_comes_back_as_a_stream(place: Place, tmp_path: Path, size: int):
    store = place.connect(**SMALL_PARTS)
    data = pattern(size)
    (tmp_path / "source").write_bytes(data)
    store.put_file("runs/a/blobs/1-abc", tmp_path / "source")
    with store.open("runs/a/blobs/1-abc") as stream:
        pieces = list(iter(lambda: stream.read(700_001), b""))
    assert b"".join(pieces) == data
    assert next(store.list("runs/")).size == size


def test_large_bytes_go_up_in_parts(place: Place):
    store = place.connect(**SMALL_PARTS)
    data = pattern(6 * MIB)
    store.put("blob", data)
    assert store.get("blob") == data


@pytest.mark.parametrize(
    "size", [0, 300_000, 5 * MIB, 5 * MIB + 4097], ids=["empty", "small", "whole blocks", "blocks and a rest"]
)
@pytest.mark.parametrize("first", [0, 3], ids=["from a page on", "from the middle of a page"])
def test_memory_is_written_from_where_it_lies(place: Place, size: int, first: int):
    store = place.connect(**SMALL_PARTS)
    data = pattern(size)
    with mmap.mmap(-1, first + size + 1) as memory:
        memory[first : first + size] = data
        with memoryview(memory)[first : first + size] as view:
            store.put("runs/a/blobs/1-abc", view)
        assert store.get("runs/a/blobs/1-abc") == data


def test_a_missing_source_file_is_the_callers_error(store: Store, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        store.put_file("a", tmp_path / "none")


def test_an_object_is_created_only_once(store: Store):
    store.create("results/a.json", b"first")
    for data in (b"second", b"first"):
        with pytest.raises(Conflict):
            store.create("results/a.json", data)
    assert store.get("results/a.json") == b"first"


def test_a_creation_tells_the_version_that_it_made(store: Store):
    first = store.create("lease.json", b"0")
    assert store.get_versioned("lease.json") == (b"0", first)
    second = store.replace("lease.json", b"1", first)
    with pytest.raises(Conflict):
        store.replace("lease.json", b"2", first)
    assert store.get_versioned("lease.json") == (b"1", second)


def test_only_the_version_that_was_read_is_replaced(store: Store):
    store.put("lease.json", b"0")
    data, first = store.get_versioned("lease.json")
    second = store.replace("lease.json", b"1", first)
    with pytest.raises(Conflict):
        store.replace("lease.json", b"2", first)
    third = store.replace("lease.json", b"3", second)
    assert store.get_versioned("lease.json") == (b"3", third)
    assert data == b"0"


def test_a_store_knows_whether_its_server_honours_conditions(place: Place):
    store = place.connect()
    found = store.is_conditional()
    assert found == (store.is_conditional() if place.is_conditional is None else place.is_conditional)
    assert keys_of(store) == []


def test_a_reader_never_sees_half_a_write(store: Store):
    old, new = b"a" * 300_000, b"b" * 300_000
    store.put("blob", old)
    stop = threading.Event()

    def read() -> set[bytes]:
        seen = set()
        while not stop.is_set():
            seen.add(store.get("blob"))
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for _ in range(15):
            store.put("blob", new)
            store.put("blob", old)
        stop.set()
        assert set().union(*(reader.result() for reader in readers)) <= {old, new}


def test_every_opening_of_a_store_locks_the_same_file(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = place.connect(), place.connect()
    path = first.lock_path("run-a")
    assert path == second.lock_path("run-a")
    assert path != first.lock_path("run-b")
    path.touch()
    assert keys_of(first) == []


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("./store", "file://./store"),
        ("store", "file://./store"),
        ("/data/store", "file:///data/store"),
        ("file://store", "file://./store"),
        ("gs://bucket/x", "AWS_ENDPOINT_URL"),
        ("s3://", "name the bucket"),
        ("s3:///x", "name the bucket"),
    ],
)
def test_what_is_no_store_is_refused_with_a_hint(uri: str, hint: str):
    with pytest.raises(SpecError, match=r"expected .*s3://bucket/prefix") as caught:
        open_store(uri)
    assert hint in str(caught.value.hint)


def test_a_relative_folder_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("file://./my%20store")
    assert store.uri == f"file://{tmp_path}/my%20store"
    store.put("a", b"x")
    assert (tmp_path / "my store" / "a").read_bytes() == b"x"
    assert open_store(store.uri).get("a") == b"x"


def test_a_folder_store_does_without_boto3(tmp_path: Path):
    program = (
        "import sys; from trainer.store import open_store\n"
        f"open_store('file://{tmp_path}/store').put('a', b'x'); print('boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
