"""The Kubernetes API as one namespace of it is seen: requests, what their answers mean, retries and pacing.

The only module that knows the `kubernetes` package and urllib3. Credentials, TLS, proxies, exec plugins and the renewal
of tokens are the package's; objects stay the API's own JSON, since its model classes take longer to fill than an answer
takes to come. What an answer means: https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import socket
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from controller.jobs import MANAGED_BY
from trainer.failure import ExitCode, GridError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")

Object = dict[str, Any]  # as the API gives it

CLUSTER_PATIENCE_SECONDS = 60.0  # how long a command bears a server that does not answer; the controller bears more
CONNECTIONS = 16
PER_SECOND, BURST = 500.0, 1000  # the server's own flow control answers 429 long before, where it must
PAGE = 500  # objects: what kubectl asks for, and what the server keeps in its cache


class Resource(NamedTuple):
    """A kind of object, as URLs and Roles name it."""

    api: str  # group and version; the version alone for the core group
    name: str  # the plural
    kind: str
    is_namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group, as Roles name it: empty for the core group."""
        return self.api.rpartition("/")[0]

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The URL's path of the collection, or of one object."""
        root = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        scope = f"/namespaces/{quote(namespace, safe='')}" if self.is_namespaced else ""
        rest = "".join(f"/{quote(part, safe='')}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.name}{rest}"


JOBS = Resource("batch/v1", "jobs", "Job")
PODS = Resource("v1", "pods", "Pod")
EVENTS = Resource("v1", "events", "Event")
CONFIG_MAPS = Resource("v1", "configmaps", "ConfigMap")
SECRETS = Resource("v1", "secrets", "Secret")
QUOTAS = Resource("v1", "resourcequotas", "ResourceQuota")
LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")
ACCESS_REVIEWS = Resource("authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False)
NODES = Resource("v1", "nodes", "Node", False)
NAMESPACES = Resource("v1", "namespaces", "Namespace", False)
KUEUE_GROUP = "kueue.x-k8s.io"


# --- errors -----------------------------------------------------------------------------------------------------------


class ClusterError(GridError):
    """The cluster cannot be reached, or refuses what was asked."""

    exit_code = ExitCode.CLUSTER
    reason = "cluster"


class Unreachable(ClusterError):
    """No API server answered, however often it was asked."""


class Unauthorized(ClusterError):
    """The API server does not know who asks: credentials are missing, wrong or expired."""


class Forbidden(ClusterError):
    """The API server knows who asks, and refuses."""


class QuotaExceeded(ClusterError):
    """A ResourceQuota of the namespace has no room left."""


class ObjectAbsent(ClusterError):
    """There is no such object, or no such kind of object."""


class ObjectExists(ClusterError):
    """An object of that name is there already; `is_deleting` if it is on its way out."""

    is_deleting = False


class ObjectChanged(ClusterError):
    """The object is no longer the one that was meant: another version, or another object of its name."""


class ObjectInvalid(ClusterError):
    """The API server does not accept the object; `fields` are those it names."""

    fields: tuple[str, ...] = ()


class Expired(ClusterError):
    """The version is older than what the server still knows: list again."""


class NotStarted(ClusterError):
    """The pod's container has no log yet; `waiting_for` is why."""

    waiting_for = ""


ENDING_ERRORS = (Unreachable, Unauthorized)
"""What meets every further request too."""


@dataclass(frozen=True)
class ApiRetry:
    """A request that failed in a way that can pass, and is sent again after `delay`."""

    server: str
    operation: str  # creating, reading, listing, …
    target: str  # the resource and the object's name
    kind: str  # throttled, server-error, connection, timeout, conflict
    tries: int  # so far
    delay: float  # seconds until the next one
    remaining: float  # seconds after which it is given up
    error: str


class _Passing(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, kind: str, told: str, *, after: float = 0, patience: float = float("inf")) -> None:
        super().__init__(told)
        self.kind = kind
        self.after = after  # seconds that the server asked for
        self.patience = patience


FIRST_DELAY = 0.1  # seconds; doubled with each try, and drawn evenly from 0 to that
LONGEST_DELAY = 5.0  # seconds, so that a server that is back is soon noticed
LONGEST_ASKED_DELAY = 60.0  # seconds that a server may ask to wait
FIRST_PATIENCE = 10.0  # seconds for a server that was never reached: it may be starting, more likely it is another
NAME_PATIENCE = 5.0  # seconds for a host name that was never found
CONNECT_SECONDS = 10.0
HEADER_SECONDS = 10.0  # that credentials are used again without asking the package, which takes as long as a request
MAX_WARNINGS = 100  # different ones that are kept

PASSING_STATUSES = {408: "timeout", 429: "throttled", 500: "server-error", 502: "server-error", 503: "server-error"}
PASSING_STATUSES |= {504: "timeout"}
OVER_QUOTA = re.compile(r"exceeded quota|status unknown for quota")
RBAC = re.compile(r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]*)"')
KUBECONFIG_HINT = (
    "set KUBECONFIG to the file that kubectl uses, or bring up a cluster on this machine with `make kind-up`"
)


# --- what callers read ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing(Generic[V]):
    """What a LIST found, and the version of the collection from which a watch goes on."""

    items: tuple[V, ...]
    resource_version: str


class Access(NamedTuple):
    """Whether this identity may do something, and what the server says about it."""

    is_allowed: bool
    why: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, as far as scheduling a run goes by it."""

    name: str
    is_ready: bool
    is_schedulable: bool
    labels: Mapping[str, str]
    taints: tuple[str, ...]  # key=value:effect
    allocatable: Mapping[str, str]  # quantities in the API's own spelling


WatchEvent = tuple[Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"], Object]


class Watch:
    """Changes as they come, until the server ends the stream; to be read by one thread, closed by any.

    Iterating raises Expired where the version is too old, and Unreachable where the connection breaks or falls silent.
    """

    def __init__(self, response: BaseHTTPResponse, place: str) -> None:
        self._response = response
        self._place = place
        self._is_closed = False

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[WatchEvent]:
        for line in _lines(self._response, self._place, lambda: self._is_closed):
            try:
                event = json.loads(line)
                kind, changed = event["type"], event["object"]
            except (ValueError, KeyError, TypeError) as error:
                raise Unreachable(f"{self._place}: got {line[:80]!r}, expected a watch event") from error
            if kind == "ERROR":
                raise self._refused(changed)
            yield kind, changed

    def _refused(self, status: Object) -> ClusterError:
        told = f"{self._place}: got {status.get('code')} {status.get('message')}, expected changes"
        return Expired(told) if status.get("code") == 410 else Unreachable(told)

    def close(self) -> None:
        """End the stream, also for a thread that waits in it."""
        if not self._is_closed:
            self._is_closed = True
            with suppress(ValueError, RuntimeError, OSError):  # it has ended by itself
                self._response.shutdown()


class Cluster:
    """One namespace of a cluster. Every method may be called from any thread.

    Faults that can pass are retried with jitter for `patience_seconds`, each told to `on_retry` before the wait, in the
    thread that waits; what it raises ends the request. All else raises a ClusterError at once. At most `connections`
    requests are under way at a time, and not more than `per_second` begin in the long run.
    """

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
        self._room = threading.BoundedSemaphore(connections)
        self._pace = _Pace(per_second, burst)
        self._lock = threading.Lock()
        self._credentials_lock = threading.Lock()
        self._generation = 0  # of the credentials
        self._reached = False
        self._closed = threading.Event()
        self._thread = threading.local()
        self._told: OrderedDict[tuple[str, str, str], tuple[str, int]] = OrderedDict()  # Events: their name and count
        self._header: Mapping[str, str] = {}
        self._header_until = 0.0
        self._link = _Link(connect())

    def __enter__(self) -> Cluster:
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

    # Reading

    def get(self, resource: Resource, name: str) -> Object:
        """The object. Raises ObjectAbsent."""
        return _object(self._request("GET", resource, name))

    def list(
        self,
        resource: Resource,
        view: Callable[[Object], V | None],
        *,
        selector: str = "",
        fields: str = "",
        page: int = PAGE,
    ) -> Listing[V]:
        """What `view` makes of every object (none: left out), in the server's order, at one version of the collection.

        Asked for page by page, the next one while one is parsed. `selector` is by labels, `fields` by fields.
        """
        query = {"labelSelector": selector, "fieldSelector": fields}
        try:
            return self._list(resource, view, {**query, "limit": str(page)})
        except Expired:  # while its pages were read; then all at once, as client-go's pager does
            return self._list(resource, view, query)

    def _list(self, resource: Resource, view: Callable[[Object], V | None], query: Mapping[str, str]) -> Listing[V]:
        found: list[V] = []
        with ThreadPoolExecutor(1, thread_name_prefix="cluster-list") as pool:  # no thread before the second page
            data = self._request("GET", resource, query=query, verb="list")
            while True:
                following = _continue_token(data)
                ahead = following and pool.submit(
                    self._request, "GET", resource, query={**query, "continue": following}, verb="list"
                )
                page = _object(data)
                found.extend(seen for each in page.get("items") or () if (seen := view(each)) is not None)
                if not ahead:
                    return Listing(tuple(found), page["metadata"].get("resourceVersion", ""))
                del data, page  # of megabytes, two are enough at a time
                data = ahead.result()

    def watch(
        self,
        resource: Resource,
        resource_version: str,
        *,
        selector: str = "",
        fields: str = "",
        seconds: int = 240,
        silence_seconds: float = 90,
    ) -> Watch:
        """Changes since `resource_version`, bookmarks among them. Raises Expired where the server has forgotten it.

        The server ends the stream after `seconds`. A server sends a bookmark about once a minute: a stream without a
        byte for `silence_seconds` is taken for dead.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "labelSelector": selector,
            "fieldSelector": fields,
            "timeoutSeconds": str(seconds),
        }
        response = self._stream(
            resource, "watch", resource.name, resource.path(self.namespace), query, read_seconds=silence_seconds
        )
        return Watch(response, f"{self.place}: watching {resource.name}")

    # Writing

    def create(self, resource: Resource, body: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """The new object: what was sent, with the metadata that the server gave it; of a dry run, all that it would be.

        Fields that the server does not know are refused. A creation whose answer was lost counts when it is found done.
        Raises ObjectExists, ObjectInvalid, QuotaExceeded.
        """
        query = {**_dry_run(dry_run), "fieldValidation": "Strict"}
        tries = Counter[str]()
        accept = HEADERS["Accept"] if dry_run else METADATA_ALONE
        try:
            made = _object(self._request("POST", resource, body=body, query=query, tries=tries, accept=accept))
            return made if dry_run else {**body, "metadata": made["metadata"]}
        except ObjectExists as error:
            if tries["sent"] > 1 and not error.is_deleting:
                with suppress(ObjectAbsent):
                    found = self.get(resource, body["metadata"]["name"])
                    if _holds(found, body):
                        return found
            raise

    def replace(self, resource: Resource, name: str, body: Mapping[str, Any]) -> Object:
        """The object, written anew; with a resourceVersion in `body` over that version only. Raises ObjectChanged."""
        return _object(self._request("PUT", resource, name, body=body))

    def patch(
        self,
        resource: Resource,
        name: str,
        changes: Mapping[str, Any],
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """The object after a JSON merge patch (none removes a key). Raises ObjectAbsent, ObjectInvalid.

        With `uid` or `resource_version` only that very object or version is changed, else raises ObjectChanged.
        """
        conditions = {"uid": uid, "resourceVersion": resource_version}
        metadata = {**changes.get("metadata", {}), **{key: value for key, value in conditions.items() if value}}
        body = {**changes, "metadata": metadata} if metadata else changes
        return _object(
            self._request(
                "PATCH",
                resource,
                name,
                subresource=subresource,
                body=body,
                content_type="application/merge-patch+json",
                query=_dry_run(dry_run),
            )
        )

    def apply(self, resource: Resource, body: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """The object after a server-side apply: it is made, or the fields that `body` names become ours."""
        return _object(
            self._request(
                "PATCH",
                resource,
                body["metadata"]["name"],
                body=body,
                content_type="application/apply-patch+yaml",  # JSON is YAML
                query={**_dry_run(dry_run), "force": "true", "fieldValidation": "Strict"},
            )
        )

    def delete(
        self,
        resource: Resource,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        dry_run: bool = False,
    ) -> Object:
        """What the server says of the deletion, which ends once all that the object owns is gone (Foreground).

        Raises ObjectAbsent, and ObjectChanged where it is another object or version than the one meant.
        """
        conditions = {"uid": uid, "resourceVersion": resource_version}
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        if any(conditions.values()):
            body["preconditions"] = {key: value for key, value in conditions.items() if value}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        tries = Counter[str]()
        query = _dry_run(dry_run)
        try:
            return _object(self._request("DELETE", resource, name, body=body, query=query, tries=tries))
        except ObjectAbsent:
            if tries["sent"] > 1:  # gone by a try whose answer was lost
                return {"kind": "Status", "status": "Success"}
            raise

    def tell(
        self,
        resource: Resource,
        name: str,
        uid: str,
        *,
        reason: str,
        message: str,
        is_warning: bool = False,
    ) -> None:
        """Write an Event about an object, for `kubectl describe`; the same again counts up the one that is there."""
        key = (uid, reason, message)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._lock:
            event, count = self._told.pop(key, ("", 0))
        if event:
            with suppress(ObjectAbsent):  # the server forgets Events after an hour
                self.patch(EVENTS, event, {"count": count + 1, "lastTimestamp": now})
                self._remember(key, event, count + 1)
                return
        event = f"{name[:230]}.{uuid.uuid4().hex[:16]}"
        about = {"apiVersion": resource.api, "kind": resource.kind, "name": name, "uid": uid}
        with suppress(ObjectExists):  # by a try whose answer was lost
            self.create(
                EVENTS,
                {
                    "apiVersion": "v1",
                    "kind": "Event",
                    "metadata": {"name": event},
                    "involvedObject": {**about, "namespace": self.namespace},
                    "reason": reason,
                    "message": message if len(message) <= 1024 else message[:1023] + "…",  # the API's own limit
                    "type": "Warning" if is_warning else "Normal",
                    "source": {"component": MANAGED_BY},
                    "reportingComponent": MANAGED_BY,
                    "reportingInstance": socket.gethostname(),
                    "firstTimestamp": now,
                    "lastTimestamp": now,
                    "count": 1,
                },
            )
        self._remember(key, event, 1)

    def _remember(self, key: tuple[str, str, str], event: str, count: int) -> None:
        with self._lock:
            self._told[key] = (event, count)
            while len(self._told) > 4096:
                self._told.popitem(last=False)

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

    # Questions

    def can(self, verb: str, resource: str, *, group: str = "", subresource: str = "", name: str = "") -> Access:
        """Whether this identity may do so in the namespace, as the server's own authorizer says."""
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        asked |= {key: value for key, value in (("subresource", subresource), ("name", name)) if value}
        review = {"apiVersion": ACCESS_REVIEWS.api, "kind": ACCESS_REVIEWS.kind, "spec": {"resourceAttributes": asked}}
        status = _object(self._request("POST", ACCESS_REVIEWS, body=review)).get("status", {})
        return Access(bool(status.get("allowed")), str(status.get("reason") or status.get("evaluationError") or ""))

    def nodes(self) -> tuple[NodeView, ...] | None:
        """All nodes; none where this identity may not see them, as is usual in a shared cluster."""
        try:
            return self.list(NODES, _node_view).items
        except Forbidden:
            return None

    def version(self) -> str:
        """The API server's version, such as v1.35.4."""
        return str(_object(self._get("/version", "version"))["gitVersion"])

    def clock_offset(self) -> float:
        """Seconds by which the server's clock is ahead of this machine's, to about a second."""
        before = time.time()
        response = self._call(
            "reading", "the clock", "version", "get", lambda: self._exchange("GET", "/version", None, {})
        )
        told = parsedate_to_datetime(response.headers["Date"]).timestamp()
        return told + 0.5 - (before + time.time()) / 2  # the header is cut to whole seconds

    def preferred_api(self, group: str) -> str | None:
        """The group with the version that the server prefers, as Resource has it; none where it is not installed."""
        try:
            found = _object(self._get(f"/apis/{quote(group, safe='')}", group))
        except ObjectAbsent:
            return None
        return str(found["preferredVersion"]["groupVersion"])

    def logs(
        self,
        pod: str,
        *,
        follow: bool = False,
        container: str = "",
        tail_lines: int | None = None,
        since_seconds: int | None = None,
        previous: bool = False,
        silence_seconds: float = 3600,
    ) -> Iterator[str]:
        """The lines of a pod's log; with `follow` those that come, until its container has ended.

        A broken stream goes on after the last line that was read. Raises NotStarted where there is no container yet,
        and ObjectAbsent where the pod is gone before its first line; one that goes while it is followed ends the lines.
        """
        query = {"container": container, "timestamps": "true"}
        query |= {"follow": "true"} if follow else {}
        query |= {"previous": "true"} if previous else {}
        query |= {} if tail_lines is None else {"tailLines": str(tail_lines)}
        query |= {} if since_seconds is None else {"sinceSeconds": str(since_seconds)}
        last, num_last = "", 0  # the time of the last line that was read, and how many lines of that time were read
        path, target = PODS.path(self.namespace, pod, "log"), f"log of Pod {pod}"
        while True:
            num_skipped = 0
            try:
                with self._stream(PODS, "get", target, path, query, silence_seconds) as stream:
                    for line in _lines(stream, f"{self.place}: {target}", self._closed.is_set):
                        stamp, _, text = line.decode(errors="replace").partition(" ")
                        if stamp < last or (stamp == last and num_skipped < num_last):
                            num_skipped += stamp == last
                            continue
                        num_last = num_last + 1 if stamp == last else 1
                        last, num_skipped = stamp, num_last
                        yield text
                return
            except ObjectAbsent:
                if last:
                    return
                raise
            except Unreachable:
                if not last:
                    raise
            # Whole seconds are all that it understands; what comes twice by that is skipped above.
            query = {key: value for key, value in query.items() if key not in ("tailLines", "sinceSeconds")}
            query["sinceTime"] = last[:19] + "Z"

    # Requests

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
        path = _with_query(resource.path(self.namespace, name, subresource), {**_writer(method), **(query or {})})
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
        url = _with_query(path, query)
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
                with _loader_errors(self.name):
                    settings = self._link.configuration.auth_settings().values()
                self._header = {each["key"]: each["value"] for each in settings}
                self._header_until = now + HEADER_SECONDS
            return self._header

    def _renew_credentials(self, generation: int) -> None:
        """Load them anew, unless another thread just did."""
        with self._credentials_lock:
            if generation == self._generation:
                self._link = _Link(self._connect())  # the old one may still be reading a stream
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
                    _finish(response)
                    self._renew_credentials(generation)
                    continue
                raise self._refusal(place, verb, response)
            except _Passing as passing:
                fault = passing
            except HTTPError as error:
                self._count(verb, resource, 0, None)
                fault, cause = self._judge(place, error), error
            longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(tries - 1, 30))
            delay = random.uniform(0, longest) + min(fault.after, LONGEST_ASKED_DELAY)
            limit = min(self.patience_seconds, fault.patience)
            waited = time.monotonic() - started
            if waited + delay > limit:
                raise Unreachable(
                    f"{place} failed {tries} times in {waited:.0f} s: got {fault}, "
                    f"expected an answer from {self.server}",
                    hint=_unreachable_hint(fault.kind),
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
                text = _warning(each)
                if text in self.warnings or len(self.warnings) < MAX_WARNINGS:
                    self.warnings[text] += 1

    # Faults

    def _judge(self, place: str, error: Exception) -> _Passing:
        """What a failed exchange may pass with. Raises ClusterError where it cannot."""
        from urllib3 import exceptions

        told = _told(error)
        if isinstance(error, exceptions.ProxyError) and isinstance(error.original_error, Exception):
            error = error.original_error
        if isinstance(error, exceptions.NameResolutionError):
            return _Passing("connection", told, patience=float("inf") if self._reached else NAME_PATIENCE)
        if isinstance(error, exceptions.SSLError) and re.search("CERTIFICATE|VERSION|certificate|hostname", told):
            raise ClusterError(
                f"{place}: got {told}, expected a certificate that the kubeconfig's CA has signed",
                hint="is certificate-authority the one of this cluster, and server its address? A cluster that was "
                "made anew has a new CA",
            ) from error
        if isinstance(error, exceptions.NewConnectionError):
            return _Passing("connection", told, patience=float("inf") if self._reached else FIRST_PATIENCE)
        if isinstance(error, exceptions.TimeoutError):
            return _Passing("timeout", told, patience=float("inf") if self._reached else 3 * CONNECT_SECONDS)
        if isinstance(error, (exceptions.LocationValueError, exceptions.PoolError)):
            raise ClusterError(
                f"{place}: got {told}, expected a server's URL such as https://127.0.0.1:6443",
                hint="correct `server` of the cluster in the kubeconfig",
            ) from error
        return _Passing("connection", told)

    def _refusal(self, place: str, verb: str, response: BaseHTTPResponse) -> Exception:
        """What an answer that is no success means."""
        code, status = response.status, _status(_finish(response))
        message = str(status.get("message") or response.reason or "nothing more")
        reason, details = status.get("reason"), status.get("details") or {}
        got = f"{place}: got {code} {message}"
        if kind := PASSING_STATUSES.get(code):
            after = str(response.headers.get("Retry-After") or details.get("retryAfterSeconds") or "")
            return _Passing(kind, f"{code} {message}", after=float(after) if after.isdecimal() else 0)
        if code == 409 and verb == "create" and reason != "AlreadyExists":
            # Two creations counted against one ResourceQuota at once: https://github.com/kubernetes/kubernetes/issues/67761
            return _Passing("conflict", f"{code} {message}")
        if code == 409 and reason == "AlreadyExists":
            exists = ObjectExists(f"{got}, expected no object of that name")
            exists.is_deleting = "is being deleted" in message
            return exists
        if code in (400, 413, 422):
            return self._invalid(got, message, details)
        plain: dict[int, tuple[type[ClusterError], str, str | None]] = {
            401: (
                Unauthorized,
                f"credentials that {self.server} knows",
                "they are missing, wrong or have expired: log in again, as for kubectl",
            ),
            403: (Forbidden, "to be allowed to", _forbidden_hint(message, self.namespace)),
            404: (ObjectAbsent, "it to be there", _absent_hint(message, details, self.namespace)),
            409: (ObjectChanged, "the object and version that were read", None),
            410: (Expired, "a version that the server still knows", None),
        }
        if code == 403 and OVER_QUOTA.search(message):
            return QuotaExceeded(f"{got}, expected room in the namespace's ResourceQuota")
        kind_, wanted, hint = plain.get(
            code, (ClusterError, "an answer of the Kubernetes API", f"is {self.server} an API server?")
        )
        return kind_(f"{got}, expected {wanted}", hint=hint)

    def _invalid(self, got: str, message: str, details: Mapping[str, Any]) -> ClusterError:
        if found := WAITING_CONTAINER.search(message):
            waiting = NotStarted(
                f"{got}, expected a container that has started", hint="`grid status` says what it waits for"
            )
            waiting.waiting_for = found["why"]
            return waiting
        causes = details.get("causes") or ()
        fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
        fields = tuple(dict.fromkeys(fields)) or tuple(re.findall(r'unknown field "([^"]+)"', message))
        if "metadata.uid" in fields:  # a patch that was meant for another object of that name
            return ObjectChanged(f"{got}, expected the object that was read")
        invalid = ObjectInvalid(
            f"{got}, expected an object that the API accepts",
            hint=f"correct {', '.join(fields)}; a pod template patch in the settings may set it" if fields else None,
        )
        invalid.fields = fields
        return invalid


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
METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
"""Asks for a quarter of the answer, which both sides take time for:
https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables"""
WAITING_CONTAINER = re.compile(r"is waiting to start: (?P<why>.*)|container .* is not available|ContainerNotFound")


class _Link:
    """The package's client, and the way of a request through it."""

    def __init__(self, client: Any) -> None:
        manager: PoolManager = client.rest_client.pool_manager
        self.configuration = client.configuration
        self.host = str(self.configuration.host)
        # Straight to the server's own connections, unless there is a proxy, which may want the whole URL.
        self.sender: Any = manager if manager.proxy else manager.connection_from_url(self.host)
        self.prefix = self.host if manager.proxy else urlsplit(self.host).path
        self._client = client

    def close(self) -> None:
        """Close the connections that are not in use; the others once they are done."""
        if self.sender is not self._client.rest_client.pool_manager:  # which would leave them to the garbage collector
            self.sender.close()
        self._client.close()


class _Pace:
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


# --- finding the cluster ----------------------------------------------------------------------------------------------

POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPALIVE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""Seconds, so that a link that was cut is noticed in half a minute. macOS calls the first by the second's name."""


def open_cluster(
    namespace: str | None = None,
    *,
    kubeconfig: str | None = None,
    context: str | None = None,
    patience_seconds: float = CLUSTER_PATIENCE_SECONDS,
    connections: int = CONNECTIONS,
    per_second: float = PER_SECOND,
    burst: int = BURST,
    on_retry: Callable[[ApiRetry], None] | None = None,
) -> Cluster:
    """The cluster that kubectl would use; nothing is asked of it yet.

    That is: `kubeconfig`, else KUBECONFIG, else ~/.kube/config, else the service account of the pod this runs in. The
    namespace is `namespace`, else the context's, else the pod's, else `default`. Raises ClusterError.
    """
    given = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [str(Path(each).expanduser()) for each in given.split(os.pathsep) if each]
    found = [each for each in files if Path(each).exists()]
    in_pod = not found and not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ

    if not found and not in_pod:
        raise ClusterError(
            f"cluster: got no kubeconfig at {', '.join(files)} and no service account of a pod, expected one of them",
            hint=KUBECONFIG_HINT,
        )
    path = os.pathsep.join(found)
    if in_pod:
        name = "cluster of this pod"
        own = POD_NAMESPACE.read_text().strip() if POD_NAMESPACE.exists() else None
    else:
        chosen = _context(path, context)
        name = f"context {chosen['name']} of {path}"
        own = (chosen.get("context") or {}).get("namespace")
    return Cluster(
        lambda: _client(name, None if in_pod else path, context, connections),
        name,
        namespace or own or "default",
        patience_seconds=patience_seconds,
        connections=connections,
        per_second=per_second,
        burst=burst,
        on_retry=on_retry,
    )


def _client(name: str, kubeconfig: str | None, context: str | None, connections: int) -> Any:
    """The package's client, with credentials; of the pod's service account where there is no kubeconfig."""
    import urllib3
    from kubernetes import config
    from kubernetes.client import ApiClient

    loaders: Any = config  # the package's loaders are not typed
    configuration = _configuration(connections)
    with _loader_errors(name) as told:
        if kubeconfig is None:
            loaders.load_incluster_config(client_configuration=configuration)
        else:
            loaders.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
    if told and not configuration.api_key and not configuration.cert_file:
        # The package only logs that an exec plugin failed, and would go on as nobody.
        raise Unauthorized(
            f"{name}: got {'; '.join(told)}, expected credentials",
            hint="the command that the kubeconfig names for this user failed: run it by hand, or log in again",
        )
    if not configuration.verify_ssl:  # the kubeconfig says so, and kubectl says nothing either
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return ApiClient(configuration)


def _context(files: str, name: str | None) -> Object:
    """The context that is meant: its name, cluster, user and namespace."""
    from kubernetes import config

    loaders: Any = config
    with _loader_errors(files):
        contexts, current = loaders.list_kube_config_contexts(config_file=files)
    if name is None:
        return dict(current)
    for each in contexts:
        if each["name"] == name:
            return dict(each)
    raise ClusterError(
        f"{files}: context: got {name!r}, expected one of {', '.join(each['name'] for each in contexts)}",
        hint="`kubectl config get-contexts` lists them",
    )


def _configuration(connections: int) -> Any:
    from kubernetes.client import Configuration
    from urllib3.connection import HTTPConnection

    made: Any = Configuration()
    made.connection_pool_maxsize = connections + 8  # watches and logs that are followed hold some for long
    made.socket_options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    made.socket_options += [
        (socket.IPPROTO_TCP, getattr(socket, option), value) for option, value in KEEPALIVE if hasattr(socket, option)
    ]
    return made


@contextmanager
def _loader_errors(place: str) -> Iterator[list[str]]:
    """Turns what the package raises of a kubeconfig into ClusterErrors; gives what it only logs."""
    import yaml
    from kubernetes.config import ConfigException

    told: list[str] = []
    handler = _Collecting(told)
    logging.getLogger().addHandler(handler)
    try:
        yield told
    except (ConfigException, yaml.YAMLError, KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        raise ClusterError(
            f"{place}: got {_told(error)}, expected a kubeconfig, or a service account, that can be used",
            hint="`kubectl config view` shows what is read",
        ) from error
    finally:
        logging.getLogger().removeHandler(handler)


class _Collecting(logging.Handler):
    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(record.getMessage())


# --- answers ----------------------------------------------------------------------------------------------------------


def _object(data: bytes) -> Object:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ClusterError(
            f"cluster: got {data[:80]!r}, expected JSON", hint="is `server` of the kubeconfig an API server?"
        ) from error
    if not isinstance(found, dict):
        raise ClusterError(f"cluster: got {str(found)[:80]!r}, expected an object of the API")
    return found


def _continue_token(data: bytes) -> str:
    """Where the next page begins, read from the first bytes of this one; empty on the last."""
    start = data.find(b'"metadata":', 0, 200)
    if start >= 0 and b'"items":' not in data[:start]:  # as every API server writes it
        head = data[start + len(b'"metadata":') : start + 4096].decode(errors="replace")
        with suppress(ValueError):
            return str(json.JSONDecoder().raw_decode(head.lstrip())[0].get("continue", ""))
    return str(_object(data)["metadata"].get("continue", ""))


def _status(data: bytes) -> Object:
    """The API's Status; of a proxy's page, its beginning."""
    try:
        found = json.loads(data)
    except ValueError:
        return {"message": data[:200].decode(errors="replace").strip()}
    return found if isinstance(found, dict) else {}


def _finish(response: BaseHTTPResponse) -> bytes:
    """What is left of an answer, so that its connection can be used again."""
    from urllib3.exceptions import HTTPError

    try:
        return response.data or b""
    except HTTPError:
        response.close()
        return b""


def _lines(response: BaseHTTPResponse, place: str, is_closed: Callable[[], bool]) -> Iterator[bytes]:
    """The lines of a stream as they come, without a last one that is torn. Raises Unreachable where it breaks."""
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for chunk in response.stream(1 << 16, decode_content=True):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                if line:
                    yield line
    except (HTTPError, OSError, ValueError, AttributeError) as error:  # the last: closed by another thread
        if not is_closed():
            raise Unreachable(f"{place}: got {_told(error)}, expected the stream to go on") from error
    else:
        if rest and not is_closed():
            yield rest
    finally:
        response.close()


def _with_query(path: str, query: Mapping[str, str]) -> str:
    text = urlencode({key: value for key, value in query.items() if value})
    return f"{path}?{text}" if text else path


def _dry_run(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}


def _writer(method: str) -> dict[str, str]:
    return {"fieldManager": MANAGED_BY} if method in ("POST", "PUT", "PATCH") else {}


def _holds(found: Any, wanted: Any) -> bool:
    """Whether `found` has all that `wanted` has: the server adds defaults, and changes nothing."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(key in found and _holds(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return (
            isinstance(found, Sequence)
            and len(found) == len(wanted)
            and all(_holds(*pair) for pair in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)


def _node_view(node: Object) -> NodeView:
    spec, status = node.get("spec") or {}, node.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    return NodeView(
        name=node["metadata"]["name"],
        is_ready=conditions.get("Ready") == "True",
        is_schedulable=not spec.get("unschedulable"),
        labels=node["metadata"].get("labels") or {},
        taints=tuple(f"{each['key']}={each.get('value', '')}:{each['effect']}" for each in spec.get("taints") or ()),
        allocatable=status.get("allocatable") or {},
    )


def _warning(header: str) -> str:
    """The text of a Warning header: `299 - "the text"`."""
    found = re.search(r'"((?:[^"\\]|\\.)*)"', header)
    return found[1].replace('\\"', '"') if found else header


def _told(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    # urllib3 begins with the connection's own name and address in memory
    return re.sub(r"^<[^>]*>: |^HTTPS?Connection(?:Pool)?\([^)]*\): ", "", text)


def _unreachable_hint(kind: str) -> str:
    if kind in ("connection", "timeout"):
        return "is the cluster up, and `server` of the kubeconfig its address? `make kind-up` brings up one of kind"
    return "the API server answers, but is overloaded or unwell: try again later, or ask who runs it"


def _forbidden_hint(message: str, namespace: str) -> str | None:
    if found := RBAC.search(message):
        group = re.search(r'in API group "([^"]*)"', message)
        return (
            f"the Role of {found['user']} in {namespace} needs apiGroups: [{group[1] if group else ''!r}], "
            f"resources: [{found['resource']!r}], verbs: [{found['verb']!r}]; `make deploy` brings the project's own"
        )
    if "is being terminated" in message:
        return f"the namespace {namespace} is being deleted: wait until it is gone, and make it anew"
    if "violates PodSecurity" in message:
        return "a pod template patch in the settings asks for more than the namespace's Pod Security level allows"
    return None


def _absent_hint(message: str, details: Mapping[str, Any], namespace: str) -> str | None:
    if details.get("kind") == "namespaces":
        return f"make it (`make deploy`, or kubectl create namespace {namespace}), or name another"
    if "could not find the requested resource" in message:
        return "the cluster does not have this kind of object: is what brings it installed, and new enough?"
    return None
