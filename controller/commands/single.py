"""`grid pause`, `resume` and `cancel` of one run, by its id, in every grid that wants it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from controller.commands.reach import open_namespace, submission_of, touch
from controller.commands.surface import grid_facts, note, print_json, tell
from controller.wording import count_text, listed, plain

if TYPE_CHECKING:
    from controller.cluster import ClusterError
    from controller.grid import Grid
    from controller.passes import Passes, Report
    from controller.search import Facts, Needs
    from controller.settings import Settings
    from controller.standing import Held
    from trainer.store import Store

RUN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?-[0-9a-f]{12}")


def is_run(given: str, store: Store) -> bool:
    """Whether a command line means a run by `given`, and no grid of that name."""
    from controller.archive import stored_grids

    return RUN.fullmatch(given) is not None and given not in stored_grids(store)


def want_run(run: str, store: Store, held: Held | None, context: str | None, *, as_json: bool) -> None:
    """Say in the store what is wanted of the run in every grid that wants it, make it so on its clusters, and tell it.

    None lets it go on. Raises SpecError where no grid wants it.
    """
    from controller.archive import hold_run, stored_settings
    from trainer.failure import SpecError

    _refuse_settings()
    grids = _wanting(run, store, context)
    if not grids:
        raise SpecError(
            f"run: got {run!r}, which no grid of {store.uri} wants, expected the id of a run, or a grid",
            hint="`grid status GRID --json` shows the ids of its runs",
        )
    before = {grid.name: hold_run(grid, store, run, held) for grid in grids}
    said = held or "to be trained again"
    note(f"{run} is {said} in {store.uri}, {_places(list(before))}")
    places: dict[str, list[tuple[Grid, Settings]]] = {}
    for grid in grids:
        if (settings := stored_settings(store, grid.name)) is not None:
            places.setdefault(settings.namespace, []).append((grid, settings))
    reports = [_act(run, store, each, namespace, context, held) for namespace, each in places.items()]
    _tell_whole_grids(grids, store, held)
    if held is not None and not places:
        _tell_at_work(run, store)
    did = {name: sum(report.done[name] for report in reports) for name in ("Create", "Resume", "Suspend", "Delete")}
    if as_json:
        done = {name: number for name, number in did.items() if number}
        print_json({"run": run, "intent": held or "active", "grids": list(before), "did": done})
        return
    told = "nothing of it was paused or cancelled" if held is None and not any(before.values()) else said
    tell(f"{run}: {told}, {_places(list(before))}{_did(did)}")


def _places(grids: Sequence[str]) -> str:
    return f"in {'grid' if len(grids) == 1 else 'grids'} {listed([plain(name) for name in grids], 10)}"


def _did(did: Mapping[str, int]) -> str:
    words = {"Create": "made", "Resume": "started", "Suspend": "stopped", "Delete": "deleted"}
    told = [f"{count_text(did[name], 'Job')} {word}" for name, word in words.items() if did[name]]
    return f"; {', '.join(told)}" if told else ""


def _refuse_settings() -> None:
    """Raise SpecError where the command line names settings: a run has none of its own."""
    from trainer.failure import SpecError

    context = click.get_current_context()
    for name, option in (("settings_name", "--settings"), ("assignments", "--setting")):
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise SpecError(
                f"{option}: got it with a run, expected it with a grid alone: a run is made by its grids' settings",
                hint="`grid watch GRID` takes new settings of a grid",
            )


# Who wants it


def _wanting(run: str, store: Store, context: str | None) -> list[Grid]:
    """The store's grids that want the run: those that its Job names, and of the others those that come to it."""
    from controller.archive import stored_grid, stored_grids
    from trainer.failure import DataError, SpecError

    named = _named_by_jobs(run, store, context)
    facts: dict[Needs, Facts] = {}
    found = []
    for name in stored_grids(store):
        try:
            grid = stored_grid(store, name)
            if grid is not None and (name in named or _wants(grid, run, store, facts)):
                found.append(grid)
        except (SpecError, DataError) as error:
            note(f"grid {plain(name)} is left out, since it cannot be told what it wants: {error.message}")
    return found


def _wants(grid: Grid, run: str, store: Store, facts: dict[Needs, Facts]) -> bool:
    """Whether the grid comes to the run by its decisions so far."""
    from controller.archive import gather_facts
    from controller.knowledge import read_decisions
    from controller.search import fitting, wanted

    needs = wanted(grid)
    if needs not in facts:  # grids over the same data and weights are the rule
        facts[needs] = gather_facts(store, needs)
    return run in fitting(grid, read_decisions(store, grid.name), facts[needs])[0].runs()


def _named_by_jobs(run: str, store: Store, context: str | None) -> set[str]:
    """The grids that the run's Jobs are labelled with, as far as a cluster can be asked."""
    from controller.archive import stored_grids, stored_settings
    from controller.cluster import JOBS, ClusterError, ObjectAbsent
    from controller.jobs import job_name, job_view
    from controller.standing import Work

    settings = (stored_settings(store, name) for name in stored_grids(store))
    named: set[str] = set()
    for namespace in dict.fromkeys(each.namespace for each in settings if each is not None):
        try:
            with open_namespace(namespace, context) as cluster:
                for is_test in (False, True):
                    with suppress(ObjectAbsent):
                        job = job_view(cluster.get(JOBS, job_name(Work(run, is_test))))
                        named |= set(job.grids) if job is not None else set()
        except ClusterError as error:
            note(f"Jobs are not looked at: {error.message}")
            break
    return named


# Making it so


def _act(
    run: str,
    store: Store,
    grids: Sequence[tuple[Grid, Settings]],
    namespace: str,
    context: str | None,
    held: Held | None,
) -> Report:
    """Do on the cluster what is now wanted of the run, and leave all else; what that came to."""
    from controller.acted import ActedGrid
    from controller.live import open_view
    from controller.loops import settle
    from controller.mirror import Mirror
    from controller.passes import Passes

    acted = [ActedGrid(grid, store, grid_facts(grid, store), settings=settings) for grid, settings in grids]
    queues = any(settings.queue is not None for _, settings in grids)
    with (
        open_view() as view,
        open_namespace(namespace, context) as cluster,
        Mirror(cluster, queues=queues) as mirror,
        ExitStack() as leads,
    ):
        passes = Passes(cluster, mirror, store, acted, view, run=run)
        refused = [touch(cluster, submission_of(grid, store, settings), enter=False) for grid, settings in grids]
        if held is None:  # what ends a run may be done by anyone, what starts one by who leads alone
            for other in _lead(leads, passes, grids):
                view.say("note", f"{other} acts on it: {_hears(refused)}")
        report = settle(passes)
    report.raise_refusal()
    return report


def _hears(refused: Sequence[ClusterError | None]) -> str:
    """When who acts comes to know of a word in the store, by what refused to tell it."""
    from controller.serve import REST_SECONDS

    if (why := next(filter(None, refused), None)) is None:
        return "within half a minute it goes on"
    return f"it could not be told, and looks at the store within {REST_SECONDS / 60:.0f} minutes: {why.message}"


def _lead(leads: ExitStack, passes: Passes, grids: Sequence[tuple[Grid, Settings]]) -> Iterator[str]:
    """Who else acts on the grids, each once; without any, `passes` acts as long as this process leads them all."""
    from controller.who_acts import Acting

    mine = [
        leads.enter_context(
            Acting(passes.cluster, grid.name, submission_of(grid, passes.store, settings).stores, passes.view)
        )
        for grid, settings in grids
    ]
    passes.acts = lambda: all(acting() for acting in mine)
    yield from dict.fromkeys(other for acting in mine if (other := acting.other()) is not None)


# Telling


def _tell_whole_grids(grids: Sequence[Grid], store: Store, held: Held | None) -> None:
    """Say which grids keep the run from going on, though it is to go on."""
    from controller.archive import read_intent

    for grid in grids if held is None else ():
        said = read_intent(store, grid.name)
        if said is not None and said.intent != "active":
            note(f"grid {plain(grid.name)} is {said.intent}: `grid resume {plain(grid.name)}` goes on")


def _tell_at_work(run: str, store: Store) -> None:
    """Say that a machine trains the run, which nothing but a stop there ends."""
    from controller.knowledge import read_leases
    from controller.local import activity

    lease = read_leases(store, [run]).get(run)
    told = lease and activity(store, run, lease, datetime.now(UTC), is_trained=False)
    if told and told.startswith("running"):
        note(f"{run} is {told}: Ctrl-C stops it there; it is not started again")
