"""Acts on all grids of a namespace, for ever: `grid serve`.

1. `Controller.run` opens the cluster, follows what is in the namespace, and waits until it holds the namespace's Lease.
2. `_sort` takes up each grid whose ConfigMap stands there and whose own Lease nobody holds, and drops those that left.
3. `Passes.one` acts on all that are taken up, as a watch does on one.
4. A grid that is over gets its tables and rests, until someone touches its ConfigMap.

Nothing but a fault of the program ends it. A server that is away is waited for; a refusal is told, and all begins anew
with the credentials and rights of then; a grid that cannot be read is told, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from controller.acted import ActedGrid
from controller.archive import gather_facts, stored_grid
from controller.cluster import CONFIG_MAPS, ApiRetry, Cluster, ClusterError, Unreachable
from controller.election import DURATION_SECONDS, RENEW_SECONDS, Leadership, new_identity
from controller.health import Link, Log, Rounds
from controller.loops import GATHER_SECONDS, PASS_SECONDS, STORE_AGAIN_SECONDS
from controller.mirror import Mirror
from controller.passes import Passes
from controller.registry import GridEntry, Registry
from controller.search import wanted
from controller.telemetry import ControllerTelemetry
from controller.who_acts import STORE_ANNOTATION
from controller.wording import count_text
from trainer.failure import DataError, GridError, SpecError, StoreError
from trainer.serving import Answer
from trainer.stop import StopSignal
from trainer.store import Store

PATIENCE_SECONDS = 10.0  # for one request of a pass, or to the store: then the round is given up, and there is another
AGAIN_SECONDS = 30.0  # between two looks at a grid that could not be taken up
REST_SECONDS = 600.0  # between two looks at a grid that is over, and that nobody has touched
LATELY_SECONDS = 120.0  # since the store answered last, after which this process is not ready
SILENCE_SECONDS = 10.0  # without an answer of the API to the election, which asks every two, after which it is away
LONGEST_PAUSE = 30.0  # between two openings of the cluster
TICK_SECONDS = 0.5  # in which a word to stop is heard


class Connect(Protocol):
    """Opens the namespace."""

    def __call__(self, *, patience_seconds: float, on_retry: Callable[[ApiRetry], None]) -> Cluster:
        """The cluster, of which nothing is asked yet. Raises ClusterError."""
        ...


@dataclass(slots=True)
class _Post:
    """A grid that stands in the namespace, and what has become of it here."""

    entry: GridEntry
    acted: ActedGrid | None = None  # once it was taken up
    again_at: float = 0.0  # by the monotonic clock: not taken up before
    told: str = ""  # why it is not acted on
    is_on_trial: bool = False  # a pass has met `told`, and none has gone through since
    end: object = None  # what it had come to when it was last told as over


class Controller:
    """Acts on the grids of a namespace that have `store`, while it holds the namespace's Lease.

    `leave_tables` puts a grid's tables into the store. `ready` and `rounds` say how it is, from any thread, and
    `telemetry` is told what it does.
    """

    def __init__(
        self,
        connect: Connect,
        store: Store,
        log: Log,
        *,
        stop: StopSignal,
        leave_tables: Callable[[ActedGrid], None],
        duration_seconds: int = DURATION_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
        telemetry: ControllerTelemetry | None = None,
    ) -> None:
        self.identity = new_identity()
        self.rounds = Rounds()
        self._connect = connect
        self._store = store
        self._log = log
        self._stop = stop
        self._leave_tables = leave_tables
        self._telemetry = telemetry or ControllerTelemetry()
        self._duration, self._renew = duration_seconds, renew_seconds
        self._registry = Registry()
        self._posts: dict[str, _Post] = {}
        log.grids = self._posts
        self._api = Link("the API server", log)
        self._storage = Link("the store", log)
        self._is_listed = False
        self._leads = False
        self._followed: str | None = None  # who leads, as it was told
        self._fault = "no answer"  # the last of a request that was sent again
        self._pass_failed = False
        self._next_pass = 0.0  # by the monotonic clock, as the next
        self._ask_store_at = 0.0

    def ready(self) -> Answer:
        """What the path /readyz is answered with."""
        if self._api.why is not None:
            return Answer(503, f"the API server: {self._api.why}")
        if not self._is_listed:
            return Answer(503, "what is in the namespace is not listed yet")
        if self._storage.why is not None:
            return Answer(503, f"the store: {self._storage.why}")
        if self._storage.answered_at is None:
            return Answer(503, "the store has not answered yet")
        if (silent := time.monotonic() - self._storage.answered_at) > LATELY_SECONDS:
            return Answer(503, f"the store answered last {silent:.0f} s ago")
        return Answer(200, "leads" if self._leads else f"follows {self._followed or 'nobody yet'}")

    def run(self) -> None:
        """Act until told to stop; the Lease is given back then."""
        pause = 1.0
        while self._stop.reason is None:
            self.rounds.begin()
            began = time.monotonic()
            try:
                self._open()
            except ClusterError as error:
                if self._stop.reason is None:
                    self._api.failed(str(error))
            finally:
                self._is_listed = self._leads = False
                self._telemetry.lead(False)
            pause = 1.0 if time.monotonic() - began > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            self._sleep(pause)
        self._log.write("info", self._stop.reason)

    def _open(self) -> None:
        """Act through one opening of the cluster. Raises ClusterError where it refuses, or cannot be opened."""
        with (
            self._connect(patience_seconds=float("inf"), on_retry=self._hear) as followed,
            self._connect(patience_seconds=PATIENCE_SECONDS, on_retry=self._hear) as cluster,
            Leadership(
                cluster,
                identity=self.identity,
                duration_seconds=self._duration,
                renew_seconds=self._renew,
                annotations={STORE_ANNOTATION: self._store.uri},
            ) as leader,
            Mirror(followed, also=self._registry.kinds()) as mirror,
            followed,  # closed first, so that nothing waits for a server that is away
        ):
            self._is_listed = True
            self._telemetry.follow((followed, cluster), mirror)
            passes = Passes(
                cluster,
                mirror,
                self._store,
                [],
                self._log,
                acts=lambda: leader.is_held and self._stop.reason is None,
                on_fault=self._cannot_read,
                names_grids=True,
                is_shown=False,
                telemetry=self._telemetry,
            )
            began = time.monotonic()
            self._pass_failed = False
            while self._stop.reason is None:
                self.rounds.begin()
                is_held = leader.wait(0)
                self._note_answers(max(leader.answered_at, began), leader.answered_at > began)
                if is_held:
                    self._lead(passes)
                else:
                    self._follow(passes, leader.other())

    # The election

    def _lead(self, passes: Passes) -> None:
        """Make a pass if it is time for one, else wait for a change."""
        if not self._leads:
            # a watch that holds a grid's Lease by now is in this list; one that takes it later sees the namespace's
            with self._asking():
                self._ask_store()
                self._registry.look_at_leases(passes.cluster)
                self._leads, self._followed, self._next_pass = True, None, 0.0
                self._telemetry.lead(True)
                self._log.write("info", f"{self.identity} leads in namespace {passes.cluster.namespace}")
            return
        with self._asking():
            self._sort(passes)
            if not passes.grids:  # else passes ask the store
                self._ask_store()
            if time.monotonic() >= self._next_pass:
                self._pass(passes)
        wait = min(TICK_SECONDS, max(0.0, self._next_pass - time.monotonic()))
        if passes.mirror.wait(wait) and not self._is_in_trouble:
            time.sleep(GATHER_SECONDS)
            self._next_pass = 0.0
        elif self._is_in_trouble:
            self._sleep(wait)

    def _follow(self, passes: Passes, leader: str | None) -> None:
        """Act on nothing, and be ready to."""
        if self._leads:
            self._log.write("warning", "the Lease is lost: nothing is done from now on")
            self._telemetry.lead(False)
        self._leads = self._pass_failed = False
        for name in list(passes.grids):
            passes.drop(name)
        with self._asking():
            self._ask_store()
        if leader is not None and leader != self._followed:
            self._log.write("info", f"follows {leader}, which leads in namespace {passes.cluster.namespace}")
            self._followed = leader
        passes.mirror.wait(0)  # raises what it has met
        self._sleep(TICK_SECONDS)

    # Rounds

    def _ask_store(self) -> None:
        """See now and then whether the store answers. Raises StoreError."""
        now = time.monotonic()
        if now >= self._ask_store_at:
            self._ask_store_at = now + STORE_AGAIN_SECONDS
            next(iter(self._store.list("grids/")), None)
            self._storage.answered()
            self._ask_store_at = now + AGAIN_SECONDS

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """A block in which servers are asked: one that is away, or refuses, ends the round and nothing more."""
        try:
            yield
        except StoreError as error:
            self._storage.failed(str(error))
        except ClusterError as error:
            self._api.failed(str(error))
            self._pass_failed = True
        else:
            return
        self._next_pass = time.monotonic() + STORE_AGAIN_SECONDS

    @property
    def _is_in_trouble(self) -> bool:
        return self._storage.why is not None or self._api.why is not None

    def _pass(self, passes: Passes) -> None:
        report = passes.one()
        if passes.grids:
            self._storage.answered()
        self._pass_failed = False
        for post in map(self._posts.__getitem__, passes.grids):
            if post.is_on_trial and not report.left:
                self._announce(post)
        if report.done or report.overtaken:
            self._next_pass = 0.0
            return
        self._next_pass = time.monotonic() + PASS_SECONDS
        for name in list(passes.grids):
            if passes.is_over(name):
                self._end(self._posts[name], passes)

    def _note_answers(self, since: float, has_answered: bool) -> None:
        silent = time.monotonic() - since
        if silent > SILENCE_SECONDS:
            self._api.failed(f"{self._fault}, for {silent:.0f} s")
        elif has_answered and not self._pass_failed:
            self._api.answered()

    def _hear(self, retry: ApiRetry) -> None:
        """Called before a request is sent again, in the thread that waits."""
        if self._stop.reason is not None:
            raise Unreachable(f"{retry.server}: got {retry.error}, and was told to stop")
        self._fault = retry.error
        if not self._is_listed:  # whoever waits for a server that is away does not hang
            self.rounds.begin()

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop.reason is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(TICK_SECONDS, left))

    # Grids

    def _sort(self, passes: Passes) -> None:
        """Let `passes` be about the grids that are to be acted on now."""
        entries = self._registry.entries()
        for name in self._posts.keys() - entries.keys():
            del self._posts[name]
            passes.drop(name)
            self._log.write("info", f"{name}: stands in the namespace no longer, and is left alone")
        for name, entry in entries.items():
            post = self._posts.setdefault(name, _Post(entry))
            if post.entry.version != entry.version:  # someone touched it
                post.entry, post.again_at, post.told, post.is_on_trial = entry, 0.0, "", False
                if name in passes.grids:
                    passes.forget(name)
                self._next_pass = 0.0
            self._place(post, passes)

    def _place(self, post: _Post, passes: Passes) -> None:
        name, is_new = post.entry.name, False
        if (holder := self._registry.holder(name)) is not None:
            passes.drop(name)
            self._leave_alone(post, f"{holder} acts on it until it gives the grid's Lease back, or dies")
            return
        if name not in passes.grids and time.monotonic() < post.again_at:
            return
        try:
            self._check_store(post.entry)
            if post.acted is None:
                is_new, post.acted = True, self._take_up(post.entry)
            elif name not in passes.grids:
                post.acted.look_at_settings()
            self._check(post.acted, passes)
        except Unreachable:
            raise
        except (SpecError, DataError, ClusterError) as error:
            passes.drop(name)
            self._cannot_act(post, error, passes.cluster)
            return
        if not post.is_on_trial and (is_new or post.told):
            self._announce(post)
        if name not in passes.grids:
            passes.take(post.acted)
            self._next_pass = 0.0

    def _announce(self, post: _Post) -> None:
        owner = f", of {post.entry.owner}" if post.entry.owner else ""
        self._log.write("info", f"{post.entry.name}: acts on it{owner}")
        post.told, post.is_on_trial = "", False

    def _check_store(self, entry: GridEntry) -> None:
        """Raise SpecError where the grid is another store's."""
        if self._store.uri not in entry.stores:
            raise SpecError(
                f"grid {entry.name}: got the store {' or '.join(entry.stores) or 'unnamed'}, "
                f"expected {self._store.uri}, whose grids this controller acts on",
                hint="submit it to that store, or act on it by `grid watch`",
            )

    def _take_up(self, entry: GridEntry) -> ActedGrid:
        """The grid as the store has it. Raises SpecError, DataError."""
        self.rounds.begin()  # weights that the store has no hash of are read whole
        grid = stored_grid(self._store, entry.name)
        if grid is None:
            raise SpecError(
                f"grid {entry.name}: got no grid of that name in {self._store.uri}, expected one",
                hint=f"`grid submit` puts it there; `kubectl delete configmap {entry.object_name}` forgets it",
            )
        return ActedGrid(grid, self._store, gather_facts(self._store, wanted(grid)))

    def _check(self, acted: ActedGrid, passes: Passes) -> None:
        """Raise SpecError, ClusterError where the grid's settings are for elsewhere, or ask for what is not there."""
        name, settings = acted.grid.name, acted.settings
        if settings.namespace != passes.cluster.namespace:
            raise SpecError(
                f"grid {name}: its settings: namespace: got {settings.namespace!r}, "
                f"expected {passes.cluster.namespace!r}, in which its ConfigMap stands",
                hint=f"`grid submit {name} --setting namespace={passes.cluster.namespace}`, or delete the ConfigMap",
            )
        if settings.queue is not None:
            passes.mirror.follow_queues()

    def _cannot_read(self, name: str, error: GridError) -> None:
        """Take note of a grid that passes have dropped."""
        post = self._posts[name]
        post.acted, post.is_on_trial = None, True
        self._cannot_act(post, error, None)

    def _cannot_act(self, post: _Post, error: GridError, cluster: Cluster | None) -> None:
        post.again_at = time.monotonic() + AGAIN_SECONDS
        if self._leave_alone(post, str(error), is_fault=True) and cluster is not None:
            with suppress(ClusterError):  # an Event that cannot be written is no reason to do less
                cluster.tell(
                    CONFIG_MAPS,
                    post.entry.object_name,
                    post.entry.uid,
                    reason="LeftAlone",
                    message=str(error),
                    is_warning=True,
                )

    def _leave_alone(self, post: _Post, why: str, *, is_fault: bool = False) -> bool:
        """Whether that had to be told."""
        if post.told == why:
            return False
        post.told = why
        text = f"{post.entry.name}: {why}{'; left alone' if is_fault else ''}"
        self._log.write("error" if is_fault else "info", text)
        return True

    def _end(self, post: _Post, passes: Passes) -> None:
        """Leave the grid's tables, and let it rest."""
        name = post.entry.name
        acted = passes.grids[name]
        known = acted.sight.known
        sets = frozenset(known.failures), frozenset(known.decisions)
        end = (acted.grid.digest, acted.intent, len(known.results), len(known.tests), *sets)
        if end != post.end:
            if acted.intent == "active":
                self._leave_tables(acted)
            num_done = sum(map(known.is_done, acted.sight.work))
            num_failed = sum(map(known.is_failed, acted.sight.work))
            told = "over" if acted.intent == "active" else acted.intent
            of_all = f"{num_done:,} of {count_text(len(acted.sight.work), 'piece')} of work done"
            self._log.write("info", f"{name}: is {told}: {of_all}" + (f", {num_failed:,} failed" if num_failed else ""))
            post.end = end
        passes.drop(name, rests=True)
        post.again_at = time.monotonic() + REST_SECONDS
