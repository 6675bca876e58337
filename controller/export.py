"""A trained network as files that plain torch and torchvision load: weights, classes, how an image becomes input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from controller.wording import plain
from trainer.failure import DataError, SpecError, StoreError, encodable
from trainer.spec import RunSpec
from trainer.store import NotFound, Store
from trainer.trained import Trained

WEIGHTS, CLASSES, NAMES, TRANSFORM = "model.safetensors", "classes.json", "classes.txt", "transform.json"
BLOCK = 1 << 20

# torchvision would build them with further heads, which the trainer does without, and draw weights for minutes
_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": False}
_ARGUMENTS = {"googlenet": _WITHOUT_AUXILIARY, "inception_v3": _WITHOUT_AUXILIARY}


def export(trained: Trained, store: Store, folder: Path, *, replace: bool = False) -> dict[str, int]:
    """Write the run's files into `folder`, over those of an earlier export of it; their sizes in bytes, by name.

    Raises DataError where the weights are gone or damaged, SpecError where the folder cannot be written, or has
    other files of these names and they are not to be replaced.
    """
    if not replace:
        _refuse_others(folder, trained.run)
    contents = {
        CLASSES: json.dumps(trained.index.classes, ensure_ascii=False, indent=2) + "\n",
        NAMES: "".join(f"{plain(name)}\n" for name in trained.index.classes),
        TRANSFORM: json.dumps(transform(trained), ensure_ascii=False, indent=2) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {WEIGHTS: _write(folder / WEIGHTS, _weights(trained, store))}
        sizes |= {name: _write(folder / name, [encodable(text).encode()]) for name, text in contents.items()}
    except StoreError:  # an OSError too, and not the folder's
        raise
    except OSError as error:
        raise SpecError(
            f"-o: got {str(folder)!r}, which cannot be written: {error.strerror or error}",
            hint="name a folder that you may write, or one that is not there yet",
        ) from error
    return sizes


def _refuse_others(folder: Path, run: str) -> None:
    """Nothing, where `folder` has no file of another run or of someone's own that would be lost; else SpecError."""
    there = [name for name in (WEIGHTS, CLASSES, NAMES, TRANSFORM) if (folder / name).exists()]
    if not there:
        return
    try:
        held = json.loads((folder / TRANSFORM).read_bytes())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        held = None
    if held != run:
        whose = f"the export of run {plain(str(held))}" if held else f"another {there[0]}"
        raise SpecError(
            f"-o: got {str(folder)!r}, which has {whose}, expected nothing there but an earlier export of {run}",
            hint="name another folder; --replace writes over it",
        )


def transform(trained: Trained) -> dict[str, Any]:
    """What `transform.json` holds: how the network is built, and how an image becomes what it sees."""
    data, model = trained.spec.data, trained.spec.model
    return {
        "run": trained.run,
        "architecture": model.architecture,
        "arguments": arguments(trained.spec, trained.index.num_classes),
        "num_classes": trained.index.num_classes,
        "resize": data.resize,
        "interpolation": "bilinear",
        "crop": data.crop,
        "mean": data.normalize.mean,
        "std": data.normalize.std,
        "size": [3, data.crop, data.crop],
    }


def arguments(spec: RunSpec, num_classes: int) -> dict[str, Any]:
    """The keyword arguments with which the network's builder makes a network that the weights fit."""
    return {**_ARGUMENTS.get(spec.model.architecture, {}), **spec.model.arguments, "num_classes": num_classes}


def _write(path: Path, blocks: Iterable[bytes]) -> int:
    """Write a file, which has its name once it is whole; its size."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            size = sum(file.write(block) for block in blocks)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return size


def _weights(trained: Trained, store: Store) -> Iterator[bytes]:
    """The best weights, a safetensors file in the store; raises DataError, at the end, where they are damaged."""
    digest = hashlib.sha256()
    try:
        with store.open(trained.weights) as source:
            while block := source.read(BLOCK):
                digest.update(block)
                yield block
    except NotFound as error:
        raise DataError(f"{trained.weights}: missing", hint="it was removed just now: train the run anew") from error
    named = trained.weights.rpartition("-")[2].partition(".")[0]  # the blob's name has the beginning of its hash
    if not digest.hexdigest().startswith(named):
        raise DataError(
            f"{trained.weights}: damaged: its SHA-256 begins with {digest.hexdigest()[: len(named)]}",
            hint="train the run anew",
        )
