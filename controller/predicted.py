"""What a run answered on the test part, as its test left it in the store. Values in, values out."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.failure import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# numpy is loaded where it is used: most tables have no test stage to compare

ANEW = "remove it and the run's tests/<run>.json, and run the grid again: the run is tested anew"
"""The cure for predictions that are missing or damaged."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """A network's answers to the test part."""

    indices: npt.NDArray[np.int64]  # (N) of the images within the test part
    labels: npt.NDArray[np.int64]  # (N)
    logits: npt.NDArray[np.float32]  # (N, K)


def parse_predictions(key: str, data: bytes) -> Predictions:
    """The predictions in a `predictions.npz`. Raises DataError, naming the key, where it holds none."""
    import numpy as np

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            index_N, label_N, logits_NK = arrays["index"], arrays["label"], arrays["logits"]
        if logits_NK.ndim != 2 or not logits_NK.shape[1] or not index_N.shape == label_N.shape == logits_NK.shape[:1]:
            raise ValueError(f"arrays of shape {index_N.shape}, {label_N.shape} and {logits_NK.shape}")
        for name, numbers_N, end in (("images", index_N, np.inf), ("labels", label_N, logits_NK.shape[1])):
            if numbers_N.dtype.kind not in "iu" or not ((numbers_N >= 0) & (numbers_N < end)).all():
                raise ValueError(f"{name} that no data set has")
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{key}: got {len(data)} bytes that are no predictions: {error}", hint=ANEW) from error
    return Predictions(index_N, label_N, logits_NK)
