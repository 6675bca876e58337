"""Trains grids on a cluster, by passes: what is there is seen, decided on, and acted upon; nothing is remembered.

1. `Passes.one` takes what the cluster holds from a mirror, then what the store says of the runs that ended since.
2. Decisions that the store's numbers allow are recorded, by the code that `grid run` has (observe.py).
3. `reconcile.decide` says what to do; `Passes._act` does it, each action under the condition that it names.
4. What was refused because something had changed in between, or failed, is decided anew by the next pass.

How many passes are made is said in loops.py, for `grid submit` and `grid watch`, and in serve.py for `grid serve`, in
which grids come and go by `Passes.take` and `Passes.drop`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from controller.acted import ActedGrid, observation
from controller.actions import (
    Action,
    Create,
    Delete,
    JobAction,
    ListPods,
    NoteTries,
    RecordFailure,
    Resume,
    changes,
    notice,
)
from controller.archive import checkpoint_head, record_failure
from controller.beginnings import Beginnings
from controller.cluster import (
    ENDING_ERRORS,
    JOBS,
    Cluster,
    ClusterError,
    Object,
    ObjectAbsent,
    ObjectChanged,
    ObjectExists,
    QuotaExceeded,
)
from controller.jobs import JobView, job_name, job_view
from controller.live import GridProgress, View
from controller.mirror import Mirror, Snapshot
from controller.progress import RunningMetrics, training_runs
from controller.reconcile import Observation, decide, failed_anew, told
from controller.standing import Choice, State, Work, chosen_work, excess_failures, run_state, startable
from controller.telling import Teller
from trainer.failure import DataError, GridError, SpecError
from trainer.store import Store

if TYPE_CHECKING:
    from controller.telemetry import ControllerTelemetry

RELIST_SECONDS = 30.0  # between two looks at all that the store says: intent, failures cleared, results without a Job
ALL_GRIDS = ""  # which no grid is called
CREATIONS = 500  # at most in one pass, so that the first Jobs start before the last are made

Effect = Literal["done", "overtaken", "left"]  # of an action; or the error it met


@dataclass(slots=True)
class Report:
    """What passes did, by the kind of action."""

    done: Counter[str] = field(default_factory=Counter)
    overtaken: int = 0  # something had changed: the next pass decides anew
    left: int = 0  # begun by whoever acts now, which is not this process
    refused: list[tuple[Action, ClusterError]] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Count what the next pass did as well; what it left and what was refused is as of that one."""
        self.done += other.done
        self.overtaken += other.overtaken
        self.left = other.left
        self.refused = other.refused

    def raise_refusal(self) -> None:
        """Raise what the cluster refused, where it refused something that no waiting will change."""
        if self.refused:
            raise self.refused[0][1]


class Passes:
    """Acts on grids of one namespace. To be used by one thread, with a mirror that has started.

    `acts` is asked before anything is done on the cluster: false only looks. (A decision that the store's numbers allow
    is recorded by whoever sees them first: it is written once, and whoever writes it writes the same.) `only` narrows
    what is made anew, to a part of a grid; with `run` nothing is done but what concerns that run.
    With `on_fault` a grid that cannot be read any more is dropped and told to it, and the others go on; else that is
    raised. With `names_grids` what is told of a run begins with its grid's name. `is_shown` says that `progress` will
    be asked for. `telemetry` is told of each pass.
    """

    def __init__(
        self,
        cluster: Cluster,
        mirror: Mirror,
        store: Store,
        grids: Sequence[ActedGrid],
        view: View,
        *,
        only: Choice | None = None,
        run: str | None = None,
        acts: Callable[[], bool] = lambda: True,
        on_fault: Callable[[str, GridError], None] | None = None,
        names_grids: bool = False,
        is_shown: bool = True,
        telemetry: ControllerTelemetry | None = None,
    ) -> None:
        self.cluster = cluster
        self.mirror = mirror
        self.store = store
        self.grids: dict[str, ActedGrid] = {}
        self.view = view
        self.only = only or Choice()
        self.run = run
        self.acts = acts
        self.seen: Observation | None = None
        self._on_fault = on_fault
        self._is_shown = is_shown
        self._telemetry = telemetry
        self._relist_at: dict[str, float] = {}  # by grid, by the monotonic clock: when all of it is looked at again
        self._is_new: set[str] = set()  # grids that no pass has looked at yet
        self._unread: set[Work] = set()  # whose Job ended, and whose numbers are not read yet
        self._quota: dict[Work, str] = {}  # why their Jobs themselves were refused
        self._refused: set[str] = set()  # grids by whose settings the API made no Job when it was last asked
        self._beginnings = Beginnings(store)
        self._metrics = RunningMetrics(store)
        self._teller = Teller(self.grids, view, self._beginnings, names_grids=names_grids)
        for each in grids:
            self.take(each)

    def take(self, acted: ActedGrid) -> None:
        """Act on that grid too; what it has come to already is not told."""
        name = acted.grid.name
        self.grids[name] = acted
        self._is_new.add(name)
        self.forget(name)

    def drop(self, name: str, *, rests: bool = False) -> None:
        """Leave that grid alone from now on, and its Jobs as they are; one that rests is still shown as it stands."""
        dropped = self.grids.pop(name, None)
        if self._telemetry is not None and not rests:
            self._telemetry.forget(name)
        elif self._telemetry is not None and dropped is not None and self.seen is not None:
            self._telemetry.rest(name, dropped, self.seen)
        self._relist_at.pop(name, None)
        self._is_new.discard(name)

    def one(self) -> Report:
        """Make one pass; what it did. Raises StoreError, and the ClusterErrors that every request would meet."""
        began, report = time.monotonic(), Report()
        num_decided = self._pass(report)
        if self._telemetry is not None:
            assert self.seen is not None
            self._telemetry.passed(
                self.grids,
                self.seen,
                self.store,
                seconds=time.monotonic() - began,
                num_pending=max(0, num_decided - report.done.total()),
                acts=self.acts(),
            )
        return report

    def _pass(self, report: Report) -> int:
        """See, decide and act; how many actions were decided on."""
        snapshot = self.mirror.snapshot()
        self._look_at_store(snapshot)
        seen = self._observe(snapshot)
        self._teller.look(seen)
        actions = self._meant(decide(seen))
        if not self.acts():
            report.left = len(actions)
            return len(actions)
        if self._intent_changed(_grids_that_start(actions)):
            seen = self._observe(snapshot)
            actions = self._meant(decide(seen))
        self._act(actions, report)
        return len(actions)

    def forget(self, name: str | None = None) -> None:
        """Look at all that the store says of that grid, or of all, at the next pass: it was changed."""
        for each in self.grids if name is None else (name,):
            self._relist_at[each] = 0.0

    # Seeing

    def _look_at_store(self, snapshot: Snapshot) -> None:
        """Bring the grids up to date, with what ended before the store is looked at."""
        ended = (snapshot.jobs.get(work) for work in snapshot.changed)
        self._unread |= {job.work for job in ended if job is not None and job.is_finished}
        self._each(self._look_at_grid)
        self._unread = set()

    def _look_at_grid(self, name: str, each: ActedGrid) -> None:
        before = each.sight
        tell = partial(self._teller.decided, name)
        if time.monotonic() >= self._relist_at[name]:
            each.relist(tell)
            self._relist_at[name] = time.monotonic() + RELIST_SECONDS
        elif self._unread:
            wants, known = each.view().wants, before.known
            if about := [work for work in self._unread if work in wants and not known.is_done(work)]:
                each.look(about, tell)
        if name not in self._is_new:
            self._teller.ended(name, before.known, each.sight)
        self._is_new.discard(name)

    def _each(self, look: Callable[[str, ActedGrid], object]) -> None:
        """Do this for every grid; where one cannot be read any more, that is told and the others go on."""
        for name, each in list(self.grids.items()):
            try:
                look(name, each)
            except (SpecError, DataError) as error:
                self._put_down(name, error)

    def _put_down(self, name: str, error: GridError) -> None:
        """Leave that grid alone, and tell why; raises `error` where nobody is there to be told."""
        if self._on_fault is None:
            raise error
        self.drop(name)
        self._on_fault(name, error)

    def _intent_changed(self, grids: Collection[str]) -> bool:
        """Whether someone wants these otherwise by now: what would be started is not to run against a pause."""
        changed = set[str]()

        def look(name: str, each: ActedGrid) -> None:
            if name in grids and each.look_at_intent(partial(self._teller.decided, name)):
                changed.add(name)

        num_grids = len(self.grids)
        self._each(look)
        return bool(changed) or len(self.grids) < num_grids

    def _observe(self, snapshot: Snapshot) -> Observation:
        self._quota = {work: why for work, why in self._quota.items() if work not in snapshot.jobs}
        seen = observation(
            snapshot,
            {name: each.view() for name, each in self.grids.items()},
            [each.sight.known for each in self.grids.values()],
        )
        running = seen.running()
        self._beginnings.look(
            pod for run, pod in running.items() if any(run in g.sight.runs for g in self.grids.values())
        )
        resumed = {
            run: went_on for run, pod in running.items() if (went_on := self._beginnings.resumed(pod)) is not None
        }
        self._metrics.look(training_runs(seen, is_shown=self._is_shown))
        seen = replace(
            seen,
            quota={**seen.quota, **self._quota},
            progress=self._metrics.annotations(),
            resumed=resumed,
            refused=set(self._refused),
        )
        if anew := failed_anew(seen):
            heads = {run: checkpoint_head(self.store, run) for run in anew}
            seen = replace(
                seen,
                checkpoints={run: head.sequence if head else 0 for run, head in heads.items()},
                peaks={run: head.peak_memory_bytes for run, head in heads.items() if head and head.peak_memory_bytes},
            )
        self.seen = seen
        return seen

    def _meant(self, actions: Iterable[Action]) -> list[Action]:
        """The actions without creations that were not asked for, and not more creations than one pass makes."""
        chosen: set[Work] | None = None
        if not self.only.is_all:
            chosen = {work for each in self.grids.values() for work in self._chosen(each)}
        meant: list[Action] = []
        num_creations = 0
        for each in actions:
            if self.run is not None and not isinstance(each, ListPods) and _work(each).run != self.run:
                continue
            if isinstance(each, Create):
                if (chosen is not None and each.work not in chosen) or num_creations >= CREATIONS:
                    continue
                num_creations += 1
            meant.append(each)
        return meant

    # Acting

    def _act(self, actions: Sequence[Action], report: Report) -> None:
        """Do all of it, what concerns one Job in its order."""
        if any(isinstance(each, ListPods) for each in actions):
            self.mirror.list_pods()
            report.done[ListPods.__name__] += 1
        makers = {each.grid for each in actions if isinstance(each, Create)}
        # here, not in sixteen threads; and a wrong setting is told before anything
        self._each(lambda name, each: each.template() if name in makers else None)
        actions = [each for each in actions if not isinstance(each, Create) or each.grid in self.grids]
        groups: dict[str, list[Action]] = {}
        for action in actions:
            if not isinstance(action, ListPods):
                groups.setdefault(job_name(_work(action)), []).append(action)
        if not groups:
            return
        halted: dict[str, ClusterError] = {}  # by grid, and by ALL_GRIDS: why no further Job of it can be made now
        faults: dict[str, GridError] = {}  # by grid: why it cannot be acted on
        for _, outcomes in self.cluster.perform(
            partial(self._do_all, halted), groups.values(), workers=min(len(groups), self.cluster.connections)
        ):
            assert not isinstance(outcomes, ClusterError)
            for action, outcome in outcomes:
                if isinstance(outcome, (SpecError, DataError)):
                    faults |= dict.fromkeys(self._grids_of(action), outcome)
                else:
                    self._take(action, outcome, report)
        for name, error in faults.items():  # now that no thread asks for a grid any more
            self._put_down(name, error)

    def _grids_of(self, action: Action) -> list[str]:
        """The grids that cannot go on without this action."""
        if isinstance(action, Create):
            return [action.grid]
        assert not isinstance(action, ListPods)
        return [name for name, each in self.grids.items() if action.job.work.run in each.sight.runs]

    def _do_all(
        self, halted: dict[str, ClusterError], actions: Sequence[Action]
    ) -> list[tuple[Action, Effect | ClusterError | SpecError | DataError]]:
        """What came of each; after the first that was not done the others are left for the next pass."""
        outcomes: list[tuple[Action, Effect | ClusterError | SpecError | DataError]] = []
        for action in actions:
            if not self.acts():  # no longer
                outcomes.append((action, "left"))
                break
            if isinstance(action, Create) and (why := halted.get(ALL_GRIDS) or halted.get(action.grid)) is not None:
                outcomes.append((action, why))
                continue
            outcome: Effect | ClusterError | SpecError | DataError
            try:
                outcome = "done" if self._do(action) else "overtaken"
            except (SpecError, DataError) as error:  # of one grid: the others go on
                outcome = error
            except (ObjectChanged, ObjectAbsent, ObjectExists) as error:
                is_lost = isinstance(error, ObjectAbsent) and isinstance(action, Create)  # the namespace is not there
                outcome = error if is_lost else "overtaken"
            except ClusterError as error:
                if isinstance(error, ENDING_ERRORS):
                    raise
                outcome = error
            if isinstance(action, Create) and isinstance(outcome, ClusterError):
                # a quota, or a namespace that ends, meets all grids; a template that is refused, all Jobs made by it
                of_all = isinstance(outcome, (QuotaExceeded, ObjectAbsent))
                halted[ALL_GRIDS if of_all else action.grid] = outcome
            outcomes.append((action, outcome))
            if outcome != "done":
                break
        return outcomes

    def _do(self, action: Action) -> bool:
        """Do it; false where something has changed. In whatever thread; raises GridError."""
        match action:
            case Create(grid=grid):
                self._saw(self.cluster.create(JOBS, self.grids[grid].job(action)))
                return True
            case ListPods():
                return True
            case RecordFailure(job=job, failure=failure):
                now = job_view(self.cluster.get(JOBS, job.name))
                if now is None or (now.uid, now.resource_version) != (job.uid, job.resource_version):
                    return False
                record_failure(self.store, failure)
            case Delete(job=job):
                self._saw(self.cluster.delete(JOBS, job.name, uid=job.uid, resource_version=job.resource_version))
            case _:
                patch = changes(action)
                assert patch is not None
                job = action.job
                version = job.resource_version
                self._saw(self.cluster.patch(JOBS, job.name, patch, uid=job.uid, resource_version=version))
        if (said := notice(action)) is not None:
            with suppress(ClusterError):  # an Event that cannot be written is no reason to do less
                self.cluster.tell(
                    JOBS,
                    action.job.name,
                    action.job.uid,
                    reason=said.reason,
                    message=said.message,
                    is_warning=said.kind == "Warning",
                )
        return True

    def _saw(self, answer: Object) -> None:
        """Let the mirror know what a write came to: the next decision is never older than that."""
        if answer.get("kind") == JOBS.kind and (view := job_view(answer)) is not None:
            self.mirror.saw(view)

    def _take(self, action: Action, outcome: Effect | ClusterError, report: Report) -> None:
        """Count and tell what came of an action."""
        if outcome == "overtaken":
            report.overtaken += 1
        elif outcome == "left":
            report.left += 1
        elif isinstance(outcome, QuotaExceeded) and isinstance(action, Create):
            self._quota[action.work] = outcome.message
        elif isinstance(outcome, ClusterError):
            report.refused.append((action, outcome))
            self._teller.refused(action, outcome)
            if isinstance(action, Create):
                self._refused.add(action.grid)
        else:
            report.done[type(action).__name__] += 1
            self._teller.taken(action)
            if isinstance(action, Create):
                self._quota.pop(action.work, None)
                self._refused.discard(action.grid)
            elif isinstance(action, RecordFailure):
                self._unread.add(action.job.work)
                self.mirror.wake(action.job.work)
            elif isinstance(action, NoteTries):
                self._teller.tried_again(action.job.work, action.told)

    @property
    def told_failed(self) -> set[str]:
        """The runs that were told to have failed."""
        return self._teller.told_failed

    def progress(self, name: str) -> GridProgress:
        """How far the chosen part of the grid is."""
        each = self.grids[name]
        return self._metrics.grid_progress(each, self._chosen(each), self.seen, self._teller.standing)

    def _chosen(self, each: ActedGrid) -> tuple[Work, ...]:
        """What of the grid is asked for, as far as it is known."""
        return each.sight.work if self.only.is_all else chosen_work(each.sight.expansion, self.only)

    def states(self, name: str, choice: Choice | None = None) -> dict[Work, tuple[State, str | None]]:
        """How each known piece of the grid's work stood at the last pass, and why it is not done."""
        each, seen = self.grids[name], self.seen
        assert seen is not None
        texts = told(seen)
        work = self._chosen(each) if choice is None else chosen_work(each.sight.expansion, choice)
        return {one: run_state(one, each.sight.known, texts) for one in work}

    def jobs(self, name: str) -> dict[Work, JobView]:
        """The grid's Jobs, as of the last pass."""
        assert self.seen is not None
        wants = self.grids[name].view().wants
        return {work: job for work, job in self.seen.jobs.items() if work in wants}

    def labelled(self, name: str) -> list[JobView]:
        """The Jobs that say that the grid wants them, as of the last pass."""
        assert self.seen is not None
        return [job for job in self.seen.jobs.values() if name in job.grids]

    def is_under_way(self, name: str) -> bool:
        """Whether all of the chosen part that can be started has a Job, and one of them may run."""
        seen, todo = self.seen, startable(self._chosen(self.grids[name]), self.grids[name].sight.known)
        assert seen is not None
        jobs = [seen.jobs.get(work) for work in todo]
        return not todo or (None not in jobs and any(job is not None and not job.is_suspended for job in jobs))

    def is_marked(self, name: str) -> bool:
        """Whether each Job that failed says so: only then is a failure that is gone from the store a retry."""
        jobs = self.jobs(name).values()
        return not any(job.failed_since is not None and job.failure is None for job in jobs)

    def is_over(self, name: str) -> bool:
        """Whether nothing of the chosen part is at work, and nothing of it is left to start."""
        each, seen = self.grids[name], self.seen
        assert seen is not None
        work = self._chosen(each)
        if any(self._is_at_work(job) for job in map(seen.jobs.get, work) if job is not None):
            return False
        if each.intent != "active" or self.is_halted(name):
            return True
        return not startable(work, each.sight.known)

    def is_halted(self, name: str) -> bool:
        """Whether so much of the grid failed that nothing new of it starts."""
        each = self.grids[name]
        return excess_failures(each.sight.work, each.sight.known.is_failed, each.view().max_failed) > 0

    def _is_at_work(self, job: JobView) -> bool:
        return job.is_deleting or (not job.is_finished and (not job.is_suspended or job.num_active > 0))


def _grids_that_start(actions: Iterable[Action]) -> set[str]:
    """The grids for which these make or start something."""
    found: set[str] = set()
    for each in actions:
        if isinstance(each, Create):
            found.update(each.grids)
        elif isinstance(each, Resume):
            found.update(each.job.grids)
    return found


def _work(action: Create | JobAction) -> Work:
    return action.work if isinstance(action, Create) else action.job.work
