"""How large a network is and what memory training it takes, as values: `trainer.measure` finds them with torch."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

from pydantic import Field

from trainer.identity import canonical_json
from trainer.result import Record
from trainer.spec import AdamWSpec, ExperimentSpec, Frozen, ModelSpec

BYTES_PER_NUMBER = 4  # parameters, gradients and optimiser state are fp32 at every precision
KEY_DIGITS = 16


class Shape(Frozen):
    """All that a network's size hangs on."""

    model: ModelSpec
    num_classes: int
    crop: int = Field(description="side of the images, pixels")

    @property
    def key(self) -> str:
        """Where the size is kept in a store: another version of torchvision may build another network."""
        asked = {"shape": self, "versions": [_version("torch"), _version("torchvision")]}
        return f"networks/{hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:KEY_DIGITS]}.json"


class Size(Record):
    """What a network of some shape measures. Bytes are of fp32 numbers."""

    num_parameters: int
    num_trainable_parameters: int
    num_buffers: int = Field(description="numbers that are state but not trained, such as running means")
    image_bytes: int = Field(description="what the forward pass of one image keeps for the backward pass")
    largest_bytes: int = Field(description="the largest single tensor that one image becomes on the way")
    process_bytes: int = Field(description="resident set of a process that has loaded torch and the network's code")


def shape_of(spec: ExperimentSpec, num_classes: int) -> Shape:
    """The shape of the spec's network; which weights it starts from does not count."""
    model = spec.model.model_copy(update={"weights": None, "weights_fingerprint": None})
    return Shape(model=model, num_classes=num_classes, crop=spec.data.crop)


def num_means(spec: ExperimentSpec) -> int:
    """How many running means of each gradient the optimiser keeps."""
    return 2 if isinstance(spec.optimizer, AdamWSpec) else 1 if spec.optimizer.momentum else 0


def state_bytes(spec: ExperimentSpec, num_state: int, num_trainable: int) -> int:
    """Bytes of a checkpoint: the state dict and the best epoch's, of `num_state` numbers each, and the optimiser's."""
    return BYTES_PER_NUMBER * (2 * num_state + num_means(spec) * num_trainable)


def training_bytes(spec: ExperimentSpec, size: Size) -> int:
    """About the memory of a run on a CPU while it trains, without the decoded images: an estimate for fp32.

    The process, the state, the gradients, the copy of the state that is written as a checkpoint meanwhile, what one
    micro-batch keeps for the backward pass, and its largest tensor with that tensor's gradient.
    """
    state = state_bytes(spec, size.num_parameters + size.num_buffers, size.num_trainable_parameters)
    gradients = BYTES_PER_NUMBER * size.num_trainable_parameters
    batch = (spec.micro_batch or spec.batch_size) * (size.image_bytes + 2 * size.largest_bytes)
    return size.process_bytes + gradients + 2 * state + batch


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
