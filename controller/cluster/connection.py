"""Requests to the API server: sent again while their faults can pass, paced, and a bounded number at a time."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from controller.cluster.answers import finish, warning_text, with_query, writer
from controller.cluster.errors import ENDING_ERRORS, ApiRetry, ClusterError, Forbidden, Unreachable
from controller.cluster.faults import CONNECT_SECONDS, Passing, judge, refusal, unreachable_hint
from controller.cluster.kubeconfig import Link, loader_errors
from controller.cluster.resources import Resource
from controller.jobs import MANAGED_BY

if TYPE_CHECKING:
    from typing import Self

    from urllib3 import BaseHTTPResponse

T = TypeVar("T")
R = TypeVar("R")

CLUSTER_PATIENCE_SECONDS = 60.0  # how long a command bears a server that does not answer; the controller bears more
CONNECTIONS = 16
STARTING_SECONDS = 30.0  # after it was away: a server that has just started forbids all until it has read its roles
SPARE = 2  # beside those that `perform` keeps busy: a Lease is not to run out behind a thousand creations
PER_SECOND, BURST = 500.0, 1000  # the server's own flow control answers 429 long before, where it must
FIRST_DELAY = 0.1  # seconds; doubled with each try, and drawn evenly from 0 to that
LONGEST_DELAY = 5.0  # seconds, so that a server that is back is soon noticed
LONGEST_ASKED_DELAY = 60.0  # seconds that a server may ask to wait
HEADER_SECONDS = 10.0  # that credentials are used again without asking the package, which takes as long as a request
MAX_WARNINGS = 100  # different ones that are kept
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}  # as Roles have them
OPERATIONS = {
    "get": "reading",
    "list": "listing",
    "watch": "watching",
    "create": "creating",
    "update": "replacing",
    "patch": "changing",
    "delete": "deleting",
}
HEADERS = {"Accept": "application/json", "User-Agent": MANAGED_BY}


class Connection:
    """Requests to one namespace of a cluster. Every method may be called from any thread."""

    def __init__(
        self,
        connect: Callable[[], Any],
        name: str,
        namespace: str,
        *,
        patience_seconds: float = CLUSTER_PATIENCE_SECONDS,
        timeout_seconds: float = 60,
        connections: int = CONNECTIONS,
        per_second: float = PER_SECOND,
        burst: int = BURST,
        on_retry: Callable[[ApiRetry], None] | None = None,
    ) -> None:
        self.name = name  # of the context, for people
        self.namespace = namespace
        self.patience_seconds = patience_seconds
        self.connections = connections
        self.timeout_seconds = timeout_seconds  # of silence, for one request; the server's own limit is 60
        self.calls: Counter[tuple[str, str, int]] = Counter()  # verb, resource, status; 0 where no answer came
        self.retries: Counter[str] = Counter()  # by kind
        self.warnings: Counter[str] = Counter()  # the server's own words, such as those of Pod Security
        self._connect = connect
        self._on_retry = on_retry
        self._room = threading.BoundedSemaphore(connections + SPARE)
        self._pace = Pace(per_second, burst)
        self._lock = threading.Lock()
        self._credentials_lock = threading.Lock()
        self._generation = 0  # of the credentials
        self._reached = False
        self._lost_at = float("-inf")  # when a request last met no server
        self._closed = threading.Event()
        self._thread = threading.local()
        self._header: Mapping[str, str] = {}
        self._header_until = 0.0
        self._link = Link(connect())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self._link.host

    @property
    def place(self) -> str:
        """What errors call it."""
        return f"{self.name}, namespace {self.namespace}"

    def close(self) -> None:
        """End waits for a retry, and close connections that are not in use."""
        self._closed.set()
        self._link.close()

    def perform(
        self, act: Callable[[T], R], items: Iterable[T], *, workers: int | None = None
    ) -> Iterator[tuple[T, R | ClusterError]]:
        """Each item with what `act` returned or the ClusterError it raised, as they end; `connections` at a time.

        Items are taken as they are needed. What would meet all that follow (ENDING_ERRORS), and whatever is no
        ClusterError, is raised once those under way have ended. Leaving the loop early begins nothing more.
        """
        todo = iter(items)
        ended: SimpleQueue[tuple[T, R | ClusterError] | BaseException | None] = SimpleQueue()
        stop = threading.Event()
        taking = threading.Lock()

        def work() -> None:
            self._thread.stop = stop
            try:
                while not stop.is_set():
                    with taking:
                        try:
                            item = next(todo)
                        except StopIteration:
                            return
                    outcome: R | ClusterError
                    try:
                        outcome = act(item)
                    except ENDING_ERRORS:
                        raise
                    except ClusterError as error:
                        outcome = error
                    ended.put((item, outcome))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
                stop.set()
                ended.put(error)
            finally:
                ended.put(None)

        threads = [
            threading.Thread(target=work, name=f"cluster-{number}", daemon=True)
            for number in range(workers or self.connections)
        ]
        for thread in threads:
            thread.start()
        failure: BaseException | None = None
        num_working = len(threads)
        try:
            while num_working:
                outcome = ended.get()
                if outcome is None:
                    num_working -= 1
                elif isinstance(outcome, BaseException):
                    failure = failure or outcome
                else:
                    yield outcome
            if failure is not None:
                raise failure
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _get(self, path: str, target: str) -> bytes:
        return self._call("reading", target, target, "get", lambda: self._exchange("GET", path, None, {})).data

    def _request(
        self,
        method: str,
        resource: Resource,
        name: str = "",
        *,
        subresource: str = "",
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        verb: str = "",
        tries: Counter[str] | None = None,
        accept: str = "",
    ) -> bytes:
        """The answer's content; `tries` counts how often it was sent."""
        path = with_query(resource.path(self.namespace, name, subresource), {**writer(method), **(query or {})})
        headers = {"Content-Type": content_type} if body is not None else {}
        if verb == "list":
            headers["Accept-Encoding"] = "gzip"  # a twentieth of the bytes, and no slower on the same machine
        if accept:
            headers["Accept"] = accept
        content = json.dumps(body, separators=(",", ":")).encode() if body is not None else None
        verb = verb or VERBS[method]
        name = name or (body or {}).get("metadata", {}).get("name", "")

        def send() -> BaseHTTPResponse:
            if tries is not None:
                tries["sent"] += 1
            return self._exchange(method, path, content, headers)

        target = f"{resource.kind} {name}" if name else resource.name
        return self._call(OPERATIONS[verb], target, resource.name, verb, send).data

    def _stream(
        self, resource: Resource, verb: str, target: str, path: str, query: Mapping[str, str], read_seconds: float
    ) -> BaseHTTPResponse:
        """An answer that is read as it comes; it takes none of the places for requests."""
        url = with_query(path, query)
        return self._call(
            OPERATIONS[verb],
            target,
            resource.name,
            verb,
            lambda: self._exchange("GET", url, None, {}, read_seconds=read_seconds),
        )

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        read_seconds: float | None = None,
    ) -> BaseHTTPResponse:
        """The server's answer to one request; read to its end unless `read_seconds` bounds the silence of a stream."""
        from urllib3 import Timeout

        link = self._link
        is_stream = read_seconds is not None
        if (delay := self._pace.delay()) > 0:
            self._wait(delay)
        if not is_stream:
            self._room.acquire()
        try:
            response: BaseHTTPResponse = link.sender.urlopen(
                method,
                link.prefix + path,
                redirect=False,
                body=body,
                headers={**HEADERS, **self._authorization(), **headers},
                retries=False,
                preload_content=not is_stream,
                timeout=Timeout(connect=CONNECT_SECONDS, read=read_seconds if is_stream else self.timeout_seconds),
            )
            return response
        finally:
            if not is_stream:
                self._room.release()

    def _authorization(self) -> Mapping[str, str]:
        """The header that says who asks; the package renews a token that is about to expire."""
        with self._credentials_lock:
            now = time.monotonic()
            if now >= self._header_until:
                with loader_errors(self.name):
                    settings = self._link.configuration.auth_settings().values()
                self._header = {each["key"]: each["value"] for each in settings}
                self._header_until = now + HEADER_SECONDS
            return self._header

    def _renew_credentials(self, generation: int) -> None:
        """Load them anew, unless another thread just did."""
        with self._credentials_lock:
            if generation == self._generation:
                self._link = Link(self._connect())  # the old one may still be reading a stream
                self._header_until = 0.0
                self._generation += 1

    def _call(
        self,
        operation: str,
        target: str,
        resource: str,
        verb: str,
        send: Callable[[], BaseHTTPResponse],
    ) -> BaseHTTPResponse:
        """The answer, asked for again while faults can pass and patience lasts. Raises a ClusterError."""
        from urllib3.exceptions import HTTPError

        place = f"{self.place}: {operation} {target}"
        started = time.monotonic()
        tries = num_renewed = 0
        while True:
            if self._closed.is_set():
                raise Unreachable(f"{place}: got a connection that was closed by us")
            tries += 1
            generation = self._generation
            status = 0
            cause: Exception | None = None
            try:
                response = send()
                status = response.status
                self._reached = True
                if status < 300:
                    self._count(verb, resource, status, response)
                    return response
                self._count(verb, resource, status, response)
                if status == 401 and num_renewed == 0:
                    num_renewed += 1
                    finish(response)
                    self._renew_credentials(generation)
                    continue
                error = refusal(place, verb, response, server=self.server, namespace=self.namespace)
                if isinstance(error, Forbidden) and time.monotonic() < self._lost_at + STARTING_SECONDS:
                    raise Passing("starting", error.message, patience=STARTING_SECONDS)
                raise error
            except Passing as passing:
                fault = passing
            except HTTPError as error:
                self._count(verb, resource, 0, None)
                self._lost_at = time.monotonic()
                fault, cause = judge(place, error, is_reached=self._reached), error
            longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(tries - 1, 30))
            delay = random.uniform(0, longest) + min(fault.after, LONGEST_ASKED_DELAY)
            limit = min(self.patience_seconds, fault.patience)
            waited = time.monotonic() - started
            if waited + delay > limit:
                raise Unreachable(
                    f"{place} failed {tries} times in {waited:.0f} s: got {fault}, "
                    f"expected an answer from {self.server}",
                    hint=unreachable_hint(fault.kind),
                ) from cause
            with self._lock:
                self.retries[fault.kind] += 1
            if self._on_retry is not None:
                self._on_retry(
                    ApiRetry(self.server, operation, target, fault.kind, tries, delay, limit - waited, str(fault))
                )
            self._wait(delay)

    def _wait(self, seconds: float) -> None:
        stop: threading.Event = getattr(self._thread, "stop", self._closed)
        if stop.wait(seconds):
            raise Unreachable(f"{self.place}: stopped while it waited to ask again")

    def _count(self, verb: str, resource: str, status: int, response: BaseHTTPResponse | None) -> None:
        told = response.headers.getlist("Warning") if response is not None else []
        with self._lock:
            self.calls[verb, resource, status] += 1
            for each in told:
                text = warning_text(each)
                if text in self.warnings or len(self.warnings) < MAX_WARNINGS:
                    self.warnings[text] += 1


class Pace:
    """A token bucket: whoever asks is told how long to wait before it begins."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def delay(self) -> float:
        """Take a place in the queue; seconds until its turn."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second) - 1
            self._at = now
            return -self._tokens / self._per_second if self._tokens < 0 else 0.0
