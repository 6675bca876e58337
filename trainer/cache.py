"""The machine's cache of decoded images: files that are whole or not there, and that all its processes map.

1. `Cache.pixels` maps a file. Where it is not there, or torn, one process makes it while the others wait; it gets its
   name once it is whole and on the disk, so that a process may be killed at any moment.
2. Before a file is made, those that were not used for longest are removed until the folder fits its share of the disk
   (GRID_CACHE_BYTES). A process holds a shared lock on what it maps, so that nothing in use is removed.

    <key>.rgb        a header, then the pixels of all images one after another
    <key>.partial    the same while it is filled; left behind by a process that was killed
    <key>.lock       held by who fills it
    shards/          copies of shards that lie on a server, for as long as they are read
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from trainer.failure import SpecError
from trainer.lock import locked, take
from trainer.machine import available_memory, available_threads, cache_folder

Pixels: TypeAlias = npt.NDArray[np.uint8]

HEADER_BYTES = 4096
MEMORY_SHARE = 0.5  # of the memory available: the network and its activations need the rest
DISK_BYTES = 32 << 30  # of all files together, unless GRID_CACHE_BYTES says otherwise: a dozen times Caltech-101
WAIT_SECONDS = 0.1  # between two looks at a file that another process makes


@dataclass(frozen=True)
class CacheFile:
    """A file of decoded images: where it is, and how much it holds."""

    path: Path
    num_images: int
    num_bytes: int  # of pixels

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        text = json.dumps({"cache": self.path.stem, "images": self.num_images, "bytes": self.num_bytes})
        return text.encode().ljust(HEADER_BYTES, b"\n")

    def mapped(self) -> Pixels | None:
        """All its pixels, mapped for as long as the array lives; none when the file is not there or not whole."""
        try:
            with self.path.open("rb") as file:
                _use(file.fileno())  # the mapping keeps a copy of the descriptor, and the lock with it
                size = os.fstat(file.fileno()).st_size
                if file.read(HEADER_BYTES) != self.header or size != HEADER_BYTES + self.num_bytes:
                    return None
                return np.memmap(file, dtype=np.uint8, mode="c", offset=HEADER_BYTES, shape=(self.num_bytes,))
        except FileNotFoundError:
            return None


class Cache:
    """A folder of decoded images, shared by all processes of a machine, and how much of it may be mapped."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        budget_bytes: int | None = None,
        disk_bytes: int | None = None,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`folder` is `images_folder()` by default, `budget_bytes` half the memory available.

        `disk_bytes` is what the folder's files may take together: GRID_CACHE_BYTES, or DISK_BYTES. `progress` is
        called with images done and in all while a part is decoded, and again and again while another process does
        that; what it raises ends the filling.
        """
        self.folder = folder if folder is not None else images_folder()
        self.threads = threads or available_threads()
        self.progress = progress or _no_progress
        self._budget = int(MEMORY_SHARE * available_memory()) if budget_bytes is None else budget_bytes
        self._disk_bytes = disk_limit() if disk_bytes is None else disk_bytes

    def reserve(self, num_bytes: int) -> bool:
        """Whether so many bytes more fit the budget of memory; they count from now on if so."""
        if num_bytes > self._budget:
            return False
        self._budget -= num_bytes
        return True

    def pixels(self, file: CacheFile, fill: Callable[[int], None]) -> Pixels:
        """The file's pixels, mapped; `fill` is called if it has to be made, and writes them to a descriptor.

        Pixel bytes begin at HEADER_BYTES. Raises OSError when the file cannot be made, and what `fill` raises.
        """
        pixels = file.mapped()
        if pixels is not None:
            return pixels

        def tell_and_wait() -> None:
            self.progress(0, file.num_images)
            time.sleep(WAIT_SECONDS)

        with locked(file.path.with_suffix(".lock"), while_waiting=tell_and_wait):
            pixels = file.mapped()
            return self._made(file, fill) if pixels is None else pixels

    def _made(self, file: CacheFile, fill: Callable[[int], None]) -> Pixels:
        needed = HEADER_BYTES + file.num_bytes
        remove_unused(self.folder, self._disk_bytes - needed)
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, "its disk is too full")
        partial = file.path.with_suffix(".partial")  # one name: who holds the lock takes over what was left
        with partial.open("wb") as made:
            try:
                _reserve(made.fileno(), needed)
                fill(made.fileno())
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            write_at(made.fileno(), file.header, 0)
            os.fsync(made.fileno())  # else a machine that loses power may keep the name and not the pixels
            _use(made.fileno())  # from before it has its name: else another process might remove it at once
            partial.replace(file.path)
            pixels = file.mapped()
        if pixels is None:
            raise OSError(errno.EIO, f"{file.path} is not what was written")
        return pixels


def images_folder() -> Path:
    """Where decoded images are kept: in GRID_CACHE, or the user's cache."""
    return cache_folder() / "images"


def disk_limit(environment: Mapping[str, str] = os.environ) -> int:
    """Bytes that files in a cache folder may take together. Raises SpecError where GRID_CACHE_BYTES is no number."""
    text = environment.get("GRID_CACHE_BYTES", "")
    if not text:
        return DISK_BYTES
    if not text.isdecimal():
        raise SpecError(f"GRID_CACHE_BYTES: got {text!r}, expected a number of bytes", hint="32 GiB are 34359738368")
    return int(text)


@dataclass(frozen=True)
class CacheUsage:
    """What a cache folder holds, and what it may."""

    folder: Path
    num_files: int
    num_bytes: int  # on the disk
    limit: int  # bytes; what is in use may be more


def cache_usage(folder: Path | None = None) -> CacheUsage:
    """What the cache of decoded images holds; raises SpecError as `disk_limit` does."""
    folder = folder if folder is not None else images_folder()
    found = list(_files(folder))
    return CacheUsage(folder, len(found), sum(num_bytes for _, _, num_bytes in found), disk_limit())


def remove_unused(folder: Path, limit: int) -> int:
    """Remove files that no process uses, the least recently used first, until `limit` bytes are left; bytes removed.

    What processes left that were killed while they filled a file goes first.
    """
    found = sorted(_files(folder), key=lambda file: (file[0].suffix != ".partial", file[1]))
    total = sum(num_bytes for _, _, num_bytes in found)
    removed = 0
    for path, _, num_bytes in found:
        if total - removed <= limit and path.suffix != ".partial":
            break
        if _remove(path):
            removed += num_bytes
    return removed


def _files(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """Path, time of last use and bytes on the disk of each file of decoded images and each copy of a shard."""
    for pattern in ("*.rgb", "*.partial", "shards/*.tar", "shards/*.partial"):
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                yield path, found.st_mtime, found.st_blocks * 512


def _remove(path: Path) -> bool:
    """Whether the file is gone; one that a process maps, reads or fills stays."""
    guard = path.with_suffix(".lock") if path.suffix == ".partial" else path
    try:
        with guard.open("rb") as file:
            if not take(file.fileno()):
                return False
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return not path.exists()
    except OSError:  # not ours to remove
        return False
    return True


def _use(descriptor: int) -> None:
    """Hold the file against removal until the descriptor and its copies are closed, and note when that was."""
    with contextlib.suppress(OSError):  # no locks, or a file of another user: the file can be read all the same
        take(descriptor, is_shared=True)
    with contextlib.suppress(OSError):
        os.utime(descriptor)


def open_used(path: Path) -> BinaryIO:
    """The file, open for reading; it is not removed by `remove_unused` until it is closed."""
    file = path.open("rb")
    _use(file.fileno())
    return file


def _no_progress(_done: int, _total: int) -> None:
    pass


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


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` from the file's byte `offset`."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
