"""What is particular to S3: what passes and is asked again, and what is told at once."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from stores import (
    ACCESS_KEY,
    BUCKET,
    SMALL_PARTS,
    FlakyServer,
    Server,
    free_port,
    keys_of,
    pattern,
    place_on,
    use_server,
)

from trainer.failure import StoreError
from trainer.store import Conflict, NotFound, Request, Retry, S3Store

MIB = 1 << 20


@pytest.fixture
def flaky_store(flaky: FlakyServer) -> S3Store:
    """A store behind the flaky server, its probe done so that the next request is the test's own."""
    store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", **SMALL_PARTS)
    assert store.is_conditional()
    flaky.requests.clear()
    return store


@pytest.mark.server
@pytest.mark.parametrize(
    ("fault", "kind"), [("slow-down", "throttled"), ("reset", "connection"), ("lost", "connection")]
)
def test_a_request_that_fails_in_passing_is_sent_again(flaky: FlakyServer, flaky_store: S3Store, fault: str, kind: str):
    flaky.faults = [(method, fault) for method in ("PUT", "GET", "DELETE") for _ in range(2)]
    flaky_store.put("a", b"x")
    assert flaky_store.get("a") == b"x"
    flaky_store.delete("a")
    assert flaky.faults == []
    assert flaky_store.retries == {kind: 6}


@pytest.mark.server
def test_a_request_that_is_met_with_silence_is_sent_again(flaky: FlakyServer, flaky_store: S3Store):
    impatient = S3Store(flaky_store.uri, timeout_seconds=0.5)
    flaky.faults = [(method, "silent") for method in ("PUT", "GET", "DELETE")]
    impatient.put("a", b"x")
    assert impatient.get("a") == b"x"
    impatient.delete("a")
    assert flaky.faults == []
    assert impatient.retries["timeout"] >= 3  # a busy machine may be silent too


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
def test_each_request_is_told_with_what_came_of_it(flaky: FlakyServer):
    told: list[Request] = []
    store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", on_request=told.append)
    assert store.is_conditional()
    told.clear()
    flaky.faults = [("GET", "slow-down"), ("GET", "reset")]
    version = store.create("a", b"x")
    assert store.get("a") == b"x"
    with pytest.raises(NotFound):
        store.get("none")
    with pytest.raises(Conflict):
        store.replace("a", b"y", f"{version}-not")
    with pytest.raises(StoreError):
        S3Store("s3://no-such-bucket/x", on_request=told.append).put("a", b"x")
    assert [(each.operation, each.fault) for each in told] == [
        ("writing", None),
        ("reading", "throttled"),
        ("reading", "connection"),
        ("reading", None),
        ("reading", None),
        ("replacing", None),
        ("writing", "refused"),
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


ACTIONS: dict[str, Callable[[S3Store], object]] = {
    "listing": lambda store: keys_of(store),
    "writing": lambda store: store.put("a", b"x"),
    "creating": lambda store: store.create("a", b"x"),
    "writing a large one": lambda store: store.put("a", pattern(6 * MIB)),
}


@pytest.mark.server
@pytest.mark.parametrize("action", ACTIONS)
def test_a_404_without_a_code_is_a_fault_of_what_asks_for_no_object(
    flaky: FlakyServer, flaky_store: S3Store, action: str
):
    flaky.faults = [("", "absent")]
    with pytest.raises(StoreError, match=f"got 404: Not Found, expected a bucket '{BUCKET}' at http") as caught:
        ACTIONS[action](flaky_store)
    assert str(caught.value).startswith(flaky_store.uri)
    assert "create the bucket" in str(caught.value.hint)
    assert flaky_store.retries == {}


@pytest.mark.server
def test_a_404_without_a_code_means_that_an_object_is_absent(flaky: FlakyServer, flaky_store: S3Store):
    flaky.faults = [("", "absent")] * 3
    with pytest.raises(NotFound):
        flaky_store.get("a")
    with pytest.raises(NotFound):
        flaky_store.replace("a", b"x", "version")
    flaky_store.delete("a")
    assert flaky.faults == []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the base class has it so
        pass


@pytest.mark.server
@pytest.mark.parametrize(
    ("action", "got", "hint"),
    [
        pytest.param("listing", "got 404: Not Found", "correct its name", id="listing"),
        pytest.param("writing", "got 501: Not Implemented", "correct AWS_ENDPOINT_URL", id="writing"),
    ],
)
def test_a_server_that_knows_nothing_of_s3_is_told(monkeypatch: pytest.MonkeyPatch, action: str, got: str, hint: str):
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        use_server(Server("files", f"http://127.0.0.1:{server.server_port}", is_conditional=False), monkeypatch)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with pytest.raises(StoreError, match=f"{got}, expected a bucket 'bucket' at http") as caught:
                ACTIONS[action](S3Store("s3://bucket/lab", patience_seconds=1))
        finally:
            server.shutdown()
            thread.join()
    assert hint in str(caught.value.hint)


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
