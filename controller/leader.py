"""Who acts in a namespace: one holder of a Lease at a time, by the rules of Kubernetes' own controllers.

The holder renews the Lease. Another may take it once it has not changed for its duration *as the other's own clock has
measured that*, so no two clocks are ever compared: https://pkg.go.dev/k8s.io/client-go/tools/leaderelection
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controller.cluster import LEASES, Cluster, ClusterError, Object, ObjectAbsent, ObjectChanged, ObjectExists
from controller.jobs import MANAGED_BY, read_time

DURATION_SECONDS = 15  # that a Lease holds without being renewed
RENEW_SECONDS = 10.0  # since its last renewal that a holder counts on it: less than the duration
PERIOD_SECONDS = 2.0  # between two tries


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom the Lease names."""

    identity: str
    since: datetime | None
    is_alive: bool  # it renews the Lease


class Leadership:
    """This process's part in the election. In a `with` block it tries to hold the Lease, and gives it back at the end.

    `identity` is what others are told. While `is_held` nobody else acts.
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
    ) -> None:
        assert renew_seconds < duration_seconds
        self.identity = identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self._cluster = cluster
        self._name = name
        self._duration = duration_seconds
        self._renew = renew_seconds
        self._period = period_seconds
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lease: Object | None = None  # as it was last seen
        self._seen_at = 0.0  # when it was first seen so, by this process's own clock
        self._held_until = 0.0  # by that clock too
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

    def try_once(self) -> bool:
        """Take or renew the Lease where that is allowed now; whether it is held. Raises ClusterError."""
        asked = time.monotonic()
        lease = self._lease if self.is_held else self._look()
        for _ in range(2):  # the second time after a look at what came between, if only our own lost answer
            if lease is not None and not self._may_take(lease):
                break
            try:
                if lease is None:
                    taken = self._cluster.create(LEASES, self._body(None))
                else:
                    taken = self._cluster.replace(LEASES, self._name, self._body(lease))
            except (ObjectExists, ObjectChanged, ObjectAbsent):
                lease = self._look()
            else:
                self._note(taken)
                self._hold(asked + self._renew)
                return True
        self._hold(0)
        return False

    def release(self) -> None:
        """Give the Lease back, so that another need not wait for its end. Raises ClusterError."""
        lease = self._lease
        self._hold(0)
        if lease is None or lease["spec"].get("holderIdentity") != self.identity:
            return
        body = self._body(lease)
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        with suppress(ObjectChanged, ObjectAbsent):  # it is another's by now
            self._note(self._cluster.replace(LEASES, self._name, body))

    def holder(self) -> Holder | None:
        """Whom the Lease names, if anyone; where its last renewal seems old, watches whether another one comes.

        Takes up to the Lease's duration. Raises ClusterError.
        """
        first = self._look()
        if first is None or not first["spec"].get("holderIdentity"):
            return None
        renewed = _time(first["spec"].get("renewTime"))
        age = time.time() + self._cluster.clock_offset() - renewed.timestamp() if renewed else float("inf")
        if abs(age) <= self._duration_of(first):
            return _holder(first, is_alive=True)
        while not self._may_take(first):
            time.sleep(min(self._period, self._duration_of(first) / 4))
            now = self._look()
            if now is None or not now["spec"].get("holderIdentity"):
                return None
            if now is not first:
                return _holder(now, is_alive=True)
        return _holder(first, is_alive=False)

    def _keep(self) -> None:
        try:
            while not self._stop.is_set():
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
            self._lease = None
        return self._lease

    def _note(self, lease: Object) -> None:
        if self._lease is None or lease["metadata"]["resourceVersion"] != self._lease["metadata"]["resourceVersion"]:
            self._lease = lease
            self._seen_at = time.monotonic()

    def _may_take(self, lease: Object) -> bool:
        holder = lease["spec"].get("holderIdentity")
        return holder in (None, "", self.identity) or time.monotonic() >= self._seen_at + self._duration_of(lease)

    def _duration_of(self, lease: Object) -> float:
        return float(lease["spec"].get("leaseDurationSeconds") or self._duration)

    def _body(self, lease: Object | None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = lease["spec"] if lease is not None else {}
        is_ours = spec.get("holderIdentity") == self.identity
        metadata: dict[str, Any] = {"name": self._name, "labels": {"app.kubernetes.io/managed-by": MANAGED_BY}}
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


def _holder(lease: Object, *, is_alive: bool) -> Holder:
    return Holder(lease["spec"]["holderIdentity"], _time(lease["spec"].get("acquireTime")), is_alive)


def _time(text: str | None) -> datetime | None:
    return read_time(text) if text else None
