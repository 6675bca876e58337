"""The images of one part of a data set: decoded and resized, but not cropped.

1. `open_part` finds them in the machine's cache (trainer/cache.py); where they are not, one process of the machine
   decodes them all, on all cores, while the others wait.
2. Where they do not fit, they are decoded from the shards batch by batch instead: the pixels are the same.

Pixel (x, y) of an image of width w that starts at byte s lies at s + 3 (y w + x). Sizes are (width, height).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from trainer.cache import HEADER_BYTES, Cache, CacheFile, Pixels, open_used, write_at
from trainer.dataset import DatasetIndex, ImageEntry, PartName, resized_shape
from trainer.decode import decode_image
from trainer.failure import DataError, StoreError
from trainer.lock import locked
from trainer.spec import DataSpec
from trainer.store import NotFound, Store

DECODER_VERSION = 1
"""Raised whenever trainer/decode.py or the resizing here gives other pixels: older caches are then left alone."""

FILL_CHUNK = 16  # images of one unit of filling: what is lost when a run is told to stop
SYNC_BYTES = 128 << 20  # written between two times that the disk is waited for, which then costs nothing at the end

log = logging.getLogger(__name__)


class Part:
    """The images of one part, resized and uncropped, in the index's order."""

    def __init__(self, name: PartName, rows: Sequence[tuple[int, ImageEntry]], resize: int) -> None:
        self.name = name
        self.resize = resize
        self.entries = [entry for _, entry in rows]
        self.indices_N = np.array([index for index, _ in rows], dtype=np.int64)
        """Each image's place among all of the part's images."""
        self.labels_N = np.array([entry.label for entry in self.entries], dtype=np.int64)
        self.sizes_N2 = np.array([(e.width, e.height) for e in self.entries], dtype=np.int64).reshape(-1, 2)
        shapes = [resized_shape(entry.height, entry.width, resize) for entry in self.entries]
        self.resized_N2 = np.array(shapes, dtype=np.int64).reshape(-1, 2)[:, ::-1].copy()
        ends = np.cumsum(3 * self.resized_N2.prod(axis=1))
        self.starts_N: npt.NDArray[np.int64] = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(rows)]
        self.num_bytes = int(ends[-1]) if len(rows) else 0
        self.pixels: Pixels | None = None
        """All images one after another, mapped from the cache; none where they are decoded batch by batch."""
        self._shards: _Shards | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def images(self, indices: npt.NDArray[np.int64]) -> list[Pixels]:
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
        return np.array(self._resized(index))

    def fill(self, descriptor: int, cache: Cache) -> None:
        """Decode every image into the open file of the cache, on all of its threads.

        Pillow lets go of the interpreter's lock while it decodes and resizes.
        """
        total = len(self)
        assert self._pool is not None

        def fill(first: int) -> int:
            last = min(total, first + FILL_CHUNK)
            for index in range(first, last):
                write_at(descriptor, self._resized(index).tobytes(), HEADER_BYTES + int(self.starts_N[index]))
            return last - first

        waiting: set[Future[int]] = {self._pool.submit(fill, first) for first in range(0, total, FILL_CHUNK)}
        sync_images = 1 + total * SYNC_BYTES // self.num_bytes
        done = synced = 0
        try:
            while waiting:
                cache.progress(done, total)
                finished, waiting = wait(waiting, timeout=0.1, return_when=FIRST_EXCEPTION)
                done += sum(future.result() for future in finished)
                if done - synced >= sync_images:
                    os.fdatasync(descriptor)  # this thread has nothing else to do
                    synced = done
            cache.progress(done, total)
        except BaseException:
            for future in waiting:
                future.cancel()
            wait(waiting)
            raise

    def _resized(self, index: int) -> Image.Image:
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
        return resized(image, self.resize)

    def _open_shards(self, index: DatasetIndex, store: Store, cache: Cache) -> None:
        self._shards = _Shards(index, store, cache.folder / "shards")
        self._pool = ThreadPoolExecutor(cache.threads, thread_name_prefix=f"decode-{self.name}")

    def _close_shards(self) -> None:
        assert self._shards is not None
        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)
        self._shards.close(forget=self.pixels is not None)
        self._pool = self._shards = None


def resized(image: Image.Image, resize: int) -> Image.Image:
    """The image with so many pixels along its shorter side."""
    height, width = resized_shape(image.height, image.width, resize)
    return image.resize((width, height), Image.Resampling.BILINEAR)


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
    file = CacheFile(cache.folder / f"{key}.rgb", len(part), part.num_bytes)
    part._open_shards(index, store, cache)
    reason = f"{part.num_bytes} bytes are more than the memory to spare"
    try:
        if cache.reserve(part.num_bytes):
            try:
                part.pixels = cache.pixels(file, lambda descriptor: part.fill(descriptor, cache))
            except StoreError:
                raise
            except OSError as error:
                reason = error.strerror or str(error)
    except BaseException:
        part._close_shards()
        raise
    if part.pixels is None:
        log.warning("%s images are decoded anew for each batch, not kept in %s: %s", name, file.path, reason)
        return part
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
        with locked(path.with_suffix(".lock")):
            self._copies.add(path)
            with contextlib.suppress(FileNotFoundError), open_used(path) as copy:
                return os.dup(copy.fileno())
            self._copy(entry, path)
            with open_used(path) as copy:
                return os.dup(copy.fileno())

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
