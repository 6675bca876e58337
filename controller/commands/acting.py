"""How a command acts on a grid's Jobs, or looks on while another process does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controller.commands.reach import Reach, open_namespace, settings_of, submission_of, touch
from controller.commands.surface import WORKING_SECONDS
from controller.wording import count_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller.grid import Grid
    from controller.jobs import JobView
    from controller.live import View
    from controller.passes import Passes, Report
    from controller.search import Facts
    from controller.settings import Settings
    from controller.standing import Choice, Work
    from controller.telemetry import ControllerTelemetry
    from controller.who_acts import Acting
    from trainer.store import Store


@contextmanager
def joined(
    grid: Grid,
    facts: Facts,
    store: Store,
    settings: Settings,
    context: str | None,
    view: View,
    *,
    choice: Choice | None = None,
    acts: bool = True,
    patience_seconds: float = WORKING_SECONDS,
    telemetry: ControllerTelemetry | None = None,
) -> Iterator[tuple[Passes, Acting]]:
    """What acts on the grid once the cluster has answered, and who may: without `acts` it does whoever else acts."""
    from controller.acted import ActedGrid
    from controller.mirror import Mirror
    from controller.passes import Passes
    from controller.who_acts import Acting

    with (
        open_namespace(settings.namespace, context, patience_seconds=patience_seconds) as cluster,
        Mirror(cluster, queues=settings.queue is not None) as mirror,
    ):
        acted = ActedGrid(grid, store, facts, settings=settings)
        acting = Acting(cluster, grid.name, submission_of(grid, store, settings).stores, view)
        if telemetry is not None:
            telemetry.follow((cluster,), mirror)
        may_act = acting if acts else lambda: True
        passes = Passes(cluster, mirror, store, [acted], view, only=choice, acts=may_act, telemetry=telemetry)
        if not acts:
            yield passes, acting
            return
        with acting:
            yield passes, acting


def hand_over(grid: Grid, settings: Settings, passes: Passes, acting: Acting, *, is_asking: bool = True) -> str | None:
    """Who else acts on the grid, if anyone; a `grid serve` knows from now on that it may.

    Raises ClusterError where one is there, may not be told of the grid, and is asked for something by that.
    """
    refused = touch(passes.cluster, submission_of(grid, passes.store, settings))
    other = acting.other()
    if refused is not None:
        if acting.is_served and is_asking:
            refused.hint = f"{other} acts in {settings.namespace}, on grids whose ConfigMap is there: {refused.hint}"
            raise refused
        passes.view.say("note", f"no `grid serve` will know of it: {refused.message}")
    return other


def act_or_look_on(passes: Passes, name: str, acting: Acting, before: Mapping[Work, JobView]) -> Report:
    """What came of the grid's Jobs by this process, or since `before` by the `grid serve` that acts on it."""
    from controller.loops import look_on, settle
    from controller.passes import Report

    if not acting.is_served:
        report = settle(passes)
        if report.left:
            passes.view.say("note", f"{count_text(report.left, 'step')} left to who acts on {name} by now")
        return report
    look_on(passes, lambda: passes.is_under_way(name))
    report, now = Report(), passes.jobs(name)
    started = [work for work, job in now.items() if not job.is_suspended and not job.is_finished]
    report.done["Create"] = len(now.keys() - before.keys())
    report.done["Resume"] = sum(work not in before or before[work].is_suspended for work in started)
    return report


def kept_settings(grid: Grid, store: Store, reach: Reach) -> Settings:
    """The settings of a grid that was submitted; those that the command line names are kept with it from now on.

    Raises SpecError where it was not.
    """
    from controller.acted import submitted
    from controller.archive import write_settings

    submitted(store, grid.name)
    settings = settings_of(grid.name, store, reach)
    assert settings is not None
    write_settings(store, grid.name, settings)
    return settings
