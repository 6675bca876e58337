"""Images of a data set from its shards, shrunk for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL.Image import Image, Resampling

from trainer.dataset import DatasetIndex, ImageEntry
from trainer.decode import decode_image
from trainer.failure import DataError
from trainer.store import NotFound, Store

BLOCK = 1 << 20


def read_images(
    store: Store, index: DatasetIndex, entries: Sequence[ImageEntry], side: int
) -> tuple[list[Image | None], tuple[str, ...]]:
    """The images, their longer side at most `side` pixels, or none where one cannot be had; and why not, by shard.

    A shard on a server is read once, from its beginning to the last image that is wanted of it.
    """
    found: dict[int, Image] = {}
    lacks = []
    for shard in sorted({entry.shard for entry in entries}):
        wanted = sorted((n for n, entry in enumerate(entries) if entry.shard == shard), key=lambda n: entries[n].offset)
        try:
            with store.open(index.shard_key(shard)) as file:
                position = 0
                for n in wanted:
                    position = _skip(file, position, entries[n].offset)
                    data = file.read(entries[n].size)
                    position += len(data)
                    image = decode_image(data)
                    image.thumbnail((side, side), Resampling.LANCZOS)
                    found[n] = image
        except NotFound:
            lacks.append(f"{index.shard_key(shard)} is not in the store: its images are not shown")
        except DataError as error:
            lacks.append(f"{index.shard_key(shard)}: {error.message}")
    return [found.get(n) for n in range(len(entries))], tuple(lacks)


def _skip(file: io.BufferedReader, position: int, offset: int) -> int:
    if file.seekable():
        return file.seek(offset)
    while position < offset:
        block = file.read(min(BLOCK, offset - position))
        if not block:
            return position
        position += len(block)
    return position
