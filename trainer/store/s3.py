"""A store in an S3 bucket; the only module that knows boto3, and it loads it with the first such store."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from trainer.failure import SpecError, StoreAway, StoreError
from trainer.machine import cache_folder
from trainer.store.folder import file_errors
from trainer.store.interface import KEY, MIB, Conflict, Entry, NotFound, Request, Retry, check_key, check_prefix

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

T = TypeVar("T")

FIRST_DELAY = 0.1  # seconds; doubled with each try, and drawn evenly from 0 to that
LONGEST_DELAY = 10.0  # seconds, so that a server that is back is soon noticed
NAME_PATIENCE = 5.0  # seconds for a host name that was never reached: it may be new, more likely it is wrong
MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
UPLOAD_THREADS = 4
MAX_CONNECTIONS = 32

CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the pod's service account"
ENDPOINT = "check AWS_ENDPOINT_URL (as this process sees it: a pod may need another name than a laptop)"
RIGHTS = "the key needs s3:ListBucket on the bucket and s3:GetObject, PutObject, DeleteObject on its objects"
NO_BUCKET = "create the bucket, or correct its name in the store's URI and AWS_ENDPOINT_URL"
NO_S3 = "the server cannot do this: choose another S3 server, or correct AWS_ENDPOINT_URL"

S3_CURES = {
    "NoSuchBucket": NO_BUCKET,
    "InvalidBucketName": "correct the bucket's name in the store's URI",
    "AccessDenied": RIGHTS,
    "AllAccessDisabled": RIGHTS,
    "AccountProblem": RIGHTS,
    "403": f"{RIGHTS}; {CREDENTIALS}",
    "InvalidAccessKeyId": CREDENTIALS,
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: " + CREDENTIALS,
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "PermanentRedirect": "set AWS_REGION to the bucket's region",
    "301": "set AWS_REGION to the bucket's region",
    "ExpiredToken": "the session's credentials have expired: renew them",
    "InvalidToken": "the session token is wrong: renew it, or unset AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock and the server's differ: correct the clock",
    "EntityTooLarge": "the object is larger than the server takes",
    "QuotaExceeded": "the bucket's quota is used up: free some space (`grid gc` removes what no grid wants)",
    "XMinioStorageFull": "the server's disk is full: free some space (`grid gc` removes what no grid wants)",
    "NotImplemented": NO_S3,
    "501": NO_S3,
    "405": NO_S3,
    "404": NO_BUCKET,
    "NotFound": NO_BUCKET,
    "NoSuchKey": NO_BUCKET,
}
PASSING_CODES = {
    "SlowDown": "throttled",
    "Throttling": "throttled",
    "ThrottlingException": "throttled",
    "TooManyRequests": "throttled",
    "RequestLimitExceeded": "throttled",
    "RequestTimeout": "timeout",
    "IncompleteBody": "connection",
    "BadDigest": "connection",
    "InternalError": "server-error",
    "OperationAborted": "conflict",
    "ConditionalRequestConflict": "conflict",
}
FULL_CODES = {"QuotaExceeded", "XMinioStorageFull"}  # some servers say so with a 5xx, yet it does not pass
UNSUPPORTED_CODES = {"NotImplemented", "InvalidArgument", "InvalidRequest", "MethodNotAllowed"}
ABSENT_CODES = {"NoSuchKey", "404", "NotFound"}
OF_ONE_OBJECT = {"reading", "replacing", "deleting"}  # what may find it absent; to all else a 404 is a fault


class _Passing(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, kind: str, *, after: float = 0, patience: float = float("inf")) -> None:
        self.kind = kind
        self.after = after  # seconds that the server asked for
        self.patience = patience


def _code(error: BaseException | None) -> str:
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


class S3Store:
    """A store in an S3 bucket, under a prefix, by boto3's own chain of credentials, profiles and endpoints.

    Objects above `threshold_bytes` go up in parts of at least `part_bytes`, each retried on its own.
    `page_keys` is how many a listing asks for at once; S3 gives no more than 1,000.
    `timeout_seconds` bounds the silence of one request, `patience_seconds` all tries of one.
    `retries` counts repeated requests by kind.
    """

    def __init__(
        self,
        uri: str,
        *,
        patience_seconds: float = 60,
        timeout_seconds: float = 30,
        threshold_bytes: int = 32 * MIB,
        part_bytes: int = 16 * MIB,
        page_keys: int = 1000,
        on_retry: Callable[[Retry], None] | None = None,
        on_request: Callable[[Request], None] | None = None,
    ) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.rstrip("/")
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}", bucket) is None:
            raise SpecError(
                f"store: got {uri!r}, expected s3://bucket/prefix",
                hint=f"a bucket's name has 2 to 255 letters, digits or '.-_:', which {bucket!r} has not"
                if bucket
                else "name the bucket after s3://",
            )
        if prefix:
            check_key(prefix)
        self.bucket = bucket
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self.patience_seconds = patience_seconds
        self.threshold_bytes = threshold_bytes
        self.part_bytes = part_bytes
        self.page_keys = page_keys
        self.retries: Counter[str] = Counter()
        self._prefix = f"{prefix}/" if prefix else ""
        self._on_retry = on_retry
        self._on_request = on_request
        self._lock = threading.Lock()
        self._probe_lock = threading.Lock()
        self._conditional: bool | None = None
        self._reached = False
        self._client = _s3_client(self.uri, timeout_seconds)

        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        self._faults = (ClientError, BotoCoreError, ResponseParserError)

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return self._client.meta.endpoint_url

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    # Reading

    def get(self, key: str) -> bytes:
        """The object's content. Raises NotFound."""
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's content and its version, for `replace`. Raises NotFound."""
        return self._get_object(key, self._key(key))

    def _get_object(self, key: str, name: str) -> tuple[bytes, str]:
        def read() -> tuple[bytes, str]:
            response = self._client.get_object(Bucket=self.bucket, Key=name)
            with closing(response["Body"]) as body:  # not `with body`: that is urllib3's, with urllib3's own errors
                return body.read(), _version(response["ETag"])

        return self._call("reading", key, read)

    def get_many(self, keys: Iterable[str], workers: int = 16) -> Iterator[tuple[str, bytes]]:
        """Each key with its object's content, in the order of `keys`, up to `workers` requests at once."""
        waiting: deque[tuple[str, Future[bytes]]] = deque()
        pool = ThreadPoolExecutor(min(workers, MAX_CONNECTIONS), thread_name_prefix="store-get")
        try:
            for key in keys:
                waiting.append((key, pool.submit(self.get, key)))
                if len(waiting) >= 4 * workers:  # reads ahead, but never holds a whole table of results
                    first, content = waiting.popleft()
                    yield first, content.result()
            while waiting:
                first, content = waiting.popleft()
                yield first, content.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def open(self, key: str) -> io.BufferedReader:
        """The object's content as a stream that goes on where it was when the connection breaks. Raises NotFound."""
        return io.BufferedReader(_ObjectStream(self, key), MIB)

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, in key order, page by page."""
        check_prefix(prefix)
        return self._list(prefix)

    def _list(self, prefix: str) -> Iterator[Entry]:
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._prefix + prefix, "MaxKeys": self.page_keys}
        while True:
            page = self._call("listing", prefix, lambda: self._client.list_objects_v2(**request))
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(self._prefix)
                if key and KEY.fullmatch(key):  # neither the store's own names nor consoles' `folder/` objects
                    yield Entry(key, item["Size"], _version(item["ETag"]), item["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _exists(self, key: str) -> bool:
        name = self._key(key)
        try:
            self._call("reading", key, lambda: self._client.head_object(Bucket=self.bucket, Key=name))
        except NotFound:
            return False
        return True

    # Writing

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the object, whatever was there; large ones in parts, of which only those under way are copied."""
        if len(data) > self.threshold_bytes:
            view = memoryview(data)
            self._put_parts(key, len(data), lambda offset, size: bytes(view[offset : offset + size]))
        else:
            self._put_if(key, bytes(data))

    def put_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streaming; large ones in parts."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > self.threshold_bytes:
                self._put_parts(key, size, lambda offset, size: os.pread(file.fileno(), size, offset))
            else:
                self._put_if(key, file.read())

    def create(self, key: str, data: bytes) -> str:
        """Write the object unless one is there and return its version. Raises Conflict."""
        if self.is_conditional():
            return self._put_if(key, data, IfNoneMatch="*")
        if self._exists(key):
            raise Conflict(f"{key}: exists already")
        return self._put_if(key, data)

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Write over the version that was read and return the new version. Raises Conflict, NotFound as `create`."""
        if self.is_conditional():
            return self._put_if(key, data, IfMatch=f'"{version}"')
        found = self.get_versioned(key)[1]
        if found != version:
            raise Conflict(f"{key}: got version {found}, expected {version}")
        return self._put_if(key, data)

    def delete(self, key: str) -> None:
        """Remove the object; none being there is no error."""
        name = self._key(key)
        with suppress(NotFound):
            self._call("deleting", key, lambda: self._client.delete_object(Bucket=self.bucket, Key=name))

    def _put_if(self, key: str, data: bytes, **condition: str) -> str:
        return self._put_object(key, self._key(key), data, condition)

    def _put_object(self, key: str, name: str, data: bytes, condition: Mapping[str, str]) -> str:
        """The new version. A condition that fails only at a repeated try may have been met by the first one."""
        tries = 0

        def write() -> str:
            nonlocal tries
            tries += 1
            request: dict[str, Any] = {"Bucket": self.bucket, "Key": name, "Body": data, **condition}
            return _version(self._client.put_object(**request)["ETag"])

        try:
            return self._call("replacing" if "IfMatch" in condition else "writing", key, write)
        except Conflict:
            if tries > 1:
                with suppress(NotFound):
                    found, version = self._get_object(key, name)
                    if found == data:
                        return version
            raise

    def _put_parts(self, key: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """Write an object of `size` bytes, of which `read(offset, size)` gives any."""
        name = self._key(key)
        part_size = max(self.part_bytes, -(-size // MAX_PARTS))
        for is_last in (False, True):
            upload = self._call(
                "writing", key, lambda: self._client.create_multipart_upload(Bucket=self.bucket, Key=name)
            )["UploadId"]

            def write_part(number: int, upload: str = upload) -> CompletedPartTypeDef:
                offset = (number - 1) * part_size
                body = read(offset, min(part_size, size - offset))
                response = self._call(
                    "writing",
                    key,
                    lambda: self._client.upload_part(
                        Bucket=self.bucket, Key=name, UploadId=upload, PartNumber=number, Body=body
                    ),
                )
                return {"PartNumber": number, "ETag": response["ETag"]}

            pool = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="store-put")
            try:
                parts = list(pool.map(write_part, range(1, -(-size // part_size) + 1)))
                self._complete(key, name, upload, parts)
            except BaseException as error:
                pool.shutdown(wait=True, cancel_futures=True)
                with suppress(StoreError, NotFound):  # what stands in the way of the upload may stand in this one's too
                    self._abort(key, name, upload)
                if _code(error.__cause__) == "NoSuchUpload" and not is_last:
                    continue  # completed by a try whose answer was lost, or cleaned up by the server: once more
                raise
            pool.shutdown()
            return

    def _complete(self, key: str, name: str, upload: str, parts: Sequence[CompletedPartTypeDef]) -> None:
        self._call(
            "writing",
            key,
            lambda: self._client.complete_multipart_upload(
                Bucket=self.bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
            ),
        )

    def _abort(self, key: str, name: str, upload: str) -> None:
        """Free what an unfinished upload holds; asked once, since the server may be the reason it is unfinished."""
        self._call(
            "writing",
            key,
            lambda: self._client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload),
            patience=0,
        )

    # What the server and this host can do

    def is_conditional(self) -> bool:
        """Whether the server honours If-None-Match and If-Match on writes: asked once, with a probe object."""
        with self._probe_lock:
            if self._conditional is None:
                self._conditional = self._probe()
            return self._conditional

    def _probe(self) -> bool:
        name = f"{self._prefix}.probe/{uuid.uuid4().hex}"

        def write(data: bytes, **condition: str) -> str | None:
            try:
                return self._put_object(".probe", name, data, condition)
            except (Conflict, NotFound):
                return None

        try:
            first = write(b"1", IfNoneMatch="*")
            return (
                first is not None
                and write(b"2", IfNoneMatch="*") is None
                and write(b"3", IfMatch=f'"{first}"') is not None
                and write(b"4", IfMatch=f'"{first}"') is None
            )
        except StoreError as error:
            if _code(error.__cause__) in UNSUPPORTED_CODES:
                return False
            raise
        finally:
            with suppress(NotFound, StoreError):  # a probe that cannot be removed is hidden and does no harm
                self._call("deleting", ".probe", lambda: self._client.delete_object(Bucket=self.bucket, Key=name))

    def local_path(self, key: str) -> None:
        """None: the object lies on a server."""
        check_key(key)

    def lock_path(self, name: str) -> Path:
        """A path in the cache folder, the same for every process that uses this store."""
        store = hashlib.sha256(f"{self.endpoint}\0{self.uri}".encode()).hexdigest()[:16]
        path = cache_folder() / "locks" / store / check_key(name).replace("/", "_")
        with file_errors("locking", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # Faults

    def _call(self, operation: str, key: str, send: Callable[[], T], patience: float | None = None) -> T:
        """What `send` returns, called again while its faults can pass and patience lasts.

        Raises NotFound, Conflict, or StoreError.
        """
        started = time.monotonic()
        tries = 0
        while True:
            tries += 1
            begun = time.monotonic()
            try:
                answer = send()
            except self._faults as error:
                seconds = time.monotonic() - begun
                try:
                    self._judge(operation, key, error)
                except _Passing as passing:
                    self._tell(operation, seconds, passing.kind)
                    fault, cause = passing, error
                except (NotFound, Conflict):
                    self._tell(operation, seconds)
                    raise
                except StoreError:
                    self._tell(operation, seconds, "refused")
                    raise
            else:
                self._reached = True
                self._tell(operation, time.monotonic() - begun)
                return answer
            longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(tries - 1, 30))
            delay = max(random.uniform(0, longest), min(fault.after, LONGEST_DELAY))
            limit = min(self.patience_seconds if patience is None else patience, fault.patience)
            waited = time.monotonic() - started
            if waited + delay > limit:
                raise StoreAway(
                    f"{self.uri}: {operation} {key!r} failed {tries} times in {waited:.0f} s: got {_told(cause)}, "
                    f"expected an answer from {self.endpoint}",
                    hint=f"is the server up? {ENDPOINT}" if fault.kind == "connection" else "try again later",
                ) from cause
            with self._lock:
                self.retries[fault.kind] += 1
            if self._on_retry is not None:
                self._on_retry(Retry(operation, key, fault.kind, tries, delay, _told(cause)))
            time.sleep(delay)

    def _tell(self, operation: str, seconds: float, fault: str | None = None) -> None:
        if self._on_request is not None:
            self._on_request(Request(operation, seconds, fault))

    def _judge(self, operation: str, key: str, error: Exception) -> None:
        """Raises what `error` means: NotFound, Conflict, _Passing or StoreError."""
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        place = f"{self.uri}: {operation} {key!r} failed: got {_told(error)}"
        if isinstance(error, exceptions.ClientError):
            self._reached = True
            self._judge_answer(place, operation, key, error, error.response.get("ResponseMetadata", {}))
        if isinstance(error, exceptions.EndpointConnectionError):
            self._judge_name(place, error)
            raise _Passing("connection") from error
        if isinstance(error, exceptions.SSLError) and re.search("CERTIFICATE|VERSION|certificate", str(error)):
            raise StoreError(
                f"{place}, expected a certificate this machine trusts",
                hint="set AWS_CA_BUNDLE to the CA's file, or correct http:// and https:// in AWS_ENDPOINT_URL",
            ) from error
        if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError)):
            raise _Passing("timeout") from error
        if isinstance(error, (exceptions.HTTPClientError, exceptions.IncompleteReadError, ResponseParserError)):
            raise _Passing("connection") from error
        if isinstance(
            error,
            (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError),
        ):
            raise StoreError(f"{place}, expected credentials for {self.endpoint}", hint=CREDENTIALS) from error
        raise StoreError(f"{place}, expected a request that boto3 can send") from error

    def _judge_answer(
        self, place: str, operation: str, key: str, error: Exception, metadata: Mapping[str, Any]
    ) -> None:
        code, status = _code(error), int(metadata.get("HTTPStatusCode", 0))
        if code in ABSENT_CODES and operation in OF_ONE_OBJECT:
            raise NotFound(key) from error
        if status == 412 or code == "PreconditionFailed":
            raise Conflict(f"{key}: {_told(error)}") from error
        kind = PASSING_CODES.get(code)
        if kind is None and status in {429, 503}:
            kind = "throttled"
        if kind is None and (status == 408 or (status >= 500 and status != 501)):
            kind = "timeout" if status in {408, 504} else "server-error"
        if kind is not None and code not in FULL_CODES:
            after = str(metadata.get("HTTPHeaders", {}).get("retry-after", ""))
            raise _Passing(kind, after=float(after) if after.isdecimal() else 0) from error
        raise StoreError(
            f"{place}, expected a bucket {self.bucket!r} at {self.endpoint} that this key may use",
            hint=S3_CURES.get(code),
        ) from error

    def _judge_name(self, place: str, error: Exception) -> None:
        """Raises when the endpoint's name is unknown; one that was reached before is trusted to come back."""
        host = urlsplit(self.endpoint).hostname or ""
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror as unknown:
            if self._reached:
                raise _Passing("connection") from error
            if unknown.errno == socket.EAI_AGAIN:
                raise _Passing("connection", patience=NAME_PATIENCE) from error
            raise StoreError(
                f"{place}, expected a host that this machine can find, not {host!r}", hint=ENDPOINT
            ) from error


def _told(error: BaseException) -> str:
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    details = response.get("Error", {})
    if details:
        return ": ".join(str(details[name]) for name in ("Code", "Message") if details.get(name))
    return str(error) or type(error).__name__


def _version(etag: str) -> str:
    """The ETag without its quotes: rclone's listings have none, all other answers do."""
    return etag.strip('"')


def _s3_client(uri: str, timeout_seconds: float) -> S3Client:
    """A client that never retries by itself; path style for every server but Amazon's, unless a profile says else."""
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    def connect(style: Literal["path"] | None) -> S3Client:
        return session.client(
            "s3",
            region_name=session.region_name or "us-east-1",
            config=Config(
                s3=None if style is None else {"addressing_style": style},
                # Servers from before 2025 refuse the checksum headers that newer clients send unasked.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1},
                max_pool_connections=MAX_CONNECTIONS,
                connect_timeout=min(10.0, timeout_seconds),
                read_timeout=timeout_seconds,
                tcp_keepalive=True,
            ),
        )

    try:
        core = botocore.session.get_session()
        session = boto3.Session(botocore_session=core)
        if (core.get_scoped_config().get("s3") or {}).get("addressing_style"):
            return connect(None)
        if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            return connect("path")
        client = connect(None)
        host = urlsplit(client.meta.endpoint_url).hostname or ""
        return client if re.search(r"\.amazonaws\.com(\.cn)?$", host) else connect("path")
    except ValueError as error:  # what botocore raises on a URL it cannot read
        raise StoreError(
            f"store {uri}: got {error}, expected an endpoint such as https://s3.example.org:9000", hint=ENDPOINT
        ) from error
    except BotoCoreError as error:
        raise StoreError(
            f"store {uri}: got {error}, expected a profile and settings that boto3 can use",
            hint="check AWS_PROFILE, AWS_CONFIG_FILE and AWS_REGION",
        ) from error


class _ObjectStream(io.RawIOBase):
    """An object's bytes, read once; a broken connection is opened again at the place where it broke."""

    def __init__(self, store: S3Store, key: str) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._position = 0
        self._version: str | None = None
        self._size = 0
        self._body: StreamingBody | None = None
        store._call("reading", key, self._connect)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        try:
            data = self._store._call("reading", self._key, lambda: self._read(len(buffer)))
        except (Conflict, NotFound) as error:
            raise self._changed() from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            body = self._body or self._connect()
            return body.read(min(size, self._size - self._position))
        except Exception:
            self._drop()
            raise

    def _connect(self) -> StreamingBody:
        name = self._store._key(self._key)
        request: dict[str, Any] = {"Bucket": self._store.bucket, "Key": name}
        if self._version is not None:
            request |= {"Range": f"bytes={self._position}-", "IfMatch": f'"{self._version}"'}
        response = self._store._client.get_object(**request)
        self._body = response["Body"]
        version = _version(response["ETag"])
        if self._version is None:
            self._version, self._size = version, response["ContentLength"]
        elif version != self._version or response["ContentLength"] != self._size - self._position:
            raise self._changed()
        return self._body

    def _changed(self) -> StoreError:
        return StoreError(
            f"{self._store.uri}: reading {self._key!r} failed: got another content after a broken connection, "
            f"expected version {self._version}",
            hint="somebody writes it at the same time: read it again",
        )

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        self._drop()
        super().close()
