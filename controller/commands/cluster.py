"""`grid submit`, `watch`, `pause`, `resume`, `cancel`, `retry`, `logs` and `render`: a grid on a Kubernetes cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from controller import interrupts
from controller.commands.reach import (
    cluster_options,
    open_namespace,
    settings_of,
    settings_options,
    submitted_settings,
)
from controller.commands.runs import (
    count_states,
    counted,
    counts_of,
    leave_tables,
    standing_of,
    status_json,
    table_of,
    tell_end,
)
from controller.commands.surface import (
    READING_SECONDS,
    WORKING_SECONDS,
    choice_of,
    choice_options,
    fitting_expansion,
    grid_argument,
    grid_facts,
    grid_options,
    json_option,
    named_grid,
    note,
    print_json,
    store_option,
    stored_or_named_grid,
    tell,
    the_store,
)
from controller.wording import count_text, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller.cluster import Cluster
    from controller.grid import Grid
    from controller.jobs import PodView
    from controller.live import View
    from controller.manifest import JobTemplate
    from controller.passes import Lead, Passes, Report
    from controller.search import Expansion, Facts
    from controller.settings import Settings
    from controller.standing import Choice, Work
    from trainer.failure import Failure
    from trainer.store import Store

LOG_AGAIN_SECONDS = 1.0  # between two looks for a pod that has not started yet


# Acting on a grid


@contextmanager
def _acting(
    grid: Grid,
    facts: Facts,
    store: Store,
    settings: Settings,
    context: str | None,
    view: View,
    *,
    choice: Choice | None = None,
    leads: bool = True,
    patience_seconds: float = WORKING_SECONDS,
) -> Iterator[tuple[Passes, Lead]]:
    """What acts on the grid, once the cluster has answered, and who does; whoever it is, unless it `leads`."""
    from controller.mirror import Mirror
    from controller.passes import ActedGrid, Lead, Passes

    with (
        open_namespace(settings.namespace, context, patience_seconds=patience_seconds) as cluster,
        Mirror(cluster, queues=settings.queue is not None) as mirror,
    ):
        acted = ActedGrid(grid, store, facts, settings=settings)
        lead = Lead(cluster, grid.name, view)
        passes = Passes(cluster, mirror, store, [acted], view, only=choice, acts=lead if leads else lambda: True)
        if not leads:
            yield passes, lead
            return
        with lead:
            yield passes, lead


def _raise_refusal(report: Report) -> None:
    """Raise what the cluster refused, where it refused something that no waiting will change."""
    if report.refused:
        raise report.refused[0][1]


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
    settings_name: str | None,
    assignments: tuple[str, ...],
    context: str | None,
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
    from controller.archive import write_settings
    from controller.live import open_view
    from controller.observe import adoption_text, take_up
    from controller.passes import job_template, settle

    found = named_grid(grid, sets, seeds, new_name)
    store = the_store()
    settings = submitted_settings(found.name, store, settings_name, assignments)
    choice = choice_of(found, only, stages)
    facts = grid_facts(found, store)
    job_template(found, _expansion(found, facts), facts, store, settings)  # wrong settings are told before all else
    with open_view() as view, _acting(found, facts, store, settings, context, view, choice=choice) as (passes, lead):
        taken = take_up(found, store, choice, update=update)
        write_settings(store, found.name, settings)
        for text in adoption_text(found, taken.adoption):
            view.say("note", text)
        other = lead.other()
        report = settle(passes)
    _raise_refusal(report)
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
    counts = count_states(state for state, _ in states.values())
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
    tell(f"{grid.name}: {count_text(made, 'Job')} made, {started} started{also}; {counted(counts)}")
    if other is not None:
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
@grid_argument
@store_option
@choice_options
@cluster_options
@json_option
def watch(
    grid: str,
    stages: tuple[str, ...],
    only: str | None,
    settings_name: str | None,
    assignments: tuple[str, ...],
    context: str | None,
    as_json: bool,
) -> None:
    """Go on with a submitted GRID on its cluster, stage after stage, and show how far it is.

    Ctrl-C ends the watching, not the grid: what runs goes on, and another `grid watch` starts what waits.

    \b
    Example:
      grid submit demo && grid watch demo
    """
    from controller.live import open_view
    from controller.passes import watch as go_on
    from trainer.failure import ExitCode
    from trainer.store import STORE_PATIENCE_SECONDS

    store = the_store()
    found = stored_or_named_grid(grid, store)
    choice = choice_of(found, only, stages)
    settings = _settings(found, store, settings_name, assignments)
    facts = grid_facts(found, store)
    try:
        with (
            open_view() as view,
            _acting(
                found,
                facts,
                store,
                settings,
                context,
                view,
                choice=choice,
                patience_seconds=STORE_PATIENCE_SECONDS,
            ) as (passes, lead),
        ):
            if (other := lead.other()) is not None:
                view.say("note", f"{other} acts on it; this only looks, and goes on where that one ends")
            go_on(passes, found.name)
    except interrupts.Interrupted:
        interrupts.settle(int(ExitCode.STOPPED))
        tell(
            f"{found.name} goes on without being watched: Jobs that are started run to their end; "
            f"`grid watch {found.name}` starts what waits",
            err=True,
        )
        raise SystemExit(int(ExitCode.STOPPED)) from None
    standing = standing_of(found, store)
    leave_tables(table_of(found, standing), store)
    if as_json:
        print_json(status_json(found, standing))
    else:
        tell_end(found.name, standing, passes.told_failed, stopped=False)
    intent = passes.grids[found.name].intent
    if intent != "active":
        note(f"{found.name} is {intent}: `grid resume {found.name}` goes on")
        raise SystemExit(int(ExitCode.STOPPED))
    if counts_of(standing, choice)["failed"]:
        raise SystemExit(int(ExitCode.TRAINING))


def _settings(grid: Grid, store: Store, settings_name: str | None, assignments: tuple[str, ...]) -> Settings:
    """The settings of a grid that was submitted; those that the command line names are kept with it from now on.

    Raises SpecError where it was not.
    """
    from controller.archive import write_settings
    from controller.passes import submitted

    submitted(store, grid.name)
    settings = settings_of(grid.name, store, settings_name, assignments)
    assert settings is not None
    write_settings(store, grid.name, settings)
    return settings


# What is wanted of a grid


Intent = Literal["active", "paused", "cancelled"]


def _want(
    given: str, intent: Intent, settings_name: str | None, assignments: tuple[str, ...], context: str | None, did: str
) -> tuple[Grid, Report, Passes]:
    """Say in the store what is wanted of the grid, and make it so on the cluster."""
    from controller.archive import set_intent
    from controller.live import open_view
    from controller.passes import settle

    store = the_store()
    found = stored_or_named_grid(given, store)
    settings = _settings(found, store, settings_name, assignments)
    facts = grid_facts(found, store)
    set_intent(found, store, intent)
    note(f"{found.name} is {did} in {store.uri}")
    starts = intent == "active"  # whoever leads: what ends runs may be done by anyone
    with open_view() as view, _acting(found, facts, store, settings, context, view, leads=starts) as (passes, lead):
        if starts and (other := lead.other()) is not None:
            view.say("note", f"{other} acts on it: within half a minute it goes on")
        report = settle(passes)
    _raise_refusal(report)
    return found, report, passes


def _tell_wanted(grid: Grid, report: Report, passes: Passes, intent: Intent, told: str, *, as_json: bool) -> None:
    counts = count_states(state for state, _ in passes.states(grid.name).values())
    if as_json:
        print_json({"grid": grid.name, "intent": intent, "did": dict(report.done), "counts": counts})
    else:
        tell(f"{grid.name}: {told}; {counted(counts)}")


@click.command()
@grid_argument
@store_option
@cluster_options
@json_option
def pause(
    grid: str, settings_name: str | None, assignments: tuple[str, ...], context: str | None, as_json: bool
) -> None:
    """Stop GRID's runs on its cluster: each saves a checkpoint and ends, and `grid resume` goes on from there.

    Runs that another grid wants as well go on.

    \b
    Example:
      grid pause demo
    """
    found, report, passes = _want(grid, "paused", settings_name, assignments, context, "paused")
    stopped = report.done["Suspend"] + report.done["Delete"]
    _tell_wanted(found, report, passes, "paused", f"{count_text(stopped, 'Job')} stopped", as_json=as_json)


@click.command()
@grid_argument
@store_option
@cluster_options
@json_option
def resume(
    grid: str, settings_name: str | None, assignments: tuple[str, ...], context: str | None, as_json: bool
) -> None:
    """Go on with a paused or cancelled GRID on its cluster, from its runs' checkpoints.

    \b
    Example:
      grid resume demo && grid watch demo
    """
    found, report, passes = _want(grid, "active", settings_name, assignments, context, "to be trained again")
    told = f"{count_text(report.done['Create'], 'Job')} made, {report.done['Resume']} started"
    _tell_wanted(found, report, passes, "active", told, as_json=as_json)


@click.command()
@grid_argument
@store_option
@cluster_options
@json_option
def cancel(
    grid: str, settings_name: str | None, assignments: tuple[str, ...], context: str | None, as_json: bool
) -> None:
    """Take GRID off its cluster: its Jobs are deleted, but for those that another grid wants.

    Results and checkpoints stay. `grid resume`, or `grid submit`, goes on from them.

    \b
    Example:
      grid cancel demo
    """
    found, report, passes = _want(grid, "cancelled", settings_name, assignments, context, "cancelled")
    told = f"{count_text(report.done['Delete'], 'Job')} deleted"
    if report.done["Relabel"]:
        told += f", {report.done['Relabel']} left to other grids"
    _tell_wanted(found, report, passes, "cancelled", told, as_json=as_json)


@click.command()
@grid_argument
@store_option
@choice_options
@cluster_options
@json_option
def retry(
    grid: str,
    stages: tuple[str, ...],
    only: str | None,
    settings_name: str | None,
    assignments: tuple[str, ...],
    context: str | None,
    as_json: bool,
) -> None:
    """Clear GRID's failures, so that its runs are tried again; on its cluster their Jobs are made anew.

    \b
    Examples:
      grid retry demo && grid run demo
      grid retry demo && grid watch demo
    """
    from controller.archive import stored_settings
    from controller.local import retry as clear

    store = the_store()
    found = stored_or_named_grid(grid, store)
    choice = choice_of(found, only, stages)
    report = None
    if stored_settings(store, found.name) is None:
        cleared = clear(found, store, choice)
    else:
        settings = _settings(found, store, settings_name, assignments)
        cleared, report = _retry_on_cluster(found, store, settings, context, choice)
    if as_json:
        did = {} if report is None else {"did": dict(report.done)}
        failures = {run: one.model_dump(mode="json") for run, one in cleared.items()}
        print_json({"grid": found.name, "cleared": failures, **did})
        return
    for run_id, failure in cleared.items():
        tell(f"{run_id}: cleared {failure.reason}: {failure.message}")
    if not cleared:
        click.echo("nothing failed for good")
    elif report is None:
        tell(f"`grid run {grid}` starts {count_text(len(cleared), 'run')} again", err=True)
    else:
        made, started = report.done["Create"], report.done["Resume"]
        tell(f"{count_text(made, 'Job')} made anew, {started} started; `grid watch {found.name}` goes on", err=True)


def _retry_on_cluster(
    grid: Grid, store: Store, settings: Settings, context: str | None, choice: Choice
) -> tuple[dict[str, Failure], Report]:
    from controller.live import open_view
    from controller.local import retry as clear
    from controller.passes import settle

    facts = grid_facts(grid, store)
    with open_view() as view, _acting(grid, facts, store, settings, context, view) as (passes, lead):
        if (other := lead.other()) is not None:
            view.say("note", f"{other} acts on it: within half a minute it starts them again")
        settle(passes)  # Jobs that failed are marked as such: only then does a failure that is gone mean a retry
        cleared = clear(grid, store, choice)
        passes.forget()
        report = settle(passes)
    _raise_refusal(report)
    return cleared, report


# Logs


@click.command()
@click.argument("run", metavar="RUN")
@store_option
@cluster_options
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the pod has ended.")
@json_option
def logs(
    run: str,
    settings_name: str | None,
    assignments: tuple[str, ...],
    context: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the log of RUN, by its id: of its pod, or of its last attempt in the store where the pod is gone.

    \b
    Examples:
      grid logs resnet18-0123456789ab
      grid logs -f resnet18-0123456789ab
    """
    store = the_store(patience_seconds=READING_SECONDS)
    lines = _pod_lines(run, store, settings_name, assignments, context, follow=follow)
    for line in lines if lines is not None else _stored_lines(run, store):
        if as_json:
            print_json({"run": run, "line": line}, indent=None)
        else:
            click.echo(plain(line))


def _pod_lines(
    run: str,
    store: Store,
    settings_name: str | None,
    assignments: tuple[str, ...],
    context: str | None,
    *,
    follow: bool,
) -> Iterator[str] | None:
    """The log of the run's newest pod, in whatever namespace its grids were submitted to; none where there is none."""
    from controller.cluster import ClusterError

    for namespace in _namespaces(store, settings_name, assignments):
        opened = open_namespace(namespace, context, patience_seconds=READING_SECONDS)
        try:
            cluster = click.get_current_context().with_resource(opened)
            pods = _pods_of(cluster, run)
        except ClusterError as error:
            if settings_name is not None:
                raise
            note(f"pods are not looked for: {error.message}")
            return None
        if pods:
            return _lines_of(cluster, pods[-1], run, follow=follow)
    return None


def _namespaces(store: Store, settings_name: str | None, assignments: tuple[str, ...]) -> list[str]:
    from controller.archive import stored_grids, stored_settings

    if settings_name is not None:
        return [submitted_settings("", store, settings_name, assignments).namespace]
    found = (stored_settings(store, name, assignments) for name in stored_grids(store))
    return list(dict.fromkeys(each.namespace for each in found if each is not None))


def _pods_of(cluster: Cluster, run: str) -> list[PodView]:
    from controller.cluster import PODS
    from controller.jobs import RUN_LABEL, pod_view

    pods = cluster.list(PODS, pod_view, selector=f"{RUN_LABEL}={run}").items
    return sorted(pods, key=lambda pod: pod.created)


def _lines_of(cluster: Cluster, pod: PodView, run: str, *, follow: bool) -> Iterator[str]:
    """The pod's lines; with `follow` its start is waited for. Raises NotStarted without."""
    from controller.cluster import NotStarted
    from controller.jobs import CONTAINER

    told = ""
    while True:
        try:
            yield from cluster.logs(pod.name, follow=follow, container=CONTAINER)
            return
        except NotStarted as error:
            if not follow:
                raise
            if error.waiting_for != told:
                told = error.waiting_for
                note(f"pod {pod.name} has not started" + (f": {told}" if told else ""))
            time.sleep(LOG_AGAIN_SECONDS)
            pod = (_pods_of(cluster, run) or [pod])[-1]


def _stored_lines(run: str, store: Store) -> list[str]:
    """The log of the run's newest attempt that left one. Raises SpecError where none did."""
    from trainer.failure import SpecError

    names = ("/log.txt", "/output.txt")
    keys = [entry.key for entry in store.list(f"runs/{run}/attempts/") if entry.key.endswith(names)]
    if not keys:
        raise SpecError(
            f"run: got {run!r}, of which there is no pod and no log in {store.uri}, expected the id of a run",
            hint="`grid status GRID --json` shows the ids of its runs",
        )
    note(f"its pod is gone: this is {max(keys)} in {store.uri}")
    return store.get(max(keys)).decode(errors="replace").splitlines()


# Jobs for review


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
    settings_name: str | None,
    assignments: tuple[str, ...],
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
    from controller.manifest import to_yaml
    from controller.passes import job_template
    from controller.settings import read_settings
    from trainer.failure import SpecError

    if settings_name is not None:
        read_settings(settings_name, assignments)  # what is wrong with them is told before all else
    found = named_grid(grid, sets, seeds, new_name)
    choice_of(found, only, stages)  # an unknown stage is told before the store is asked
    store = the_store(patience_seconds=READING_SECONDS)
    settings = submitted_settings(found.name, store, settings_name, assignments)
    facts = grid_facts(found, store)
    expansion = fitting_expansion(found, store, facts)
    choice = choice_of(found, only, stages, expansion)
    template = job_template(found, expansion, facts, store, settings, choice)
    work = _work(expansion, choice, store, with_finished=with_finished)
    jobs = _jobs(found, expansion, work, template)
    text = to_yaml(jobs)
    if as_json:
        print_json({"apiVersion": "v1", "kind": "List", "items": jobs})
    elif output is None:
        click.echo(text, nl=False)
    else:
        try:
            output.write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise SpecError(f"-o: got {str(output)!r}, which cannot be written: {error.strerror}") from error
    _tell(found, expansion, choice, len(jobs), output)


def _work(expansion: Expansion, choice: Choice, store: Store, *, with_finished: bool) -> Sequence[Work]:
    from controller.knowledge import read_failures, read_numbers, read_tests
    from controller.standing import Known, chosen_work, startable

    work = chosen_work(expansion, choice)
    if with_finished:
        return work
    runs = list(dict.fromkeys(each.run for each in work))
    tests = [each.run for each in work if each.is_test]
    known = Known(
        results=read_numbers(store, runs), tests=read_tests(store, tests), failures=read_failures(store, runs)
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
    note(f"{plain(grid.name)}: {count_text(num_jobs, 'Job')}{where}; runs with a result or a final failure need none")
    for stage in expansion.stages:
        if stage.waiting and choice.takes_stage(stage.name):
            note(f"stage {stage.name} waits {stage.waiting}: its runs are not known yet")
