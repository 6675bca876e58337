"""`grid submit`, `watch` and `retry`: a grid's Jobs made, gone on with to the end, and made anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from controller import interrupts
from controller.commands.acting import act_or_look_on, hand_over, joined, kept_settings
from controller.commands.asked import Asked, asked_options
from controller.commands.reach import Reach, cluster_options, submitted_settings
from controller.commands.runs import count_states, counted_work, counts_of, tell_outcome
from controller.commands.surface import (
    choice_of,
    choice_options,
    grid_facts,
    grid_options,
    json_option,
    named_grid,
    note,
    print_json,
    stored_or_named_grid,
    tell,
    the_store,
)
from controller.wording import count_text

if TYPE_CHECKING:
    from controller.grid import Grid
    from controller.passes import Passes, Report
    from controller.search import Expansion, Facts
    from controller.settings import Settings
    from controller.standing import Choice
    from controller.telemetry import ControllerTelemetry
    from trainer.failure import Failure
    from trainer.store import Store


@click.command()
@grid_options
@choice_options
@cluster_options
@click.option("--update", is_flag=True, help="Take over a grid that differs from the store's of the same name.")
@json_option
def submit(
    grid: str,
    sets: tuple[str, ...],
    seeds: int | None,
    new_name: str | None,
    stages: tuple[str, ...],
    only: str | None,
    reach: Reach,
    update: bool,
    as_json: bool,
) -> None:
    """Make Jobs of what GRID lacks, start as many as its settings allow, and return.

    Later stages, and runs beyond the window, need someone who goes on: `grid watch`. What the store has already is not
    trained again, and what has a Job already gets no other. The settings are kept with the grid.

    \b
    Examples:
      grid submit demo --settings kind
      grid submit demo --settings lab.yaml --setting parallelism=4
      grid submit demo --only '*lr=0.01*' --json
    """
    from controller.acted import job_template
    from controller.archive import write_settings
    from controller.live import open_view
    from controller.observe import adoption_text, take_up

    found = named_grid(grid, sets, seeds, new_name)
    store = the_store()
    settings = submitted_settings(found.name, store, reach)
    choice = choice_of(found, only, stages)
    facts = grid_facts(found, store)
    job_template(found, _expansion(found, facts), facts, store, settings)  # wrong settings are told before all else
    with (
        open_view() as view,
        joined(found, facts, store, settings, reach.context, view, choice=choice) as (passes, acting),
    ):
        taken = take_up(found, store, choice, update=update, facts=facts)
        write_settings(store, found.name, settings)
        for text in adoption_text(found, taken.adoption):
            view.say("note", text)
        before = passes.mirror.snapshot().jobs
        other = hand_over(found, settings, passes, acting)
        report = act_or_look_on(passes, found.name, acting, before)
    report.raise_refusal()
    _tell_submitted(found, settings, report, choice, passes, other, as_json=as_json)


def _expansion(grid: Grid, facts: Facts) -> Expansion:
    from controller.search import expand

    return expand(grid, {}, facts)


def _tell_submitted(
    grid: Grid,
    settings: Settings,
    report: Report,
    choice: Choice,
    passes: Passes,
    other: str | None,
    *,
    as_json: bool,
) -> None:
    states = passes.states(grid.name, choice)
    each_state = {work: state for work, (state, _) in states.items()}
    counts = count_states(each_state.values())
    made, started = report.done["Create"], report.done["Resume"]
    if as_json:
        works = [
            {"run": work.run, "is_test": work.is_test, "state": state, "reason": reason}
            for work, (state, reason) in states.items()
        ]
        where = {"namespace": settings.namespace, "image": settings.image}
        did = {"made": made, "started": started, "acts": other}
        print_json({"grid": grid.name, **where, **did, "counts": counts, "runs": works})
        return
    shared = sum(len(job.grids) > 1 for work, job in passes.jobs(grid.name).items() if work in states)
    also = f", {count_text(shared, 'Job')} shared with other grids" if shared else ""
    tell(f"{grid.name}: {count_text(made, 'Job')} made, {started} started{also}; {counted_work(each_state)}")
    if other is not None and passes.is_under_way(grid.name):
        tell(f"{other} acts on it, stage after stage; `grid watch {grid.name}` shows how far it is", err=True)
    elif other is not None:
        tell(f"{other} acts on it: within half a minute it makes and starts what this asks for", err=True)
    elif passes.is_over(grid.name):
        tell(f"`grid table {grid.name}` compares what is there", err=True)
    else:
        tell(
            f"what is started goes on by itself; nobody starts what waits, or decides a stage, until "
            f"`grid watch {grid.name}` does",
            err=True,
        )


@click.command()
@click.option(
    "--telemetry-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Where /metrics answers meanwhile, as that of `grid serve`; 0 is any free one. Default: nowhere.",
)
@asked_options
def watch(asked: Asked, telemetry_port: int | None) -> None:
    """Go on with a submitted GRID on its cluster, stage after stage, and show how far it is.

    Ctrl-C ends the watching, not the grid: what runs goes on, and another `grid watch` starts what waits.

    \b
    Example:
      grid submit demo && grid watch demo
    """
    from trainer.failure import ExitCode

    telemetry = None if telemetry_port is None else _telemetry()
    store = the_store(on_request=None if telemetry is None else telemetry.asked)
    found = stored_or_named_grid(asked.grid, store)
    choice = choice_of(found, asked.only, asked.stages)
    settings = kept_settings(found, store, asked.reach)
    try:
        with _scraped(telemetry, telemetry_port):
            passes = _watched(found, store, settings, asked.reach.context, choice, telemetry)
    except interrupts.Interrupted:
        interrupts.settle(int(ExitCode.STOPPED))
        tell(
            f"{found.name} goes on without being watched: Jobs that are started run to their end; "
            f"`grid watch {found.name}` starts what waits",
            err=True,
        )
        raise SystemExit(int(ExitCode.STOPPED)) from None
    standing = tell_outcome(found, store, passes.told_failed, stopped=False, as_json=asked.as_json)
    intent = passes.grids[found.name].intent
    if intent != "active":
        note(f"{found.name} is {intent}: `grid resume {found.name}` goes on")
        raise SystemExit(int(ExitCode.STOPPED))
    if counts_of(standing, choice)["failed"]:
        raise SystemExit(int(ExitCode.TRAINING))


def _telemetry() -> ControllerTelemetry:
    from controller.telemetry import ControllerTelemetry

    return ControllerTelemetry()


@contextmanager
def _scraped(telemetry: ControllerTelemetry | None, port: int | None) -> Iterator[None]:
    """A block in which the telemetry, where there is some, can be scraped from that port."""
    if telemetry is None or port is None:
        yield
        return
    from controller.health import HealthServer
    from trainer.telemetry import PATH

    with HealthServer(port, {}, {PATH: telemetry.answer}, option="--telemetry-port") as server:
        tell(f"http://localhost:{server.port}{PATH} answers Prometheus", err=True)
        yield


def _watched(
    grid: Grid,
    store: Store,
    settings: Settings,
    context: str | None,
    choice: Choice,
    telemetry: ControllerTelemetry | None,
) -> Passes:
    """What went on with the grid, until it is done."""
    from controller.live import open_view
    from controller.loops import watch as go_on
    from trainer.store import STORE_PATIENCE_SECONDS as PATIENCE

    facts = grid_facts(grid, store)
    with (
        open_view() as view,
        joined(
            grid,
            facts,
            store,
            settings,
            context,
            view,
            choice=choice,
            patience_seconds=PATIENCE,
            telemetry=telemetry,
        ) as (passes, acting),
    ):
        if (other := hand_over(grid, settings, passes, acting, is_asking=False)) is not None:
            view.say("note", f"{other} acts on it; this only looks, and goes on where that one ends")
        go_on(passes, grid.name)
    return passes


@click.command()
@asked_options
def retry(asked: Asked) -> None:
    """Clear GRID's failures, so that its runs are tried again; on its cluster their Jobs are made anew.

    \b
    Examples:
      grid retry demo && grid run demo
      grid retry demo && grid watch demo
    """
    from controller.archive import stored_settings
    from controller.local import retry as clear
    from controller.standing import failure_text

    store = the_store()
    found = stored_or_named_grid(asked.grid, store)
    choice = choice_of(found, asked.only, asked.stages)
    report = acts = None
    if stored_settings(store, found.name) is None:
        cleared = clear(found, store, choice)
    else:
        settings = kept_settings(found, store, asked.reach)
        cleared, report, acts = _retry_on_cluster(found, store, settings, asked.reach.context, choice)
    if asked.as_json:
        did = {} if report is None else {"did": dict(report.done), "acts": acts}
        failures = {run: one.model_dump(mode="json") for run, one in cleared.items()}
        print_json({"grid": found.name, "cleared": failures, **did})
        return
    for run_id, failure in cleared.items():
        tell(f"{run_id}: cleared {failure_text(failure)}")
    if not cleared:
        click.echo("nothing failed for good")
    elif report is None:
        tell(f"`grid run {asked.grid}` starts {count_text(len(cleared), 'run')} again", err=True)
    else:
        made, started = report.done["Create"], report.done["Resume"]
        tell(f"{count_text(made, 'Job')} made anew, {started} started; `grid watch {found.name}` goes on", err=True)


def _retry_on_cluster(
    grid: Grid, store: Store, settings: Settings, context: str | None, choice: Choice
) -> tuple[dict[str, Failure], Report, str | None]:
    from controller.live import open_view
    from controller.local import retry as clear
    from controller.loops import look_on, settle

    facts = grid_facts(grid, store)
    with open_view() as view, joined(grid, facts, store, settings, context, view) as (passes, acting):
        if (other := acting.other()) is not None:
            view.say("note", f"{other} acts on it: within half a minute it starts them again")
        # Jobs that failed are marked as such: only then does a failure that is gone mean a retry
        if other is None:
            settle(passes)
        else:
            look_on(passes, lambda: passes.is_marked(grid.name))
        cleared = clear(grid, store, choice)
        passes.forget()
        before = passes.mirror.snapshot().jobs
        hand_over(grid, settings, passes, acting)
        report = act_or_look_on(passes, grid.name, acting, before)
    report.raise_refusal()
    return cleared, report, other
