"""Encoded images and image folders for tests."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 12, width: int = 16, channels: int = 3) -> np.ndarray:
    """Pixels that differ by seed."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image | int, form: str = "PNG", **options: Any) -> bytes:
    """The image's file; a number is the seed of one."""
    image = Image.fromarray(pixels(image)) if isinstance(image, int) else image
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def write_tree(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Files under `folder`, by their paths; a path that ends in `/` is an empty folder."""
    for path, content in files.items():
        target = folder / path
        if path.endswith("/"):
            target.mkdir(parents=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def some_images(classes: Mapping[str, int]) -> dict[str, bytes]:
    """So many images of each class, all different, as `<class>/<number>.png`."""
    files = {}
    for name, count in classes.items():
        for number in range(count):
            files[f"{name}/{number:02d}.png"] = encoded(zlib.crc32(f"{name}/{number}".encode()))
    return files


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file whose header promises so many pixels, and which has none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
