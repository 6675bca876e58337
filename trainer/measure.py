"""The sizes of networks, found without computing anything: `python -m trainer.measure < shapes > sizes`, both JSON.

It is a program of its own because a network can be built by torch alone, which the controller never loads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from trainer.failure import GridError
from trainer.model import build_network
from trainer.sizes import BYTES_PER_NUMBER, Shape, Size
from trainer.store import FileStore

NUM_IMAGES = 2  # batch-norm refuses one; what they keep is counted together and halved


def measure(shape: Shape) -> Size:
    """The size of the network. Raises SpecError where it cannot be built, RuntimeError where it refuses the images."""
    nowhere = FileStore(Path.cwd())  # the shape names no weights: nothing is read
    with torch.device("meta"):
        network = build_network(shape.model, shape.num_classes, 0, nowhere)
        network.train()
        images_BCHW = torch.empty(NUM_IMAGES, 3, shape.crop, shape.crop)
        own = {_storage(tensor) for tensor in (*network.module.parameters(), *network.module.buffers())}
        with _largest(network.module) as largest, _kept(own) as kept:
            network.module(images_BCHW)
    return Size(
        num_parameters=network.num_parameters,
        num_trainable_parameters=network.num_trainable_parameters,
        num_buffers=sum(buffer.numel() for buffer in network.module.buffers()),
        image_bytes=sum(kept.values()) // NUM_IMAGES,
        largest_bytes=max(largest, default=0) // NUM_IMAGES,
        process_bytes=psutil.Process().memory_info().rss,  # ru_maxrss is never below that of the process it came from
    )


@contextmanager
def _kept(own: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of each storage, but the `own`, that autograd keeps for the backward pass while this is open."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is given twice

    def keep(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in own:  # a layer keeps its own weights, or a view of them
            held.append(tensor)
            storages[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # data_ptr() is 0 on the meta device


@contextmanager
def _largest(module: nn.Module) -> Iterator[list[int]]:
    """Bytes of what each layer gives while this is open."""
    sizes: list[int] = []

    def note(_layer: nn.Module, _given: Any, given_back: Any) -> None:
        if isinstance(given_back, Tensor):
            sizes.append(given_back.numel() * BYTES_PER_NUMBER)

    handles = [layer.register_forward_hook(note) for layer in module.modules()]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def answers(shapes: list[Any], of: Callable[[Shape], Size] = measure) -> list[dict[str, Any]]:
    """For each shape `{"size": …}`, or `{"error": …}` with why there is none."""
    found: list[dict[str, Any]] = []
    for value in shapes:
        try:
            found.append({"size": of(Shape.model_validate(value)).model_dump(mode="json")})
        except GridError as error:
            found.append({"error": error.message})
        except Exception as error:  # noqa: BLE001 - a factory of one's own may raise anything; the next shape is asked
            found.append({"error": f"{type(error).__name__}: {error}"})
    return found


if __name__ == "__main__":
    json.dump(answers(json.load(sys.stdin)), sys.stdout)
