"""The processes that train on this machine: how much of it each gets, how they are started, watched and stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Literal

from controller.live import Pace, RunProgress
from controller.standing import Work
from controller.wording import count_text
from trainer.child import BLOCKED_AT_START, PRELOAD, report_load, run_attempt
from trainer.failure import LOG_TAIL_LINES, DeviceError
from trainer.machine import asked_threads, available_memory, available_processors, visible_gpus
from trainer.spec import ExperimentSpec
from trainer.store import Store

PROCESS_BYTES = 3 << 29  # memory to leave for each process: torch, a small network, its part of the images
LOAD_TRIES = 2  # to load torch in the server, where something ends the server while it does
LOAD_PAUSE_SECONDS = 0.5  # before the second: until the first server is seen to be gone
TAIL_BYTES = 1 << 16  # of a process's output, in which its last lines are looked for
SMALL_STEP_PIXELS = 500_000  # below, a step gains nothing by a second thread


# How much at once


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has for runs."""

    processors: int
    memory: int  # bytes that are free
    gpus: tuple[str, ...] = ()
    threads: int | None = None  # what OMP_NUM_THREADS asks for


def this_machine() -> Machine:
    """What there is now."""
    return Machine(available_processors(), available_memory(), visible_gpus(), asked_threads())


def machine_text(machine: Machine) -> str:
    """What of the machine trains: its GPUs, or else its processors."""
    return count_text(len(machine.gpus), "GPU") if machine.gpus else count_text(machine.processors, "processor")


@dataclass(frozen=True, slots=True)
class Share:
    """What one run gets of the machine."""

    threads: int
    gpu: str | None = None

    def environment(self) -> dict[str, str]:
        """The variables that give a process its share."""
        given = {"OMP_NUM_THREADS": str(self.threads)}
        return given if self.gpu is None else {**given, "CUDA_VISIBLE_DEVICES": self.gpu}


def num_threads(spec: ExperimentSpec, machine: Machine, parallel: int | None) -> int:
    """Threads of one run. They enter its numerics, so they hang on the run and the machine and on nothing else."""
    if machine.threads is not None:
        return machine.threads
    if parallel is None and not machine.gpus:
        is_small = spec.batch_size * spec.data.crop**2 < SMALL_STEP_PIXELS
        return 1 if is_small else machine.processors
    return max(1, machine.processors // (parallel or len(machine.gpus)))


def share_of(spec: ExperimentSpec, machine: Machine, parallel: int | None, active: Collection[Share]) -> Share | None:
    """What the next run gets beside those at work; none where it has to wait.

    `parallel` is how many may be at work at once; none leaves that to processors, GPUs and memory.
    """
    threads = num_threads(spec, machine, parallel)
    gpu = _idlest(machine.gpus, active)
    if not active:
        return Share(threads, gpu)
    if parallel is not None:
        return Share(threads, gpu) if len(active) < parallel else None
    if (len(active) + 1) * PROCESS_BYTES > machine.memory:
        return None
    if gpu is not None:
        return Share(threads, gpu) if len(active) < len(machine.gpus) else None
    return Share(threads) if sum(share.threads for share in active) + threads <= machine.processors else None


def _idlest(gpus: Sequence[str], active: Collection[Share]) -> str | None:
    return min(gpus, key=lambda gpu: sum(share.gpu == gpu for share in active), default=None)


# Processes


@dataclass
class Worker:
    """A process at work."""

    work: Work
    label: str
    share: Share
    spec: ExperimentSpec
    process: ForkServerProcess
    pid: int
    events: Connection
    output: Path
    started: float
    pace: Pace = field(default_factory=Pace)
    step: Mapping[str, Any] = field(default_factory=dict)
    epoch: Mapping[str, Any] = field(default_factory=dict)
    resumed_from: int | None = None  # the epoch that it goes on with, from 1; none where it began the run
    has_begun: bool = False  # whether it has said anything yet
    accuracies: dict[int, float] = field(default_factory=dict)  # on the validation part, by epoch

    @property
    def exit_code(self) -> int | None:
        """As a shell has it, 128 + n for signal n; none while it is at work."""
        code = self.process.exitcode
        return 128 - code if code is not None and code < 0 else code

    def drain(self) -> None:
        """Take in what it said of its progress."""
        with suppress(EOFError, OSError):
            while self.events.poll():
                event = self.events.recv()
                self.has_begun = True
                match event["event"]:
                    case "resumed":
                        self.resumed_from = event["epoch"] + 1
                    case "epoch":
                        self.epoch, self.step = event, {}
                        self.note_accuracies({event["epoch"]: event["validation_accuracy"]})
                    case _:
                        self.step = event
                self.pace.note(self.epochs_done / self.spec.epochs)

    def note_accuracies(self, by_epoch: Mapping[int, float]) -> None:
        """Take note of these epochs' accuracies; an epoch that is trained again takes those after it away."""
        first = min(by_epoch, default=0)
        self.accuracies = {epoch: value for epoch, value in self.accuracies.items() if epoch < first} | dict(by_epoch)

    @property
    def epochs_done(self) -> float:
        """Epochs done, with the part of the one in progress."""
        if self.step:
            return float(self.step["epoch"] + self.step["step"] / self.step["num_steps"])
        return float(self.epoch.get("epoch", (self.resumed_from or 1) - 1))

    def progress(self, *, stopping: bool) -> RunProgress:
        """How far it is."""
        newest = {**self.epoch, **self.step}
        at_work: Literal["starting", "training", "testing"] = (
            "testing" if self.work.is_test else "training" if self.has_begun else "starting"
        )
        return RunProgress(
            label=self.label,
            doing="stopping" if stopping else at_work,
            num_epochs=self.spec.epochs,
            epochs_done=self.epochs_done,
            train_loss=newest.get("train_loss"),
            train_accuracy=newest.get("train_accuracy"),
            validation_loss=newest.get("validation_loss"),
            validation_accuracy=newest.get("validation_accuracy"),
            images_per_second=newest.get("images_per_second"),
            seconds_left=self.pace.seconds_left,
            validation_accuracies=tuple(self.accuracies.values()),
        )

    def tail(self) -> list[str]:
        """The last lines of its output."""
        try:
            return self.output_end(TAIL_BYTES).decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        except OSError:
            return []

    def output_end(self, num_bytes: int) -> bytes:
        """The last bytes of its output. Raises OSError where that cannot be read."""
        with self.output.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            return file.read(num_bytes)


class Workers:
    """The processes of this session, forked from a server that loads torch once. This process never does.

    Nothing is loaded before `load` is called: what has nothing to train needs no server.
    """

    def __init__(self, store: Store, folder: Path, resume: str) -> None:
        self.store = store
        self.folder = folder
        self.resume = resume
        self.active: dict[Work, Worker] = {}
        self.load_failure: DeviceError | None = None  # why no process can be started, once `is_ready`
        self.troubles: deque[str] = deque()  # what is to be told of the server
        self._context = multiprocessing.get_context("forkserver")
        self._started = 0
        self._is_asked_for = False
        self._loaded = threading.Event()

    def load(self) -> None:
        """Have torch loaded, if it is not yet; `is_ready` says when that is done."""
        if self._is_asked_for:
            return
        self._is_asked_for = True
        _start_server(self._context)
        threading.Thread(target=self._await_server, name="server", daemon=True).start()

    def _await_server(self) -> None:
        """Note when the server has loaded torch: it forks no sooner, and whoever asks it waits without a word."""
        try:
            for tries_left in reversed(range(LOAD_TRIES)):
                try:
                    self.load_failure = self._ask_server()
                    return
                except (EOFError, OSError):
                    self.load_failure = not_loaded("its process was ended from outside")
                if tries_left:
                    self.troubles.append("the process that loads torch was ended from outside; starting another")
                    time.sleep(LOAD_PAUSE_SECONDS)
                    _start_server(self._context)
        finally:
            self._loaded.set()

    def _ask_server(self) -> DeviceError | None:
        """Why the server could not load torch, by a process forked from it. Raises EOFError or OSError if it died."""
        reports, remote = self._context.Pipe(duplex=False)
        with reports, remote:
            first = self._context.Process(target=report_load, args=(remote,))
            first.start()
            remote.close()
            try:
                error = reports.recv()
            finally:
                first.join()
        return None if error is None else not_loaded(error)

    @property
    def is_ready(self) -> bool:
        """Whether torch was loaded, so that a process can be started at once, or could not be (`load_failure`)."""
        return self._loaded.is_set()

    def start(self, work: Work, label: str, spec: ExperimentSpec, share: Share) -> None:
        """Start an attempt."""
        self._started += 1
        output = self.folder / f"{self._started:04d}-{work.run}.txt"
        argv = [work.run, "--store", self.store.uri, "--resume", self.resume, *(["--test"] if work.is_test else [])]
        events, remote = self._context.Pipe(duplex=False)
        environment = {**os.environ, **share.environment()}  # the server has that of its own start
        process = self._context.Process(
            target=run_attempt, args=(argv, environment, str(output), remote), name=work.run
        )
        _start_server(self._context)  # it is there, unless someone killed it
        process.start()
        remote.close()
        assert process.pid is not None
        now = time.monotonic()
        self.active[work] = Worker(work, label, share, spec, process, process.pid, events, output, now)

    def wait(self, seconds: float) -> None:
        """Return when a process ends, after `seconds` at the latest, with its progress taken in."""
        if self.active:
            wait([each.process.sentinel for each in self.active.values()], seconds)
        else:
            time.sleep(seconds)
        for each in self.active.values():
            each.drain()

    def take_ended(self) -> list[Worker]:
        """Those that ended since the last call; they are at work no longer."""
        ended = [each for each in self.active.values() if each.exit_code is not None]
        for each in ended:
            each.drain()
            each.events.close()
            del self.active[each.work]
        return ended

    def signal(self, number: signal.Signals) -> None:
        """Send the signal to all that are at work. Safe in a signal handler: it asks nothing of the processes."""
        for each in list(self.active.values()):
            with suppress(ProcessLookupError):
                os.kill(each.pid, number)

    def close(self) -> None:
        """Let all that are at work save and stop, and wait until they have."""
        self.signal(signal.SIGTERM)
        for each in list(self.active.values()):
            each.process.join()
        self.take_ended()


def not_loaded(error: str) -> DeviceError:
    """The error that says that no run can be trained here, since torch could not be loaded."""
    return DeviceError(
        f"torch: got {error}, expected that the process that runs are forked from can load it",
        hint="is there memory enough? Free some, or raise the limit on it (`ulimit -v`, a container's or a batch "
        "system's); then the same command goes on",
    )


def _start_server(context: ForkServerContext) -> None:
    """Start the server that runs are forked from, deaf to what a terminal or a supervisor sends to the whole group."""
    context.set_forkserver_preload(["__main__", PRELOAD])
    resource_tracker.ensure_running()  # it would unblock the signals, were it started by the server's start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_AT_START)
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's BLAS starts threads when it is loaded; a fork loses them
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threads is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = threads
