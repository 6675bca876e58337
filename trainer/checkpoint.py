"""A run's resume state in the store: immutable blobs, and a pointer that is written last and never moves backwards."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from trainer.failure import DataError, Stopped
from trainer.lease import Lease
from trainer.result import EpochMetrics, Record, parse_record
from trainer.store import Conflict, NotFound, Store
from trainer.tensors import TensorFile, copied, parsed, read_memory

HASH_DIGITS = 16  # of a blob's SHA-256, in its name

log = logging.getLogger(__name__)


class Blobs(Record):
    """Where one snapshot's tensors are: keys in the store, whose names hold the content's hash."""

    step: int = Field(description="optimiser steps done when it was taken")
    model: str
    optimizer: str


class Progress(Record):
    """How far a run is, all but its tensors. Sums are exact: JSON keeps every bit of a float64."""

    epoch: int = Field(default=0, description="epoch in progress, from 0")
    step_in_epoch: int = Field(default=0, description="optimiser steps done in it")
    step: int = Field(default=0, description="optimiser steps done since the run began")
    loss_sum: float = Field(default=0.0, description="sum over the epoch's training images so far, nats")
    num_correct: int = Field(default=0, description="right answers among them")
    num_seen: int = Field(default=0, description="training images seen in the epoch so far")
    since_best: int = Field(default=0, description="epochs since the best one or the last return to it")
    returns: int = 0
    restarts: int = 0
    epoch_seconds: float = Field(default=0.0, description="time spent in the epoch in progress")
    seconds: float = Field(default=0.0, description="time spent in finished epochs")
    images: int = Field(default=0, description="training and validation images of finished epochs")
    wall_seconds: float = Field(default=0.0, description="time of all attempts up to here, start-up included")
    peak_memory_bytes: int = 0
    exact: bool = Field(default=True, description="whether all of it was computed by the first attempt's numerics")


class Checkpoint(Record):
    """`runs/<id>/checkpoint.json`."""

    run: str
    attempt: str
    sequence: int = Field(description="grows by one with every checkpoint of the run")
    progress: Progress
    state: Blobs
    best: Blobs | None
    best_metrics: EpochMetrics | None
    previous: Checkpoint | None = Field(default=None, description="the one before, should a blob of this be damaged")


@dataclass
class Snapshot:
    """Tensors of model and optimiser, copied so that training can go on; and where they are once written."""

    step: int  # optimiser steps done when they were copied
    model: TensorFile
    optimizer: TensorFile
    blobs: Blobs | None = None


def snapshot(step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Snapshot:
    """Copies of the tensors on the host, as the files that they are written to."""
    return Snapshot(step, copied(model), copied(optimizer))


def size_of(state: Snapshot, best: Snapshot | None) -> int:
    """Bytes of a checkpoint's blobs; one that is state and best at once is there once."""
    snapshots = [state] if best is None or best is state else [state, best]
    return sum(len(file.data) for each in snapshots for file in (each.model, each.optimizer))


def checkpoint_key(run: str) -> str:
    """Where the run's pointer lives."""
    return f"runs/{run}/checkpoint.json"


class CheckpointStore:
    """Reads and writes the checkpoints of one run."""

    def __init__(self, store: Store, run: str, lease: Lease) -> None:
        self.store = store
        self.run = run
        self.lease = lease
        self.current: Checkpoint | None = None  # the whole one that training goes on from
        self._sequence = 0
        self._version: str | None = None

    def read(self) -> tuple[Checkpoint, Snapshot, Snapshot | None] | None:
        """The newest whole checkpoint with its state and the best epoch's; none where the run has none yet.

        Raises DataError when there are checkpoints and none is whole: starting over in silence would hide it.
        """
        try:
            data, self._version = self.store.get_versioned(checkpoint_key(self.run))
        except NotFound:
            return None
        candidate: Checkpoint | None = parse_record(Checkpoint, checkpoint_key(self.run), data)
        assert candidate is not None
        self._sequence = candidate.sequence
        problems = []
        while candidate is not None:
            try:
                state = self._read_snapshot(candidate.state)
                best = state if candidate.best == candidate.state else None
                if candidate.best is not None and best is None:
                    best = self._read_snapshot(candidate.best)
            except DataError as error:
                problems.append(str(error))
                log.warning("checkpoint %d is damaged, taking the one before: %s", candidate.sequence, error)
                candidate = candidate.previous
            else:
                self.current = candidate
                return candidate, state, best
        raise DataError(
            f"{checkpoint_key(self.run)}: no whole checkpoint: {'; '.join(problems)}",
            hint=f"delete {checkpoint_key(self.run)} to train the run from its beginning",
        )

    def _read_snapshot(self, blobs: Blobs) -> Snapshot:
        return Snapshot(blobs.step, read_blob(self.store, blobs.model), read_blob(self.store, blobs.optimizer), blobs)

    def write(
        self, progress: Progress, state: Snapshot, best: Snapshot | None, best_metrics: EpochMetrics | None
    ) -> Checkpoint:
        """Write the blobs that are new, then the pointer, then drop what neither it nor the one before needs."""
        before = self.current
        written = Checkpoint(
            run=self.run,
            attempt=self.lease.attempt,
            sequence=self._sequence + 1,
            progress=progress,
            state=self._write_snapshot(state),
            best=self._write_snapshot(best) if best else None,
            best_metrics=best_metrics,
            previous=before.model_copy(update={"previous": None}) if before else None,
        )
        self.lease.check()
        self._move_pointer(written.model_dump_json().encode())
        self.current, self._sequence = written, written.sequence
        for stale in _keys(before.previous if before else None) - _keys(written) - _keys(written.previous):
            self.store.delete(stale)
        return written

    def _move_pointer(self, data: bytes) -> None:
        key = checkpoint_key(self.run)
        try:
            if self._version is None:
                self._version = self.store.create(key, data)
            else:
                self._version = self.store.replace(key, data, self._version)
        except (Conflict, NotFound) as error:
            self.lease.lose()
            raise Stopped(f"run {self.run}: another attempt wrote its checkpoint meanwhile") from error

    def _write_snapshot(self, tensors: Snapshot) -> Blobs:
        if tensors.blobs is None:
            tensors.blobs = Blobs(
                step=tensors.step,
                model=self._write_blob(tensors.model, tensors.step),
                optimizer=self._write_blob(tensors.optimizer, tensors.step),
            )
        return tensors.blobs

    def _write_blob(self, file: TensorFile, step: int) -> str:
        digest = hashlib.sha256(file.data).hexdigest()
        key = f"runs/{self.run}/blobs/{step:08d}-{digest[:HASH_DIGITS]}.safetensors"
        self.store.put(key, file.data)
        return key

    def retain_only(self, blob: str | None) -> None:
        """Once the result stands: drop the pointer, and every blob but this one."""
        self.store.delete(checkpoint_key(self.run))
        for entry in list(self.store.list(f"runs/{self.run}/blobs/")):
            if entry.key != blob:
                self.store.delete(entry.key)


def read_blob(store: Store, key: str) -> TensorFile:
    """One blob of a run. Raises DataError when it is gone or is not what its name says."""
    size = next((entry.size for entry in store.list(key) if entry.key == key), None)
    try:
        if size is None:
            raise NotFound(key)
        with store.open(key) as stream:
            memory = read_memory(stream, size)
    except NotFound as error:
        raise DataError(f"{key}: missing", hint="it was removed by hand: train the run anew") from error
    named = key.rpartition("-")[2].partition(".")[0]
    if (found := hashlib.sha256(memory.numpy().data).hexdigest()[:HASH_DIGITS]) != named:
        raise DataError(f"{key}: damaged: its SHA-256 begins with {found}", hint="train the run anew")
    return parsed(memory)


def _keys(checkpoint: Checkpoint | None) -> set[str]:
    if checkpoint is None:
        return set()
    found = {checkpoint.state.model, checkpoint.state.optimizer}
    return found | {checkpoint.best.model, checkpoint.best.optimizer} if checkpoint.best else found
