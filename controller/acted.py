"""A grid that is acted on: its text, intent and settings as the store has them, and what decisions on it rest on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from controller.actions import Create
from controller.archive import gather_facts, read_intent, stored_grid, stored_settings
from controller.cluster import Object
from controller.grid import Grid
from controller.knowledge import read_results, runs_with_results
from controller.manifest import Footprint, JobTemplate, first_stages
from controller.mirror import Snapshot
from controller.observe import expanded, observe
from controller.plan import make_plan, runs_alike, speeds_of
from controller.reconcile import GridView, Kept, Observation
from controller.search import Decision, Expansion, Facts, wanted
from controller.settings import Settings
from controller.standing import Choice, Held, Known, Work
from trainer.failure import SpecError
from trainer.identity import write_spec
from trainer.store import Store


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
        known=known,
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
        self._template_of = self.sight.expansion

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
        if self._template is None or self._template_of is not self.sight.expansion:  # a new stage may need more
            self._template_of = self.sight.expansion
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
