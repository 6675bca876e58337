"""What happens to the work of grids on a cluster, told to people: each thing once, under the name they know it by."""

from __future__ import annotations

import time
from collections.abc import Mapping

from controller.acted import ActedGrid
from controller.actions import Action, Create
from controller.beginnings import Beginnings
from controller.cluster import ClusterError
from controller.jobs import PodView, job_name
from controller.live import View
from controller.observe import Sight
from controller.reconcile import Observation, told
from controller.search import Decision
from controller.standing import Known, Work, failure_text, numbers_text, told_held

TOLD_WAITS = ("image", "configuration", "unschedulable", "quota", "inadmissible")  # that are worth a line
WAITS_SECONDS = 5.0  # between two looks at what waits and why


class Teller:
    """Says to `view` what happens to `grids`, which may come and go. To be used by one thread.

    With `names_grids` what is told of a run begins with its grid's name.
    """

    def __init__(
        self, grids: Mapping[str, ActedGrid], view: View, beginnings: Beginnings, *, names_grids: bool
    ) -> None:
        self.told_failed: set[str] = set()  # runs
        self.standing: Mapping[str, str] = {}  # by run: how it stood as of the last look at what waits
        self._grids = grids
        self._view = view
        self._beginnings = beginnings
        self._names_grids = names_grids
        self._running: dict[str, PodView] = {}  # by run: the pod that was told to have started
        self._waits: dict[Work, str] = {}  # told, by kind
        self._waits_at = float("-inf")  # by the monotonic clock: when they were told last
        self._held: dict[str, str | None] = {}  # by grid
        self._refusals: set[tuple[str, type[Action], type[ClusterError]]] = set()  # by grid: told

    def label(self, work: Work) -> str:
        """The work as people know it."""
        for name, each in self._grids.items():
            if work.run in each.sight.runs:
                return self._of(name) + each.sight.label(work)
        return job_name(work)

    def decided(self, grid: str, decision: Decision) -> None:
        """Tell what a stage kept, and why."""
        kept = ", ".join(decision.kept)
        self._view.say("kept", f"{self._of(grid)}{decision.stage}: {kept}: {decision.because}")

    def ended(self, name: str, before: Known, sight: Sight) -> None:
        """Tell of the work that has ended since `before`."""
        known = sight.known
        if (len(known.results), len(known.tests), known.failures) == (
            len(before.results),
            len(before.tests),
            before.failures,
        ):
            return
        for work in sight.work:
            if known.is_done(work) and not before.is_done(work):
                self._view.say("done", f"{self._of(name)}{sight.label(work)}: {numbers_text(work, known)}")
            elif known.is_failed(work) and not before.is_failed(work):
                self.told_failed.add(work.run)
                failure = failure_text(known.failures[work.run], with_hint=True)
                self._view.say("failed", f"{self._of(name)}{sight.label(work)}: {failure}")

    def refused(self, action: Action, error: ClusterError) -> None:
        """Tell that the cluster refused an action; of a thousand Jobs that are refused alike one speaks for all."""
        kind = _grid_of(action), type(action), type(error)
        if kind not in self._refusals:
            self._refusals.add(kind)
            hint = f"\nhint: {error.hint}" if error.hint else ""
            self._view.say("failed", f"{error.message}{hint}")

    def taken(self, action: Action) -> None:
        """Note that the cluster took such an action: the next refusal of one is news."""
        self._refusals = {kind for kind in self._refusals if kind[:2] != (_grid_of(action), type(action))}

    def tried_again(self, work: Work, why: str) -> None:
        """Tell that an attempt ended and that another follows."""
        self._view.say("again", f"{self.label(work)}: {why}")

    def look(self, seen: Observation) -> None:
        """Tell of pods that began, and of work that cannot."""
        running = seen.running()
        for run, pod in running.items():
            if not self._beginnings.is_known(pod):
                continue
            before = self._running.get(run)
            if (before is None or before.uid != pod.uid) and any(
                run in each.sight.runs for each in self._grids.values()
            ):
                self._tell_beginning(pod)
            self._running[run] = pod
        self._running = {run: pod for run, pod in self._running.items() if run in running}
        if time.monotonic() >= self._waits_at + WAITS_SECONDS:
            self._tell_waits(seen)
            self._waits_at = time.monotonic()

    def _tell_beginning(self, pod: PodView) -> None:
        where = f"{self.label(pod.work)} ({pod.work.run}) on {pod.node}"
        resumed = self._beginnings.resumed(pod)
        if resumed is None:
            self._view.say("start", where)
        else:
            self._view.say("resume", f"{where} from epoch {resumed.epoch}")

    def _tell_waits(self, seen: Observation) -> None:
        waits: dict[str, list[Work]] = {}
        texts = self.standing = told(seen)
        for each in self._grids.values():
            for work in each.view().wants:
                text = texts.get(work.run, "")
                kind = text.partition(":")[0]
                if kind.startswith(TOLD_WAITS) and not each.sight.known.is_done(work):
                    if self._waits.get(work) != kind:
                        waits.setdefault(text, []).append(work)
                    self._waits[work] = kind
                else:
                    self._waits.pop(work, None)
        for name, each in self._grids.items():
            held = told_held(each.sight.work, each.sight.known) if each.intent == "active" else None
            if held is not None and held != self._held.get(name):
                self._view.say("waits", f"{self._of(name)}{held}")
            self._held[name] = held
        for text, works in waits.items():
            more = f" and {len(works) - 1} more" if len(works) > 1 else ""
            self._view.say("waits", f"{self.label(works[0])}{more}: {text}")

    def _of(self, grid: str) -> str:
        return f"{grid}: " if self._names_grids else ""


def _grid_of(action: Action) -> str:
    """The grid by whose settings a Job is made; none for what is done to a Job that stands."""
    return action.grid if isinstance(action, Create) else ""
