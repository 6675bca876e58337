"""Tensors as a safetensors file in memory: copied into it once, then hashed and written from where they lie.

The layout (https://github.com/huggingface/safetensors#format): eight bytes with the header's length, the header in
JSON, the tensors row by row, without gaps.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.failure import SpecError

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names for torch's types."""
TYPES = {name: dtype for dtype, name in NAMES.items()}

HEADER_ALIGNMENT = 64  # bytes; what the processor copies fastest begins so
NUM_SPARE = 4  # regions kept for the next files: model and optimiser of two checkpoints


class TensorFile:
    """A safetensors file in memory, whose `tensors` are views of its bytes; both wait until all bytes are there."""

    def __init__(self, memory: Tensor, tensors: dict[str, Tensor], arrival: torch.cuda.Event | None = None) -> None:
        self._memory = memory
        self._tensors = tensors
        self._arrival = arrival

    @property
    def data(self) -> memoryview:
        """The file's bytes."""
        self._wait()
        return self._memory.numpy().data

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, on the host."""
        self._wait()
        return self._tensors

    def _wait(self) -> None:
        arrival = self._arrival  # two threads may wait: the one that trains and the one that writes
        if arrival is not None:
            arrival.synchronize()
            self._arrival = None


def copied(tensors: Mapping[str, Tensor]) -> TensorFile:
    """A file with copies of the tensors as they are now, whatever is done to them next.

    Those of a GPU are copied there, and come to the host beside the steps that follow. Raises SpecError for a tensor
    that the format cannot hold.
    """
    header, places, size = _layout(tensors)
    device = next((value.device for value in tensors.values() if value.device.type == "cuda"), None)
    memory = _pinned(size) if device else REGIONS.take(size)
    memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    views = _views(memory, places)
    staged = torch.empty(size, dtype=torch.uint8, device=device) if device else memory
    for name, view in _views(staged, places).items():
        view.copy_(tensors[name].detach())
    arrival = _send(staged[len(header) :], memory[len(header) :]) if device else None
    return TensorFile(memory, views, arrival)


def parsed(memory: Tensor) -> TensorFile:
    """The file that `memory` holds, as `copied` made it or safetensors would: its bytes are taken to be whole."""
    data = memory.numpy().data
    first = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(bytes(data[8:first]))
    entries.pop("__metadata__", None)
    places = {
        name: Place(first + begin, first + end, TYPES[entry["dtype"]], tuple(entry["shape"]))
        for name, entry in entries.items()
        for begin, end in [entry["data_offsets"]]
    }
    return TensorFile(memory, _views(memory, places))


def read_memory(stream: io.BufferedIOBase, size: int) -> Tensor:
    """The first `size` bytes of `stream`, or as many as it has, in memory that is used again."""
    memory = REGIONS.take(size)
    data = memory.numpy().data
    num_read = 0
    while num_read < size and (count := stream.readinto(data[num_read:])):
        num_read += count
    return memory[:num_read]


class Place(NamedTuple):
    """Where in a file a tensor is, and what it is."""

    begin: int  # first byte
    end: int  # the one after the last
    dtype: torch.dtype
    shape: tuple[int, ...]


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, Place], int]:
    """The file's first bytes, the tensors' places after them, and the size of the whole."""
    for name, value in tensors.items():
        if value.dtype not in NAMES:
            raise SpecError(
                f"model: tensor {name!r} has type {value.dtype}, expected one that safetensors holds",
                hint=f"use one of {', '.join(str(dtype).removeprefix('torch.') for dtype in NAMES)}",
            )
    entries, places, at = {}, {}, 0
    # the largest types first, so that each tensor begins at a multiple of its own
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        value = tensors[name]
        end = at + value.numel() * value.itemsize
        places[name] = Place(at, end, value.dtype, tuple(value.shape))
        entries[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    shift = len(header)
    moved = {name: place._replace(begin=shift + place.begin, end=shift + place.end) for name, place in places.items()}
    return header, moved, shift + at


def _views(memory: Tensor, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors at `places` of `memory` (bytes), row by row."""
    return {name: memory[place.begin : place.end].view(place.dtype).view(place.shape) for name, place in places.items()}


def _pinned(size: int) -> Tensor:
    """Memory that a GPU copies to beside its work; torch keeps it for the next time."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _send(source: Tensor, target: Tensor) -> torch.cuda.Event:
    """Begin to copy to the host in a stream of its own; the event is reached once all is there."""
    side = torch.cuda.Stream(source.device)  # type: ignore[no-untyped-call] # torch annotates neither this
    side.wait_stream(torch.cuda.current_stream(source.device))
    with torch.cuda.stream(side):
        target.copy_(source, non_blocking=True)
        source.record_stream(side)
        arrival = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # nor this
        arrival.record(side)
    return arrival


class Regions:
    """Memory of tensor files, used again once nothing refers to it any more.

    Fresh memory costs a page fault every 4 KiB, more than what is copied to it. A region begins at a page, so that a
    store can write from it past the page cache.
    """

    def __init__(self) -> None:
        # no lock: a region may come back in the middle of anything, whenever the last reference to it goes
        self._spare: deque[mmap.mmap] = deque(maxlen=NUM_SPARE)

    def take(self, size: int) -> Tensor:
        """So many bytes, of any value; the taker's until the last tensor that refers to them is gone."""
        region = self._spare_one(size) or _new_region(size)
        array = np.frombuffer(region, dtype=np.uint8)
        weakref.finalize(array, self._spare.append, region).atexit = False
        return torch.from_numpy(array)[:size]

    def _spare_one(self, size: int) -> mmap.mmap | None:
        for _ in range(NUM_SPARE):
            with suppress(IndexError):
                region = self._spare.popleft()
                if size <= len(region) <= 2 * size + mmap.PAGESIZE:
                    return region
                self._spare.append(region)
        return None


def _new_region(size: int) -> mmap.mmap:
    pages = math.ceil(size / mmap.PAGESIZE)
    region = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            region.madvise(mmap.MADV_HUGEPAGE)
    return region


REGIONS = Regions()
