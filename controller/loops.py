"""How many passes are made: until nothing is left to do now, until another process has acted, until a grid is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from controller.passes import Passes, Report
from trainer.failure import StoreError
from trainer.store import STORE_PATIENCE_SECONDS

PASS_SECONDS = 5.0  # between two passes where nothing changes: deadlines and delays come by themselves
GATHER_SECONDS = 0.1  # that changes are gathered for one pass
TICK_SECONDS = 0.5  # between two drawings of the view
STORE_AGAIN_SECONDS = 5.0  # before a store that did not answer is asked again
LOOK_ON_SECONDS = 6.0  # that a command waits to see what another process makes of its word
SETTLE_SECONDS = 10.0  # that `settle` waits for what is on its way: a Job's deletion, a change that came between


def settle(passes: Passes, *, seconds: float = SETTLE_SECONDS) -> Report:
    """Make passes until nothing is left that can be done now; what they did.

    What is on its way, such as a Job that is being deleted, is waited for `seconds`, and so is the right to act where
    it was lost meanwhile: what is `left` then is another's. Raises what `Passes.one` raises.
    """
    total = Report()
    until = time.monotonic() + seconds
    while True:
        report = passes.one()
        total.add(report)
        if report.done:
            until = max(until, time.monotonic() + seconds)
        elif time.monotonic() >= until or not (report.overtaken or report.left or _is_on_its_way(passes)):
            return total
        else:
            passes.mirror.wait(0.2)


def look_on(passes: Passes, is_enough: Callable[[], bool], *, seconds: float = LOOK_ON_SECONDS) -> None:
    """Make passes while another process acts, until it `is_enough`, for `seconds` at most."""
    until = time.monotonic() + seconds
    passes.one()
    while not is_enough() and time.monotonic() < until:
        passes.mirror.wait(0.2)
        passes.one()


def _is_on_its_way(passes: Passes) -> bool:
    """Whether a Job that is wanted is being deleted."""
    seen = passes.seen
    assert seen is not None
    known = [each.sight.known for each in passes.grids.values()]
    return any(
        job.is_deleting
        and any(job.work in grid.wants and grid.intent_for(job.work.run) == "active" for grid in seen.grids.values())
        and not any(each.is_done(job.work) or each.is_failed(job.work) for each in known)
        for job in seen.jobs.values()
    )


def watch(passes: Passes, name: str, *, patience_seconds: float = STORE_PATIENCE_SECONDS) -> None:
    """Make passes until the grid is over, or is not to be trained any more. Raises StoreError, ClusterError."""
    next_pass = 0.0
    silent_since: float | None = None
    while True:
        now = time.monotonic()
        if now >= next_pass:
            try:
                report = passes.one()
            except StoreError as error:
                silent_since = silent_since or now
                if now - silent_since > patience_seconds:
                    raise
                passes.view.say("waits", f"the store does not answer, asking again: {error.message}")
                next_pass = time.monotonic() + STORE_AGAIN_SECONDS
            else:
                silent_since = None
                if report.done or report.overtaken:
                    next_pass = 0.0
                elif passes.is_over(name):
                    passes.view.show(passes.progress(name))
                    return
                else:
                    next_pass = time.monotonic() + PASS_SECONDS
        if passes.seen is not None:
            passes.view.show(passes.progress(name))
        wait = min(TICK_SECONDS, max(0.0, next_pass - time.monotonic()))
        if passes.mirror.wait(wait) and silent_since is None:
            time.sleep(GATHER_SECONDS)
            next_pass = 0.0
