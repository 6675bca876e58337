"""`python -m trainer SPEC --store URI`: one attempt at one run, as a pod or the local backend starts it."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from trainer.stop import StopSignal

if __name__ == "__main__":
    # before what takes time to load: a container's process 1 is not even ended by a signal that it does not listen to
    STOP = StopSignal()
    STOP.listen()

from trainer.document import absence, read_file, show_value
from trainer.failure import (
    DeviceError,
    ExitCode,
    Failure,
    GridError,
    SpecError,
    Stopped,
    StoreError,
    failure_of,
    write_termination_message,
)
from trainer.identity import read_spec, run_id
from trainer.logs import ABOUT, log_to_stderr
from trainer.spec import RunSpec
from trainer.store import STORE_PATIENCE_SECONDS, NotFound, Retry, Store, open_store
from trainer.telemetry import SILENT, Instruments, Telemetry, asked_port

if TYPE_CHECKING:
    from trainer.recorder import LogBuffer
    from trainer.run import Report

# torch takes seconds to import: nothing above loads it, so that a finished run ends at once

STOP_GRACE_SECONDS = 20.0  # after a stop signal, how long a last checkpoint may wait for a store: Kubernetes gives 30

log = logging.getLogger("trainer")
log.setLevel(logging.INFO)  # each attempt's log goes to the store, whatever this process shows
Emit = Callable[[dict[str, Any]], None]


def main(
    argv: Sequence[str] | None = None,
    *,
    emit: Emit | None = None,
    stop: StopSignal | None = None,
    telemetry_port: int | None = None,
) -> int:
    """Run one attempt; its exit code. `emit` takes progress events where a parent wants them.

    A training can be scraped from `telemetry_port`, 0 for any free one, while it lasts; none: nothing listens.
    Exits are those of trainer.failure.ExitCode; 1 is a fault of the trainer's own, or of a model factory.
    """
    if stop is None:
        stop = StopSignal()
        stop.listen()
    process = Process(stop)
    try:
        given = parser().parse_args(argv)
        process.during = "test" if given.test else "train"
        if telemetry_port is not None and not given.test:  # a test is over before anyone looks
            process.telemetry = Instruments(telemetry_port)
        process.store = open_store(
            given.store,
            patience_seconds=given.store_patience,
            on_retry=process.hear,
            on_request=process.telemetry.on_request,
        )
        process.run, spec = load_spec(given.spec, process.store)
        ABOUT.run = process.run
        if not process.is_done():
            stop.check()
            process.keep_log()
            process.telemetry.begin(process.run, spec.epochs)
            process.telemetry.serve()
            hold_lease_and_work(process, spec, exact=given.resume == "exact", report=_reporter(spec, emit))
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001 - whatever ends the process is recorded and becomes its exit code
        return _fail(error, process)
    finally:
        process.telemetry.close()
        process.forget_log()


class Process:
    """This process's attempt as far as it has come: what is known by the time it fails is in the failure's record."""

    def __init__(self, stop: StopSignal) -> None:
        self.started = time.monotonic()
        self.stop = stop
        self.patience = Patience(stop)
        self.telemetry: Telemetry = SILENT
        self.during: Literal["train", "test"] = "train"
        self.store: Store | None = None
        self.run: str | None = None
        self.attempt: str | None = None
        self.log: LogBuffer | None = None

    def hear(self, retry: Retry) -> None:
        """Called before a request to the store is sent again: raises StoreError or Stopped where it is not to be."""
        self.patience.spend(retry)
        self.telemetry.retried(retry)

    def is_done(self) -> bool:
        """Whether the store has what this attempt would come to."""
        assert self.store is not None
        done = f"{'tests' if self.during == 'test' else 'results'}/{self.run}.json"
        try:
            self.store.get(done)
        except NotFound:
            return False
        log.info("%s is in the store: nothing to do", done)
        return True

    def keep_log(self) -> None:
        """Keep what is logged from now on, for the store and for the record of a failure."""
        from trainer.recorder import LogBuffer

        self.log = LogBuffer()
        logging.getLogger().addHandler(self.log)  # what libraries warn of is part of it

    def forget_log(self) -> None:
        """End that: another attempt in this process has a log of its own."""
        if self.log is not None:
            logging.getLogger().removeHandler(self.log)
        ABOUT.clear()


def hold_lease_and_work(process: Process, spec: RunSpec, *, exact: bool, report: Callable[[Report], None]) -> None:
    """Train or test the run under its lease. torch is loaded here; a device's fault is raised as DeviceError."""
    from trainer import run as running

    assert process.run is not None
    assert process.store is not None
    assert process.log is not None
    process.stop.check()
    with running.open_attempt(
        process.run,
        spec,
        process.store,
        process.stop,
        process.log,
        exact=exact,
        report=report,
        started=process.started,
        telemetry=process.telemetry,
    ) as attempt:
        process.attempt = ABOUT.attempt = attempt.lease.attempt
        try:
            if process.is_done():  # by another attempt, between the first look and the lease
                return
            work = running.test_experiment if process.during == "test" else running.run_experiment
            work(attempt)
        except Exception as error:
            process.patience.is_over = isinstance(error, StoreError)
            error = _translated(error)
            _say(error)  # while the attempt's log can still be written
            raise error


class Patience:
    """How long this attempt goes on asking a store that does not answer."""

    def __init__(self, stop: StopSignal) -> None:
        self.stop = stop
        self.is_over = False  # the store was given up: what is still to be written is tried once

    def spend(self, retry: Retry) -> None:
        """Called before each wait: raises StoreError or Stopped where waiting has no more sense."""
        if self.is_over:
            raise StoreError(f"{retry.operation} {retry.key}: {retry.error}")
        self.stop.check(grace_seconds=STOP_GRACE_SECONDS)
        log.warning("the store does not answer (%s, %s), trying again in %.0f s", retry.kind, retry.key, retry.delay)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(f"command line: {message}", hint=self.format_usage().strip())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = _Parser(
        prog="python -m trainer",
        description="Train one run to its end, going on from its newest checkpoint. Exit codes: "
        "0 result in the store, 64 spec wrong, 65 data or weights wrong, 69 store unreachable, 70 training failed for "
        "good, 71 device broken, 75 stopped (the checkpoint stands).",
    )
    result.add_argument("spec", metavar="SPEC", help="a spec.yaml, or the id of a run whose spec is in the store")
    result.add_argument("--store", required=True, metavar="URI", help="file:///folder or s3://bucket/prefix")
    result.add_argument("--test", action="store_true", help="evaluate the run's best weights on the test part instead")
    result.add_argument(
        "--resume",
        choices=("exact", "inexact"),
        default="exact",
        help="whether to go on where this machine cannot compute the same numbers (default: exact, refuse)",
    )
    result.add_argument(
        "--store-patience",
        type=_seconds,
        default=STORE_PATIENCE_SECONDS,
        metavar="SECONDS",
        help="how long to wait for a store that does not answer (default: %(default).0f)",
    )
    return result


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds, 0 or more")


def load_spec(given: str, store: Store) -> tuple[str, RunSpec]:
    """The run's id and spec, from a file or from the store. Raises SpecError when there is neither."""
    found = read_file(Path(given), given)
    if found is not None:
        spec = read_spec(found, given)
    else:
        key = f"runs/{given}/spec.yaml"
        try:
            text = store.get(key).decode()
        except (NotFound, ValueError) as error:
            raise SpecError(
                f"SPEC: got {show_value(given)}: {absence(Path(given))}, and {store.uri} has no {key[:120]}",
                hint="give a spec.yaml, or the id of a run that `grid run` or `grid submit` put into the store",
            ) from error
        spec = read_spec(text, key)
    return run_id(spec), spec


def _reporter(spec: RunSpec, emit: Emit | None) -> Callable[[Report], None]:
    """Tells of each epoch in the log, and of everything to `emit`."""
    from trainer.result import EpochMetrics, ResumedFrom

    def report(what: Report) -> None:
        ABOUT.epoch = what.epoch if isinstance(what, EpochMetrics) else what.epoch + 1
        if isinstance(what, EpochMetrics):
            log.info(
                "epoch %d of %d: training %.3f / %.3f, validation %.3f / %.3f%s%s, %.1f images/s",
                what.epoch,
                spec.epochs,
                what.train_loss,
                what.train_accuracy,
                what.validation_loss,
                what.validation_accuracy,
                ", best" if what.best else "",
                ", back to the best" if what.returned_to_best else "",
                what.images_per_second,
            )
        if emit is None:
            return
        if isinstance(what, EpochMetrics):
            emit({"event": "epoch", **what.model_dump()})
        elif isinstance(what, ResumedFrom):
            emit({"event": "resumed", **what.model_dump()})
        else:
            emit({"event": "step", **vars(what)})

    return report


def _translated(error: Exception) -> Exception:
    """`error`, or what it means where torch says that the device is broken, or cannot compute as the spec wants."""
    import torch

    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(error):
        return SpecError(
            f"deterministic: {error}",
            hint="set `deterministic: false`: the same run may then end with slightly other numbers each time",
        )
    if isinstance(error, torch.AcceleratorError):
        return DeviceError(f"device: {error}", hint="the node may need attention; the run is tried elsewhere")
    return error


def _fail(error: BaseException, process: Process) -> int:
    """Record the failure where it can be found later, and say it; its exit code."""
    if process.attempt is None:
        _say(error)
    tail = process.log.tail if process.log else []
    failure = failure_of(error, process.run or "unknown", process.attempt, tail, during=process.during)
    try:
        write_termination_message(failure)
        if process.store is not None and process.run is not None:
            _store_failure(failure, process.store)
    except (GridError, OSError) as second:
        log.warning("the failure could not be recorded: %s", second)
    return failure.exit_code


def _say(error: BaseException) -> None:
    if isinstance(error, Stopped):
        log.info("stopped: %s", error.message)
    elif isinstance(error, GridError):
        log.error("%s", error)
    else:
        log.error("the attempt failed", exc_info=error)


def _store_failure(failure: Failure, store: Store) -> None:
    text = failure.model_dump_json(indent=2).encode()
    if failure.attempt is not None and failure.exit_code != ExitCode.STOPPED:
        store.put(f"runs/{failure.run}/attempts/{failure.attempt}/failure.json", text)
    if failure.final:
        store.put(f"failures/{failure.run}.json", text)


if __name__ == "__main__":
    log_to_stderr()
    sys.exit(main(stop=STOP, telemetry_port=asked_port()))
