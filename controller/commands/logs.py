"""`grid logs`: what a run wrote, attempt after attempt, from its pods and from the store."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from controller.commands.reach import Reach, cluster_options, open_namespace, submitted_settings
from controller.commands.surface import READING_SECONDS, is_terminal, json_option, note, store_option, the_store
from controller.wording import plain

if TYPE_CHECKING:
    from controller.attempt_logs import AttemptLog, PodLog
    from controller.cluster import Cluster
    from controller.jobs import PodView
    from trainer.logs import Line
    from trainer.store import Store

LOG_AGAIN_SECONDS = 1.0  # between two looks for what is new
HELD_LINES = 20  # of a pod that is followed, until one of them says which attempt it is
LEVELS = ("debug", "info", "warning", "error", "critical")
COLOURS = {"warning": "yellow", "error": "red", "critical": "red"}
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _moment(_ctx: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    """The time that --since means, as lines have theirs: how long ago, or a time, in UTC where it names no zone."""
    from trainer.failure import SpecError
    from trainer.logs import stamp

    if given is None:
        return None
    try:
        if (ago := re.fullmatch(r"(\d{1,9})([smhd])", given)) is not None:
            return stamp(time.time() - timedelta(**{UNITS[ago[2]]: int(ago[1])}).total_seconds())
        moment = datetime.fromisoformat(given)
        return stamp((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError, OSError) as error:  # the last two: long before any log
        raise SpecError(
            f"--since: got {plain(given)!r}, expected how long ago, or a time",
            hint="30s, 10m, 2h, 1d; 2026-11-23T08:00:00Z, 2026-11-23",
        ) from error


@click.command()
@click.argument("run", metavar="RUN")
@store_option
@cluster_options
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with what comes, through all attempts, until the run is over."
)
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Only the N-th attempt.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines of what is there.")
@click.option(
    "--since", callback=_moment, metavar="TIME", help="Only what was logged since: 10m, 2h, 2026-11-23T08:00:00Z."
)
@click.option("--level", type=click.Choice(LEVELS), help="Only lines of this level and above.")
@json_option
def logs(
    run: str,
    reach: Reach,
    follow: bool,
    attempt: int | None,
    tail: int | None,
    since: str | None,
    level: str | None,
    as_json: bool,
) -> None:
    """Print the log of RUN, by its id: all its attempts in order, from its pods and from the store.

    A line before each attempt says where it was and how it ended. With --json each line is a JSON object.

    \b
    Examples:
      grid logs resnet18-0123456789ab
      grid logs -f resnet18-0123456789ab                   a run on this machine, too
      grid logs --level warning --since 2h resnet18-0123456789ab
      grid logs --json resnet18-0123456789ab | jq 'select(.level == "error").traceback'
    """
    from controller.attempt_logs import RunLogs

    store = the_store(patience_seconds=READING_SECONDS)
    pods = _Pods(run, store, reach)
    reader = RunLogs(store, run)
    printer = _Printer(run, as_json, attempt, since, level)
    found = reader.read(pods.read(), only=attempt)
    if not found and not (follow and (pods.waits or _is_planned(run, store))):
        _print_failure(run, store, pods, printer)
        return
    printer.show(found, tail)
    _tell_missing(attempt, found, follow=follow)
    pods.tell_waits()
    while follow and not reader.is_over:
        if not _follow_pod(pods, printer, run) and not any(each.end is None for each in found):
            pods.tell_waits("it is not at work now: waiting for its next attempt")
        time.sleep(LOG_AGAIN_SECONDS)
        found = reader.read(pods.read(), only=attempt)
        printer.show(found)


def _is_planned(run: str, store: Store) -> bool:
    return any(entry.key == f"runs/{run}/spec.yaml" for entry in store.list(f"runs/{run}/spec"))


def _tell_missing(attempt: int | None, found: Sequence[AttemptLog], *, follow: bool) -> None:
    """Raise SpecError where the attempt that is asked for is none of the run's, unless it may yet come."""
    from trainer.failure import SpecError

    numbers = [each.number for each in found if each.number is not None]
    if attempt is None or attempt in numbers or follow:
        return
    raise SpecError(
        f"--attempt: got {attempt}, expected {' or '.join(map(str, numbers)) or 'none: the run has no attempt yet'}",
        hint="without --attempt all are shown",
    )


def _follow_pod(pods: _Pods, printer: _Printer, run: str) -> bool:
    """Print what the newest pod at work writes until it has ended; whether there is one."""
    from controller.attempt_logs import AttemptLog, attempt_of
    from trainer.logs import read_line

    pod = pods.at_work()
    if pod is None:
        return False
    name = pods.attempts.get(pod.uid)
    held: list[Line] = []
    for text in pods.stream(pod):
        line = read_line(text)
        name = name or attempt_of(line)
        held.append(line)
        if name is not None or len(held) > HELD_LINES:
            printer.add(AttemptLog(run, name, pod=pod.name, node=pod.node, began=held[0].time), held)
            held.clear()
    return True


class _Pods:
    """The run's pods, in whatever namespace its grids were submitted to; none where no cluster is to be had."""

    def __init__(self, run: str, store: Store, reach: Reach) -> None:
        self.waits: dict[str, str] = {}  # by pod that has not started: what it waits for
        self.attempts: dict[str, str] = {}  # by the pod's uid
        self._run = run
        self._told: set[str] = set()
        self._found: list[tuple[Cluster, PodView]] = []
        self._ended: dict[str, list[Line]] = {}  # what pods that have ended wrote, by uid
        self._num_read: dict[str, int] = {}  # lines by uid
        self._clusters = list(self._opened(store, reach))

    def _opened(self, store: Store, reach: Reach) -> Iterator[Cluster]:
        from controller.cluster import ENDING_ERRORS, ClusterError

        for namespace in _namespaces(store, reach):
            opened = open_namespace(namespace, reach.context, patience_seconds=READING_SECONDS)
            try:
                cluster = click.get_current_context().with_resource(opened)
                _pods_of(cluster, self._run)
            except ClusterError as error:
                if reach.settings_name is not None:
                    raise
                note(f"pods of namespace {namespace} are not looked at: {error.message}")
                if isinstance(error, ENDING_ERRORS):
                    return
                continue
            yield cluster

    def read(self) -> list[PodLog]:
        """What each pod has written so far."""
        from controller.attempt_logs import PodLog
        from controller.cluster import NotStarted, ObjectAbsent
        from controller.jobs import CONTAINER
        from trainer.logs import read_lines

        self._found = [(cluster, pod) for cluster in self._clusters for pod in _pods_of(cluster, self._run)]
        self.waits.clear()
        logs = []
        for cluster, pod in self._found:
            lines = self._ended.get(pod.uid)
            if lines is None:
                try:
                    lines = list(read_lines(cluster.logs(pod.name, container=CONTAINER)))
                except NotStarted as error:
                    self.waits[pod.name] = error.waiting_for
                    continue
                except ObjectAbsent:  # it went since: the store has what it wrote
                    continue
            if pod.is_terminal:
                self._ended[pod.uid] = lines
            self._num_read[pod.uid] = len(lines)
            logs.append(PodLog(pod, lines))
            if (name := logs[-1].attempt) is not None:
                self.attempts[pod.uid] = name
        return logs

    def at_work(self) -> PodView | None:
        """The newest pod that has not ended, as it was when they were read last."""
        return next(
            (pod for _, pod in reversed(self._found) if not pod.is_terminal and pod.name not in self.waits), None
        )

    def stream(self, pod: PodView) -> Iterator[str]:
        """The lines that come after those that were read, until its container has ended, or it is gone."""
        from controller.cluster import NotStarted, ObjectAbsent
        from controller.jobs import CONTAINER

        cluster = next(cluster for cluster, each in self._found if each.uid == pod.uid)
        try:
            lines = cluster.logs(pod.name, follow=True, container=CONTAINER)
            for number, line in enumerate(lines):
                if number >= self._num_read.get(pod.uid, 0):
                    yield line
        except (NotStarted, ObjectAbsent):
            return

    def tell_waits(self, otherwise: str | None = None) -> None:
        """Say what pods wait for that have not started, each thing once; `otherwise` where there is none."""
        waits = [f"pod {name} has not started" + (f": {why}" if why else "") for name, why in self.waits.items()]
        for told in waits or ([otherwise] if otherwise else []):
            if told not in self._told:
                self._told.add(told)
                note(told)


def _namespaces(store: Store, reach: Reach) -> list[str]:
    from controller.archive import stored_grids, stored_settings

    if reach.settings_name is not None:
        return [submitted_settings("", store, reach).namespace]
    found = (stored_settings(store, name, reach.assignments) for name in stored_grids(store))
    return list(dict.fromkeys(each.namespace for each in found if each is not None))


def _pods_of(cluster: Cluster, run: str) -> list[PodView]:
    from controller.cluster import PODS
    from controller.jobs import RUN_LABEL, pod_view

    pods = cluster.list(PODS, pod_view, selector=f"{RUN_LABEL}={run}").items
    return sorted(pods, key=lambda pod: pod.created)


def _print_failure(run: str, store: Store, pods: _Pods, printer: _Printer) -> None:
    """Print what the run's failure keeps of its output. Raises SpecError where it left none."""
    from controller.knowledge import read_failures
    from controller.standing import failure_text
    from trainer.failure import SpecError
    from trainer.logs import read_lines

    failure = read_failures(store, [run]).get(run)
    if failure is None:
        told = "".join(f"; pod {name} waits to start: {why or 'nothing says why'}" for name, why in pods.waits.items())
        raise SpecError(
            f"run: got {run!r}, of which there is no pod and no log in {store.uri}, expected the id of a run{told}",
            hint="`grid status GRID --json` shows the ids of its runs",
        )
    note(f"it left no log: this is what its failure in {store.uri} keeps of its output")
    for line in read_lines(failure.log_tail or failure_text(failure, with_hint=True).splitlines()):
        printer.print(line, failure.attempt)


@dataclass(slots=True)
class _Shown:
    """What was printed of an attempt."""

    count: int = 0  # lines, those that were not asked for among them
    last: Line | None = None
    time: str = ""  # the newest of them
    has_title: bool = False
    is_open: bool = False  # its title could not say yet how it ended


@dataclass(slots=True)
class _Printer:
    """Prints lines that are asked for, each once, below the title of their attempt."""

    run: str
    as_json: bool
    attempt: int | None
    since: str | None
    level: str | None
    _shown: dict[str, _Shown] = field(default_factory=dict)  # by attempt and by pod

    def show(self, attempts: Sequence[AttemptLog], tail: int | None = None) -> None:
        """Print what is new of the attempts; of all that no more than `tail` lines."""
        fresh = [(each, self._fresh(each)) for each in attempts if self.attempt in (None, each.number)]
        left = tail if tail is not None else sum(len(lines) for _, lines in fresh)
        kept = []
        for log, lines in reversed(fresh):
            taken = lines[max(0, len(lines) - left) :]
            left -= len(taken)
            kept.append((log, taken))
        is_all = tail is None and self.since is None and self.level is None
        for log, lines in reversed(kept):
            if lines or is_all:
                self._print(log, lines)
            self._close(log)

    def add(self, log: AttemptLog, lines: Sequence[Line]) -> None:
        """Print lines that an attempt wrote after those that were printed."""
        if self.attempt in (None, log.number):
            shown = self._of(log)
            chosen = self._noted(shown, lines)
            if chosen:
                self._print(log, chosen)

    def _fresh(self, log: AttemptLog) -> list[Line]:
        from controller.attempt_logs import after

        shown = self._of(log)
        fresh = self._noted(shown, after(log.lines, shown.count, shown.last, shown.time))
        shown.count = len(log.lines)
        return fresh

    def _of(self, log: AttemptLog) -> _Shown:
        keys = [key for key in (log.name, log.pod) if key is not None]
        shown = next((self._shown[key] for key in keys if key in self._shown), None) or _Shown()
        self._shown |= dict.fromkeys(keys, shown)
        return shown

    def _noted(self, shown: _Shown, lines: Sequence[Line]) -> list[Line]:
        """Those of the new lines that are asked for. What was written beside the log has the time of what is before."""
        least = LEVELS.index(self.level) if self.level else 0
        chosen = []
        for line in lines:
            shown.time = line.time or shown.time
            is_new_enough = self.since is None or shown.time >= self.since
            if is_new_enough and (line.level is None or LEVELS.index(line.level) >= least):
                chosen.append(line)
        if lines:
            shown.count += len(lines)
            shown.last = lines[-1]
        return chosen

    def _print(self, log: AttemptLog, lines: Sequence[Line]) -> None:
        shown = self._of(log)
        if not shown.has_title:
            shown.has_title, shown.is_open = True, log.end is None
            self._print_title(log, f"{log.title}: {log.end or 'at work'}")
        for line in lines:
            self.print(line, log.name)

    def _close(self, log: AttemptLog) -> None:
        """Say how an attempt ended whose title could not."""
        shown = self._of(log)
        if shown.is_open and log.end is not None:
            shown.is_open = False
            self._print_title(log, f"attempt {log.number or 'without a number'}: {log.end}")

    def _print_title(self, log: AttemptLog, text: str) -> None:
        if self.as_json:
            about = {"run": self.run, "attempt": log.name, "pod": log.pod, "node": log.node, "host": log.host}
            said = {"time": log.began, "level": "info", **about, "end": log.end, "message": text}
            click.echo(json.dumps(said, ensure_ascii=False))
        else:
            click.echo(_coloured(plain(f"==> {text} <=="), bold=True))

    def print(self, line: Line, attempt: str | None) -> None:
        """Print one line of the attempt."""
        from trainer.logs import human_lines, json_text

        if self.as_json:
            about = {"run": self.run, **({} if attempt is None else {"attempt": attempt}), **line.about}
            click.echo(json_text(replace(line, about=about)))
            return
        for text in human_lines(line):
            click.echo(_coloured(plain(text), fg=COLOURS.get(line.level or "")))


def _coloured(text: str, **style: Any) -> str:
    """`text` in colour on a terminal whose user has not said no: https://no-color.org"""
    is_plain = not is_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain or not any(style.values()) else click.style(text, **style)
