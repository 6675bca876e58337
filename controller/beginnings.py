"""Where the pods at work began their runs: from the start, or from which checkpoint; as the store has it of each."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

from controller.archive import checkpoint_head
from controller.jobs import PodView
from controller.knowledge import read_leases
from controller.reconcile import Resumption
from trainer.failure import DataError
from trainer.result import Provenance, parse_record
from trainer.store import NotFound, Store

LOOK_AGAIN_SECONDS = 5.0  # before a pod is looked at again whose attempt has not said yet where it begins
STAMP_SECONDS = 1.0  # a container's start is told in whole seconds


class Beginnings:
    """What is known of the pods that run now. Each is asked about until the store can tell, and no more."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Resumption | None] = {}  # by the pod's uid; none: it began its run
        self._look_at: dict[str, float] = {}  # by the pod's uid: when to look again, by the monotonic clock

    def look(self, running: Iterable[PodView]) -> None:
        """Ask the store about the running pods of which nothing is known, and forget those that run no more."""
        pods = {pod.uid: pod for pod in running if not pod.work.is_test}
        self._known = {uid: found for uid, found in self._known.items() if uid in pods}
        self._look_at = {uid: at for uid, at in self._look_at.items() if uid in pods}
        now = time.monotonic()
        for uid, pod in pods.items():
            if uid not in self._known and self._look_at.get(uid, 0.0) <= now:
                self._look_at[uid] = now + LOOK_AGAIN_SECONDS
                with suppress(DataError):  # what is told is not worth an end
                    self._ask(pod)

    def resumed(self, pod: PodView) -> Resumption | None:
        """Where the pod went on; none where it began its run, or nothing is known."""
        return self._known.get(pod.uid)

    def is_known(self, pod: PodView) -> bool:
        """Whether it is known where the pod began; a test always begins."""
        return pod.work.is_test or pod.uid in self._known

    def _ask(self, pod: PodView) -> None:
        """Take in what the store says of the pod's attempt, where it says something of it."""
        run = pod.work.run
        if checkpoint_head(self._store, run) is None:
            self._known[pod.uid] = None
            return
        lease = read_leases(self._store, [run]).get(run)
        if lease is None or pod.started is None:
            return
        key = f"runs/{run}/attempts/{lease.attempt}/provenance.json"
        try:
            said = parse_record(Provenance, key, self._store.get(key))
        except NotFound:
            return
        # by the clock of one node, both; the lease of an earlier attempt stands until this one takes it
        if said.started >= pod.started - timedelta(seconds=STAMP_SECONDS):
            went_on = said.resumed_from
            self._known[pod.uid] = None if went_on is None else Resumption(pod.uid, went_on.epoch + 1)
