"""What a file of weights is and how it fits a network, as values: `trainer.fitting` finds them with torch."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field

from trainer.failure import DataError
from trainer.result import Record
from trainer.spec import Frozen, ModelSpec

SUFFIXES = (".pth", ".pt", ".safetensors")
SHOWN = 5  # names of tensors in a message
WRAPPED = "module."  # before each name in the state dict of an nn.DataParallel

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.+[A-Za-z]+$")  # torchvision's have eight digits, or ten


def hash_in_name(name: str) -> str | None:
    """The first digits of the SHA-256 that a name such as `alexnet-owt-7be5be79.pth` vouches for; none in others.

    That is how torch's own files are named: https://docs.pytorch.org/docs/stable/hub.html#torch.hub.download_url_to_file
    """
    found = _HASH_IN_NAME.search(name)
    return None if found is None else found[1]


def check_hash_in_name(name: str, sha256: str) -> None:
    """Nothing, when `sha256` is of a file that may have the name; raises DataError otherwise."""
    wanted = hash_in_name(name)
    if wanted is not None and not sha256.startswith(wanted):
        raise DataError(
            f"weights {name!r}: got SHA-256 {sha256}, expected one that begins with {wanted}, as the name says",
            hint="it is another file than the one that was meant, or it arrived broken: fetch it again; where these "
            "digits are no hash, give the file a name without them",
        )


class Question(Frozen):
    """What `trainer.fitting` is asked of a file on this machine."""

    path: Path
    name: str = Field(description="of the file in errors; its ending says how to read it")
    model: ModelSpec | None = Field(description="the network that it is tried on; none where that is not known")


class Contents(Record):
    """What a state dict holds."""

    num_tensors: int
    num_numbers: int
    dtypes: tuple[str, ...] = Field(description="of the tensors, as torch names them, sorted")
    wrapped: bool = Field(description="whether each name begins with `module.`, as DataParallel has it")


class Fit(Record):
    """How a state dict fits a network, but for the network's last layer, which is always a new one."""

    architecture: str
    head: str = Field(description="name of the network's last layer: never loaded")
    num_outputs: int | None = Field(description="of the file's own last layer: its number of classes; none without one")
    num_loaded: int = Field(description="tensors that the network takes from the file")
    left_out: tuple[str, ...] = Field(description="tensors of auxiliary heads, which the network is built without")
    missing: tuple[str, ...] = Field(description="tensors of the network that the file lacks")
    unexpected: tuple[str, ...] = Field(description="tensors of the file that the network has not")
    misshapen: tuple[str, ...] = Field(description="tensors of another shape than the network's, with both shapes")

    @property
    def fits(self) -> bool:
        """Whether a run may start from the file."""
        return bool(self.num_loaded) and not self.problems

    @property
    def problems(self) -> list[str]:
        """What does not fit, each kind with some of its names."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.misshapen))
        return [
            f"{what} {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
            for what, names in kinds
            if names
        ]


class Trouble(Record):
    """An error as the process that asks raises it."""

    exit_code: int
    message: str
    hint: str | None


class Answer(Record):
    """What was found."""

    contents: Contents | None = None
    fit: Fit | None = None
    trouble: Trouble | None = Field(default=None, description="why there is less than was asked for")


def refuse_misfit(fit: Fit, file: str) -> None:
    """Nothing, when a run may start from the file; raises DataError that lists what does not fit otherwise."""
    if fit.problems:
        hint = "the file must hold a state dict of this very architecture; its last layer may differ"
        if fit.unexpected and all(name.startswith(WRAPPED) for name in fit.unexpected):
            hint = "the file was saved from a DataParallel: save its `.module`'s state dict"
        raise DataError(
            f"model.weights: weights/{file} does not fit the architecture {fit.architecture}: "
            f"{'; '.join(fit.problems)}",
            hint=hint,
        )
    if not fit.num_loaded:
        raise DataError(
            f"model.weights: {fit.architecture} would take nothing from weights/{file}: all it has is its last layer",
            hint="leave model.weights out: the last layer is always a new one",
        )
