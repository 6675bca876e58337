"""What a run wrote, attempt after attempt: in its pods while they are there, in the store in any case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from controller.attempts import show_exit
from controller.jobs import PodView
from controller.knowledge import read_failures, read_leases, read_numbers, read_tests
from controller.wording import elided, plain
from trainer.failure import Failure
from trainer.history import PROVENANCE
from trainer.lease import EXPIRY_SECONDS, LeaseRecord, attempt_number
from trainer.logs import Line, human_lines, read_lines, stamp
from trainer.result import Provenance, ResultNumbers, TestResult, parse_record
from trainer.store import Entry, NotFound, Store

LOG, OUTPUT, FAILURE = "/log.txt", "/output.txt", "/failure.json"
LONGEST_END = 300  # characters of how an attempt ended: its log has the rest
_NAMED = re.compile(r"attempt (\d{4,}-[0-9a-f]{8}) (?:begins|goes on)")


@dataclass(frozen=True, slots=True)
class PodLog:
    """A pod of the run and what it wrote so far."""

    pod: PodView
    lines: Sequence[Line]

    @property
    def attempt(self) -> str | None:
        """The attempt that it is, as its lines say."""
        return next((name for name in map(attempt_of, self.lines) if name is not None), None)


def attempt_of(line: Line) -> str | None:
    """The attempt that a line names as its own."""
    found = _NAMED.match(line.message)
    return line.attempt or (found and found[1])


@dataclass(frozen=True, slots=True)
class AttemptLog:
    """One attempt: where it was, how it ended, and what it wrote."""

    run: str
    name: str | None  # 0002-1b2c3d4e; none of a pod that never came so far as to have one
    lines: Sequence[Line] = ()
    end: str | None = None  # none while it is at work
    pod: str | None = None
    node: str | None = None
    host: str | None = None
    began: str | None = None

    @property
    def number(self) -> int | None:
        """Which attempt at the run it is, from 1."""
        return None if self.name is None else attempt_number(self.name)

    @property
    def title(self) -> str:
        """The attempt and where it was."""
        name = "an attempt without a number" if self.name is None else f"attempt {self.number} ({self.name})"
        place = f"pod {self.pod}" if self.pod else self.host and f"host {self.host}"
        node = self.node and f"node {self.node}"
        return ", ".join(filter(None, (name, place, node, self.began and f"from {self.began}")))


class RunLogs:
    """Reads the attempts at a run; what the store has of them is read again only where it has changed."""

    def __init__(self, store: Store, run: str) -> None:
        self.is_over = False  # as of the last reading: nothing is at work, and nothing more is to come
        self._store = store
        self._run = run
        self._read: dict[str, tuple[str, bytes]] = {}  # version and content by key

    def read(self, pods: Sequence[PodLog] = (), *, only: int | None = None) -> list[AttemptLog]:
        """The attempts in order; of `only` the one of that number, the others without their lines.

        Of an attempt whose pod is there, what the pod wrote stands beside what the store has.
        """
        files = self._files()
        facts = _Facts.of(self._store, self._run)
        wanted = [entry for each in files.values() for entry in each.values() if _is_wanted(entry.key, only)]
        contents = self._contents(wanted)
        hosts = {
            attempt: parse_record(Provenance, each[PROVENANCE].key, contents[each[PROVENANCE].key]).host
            for attempt, each in files.items()
            if PROVENANCE in each and each[PROVENANCE].key in contents
        }
        by_attempt, nameless = _matched(pods, hosts, facts.lease)
        names = sorted({*files, *by_attempt, *([facts.lease.attempt] if facts.is_held and facts.lease else [])})
        found = []
        for name in names:
            each = {kind: contents[entry.key] for kind, entry in files.get(name, {}).items() if entry.key in contents}
            pod = by_attempt.get(name)
            lines = _lines(each.get(LOG))
            for seen in (_lines(each.get(OUTPUT)), pod.lines if pod else []):
                lines = merged(lines, seen)
            if only is not None and _number(name) != only:
                lines = []
            failure = parse_record(Failure, f"{name}{FAILURE}", each[FAILURE]) if FAILURE in each else None
            was_killed = OUTPUT in files.get(name, {})
            end = facts.end(name, failure, pod, lines, is_last=name == names[-1], was_killed=was_killed)
            log = AttemptLog(self._run, name, lines, end, host=hosts.get(name) or facts.holder(name))
            found.append(_placed(log, pod))
        for pod in sorted(nameless, key=lambda each: each.pod.created):
            log = _placed(AttemptLog(self._run, None, pod.lines, _pod_end(pod.pod)), pod)
            later = (place for place, other in enumerate(found) if (other.began or "") > (log.began or ""))
            found.insert(next(later, len(found)), log)
        self.is_over = facts.is_concluded and all(each.end is not None for each in found)
        return found

    def _files(self) -> dict[str, dict[str, Entry]]:
        """The files of each attempt that matter here, by their kind."""
        prefix = f"runs/{self._run}/attempts/"
        files: dict[str, dict[str, Entry]] = {}
        for entry in self._store.list(prefix):
            attempt, slash, name = entry.key.removeprefix(prefix).partition("/")
            if _number(attempt) is not None:
                files.setdefault(attempt, {})
                if slash + name in (LOG, OUTPUT, FAILURE, PROVENANCE):
                    files[attempt][slash + name] = entry
        return files

    def _contents(self, entries: Iterable[Entry]) -> dict[str, bytes]:
        versions = {entry.key: entry.version for entry in entries}
        changed = [key for key, version in versions.items() if self._read.get(key, ("",))[0] != version]
        try:
            read = dict(self._store.get_many(changed))
        except NotFound:  # one was removed since
            read = {}
            for key in changed:
                try:
                    read[key] = self._store.get(key)
                except NotFound:
                    del versions[key]
        self._read |= {key: (versions[key], data) for key, data in read.items()}
        return {key: self._read[key][1] for key in versions}


def _is_wanted(key: str, only: int | None) -> bool:
    """Whether a file is to be read: all but the logs of other attempts than `only`."""
    return only is None or key.endswith((FAILURE, PROVENANCE)) or _number(key.split("/")[-2]) == only


def _number(attempt: str) -> int | None:
    """The number of an attempt; none of what is no attempt's name."""
    return attempt_number(attempt) if attempt.partition("-")[0].isdecimal() else None


def _lines(data: bytes | None) -> list[Line]:
    return [] if data is None else list(read_lines(data.decode(errors="replace").splitlines()))


def merged(kept: Sequence[Line], seen: Sequence[Line]) -> list[Line]:
    """What the store kept of an attempt's log, with what only its output has besides, each where it belongs.

    An output has all that was logged, unless its beginning is gone, and what was written beside the log: torn or in
    the form for people, so that of what both have the store's line stands.
    """
    if not kept or not seen:
        return [*kept, *seen]
    places: dict[tuple[str | None, str | None, str], list[int]] = {}
    for number, each in enumerate(kept):
        places.setdefault(_mark(each), []).append(number)
    if not any(_mark(line) in places for line in seen):
        return [*kept, *seen]
    result: list[Line] = []
    done, at = 0, 0
    while at < len(seen):
        line = seen[at]
        at += 1
        place = next((number for number in places.get(_mark(line), ()) if number >= done), None)
        if place is None:
            result.append(line)
            continue
        result += kept[done : place + 1]
        done = place + 1
        if line != kept[place]:  # in the form for people: the rest of it follows as lines of their own
            rest = human_lines(kept[place])[1:]
            if [other.message for other in seen[at : at + len(rest)]] == rest:
                at += len(rest)
    return [*result, *kept[done:]]


def _mark(line: Line) -> tuple[str | None, str | None, str]:
    return line.time, line.level, line.message.partition("\n")[0]


def after(lines: Sequence[Line], count: int, last: Line | None, time: str) -> Sequence[Line]:
    """The lines that come after `count` ones, of which `last` was the last and `time` the newest time.

    Where another source numbers them otherwise they are found by that line, else by the time.
    """
    if last is None:
        return lines
    if count <= len(lines) and lines[count - 1] == last:
        return lines[count:]
    for place in reversed(range(len(lines))):
        if lines[place] == last:
            return lines[place + 1 :]
    return [line for line in lines if line.time is not None and line.time > time]


def _matched(
    pods: Sequence[PodLog], hosts: Mapping[str, str], lease: LeaseRecord | None
) -> tuple[dict[str, PodLog], list[PodLog]]:
    """The pods by the attempt that each is, and those that are none yet."""
    attempts = {host: attempt for attempt, host in hosts.items()}
    if lease is not None:
        attempts.setdefault(lease.node, lease.attempt)
    by_attempt, nameless = {}, []
    for each in pods:
        name = each.attempt or attempts.get(each.pod.name)
        if name is None or _number(name) is None:
            nameless.append(each)
        else:
            by_attempt[name] = each
    return by_attempt, nameless


def _placed(log: AttemptLog, pod: PodLog | None) -> AttemptLog:
    began = next((line.time for line in log.lines if line.time is not None), None)
    if pod is None:
        return replace(log, began=began)
    return replace(
        log, pod=pod.pod.name, node=pod.pod.node, began=began or stamp((pod.pod.started or pod.pod.created).timestamp())
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the store says of the run as a whole."""

    result: ResultNumbers | None
    test: TestResult | None
    failure: Failure | None
    lease: LeaseRecord | None

    @classmethod
    def of(cls, store: Store, run: str) -> _Facts:
        return cls(
            read_numbers(store, [run]).get(run),
            read_tests(store, [run]).get(run),
            read_failures(store, [run]).get(run),
            read_leases(store, [run]).get(run),
        )

    @property
    def is_concluded(self) -> bool:
        return self.result is not None or self.failure is not None

    @property
    def is_held(self) -> bool:
        """Whether an attempt is at work, by its heartbeat."""
        if self.lease is None or self.lease.released:
            return False
        return (datetime.now(UTC) - self.lease.heartbeat).total_seconds() < EXPIRY_SECONDS

    def holder(self, attempt: str) -> str | None:
        """The host of the newest attempt, while nothing else says it."""
        return self.lease.node if self.lease is not None and self.lease.attempt == attempt else None

    def end(
        self,
        attempt: str,
        failure: Failure | None,
        pod: PodLog | None,
        lines: Sequence[Line],
        *,
        is_last: bool,
        was_killed: bool,
    ) -> str | None:
        """How the attempt ended; none while it is at work."""
        if pod is not None and pod.pod.exit_code is None and not pod.pod.is_terminal:
            return None
        if pod is None and self.is_held and self.lease is not None and self.lease.attempt == attempt and not was_killed:
            return None
        if self.failure is not None and self.failure.attempt == attempt:
            failure = self.failure
        if failure is not None:
            return elided(plain(f"failed: {failure.reason}: {failure.message}"), LONGEST_END)
        if self.result is not None and self.result.attempts == _number(attempt):
            return "done: the result is in the store"
        if self.test is not None and is_last:
            return "done: the numbers on the test part are in the store"
        return _last_words(lines) or _pod_end(pod.pod if pod else None) or "ended without a word, as by SIGKILL"


def _last_words(lines: Sequence[Line]) -> str | None:
    """How an attempt ended by the last line of its log."""
    last = next((line for line in reversed(lines) if line.level is not None), None)
    if last is None:
        return None
    said = elided(plain(last.message), LONGEST_END)
    if said.startswith("stopped: "):
        return said
    return f"failed: {said}" if last.level in ("error", "critical") else None


def _pod_end(pod: PodView | None) -> str | None:
    if pod is None or (pod.exit_code is None and not pod.is_terminal):
        return None
    if pod.exit_code is None:
        return elided(plain(": ".join(filter(None, (pod.reason, pod.message))) or "its pod ended"), LONGEST_END)
    why = f": {pod.exit_reason}" if pod.exit_reason not in (None, "Error", "Completed") else ""
    return show_exit(pod.exit_code) + why
