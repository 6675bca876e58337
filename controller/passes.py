"""Trains grids on a cluster, by passes: what is there is seen, decided on, and acted upon; nothing is remembered.

1. `Passes.one` takes what the cluster holds from a mirror, then what the store says of the runs that ended since.
2. Decisions that the store's numbers allow are recorded, by the code that `grid run` has (observe.py).
3. `reconcile.decide` says what to do; `Passes._act` does it, each action under the condition that it names.
4. What was refused because something had changed in between, or failed, is decided anew by the next pass.

`settle` makes passes until nothing is left to do now: `grid submit`. `watch` goes on until the grid is done. Grids come
and go by `Passes.take` and `Passes.drop`: `grid serve`, in serve.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Literal

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
from controller.archive import (
    checkpoint_head,
    gather_facts,
    read_intent,
    record_failure,
    stored_grid,
    stored_settings,
)
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
from controller.grid import Grid
from controller.jobs import JobView, PodView, job_name, job_view
from controller.knowledge import read_metrics, read_results, runs_with_results
from controller.live import GridProgress, RunProgress, View
from controller.manifest import Footprint, JobTemplate, first_stages
from controller.mirror import Mirror, Snapshot
from controller.observe import Sight, expanded, observe
from controller.plan import make_plan, runs_alike, speeds_of
from controller.reconcile import GridView, Kept, Observation, decide, failed_anew, told
from controller.search import Decision, Expansion, Facts, wanted
from controller.settings import Settings
from controller.standing import (
    Choice,
    Held,
    Known,
    State,
    Work,
    chosen_work,
    excess_failures,
    failure_text,
    numbers_text,
    run_state,
    startable,
    told_held,
)
from trainer.failure import DataError, GridError, SpecError, StoreError
from trainer.identity import write_spec
from trainer.result import EpochMetrics
from trainer.store import STORE_PATIENCE_SECONDS, Store

RELIST_SECONDS = 30.0  # between two looks at all that the store says: intent, failures cleared, results without a Job
PASS_SECONDS = 5.0  # between two passes where nothing changes: deadlines and delays come by themselves
GATHER_SECONDS = 0.1  # that changes are gathered for one pass
TICK_SECONDS = 0.5  # between two drawings of the view
STORE_AGAIN_SECONDS = 5.0  # before a store that did not answer is asked again
PROGRESS_SECONDS = 10.0  # between two looks at the metrics of the runs at work
FEW_RUNNING = 16  # runs at work, up to which that is little to read
CREATIONS = 500  # at most in one pass, so that the first Jobs start before the last are made
LOOK_ON_SECONDS = 6.0  # that a command waits to see what another process makes of its word
SETTLE_SECONDS = 10.0  # that `settle` waits for what is on its way: a Job's deletion, a change that came between
TOLD_WAITS = ("image", "configuration", "unschedulable", "quota", "inadmissible")  # that are worth a line


# What the cluster is told by


def job_template(
    grid: Grid, expansion: Expansion, facts: Facts, store: Store, settings: Settings, choice: Choice | None = None
) -> JobTemplate:
    """What makes the grid's Jobs; pods ask for what earlier results say that they need. Raises SpecError."""
    finished = runs_with_results(store)
    speeds = speeds_of(read_results(store, runs_alike(expansion, finished)).values())
    planned = make_plan(grid, expansion, facts, set(finished), speeds, choice or Choice())
    return JobTemplate(settings, store.uri, Footprint.of(planned.resources))


def grid_view(
    grid: Grid,
    expansion: Expansion,
    intent: Literal["active", "paused", "cancelled"],
    settings: Settings,
    held: Mapping[str, Held] | None = None,
) -> GridView:
    """The grid as decisions on it are made."""
    return GridView(
        name=grid.name,
        intent=intent,
        wants=first_stages(expansion),
        parallelism=settings.parallelism if settings.queue is None else None,
        queue=None if settings.queue is None else settings.queue.name,
        max_failed=grid.max_failed if settings.max_failed is None else settings.max_failed,
        max_tries=settings.max_tries,
        pending_seconds=settings.pending_deadline,
        ttl_seconds=settings.ttl,
        progress_seconds=settings.progress.every if settings.progress.annotations else None,
        held=held or {},
        kept=kept_runs(expansion),
    )


def kept_runs(expansion: Expansion) -> dict[str, list[Kept]]:
    """The decisions that kept each run, by run; a test stage's are choices of what to test."""
    kept: dict[str, list[Kept]] = {}
    for stage in expansion.stages:
        decision = stage.decision
        if decision is None or stage.is_test:
            continue
        how = "kept as best of" if decision.metric is not None else "kept by choice in"
        said = Kept(
            stage.name,
            decision.time.isoformat(timespec="seconds"),
            f"{how} stage {stage.name} of grid {expansion.grid}: {decision.because}",
        )
        for experiment in stage.experiments:
            if experiment.name in decision.kept:
                for run in experiment.runs:
                    kept.setdefault(run.id, []).append(said)
    return kept


def observation(snapshot: Snapshot, grids: Mapping[str, GridView], known: Collection[Known]) -> Observation:
    """All that a decision on `grids` rests on, but for what the store says of failed attempts and of progress."""
    only = next(iter(known)) if len(known) == 1 else None
    return Observation(
        now=datetime.now(UTC),
        grids=grids,
        jobs=snapshot.jobs,
        pods=snapshot.pods,
        unlisted=snapshot.unlisted,
        results=only.results if only else {run for each in known for run in each.results},
        tests=only.tests if only else {run for each in known for run in each.tests},
        failures=only.failures if only else {run: one for each in known for run, one in each.failures.items()},
        quota=snapshot.quota,
        workloads=snapshot.workloads,
    )


class ActedGrid:
    """A grid that is acted on: its text, intent and settings as the store has them, and what it comes to.

    `settings` are those of its submission; where none are given they are the store's. Raises SpecError on a grid that
    was never submitted.
    """

    def __init__(self, grid: Grid, store: Store, facts: Facts, *, settings: Settings | None = None) -> None:
        self.grid = grid
        self.facts = facts
        self.store = store
        self.settings = settings or submitted(store, grid.name)
        self.intent: Literal["active", "paused", "cancelled"] = "active"
        self.sight = expanded(grid, {}, facts)  # the first pass looks, after the Jobs
        self._view: GridView | None = None
        self._viewed = self.sight.expansion, self.sight.known.held  # what the view is of
        self._template: JobTemplate | None = None

    def relist(self, tell: Callable[[Decision], None]) -> bool:
        """Look at all that the store says; whether grid, intent or settings are others than before."""
        before = self.grid
        changed = self.look_at_intent(tell)
        if self.grid is before:  # else all of it was looked at
            self.sight = observe(self.grid, self.store, self.facts, self.sight, tell=tell)
        return changed

    def look_at_intent(self, tell: Callable[[Decision], None]) -> bool:
        """Read intent, settings and, where it is another one, the grid's text; whether any of it has changed.

        With another text all that it comes to is looked at, since it may want runs that nothing is known of yet.
        """
        before = self.grid, self.intent, self.settings, self.sight.known.held
        said = read_intent(self.store, self.grid.name)
        self.intent = "active" if said is None else said.intent
        held = {} if said is None else said.runs
        self.sight = replace(self.sight, known=replace(self.sight.known, held=held))
        self.look_at_settings()
        if said is not None and said.digest != self.grid.digest:
            stored = stored_grid(self.store, self.grid.name)
            if stored is not None and stored.digest != self.grid.digest:
                facts = gather_facts(self.store, wanted(stored))
                self.sight = observe(stored, self.store, facts, self.sight, tell=tell)
                self.grid, self.facts = stored, facts
        if before == (self.grid, self.intent, self.settings, held):
            return False
        self._view = self._template = None
        return True

    def look_at_settings(self) -> None:
        """Read the settings. Raises SpecError."""
        settings = stored_settings(self.store, self.grid.name) or self.settings
        if settings != self.settings:
            self.settings, self._view, self._template = settings, None, None

    def look(self, works: Collection[Work], tell: Callable[[Decision], None]) -> None:
        """Look at what the store says of these."""
        self.sight = observe(self.grid, self.store, self.facts, self.sight, about=works, tell=tell)

    def view(self) -> GridView:
        """The grid as decisions on it are made; the same object until something of it has changed."""
        expansion, held = self.sight.expansion, self.sight.known.held
        if self._view is None or self._viewed[0] is not expansion or self._viewed[1] != held:
            self._view = grid_view(self.grid, expansion, self.intent, self.settings, held)
            self._viewed = expansion, held
        return self._view

    def job(self, create: Create) -> Object:
        """The Job to be made."""
        run = self.sight.runs[create.work.run]
        return self.template().job(create.work, run.seed, write_spec(run.spec), create.grids, suspended=True)

    def template(self) -> JobTemplate:
        """What makes its Jobs. Raises SpecError where pods could not reach the store by these settings."""
        if self._template is None:
            self._template = job_template(self.grid, self.sight.expansion, self.facts, self.store, self.settings)
        return self._template


def submitted(store: Store, grid: str) -> Settings:
    """The settings that the grid was submitted with last. Raises SpecError where it never was."""
    settings = stored_settings(store, grid)
    if settings is None:
        raise SpecError(
            f"grid {grid}: {store.uri} has no settings of it, expected a grid that was submitted to a cluster",
            hint=f"`grid submit {grid}` submits it",
        )
    return settings


# Passes

Outcome = Literal["done", "overtaken", "left"]


@dataclass(slots=True)
class Report:
    """What passes did, by the kind of action."""

    done: Counter[str] = field(default_factory=Counter)
    overtaken: int = 0  # something had changed: the next pass decides anew
    left: int = 0  # begun by whoever acts now, which is not this process
    refused: list[tuple[Action, ClusterError]] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Count what another pass did as well."""
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

    `acts` is asked before anything is done: false only looks. `only` narrows what is made anew, to a part of a grid;
    with `run` nothing is done but what concerns that run.
    With `on_fault` a grid that cannot be read any more is dropped and told to it, and the others go on; else that is
    raised. With `names_grids` what is told of a run begins with its grid's name.
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
        self._names_grids = names_grids
        self._relist_at: dict[str, float] = {}  # by grid, by the monotonic clock: when all of it is looked at again
        self._is_new: set[str] = set()  # grids that no pass has looked at yet
        self._unread: set[Work] = set()  # whose Job ended, and whose numbers are not read yet
        self._quota: dict[Work, str] = {}  # why their Jobs themselves were refused
        self._running: dict[str, PodView] = {}  # by run: the pod that was told to have started
        self._told_waits: dict[Work, str] = {}
        self._told_at = float("-inf")  # by the monotonic clock: when waits were told last
        self._told_errors: set[tuple[type[Action], type[ClusterError]]] = set()
        self.told_failed: set[str] = set()  # runs
        self._metrics: dict[str, list[EpochMetrics]] = {}  # of runs at work
        self._metrics_at = 0.0
        self._beginnings = Beginnings(store)
        self._told_held: dict[str, str | None] = {}  # by grid
        for each in grids:
            self.take(each)

    def take(self, acted: ActedGrid) -> None:
        """Act on that grid too; what it has come to already is not told."""
        name = acted.grid.name
        self.grids[name] = acted
        self._is_new.add(name)
        self.forget(name)

    def drop(self, name: str) -> None:
        """Leave that grid alone from now on, and its Jobs as they are."""
        self.grids.pop(name, None)
        self._relist_at.pop(name, None)
        self._is_new.discard(name)

    def one(self) -> Report:
        """Make one pass; what it did. Raises StoreError, and the ClusterErrors that every request would meet."""
        snapshot = self.mirror.snapshot()
        self._look_at_store(snapshot)
        seen = self._observe(snapshot)
        self._tell(seen)
        report = Report()
        actions = self._meant(decide(seen))
        if not self.acts():
            report.left = len(actions)
            return report
        if self._intent_changed(_grids_that_start(actions)):
            seen = self._observe(snapshot)
            actions = self._meant(decide(seen))
        self._act(actions, report)
        return report

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
        tell = partial(self._tell_decision, name)
        if time.monotonic() >= self._relist_at[name]:
            each.relist(tell)
            self._relist_at[name] = time.monotonic() + RELIST_SECONDS
        elif self._unread:
            wants, known = each.view().wants, before.known
            if about := [work for work in self._unread if work in wants and not known.is_done(work)]:
                each.look(about, tell)
        if name not in self._is_new:
            self._tell_ends(name, before.known, each.sight)
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
            if name in grids and each.look_at_intent(partial(self._tell_decision, name)):
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
        running = _running(seen)
        self._beginnings.look(
            pod for run, pod in running.items() if any(run in g.sight.runs for g in self.grids.values())
        )
        resumed = {
            run: went_on for run, pod in running.items() if (went_on := self._beginnings.resumed(pod)) is not None
        }
        seen = replace(seen, quota={**seen.quota, **self._quota}, progress=self._progress_values(seen), resumed=resumed)
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
        halted: list[ClusterError] = []  # why no further Job can be made now
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
        self, halted: list[ClusterError], actions: Sequence[Action]
    ) -> list[tuple[Action, Outcome | ClusterError | SpecError | DataError]]:
        """What came of each; after the first that was not done the others are left for the next pass."""
        outcomes: list[tuple[Action, Outcome | ClusterError | SpecError | DataError]] = []
        for action in actions:
            if not self.acts():  # no longer
                outcomes.append((action, "left"))
                break
            if isinstance(action, Create) and halted:
                outcomes.append((action, halted[0]))
                continue
            outcome: Outcome | ClusterError | SpecError | DataError
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
                halted.append(outcome)  # it would meet the others as well
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

    def _take(self, action: Action, outcome: Outcome | ClusterError, report: Report) -> None:
        """Count and tell what came of an action."""
        if outcome == "overtaken":
            report.overtaken += 1
        elif outcome == "left":
            report.left += 1
        elif isinstance(outcome, QuotaExceeded) and isinstance(action, Create):
            self._quota[action.work] = outcome.message
        elif isinstance(outcome, ClusterError):
            report.refused.append((action, outcome))
            kind = type(action), type(outcome)
            if kind not in self._told_errors:  # of a thousand Jobs that are refused alike one speaks for all
                self._told_errors.add(kind)
                hint = f"\nhint: {outcome.hint}" if outcome.hint else ""
                self.view.say("failed", f"{outcome.message}{hint}")
        else:
            report.done[type(action).__name__] += 1
            self._told_errors = {kind for kind in self._told_errors if kind[0] is not type(action)}
            if isinstance(action, Create):
                self._quota.pop(action.work, None)
            elif isinstance(action, RecordFailure):
                self._unread.add(action.job.work)
                self.mirror.wake(action.job.work)
            elif isinstance(action, NoteTries):
                self.view.say("again", f"{self.label(action.job.work)}: {action.told}")

    # Telling

    def label(self, work: Work) -> str:
        """The work as people know it."""
        for name, each in self.grids.items():
            if work.run in each.sight.runs:
                return self._of(name) + each.sight.label(work)
        return job_name(work)

    def _of(self, grid: str) -> str:
        return f"{grid}: " if self._names_grids else ""

    def _tell_decision(self, grid: str, decision: Decision) -> None:
        kept = ", ".join(decision.kept)
        self.view.say("kept", f"{self._of(grid)}{decision.stage}: {kept}: {decision.because}")

    def _tell_ends(self, name: str, before: Known, sight: Sight) -> None:
        """Tell of the work that has ended since `before`."""
        known = sight.known
        if (len(known.results), len(known.tests), known.failures) == (
            len(before.results),
            len(before.tests),
            before.failures,
        ):
            return
        for work in sight.work:
            if known.is_done(work) and not before.is_done(work):
                self.view.say("done", f"{self._of(name)}{sight.label(work)}: {numbers_text(work, known)}")
            elif known.is_failed(work) and not before.is_failed(work):
                self.told_failed.add(work.run)
                failure = failure_text(known.failures[work.run], with_hint=True)
                self.view.say("failed", f"{self._of(name)}{sight.label(work)}: {failure}")

    def _tell(self, seen: Observation) -> None:
        """Tell of pods that began, and of work that cannot."""
        running = _running(seen)
        for run, pod in running.items():
            if not self._beginnings.is_known(pod):
                continue
            before = self._running.get(run)
            if (before is None or before.uid != pod.uid) and any(
                run in each.sight.runs for each in self.grids.values()
            ):
                self._tell_beginning(pod)
            self._running[run] = pod
        self._running = {run: pod for run, pod in self._running.items() if run in running}
        if time.monotonic() >= self._told_at + PASS_SECONDS:
            self._tell_waits(seen)
            self._told_at = time.monotonic()

    def _tell_waits(self, seen: Observation) -> None:
        waits: dict[str, list[Work]] = {}
        texts = told(seen)
        for each in self.grids.values():
            for work in each.view().wants:
                text = texts.get(work.run, "")
                kind = text.partition(":")[0]
                if kind.startswith(TOLD_WAITS) and not each.sight.known.is_done(work):
                    if self._told_waits.get(work) != kind:
                        waits.setdefault(text, []).append(work)
                    self._told_waits[work] = kind
                else:
                    self._told_waits.pop(work, None)
        for name, each in self.grids.items():
            held = told_held(each.sight.work, each.sight.known) if each.intent == "active" else None
            if held is not None and held != self._told_held.get(name):
                self.view.say("waits", f"{self._of(name)}{held}")
            self._told_held[name] = held
        for text, works in waits.items():
            more = f" and {len(works) - 1} more" if len(works) > 1 else ""
            self.view.say("waits", f"{self.label(works[0])}{more}: {text}")

    def _tell_beginning(self, pod: PodView) -> None:
        where = f"{self.label(pod.work)} ({pod.work.run}) on {pod.node}"
        resumed = self._beginnings.resumed(pod)
        if resumed is None:
            self.view.say("start", where)
        else:
            self.view.say("resume", f"{where} from epoch {resumed.epoch}")

    def _progress_values(self, seen: Observation) -> dict[str, dict[str, str]]:
        """What to show of running runs on their Jobs, by run."""
        self._read_metrics(seen)
        return {
            run: {
                "epoch": str(rows[-1].epoch),
                "validation_accuracy": f"{max(row.validation_accuracy for row in rows):.4f}",
                "images_per_second": f"{rows[-1].images_per_second:.1f}",
            }
            for run, rows in self._metrics.items()
            if rows
        }

    def _read_metrics(self, seen: Observation) -> None:
        at_work = [pod.work for pods in seen.pods.values() for pod in pods if pod.phase == "Running"]
        runs = {work.run for work in at_work if not work.is_test and any(work in g.wants for g in seen.grids.values())}
        self._metrics = {run: rows for run, rows in self._metrics.items() if run in runs}
        now = time.monotonic()
        if now < self._metrics_at or not runs:
            return
        self._metrics_at = now + PROGRESS_SECONDS * (1 if len(runs) <= FEW_RUNNING else 6)
        for run in runs:
            with suppress(StoreError, DataError):  # what is shown is not worth an end
                self._metrics[run] = read_metrics(self.store, run)

    def progress(self, name: str) -> GridProgress:
        """How far the chosen part of the grid is."""
        each, seen = self.grids[name], self.seen
        known = each.sight.known
        work = self._chosen(each)
        num_done = sum(map(known.is_done, work))
        num_failed = sum(map(known.is_failed, work))
        pods = {pod.work: pod for of_work in (seen.pods.values() if seen else ()) for pod in of_work}
        at_work = [(w, pods[w]) for w in work if w in pods and pods[w].phase == "Running" and not known.is_done(w)]
        return GridProgress(
            grid=name,
            num_done=num_done,
            num_waiting=max(0, len(work) - num_done - num_failed - len(at_work)),
            num_failed=num_failed,
            running=tuple(self._run_progress(each, work, pod) for work, pod in at_work),
            later_stages=tuple(stage.name for stage in each.sight.expansion.stages if stage.waiting),
        )

    def _chosen(self, each: ActedGrid) -> tuple[Work, ...]:
        """What of the grid is asked for, as far as it is known."""
        return each.sight.work if self.only.is_all else chosen_work(each.sight.expansion, self.only)

    def _run_progress(self, each: ActedGrid, work: Work, pod: PodView) -> RunProgress:
        rows = self._metrics.get(work.run, [])
        newest = rows[-1] if rows else None
        doing: Literal["testing", "training", "starting"] = "training" if rows else "starting"
        return RunProgress(
            label=each.sight.label(work),
            doing="stopping" if pod.is_deleting else "testing" if work.is_test else doing,
            num_epochs=each.sight.runs[work.run].hyperparameters.epochs,
            epochs_done=newest.epoch if newest else 0,
            train_loss=newest.train_loss if newest else None,
            train_accuracy=newest.train_accuracy if newest else None,
            validation_loss=newest.validation_loss if newest else None,
            validation_accuracy=newest.validation_accuracy if newest else None,
            images_per_second=newest.images_per_second if newest else None,
        )

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


def _running(seen: Observation) -> dict[str, PodView]:
    """The pods that run, by run."""
    return {pod.work.run: pod for pods in seen.pods.values() for pod in pods if pod.phase == "Running"}


# How many passes


def settle(passes: Passes, *, seconds: float = SETTLE_SECONDS) -> Report:
    """Make passes until nothing is left that can be done now; what they did.

    What is on its way, such as a Job that is being deleted, is waited for `seconds`, and so is the right to act where
    it was lost meanwhile: what is `left` then is another's. Raises what `Passes.one` raises.
    """
    total = Report()
    until = time.monotonic() + seconds
    while True:
        report = passes.one()
        total.add(report)
        if report.done:
            until = max(until, time.monotonic() + seconds)
        elif time.monotonic() >= until or not (report.overtaken or report.left or _is_on_its_way(passes)):
            return total
        else:
            passes.mirror.wait(0.2)


def look_on(passes: Passes, is_enough: Callable[[], bool], *, seconds: float = LOOK_ON_SECONDS) -> None:
    """Make passes while another process acts, until it `is_enough`, for `seconds` at most."""
    until = time.monotonic() + seconds
    passes.one()
    while not is_enough() and time.monotonic() < until:
        passes.mirror.wait(0.2)
        passes.one()


def _is_on_its_way(passes: Passes) -> bool:
    """Whether a Job that is wanted is being deleted."""
    seen = passes.seen
    assert seen is not None
    known = [each.sight.known for each in passes.grids.values()]
    return any(
        job.is_deleting
        and any(job.work in grid.wants and grid.intent_for(job.work.run) == "active" for grid in seen.grids.values())
        and not any(each.is_done(job.work) or each.is_failed(job.work) for each in known)
        for job in seen.jobs.values()
    )


def watch(passes: Passes, name: str, *, patience_seconds: float = STORE_PATIENCE_SECONDS) -> None:
    """Make passes until the grid is over, or is not to be trained any more. Raises StoreError, ClusterError."""
    next_pass = 0.0
    silent_since: float | None = None
    while True:
        now = time.monotonic()
        if now >= next_pass:
            try:
                report = passes.one()
            except StoreError as error:
                silent_since = silent_since or now
                if now - silent_since > patience_seconds:
                    raise
                passes.view.say("waits", f"the store does not answer, asking again: {error.message}")
                next_pass = time.monotonic() + STORE_AGAIN_SECONDS
            else:
                silent_since = None
                if report.done or report.overtaken:
                    next_pass = 0.0
                elif passes.is_over(name):
                    passes.view.show(passes.progress(name))
                    return
                else:
                    next_pass = time.monotonic() + PASS_SECONDS
        if passes.seen is not None:
            passes.view.show(passes.progress(name))
        wait = min(TICK_SECONDS, max(0.0, next_pass - time.monotonic()))
        if passes.mirror.wait(wait) and silent_since is None:
            time.sleep(GATHER_SECONDS)
            next_pass = 0.0
