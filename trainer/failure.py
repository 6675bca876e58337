"""Errors a user can cause or must hear of, the exit codes they end in, and the record a failure leaves."""

from __future__ import annotations

import os
import traceback
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ExitCode(IntEnum):
    """What a trainer process says to whoever started it (the contract in docs/architecture.md)."""

    OK = 0  # the result is in the store
    SPEC = 64  # the spec is wrong
    DATA = 65  # the data or weights are wrong, missing, or not those the spec expects
    STORE = 69  # the store could not be reached for `store_patience`
    TRAINING = 70  # training failed for good
    DEVICE = 71  # the device is broken: try elsewhere
    CLUSTER = 72  # of `grid` alone: the cluster cannot be reached, or refuses
    STOPPED = 75  # told to stop, or lost the lease: the checkpoint stands


FINAL_EXITS = frozenset({ExitCode.SPEC, ExitCode.DATA, ExitCode.TRAINING})
"""Exits after which a further attempt could only fail again."""
LOG_TAIL_LINES = 40  # of an attempt's log that its failure keeps


class GridError(Exception):
    """An error with its place, what was got and wanted in one message, and the cure as a hint."""

    exit_code = ExitCode.SPEC
    reason = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class SpecError(GridError, ValueError):
    """A spec, a grid or a command line is wrong."""

    exit_code = ExitCode.SPEC
    reason = "spec"


class DataError(GridError, ValueError):
    """Data or weights are wrong, missing, or not those the spec expects."""

    exit_code = ExitCode.DATA
    reason = "data"


class StoreError(GridError, OSError):
    """The store cannot do what was asked: no bucket, no access, no such endpoint, or no answer."""

    exit_code = ExitCode.STORE
    reason = "store"


class StoreAway(StoreError):
    """The store gave no answer for as long as it was waited for."""


class TrainingError(GridError):
    """Training failed for good: the loss is not finite at every restart, or device memory is too small."""

    exit_code = ExitCode.TRAINING
    reason = "training"


class Diverged(TrainingError):
    """The loss stayed non-finite through every restart."""

    reason = "diverged"


class OutOfDeviceMemory(TrainingError):
    """Device memory is too small even for one image at a time."""

    reason = "out-of-device-memory"


class DeviceError(GridError):
    """The device is broken; the same run may succeed on another."""

    exit_code = ExitCode.DEVICE
    reason = "device"


class OtherNumerics(DeviceError):
    """This machine computes otherwise than the run's first attempt did: trying again here cannot help."""

    reason = "numerics"


class Stopped(GridError):
    """The run was told to stop, or its lease is held by another attempt; what is checkpointed stands."""

    exit_code = ExitCode.STOPPED
    reason = "stopped"


class Failure(BaseModel):
    """One failed attempt, as `failures/<run>.json` (final ones) and `attempts/<attempt>/failure.json` hold it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: str
    attempt: str | None = Field(description="the attempt that failed; none when no trainer got that far")
    exit_code: int = Field(description="exit status of the process; 128 + n when signal n ended it")
    reason: str = Field(description="one word to group by: spec, data, diverged, out-of-device-memory, crashed, …")
    message: str
    hint: str | None = None
    during: Literal["train", "test"] = Field(
        default="train", description="what failed: the run's training, or the test of what it came to"
    )
    final: bool = Field(description="whether only `grid retry` may start the run again")
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    log_tail: list[str] = Field(default_factory=list, description="the last lines of the attempt's log")


def failure_of(
    error: BaseException,
    run: str,
    attempt: str | None,
    log_tail: list[str],
    *,
    during: Literal["train", "test"] = "train",
) -> Failure:
    """The record of `error`; what is no GridError is a bug or an outside fault, recorded as `crashed`, exit 1."""
    if isinstance(error, GridError):
        return Failure(
            run=run,
            attempt=attempt,
            exit_code=error.exit_code,
            reason=error.reason,
            message=encodable(error.message),
            hint=encodable(error.hint) if error.hint else None,
            during=during,
            final=error.exit_code in FINAL_EXITS,
            log_tail=log_tail,
        )
    return Failure(
        run=run,
        attempt=attempt,
        exit_code=1,
        reason="crashed",
        message=encodable(f"{type(error).__name__}: {error}{_place_of(error)}"),
        hint="the attempt's log in the store has the whole traceback" if attempt else None,
        during=during,
        final=False,
        log_tail=log_tail,
    )


def encodable(text: str) -> str:
    """The text, what UTF-8 cannot hold as escapes: Python reads file names that are no UTF-8 so that they do."""
    return text.encode("utf-8", "backslashreplace").decode()


def _place_of(error: BaseException) -> str:
    """Where it was raised, as far as Python knows."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_LIMIT = (
    4096  # bytes; https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
)


def write_termination_message(failure: Failure) -> None:
    """Leave `failure` where Kubernetes reads a pod's last words; does nothing where there is no such file."""
    path = Path(os.environ.get("GRID_TERMINATION_LOG", TERMINATION_LOG))
    if not path.exists():
        return
    while len(text := failure.model_dump_json().encode()) > TERMINATION_LIMIT:
        failure = _shorter(failure)
    path.write_bytes(text)


def _shorter(failure: Failure) -> Failure:
    """The failure without its oldest line of log; once that is used up, with half of its hint or message."""
    if failure.log_tail:
        return failure.model_copy(update={"log_tail": failure.log_tail[1:]})
    name = max(("hint", "message"), key=lambda name: len(getattr(failure, name) or ""))
    text: str = getattr(failure, name)
    return failure.model_copy(update={name: text[: len(text) // 2] + "…"})
