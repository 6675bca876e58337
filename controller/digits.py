"""Writes scikit-learn's handwritten digits as an image folder: a real data set that needs no download."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.failure import DataError

SCALE = 4  # each of a digit's 8 x 8 pixels becomes a square of so many
WHITE = 16  # the brightest value in the data: https://archive.ics.uci.edu/dataset/80


def write_digits(folder: Path) -> int:
    """Writes 1,797 greyscale PNG files of 32 x 32 pixels to `folder`, as `<digit>/<number>.png`; how many, comes back.

    The same files with the same bytes each time; numbers count from 1 within a digit. Raises DataError when
    scikit-learn is not installed.
    """
    try:
        datasets = import_module("sklearn.datasets")  # it has no type hints to import it by
    except ImportError as error:
        raise DataError(
            "digits: scikit-learn is not installed, expected it for its handwritten digits",
            hint="install the extra: uv sync --extra demo, or pip install 'experiment-grid[demo]'",
        ) from error
    digits = datasets.load_digits()
    written = dict.fromkeys(range(10), 0)
    for values, label in zip(digits.images, digits.target, strict=True):
        digit = int(label)
        written[digit] += 1
        pixels = np.kron(np.rint(values * (255 / WHITE)).astype(np.uint8), np.ones((SCALE, SCALE), np.uint8))
        file = folder / str(digit) / f"{written[digit]:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return sum(written.values())
