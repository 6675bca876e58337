"""Which of the processes that know a grid acts on it: `grid serve` for all of a namespace, else one of its watches.

`serve` holds the namespace's Lease, a watch the grid's own. Each takes its Lease first and then looks at the other's,
so of two that begin at once at least one sees the other: the watch gives way, and `serve` waits until the grid's Lease
is given back or runs out. Both look again at every renewal. What is left is a moment in which two act, as when a
process hangs between a look and a request: it harms nothing, since every action names the version that it is about.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from controller.cluster import Cluster, Forbidden
from controller.election import Leadership, SeenLease
from controller.jobs import DOMAIN, MANAGED_BY
from controller.live import View
from controller.registry import object_name

STORE_ANNOTATION = f"{DOMAIN}/store"  # on the namespace's Lease: the store whose grids its holder acts on
LEASE_SECONDS = 12  # that a grid's Lease holds without being renewed
LEASE_PERIOD_SECONDS = 2.0
OTHER_SECONDS = 30.0  # after which whoever keeps the Lease from this process is called another one


class Acting:
    """Whether this process acts on a grid: one at a time does, so that no more is started than its settings allow.

    In a `with` block it tries to hold the grid's Lease, unless a living `serve` acts on the grids of one of `stores`.
    Where Leases are not to be had it acts without, and says so.
    """

    def __init__(self, cluster: Cluster, grid: str, stores: Sequence[str], view: View) -> None:
        self.is_served = False  # whether `other` was a `serve`
        self._cluster = cluster
        self._view = view
        self._stores = frozenset(stores)
        self._name = object_name(grid)
        self._server = Leadership(cluster)  # whose Lease is only looked at
        self._part = Leadership(
            cluster,
            name=self._name,
            duration_seconds=LEASE_SECONDS,
            renew_seconds=LEASE_SECONDS - 3,
            period_seconds=LEASE_PERIOD_SECONDS,
            gives_way=lambda: self._is_for_us(self._server.look()),
        )
        self._is_without = False

    def __enter__(self) -> Acting:
        self._part.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._part.__exit__()

    def __call__(self) -> bool:
        """Whether to act now."""
        return self._wait(0)

    def other(self) -> str | None:
        """Who else acts on the grid and lives; none once this process does. Takes OTHER_SECONDS or a few more."""
        until = time.monotonic() + OTHER_SECONDS
        if self._wait(1):
            return None
        while time.monotonic() < until:
            for name in (MANAGED_BY, self._name):
                looked = Leadership(self._cluster, name=name)
                holder = looked.holder(surely=True)
                is_server = name == MANAGED_BY
                if holder is None or not holder.is_alive or holder.identity == self._part.identity:
                    continue
                if not is_server or self._is_for_us(looked.look()):
                    self.is_served = is_server
                    return holder.identity
            if self._wait(LEASE_PERIOD_SECONDS / 2):
                return None
        return "another process"

    def server(self) -> str | None:
        """The `serve` that acts on the grid, as far as it may live; none too where that may not be seen."""
        try:
            seen = self._server.look()
        except Forbidden:
            return None
        return seen.holder if self._is_for_us(seen) else None

    def _is_for_us(self, seen: SeenLease) -> bool:
        """Whether that Lease's holder, as far as it may live, acts on grids of our store."""
        store = seen.annotation(STORE_ANNOTATION)
        return seen.is_held and (store is None or store in self._stores)

    def _wait(self, seconds: float) -> bool:
        if self._is_without:
            return True
        try:
            return self._part.wait(seconds)
        except Forbidden as error:
            self._is_without = True
            self._view.say("note", f"acting without a Lease, so let no other watch this grid: {error.message}")
            return True
