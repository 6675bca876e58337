"""What a test left in the store is read whole, or refused by its key."""

from __future__ import annotations

import io

import numpy as np
import pytest

from controller.predicted import parse_predictions
from trainer.failure import DataError

KEY = "runs/a/test/predictions.npz"


def saved(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def test_what_a_test_stored_is_read_back() -> None:
    logits_NK = np.array([[0.0, 2.0], [0.5, 1.0]], np.float32)
    found = parse_predictions(KEY, saved(index=[3, 4], label=[1, 0], logits=logits_NK))
    assert (found.indices.tolist(), found.labels.tolist()) == ([3, 4], [1, 0])
    assert np.array_equal(found.logits, logits_NK)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"PK\3\4 nothing", id="a torn archive"),
        pytest.param(b"\x93NUMPY", id="no archive"),
        pytest.param(saved(label=[1]), id="arrays that lack"),
        pytest.param(saved(index=[3], label=[1, 0], logits=np.zeros((2, 2))), id="fewer images"),
        pytest.param(saved(index=[[3, 4]], label=[[1, 0]], logits=np.zeros((1, 2))), id="images in a table"),
        pytest.param(saved(index=[3, 4], label=[1, 0], logits=np.zeros(2)), id="one number an image"),
        pytest.param(saved(index=[3, 4], label=[1, 2], logits=np.zeros((2, 2))), id="a label beyond the last class"),
        pytest.param(saved(index=[-1, 4], label=[1, 0], logits=np.zeros((2, 2))), id="an image before the first"),
        pytest.param(saved(index=[3, 4], label=[1.0, 0.5], logits=np.zeros((2, 2))), id="half a label"),
    ],
)
def test_what_is_no_predictions_is_refused_by_its_key(data: bytes) -> None:
    with pytest.raises(DataError, match=rf"^runs/a/test/predictions\.npz: got {len(data)} bytes that are no pred"):
        parse_predictions(KEY, data)
