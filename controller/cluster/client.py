"""The Kubernetes API as one namespace of it is seen: objects read, watched, written and told about.

What an answer means: https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import random
import socket
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import quote

from controller.cluster.answers import continue_token, holds, object_of
from controller.cluster.connection import BURST, CLUSTER_PATIENCE_SECONDS, CONNECTIONS, HEADERS, PER_SECOND, Connection
from controller.cluster.errors import ApiRetry, Expired, Forbidden, ObjectAbsent, ObjectExists, Unreachable
from controller.cluster.kubeconfig import find
from controller.cluster.resources import (
    ACCESS_REVIEWS,
    EVENTS,
    KUEUE_GROUP,
    NODES,
    PODS,
    SELF_REVIEWS,
    Access,
    Kueue,
    Listing,
    NodeView,
    Object,
    Resource,
    node_view,
)
from controller.cluster.streams import Watch, lines_of
from controller.jobs import MANAGED_BY

V = TypeVar("V")

BROKEN_STREAMS = 10  # in a row, each without a new line, after which a log is given up
LONGEST_PAUSE = 10.0  # seconds between two of them
PAGE = 500  # objects: what kubectl asks for, and what the server keeps in its cache
METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
"""Asks for a quarter of the answer, which both sides take time for:
https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables"""


class Cluster(Connection):
    """One namespace of a cluster. Every method may be called from any thread.

    Faults that can pass are retried with jitter for `patience_seconds`, each told to `on_retry` before the wait, in the
    thread that waits; what it raises ends the request. All else raises a ClusterError at once. At most `connections`
    requests and SPARE are under way at a time, and not more than `per_second` begin in the long run.
    """

    @cached_property
    def _told(self) -> OrderedDict[tuple[str, str, str], tuple[str, int]]:
        """Events that were told: their names and counts. For who holds the lock."""
        return OrderedDict()

    # Reading

    def get(self, resource: Resource, name: str) -> Object:
        """The object. Raises ObjectAbsent."""
        return object_of(self._request("GET", resource, name))

    def metadata(self, resource: Resource, name: str) -> Object:
        """The object's metadata alone: a secret's content does not travel. Raises ObjectAbsent."""
        found = object_of(self._request("GET", resource, name, accept=METADATA_ALONE))
        return dict(found["metadata"])

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
                following = continue_token(data)
                ahead = following and pool.submit(
                    self._request, "GET", resource, query={**query, "continue": following}, verb="list"
                )
                page = object_of(data)
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
            made = object_of(self._request("POST", resource, body=body, query=query, tries=tries, accept=accept))
            return made if dry_run else {**body, "metadata": made["metadata"]}
        except ObjectExists as error:
            if tries["sent"] > 1 and not error.is_deleting:
                with suppress(ObjectAbsent):
                    found = self.get(resource, body["metadata"]["name"])
                    if holds(found, body):
                        return found
            raise

    def replace(self, resource: Resource, name: str, body: Mapping[str, Any]) -> Object:
        """The object, written anew; with a resourceVersion in `body` over that version only. Raises ObjectChanged."""
        return object_of(self._request("PUT", resource, name, body=body))

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
        return object_of(
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
            return object_of(self._request("DELETE", resource, name, body=body, query=query, tries=tries))
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

    # Questions

    def can(self, verb: str, resource: str, *, group: str = "", subresource: str = "", name: str = "") -> Access:
        """Whether this identity may do so in the namespace, as the server's own authorizer says."""
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        asked |= {key: value for key, value in (("subresource", subresource), ("name", name)) if value}
        review = {"apiVersion": ACCESS_REVIEWS.api, "kind": ACCESS_REVIEWS.kind, "spec": {"resourceAttributes": asked}}
        status = object_of(self._request("POST", ACCESS_REVIEWS, body=review)).get("status", {})
        return Access(bool(status.get("allowed")), str(status.get("reason") or status.get("evaluationError") or ""))

    def user(self) -> str:
        """The name by which the server knows who asks, as RoleBindings have it; empty where it does not say."""
        review = {"apiVersion": SELF_REVIEWS.api, "kind": SELF_REVIEWS.kind}
        try:
            found = object_of(self._request("POST", SELF_REVIEWS, body=review))
        except (Forbidden, ObjectAbsent):
            return ""
        return str(found.get("status", {}).get("userInfo", {}).get("username", ""))

    def nodes(self) -> tuple[NodeView, ...] | None:
        """All nodes; none where this identity may not see them, as is usual in a shared cluster."""
        try:
            return self.list(NODES, node_view).items
        except Forbidden:
            return None

    def version(self) -> str:
        """The API server's version, such as v1.35.4."""
        return str(object_of(self._get("/version", "version"))["gitVersion"])

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
            found = object_of(self._get(f"/apis/{quote(group, safe='')}", group))
        except ObjectAbsent:
            return None
        return str(found["preferredVersion"]["groupVersion"])

    def kueue(self) -> Kueue | None:
        """Kueue's kinds of objects; none where it is not installed. Raises ClusterError."""
        api = self.preferred_api(KUEUE_GROUP)
        return None if api is None else Kueue.of(api)

    def logs(
        self,
        pod: str,
        *,
        follow: bool = False,
        container: str = "",
        silence_seconds: float = 3600,
    ) -> Iterator[str]:
        """The lines of a pod's log; with `follow` those that come, until its container has ended.

        A broken stream goes on after the last line that was read. Raises NotStarted where there is no container yet,
        and ObjectAbsent where the pod is gone before its first line; one that goes while it is followed ends the lines.
        """
        query = {"container": container, "timestamps": "true"}
        query |= {"follow": "true"} if follow else {}
        last, num_last = "", 0  # the time of the last line that was read, and how many lines of that time were read
        num_broken = 0  # streams in a row that brought no new line
        path, target = PODS.path(self.namespace, pod, "log"), f"log of Pod {pod}"
        while True:
            num_skipped = 0
            try:
                with self._stream(PODS, "get", target, path, query, silence_seconds) as stream:
                    for line in lines_of(stream, f"{self.place}: {target}", self._closed.is_set):
                        stamp, _, text = line.decode(errors="replace").partition(" ")
                        if stamp < last or (stamp == last and num_skipped < num_last):
                            num_skipped += stamp == last
                            continue
                        num_last = num_last + 1 if stamp == last else 1
                        last, num_skipped = stamp, num_last
                        num_broken = 0
                        yield text
                return
            except ObjectAbsent:
                if last:
                    return
                raise
            except Unreachable:
                num_broken += 1
                if not last or num_broken > BROKEN_STREAMS:
                    raise
                self._closed.wait(random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2**num_broken)))
            # Whole seconds are all that it understands; what comes twice by that is skipped above.
            query["sinceTime"] = last[:19] + "Z"


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
    found = find(kubeconfig, context)
    return Cluster(
        lambda: found.client(connections),
        found.name,
        namespace or found.namespace or "default",
        patience_seconds=patience_seconds,
        connections=connections,
        per_second=per_second,
        burst=burst,
        on_retry=on_retry,
    )


def _dry_run(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}
