"""`grid run`, `status`, `retry`, `reopen` and `table`: what trains, how far it is, and what came of it."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from controller.commands.surface import (
    as_option,
    choice_of,
    complete_stage,
    count_text,
    grid_argument,
    grid_facts,
    json_option,
    named_grid,
    note,
    only_option,
    plain,
    print_json,
    seeds_option,
    set_option,
    stage_option,
    store_option,
    stored_or_named_grid,
    tell_misfits,
    the_store,
)

if TYPE_CHECKING:
    from controller.grid import Grid
    from controller.local import Status
    from controller.standing import Choice, State
    from controller.table import Table
    from trainer.store import Store

WIDTH = 120  # cells, where the output is no terminal
SVG_WIDTH = 110


@click.command()
@grid_argument
@store_option
@set_option
@seeds_option
@only_option
@stage_option
@click.option(
    "--parallel", type=click.IntRange(1), metavar="N", help="So many runs at once; else what fits the machine."
)
@click.option("--update", is_flag=True, help="Take over a grid that differs from the store's of the same name.")
@as_option
@click.option(
    "--resume",
    type=click.Choice(["exact", "inexact"]),
    default="exact",
    help="What a run does that this machine cannot compute as it was begun: stop (exact, the default), or go on and "
    "say so in its result (inexact).",
)
@json_option
def run(
    grid: str,
    sets: tuple[str, ...],
    seeds: int | None,
    only: str | None,
    stages: tuple[str, ...],
    parallel: int | None,
    update: bool,
    new_name: str | None,
    resume: Literal["exact", "inexact"],
    as_json: bool,
) -> None:
    """Train what GRID lacks, stage after stage, on this machine.

    Ctrl-C once: every run saves and stops, and the same command goes on from there. What the store has already is not
    trained again. Running the same grid in two terminals trains nothing twice.

    \b
    Examples:
      grid run demo
      grid run demo --set epochs=1 --as quick
      grid run from_scratch --only '*lr=0.01*' --seeds 3
    """
    from controller.local import run_grid
    from controller.standing import Choice, chosen_work
    from trainer.failure import SpecError

    found = named_grid(grid, sets, seeds, new_name)
    store = the_store()
    outcome = run_grid(found, store, only=only, stages=stages, parallel=parallel, resume=resume, update=update)
    if not outcome.stopped:
        _leave_tables(found, store)
    standing = _standing(found, store)
    if as_json:
        print_json({"stopped": outcome.stopped, **_status_json(found, standing)})
    else:
        _tell_end(plain(found.name), _counts(standing), stopped=outcome.stopped)
    if only is not None and not chosen_work(outcome.expansion, Choice(only, stages)):
        raise SpecError(f"--only: got {only!r}, which fits no run of grid {found.name} that is known so far")
    if outcome.exit_code:
        raise SystemExit(int(outcome.exit_code))


def _tell_end(grid: str, counts: dict[str, int], *, stopped: bool) -> None:
    click.echo(f"{grid}: {_counted(counts)}", err=True)
    if counts["failed"]:
        click.echo(f"`grid status {grid}` says why runs failed, `grid retry {grid}` lets them be tried again", err=True)
    if stopped:
        click.echo("stopped; the same command goes on from here", err=True)
    else:
        click.echo(f"`grid table {grid}` compares what is there", err=True)


def _standing(grid: Grid, store: Store) -> Status:
    from controller.local import status

    found = status(grid, store)
    tell_misfits(found.misfits, store)
    return found


def _leave_tables(grid: Grid, store: Store) -> None:
    """Put the table beside the grid in the store, for whoever looks there."""
    from controller.table import to_csv, to_json, to_markdown

    table = _table(grid, store)
    for ending, write in (("md", to_markdown), ("csv", to_csv), ("json", to_json)):
        store.put(f"grids/{grid.name}/table.{ending}", write(table).encode())


@click.command()
@grid_argument
@store_option
@stage_option
@only_option
@json_option
def status(grid: str, stages: tuple[str, ...], only: str | None, as_json: bool) -> None:
    """Show how far GRID is: what is done, what runs, what waits and for what, what failed and why.

    \b
    Example:
      grid status demo
    """
    store = the_store()
    found = stored_or_named_grid(grid, store)
    choice = choice_of(found, only, stages)
    shown = _status_json(found, _standing(found, store), choice)
    if as_json:
        print_json(shown)
        return
    click.echo(f"{plain(found.name)}: {_counted(shown['counts'])}")
    for each in shown["stages"]:
        kept = f", keeps {', '.join(each['kept'])}" if each["kept"] else ""
        waits = f", waiting {each['waiting']}" if each["waiting"] else ""
        click.echo(f"\n{plain(each['stage'] + kept + waits)}")
        width = max((len(plain(row["experiment"])) for row in each["experiments"]), default=0)
        for row in each["experiments"]:
            click.echo(f"  {plain(row['experiment']):<{width}}  {_counted(row['counts'])}")
            reasons = dict.fromkeys(
                f"{one['state']}: {one['reason']}" for one in row["runs"] if one["reason"] and one["state"] != "waiting"
            )
            for reason in reasons:
                for line in reason.splitlines():
                    click.echo(f"    {plain(line)}")


def _counts(standing: Status, choice: Choice | None = None) -> dict[str, int]:
    from controller.standing import Choice, chosen_work

    return _count(standing.state(work)[0] for work in chosen_work(standing.expansion, choice or Choice()))


def _count(states: Iterable[State]) -> dict[str, int]:
    from controller.standing import STATES

    found = list(states)
    return {state: found.count(state) for state in STATES}


def _counted(counts: dict[str, int]) -> str:
    told = [f"{number:,} {state}" for state, number in counts.items() if number]
    return ", ".join(told) or "nothing to do yet"


def _status_json(grid: Grid, standing: Status, choice: Choice | None = None) -> dict[str, Any]:
    from controller.standing import Choice, Work

    choice = choice or Choice()
    stages = []
    for each in standing.expansion.stages:
        if not choice.takes_stage(each.name):
            continue
        rows = []
        for experiment in each.experiments:
            runs: list[dict[str, Any]] = []
            for one in experiment.runs:
                if choice.takes(each.name, experiment.name, one.id):
                    state, reason = standing.state(Work(one.id, each.is_test))
                    runs.append({"run": one.id, "seed": one.spec.seed, "state": state, "reason": reason})
            if runs:
                counts = _count(one["state"] for one in runs)
                rows.append({"experiment": experiment.name, "counts": counts, "runs": runs})
        waiting = each.waiting or standing.waiting.get(each.name)
        stages.append(
            {
                "stage": each.name,
                "is_test": each.is_test,
                "kept": [] if each.is_test else list(each.kept),
                "waiting": waiting,
                "experiments": rows,
            }
        )
    return {"grid": grid.name, "counts": _counts(standing, choice), "stages": stages}


@click.command()
@grid_argument
@store_option
@stage_option
@only_option
@json_option
def retry(grid: str, stages: tuple[str, ...], only: str | None, as_json: bool) -> None:
    """Clear GRID's failures, so that `grid run` tries those runs again.

    \b
    Example:
      grid retry demo && grid run demo
    """
    from controller.local import retry as clear

    store = the_store()
    found = stored_or_named_grid(grid, store)
    cleared = clear(found, store, choice_of(found, only, stages))
    if as_json:
        print_json({"grid": found.name, "cleared": {run: one.model_dump(mode="json") for run, one in cleared.items()}})
        return
    for run_id, failure in cleared.items():
        click.echo(f"{run_id}: cleared {plain(failure.reason)}: {plain(failure.message)}")
    if not cleared:
        click.echo("nothing failed for good")
    else:
        click.echo(f"`grid run {plain(grid)}` starts {count_text(len(cleared), 'run')} again", err=True)


@click.command()
@grid_argument
@click.argument("stage", shell_complete=complete_stage, metavar="STAGE")
@store_option
@json_option
def reopen(grid: str, stage: str, as_json: bool) -> None:
    """Discard what STAGE of GRID kept, and what was decided after it; `grid run` decides anew.

    Results stay. The decision is set aside in the store, not lost.

    \b
    Example:
      grid reopen demo network
    """
    from controller.archive import reopen as discard

    store = the_store()
    found = stored_or_named_grid(grid, store)
    opened = discard(found, store, stage, grid_facts(found, store))
    if as_json:
        print_json({"grid": found.name, "open": list(opened)})
    elif opened:
        click.echo(f"open again: {', '.join(opened)}")
    else:
        click.echo(f"stage {plain(stage)} has no decision to discard")


FORMATS = ("terminal", "markdown", "csv", "json", "svg")


@click.command()
@grid_argument
@store_option
@stage_option
@only_option
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="terminal", help="How to write it. Default: terminal."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write to FILE.")
@json_option
def table(grid: str, stages: tuple[str, ...], only: str | None, form: str, output: Path | None, as_json: bool) -> None:
    """Compare GRID's experiments: mean ± std over seeds, the best marked, and why a row has no numbers yet.

    Numbers are rounded for reading in terminal, markdown and svg, exact in csv and json.

    \b
    Examples:
      grid table demo
      grid table demo --format markdown -o results.md
    """
    store = the_store()
    found = stored_or_named_grid(grid, store)
    choice = choice_of(found, only, stages)
    text = written(chosen(_table(found, store), choice), "json" if as_json else form, to_file=output is not None)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise click.FileError(str(output), error.strerror) from error
    note(f"written to {output}")


def _table(grid: Grid, store: Store) -> Table:
    from controller.grid import KeepBest, TestBest
    from controller.table import build_table

    standing = _standing(grid, store)
    metrics: dict[str, str] = {}
    for stage in grid.stages:
        if isinstance(stage.keep, KeepBest):
            metrics[stage.name] = stage.keep.best
        elif isinstance(stage.test, TestBest) and stage.test.by:
            metrics[stage.name] = stage.test.by
    return build_table(
        standing.expansion,
        standing.known,
        standing.active,
        facts=grid_facts(grid, store),
        metrics=metrics,
    )


def chosen(table: Table, choice: Choice) -> Table:
    """The table without the stages and rows that were not asked for; a row stays whole for any of its runs."""
    return dataclasses.replace(
        table,
        stages=tuple(
            dataclasses.replace(
                each,
                rows=tuple(
                    row for row in each.rows if any(choice.takes(each.name, row.experiment, run.id) for run in row.runs)
                ),
            )
            for each in table.stages
            if choice.takes_stage(each.name)
        ),
    )


def written(table: Table, form: str, *, to_file: bool) -> str:
    """The table in one of FORMATS; for a terminal as wide as that is, in colour if it is one."""
    from controller import table as tables

    if form == "markdown":
        return tables.to_markdown(table)
    if form == "csv":
        return tables.to_csv(table)
    if form == "json":
        return tables.to_json(table)
    if form == "svg":
        return _svg(tables.to_terminal(table, SVG_WIDTH, colour=True), table.grid)
    is_terminal = sys.stdout.isatty() and not to_file
    width = WIDTH if to_file else shutil.get_terminal_size((WIDTH, 40)).columns
    return tables.to_terminal(table, width, colour=is_terminal and "NO_COLOR" not in os.environ)


def _svg(text: str, title: str) -> str:
    """A picture of a terminal that shows `text`."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=SVG_WIDTH, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)
    picture = console.export_svg(title=f"grid table {title}", unique_id="table")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # fonts that it would fetch from a server
