"""Trains a grid on this machine: its runs as processes, under the same contract as pods, in the same store.

1. `take_up` (observe.py): the grid becomes the one that the store has under its name.
2. `observe` (observe.py) reads what is known and records the decisions that it allows; nothing is remembered that the
   store does not say, but for what this process started itself.
3. `next_starts` chooses what to start; `Workers` starts it, each run forked from a server that holds torch already.
4. `judge` says what an exit means: done, failed for good, trained elsewhere, or to be started again.
5. It ends when nothing is at work and nothing is left to start. A first Ctrl-C lets every run save and stop, a second
   one ends them at once; the same command goes on either way.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

from controller.archive import (
    attempt_failure,
    checkpoint_head,
    checkpoint_sequence,
    clear_failures,
    facts_to_show,
    gather_facts,
    read_held,
    record_failure,
    write_run_spec,
)
from controller.attempts import MAX_TRIES, crash_failure, end_text, numbers_missing, tries_after, unrecorded_failure
from controller.grid import Grid
from controller.knowledge import read_decisions, read_failures, read_leases, read_numbers, read_tests
from controller.live import GridProgress, View, open_view
from controller.observe import adoption_text, expanded, observe, take_up
from controller.overview import Overview
from controller.search import Expansion, Facts, Run, fitting, wanted
from controller.selection import Waiting, due_decisions, told_waiting
from controller.standing import (
    Choice,
    Known,
    State,
    Work,
    chosen_work,
    excess_failures,
    failure_text,
    numbers_text,
    refuse_no_fit,
    run_state,
    startable,
    told_held,
)
from controller.wording import count_text, seconds_text
from controller.workers import Machine, Share, Worker, Workers, machine_text, share_of, this_machine
from trainer.failure import FINAL_EXITS, DataError, ExitCode, Failure, OtherNumerics, StoreError
from trainer.history import read_metrics
from trainer.lease import EXPIRY_SECONDS, LeaseRecord, run_lock, this_host
from trainer.lock import HostLock
from trainer.spec import ExperimentSpec
from trainer.store import STORE_PATIENCE_SECONDS, Store

PAUSE_SECONDS = (1.0, 5.0)  # before the second attempt, and before each one after that
LOOK_AGAIN_SECONDS = 2.0  # between looks at a run that is trained elsewhere
TICK_SECONDS = 0.25  # at least so often the view is brought up to date, and a stop is heard
OUTPUT_LIMIT = 1 << 20  # bytes of a process's output that the store keeps: its end
FOLDER_PREFIX = "grid-run-"  # of the temporary folder that attempts write their output to
LOCKLESS_SECONDS = 60.0  # a folder without a lock is about to get it, or its process died before it did


# When to try again


@dataclass(frozen=True, slots=True)
class Backoff:
    """Attempts at one piece of work that ended before their time."""

    count: int = 0  # without a newer checkpoint
    sequence: int = 0  # of the newest checkpoint when the last one ended
    not_before: float = 0.0  # by the monotonic clock


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A run that another process trains."""

    told: str  # `running on node-1:4711, epoch 3`
    lease: LeaseRecord | None
    since: float  # since when that lease stands still, by the monotonic clock
    look_again: float


Verdict = Literal["done", "failed", "elsewhere", "again", "give up"]


def judge(exit_code: int, backoff: Backoff, sequence: int, now: float) -> tuple[Verdict, Backoff]:
    """What the end of an attempt means, and what to remember of it; `sequence` is the newest checkpoint's.

    The bound on attempts is on those that brought no newer checkpoint: a run on a shaky machine may take many.
    """
    if exit_code == ExitCode.OK:
        return "done", Backoff()
    if exit_code in FINAL_EXITS:
        return "failed", Backoff()
    if exit_code == ExitCode.STOPPED:  # by someone else, or because another process has the run: no fault of its own
        return "elsewhere", replace(backoff, not_before=now + LOOK_AGAIN_SECONDS)
    count = tries_after(backoff.count, backoff.sequence, sequence)
    if count >= MAX_TRIES:
        return "give up", Backoff(count, sequence)
    return "again", Backoff(count, sequence, now + PAUSE_SECONDS[min(count, len(PAUSE_SECONDS)) - 1])


def next_starts(
    ready: Sequence[Work],
    specs: Mapping[str, ExperimentSpec],
    machine: Machine,
    parallel: int | None,
    active: Sequence[Share],
) -> list[tuple[Work, Share]]:
    """What to start now, in order. A run that has to wait lets none of those after it pass."""
    starts: list[tuple[Work, Share]] = []
    for work in ready:
        share = share_of(specs[work.run], machine, parallel, [*active, *(given for _, given in starts)])
        if share is None:
            break
        starts.append((work, share))
    return starts


# The grid


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a grid stands when `run_grid` returns."""

    expansion: Expansion
    known: Known
    stopped: bool  # by Ctrl-C or SIGTERM: the same command goes on
    failed: Mapping[str, Failure]  # by run, of those chosen
    waiting: Mapping[str, str]  # by stage that is not decided: why
    told: frozenset[str]  # runs whose failure the view was told

    @property
    def exit_code(self) -> ExitCode:
        """What `grid run` exits with."""
        if self.stopped:
            return ExitCode.STOPPED
        return ExitCode.TRAINING if self.failed else ExitCode.OK


def run_grid(
    grid: Grid,
    store: Store,
    *,
    only: str | None = None,
    stages: Sequence[str] = (),
    parallel: int | None = None,
    resume: Literal["exact", "inexact"] = "exact",
    update: bool = False,
    view: View | None = None,
) -> Outcome:
    """Train what the chosen part of `grid` is missing, and return when nothing is left to start, or at a stop.

    `parallel` runs are at work at once, as many as processors, GPUs and memory allow if none is given. Signals are
    handled while it runs, so this is for a process's main thread. Raises SpecError and DataError before anything
    starts, StoreError when the store stays away.
    """
    choice = Choice(only, tuple(grid.stage(name).name for name in stages))
    taken = take_up(grid, store, choice, update=update)
    if resume == "inexact":
        clear_other_numerics(store, [work.run for work in chosen_work(taken.expansion, choice)])
    with (
        _Signals() as signals,
        own_folder() as folder,
        view or open_view() as shown,
        _workers(store, folder, resume) as workers,
    ):
        session = Session(grid, taken.facts, store, choice, parallel, workers, shown)
        for text in adoption_text(grid, taken.adoption):
            shown.say("note", text)
        signals.stop(session)
        with suppress(_StopNow):
            session.run()
        signals.is_over = True
        if not session.work:
            session.tell_waits()
        if session.stopping is not None:
            shown.say("note", "stopped: the same command goes on from here")
        return session.outcome()


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder, locked while this process lives; those whose process was killed are removed."""
    sweep_folders()
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True) as name:
        lock = HostLock(Path(name, "lock"))
        lock.acquire()
        try:
            yield Path(name)
        finally:
            lock.release()


def sweep_folders() -> None:
    """Remove this user's temporary folders that no process holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # another `grid run` may sweep at the same moment
            seen = folder.lstat()
            if seen.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
                continue
            path = folder / "lock"
            lock = HostLock(path)
            if lock.acquire() if path.exists() else time.time() - seen.st_mtime > LOCKLESS_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()


@contextmanager
def _workers(store: Store, folder: Path, resume: str) -> Iterator[Workers]:
    workers = Workers(store, folder, resume)
    try:
        yield workers
    finally:
        workers.close()


def clear_other_numerics(store: Store, runs: Collection[str]) -> None:
    """Let those of `runs` start again that an earlier session gave up, since this machine computes otherwise."""
    failures = read_failures(store, runs)
    clear_failures(store, [run for run, failure in failures.items() if failure.reason == OtherNumerics.reason])


class _StopNow(BaseException):
    """A second Ctrl-C: whatever is under way is left where it is."""


class _Signals:
    """What SIGINT and SIGTERM do to a session: a first one asks it to stop, a second one ends it at once.

    Until `stop` names the session they do what they did before; once it is over they do nothing, up to the moment
    when all it had is put away.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        return self

    def stop(self, session: Session) -> None:
        """From now on `session` is what a signal stops."""

        def hear(number: int, _frame: FrameType | None) -> None:
            if not session.stopping:
                session.stop(signal.Signals(number).name)
                return
            session.workers.signal(signal.SIGKILL)
            if not self.is_over:
                raise _StopNow

        self._before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Session:
    """One call of `run_grid`: observe, choose, start, wait, until nothing is left."""

    def __init__(
        self,
        grid: Grid,
        facts: Facts,
        store: Store,
        choice: Choice,
        parallel: int | None,
        workers: Workers,
        view: View,
    ) -> None:
        self.grid = grid
        self.facts = facts
        self.store = store
        self.choice = choice
        self.parallel = parallel
        self.workers = workers
        self.view = view
        self.machine = this_machine()
        self.known = Known()
        self.unfinished: list[Work] = []  # of the chosen part, what is neither done nor failed, nor waits for a result
        self.sight = expanded(grid, {}, facts)
        self.work = chosen_work(self.sight.expansion, choice)
        self.stopping: str | None = None
        self.store_error: StoreError | None = None  # what ends the session once its runs have stopped
        self.backoffs: dict[Work, Backoff] = {}
        self._ended: deque[Worker] = deque()  # at work no longer, and not yet concluded
        self._untold: set[Work] = set()  # attempts that may go on from a checkpoint: their first word says from where
        self.elsewhere: dict[Work, Elsewhere] = {}
        self._halted = False
        self._told_stop = False
        self._told_held: str | None = None
        self._told_failed: set[str] = set()
        self._unreachable_since: float | None = None
        self._observe_at = 0.0  # by the monotonic clock
        self._ask_again = 0.0  # when a store that did not answer is asked next, by the monotonic clock
        self._overview = Overview()
        self._durations: list[float] = []  # of the runs that this session trained from their beginning

    def run(self) -> None:
        """Go on until nothing is at work and nothing is left to start, or until a stop has been obeyed."""
        while True:
            try:
                self.advance()
            except StoreError as error:
                self.bear(error)
            self.tell_stop()
            self.tell_troubles()
            self.tell_beginnings(self.workers.active.values())
            self.view.show(self.progress())
            at_work = self.workers.active or self._ended
            if not at_work and (self.stopping is not None or not self.left()):
                break
            self.workers.wait(TICK_SECONDS)
        if self.store_error is not None:
            raise self.store_error

    def advance(self) -> None:
        """Take in what ended, look at the store where something may have changed, and start what may start."""
        self._ended += self.workers.take_ended()
        if time.monotonic() < self._ask_again:
            return
        while self._ended:
            self.conclude(self._ended[0])
            self._ended.popleft()  # not before: where the store does not answer, the end is concluded later
        if self.stopping is None and time.monotonic() >= self._observe_at:
            self.observe()
        if self.stopping is None and self.left():
            self.workers.load()
            if not self.workers.is_ready:
                return
            if self.workers.load_failure is not None:  # the machine's fault, and none of the runs'
                raise self.workers.load_failure
            self.start_ready()

    def bear(self, error: StoreError) -> None:
        """Wait for a store that does not answer while runs, which wait for it too, are at work. Raises the error."""
        now = time.monotonic()
        self._unreachable_since = self._unreachable_since or now
        if not self.workers.active or now - self._unreachable_since > STORE_PATIENCE_SECONDS:
            raise error
        self.view.say("waits", f"the store does not answer, asking again: {error.message}")
        self._observe_at = self._ask_again = now + LOOK_AGAIN_SECONDS

    def stop(self, why: str) -> None:
        """Start nothing any more, and let all that are at work save and stop."""
        self.stopping = why
        self.workers.signal(signal.SIGTERM)

    # Seeing

    def observe(self) -> None:
        """Bring `known`, `expansion` and `waiting` up to date with the store, and record the decisions now possible."""
        self.sight = observe(
            self.grid,
            self.store,
            self.facts,
            self.sight,
            tell=lambda each: self.view.say("kept", f"{each.stage}: {', '.join(each.kept)}: {each.because}"),
        )
        self.known = self.sight.known
        self.work = chosen_work(self.sight.expansion, self.choice)
        self._unreachable_since = None
        self._observe_at = float("inf")  # until something ends, or a run elsewhere is to be looked at
        self.unfinished = startable(self.work, self.known)
        self._tell_held()
        self._look_elsewhere()

    def _tell_held(self) -> None:
        """Say of runs that someone has paused or cancelled that they are not started, when that is new."""
        told = told_held(self.work, self.known)
        if told is not None and told != self._told_held:
            self.view.say("waits", told)
        self._told_held = told

    def _look_elsewhere(self) -> None:
        """Forget runs elsewhere that are done or failed, or that nobody trains any more."""
        for work, seen in list(self.elsewhere.items()):
            told = f"{self.sight.label(work)} (trained elsewhere)"
            if self.known.is_done(work):
                del self.elsewhere[work]
                self.view.say("done", told)
            elif self.known.is_failed(work):
                del self.elsewhere[work]
                self._say_failed(told, self.known.failures[work.run])
            elif (now_seen := self.look(work, seen)) is None:
                del self.elsewhere[work]
            else:
                self.elsewhere[work] = now_seen
        if self.elsewhere:
            self._observe_at = min(self._observe_at, time.monotonic() + LOOK_AGAIN_SECONDS)

    def look(self, work: Work, seen: Elsewhere | None) -> Elsewhere | None:
        """Who else trains the run, as far as this process can see; none where it is free.

        On this host its lock says so; another host's lease counts until it stood still for its term by this clock.
        """
        now = time.monotonic()
        lease = read_leases(self.store, [work.run]).get(work.run)
        told = _running(self.store, work.run, lease) if lease and _is_fresh(lease, datetime.now(UTC)) else None
        lock = run_lock(self.store, work.run)
        if not lock.acquire():
            return Elsewhere(told or "running in another process", lease, now, now + LOOK_AGAIN_SECONDS)
        lock.release()
        if lease is None or lease.released or lease.host == this_host():
            return None
        since = seen.since if seen is not None and seen.lease == lease else now
        if (seen is None and told is None) or now - since > EXPIRY_SECONDS:
            return None  # its attempt waits out the term once more before it takes the lease
        return Elsewhere(told or f"last seen on {lease.holder}", lease, since, now + LOOK_AGAIN_SECONDS)

    def left(self) -> list[Work]:
        """What there is still to do, now or later."""
        return [] if self._halted else self.unfinished

    # Doing

    def start_ready(self) -> None:
        """Start what may start now."""
        self._halted = self._is_halted()
        now = time.monotonic()
        ready = [
            work
            for work in self.left()
            if work not in self.workers.active
            and work not in self.elsewhere
            and self.backoffs.get(work, Backoff()).not_before <= now
        ]
        specs: dict[str, ExperimentSpec] = {work.run: self.sight.runs[work.run].spec for work in ready}
        active = [each.share for each in self.workers.active.values()]
        for work, share in next_starts(ready, specs, self.machine, self.parallel, active):
            if self.stopping is not None:
                return
            self.start(work, self.sight.runs[work.run], share)

    def _is_halted(self) -> bool:
        limit = self.grid.max_failed
        num_failed = excess_failures(self.sight.work, self.known.is_failed, limit)
        if num_failed and not self._halted:
            runs = count_text(num_failed, "run")
            self.view.say("failed", f"{runs} failed, more than max_failed {limit} of the grid: nothing new starts")
        return num_failed > 0

    def start(self, work: Work, run: Run, share: Share) -> None:
        """Start an attempt at `work`, unless another process is at it."""
        if (seen := self.look(work, None)) is not None:
            self._went_elsewhere(work, seen)
            return
        if run.id in (read_tests if work.is_test else read_numbers)(self.store, [run.id]):
            self._observe_at = time.monotonic()  # another process of the same grid was faster
            return
        write_run_spec(self.store, run)
        if not work.is_test and checkpoint_head(self.store, run.id) is not None:
            self._untold.add(work)
        else:
            self.view.say("start", f"{self.sight.label(work)} ({work.run})")
        self.workers.start(work, self.sight.label(work), run.spec, share)
        if self.stopping is not None:  # the signal came while the process was being made
            self.workers.signal(signal.SIGTERM)

    def _went_elsewhere(self, work: Work, seen: Elsewhere) -> None:
        self.elsewhere[work] = seen
        self._observe_at = min(self._observe_at, seen.look_again)
        self.view.say("waits", f"{self.sight.label(work)}: {seen.told}")

    def conclude(self, worker: Worker) -> None:
        """Take in the end of an attempt: say what it means, record what the trainer could not.

        Nothing is remembered before the store has answered all, so that it may be called again after a StoreError.
        """
        work, exit_code, now = worker.work, worker.exit_code, time.monotonic()
        assert exit_code is not None
        self.tell_beginnings([worker])
        self._observe_at = now
        if self.stopping is not None and exit_code != ExitCode.OK:
            return
        if exit_code == ExitCode.DEVICE and self._conclude_other_numerics(worker):
            return
        sequence = checkpoint_sequence(self.store, work.run)
        verdict, backoff = judge(exit_code, self.backoffs.get(work, Backoff()), sequence, now)
        match verdict:
            case "done":
                self._conclude_done(worker)
            case "failed":
                self._conclude_failed(worker, exit_code)
            case "elsewhere":
                if (seen := self.look(work, None)) is not None:
                    self._went_elsewhere(work, seen)
                else:
                    self.view.say("again", f"{worker.label}: someone stopped it; going on")
            case "again":
                recorded = attempt_failure(self.store, work.run, self._keep_output(worker))
                self.view.say(
                    "again",
                    f"{worker.label}: {end_text(exit_code, recorded, worker.tail())}; "
                    f"attempt {backoff.count + 1} of {MAX_TRIES} without a newer checkpoint "
                    f"in {backoff.not_before - now:.0f} s",
                )
            case "give up":
                attempt = self._keep_output(worker)
                recorded = attempt_failure(self.store, work.run, attempt)
                if exit_code == ExitCode.STORE:  # no fault of the run's, and none that its neighbours are spared
                    hint = recorded.hint if recorded else "the last lines of its log say more"
                    told = recorded.message if recorded else end_text(exit_code, None, worker.tail())
                    self.store_error = StoreError(told, hint=hint)
                    self.stop("the store failed")
                    return
                failure = crash_failure(work, attempt, exit_code, recorded, worker.tail(), datetime.now(UTC))
                record_failure(self.store, failure)
                self._say_failed(worker.label, failure)
        self.backoffs[work] = backoff

    def _conclude_done(self, worker: Worker) -> None:
        work = worker.work
        if work.is_test:
            known = Known(tests=read_tests(self.store, [work.run]))
        else:
            known = Known(results=read_numbers(self.store, [work.run]))
            if worker.epoch:  # it may have found its result in the store
                self._durations.append(time.monotonic() - worker.started)
        if known.is_done(work):
            self.view.say("done", f"{worker.label}: {numbers_text(work, known)}")
        else:  # an image under the same contract may be wrong; nothing in this repository does so
            failure = numbers_missing(work, worker.tail(), datetime.now(UTC))
            record_failure(self.store, failure)
            self._say_failed(worker.label, failure)

    def _conclude_failed(self, worker: Worker, exit_code: int) -> None:
        run = worker.work.run
        failure = read_failures(self.store, [run]).get(run)
        if failure is None:  # the trainer could not write it
            failure = unrecorded_failure(
                worker.work, self._keep_output(worker), exit_code, worker.tail(), datetime.now(UTC)
            )
            record_failure(self.store, failure)
        self._say_failed(worker.label, failure)

    def _conclude_other_numerics(self, worker: Worker) -> bool:
        """Whether this machine cannot go on as the run began, which no further attempt would change."""
        run = worker.work.run
        lease = read_leases(self.store, [run]).get(run)
        recorded = attempt_failure(self.store, run, lease.attempt if lease else None)
        if recorded is None or recorded.reason != OtherNumerics.reason:
            return False
        hint = (
            f"`grid run {self.grid.name} --resume inexact` goes on here, and the result says so; or go on where the "
            "run began"
        )
        failure = recorded.model_copy(update={"final": True, "hint": hint})
        record_failure(self.store, failure)
        self._say_failed(worker.label, failure)
        return True

    def _say_failed(self, label: str, failure: Failure) -> None:
        self._told_failed.add(failure.run)
        self.view.say("failed", f"{label}: {failure_text(failure, with_hint=True)}")

    def _keep_output(self, worker: Worker) -> str | None:
        """Put an attempt's output into the store, which it could not do itself; the attempt's name, if it had one."""
        lease = read_leases(self.store, [worker.work.run]).get(worker.work.run)
        if lease is None or not lease.holder.endswith(f":{worker.pid}"):
            return None
        if worker.output.is_file():
            key = f"runs/{worker.work.run}/attempts/{lease.attempt}/output.txt"
            try:
                self.store.put(key, worker.output_end(OUTPUT_LIMIT))
            except StoreError:
                if worker.exit_code != ExitCode.STORE:  # what ended the attempt is told also where it still lasts
                    raise
        return lease.attempt

    # Telling

    def tell_beginnings(self, workers: Iterable[Worker]) -> None:
        """Say of each attempt that found a checkpoint where it goes on, once it has said so itself."""
        for worker in workers:
            if worker.work in self._untold and worker.has_begun:
                self._untold.discard(worker.work)
                told = f"{worker.label} ({worker.work.run})"
                if worker.resumed_from is None:
                    self.view.say("start", told)
                else:
                    self.view.say("resume", f"{told} from epoch {worker.resumed_from}")
                    self._recall(worker, worker.resumed_from)

    def _recall(self, worker: Worker, epoch: int) -> None:
        """Let an attempt that goes on in `epoch` know what was reached before it."""
        with suppress(StoreError, DataError):  # what is shown is not worth an end
            rows = read_metrics(self.store, worker.work.run)
            before = {row.epoch: row.validation_accuracy for row in rows if row.epoch < epoch}
            worker.accuracies = before | worker.accuracies

    def tell_stop(self) -> None:
        """Say once that a stop was heard: a signal's handler must not draw."""
        if self.stopping is not None and not self._told_stop:
            self._told_stop = True
            if self.workers.active:
                count = len(self.workers.active)
                runs = f"{count_text(count, 'run')} {'saves and stops' if count == 1 else 'save and stop'}"
                self.view.say("note", f"{self.stopping}: {runs}; Ctrl-C again ends at once, and loses nothing either")

    def tell_troubles(self) -> None:
        """Say what befell the server that runs are forked from."""
        while self.workers.troubles:
            self.view.say("again", self.workers.troubles.popleft())

    def tell_waits(self) -> None:
        """Say for what the chosen stages wait, where nothing of them is known yet."""
        for stage in self.sight.expansion.stages:
            if stage.waiting and self.choice.takes_stage(stage.name):
                self.view.say("waits", f"{stage.name}: {stage.waiting}")

    def progress(self) -> GridProgress:
        """How far the grid is."""
        progress = self._overview.progress(
            self.grid,
            self.sight,
            self.work,
            {work: each.progress(stopping=self.stopping is not None) for work, each in self.workers.active.items()},
            elsewhere={work: seen.told for work, seen in self.elsewhere.items()},
            reasons=self._reasons(),
            durations=self._durations,
            machines=machine_text(self.machine),
        )
        return replace(
            progress,
            loading=progress.num_waiting > 0 and not self.workers.is_ready,
            stopping=self.stopping is not None,
        )

    def _reasons(self) -> dict[str, str]:
        """Why runs that were tried already wait, by run."""
        now = time.monotonic()
        return {
            work.run: f"starts again in {seconds_text(each.not_before - now)}, after an attempt that ended early"
            for work, each in self.backoffs.items()
            if each.count and each.not_before > now
        }

    def outcome(self) -> Outcome:
        """How the grid stands."""
        failed = {each.run: self.known.failures[each.run] for each in self.work if self.known.is_failed(each)}
        return Outcome(
            self.sight.expansion,
            self.known,
            self.stopping is not None,
            failed,
            {stage: each.reason for stage, each in self.sight.waiting.items()},
            frozenset(self._told_failed),
        )


# What other commands ask


@dataclass(frozen=True, slots=True)
class Status:
    """How a grid stands in the store, whoever trains it."""

    expansion: Expansion
    facts: Facts
    known: Known
    active: Mapping[str, str]  # by run: `running on node-1:4711, epoch 3`, `stopped, goes on from epoch 3`
    waiting: Mapping[str, str]  # by stage that is not decided: why
    misfits: tuple[str, ...]  # stages whose recorded decision is over other rows than the grid has, and is left out
    lacking: Mapping[str, DataError] = field(default_factory=dict)  # what unfinished runs need, by its name

    def state(self, work: Work) -> tuple[State, str | None]:
        """How the work stands, and why it is not done."""
        return run_state(work, self.known, self.active)


def status(grid: Grid, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Status:
    """How the grid stands in `store`; nothing is written and nothing starts. Raises GridError as `expand` does.

    Data and weights that are missing are no error.
    """
    facts, lacking = facts_to_show(store, wanted(grid))
    recorded = read_decisions(store, grid.name)
    expansion, misfits = fitting(grid, recorded, facts)
    decisions = {stage: decision for stage, decision in recorded.items() if stage not in misfits}
    runs = expansion.runs()
    known = Known(
        decisions,
        read_numbers(store, runs),
        read_tests(store, runs),
        read_failures(store, runs),
        read_held(store, grid.name),
    )
    said = due_decisions(grid, expansion, known.results, known.failures, now(), known.held)
    waiting = {
        stage: each.reason if isinstance(each, Waiting) else "for `grid run` to record its decision"
        for stage, each in said.items()
    }
    unfinished = dict.fromkeys(work.run for work in chosen_work(expansion, Choice()) if not known.is_done(work))
    specs = [runs[run].hyperparameters for run in unfinished]
    needed = {name for spec in specs for name in (spec.data.name, spec.model.weights)}
    leases = read_leases(store, unfinished)
    active = {run: activity(store, run, lease, now(), is_trained=run in known.results) for run, lease in leases.items()}
    told = {run: text for run, text in active.items() if text}
    short = {name: error for name, error in lacking.items() if name in needed}
    return Status(told_waiting(expansion, waiting), facts, known, told, waiting, misfits, short)


def activity(store: Store, run: str, lease: LeaseRecord, now: datetime, *, is_trained: bool) -> str | None:
    """What became of the attempt that has or had the run's lease; none where there is nothing to go on from.

    Of an attempt on this host its lock says whether it lives; of another host's, only how fresh its lease is.
    """
    if _is_alive(store, run, lease, now):
        return _running(store, run, lease)
    head = checkpoint_head(store, run)
    return None if is_trained or head is None else f"stopped, goes on from epoch {head.epochs_done + 1}"


def _is_alive(store: Store, run: str, lease: LeaseRecord, now: datetime) -> bool:
    if lease.released:
        return False
    if lease.host == this_host():
        with suppress(StoreError):  # a store that cannot be written has no locks either: its lease has to do
            lock = run_lock(store, run)
            is_free = lock.acquire()
            lock.release()
            return not is_free
    return _is_fresh(lease, now)


def _is_fresh(lease: LeaseRecord, now: datetime) -> bool:
    """Whether the lease was renewed within its term, by a clock that may differ: to be shown, not to be acted on."""
    return not lease.released and (now - lease.heartbeat).total_seconds() < EXPIRY_SECONDS


def _running(store: Store, run: str, lease: LeaseRecord) -> str:
    """Where the run is trained, and how far it is by what is newest: its lease, or its checkpoint."""
    head = checkpoint_head(store, run)
    return f"running on {lease.holder}, epoch {max(lease.epoch, head.epochs_done if head else 0) + 1}"


def retry(grid: Grid, store: Store, choice: Choice | None = None) -> dict[str, Failure]:
    """Clear the final failures of the chosen runs, so that `grid run` starts them again; those cleared, by run."""
    choice = choice or Choice()
    facts = gather_facts(store, wanted(grid))
    expansion, _ = fitting(grid, read_decisions(store, grid.name), facts)
    refuse_no_fit(choice, grid, expansion)
    runs = [work.run for work in chosen_work(expansion, choice)]
    return clear_failures(store, list(dict.fromkeys(runs)))
