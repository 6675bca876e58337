"""What Kubernetes holds of a namespace's runs, kept up to date in memory by watches.

Each kind of object has a thread of its own: it lists once, then follows the changes from the listing's version, opens
the watch again where it ended, and lists anew where the server has forgotten that version. So the mirror is behind by
moments only, and what it holds does not depend on which changes were seen on the way.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from controller.cluster import (
    EVENTS,
    JOBS,
    KUEUE_GROUP,
    PODS,
    Cluster,
    ClusterError,
    Expired,
    Listing,
    Object,
    Resource,
    Unreachable,
    Watch,
)
from controller.jobs import (
    REFUSAL_FIELDS,
    SELECTOR,
    JobView,
    PodView,
    RefusalView,
    WorkloadView,
    job_name,
    job_view,
    pod_view,
    refusal_view,
    workload_view,
)
from controller.standing import Work

# A grid's last state is a pod that succeeded for every run: as large a listing as that of the Jobs, and no news in it.
POD_FIELDS = "status.phase!=Succeeded"
SHORT_SECONDS = 1.0  # that an answer lasts which is over at once
LONGEST_PAUSE = 10.0  # seconds between two tries to open a watch that ends at once
WATCH_SECONDS = (240, 300)  # drawn between: not all at once, where many follow one server

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the mirror held at one moment, and what had changed since the snapshot before."""

    jobs: Mapping[Work, JobView]
    pods: Mapping[Work, tuple[PodView, ...]]  # the oldest first; those that succeeded are left out
    quota: Mapping[Work, str]  # why the Job cannot make a pod now, in the words of its last FailedCreate event
    workloads: Mapping[Work, WorkloadView]  # Kueue's, where they are followed
    unlisted: frozenset[Work]  # whose Job came or went since all pods were last listed: others may be there than `pods`
    changed: frozenset[Work]


class _Held(NamedTuple, Generic[V]):
    """An object as it was at a version. Versions grow: https://www.kubernetes.dev/resources/keps/5504/"""

    name: str  # unique in the namespace, for its kind
    version: int
    view: V


@dataclass(frozen=True, slots=True)
class Kind(Generic[V]):
    """A kind of object: how it is asked for, and what a change of one means."""

    resource: Resource
    view: Callable[[Object], V | None]
    changed: Callable[[V | None, V | None], None]  # what it was, what it is; called under the mirror's lock
    selector: str = ""
    fields: str = ""
    wakes: bool = False  # whether any change of one ends `Mirror.wait`
    objects: dict[str, _Held[V]] = field(default_factory=dict)

    def held(self, found: Object) -> _Held[V] | None:
        """What is kept of an object; none where it is none of ours."""
        view = self.view(found)
        if view is None:
            return None
        return _Held(found["metadata"]["name"], int(found["metadata"]["resourceVersion"]), view)


class Mirror:
    """Jobs and pods of runs as they are now; with `queues`, Kueue's workloads too. To be used in a `with` block.

    A cluster that does not answer is waited for as long as the cluster's patience; then, and where the server refuses,
    `wait` and `snapshot` raise what the thread has met.
    """

    def __init__(
        self, cluster: Cluster, *, queues: bool = False, selector: str = SELECTOR, also: Iterable[Kind[Any]] = ()
    ) -> None:
        self.restarts: Counter[tuple[str, str]] = Counter()  # of watches, by resource: ended, broken, expired
        self.events: Counter[tuple[str, str]] = Counter()  # told by watches, by resource: ADDED, MODIFIED, …
        self._cluster = cluster
        self._changes = threading.Condition()
        self._changed: set[Work] = set()
        self._is_woken = False
        self._failure: BaseException | None = None
        self._is_closed = threading.Event()
        self._seen: dict[str, int] = {}  # by resource: every change up to this version is in the mirror
        self._streams: dict[str, Watch] = {}
        self._threads: list[threading.Thread] = []
        self._jobs: dict[Work, JobView] = {}
        self._pods: dict[Work, tuple[PodView, ...]] = {}
        self._refusals: dict[Work, RefusalView] = {}
        self._early_refusals: dict[Work, RefusalView] = {}  # of Jobs that are not here yet, or are none of ours
        self._workloads: dict[Work, WorkloadView] = {}
        self._unlisted: dict[Work, int] = {}  # and which coming or going of a Job it was last
        self._num_came_or_gone = 0
        self._job_kind = Kind(JOBS, job_view, self._job_changed, selector)
        self._pod_kind = Kind(PODS, pod_view, self._pod_changed, selector, POD_FIELDS)
        self._kinds: list[Kind[Any]] = [
            self._job_kind,
            self._pod_kind,
            Kind(EVENTS, refusal_view, self._refusal_changed, fields=REFUSAL_FIELDS),
            *also,
        ]
        self._has_queues = queues
        if queues:
            self._kinds.append(self._workload_kind())

    def __enter__(self) -> Mirror:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """List all, side by side, and follow from there; returns when the lists are in. Raises ClusterError."""
        for kind in self._kinds:
            self._start_following(kind)
        with self._changes:
            self._changes.wait_for(lambda: len(self._seen) == len(self._kinds) or self._failure is not None)
            failure = self._failure
        if failure is not None:
            self.close()
            raise failure

    def close(self) -> None:
        """End the watches and their threads."""
        self._is_closed.set()
        with self._changes:
            streams = list(self._streams.values())
            self._changes.notify_all()
        for stream in streams:
            stream.close()
        for thread in self._threads:
            thread.join(timeout=5)  # one that waits for a server that is away ends with the process

    def follow_queues(self) -> None:
        """From now on Kueue's workloads too. Raises ClusterError where there are none, or they may not be seen."""
        if self._has_queues:
            return
        kind = self._workload_kind()
        found = self._list(kind)  # here: a refusal is the caller's, and not the end of the mirror
        self._replace(kind, found, 0)
        self._has_queues = True
        self._kinds.append(kind)
        self._start_following(kind)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether something has changed since the last snapshot, as soon as it has; false after `seconds`."""
        with self._changes:
            self._changes.wait_for(
                lambda: self._changed or self._is_woken or self._failure or self._is_closed.is_set(), seconds
            )
            self._raise_failure()
            return bool(self._changed) or self._is_woken

    def wake(self, *works: Work) -> None:
        """Count these as changed, so that `wait` ends: what the store says of them is new, or their time has come."""
        with self._changes:
            self._changed.update(works)
            self._is_woken = True
            self._changes.notify_all()

    def snapshot(self) -> Snapshot:
        """All as it is now; what had changed is told once. Raises what a watch has met for good."""
        with self._changes:
            self._raise_failure()
            changed = frozenset(self._changed)
            self._changed.clear()
            self._is_woken = False
            return Snapshot(
                jobs=self._jobs.copy(),
                pods=self._pods.copy(),
                quota={work: each.message for work, each in self._refusals.items() if self._is_refused(work, each)},
                workloads=self._workloads.copy(),
                unlisted=frozenset(self._unlisted),
                changed=changed,
            )

    def saw(self, job: JobView) -> None:
        """Take in the answer to an own write: the next snapshot has it, whether or not the watch has told it yet."""
        with self._changes:
            self._put_newer(self._job_kind, _Held(job.name, int(job.resource_version), job))

    def list_pods(self) -> None:
        """Ask the API, and no cache, for all pods: only Jobs that come or go from now on leave works `unlisted`."""
        before = self._num_came_or_gone
        listing = self._list(self._pod_kind)
        with self._changes:
            for each in listing.items:
                self._put_newer(self._pod_kind, each)
            self._pods_listed(before)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # Following

    def _workload_kind(self) -> Kind[WorkloadView]:
        return Kind(_workloads(self._cluster), workload_view, self._workload_changed)

    def _start_following(self, kind: Kind[Any]) -> None:
        thread = threading.Thread(target=self._follow, args=(kind,), name=f"mirror-{kind.resource.name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _follow(self, kind: Kind[V]) -> None:
        try:
            if kind.resource == PODS:  # so that they are no older than the Jobs
                with self._changes:
                    self._changes.wait_for(lambda: JOBS.name in self._seen or self._failure or self._is_closed.is_set())
            num_short = 0  # listings in a row whose version the server forgot at once
            while not self._is_closed.is_set():
                before, began = self._num_came_or_gone, time.monotonic()
                self._replace(kind, self._list(kind), before)
                self._watch(kind)
                num_short = num_short + 1 if time.monotonic() - began < SHORT_SECONDS else 0
                self._pause(num_short)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks
            with self._changes:
                if not self._is_closed.is_set():
                    self._failure = error
                self._changes.notify_all()

    def _watch(self, kind: Kind[V]) -> None:
        """Follow the changes until the mirror is closed, or the server has forgotten the version we are at."""
        name = kind.resource.name
        num_short = 0  # watches in a row that ended at once
        while not self._is_closed.is_set():
            began = time.monotonic()
            try:
                with self._open(kind) as stream:
                    why = self._read(kind, stream)
            except Expired:
                self.restarts[name, "expired"] += 1
                return
            if self._is_closed.is_set():
                return
            self.restarts[name, why] += 1
            num_short = num_short + 1 if time.monotonic() - began < SHORT_SECONDS else 0
            self._pause(num_short)

    def _pause(self, num_short: int) -> None:
        """Wait before asking again, where so many answers in a row were over at once; a single one costs nothing."""
        if num_short > 1:
            self._is_closed.wait(random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2 ** min(num_short, 10))))

    def _open(self, kind: Kind[V]) -> Watch:
        stream = self._cluster.watch(
            kind.resource,
            str(self._seen[kind.resource.name]),
            selector=kind.selector,
            fields=kind.fields,
            seconds=random.randint(*WATCH_SECONDS),
        )
        with self._changes:
            self._streams[kind.resource.name] = stream
            if self._is_closed.is_set():  # while it was opened
                stream.close()
        return stream

    def _read(self, kind: Kind[V], stream: Watch) -> str:
        try:
            for event, found in stream:
                self._take(kind, event, found)
        except Unreachable:
            return "broken"
        return "ended"

    def _list(self, kind: Kind[V]) -> Listing[_Held[V]]:
        return self._cluster.list(kind.resource, kind.held, selector=kind.selector, fields=kind.fields)

    def _replace(self, kind: Kind[V], listing: Listing[_Held[V]], before: int) -> None:
        version = int(listing.resource_version)
        names = {each.name for each in listing.items}
        with self._changes:
            for each in listing.items:
                self._put(kind, each)
            for each in [held for held in kind.objects.values() if held.name not in names]:
                if each.version <= version:  # else an own write after the listing
                    self._drop(kind, each)
            self._seen[kind.resource.name] = version
            if kind.resource == PODS:
                self._pods_listed(before)
            self._changes.notify_all()

    def _pods_listed(self, before: int) -> None:
        for work in [work for work, number in self._unlisted.items() if number <= before]:
            del self._unlisted[work]

    def _take(self, kind: Kind[V], event: str, found: Object) -> None:
        name, version = kind.resource.name, int(found["metadata"]["resourceVersion"])
        told = None if event == "BOOKMARK" else kind.held(found)
        with self._changes:
            self.events[name, event] += 1
            self._seen[name] = version
            if told is None:
                return
            held = kind.objects.get(told.name)
            if event != "DELETED":
                self._put(kind, told)
            elif held is not None and held.version <= version:
                self._drop(kind, held)

    def _put(self, kind: Kind[V], told: _Held[V]) -> None:
        held = kind.objects.get(told.name)
        if held is None or held.version < told.version:
            kind.objects[told.name] = told
            kind.changed(held.view if held else None, told.view)
            self._is_woken = self._is_woken or kind.wakes
            self._changes.notify_all()

    def _put_newer(self, kind: Kind[V], told: _Held[V]) -> None:
        """Take in what was learnt beside the watch, unless the watch has told it already, or what came after it."""
        if told.version > self._seen[kind.resource.name]:
            self._put(kind, told)

    def _drop(self, kind: Kind[V], held: _Held[V]) -> None:
        del kind.objects[held.name]
        kind.changed(held.view, None)
        self._is_woken = self._is_woken or kind.wakes
        self._changes.notify_all()

    # What a change means: all under the lock

    def _job_changed(self, old: JobView | None, new: JobView | None) -> None:
        if old is None or new is None or old.uid != new.uid:
            self._num_came_or_gone += 1
            for view in (old, new):
                if view is not None:
                    self._unlisted[view.work] = self._num_came_or_gone
        if new is not None and new.name == job_name(new.work):  # else one that merely carries our labels
            self._jobs[new.work] = new
            self._changed.add(new.work)
            if (refusal := self._early_refusals.pop(new.work, None)) is not None:  # the watches run side by side
                self._refusals[new.work] = refusal
        if new is None and old is not None and self._jobs.get(old.work) is old:
            del self._jobs[old.work]
            self._refusals.pop(old.work, None)
            self._changed.add(old.work)

    def _pod_changed(self, old: PodView | None, new: PodView | None) -> None:
        for work in {pod.work for pod in (old, new) if pod is not None}:
            pods = [pod for pod in self._pods.get(work, ()) if pod is not old]
            if new is not None and new.work == work:
                pods.append(new)
            self._pods[work] = tuple(sorted(pods, key=lambda pod: (pod.created, pod.name)))
            if not pods:
                del self._pods[work]
            self._changed.add(work)

    def _refusal_changed(self, old: RefusalView | None, new: RefusalView | None) -> None:
        if new is None:  # forgotten by the server after an hour, and true of a Job of ours until a pod is there
            if old is not None and self._early_refusals.get(old.work) is old:
                del self._early_refusals[old.work]
            return
        is_ours = new.work in self._jobs
        refusals = self._refusals if is_ours else self._early_refusals
        held = refusals.get(new.work)
        if held is None or held.time <= new.time:
            refusals[new.work] = new
            if is_ours:
                self._changed.add(new.work)

    def _is_refused(self, work: Work, refusal: RefusalView) -> bool:
        job, pods = self._jobs.get(work), self._pods.get(work)
        if job is None or job.uid != refusal.job_uid or job.num_active or job.is_suspended or job.is_finished:
            return False
        return not pods or pods[-1].created <= refusal.time

    def _workload_changed(self, old: WorkloadView | None, new: WorkloadView | None) -> None:
        if new is not None:
            held = self._workloads.get(new.work)
            if held is None or held is old or held.created <= new.created:
                self._workloads[new.work] = new
        elif old is not None and self._workloads.get(old.work) is old:
            del self._workloads[old.work]
        self._changed.update(view.work for view in (old, new) if view is not None and view.work in self._jobs)


def _workloads(cluster: Cluster) -> Resource:
    kueue = cluster.kueue()
    if kueue is None:
        raise ClusterError(
            f"{cluster.place}: got no API group {KUEUE_GROUP}, expected Kueue to be installed",
            hint="install Kueue, or take the queue out of the settings",
        )
    return kueue.workloads
