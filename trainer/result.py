"""What a run leaves: metrics of each epoch, its result, its numbers on the test part, and how it was computed."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.failure import DataError


class Record(BaseModel):
    """Base of what is stored: immutable; keys that a newer version added are passed over."""

    # a run that is about to diverge is stored with the NaN that it has: JSON's null would not read back
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="constants", defer_build=True)


Stored = TypeVar("Stored", bound=BaseModel)


def parse_record(model: type[Stored], key: str, data: bytes) -> Stored:
    """The record that the object `key` holds. Raises DataError, naming the key, where it holds none."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{key}: got {len(data)} bytes that are no {model.__name__}: {f'{place}: ' if place else ''}{first['msg']}",
            hint="remove this object and run the grid again: what it held is computed anew",
        ) from error


PASSING = ("wall_seconds", "images_per_second", "peak_memory_bytes", "attempts")
"""Fields of a result that may differ between two trainings of one run, on equal numerics; all others are equal."""


class Numerics(Record):
    """What a run's first attempt settled on and every later one obeys."""

    precision: str = Field(description="fp32, tf32 or bf16")
    threads: int = Field(description="CPU threads of one operation")
    micro_batch: int = Field(description="images per forward and backward pass")
    memory_format: str = Field(description="contiguous or channels_last")
    compile: bool
    deterministic: bool
    device: str = Field(description="cpu or cuda")
    device_model: str = Field(description="the processor's or GPU's own name")
    instruction_set: str = Field(description="CPU capability as torch names it, or CUDA compute capability")
    torch_version: str


class EpochMetrics(Record):
    """One line of metrics.jsonl: an epoch of one attempt. Losses in nats per image, accuracies 0..1."""

    epoch: int = Field(description="counted from 1")
    step: int = Field(description="optimiser steps done since the run began")
    lr: float = Field(description="learning rate of the epoch's last step")
    train_loss: float = Field(description="running mean over the epoch, in training mode")
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float = Field(description="mean over classes of the accuracy within each")
    validation_top5_accuracy: float
    best: bool = Field(description="whether this epoch is the best so far, strictly")
    returned_to_best: bool = Field(description="whether training went back to the best epoch after this one")
    restarts: int = Field(description="restarts after a non-finite loss so far")
    images_per_second: float = Field(description="training and validation images over the epoch's whole time")
    seconds: float = Field(description="the epoch's whole time, that of earlier attempts and restarts included")


class ResumedFrom(Record):
    """The checkpoint that an attempt went on from."""

    attempt: str = Field(description="the attempt that wrote it")
    sequence: int
    epoch: int = Field(description="epochs that were done")
    step: int = Field(description="optimiser steps that were done")


class Provenance(Record):
    """Where and with what an attempt computes, as its `provenance.json` holds it."""

    run: str
    attempt: str
    host: str
    started: datetime
    numerics: Numerics
    versions: dict[str, str]
    commit: str | None
    resumed_from: ResumedFrom | None = Field(description="none for an attempt that began the run")


class ResultNumbers(Record):
    """What a table reads of a result: parsed in a quarter of the time that all of it takes."""

    run: str
    seed: int
    best_epoch: int = Field(description="counted from 1")
    train_loss: float = Field(description="running mean over the best epoch, in training mode")
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float
    validation_top5_accuracy: float
    num_parameters: int
    num_trainable_parameters: int
    epochs_run: int
    images_per_second: float = Field(description="training and validation images over the time spent in epochs")
    wall_seconds: float = Field(description="from each attempt's start to its last checkpoint or end, summed")
    peak_memory_bytes: int = Field(description="largest resident set on a CPU, largest allocation on a GPU")
    numerics: Numerics
    exact: bool = Field(description="whether every attempt obeyed the first one's numerics")
    data_fingerprint: str
    weights_fingerprint: str | None
    commit: str | None = Field(description="commit of the code that trained, where it is known")
    best_weights: str | None = Field(description="key in the store of the best epoch's state dict (safetensors)")
    attempts: int
    restarts: int
    returns_to_best: int


class Result(ResultNumbers):
    """A run's final numbers, as `results/<run>.json` holds them: read at its best epoch."""

    spec: dict[str, Any] = Field(description="the spec as spec.yaml has it, without the seed")
    versions: dict[str, str] = Field(description="of Python and the packages that compute")


class TestResult(Record):
    """A run's numbers on the test part, as `tests/<run>.json` holds them."""

    __test__ = False  # no class of test cases, for all that pytest can tell from its name

    run: str
    test_loss: float
    test_accuracy: float
    test_balanced_accuracy: float
    test_top5_accuracy: float
    num_images: int
    predictions: str = Field(description="key in the store of an .npz: `index`, `label` and float32 `logits` (N, K)")
    numerics: Numerics
    data_fingerprint: str
    wall_seconds: float
