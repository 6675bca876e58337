"""`grid submit`, `watch`, `pause`, `resume`, `cancel`, `retry`, `logs` and `render`: a grid on a Kubernetes cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from controller import interrupts
from controller.commands.asked import Asked, asked_options
from controller.commands.reach import (
    cluster_options,
    open_namespace,
    settings_of,
    settings_options,
    submission_of,
    submitted_settings,
    touch,
)
from controller.commands.runs import (
    count_states,
    counted,
    counts_of,
    tell_outcome,
)
from controller.commands.single import is_run, want_run
from controller.commands.surface import (
    READING_SECONDS,
    WORKING_SECONDS,
    choice_of,
    choice_options,
    fitting_expansion,
    grid_facts,
    grid_options,
    grid_or_run_argument,
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
    from collections.abc import Mapping, Sequence

    from controller.cluster import Cluster
    from controller.grid import Grid
    from controller.jobs import JobView, PodView
    from controller.live import View
    from controller.manifest import JobTemplate
    from controller.passes import Passes, Report
    from controller.search import Expansion, Facts
    from controller.settings import Settings
    from controller.standing import Choice, Work
    from controller.who_acts import Acting
    from trainer.failure import Failure
    from trainer.store import Store

GONE_SECONDS = 30.0  # that `grid cancel` waits for Jobs to be gone
LOG_AGAIN_SECONDS = 1.0  # between two looks for a pod that has not started yet


# Acting on a grid


@contextmanager
def _joined(
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
        passes = Passes(cluster, mirror, store, [acted], view, only=choice, acts=acting if acts else lambda: True)
        if not acts:
            yield passes, acting
            return
        with acting:
            yield passes, acting


def _hand_over(grid: Grid, settings: Settings, passes: Passes, acting: Acting, *, is_asking: bool = True) -> str | None:
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


def _act_or_look_on(passes: Passes, name: str, acting: Acting, before: Mapping[Work, JobView]) -> Report:
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
    from controller.acted import job_template
    from controller.archive import write_settings
    from controller.live import open_view
    from controller.observe import adoption_text, take_up

    found = named_grid(grid, sets, seeds, new_name)
    store = the_store()
    settings = submitted_settings(found.name, store, settings_name, assignments)
    choice = choice_of(found, only, stages)
    facts = grid_facts(found, store)
    job_template(found, _expansion(found, facts), facts, store, settings)  # wrong settings are told before all else
    with open_view() as view, _joined(found, facts, store, settings, context, view, choice=choice) as (passes, acting):
        taken = take_up(found, store, choice, update=update, facts=facts)
        write_settings(store, found.name, settings)
        for text in adoption_text(found, taken.adoption):
            view.say("note", text)
        before = passes.mirror.snapshot().jobs
        other = _hand_over(found, settings, passes, acting)
        report = _act_or_look_on(passes, found.name, acting, before)
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
@asked_options
def watch(asked: Asked) -> None:
    """Go on with a submitted GRID on its cluster, stage after stage, and show how far it is.

    Ctrl-C ends the watching, not the grid: what runs goes on, and another `grid watch` starts what waits.

    \b
    Example:
      grid submit demo && grid watch demo
    """
    from trainer.failure import ExitCode

    store = the_store()
    found = stored_or_named_grid(asked.grid, store)
    choice = choice_of(found, asked.only, asked.stages)
    settings = _settings(found, store, asked.settings_name, asked.assignments)
    try:
        passes = _watched(found, store, settings, asked.context, choice)
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


def _watched(grid: Grid, store: Store, settings: Settings, context: str | None, choice: Choice) -> Passes:
    """What went on with the grid, until it is done."""
    from controller.live import open_view
    from controller.loops import watch as go_on
    from trainer.store import STORE_PATIENCE_SECONDS as PATIENCE

    facts = grid_facts(grid, store)
    with (
        open_view() as view,
        _joined(grid, facts, store, settings, context, view, choice=choice, patience_seconds=PATIENCE) as (
            passes,
            acting,
        ),
    ):
        if (other := _hand_over(grid, settings, passes, acting, is_asking=False)) is not None:
            view.say("note", f"{other} acts on it; this only looks, and goes on where that one ends")
        go_on(passes, grid.name)
    return passes


def _settings(grid: Grid, store: Store, settings_name: str | None, assignments: tuple[str, ...]) -> Settings:
    """The settings of a grid that was submitted; those that the command line names are kept with it from now on.

    Raises SpecError where it was not.
    """
    from controller.acted import submitted
    from controller.archive import write_settings

    submitted(store, grid.name)
    settings = settings_of(grid.name, store, settings_name, assignments)
    assert settings is not None
    write_settings(store, grid.name, settings)
    return settings


# What is wanted of a grid


Intent = Literal["active", "paused", "cancelled"]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What came of a word about a whole grid."""

    grid: Grid
    intent: Intent
    report: Report
    passes: Passes
    acts: str | None  # who else acts on the grid


def _want(
    given: str, intent: Intent, settings_name: str | None, assignments: tuple[str, ...], context: str | None, did: str
) -> _Wanted:
    """Say in the store what is wanted of the grid, and make it so on the cluster."""
    from controller.archive import set_intent
    from controller.live import open_view
    from controller.loops import settle

    store = the_store()
    found = stored_or_named_grid(given, store)
    settings = _settings(found, store, settings_name, assignments)
    facts = grid_facts(found, store)
    set_intent(found, store, intent)
    note(f"{found.name} is {did} in {store.uri}")
    starts = intent == "active"  # whoever leads: what ends runs may be done by anyone
    with open_view() as view, _joined(found, facts, store, settings, context, view, acts=starts) as (passes, acting):
        if starts:
            before = passes.mirror.snapshot().jobs
            if (other := _hand_over(found, settings, passes, acting)) is not None:
                view.say("note", f"{other} acts on it: within half a minute it goes on")
            report = _act_or_look_on(passes, found.name, acting, before)
        else:
            other = acting.server()
            refused = touch(passes.cluster, submission_of(found, store, settings), enter=intent == "paused")
            if refused is not None and other is not None:  # it looks at the store within half a minute anyway
                view.say("note", f"{other} acts on it, and could not be told: {refused.message}")
            report = settle(passes)
            if intent == "cancelled":
                _forget(found, passes)
    report.raise_refusal()
    return _Wanted(found, intent, report, passes, other)


def _forget(grid: Grid, passes: Passes) -> None:
    """Take the grid's ConfigMap away, once its Jobs are gone: as long as one is there, a `grid serve` cares for it."""
    from controller.cluster import Forbidden
    from controller.loops import look_on
    from controller.registry import remove_grid

    look_on(passes, lambda: not passes.labelled(grid.name), seconds=GONE_SECONDS)
    if left := len(passes.labelled(grid.name)):
        passes.view.say("note", f"{count_text(left, 'Job')} of it still end; its ConfigMap stays until another cancel")
        return
    try:
        remove_grid(passes.cluster, grid.name)
    except Forbidden as error:
        passes.view.say("note", f"its ConfigMap, if there is one, stays: {error.message}")


def _tell_wanted(wanted: _Wanted, told: str, *, as_json: bool) -> None:
    name = wanted.grid.name
    counts = count_states(state for state, _ in wanted.passes.states(name).values())
    if as_json:
        held = dict(wanted.passes.grids[name].sight.known.held)
        did = {"did": dict(wanted.report.done), "acts": wanted.acts}
        print_json({"grid": name, "intent": wanted.intent, "held": held, **did, "counts": counts})
    else:
        tell(f"{name}: {told}; {counted(counts)}")


@click.command()
@grid_or_run_argument
@store_option
@cluster_options
@json_option
def pause(
    grid: str, settings_name: str | None, assignments: tuple[str, ...], context: str | None, as_json: bool
) -> None:
    """Stop GRID's runs on its cluster: each saves a checkpoint and ends, and `grid resume` goes on from there.

    Runs that another grid wants as well go on. One RUN, by its id, is paused in every grid that wants it, and is not
    started by anyone, `grid run` included, until it is resumed itself.

    \b
    Examples:
      grid pause demo
      grid pause resnet18-0123456789ab
    """
    if is_run(grid, store := the_store()):
        want_run(grid, store, "paused", context, as_json=as_json)
        return
    wanted = _want(grid, "paused", settings_name, assignments, context, "paused")
    stopped = wanted.report.done["Suspend"] + wanted.report.done["Delete"]
    _tell_wanted(wanted, f"{count_text(stopped, 'Job')} stopped", as_json=as_json)


@click.command()
@grid_or_run_argument
@store_option
@cluster_options
@json_option
def resume(
    grid: str, settings_name: str | None, assignments: tuple[str, ...], context: str | None, as_json: bool
) -> None:
    """Go on with a paused or cancelled GRID on its cluster, from its runs' checkpoints.

    Runs that were paused or cancelled by themselves stay so, and are told: one RUN, by its id, goes on in every grid
    that wants it.

    \b
    Examples:
      grid resume demo && grid watch demo
      grid resume resnet18-0123456789ab
    """
    if is_run(grid, store := the_store()):
        want_run(grid, store, None, context, as_json=as_json)
        return
    from controller.standing import held_text

    wanted = _want(grid, "active", settings_name, assignments, context, "to be trained again")
    did = wanted.report.done
    told = f"{count_text(did['Create'], 'Job')} made, {did['Resume']} started"
    if held := wanted.passes.grids[wanted.grid.name].sight.known.held:
        told += f"; by themselves {held_text(held.values())}, and left so"
    _tell_wanted(wanted, told, as_json=as_json)


@click.command()
@grid_or_run_argument
@store_option
@cluster_options
@json_option
def cancel(
    grid: str, settings_name: str | None, assignments: tuple[str, ...], context: str | None, as_json: bool
) -> None:
    """Take GRID off its cluster: its Jobs are deleted, but for those that another grid wants.

    Results and checkpoints stay. `grid resume`, or `grid submit`, goes on from them. One RUN, by its id, is cancelled
    in every grid that wants it: `grid resume RUN` alone takes that back.

    \b
    Examples:
      grid cancel demo
      grid cancel resnet18-0123456789ab
    """
    if is_run(grid, store := the_store()):
        want_run(grid, store, "cancelled", context, as_json=as_json)
        return
    wanted = _want(grid, "cancelled", settings_name, assignments, context, "cancelled")
    told = f"{count_text(wanted.report.done['Delete'], 'Job')} deleted"
    if left := wanted.report.done["Relabel"]:
        told += f", {left} left to other grids"
    _tell_wanted(wanted, told, as_json=as_json)


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
        settings = _settings(found, store, asked.settings_name, asked.assignments)
        cleared, report, acts = _retry_on_cluster(found, store, settings, asked.context, choice)
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
    with open_view() as view, _joined(grid, facts, store, settings, context, view) as (passes, acting):
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
        _hand_over(grid, settings, passes, acting)
        report = _act_or_look_on(passes, grid.name, acting, before)
    report.raise_refusal()
    return cleared, report, other


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
    """The log of the run's newest attempt that left one, else its failure. Raises SpecError where it left neither."""
    from controller.knowledge import read_failures
    from controller.standing import failure_text
    from trainer.failure import SpecError

    names = ("/log.txt", "/output.txt")
    keys = [entry.key for entry in store.list(f"runs/{run}/attempts/") if entry.key.endswith(names)]
    if not keys and (failure := read_failures(store, [run]).get(run)) is not None:
        note(f"it left no log: this is what its failure in {store.uri} keeps of its output")
        return failure.log_tail or failure_text(failure, with_hint=True).splitlines()
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
    from controller.acted import job_template
    from controller.manifest import to_yaml
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
    work = _work(expansion, choice, store, grid=found.name, with_finished=with_finished)
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
