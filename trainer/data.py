"""Batches of one part of a data set, normalised and augmented, on the device that trains.

1. `open_part` finds the part's images decoded and resized, but not cropped, in a memory-mapped cache; where there is
   none, one process of the machine fills it on all cores while the others wait. Where it does not fit, the images are
   decoded from the shards batch by batch instead: the pixels are the same.
2. `Loader.batches` takes the images of one batch: straight from the mapping, or decoded ahead in the background.
3. It crops them, or augments them (trainer/augment.py): on a CPU image by image on threads, on a GPU, which the whole
   part is moved to if it fits, in one go.
4. Conversion to float and normalisation come last, on the device.

Pixel (x, y) of an image of width w that starts at byte s lies at s + 3 (y w + x). Sizes are (width, height).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, features
from torch import Tensor

from trainer.augment import (
    CANVAS_SIDE,
    Draws,
    FloatArray,
    IntArray,
    canvas_points,
    canvas_views,
    change_colours,
    crop_corners,
    crop_views,
    draw,
    gather_crops,
    sample_by_gather,
    sample_image,
    view_matrices,
)
from trainer.dataset import DatasetIndex, ImageEntry, PartName, resized_shape
from trainer.decode import decode_image
from trainer.failure import DataError, StoreError
from trainer.machine import available_memory, available_threads, cache_folder
from trainer.spec import AugmentationSpec, DataSpec
from trainer.store import NotFound, Store

Pixels: TypeAlias = npt.NDArray[np.uint8]
Batch = tuple[Tensor, Tensor]

DECODER_VERSION = 1
"""Raised whenever trainer/decode.py or the resizing here gives other pixels: older caches are then left alone."""

HEADER_BYTES = 4096
MEMORY_SHARE = 0.5  # of the memory available: the network and its activations need the rest
DEVICE_SHARE = 0.3  # of the device memory free before the network trains
FILL_CHUNK = 16  # images of one unit of filling: what is lost when a run is told to stop
SMALL_CROP = 96  # below this many pixels a side, an image is too little work for a call per operation
READ_AHEAD = 2  # batches prepared in the background
CROPS_CHUNK = 8  # crops converted at a time: they stay in a core's cache between two operations
ALIGNMENT = 64  # bytes, of a vector register

log = logging.getLogger(__name__)


class Cache:
    """A folder of decoded images, shared by all processes of a machine, and how much of it may be mapped."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        budget_bytes: int | None = None,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`folder` is GRID_CACHE or the user's cache folder by default, `budget_bytes` half the memory available.

        `progress` is called with images done and in all while a part is decoded, and again and again while another
        process does that; what it raises ends the filling.
        """
        self.folder = folder if folder is not None else cache_folder() / "images"
        self.threads = threads or available_threads()
        self.progress = progress or _no_progress
        self._budget = int(MEMORY_SHARE * available_memory()) if budget_bytes is None else budget_bytes

    def reserve(self, num_bytes: int) -> bool:
        """Whether so many bytes more fit the budget; they count from now on if so."""
        if num_bytes > self._budget:
            return False
        self._budget -= num_bytes
        return True


def _no_progress(_done: int, _total: int) -> None:
    pass


class Part:
    """The images of one part, resized and uncropped, in the index's order."""

    def __init__(self, name: PartName, rows: Sequence[tuple[int, ImageEntry]], resize: int) -> None:
        self.name = name
        self.resize = resize
        self.entries = [entry for _, entry in rows]
        self.indices_N = np.array([index for index, _ in rows], dtype=np.int64)
        """Each image's place among all of the part's images."""
        self.labels_N = torch.tensor([entry.label for entry in self.entries], dtype=torch.int64)
        self.sizes_N2 = np.array([(e.width, e.height) for e in self.entries], dtype=np.int64).reshape(-1, 2)
        shapes = [resized_shape(entry.height, entry.width, resize) for entry in self.entries]
        self.resized_N2 = np.array(shapes, dtype=np.int64).reshape(-1, 2)[:, ::-1].copy()
        ends = np.cumsum(3 * self.resized_N2.prod(axis=1))
        self.starts_N: IntArray = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(rows)]
        self.num_bytes = int(ends[-1]) if len(rows) else 0
        self.pixels: Pixels | None = None
        """All images one after another, mapped from the cache; none where they are decoded batch by batch."""
        self._shards: _Shards | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def images(self, indices: IntArray) -> list[Pixels]:
        """These images, (height, width, 3) each. Raises DataError when one is not as the index has it."""
        if self.pixels is None:
            assert self._pool is not None
            return list(self._pool.map(self.decode, indices.tolist()))
        images = []
        for index in indices.tolist():
            width, height = self.resized_N2[index].tolist()
            start = int(self.starts_N[index])
            images.append(self.pixels[start : start + 3 * width * height].reshape(height, width, 3))
        return images

    def decode(self, index: int) -> Pixels:
        """One image from its shard, decoded and resized. Raises DataError when it is not as the index has it."""
        assert self._shards is not None
        entry = self.entries[index]
        data = self._shards.read(entry)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DataError(
                f"{self._shards.place(entry)}: {entry.path}: got bytes with another SHA-256 than the index has",
                hint="the data set was changed or damaged in the store: import it again with --replace",
            )
        try:
            image = decode_image(data)
        except DataError as error:
            raise DataError(f"{self._shards.place(entry)}: {entry.path}: {error.message}", hint=error.hint) from error
        if image.size != (entry.width, entry.height):
            raise DataError(
                f"{self._shards.place(entry)}: {entry.path}: decoded to {image.width} x {image.height} pixels, "
                f"expected {entry.width} x {entry.height} as the index has it",
                hint="the index comes from another decoder: import the data set again with --replace",
            )
        width, height = self.resized_N2[index].tolist()
        return np.array(image.resize((width, height), Image.Resampling.BILINEAR))

    def _open_shards(self, index: DatasetIndex, store: Store, cache: Cache) -> None:
        self._shards = _Shards(index, store, cache.folder / "shards")
        self._pool = ThreadPoolExecutor(cache.threads, thread_name_prefix=f"decode-{self.name}")

    def _close_shards(self) -> None:
        assert self._shards is not None
        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)
        self._shards.close(forget=self.pixels is not None)
        self._pool = self._shards = None


def open_part(index: DatasetIndex, data: DataSpec, name: PartName, store: Store, cache: Cache) -> Part:
    """The part's images as `data` asks for them, in the cache if they fit it.

    Raises DataError when an image or a shard is not as the index has it, StoreError when the store fails.
    """
    rows = list(enumerate(index.entries(name)))
    if data.images_per_class is not None:
        rows = _first_of_each_class(rows, data.images_per_class)
    part = Part(name, rows, data.resize)
    if not len(part):
        return part
    key = f"{index.fingerprint}-{name}-{data.resize}"
    key += f"-first{data.images_per_class}" if data.images_per_class is not None else ""
    key += f"-{DECODER_VERSION}-pillow{PIL.__version__}-jpeg{features.version('jpg')}"
    path = cache.folder / f"{key}.rgb"
    part._open_shards(index, store, cache)
    try:
        reason = f"{part.num_bytes} bytes are more than the memory to spare"
        if cache.reserve(part.num_bytes):
            reason = _fill_once(part, path, cache)
        if reason:
            log.warning("%s images are decoded anew for each batch, not kept in %s: %s", name, path, reason)
            return part
        part.pixels = np.memmap(path, dtype=np.uint8, mode="c", offset=HEADER_BYTES, shape=(part.num_bytes,))
    except BaseException:
        part._close_shards()
        raise
    part._close_shards()
    return part


def _first_of_each_class(rows: list[tuple[int, ImageEntry]], number: int) -> list[tuple[int, ImageEntry]]:
    seen: dict[int, int] = {}
    first = []
    for index, entry in rows:
        seen[entry.label] = seen.get(entry.label, 0) + 1
        if seen[entry.label] <= number:
            first.append((index, entry))
    return first


def _fill_once(part: Part, path: Path, cache: Cache) -> str:
    """Make the cache file be there, whole; if that cannot be, why not, in words."""
    header = _header(part, path)
    try:
        if _is_whole(path, header, part.num_bytes):
            return ""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as lock:
            while not _try_lock(lock.fileno()):
                cache.progress(0, len(part))
                time.sleep(0.1)
            if _is_whole(path, header, part.num_bytes):
                return ""
            if shutil.disk_usage(path.parent).free < part.num_bytes + HEADER_BYTES:
                return "its disk is too full"
            _fill(part, path, header, cache)
    except StoreError:
        raise
    except OSError as error:
        return str(error)
    return ""


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _header(part: Part, path: Path) -> bytes:
    text = json.dumps({"cache": path.stem, "images": len(part), "bytes": part.num_bytes})
    return text.encode().ljust(HEADER_BYTES, b"\n")


def _is_whole(path: Path, header: bytes, num_bytes: int) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(HEADER_BYTES) == header and os.fstat(file.fileno()).st_size == HEADER_BYTES + num_bytes
    except FileNotFoundError:
        return False


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Give the open file its length, and its place on the disk where the file system can: then a full disk shows now.

    Raises OSError where there is no room.
    """
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except AttributeError:  # no such call on this system
        os.truncate(descriptor, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system does not know it
            raise
        os.truncate(descriptor, num_bytes)


def _fill(part: Part, path: Path, header: bytes, cache: Cache) -> None:
    """Decode every image into a file beside `path` and give it that name once it is whole.

    Pillow lets go of the interpreter's lock while it decodes and resizes: threads use all cores.
    """
    partial = path.with_suffix(".partial")  # one name: whoever holds the lock takes over what a killed run left
    total = len(part)
    assert part._pool is not None
    with partial.open("wb") as file:
        descriptor = file.fileno()
        _reserve(descriptor, HEADER_BYTES + part.num_bytes)

        def fill(first: int) -> int:
            for index in range(first, min(total, first + FILL_CHUNK)):
                _write_at(descriptor, part.decode(index).data, HEADER_BYTES + int(part.starts_N[index]))
            return min(total, first + FILL_CHUNK) - first

        waiting: set[Future[int]] = {part._pool.submit(fill, first) for first in range(0, total, FILL_CHUNK)}
        try:
            done = 0
            while waiting:
                cache.progress(done, total)
                finished, waiting = wait(waiting, timeout=0.1, return_when=FIRST_EXCEPTION)
                done += sum(future.result() for future in finished)
            cache.progress(done, total)
        except BaseException:
            for future in waiting:
                future.cancel()
            wait(waiting)
            partial.unlink(missing_ok=True)
            raise
        _write_at(descriptor, memoryview(header), 0)
        os.fsync(descriptor)  # else a machine that loses power may keep the name and not the pixels
    partial.replace(path)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    rest = data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


class _Shards:
    """The shards of a data set, opened when first read; those on a server are copied to `scratch` first."""

    def __init__(self, index: DatasetIndex, store: Store, scratch: Path) -> None:
        self._index = index
        self._store = store
        self._scratch = scratch
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}
        self._copies: set[Path] = set()

    def place(self, entry: ImageEntry) -> str:
        """Where an image lies, for messages."""
        return f"{self._store.uri}: {self._index.shard_key(entry.shard)}"

    def read(self, entry: ImageEntry) -> bytes:
        """An image's encoded bytes. Raises DataError when the shard is missing or cut off."""
        with self._lock:
            descriptor = self._descriptors.get(entry.shard)
            if descriptor is None:
                descriptor = self._descriptors[entry.shard] = self._open(entry)
        return os.pread(descriptor, entry.size, entry.offset)

    def close(self, *, forget: bool) -> None:
        """Close the shards, and remove the copies if none of this part will be read again."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        for path in self._copies if forget else ():
            path.unlink(missing_ok=True)

    def _open(self, entry: ImageEntry) -> int:
        shard = self._index.shards[entry.shard]
        path = self._store.local_path(self._index.shard_key(entry.shard))
        try:
            descriptor = self._open_copy(entry) if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (NotFound, FileNotFoundError) as error:
            raise DataError(
                f"{self.place(entry)}: not there, but the index names it",
                hint="the data set is not whole: import it again with --replace",
            ) from error
        size = os.fstat(descriptor).st_size
        if size != shard.size:
            os.close(descriptor)
            raise DataError(
                f"{self.place(entry)}: got {size} bytes, expected {shard.size}",
                hint="the data set is not whole: import it again with --replace",
            )
        return descriptor

    def _open_copy(self, entry: ImageEntry) -> int:
        """The shard's copy, made if need be, open: it may be removed at any moment by another process."""
        shard = self._index.shards[entry.shard]
        path = self._scratch / f"{shard.sha256}.tar"
        self._scratch.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._copies.add(path)
                return descriptor
            self._copy(entry, path)
            self._copies.add(path)
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _copy(self, entry: ImageEntry, path: Path) -> None:
        partial = path.with_suffix(".partial")
        digest = hashlib.sha256()
        with self._store.open(self._index.shard_key(entry.shard)) as source, partial.open("wb") as file:
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != self._index.shards[entry.shard].sha256:
            partial.unlink()
            raise DataError(
                f"{self.place(entry)}: got bytes with another SHA-256 than the index has",
                hint="the data set was changed or damaged in the store: import it again with --replace",
            )
        partial.replace(path)


class _Buffers:
    """Memory for batches on the host, used again once nothing refers to it any more.

    A fresh batch of 150 MB would cost more in page faults than in arithmetic.
    """

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[np.float32]] = []

    def take(self, num_floats: int) -> Tensor:
        """So many floats, of any value."""
        for array in self._arrays:
            # a tensor made from an array refers to it for as long as its storage lives: through views, and through
            # what autograd keeps. Three are this list, the loop's name and getrefcount's own argument.
            if array.size == num_floats and sys.getrefcount(array) == 3:
                return torch.from_numpy(array)
        whole = np.empty(num_floats * 4 + ALIGNMENT, dtype=np.uint8)
        first = -whole.ctypes.data % ALIGNMENT
        array = whole[first : first + num_floats * 4].view(np.float32)
        self._arrays = [array, *self._arrays[:1]]
        return torch.from_numpy(array)


@dataclass(frozen=True)
class _Prepared:
    """A batch before the device has seen it: what one of the three ways to go on needs, on the host."""

    indices: IntArray
    draws: Draws | None
    crops: Tensor | None = None
    images: list[Pixels] | None = None
    packed: Tensor | None = None
    starts: IntArray | None = None


class Loader:
    """Batches of a part for one run: cropped or augmented, normalised, on the device."""

    def __init__(
        self,
        part: Part,
        data: DataSpec,
        augmentation: AugmentationSpec | None,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        self.part = part
        self.device = device
        self._crop = data.crop
        self._memory_format = memory_format
        augmentation = augmentation or AugmentationSpec()
        self._augmentation = augmentation if augmentation.is_geometric or augmentation.is_photometric else None
        self._resamples = bool(augmentation.rotation or augmentation.perspective)
        self._photometric = augmentation.is_photometric
        self._num_canvas = CANVAS_SIDE**2 if augmentation.contrast else 0
        self._corners_N2 = crop_corners(part.resized_N2, data.crop)
        mean, std = torch.tensor(data.normalize.mean), torch.tensor(data.normalize.std)
        self._scale_3, self._bias_3 = (1 / std).to(device), (-mean / std).to(device)
        self._row_scale, self._row_bias = (self._scale_3 / 255).repeat(data.crop), self._bias_3.repeat(data.crop)
        self._labels_N = part.labels_N.to(device)
        self._epoch: tuple[tuple[int, int, int], Draws] | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._buffers = _Buffers()
        self._resident = self._make_resident()
        # one image is enough work for a thread, unless it is small; a GPU wants them all at once
        self._by_gather = device.type != "cpu" or (data.crop < SMALL_CROP and self._augmentation is not None)
        self._only_crops = not (self._resamples or self._photometric)

    def _make_resident(self) -> Tensor | None:
        """The part's pixels on the device, if they are mapped and fit there."""
        if self.part.pixels is None:
            return None
        pixels = torch.from_numpy(self.part.pixels)
        if self.device.type == "cpu":
            return pixels
        free, _ = torch.cuda.mem_get_info(self.device)
        return pixels.to(self.device) if self.part.num_bytes <= DEVICE_SHARE * free else None

    def batch(self, indices_B: IntArray | Tensor, seed: int, epoch: int, restart: int) -> Batch:
        """Images (B, 3, crop, crop), float32, in the memory format, and labels (B,): both on the device."""
        return self._finish(self._prepare(np.asarray(indices_B, dtype=np.int64), seed, epoch, restart))

    def batches(self, batches: Iterable[IntArray | Tensor], seed: int, epoch: int, restart: int) -> Iterator[Batch]:
        """`batch` of each; where that means decoding or copying to a device, the next ones are begun ahead."""
        arrays = (np.asarray(indices_B, dtype=np.int64) for indices_B in batches)
        if self._resident is not None:  # nothing to do ahead: on a CPU a thread would take cores from the network
            for indices_B in arrays:
                yield self._finish(self._prepare(indices_B, seed, epoch, restart))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as ahead:
            waiting: deque[Future[_Prepared]] = deque()
            try:
                for indices_B in arrays:
                    waiting.append(ahead.submit(self._prepare, indices_B, seed, epoch, restart))
                    if len(waiting) > READ_AHEAD:
                        yield self._finish(waiting.popleft().result())
                while waiting:
                    yield self._finish(waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, indices_B: IntArray, seed: int, epoch: int, restart: int) -> _Prepared:
        draws = self._draws(seed, epoch, restart)
        draws = draws.of(indices_B) if draws else None
        if not self._by_gather:
            return _Prepared(indices_B, draws, images=self.part.images(indices_B))
        if self._resident is None and self._only_crops:
            return _Prepared(indices_B, draws, crops=self._pinned(self._host_crops(indices_B, draws)))
        if self._resident is not None:
            return _Prepared(indices_B, draws, packed=self._resident, starts=self.part.starts_N[indices_B])
        images = self.part.images(indices_B)
        starts_B = np.cumsum([0, *(image.size for image in images[:-1])])
        packed = self._pinned(torch.from_numpy(np.concatenate([image.ravel() for image in images])))
        return _Prepared(indices_B, draws, packed=packed, starts=starts_B)

    def _draws(self, seed: int, epoch: int, restart: int) -> Draws | None:
        if self._augmentation is None:
            return None
        if self._epoch is None or self._epoch[0] != (seed, epoch, restart):
            drawn = draw(self._augmentation, seed=seed, restart=restart, epoch=epoch, num_images=len(self.part))
            self._epoch = ((seed, epoch, restart), drawn)
        return self._epoch[1]

    def _pinned(self, tensor: Tensor) -> Tensor:
        """`tensor` in memory that a GPU can copy from beside its work."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _host_crops(self, indices_B: IntArray, draws: Draws | None) -> Tensor:
        crops_BHWC = torch.empty(len(indices_B), self._crop, self._crop, 3, dtype=torch.uint8)
        self._fill_crops(crops_BHWC.numpy(), self.part.images(indices_B), self._corners_N2[indices_B].tolist(), draws)
        return crops_BHWC

    def _fill_crops(
        self,
        out_BHWC: Pixels,
        images: Sequence[Pixels],
        corners: Sequence[Sequence[int]],
        draws: Draws | None,
        at: int = 0,
    ) -> None:
        for row, image in enumerate(images, start=at):
            out_BHWC[row - at] = self._crop_of(image, corners[row], draws, row)

    def _crop_of(self, image: Pixels, corner: Sequence[int], draws: Draws | None, row: int) -> Pixels:
        """The central crop of the image once it is mirrored as the row of draws has it."""
        if draws:
            image = image[:, ::-1] if draws.flip_x[row] else image
            image = image[::-1] if draws.flip_y[row] else image
        left, top = corner
        return image[top : top + self._crop, left : left + self._crop]

    def _finish(self, prepared: _Prepared) -> Batch:
        indices = self._on_device(prepared.indices)
        labels_B = self._labels_N.index_select(0, indices)
        if prepared.images is not None:
            make = self._cropped if self._only_crops else self._augmented_by_threads
            return make(prepared), labels_B
        if prepared.crops is not None:
            return self._normalised(prepared.crops.to(self.device, non_blocking=True)), labels_B
        return self._gathered(prepared), labels_B

    def _cropped(self, prepared: _Prepared) -> Tensor:
        """The batch on the CPU, some images at a time."""
        images, corners = prepared.images, self._corners_N2[prepared.indices].tolist()
        assert images is not None
        shape = (len(images), self._crop, self._crop, 3)
        out_BHWC = self._buffers.take(int(np.prod(shape))).view(shape)
        crops = np.empty((min(len(images), CROPS_CHUNK * torch.get_num_threads()), *shape[1:]), dtype=np.uint8)
        for at in range(0, len(images), len(crops)):
            some = images[at : at + len(crops)]
            self._fill_crops(crops, some, corners, prepared.draws, at)
            self._normalise(torch.from_numpy(crops[: len(some)]), out_BHWC[at : at + len(some)])
        return out_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)

    def _on_device(self, array: npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _normalised(self, crops_BHWC: Tensor) -> Tensor:
        out_BHWC = torch.empty(crops_BHWC.shape, device=self.device)
        self._normalise(crops_BHWC, out_BHWC)
        return out_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)

    def _normalise(self, crops_BHWC: Tensor, out_BHWC: Tensor) -> None:
        """Fill `out_BHWC`: torchvision's ToTensor and Normalize of uint8 crops, up to the rounding of floats."""
        rows = out_BHWC.view(-1, self._crop * 3)  # long rows: along 3 channels nothing would be vectorised
        rows.copy_(crops_BHWC.view(rows.shape))
        torch.addcmul(self._row_bias, rows, self._row_scale, out=rows)

    def _gathered(self, prepared: _Prepared) -> Tensor:
        """The batch from images packed one after another on the device."""
        assert prepared.packed is not None
        assert prepared.starts is not None
        pixels = prepared.packed.to(self.device, non_blocking=True)
        starts_B = self._on_device(prepared.starts)
        resized_B2 = self._on_device(self.part.resized_N2[prepared.indices])
        sizes_B2, draws, side = self.part.sizes_N2[prepared.indices], prepared.draws, self._crop

        def matrices(views_B33: FloatArray) -> tuple[Tensor, Tensor]:
            assert draws is not None
            source, canvas = view_matrices(draws, sizes_B2, views_B33)
            return self._on_device(source), self._on_device(canvas)

        if self._resamples:
            crop = matrices(crop_views(sizes_B2, self.part.resized_N2[prepared.indices], side))
            planes = sample_by_gather(pixels, starts_B, resized_B2, *crop, side)
        else:
            none = np.zeros(len(sizes_B2), dtype=np.bool_)
            flips = np.stack([draws.flip_x, draws.flip_y] if draws else [none, none], axis=1)
            corners_B2 = self._on_device(self._corners_N2[prepared.indices])
            crops_BHWC = gather_crops(pixels, starts_B, resized_B2, corners_B2, self._on_device(flips), side)
            if self._only_crops:
                return self._normalised(crops_BHWC)
            planes = crops_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255).flatten(2)
        if self._photometric:
            assert draws is not None
            if self._num_canvas:
                points_BP, inside_BP = canvas_points(*matrices(canvas_views(sizes_B2)), resized_B2)
                channels = torch.arange(3, device=self.device).view(1, 3, 1)
                wanted = (starts_B[:, None, None] + 3 * points_BP[:, None]) + channels
                seen = pixels.index_select(0, wanted.flatten()).view(wanted.shape)
                planes = torch.cat([planes, seen * (inside_BP[:, None] / 255)], dim=2)
            planes = change_colours(planes, draws, self._num_canvas)
        planes = planes[:, :, : side * side] * self._scale_3[:, None] + self._bias_3[:, None]
        return planes.view(-1, 3, side, side).contiguous(memory_format=self._memory_format)

    def _augmented_by_threads(self, prepared: _Prepared) -> Tensor:
        """The batch image by image: each stays in its core's cache through all operations."""
        images, draws = prepared.images, prepared.draws
        assert images is not None
        assert draws is not None
        sizes_B2, resized_B2 = self.part.sizes_N2[prepared.indices], self.part.resized_N2[prepared.indices]
        num_points, corners = self._crop**2, self._corners_N2[prepared.indices].tolist()
        if self._resamples:
            source_B33, canvas_B33 = view_matrices(draws, sizes_B2, crop_views(sizes_B2, resized_B2, self._crop))
        if self._num_canvas:
            source, canvas = view_matrices(draws, sizes_B2, canvas_views(sizes_B2))
            points_BP, inside_BP = canvas_points(
                torch.from_numpy(source), torch.from_numpy(canvas), torch.from_numpy(resized_B2)
            )
            inside_BP.mul_(1 / 255)
        shape = (len(images), 3, self._crop, self._crop)
        out_BCHW = self._buffers.take(int(np.prod(shape))).view(shape)
        if self._memory_format == torch.channels_last:
            out_BCHW = out_BCHW.view(len(images), self._crop, self._crop, 3).permute(0, 3, 1, 2)

        def augment(row: int) -> None:
            image = torch.from_numpy(images[row])
            planes = torch.empty(1, 3, num_points + self._num_canvas)
            view_CP = planes[0, :, :num_points]
            if self._resamples:
                floats = image.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
                sample_image(floats[None], source_B33[row], canvas_B33[row], self._crop, view_CP)
            else:
                crop = np.ascontiguousarray(self._crop_of(images[row], corners[row], draws, row))
                view_CP.view(shape[1:]).copy_(torch.from_numpy(crop).permute(2, 0, 1)).mul_(1 / 255)
            if self._num_canvas:
                seen = image.view(-1, 3).index_select(0, points_BP[row])
                torch.mul(seen.T, inside_BP[row], out=planes[0, :, num_points:])
            if self._photometric:
                planes = change_colours(planes, draws.of(np.array([row])), self._num_canvas)
            normalised = planes[0, :, :num_points] * self._scale_3[:, None]
            out_BCHW[row].copy_(normalised.add_(self._bias_3[:, None]).view(shape[1:]))

        deque(self._pool().map(augment, range(len(images))), maxlen=0)
        return out_BCHW

    def _pool(self) -> ThreadPoolExecutor:
        """As many threads as one operation of torch has here, with one each: set on the first use."""
        if self._workers is None:
            threads = torch.get_num_threads()
            ready = threading.Barrier(threads + 1)

            def start() -> None:
                torch.set_num_threads(1)  # holds for the calling thread, and for threads that torch sees later
                ready.wait()

            workers = ThreadPoolExecutor(threads, thread_name_prefix="augment")
            for _ in range(threads):
                workers.submit(start)
            ready.wait()
            torch.set_num_threads(threads)
            self._workers = workers
        return self._workers
