"""The contract that every store keeps, and what is particular to a folder and to S3."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import Place, place_on, use_server
from stores import ACCESS_KEY, BUCKET, FlakyServer, Server, free_port

from trainer.failure import SpecError, StoreError
from trainer.store import Conflict, FileStore, NotFound, Retry, S3Store, Store, open_store

MIB = 1 << 20
SMALL_PARTS: dict[str, Any] = {"threshold_bytes": 5 * MIB, "part_bytes": 5 * MIB}  # 5 MiB is the least S3 takes


def pattern(size: int) -> bytes:
    """Bytes in which no two stretches are alike, so that a lost or doubled part shows."""
    return b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size]


def keys_of(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


# --- every store ------------------------------------------------------------------------------------------------------


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


def test_a_missing_source_file_is_the_callers_error(store: Store, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        store.put_file("a", tmp_path / "none")


def test_an_object_is_created_only_once(store: Store):
    store.create("results/a.json", b"first")
    for data in (b"second", b"first"):
        with pytest.raises(Conflict):
            store.create("results/a.json", data)
    assert store.get("results/a.json") == b"first"


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


# --- which store ------------------------------------------------------------------------------------------------------


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


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_store_that_was_never_written_to_is_empty(file_store: FileStore):
    assert keys_of(file_store) == []
    with pytest.raises(NotFound):
        file_store.get("a")


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


# --- S3: what passes --------------------------------------------------------------------------------------------------


@pytest.fixture
def flaky_store(flaky: FlakyServer) -> S3Store:
    """A store behind the flaky server, its probe done so that the next request is the test's own."""
    store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", timeout_seconds=0.5, **SMALL_PARTS)
    assert store.is_conditional()
    flaky.requests.clear()
    return store


@pytest.mark.server
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("slow-down", "throttled"), ("reset", "connection"), ("lost", "connection"), ("silent", "timeout")],
)
def test_a_request_that_fails_in_passing_is_sent_again(flaky: FlakyServer, flaky_store: S3Store, fault: str, kind: str):
    times = 1 if fault == "silent" else 2
    flaky.faults = [(method, fault) for method in ("PUT", "GET", "DELETE") for _ in range(times)]
    flaky_store.put("a", b"x")
    assert flaky_store.get("a") == b"x"
    flaky_store.delete("a")
    assert flaky.faults == []
    assert flaky_store.retries == {kind: 3 * times}


@pytest.mark.server
def test_a_torn_answer_is_read_again(flaky: FlakyServer, flaky_store: S3Store):
    data = pattern(400_000)
    flaky_store.put("a", data)
    flaky.faults = [("GET", "torn")]
    assert flaky_store.get("a") == data
    assert flaky_store.retries == {"connection": 1}


@pytest.mark.server
def test_a_torn_stream_goes_on_where_it_broke(flaky: FlakyServer, flaky_store: S3Store):
    data = pattern(6 * MIB)
    flaky_store.put("a", data)
    flaky.faults = [("GET", "torn"), ("GET", "torn")]
    with flaky_store.open("a") as stream:
        assert stream.read() == data
    assert flaky.faults == []


@pytest.mark.server
def test_a_stream_that_breaks_while_the_object_is_replaced_says_so(flaky: FlakyServer, flaky_store: S3Store):
    flaky_store.put("a", pattern(6 * MIB))
    flaky.faults = [("GET", "torn")]
    with flaky_store.open("a") as stream:
        flaky_store.put("a", b"another")
        with pytest.raises(StoreError, match="got another content after a broken connection"):
            stream.read()


@pytest.mark.server
@pytest.mark.parametrize("page", [1, 2], ids=["first page", "second page"])
def test_a_listing_goes_on_after_a_fault(flaky: FlakyServer, flaky_store: S3Store, page: int):
    flaky_store.page_keys = 2
    for name in "abc":
        flaky_store.put(name, b"x")
    flaky.faults = [("continuation-token" if page == 2 else "GET", "slow-down")]
    assert keys_of(flaky_store) == ["a", "b", "c"]
    assert flaky.faults == []


@pytest.mark.server
def test_a_create_whose_answer_was_lost_is_no_conflict(flaky: FlakyServer, flaky_store: S3Store):
    flaky.faults = [("PUT", "lost")]
    flaky_store.create("a", b"mine")
    assert flaky_store.get("a") == b"mine"
    assert sum("PUT" in request for request in flaky.requests) == 2


@pytest.mark.server
def test_a_create_after_somebody_elses_is_a_conflict_even_when_sent_twice(flaky: FlakyServer, flaky_store: S3Store):
    flaky_store.put("a", b"theirs")
    flaky.faults = [("PUT", "reset")]
    with pytest.raises(Conflict):
        flaky_store.create("a", b"mine")
    assert flaky_store.get("a") == b"theirs"


@pytest.mark.server
def test_a_replacement_whose_answer_was_lost_gives_its_version(flaky: FlakyServer, flaky_store: S3Store):
    flaky_store.put("a", b"0")
    version = flaky_store.get_versioned("a")[1]
    flaky.faults = [("PUT", "lost")]
    version = flaky_store.replace("a", b"1", version)
    assert flaky_store.get_versioned("a") == (b"1", version)


@pytest.mark.server
@pytest.mark.parametrize(
    ("request_part", "fault"),
    [("partNumber=2", "slow-down"), ("partNumber=1", "lost"), ("uploadId=", "reset"), ("POST", "reset")],
    ids=["a refused part", "a lost answer to a part", "a reset part", "a reset beginning"],
)
def test_a_fault_in_a_large_upload_costs_no_more_than_a_request(
    flaky: FlakyServer, flaky_store: S3Store, request_part: str, fault: str
):
    data = pattern(11 * MIB)
    flaky.faults = [(request_part, fault)]
    flaky_store.put("a", data)
    assert flaky_store.get("a") == data
    assert flaky.faults == []
    assert sum("PUT" in request for request in flaky.requests) <= 4


@pytest.mark.server
def test_an_upload_whose_completion_was_lost_is_whole(flaky: FlakyServer, flaky_store: S3Store):
    data = pattern(6 * MIB)
    flaky.faults = [("?uploadId=", "lost")]  # of the completion alone: parts have their number before it
    flaky_store.put("a", data)
    assert flaky.faults == []
    assert flaky_store.get("a") == data


@pytest.mark.server
def test_a_failed_upload_leaves_nothing_on_the_server(flaky: FlakyServer, flaky_store: S3Store):
    flaky.faults = [("partNumber=2", "denied")]
    with pytest.raises(StoreError, match="AccessDenied"):
        flaky_store.put("a", pattern(11 * MIB))
    assert keys_of(flaky_store) == []
    uploads = boto3.client("s3", region_name="us-east-1").list_multipart_uploads(Bucket=BUCKET)
    assert [upload["Key"] for upload in uploads.get("Uploads", [])] == []


@pytest.mark.server
def test_retrying_ends_with_patience_and_says_what_was_seen(flaky: FlakyServer, moto: Server):
    store = S3Store(f"s3://{BUCKET}/x", patience_seconds=0.3)
    flaky.faults = [("GET", "slow-down")] * 100
    with pytest.raises(StoreError, match=r"reading 'a' failed \d+ times in \d+ s: got SlowDown") as caught:
        store.get("a")
    assert caught.value.hint is not None
    assert store.retries["throttled"] == len(flaky.requests) - 1


@pytest.mark.server
def test_whoever_is_told_of_a_retry_may_end_it(flaky: FlakyServer):
    told: list[Retry] = []

    def stop(retry: Retry) -> None:
        told.append(retry)
        if retry.tries == 2:
            raise KeyboardInterrupt

    store = S3Store(f"s3://{BUCKET}/x", on_retry=stop)
    flaky.faults = [("GET", "slow-down")] * 100
    with pytest.raises(KeyboardInterrupt):
        store.get("a")
    assert [(retry.operation, retry.key, retry.kind, retry.tries) for retry in told] == [
        ("reading", "a", "throttled", 1),
        ("reading", "a", "throttled", 2),
    ]


@pytest.mark.server
def test_a_server_that_comes_back_is_waited_for(moto: Server, monkeypatch: pytest.MonkeyPatch):
    server = FlakyServer(moto)
    use_server(server.server, monkeypatch)
    seen = threading.Event()
    store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", on_retry=lambda _: seen.set())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.put, "a", b"x")
        assert seen.wait(30)
        with server.running():
            waiting.result()
            assert store.get("a") == b"x"


# --- S3: what does not pass -------------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("name", ["rclone", "moto"])
def test_a_missing_bucket_is_told_at_once(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    use_server(request.getfixturevalue(name), monkeypatch)
    store = S3Store("s3://no-such-bucket/x")
    for use in (store.get, lambda key: list(store.list(key)), lambda key: store.put(key, b"x"), store.delete):
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/x: \w+ 'a' failed: got NoSuchBucket") as caught:
            use("a")
        assert "create the bucket" in str(caught.value.hint)
    assert store.retries == {}


@pytest.mark.server
@pytest.mark.parametrize(
    ("access_key", "code"), [("unknown", "InvalidAccessKeyId"), (ACCESS_KEY, "SignatureDoesNotMatch")]
)
def test_wrong_credentials_are_told_at_once(
    rclone: Server, monkeypatch: pytest.MonkeyPatch, access_key: str, code: str
):
    place = place_on(rclone, monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = place.connect()
    assert isinstance(store, S3Store)
    with pytest.raises(StoreError, match=f"got {code}") as caught:
        store.get("a")
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value.hint)
    assert store.retries == {}


@pytest.mark.server
def test_denied_access_is_told_at_once(flaky: FlakyServer, flaky_store: S3Store):
    flaky.faults = [("GET", "denied")]
    with pytest.raises(StoreError, match="got AccessDenied: Access Denied") as caught:
        flaky_store.get("a")
    assert "s3:GetObject" in str(caught.value.hint)


def nowhere() -> Server:
    return Server("nowhere", f"http://127.0.0.1:{free_port()}", is_conditional=False)


def test_missing_credentials_are_told_at_once(monkeypatch: pytest.MonkeyPatch):
    use_server(nowhere(), monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="expected credentials for http://") as caught:
        S3Store("s3://bucket/x").get("a")
    assert "AWS_PROFILE" in str(caught.value.hint)


def test_an_endpoint_that_is_no_url_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    use_server(nowhere(), monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(StoreError, match="got Invalid endpoint: not a url") as caught:
        S3Store("s3://bucket/x")
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)


def test_an_unknown_profile_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    use_server(nowhere(), monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="nobody") as caught:
        S3Store("s3://bucket/x")
    assert "AWS_PROFILE" in str(caught.value.hint)


def test_a_host_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch):
    use_server(nowhere(), monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    with pytest.raises(StoreError, match=r"no-such-host\.invalid") as caught:
        S3Store("s3://bucket/x", patience_seconds=0.2).get("a")
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)


def test_a_server_that_does_not_listen_is_told_after_patience(monkeypatch: pytest.MonkeyPatch):
    use_server(nowhere(), monkeypatch)
    with pytest.raises(StoreError, match=r"failed \d+ times") as caught:
        S3Store("s3://bucket/x", patience_seconds=0.2).get("a")
    assert "is the server up?" in str(caught.value.hint)


@pytest.mark.server
def test_a_probe_that_was_left_behind_is_no_object(moto: Server, monkeypatch: pytest.MonkeyPatch):
    place = place_on(moto, monkeypatch)
    prefix = place.uri.rpartition("/")[2]
    client = boto3.client("s3", region_name="us-east-1")
    for name in (".probe/left", "folder/"):
        client.upload_fileobj(io.BytesIO(b"x"), BUCKET, f"{prefix}/{name}")
    assert keys_of(place.connect()) == []
