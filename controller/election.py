"""Who acts in a namespace: one holder of a Lease at a time, by the rules of Kubernetes' own controllers.

The holder renews the Lease. Another may take it once it has not changed for its duration *as the other's own clock has
measured that*, so no two clocks are ever compared: https://pkg.go.dev/k8s.io/client-go/tools/leaderelection
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controller.cluster import (
    LEASES,
    Cluster,
    ClusterError,
    Object,
    ObjectAbsent,
    ObjectChanged,
    ObjectExists,
    Unreachable,
)
from controller.jobs import MANAGED_BY, read_time, standard_labels

COMPONENT = "lease"
DURATION_SECONDS = 15  # that a Lease holds without being renewed
RENEW_SECONDS = 10.0  # since its last renewal that a holder counts on it: less than the duration
PERIOD_SECONDS = 2.0  # between two tries


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom the Lease names."""

    identity: str
    since: datetime | None
    is_alive: bool  # it renews the Lease


@dataclass(slots=True)
class SeenLease:
    """A Lease as this process has seen it, and since when it stands so by this process's own clock."""

    lease: Object | None = None
    since: float = 0.0

    def note(self, lease: Object | None) -> None:
        """Take in how the Lease was found; the very object that was seen before stays where nothing has changed."""
        before = self.lease
        if lease is None or before is None or version_of(lease) != version_of(before):
            self.lease, self.since = lease, time.monotonic()

    @property
    def holder(self) -> str:
        """Whom it names; empty where nobody, or where there is no such Lease."""
        return str(self.lease["spec"].get("holderIdentity") or "") if self.lease else ""

    @property
    def duration(self) -> float:
        """Seconds that it holds without being renewed."""
        return float((self.lease["spec"] if self.lease else {}).get("leaseDurationSeconds") or DURATION_SECONDS)

    @property
    def is_held(self) -> bool:
        """Whether another is kept off by it: it names someone, and has not stood unchanged for its duration."""
        return bool(self.holder) and time.monotonic() < self.since + self.duration

    def annotation(self, key: str) -> str | None:
        """What the holder says of itself under that key."""
        found = ((self.lease or {}).get("metadata", {}).get("annotations") or {}).get(key)
        return None if found is None else str(found)


class Leadership:
    """This process's part in the election. In a `with` block it tries to hold the Lease, and gives it back at the end.

    `identity` is what others are told, `annotations` are on the Lease. While `is_held` nobody else acts. Someone who
    goes first may hold another Lease: `gives_way` says whether one does. It is asked once this Lease is taken, or
    renewed, and before it counts as held; then the Lease is given back.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        identity: str | None = None,
        name: str = MANAGED_BY,
        duration_seconds: int = DURATION_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
        period_seconds: float = PERIOD_SECONDS,
        annotations: Mapping[str, str] | None = None,
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        assert renew_seconds < duration_seconds
        self.identity = identity or new_identity()
        self.answered_at = float("-inf")  # when the API last said how the Lease is, by this process's own clock
        self._cluster = cluster
        self._name = name
        self._duration = duration_seconds
        self._renew = renew_seconds
        self._period = period_seconds
        self._annotations = dict(annotations or {})
        self._gives_way = gives_way
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen = SeenLease()
        self._held_until = 0.0  # by this process's own clock
        self._failure: BaseException | None = None

    def __enter__(self) -> Leadership:
        self._thread = threading.Thread(target=self._keep, name="leader", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * self._period)  # it may wait for a server that is away
        if self._failure is None and self.is_held:
            with suppress(ClusterError):  # it runs out by itself
                self.release()

    @property
    def is_held(self) -> bool:
        """Whether this process may act now."""
        return time.monotonic() < self._held_until

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the Lease is held, as soon as it is; false after `seconds`. Raises what the election has met."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_held or self._failure is not None, seconds)
            if self._failure is not None:
                raise self._failure
            return self.is_held

    def look(self) -> SeenLease:
        """The Lease as it is now. Raises ClusterError."""
        self._look()
        return self._seen

    def other(self) -> str | None:
        """Whom the Lease named when it was last looked at, unless that is this process."""
        holder = self._seen.holder
        return holder if holder and holder != self.identity else None

    def try_once(self) -> bool:
        """Take or renew the Lease where that is allowed now; whether it is held. Raises ClusterError."""
        asked = time.monotonic()
        if not self.is_held and self._gives_way():
            self._hold(0)
            return False
        if not self.is_held:
            self._look()
        for _ in range(2):  # the second time after a look at what came between, if only our own lost answer
            if self._seen.is_held and self._seen.holder != self.identity:
                break
            try:
                if self._seen.lease is None:
                    taken = self._cluster.create(LEASES, self._body(None))
                else:
                    taken = self._cluster.replace(LEASES, self._name, self._body(self._seen.lease))
            except (ObjectExists, ObjectChanged, ObjectAbsent):
                self._look()
            else:
                self._note(taken)
                if self._gives_way():
                    self.release()
                    return False
                self._hold(asked + self._renew)
                return True
        self._hold(0)
        return False

    def release(self) -> None:
        """Give the Lease back, so that another need not wait for its end. Raises ClusterError."""
        lease = self._seen.lease
        self._hold(0)
        if lease is None or self._seen.holder != self.identity:
            return
        body = self._body(lease)
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        with suppress(ObjectChanged, ObjectAbsent):  # it is another's by now
            self._note(self._cluster.replace(LEASES, self._name, body))

    def holder(self, *, surely: bool = False) -> Holder | None:
        """Whom the Lease names, if anyone; where its last renewal seems old, watches whether another one comes.

        Where that must be known `surely`, another one is waited for in any case: a process that was killed a moment ago
        has renewed a moment ago. Takes up to the Lease's duration. Raises ClusterError.
        """
        first = self._look()
        if first is None or not self._seen.holder:
            return None
        if not surely and self._is_recent(first):
            return _holder(first, is_alive=True)
        while self._seen.is_held:
            time.sleep(min(self._period, self._seen.duration) / 4)
            now = self._look()
            if now is None or not self._seen.holder:
                return None
            if now is not first:
                return _holder(now, is_alive=True)
        return _holder(first, is_alive=False)

    def _is_recent(self, lease: Object) -> bool:
        renewed = _time(lease["spec"].get("renewTime"))
        age = time.time() + self._cluster.clock_offset() - renewed.timestamp() if renewed else float("inf")
        return abs(age) <= self._seen.duration

    def _keep(self) -> None:
        try:
            while not self._stop.is_set():
                with suppress(Unreachable):  # meanwhile what is held runs out by itself
                    self.try_once()
                self._stop.wait(self._period)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _hold(self, until: float) -> None:
        with self._changed:
            self._held_until = until
            self._changed.notify_all()

    def _look(self) -> Object | None:
        """The Lease as it is now; the very object that was seen before where nothing has changed since."""
        try:
            self._note(self._cluster.get(LEASES, self._name))
        except ObjectAbsent:
            self._note(None)
        return self._seen.lease

    def _note(self, lease: Object | None) -> None:
        self._seen.note(lease)
        self.answered_at = time.monotonic()

    def _body(self, lease: Object | None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = lease["spec"] if lease is not None else {}
        is_ours = spec.get("holderIdentity") == self.identity
        metadata: dict[str, Any] = {"name": self._name, "labels": standard_labels(COMPONENT)}
        if self._annotations:
            metadata["annotations"] = self._annotations
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": LEASES.api,
            "kind": LEASES.kind,
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": self._duration,
                "acquireTime": (spec.get("acquireTime") if is_ours else None) or now,
                "renewTime": now,
                "leaseTransitions": (spec.get("leaseTransitions") or 0) + (lease is not None and not is_ours),
            },
        }


def new_identity() -> str:
    """What a process calls itself to others: the machine, or the pod, and what no other process has."""
    return f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def version_of(lease: Object) -> int:
    """Which version of the Lease it is: a later one is larger, as etcd counts them."""
    return int(lease["metadata"]["resourceVersion"])


def _holder(lease: Object, *, is_alive: bool) -> Holder:
    return Holder(lease["spec"]["holderIdentity"], _time(lease["spec"].get("acquireTime")), is_alive)


def _time(text: str | None) -> datetime | None:
    return read_time(text) if text else None
