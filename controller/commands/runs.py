"""`grid run`, `status`, `reopen` and `table`: what trains, how far it is, and what came of it."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from controller import interrupts
from controller.commands.asked import Asked, asked_options
from controller.commands.reach import seen_on_cluster, settings_of
from controller.commands.surface import (
    READING_SECONDS,
    WIDTH,
    choice_of,
    choice_options,
    complete_stage,
    form_of,
    grid_argument,
    grid_facts,
    grid_options,
    is_terminal,
    json_option,
    named_grid,
    note,
    print_json,
    store_option,
    stored_or_named_grid,
    tell,
    tell_misfits,
    the_store,
    width_of_output,
    write_output,
)
from controller.wording import count_text, elided, plain

if TYPE_CHECKING:
    from controller.grid import Grid
    from controller.local import Status
    from controller.standing import Choice, State, Work
    from controller.table import Table
    from trainer.failure import Failure
    from trainer.store import Store

PLAIN = (None, "never started")  # reasons that a run's state says already
REASONS_SHOWN = 5  # failures that `grid run` tells at its end
TAIL_SHOWN = 5  # last lines of its output that `grid status` shows of a run whose trainer did not say why it failed
SVG_WIDTH = 110


@click.command()
@grid_options
@choice_options
@click.option(
    "--parallel", type=click.IntRange(1), metavar="N", help="So many runs at once; else what fits the machine."
)
@click.option("--update", is_flag=True, help="Take over a grid that differs from the store's of the same name.")
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

    found = named_grid(grid, sets, seeds, new_name)
    store = the_store()
    outcome = run_grid(found, store, only=only, stages=stages, parallel=parallel, resume=resume, update=update)
    if outcome.stopped:
        interrupts.settle(int(outcome.exit_code))
    tell_outcome(found, store, outcome.told, stopped=outcome.stopped, as_json=as_json)
    if outcome.exit_code:
        raise SystemExit(int(outcome.exit_code))


def tell_outcome(grid: Grid, store: Store, told: Container[str], *, stopped: bool, as_json: bool) -> Status:
    """How the grid stands, told; its tables are left in the store, unless the command was `stopped` by Ctrl-C."""
    standing = standing_of(grid, store)
    if not stopped:
        leave_tables(table_of(grid, standing, store), store)
    if as_json:
        print_json({"stopped": stopped, **status_json(grid, standing)})
    else:
        tell_end(grid.name, standing, told, stopped=stopped)
    return standing


def tell_end(grid: str, standing: Status, told: Container[str], *, stopped: bool) -> None:
    """Tell how the grid stands now that a command is done with it; failures that were not told before come first."""
    from controller.archive import homes
    from controller.standing import Choice, chosen_work, failure_text

    tell(f"{grid}: {counted_work(states_of(standing))}", err=True)
    places = homes(standing.expansion)
    failed = dict.fromkeys(
        work.run for work in chosen_work(standing.expansion, Choice()) if standing.known.is_failed(work)
    )
    untold = [standing.known.failures[run] for run in failed if run not in told]  # of an earlier `grid run`
    for failure in untold[:REASONS_SHOWN]:
        tell(f"{places[failure.run][0]}: {failure_text(failure)}", indent=2, err=True)
        for line in _ways_out(failure):
            tell(line, indent=4, err=True)
    if len(untold) > REASONS_SHOWN:
        tell(f"and {len(untold) - REASONS_SHOWN:,} more", indent=2, err=True)
    if failed:
        _tell_ways(grid)
    if not stopped:
        tell(f"`grid table {grid}` compares what is there", err=True)


def _ways_out(failure: Failure) -> Iterator[str]:
    """What there is to do about a failure, and where to read more of it."""
    if failure.hint:
        yield f"hint: {failure.hint}"
    if failure.reason == "crashed" and failure.attempt:
        name = "log.txt" if failure.exit_code == 1 else "output.txt"  # the trainer's own, or what was left of it
        yield f"see runs/{failure.run}/attempts/{failure.attempt}/{name} in the store"


def _tell_ways(grid: str) -> None:
    tell(f"`grid status {grid}` says why runs failed, `grid retry {grid}` lets them be tried again", err=True)


def standing_of(grid: Grid, store: Store) -> Status:
    """How the grid stands in the store; decisions that no longer fit are told, and what unfinished runs lack."""
    from controller.local import status

    found = status(grid, store)
    tell_misfits(found.misfits, store)
    for error in found.lacking.values():
        note(f"{error.message}: {error.hint}")
    return found


def leave_tables(table: Table, store: Store) -> None:
    """Put the table beside the grid in the store, for whoever looks there."""
    from controller.table_data import to_csv, to_json
    from controller.table_text import to_markdown

    for ending, write in (("md", to_markdown), ("csv", to_csv), ("json", to_json)):
        store.put(f"grids/{table.grid}/table.{ending}", write(table).encode())


@click.command()
@asked_options
def status(asked: Asked) -> None:
    """Show how far GRID is: what is done, what runs, what waits and for what, what failed and why.

    Of a grid that was submitted to a cluster, Kubernetes says what its runs wait for.

    \b
    Examples:
      grid status demo
      grid status demo --json | jq .counts
    """
    store = the_store(patience_seconds=READING_SECONDS)
    found = stored_or_named_grid(asked.grid, store)
    choice_of(found, asked.only, asked.stages)  # an unknown stage is told before the store is read
    standing = standing_of(found, store)
    choice = choice_of(found, asked.only, asked.stages, standing.expansion)
    settings = settings_of(found.name, store, asked.reach)
    if settings is not None:
        is_asked = asked.reach.settings_name is not None
        standing = seen_on_cluster(found, store, standing, settings, asked.reach.context, is_asked=is_asked)
    shown = status_json(found, standing, choice)
    if asked.as_json:
        print_json(shown)
        return
    tell(f"{found.name}: {counted_work(states_of(standing, choice))}")
    for each in shown["stages"]:
        click.echo()
        _tell_stage(each, standing)
    if shown["counts"]["failed"]:
        tell(f"`grid retry {found.name}` lets what failed be tried again", err=True)


def _tell_stage(stage: dict[str, Any], standing: Status) -> None:
    kept = f", keeps {', '.join(stage['kept'])}" if stage["kept"] else ""
    # what failed is told in full beside its row
    waits = f", waiting {elided(plain(stage['waiting']), width_of_output())}" if stage["waiting"] else ""
    tell(f"{stage['stage']}{kept}{waits}")
    names = [plain(row["experiment"]) for row in stage["experiments"]]
    width = min(max(map(len, names), default=0), width_of_output() // 2)
    for name, row in zip(names, stage["experiments"], strict=True):
        reasons = dict.fromkeys((one["state"], one["reason"]) for one in row["runs"] if one["reason"] not in PLAIN)
        told = counted(row["counts"])
        if len(row["runs"]) == 1:
            told = ": ".join(filter(None, *reasons)) if reasons else row["runs"][0]["state"]
        tell(f"{name:<{width}}  {told}", indent=2)
        for state, reason in reasons if len(row["runs"]) > 1 else ():
            tell(f"{state}: {reason}", indent=4)
        failures = [standing.known.failures[one["run"]] for one in row["runs"] if one["state"] == "failed"]
        for line in dict.fromkeys(line for failure in failures for line in _ways_out(failure)):
            tell(line, indent=4)
        for tail in dict.fromkeys(_shown_tail(failure) for failure in failures):
            for line in tail:
                click.echo(f"      {elided(line, max(1, width_of_output() - 6))}")


def _shown_tail(failure: Failure) -> tuple[str, ...]:
    """The last lines of the output, where the failure's message does not say all."""
    from trainer.failure import FINAL_EXITS

    if failure.exit_code in FINAL_EXITS:
        return ()
    return tuple(plain(line) for line in failure.log_tail if line.strip())[-TAIL_SHOWN:]


def counts_of(standing: Status, choice: Choice | None = None) -> dict[str, int]:
    """How many of the chosen runs and tests are done, running, waiting, failed."""
    return count_states(states_of(standing, choice).values())


def states_of(standing: Status, choice: Choice | None = None) -> dict[Work, State]:
    """How each of the chosen runs and tests stands."""
    from controller.standing import Choice, chosen_work

    work = chosen_work(standing.expansion, choice or Choice())
    return {each: standing.state(each)[0] for each in work}


def count_states(states: Iterable[State]) -> dict[str, int]:
    """How many of each state there are."""
    from controller.standing import STATES

    found = list(states)
    return {state: found.count(state) for state in STATES}


def counted(counts: dict[str, int]) -> str:
    """The counts in words."""
    told = [f"{number:,} {state}" for state, number in counts.items() if number]
    return ", ".join(told) or "nothing to do yet"


def counted_work(states: Mapping[Work, State]) -> str:
    """How much work stands how, and of how many runs and tests it is: a tested run is counted twice."""
    told = counted(count_states(states.values()))
    num_tests = sum(work.is_test for work in states)
    if num_tests in (0, len(states)):
        return told
    return f"{told} ({count_text(len(states) - num_tests, 'run')}, {count_text(num_tests, 'test')})"


def status_json(grid: Grid, standing: Status, choice: Choice | None = None) -> dict[str, Any]:
    """How the grid stands, for programs."""
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
                    failure = standing.known.failures[one.id] if state == "failed" else None
                    runs.append(
                        {
                            "run": one.id,
                            "seed": one.spec.seed,
                            "state": state,
                            "reason": reason,
                            "failure": failure and failure.model_dump(mode="json"),
                        }
                    )
            if runs:
                counts = count_states(one["state"] for one in runs)
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
    return {"grid": grid.name, "counts": counts_of(standing, choice), "stages": stages}


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
        tell(f"open again: {', '.join(opened)}")
    else:
        tell(f"stage {stage} has no decision to discard")


FORMATS = ("terminal", "markdown", "csv", "json", "svg")
ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json", ".svg": "svg", ".txt": "terminal"}


@click.command()
@grid_argument
@store_option
@choice_options
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="How to write it. Default: as the ending of FILE says, else terminal.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Write to FILE; its ending, {', '.join(ENDINGS)}, chooses the form.",
)
@json_option
def table(
    grid: str, stages: tuple[str, ...], only: str | None, form: str | None, output: Path | None, as_json: bool
) -> None:
    """Compare GRID's experiments: mean ± std over seeds, the best marked, and why a row has no numbers.

    Numbers are rounded for reading in terminal, markdown and svg, exact in csv and json.

    \b
    Examples:
      grid table demo
      grid table demo -o results.md
      grid table demo --format csv > results.csv
    """
    form = "json" if as_json else form or form_of(output, ENDINGS, FORMATS, "terminal")
    store = the_store(patience_seconds=READING_SECONDS)
    found = stored_or_named_grid(grid, store)
    choice_of(found, only, stages)  # an unknown stage is told before the store is read
    standing = standing_of(found, store)
    choice = choice_of(found, only, stages, standing.expansion)
    text = written(chosen(table_of(found, standing, store), choice), form, to_file=output is not None)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_output(output, text)
        note(f"written to {output}")


def table_of(grid: Grid, standing: Status, store: Store | None = None) -> Table:
    """The grid's table; tested rows are compared over test images by the predictions that `store` has of them."""
    from controller.knowledge import read_test_answers
    from controller.published import comparison
    from controller.table import build_table

    return build_table(
        standing.expansion,
        standing.known,
        standing.active,
        facts=standing.facts,
        metrics={stage.name: stage.rule_metric for stage in grid.stages if stage.rule_metric},
        compared=comparison(grid, standing.expansion),
        answers=None if store is None else read_test_answers(store, standing.expansion, standing.known.tests),
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
    from controller import table_data, table_text

    if form == "markdown":
        return table_text.to_markdown(table)
    if form == "csv":
        return table_data.to_csv(table)
    if form == "json":
        return table_data.to_json(table)
    if form == "svg":
        return _svg(table_text.to_terminal(table, SVG_WIDTH, colour=True), table.grid)
    width = WIDTH if to_file else width_of_output()
    return table_text.to_terminal(table, width, colour=not to_file and is_terminal() and "NO_COLOR" not in os.environ)


def _svg(text: str, title: str) -> str:
    """A picture of a terminal that shows `text`."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=SVG_WIDTH, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)
    picture = console.export_svg(title=f"grid table {title}", unique_id="table")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # fonts that it would fetch from a server
