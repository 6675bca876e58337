"""`grid list`, `show` and `plan`: what there is to train, before anything trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controller.commands.surface import (
    READING_SECONDS,
    choice_of,
    choice_options,
    fitting_expansion,
    grid_facts,
    grid_options,
    json_option,
    named_grid,
    note,
    print_json,
    store_option,
    tell,
    the_store,
    width_of_output,
)
from controller.wording import count_text, plain

if TYPE_CHECKING:
    from controller.grid import Grid
    from controller.stages import Stage
    from trainer.failure import DataError
    from trainer.store import Store


@click.command("list")
@store_option
@json_option
def list_grids(as_json: bool) -> None:
    """Show the grids that come with the program, with their forms, and those in the store.

    GRID.FORM is a grid in another form: the same rows, most often from fewer images in fewer epochs.

    \b
    Example:
      grid list
    """
    from controller.archive import stored_grids
    from controller.grid import shipped_forms, shipped_grids

    shipped = shipped_grids()
    names = {name for name, _ in shipped}
    forms = {name: shipped_forms(name) for name in names}
    store = the_store(patience_seconds=READING_SECONDS)
    found = [(name, "shipped", text) for name, text in shipped]
    found += [(name, "store", _description(store, name)) for name in stored_grids(store) if name not in names]
    if as_json:
        print_json(
            [
                {"grid": name, "from": origin, "description": text, "forms": list(forms.get(name, ()))}
                for name, origin, text in found
            ]
        )
        return
    width = max(len(name) for name, _, _ in found)
    for name, origin, text in found:
        where = "" if origin == "shipped" else "(in the store) "
        also = f"; also {', '.join(f'{name}.{form}' for form in forms[name])}" if forms.get(name) else ""
        tell(f"{name:<{width}}  {where}{text}{also}", hang=width + 2)


def _description(store: Store, name: str) -> str:
    from controller.archive import stored_grid
    from trainer.failure import SpecError

    try:
        grid = stored_grid(store, name)
    except SpecError as error:
        return error.message.splitlines()[0]
    return grid.description if grid else ""


@click.command()
@grid_options
@json_option
def show(grid: str, sets: tuple[str, ...], seeds: int | None, new_name: str | None, as_json: bool) -> None:
    """Print GRID in full, as a grid file of your own could begin.

    GRID is the name of a shipped grid, of one in the store, or a path to a file.

    \b
    Examples:
      grid show demo
      grid show demo --set epochs=20 --as longer > longer.yaml
    """
    found = named_grid(grid, sets, seeds, new_name)
    if as_json:
        print_json(found.document.value)
        return
    for line in _outline(found):
        click.echo(f"# {plain(line)}")
    click.echo(found.text(), nl=False)


def _outline(grid: Grid) -> list[str]:
    lines = [f"{grid.name}: {' '.join(grid.description.split())}" if grid.description else grid.name]
    for stage in grid.stages:
        if stage.test is not None:
            lines.append(f"stage {stage.name}: evaluates on the test part")
            continue
        rows, seeds = count_text(len(grid.candidates(stage)), "row"), count_text(len(grid.stage_seeds(stage)), "seed")
        lines.append(f"stage {stage.name}: {rows} with {seeds}, starting from {_start(stage)}")
    return lines


def _start(stage: Stage) -> str:
    from controller.stages import BASE

    return "the base" if stage.start == BASE else f"what {stage.start} keeps"


@click.command()
@grid_options
@choice_options
@click.option("--rows", metavar="N", type=click.IntRange(0), help="Show at most N rows of each stage.")
@json_option
def plan(
    grid: str,
    sets: tuple[str, ...],
    seeds: int | None,
    new_name: str | None,
    stages: tuple[str, ...],
    only: str | None,
    rows: int | None,
    as_json: bool,
) -> None:
    """Show what GRID would train, before anything does.

    Which runs are new, which several rows share, which the store has already; what memory, disk and time to expect.
    With --stage and --only nothing else is counted. Where weights are missing it says which runs lack them and what
    brings them, and exits 65.

    \b
    Examples:
      grid plan demo
      grid plan demo --seeds 5 --set epochs=20
      grid plan from_scratch --only '*lr=0.01*' --seeds 3
    """
    from controller.knowledge import read_results, runs_with_results, runs_with_tests
    from controller.networks import read_sizes
    from controller.plan import ROWS_SHOWN, make_plan, plan_text, refuse_lacking, runs_alike, shapes_of, speeds_of

    lacking: dict[str, DataError] = {}
    found = named_grid(grid, sets, seeds, new_name)
    choice_of(found, only, stages)  # an unknown stage is told before the store is asked
    store = the_store(patience_seconds=READING_SECONDS)
    facts = grid_facts(found, store, lacking)
    expansion = fitting_expansion(found, store, facts)
    choice = choice_of(found, only, stages, expansion)
    finished = runs_with_results(store)
    speeds = speeds_of(read_results(store, runs_alike(expansion, finished)).values())
    tested = runs_with_tests(store) if any(stage.is_test for stage in expansion.stages) else ()
    sizes = read_sizes(store, shapes_of(expansion, facts), note)
    planned = make_plan(
        found,
        expansion,
        facts,
        set(finished),
        speeds,
        choice,
        existing_tests=set(tested),
        sizes=sizes,
        lacking=lacking,
    )
    if as_json:
        print_json(planned.record())
    else:
        click.echo(plan_text(planned, ROWS_SHOWN if rows is None else rows, width_of_output()))
    refuse_lacking(planned.lacking)
