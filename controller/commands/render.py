"""`grid render`: a grid's runs as Kubernetes Jobs, for review."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controller.commands.reach import Reach, settings_options, submitted_settings
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
    the_store,
    write_output,
)
from controller.wording import count_text, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller.grid import Grid
    from controller.manifest import JobTemplate
    from controller.search import Expansion
    from controller.standing import Choice, Work
    from trainer.store import Store


@click.command()
@grid_options
@choice_options
@settings_options
@click.option("--all", "with_finished", is_flag=True, help="Also what needs no Job: runs with results, failed ones.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write to FILE.")
@json_option
def render(
    grid: str,
    sets: tuple[str, ...],
    seeds: int | None,
    new_name: str | None,
    stages: tuple[str, ...],
    only: str | None,
    reach: Reach,
    with_finished: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print GRID's runs as Kubernetes Jobs, for review or `kubectl apply -f -`.

    Runs whose results are in the store are left out. Nothing is asked of a cluster and nothing is changed.

    \b
    Examples:
      grid render demo --settings kind
      grid render demo --settings gpu --setting image=registry.lab/experiment-grid:0.1.0 -o jobs.yaml
    """
    from controller.acted import job_template
    from controller.manifest import to_yaml
    from controller.settings import read_settings

    if reach.settings_name is not None:
        read_settings(reach.settings_name, reach.assignments)  # what is wrong with them is told before all else
    found = named_grid(grid, sets, seeds, new_name)
    choice_of(found, only, stages)  # an unknown stage is told before the store is asked
    store = the_store(patience_seconds=READING_SECONDS)
    settings = submitted_settings(found.name, store, reach)
    facts = grid_facts(found, store)
    expansion = fitting_expansion(found, store, facts)
    choice = choice_of(found, only, stages, expansion)
    template = job_template(found, expansion, facts, store, settings, choice)
    work = _work(expansion, choice, store, grid=found.name, with_finished=with_finished)
    jobs = _jobs(found, expansion, work, template)
    text = to_yaml(jobs)
    if as_json:
        print_json({"apiVersion": "v1", "kind": "List", "items": jobs})
    elif output is None:
        click.echo(text, nl=False)
    else:
        write_output(output, text)
    _tell(found, expansion, choice, len(jobs), output)


def _work(expansion: Expansion, choice: Choice, store: Store, *, grid: str, with_finished: bool) -> Sequence[Work]:
    from controller.archive import read_held
    from controller.knowledge import read_failures, read_numbers, read_tests
    from controller.standing import Known, chosen_work, startable

    work = chosen_work(expansion, choice)
    if with_finished:
        return work
    runs = list(dict.fromkeys(each.run for each in work))
    tests = [each.run for each in work if each.is_test]
    known = Known(
        results=read_numbers(store, runs),
        tests=read_tests(store, tests),
        failures=read_failures(store, runs),
        held=read_held(store, grid),
    )
    return startable(work, known)


def _jobs(grid: Grid, expansion: Expansion, work: Sequence[Work], template: JobTemplate) -> list[dict[str, Any]]:
    from controller.manifest import first_stages
    from trainer.identity import write_spec

    runs, stages = expansion.runs(), first_stages(expansion)
    jobs = []
    for each in work:
        run = runs[each.run]
        jobs.append(template.job(each, run.seed, write_spec(run.spec), {grid.name: stages[each]}))
    return jobs


def _tell(grid: Grid, expansion: Expansion, choice: Choice, num_jobs: int, output: Path | None) -> None:
    where = f" in {output}" if output is not None else ""
    need_none = "runs with a result or a final failure need none, nor do paused or cancelled ones"
    note(f"{plain(grid.name)}: {count_text(num_jobs, 'Job')}{where}; {need_none}")
    for stage in expansion.stages:
        if stage.waiting and choice.takes_stage(stage.name):
            note(f"stage {stage.name} waits {stage.waiting}: its runs are not known yet")
