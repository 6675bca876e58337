"""`grid pause`, `resume` and `cancel`: what is wanted of a grid on a cluster, or of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from controller.commands.acting import act_or_look_on, hand_over, joined, kept_settings
from controller.commands.reach import Reach, cluster_options, submission_of, touch
from controller.commands.runs import count_states, counted_work
from controller.commands.single import is_run, want_run
from controller.commands.surface import (
    grid_facts,
    grid_or_run_argument,
    json_option,
    note,
    print_json,
    store_option,
    stored_or_named_grid,
    tell,
    the_store,
)
from controller.wording import count_text

if TYPE_CHECKING:
    from controller.grid import Grid
    from controller.passes import Passes, Report

GONE_SECONDS = 30.0  # that `grid cancel` waits for Jobs to be gone

Intent = Literal["active", "paused", "cancelled"]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What came of a word about a whole grid."""

    grid: Grid
    intent: Intent
    report: Report
    passes: Passes
    acts: str | None  # who else acts on the grid


def _want(given: str, intent: Intent, reach: Reach, did: str) -> _Wanted:
    """Say in the store what is wanted of the grid, and make it so on the cluster."""
    from controller.archive import set_intent
    from controller.live import open_view
    from controller.loops import settle

    store = the_store()
    found = stored_or_named_grid(given, store)
    settings = kept_settings(found, store, reach)
    facts = grid_facts(found, store)
    set_intent(found, store, intent)
    note(f"{found.name} is {did} in {store.uri}")
    starts = intent == "active"  # whoever leads: what ends runs may be done by anyone
    with (
        open_view() as view,
        joined(found, facts, store, settings, reach.context, view, acts=starts) as (passes, acting),
    ):
        if starts:
            before = passes.mirror.snapshot().jobs
            if (other := hand_over(found, settings, passes, acting)) is not None:
                view.say("note", f"{other} acts on it: within half a minute it goes on")
            report = act_or_look_on(passes, found.name, acting, before)
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
    states = {work: state for work, (state, _) in wanted.passes.states(name).items()}
    counts = count_states(states.values())
    if as_json:
        held = dict(wanted.passes.grids[name].sight.known.held)
        did = {"did": dict(wanted.report.done), "acts": wanted.acts}
        print_json({"grid": name, "intent": wanted.intent, "held": held, **did, "counts": counts})
    else:
        tell(f"{name}: {told}; {counted_work(states)}")


@click.command()
@grid_or_run_argument
@store_option
@cluster_options
@json_option
def pause(grid: str, reach: Reach, as_json: bool) -> None:
    """Stop GRID's runs on its cluster: each saves a checkpoint and ends, and `grid resume` goes on from there.

    Runs that another grid wants as well go on. One RUN, by its id, is paused in every grid that wants it, and is not
    started by anyone, `grid run` included, until it is resumed itself.

    \b
    Examples:
      grid pause demo
      grid pause resnet18-0123456789ab
    """
    if is_run(grid, store := the_store()):
        want_run(grid, store, "paused", reach.context, as_json=as_json)
        return
    wanted = _want(grid, "paused", reach, "paused")
    stopped = wanted.report.done["Suspend"] + wanted.report.done["Delete"]
    _tell_wanted(wanted, f"{count_text(stopped, 'Job')} stopped", as_json=as_json)


@click.command()
@grid_or_run_argument
@store_option
@cluster_options
@json_option
def resume(grid: str, reach: Reach, as_json: bool) -> None:
    """Go on with a paused or cancelled GRID on its cluster, from its runs' checkpoints.

    Runs that were paused or cancelled by themselves stay so, and are told: one RUN, by its id, goes on in every grid
    that wants it.

    \b
    Examples:
      grid resume demo && grid watch demo
      grid resume resnet18-0123456789ab
    """
    if is_run(grid, store := the_store()):
        want_run(grid, store, None, reach.context, as_json=as_json)
        return
    from controller.standing import held_text

    wanted = _want(grid, "active", reach, "to be trained again")
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
def cancel(grid: str, reach: Reach, as_json: bool) -> None:
    """Take GRID off its cluster: its Jobs are deleted, but for those that another grid wants.

    Results and checkpoints stay. `grid resume`, or `grid submit`, goes on from them. One RUN, by its id, is cancelled
    in every grid that wants it: `grid resume RUN` alone takes that back.

    \b
    Examples:
      grid cancel demo
      grid cancel resnet18-0123456789ab
    """
    if is_run(grid, store := the_store()):
        want_run(grid, store, "cancelled", reach.context, as_json=as_json)
        return
    wanted = _want(grid, "cancelled", reach, "cancelled")
    told = f"{count_text(wanted.report.done['Delete'], 'Job')} deleted"
    if left := wanted.report.done["Relabel"]:
        told += f", {left} left to other grids"
    _tell_wanted(wanted, told, as_json=as_json)
