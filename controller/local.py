"""Trains a grid on this machine: its runs as processes, under the same contract as pods, in the same store.

1. `gather_facts` and `adopt` (archive.py): the grid becomes the one that the store has under its name.
2. `Session.observe` reads what is known and records the decisions that it allows; nothing is remembered that the store
   does not say, but for what this process started itself.
3. `next_starts` chooses what to start; `Workers` starts it, each run forked from a server that holds torch already.
4. `judge` says what an exit means: done, failed for good, trained elsewhere, or to be started again.
5. It ends when nothing is at work and nothing is left to start. A first Ctrl-C lets every run save and stop, a second
   one ends them at once; the same command goes on either way.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal

from controller.archive import (
    Adoption,
    adopt,
    attempt_failure,
    checkpoint_sequence,
    clear_failures,
    gather_facts,
    homes,
    record_decision,
    record_failure,
    write_run_spec,
)
from controller.grid import Grid
from controller.knowledge import active_runs, read_decisions, read_failures, read_leases, read_numbers, read_tests
from controller.live import GridProgress, RunProgress, View, open_view
from controller.search import Decision, Expansion, Facts, Run, Waiting, decide, expand, fitting, wanted
from controller.standing import Choice, Known, State, Work, chosen_work, run_state, startable
from controller.workers import Machine, Share, Worker, Workers, share_of, show_exit, this_machine
from trainer.failure import FINAL_EXITS, ExitCode, Failure, SpecError, StoreError
from trainer.lease import EXPIRY_SECONDS, LeaseRecord, run_lock, this_host
from trainer.spec import ExperimentSpec
from trainer.store import STORE_PATIENCE_SECONDS, Store

MAX_TRIES = 3  # attempts without a newer checkpoint
BACKOFF_SECONDS = (1.0, 5.0)  # before the second and the third
LOOK_AGAIN_SECONDS = 2.0  # between looks at a run that is trained elsewhere
TICK_SECONDS = 0.25  # at least so often the view is brought up to date, and a stop is heard


# When to try again


@dataclass(frozen=True, slots=True)
class Tries:
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


def judge(exit_code: int, tries: Tries, sequence: int, now: float) -> tuple[Verdict, Tries]:
    """What the end of an attempt means, and what to remember of it; `sequence` is the newest checkpoint's.

    The bound on attempts is on those that brought no newer checkpoint: a run on a shaky machine may take many.
    """
    if exit_code == ExitCode.OK:
        return "done", Tries()
    if exit_code in FINAL_EXITS:
        return "failed", Tries()
    if exit_code == ExitCode.STOPPED:  # by someone else, or because another process has the run: no fault of its own
        return "elsewhere", replace(tries, not_before=now + LOOK_AGAIN_SECONDS)
    count = 1 if sequence > tries.sequence else tries.count + 1
    if count >= MAX_TRIES:
        return "give up", Tries(count, sequence)
    return "again", Tries(count, sequence, now + BACKOFF_SECONDS[count - 1])


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


def crash_failure(run: str, attempt: str | None, exit_code: int, recorded: Failure | None, tail: list[str]) -> Failure:
    """The final failure of a run that ended MAX_TRIES times without a newer checkpoint; the last end speaks for all."""
    times = f"{MAX_TRIES} attempts brought no newer checkpoint"
    if recorded is not None:
        return recorded.model_copy(
            update={"final": True, "message": f"{recorded.message} ({times})", "time": datetime.now(UTC)}
        )
    hint = "`grid retry` tries again; the last lines of its output are in this failure"
    if exit_code == 128 + signal.SIGKILL:
        hint = "killed: out of memory? Run fewer at once (--parallel), or set a smaller batch_size"
    return Failure(
        run=run,
        attempt=attempt,
        exit_code=exit_code,
        reason="crashed",
        message=f"{show_exit(exit_code)}; {times}",
        hint=hint,
        final=True,
        log_tail=tail,
    )


# The grid


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a grid stands when `run_grid` returns."""

    expansion: Expansion
    known: Known
    stopped: bool  # by Ctrl-C or SIGTERM: the same command goes on
    failed: Mapping[str, Failure]  # by run, of those chosen
    waiting: Mapping[str, str]  # by stage that is not decided: why

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
    facts = gather_facts(store, wanted(grid))
    expand(grid, {}, facts)  # wrong values are told before anything is written
    adoption = adopt(grid, store, facts, update=update)
    with (
        tempfile.TemporaryDirectory(prefix="grid-run-") as folder,
        view or open_view() as shown,
        _workers(store, Path(folder), resume) as workers,
    ):
        session = Session(grid, facts, store, choice, parallel, workers, shown)
        session.tell(adoption)
        with _stop_on_signals(session):
            session.run()
        if session.stopping is not None:
            shown.say("note", "stopped: the same command goes on from here")
        return session.outcome()


@contextmanager
def _workers(store: Store, folder: Path, resume: str) -> Iterator[Workers]:
    workers = Workers(store, folder, resume)
    try:
        yield workers
    finally:
        workers.close()


class _StopNow(BaseException):
    """A second Ctrl-C: whatever is under way is left where it is."""


@contextmanager
def _stop_on_signals(session: Session) -> Iterator[None]:
    """A first SIGINT or SIGTERM asks the session to stop, a second one ends it at once."""

    def hear(number: int, _frame: FrameType | None) -> None:
        if not session.stopping:
            session.stop(signal.Signals(number).name)
            return
        session.workers.signal(signal.SIGKILL)
        raise _StopNow

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with suppress(_StopNow):
            yield
    finally:
        for number, handler in before.items():
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
        self.num_done = self.num_failed = 0
        self.waiting: dict[str, str] = {}
        self._set_expansion(expand(grid, {}, facts))
        self.stopping: str | None = None
        self.store_error: StoreError | None = None  # what ends the session once its runs have stopped
        self.tries: dict[Work, Tries] = {}
        self._ended: deque[Worker] = deque()  # at work no longer, and not yet concluded
        self.elsewhere: dict[Work, Elsewhere] = {}
        self._halted = False
        self._told_stop = False
        self._unreachable_since: float | None = None
        self._observe_at = 0.0  # by the monotonic clock
        self._ask_again = 0.0  # when a store that did not answer is asked next, by the monotonic clock
        self._durations: list[float] = []  # of the runs that this session trained from their beginning

    def run(self) -> None:
        """Go on until nothing is at work and nothing is left to start, or until a stop has been obeyed."""
        while True:
            try:
                self.advance()
            except StoreError as error:
                self.bear(error)
            self.tell_stop()
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
        if self.stopping is None and self.workers.is_ready:
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

    def _set_expansion(self, expansion: Expansion) -> None:
        self.expansion = expansion
        self.runs = expansion.runs()
        self.homes = homes(expansion)
        self.work = chosen_work(expansion, self.choice)
        self.all_work = chosen_work(expansion, Choice())

    def observe(self) -> None:
        """Bring `known`, `expansion` and `waiting` up to date with the store, and record the decisions now possible."""
        decisions = read_decisions(self.store, self.grid.name)
        while True:
            self._set_expansion(expand(self.grid, decisions, self.facts))
            tested = {work.run for work in self.all_work if work.is_test}
            self.known = Known(
                decisions,
                read_numbers(self.store, self.runs, self.known.results),
                read_tests(self.store, tested, self.known.tests),
                read_failures(self.store, self.runs),
            )
            said = decide(self.grid, self.expansion, self.known.results, self.known.failures, datetime.now(UTC))
            self.waiting = {stage: each.reason for stage, each in said.items() if isinstance(each, Waiting)}
            made = [each for each in said.values() if isinstance(each, Decision)]
            if not made:
                break
            for each in made:
                stands = record_decision(self.store, self.grid.name, each)
                self.view.say("kept", f"{each.stage}: {', '.join(stands.kept)}: {stands.because}")
            decisions = read_decisions(self.store, self.grid.name)
        self._unreachable_since = None
        self._observe_at = float("inf")  # until something ends, or a run elsewhere is to be looked at
        self.unfinished = startable(self.work, self.known)
        self.num_done = sum(self.known.is_done(each) for each in self.work)
        self.num_failed = sum(self.known.is_failed(each) for each in self.work)
        self._look_elsewhere()

    def _look_elsewhere(self) -> None:
        """Forget runs elsewhere that are done, or that nobody trains any more."""
        for work, seen in list(self.elsewhere.items()):
            if self.known.is_done(work) or self.known.is_failed(work):
                del self.elsewhere[work]
                self.view.say("done", f"{self.label(work)} (trained elsewhere)")
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
        told = active_runs({work.run: lease}, datetime.now(UTC)).get(work.run) if lease else None
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
            and self.tries.get(work, Tries()).not_before <= now
        ]
        specs: dict[str, ExperimentSpec] = {work.run: self.runs[work.run].spec for work in ready}
        active = [each.share for each in self.workers.active.values()]
        for work, share in next_starts(ready, specs, self.machine, self.parallel, active):
            if self.stopping is not None:
                return
            self.start(work, self.runs[work.run], share)

    def _is_halted(self) -> bool:
        limit = self.grid.max_failed
        failed = {work.run for work in self.all_work if self.known.is_failed(work)}
        halted = limit is not None and len(failed) > limit
        if halted and not self._halted:
            self.view.say(
                "failed", f"{len(failed)} runs failed, more than max_failed {limit} of the grid: nothing new starts"
            )
        return halted

    def start(self, work: Work, run: Run, share: Share) -> None:
        """Start an attempt at `work`, unless another process is at it."""
        if (seen := self.look(work, None)) is not None:
            self._went_elsewhere(work, seen)
            return
        if run.id in (read_tests if work.is_test else read_numbers)(self.store, [run.id]):
            self._observe_at = time.monotonic()  # another process of the same grid was faster
            return
        write_run_spec(self.store, run)
        self.view.say("start", f"{self.label(work)} ({work.run})")
        self.workers.start(work, self.label(work), run.spec, share)
        if self.stopping is not None:  # the signal came while the process was being made
            self.workers.signal(signal.SIGTERM)

    def _went_elsewhere(self, work: Work, seen: Elsewhere) -> None:
        self.elsewhere[work] = seen
        self._observe_at = min(self._observe_at, seen.look_again)
        self.view.say("waits", f"{self.label(work)}: {seen.told}")

    def conclude(self, worker: Worker) -> None:
        """Take in the end of an attempt: say what it means, record what the trainer could not.

        Nothing is remembered before the store has answered all, so that it may be called again after a StoreError.
        """
        work, exit_code, now = worker.work, worker.exit_code, time.monotonic()
        assert exit_code is not None
        self._observe_at = now
        if self.stopping is not None and exit_code != ExitCode.OK:
            return
        sequence = checkpoint_sequence(self.store, work.run)
        verdict, tries = judge(exit_code, self.tries.get(work, Tries()), sequence, now)
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
                self._keep_output(worker)
                self.view.say(
                    "again",
                    f"{worker.label}: {show_exit(exit_code)}; attempt {tries.count + 1} of {MAX_TRIES} without a newer "
                    f"checkpoint in {tries.not_before - now:.0f} s",
                )
            case "give up":
                attempt = self._keep_output(worker)
                recorded = attempt_failure(self.store, work.run, attempt)
                if exit_code == ExitCode.STORE:  # no fault of the run's, and none that its neighbours are spared
                    hint = recorded.hint if recorded else "the last lines of its log say more"
                    self.store_error = StoreError(recorded.message if recorded else show_exit(exit_code), hint=hint)
                    self.stop("the store failed")
                    return
                failure = crash_failure(work.run, attempt, exit_code, recorded, worker.tail())
                record_failure(self.store, failure)
                self._say_failed(worker, failure)
        self.tries[work] = tries

    def _conclude_done(self, worker: Worker) -> None:
        run = worker.work.run
        if worker.work.is_test:
            tested = read_tests(self.store, [run]).get(run)
            told = f"test accuracy {tested.test_accuracy:.4f}, loss {tested.test_loss:.4f}" if tested else ""
        else:
            result = read_numbers(self.store, [run]).get(run)
            if worker.epoch:  # it may have found its result in the store
                self._durations.append(time.monotonic() - worker.started)
            told = (
                f"validation accuracy {result.validation_accuracy:.4f}, loss {result.validation_loss:.4f} "
                f"in epoch {result.best_epoch}"
                if result
                else ""
            )
        if told:
            self.view.say("done", f"{worker.label}: {told}")
        else:  # an image under the same contract may be wrong; nothing in this repository does so
            failure = crash_failure(run, None, 0, None, worker.tail()).model_copy(
                update={"reason": "result-missing", "message": "ended with exit code 0 and left no result"}
            )
            record_failure(self.store, failure)
            self._say_failed(worker, failure)

    def _conclude_failed(self, worker: Worker, exit_code: int) -> None:
        run = worker.work.run
        failure = read_failures(self.store, [run]).get(run)
        if failure is None:  # the trainer could not write it
            failure = Failure(
                run=run,
                attempt=self._keep_output(worker),
                exit_code=exit_code,
                reason=ExitCode(exit_code).name.lower(),
                message=next(iter(worker.tail()[-1:]), show_exit(exit_code)),
                final=True,
                log_tail=worker.tail(),
            )
            record_failure(self.store, failure)
        self._say_failed(worker, failure)

    def _say_failed(self, worker: Worker, failure: Failure) -> None:
        hint = f"\n       hint: {failure.hint}" if failure.hint else ""
        self.view.say("failed", f"{worker.label}: {failure.reason}: {failure.message}{hint}")

    def _keep_output(self, worker: Worker) -> str | None:
        """Put an attempt's output into the store, which it could not do itself; the attempt's name, if it had one."""
        lease = read_leases(self.store, [worker.work.run]).get(worker.work.run)
        if lease is None or not lease.holder.endswith(f":{worker.pid}"):
            return None
        if worker.output.is_file():
            key = f"runs/{worker.work.run}/attempts/{lease.attempt}/output.txt"
            self.store.put_file(key, worker.output)
        return lease.attempt

    # Telling

    def label(self, work: Work) -> str:
        """The run as people know it: its first home, its seed where there are several, and whether it is tested."""
        seed = f" seed {self.runs[work.run].spec.seed}" if len(self.expansion.seeds) > 1 else ""
        return f"{self.homes[work.run][0]}{seed}{' test' if work.is_test else ''}"

    def tell_stop(self) -> None:
        """Say once that a stop was heard: a signal's handler must not draw."""
        if self.stopping is not None and not self._told_stop:
            self._told_stop = True
            if self.workers.active:
                count = len(self.workers.active)
                runs = "1 run saves and stops" if count == 1 else f"{count} runs save and stop"
                self.view.say("note", f"{self.stopping}: {runs}; Ctrl-C again ends at once, and loses nothing either")

    def tell(self, adoption: Adoption) -> None:
        """Say what became of the grid in the store."""
        if adoption.changes:
            changes = "".join(f"\n       {line}" for line in adoption.changes)
            self.view.say("note", f"grid {self.grid.name} updated{changes}")
        for stage in adoption.set_aside:
            self.view.say("note", f"the decision of stage {stage} no longer fits and is set aside")

    def progress(self) -> GridProgress:
        """How far the grid is."""
        running = tuple(each.progress(stopping=self.stopping is not None) for each in self.workers.active.values())
        num_waiting = len(self.work) - self.num_done - self.num_failed - len(running) - len(self.elsewhere)
        return GridProgress(
            grid=self.grid.name,
            num_done=self.num_done,
            num_waiting=max(0, num_waiting),
            num_failed=self.num_failed,
            running=running,
            elsewhere=tuple(f"{self.label(each)}: {seen.told}" for each, seen in self.elsewhere.items()),
            later_stages=tuple(stage.name for stage in self.expansion.stages if stage.waiting),
            seconds_left=time_left(running, num_waiting, self._durations),
            loading=num_waiting > 0 and not self.workers.is_ready,
            stopping=self.stopping is not None,
        )

    def outcome(self) -> Outcome:
        """How the grid stands."""
        failed = {each.run: self.known.failures[each.run] for each in self.work if self.known.is_failed(each)}
        return Outcome(self.expansion, self.known, self.stopping is not None, failed, self.waiting)


def time_left(running: Sequence[RunProgress], num_waiting: int, durations: Sequence[float]) -> float | None:
    """Seconds until all that is known is done; none where no run has ended that would tell, or nothing is left."""
    if not running and not num_waiting:
        return None
    left = [each.seconds_left for each in running if each.seconds_left is not None]
    if not durations:
        return max(left) if left and num_waiting == 0 and len(left) == len(running) else None
    mean = sum(durations) / len(durations)
    total = sum(left) + mean * (num_waiting + len(running) - len(left))
    return max([*left, total / max(1, len(running))])


# What other commands ask


@dataclass(frozen=True, slots=True)
class Status:
    """How a grid stands in the store, whoever trains it."""

    expansion: Expansion
    known: Known
    active: Mapping[str, str]  # by run: `running on node-1:4711, epoch 3`
    waiting: Mapping[str, str]  # by stage that is not decided: why
    misfits: tuple[str, ...]  # stages whose recorded decision is over other rows than the grid has, and is left out

    def state(self, work: Work) -> tuple[State, str | None]:
        """How the work stands, and why it is not done."""
        return run_state(work, self.known, self.active)


def status(grid: Grid, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Status:
    """How the grid stands in `store`; nothing is written and nothing starts. Raises GridError as `expand` does."""
    facts = gather_facts(store, wanted(grid))
    recorded = read_decisions(store, grid.name)
    expansion, misfits = fitting(grid, recorded, facts)
    decisions = {stage: decision for stage, decision in recorded.items() if stage not in misfits}
    runs = expansion.runs()
    known = Known(decisions, read_numbers(store, runs), read_tests(store, runs), read_failures(store, runs))
    said = decide(grid, expansion, known.results, known.failures, now())
    waiting = {
        stage: each.reason if isinstance(each, Waiting) else "for `grid run` to record its decision"
        for stage, each in said.items()
    }
    unfinished = dict.fromkeys(work.run for work in chosen_work(expansion, Choice()) if not known.is_done(work))
    return Status(expansion, known, active_runs(read_leases(store, unfinished), now()), waiting, misfits)


def retry(grid: Grid, store: Store, choice: Choice | None = None) -> dict[str, Failure]:
    """Clear the final failures of the chosen runs, so that `grid run` starts them again; those cleared, by run."""
    choice = choice or Choice()
    facts = gather_facts(store, wanted(grid))
    expansion, _ = fitting(grid, read_decisions(store, grid.name), facts)
    runs = [work.run for work in chosen_work(expansion, choice)]
    if choice.only is not None and not runs:
        raise SpecError(
            f"--only: got {choice.only!r}, which fits no run of grid {grid.name}",
            hint="`grid status` lists the experiments; * stands for any text",
        )
    return clear_failures(store, list(dict.fromkeys(runs)))
