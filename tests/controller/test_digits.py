from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from controller.digits import write_digits
from trainer.decode import decode_image
from trainer.failure import DataError
from trainer.importing import import_dataset
from trainer.store import open_store


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    folder = tmp_path_factory.mktemp("digits")
    assert write_digits(folder) == 1797
    return folder


def test_each_digit_has_a_folder_of_its_images(digits: Path) -> None:
    counts = {folder.name: len(list(folder.glob("*.png"))) for folder in digits.iterdir()}
    assert counts == {
        "0": 178, "1": 182, "2": 177, "3": 183, "4": 181, "5": 182, "6": 181, "7": 179, "8": 174, "9": 180,
    }  # fmt: skip


def test_an_image_is_the_digit_enlarged_over_the_whole_range_of_grey(digits: Path) -> None:
    pixels = np.asarray(decode_image((digits / "0" / "0001.png").read_bytes()))
    assert pixels.shape == (32, 32, 3)
    assert (pixels.min(), pixels.max()) == (0, 239)  # its brightest value is 15 of 16
    assert np.array_equal(pixels, np.kron(pixels[::4, ::4], np.ones((4, 4, 1), np.uint8)))


def test_writing_them_again_gives_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    write_digits(tmp_path)
    assert _content(tmp_path) == _content(digits)


def test_the_digits_import_by_the_ordinary_path(digits: Path, tmp_path: Path) -> None:
    index = import_dataset(digits, "digits", open_store(f"file://{tmp_path}")).index
    assert index.classes == tuple("0123456789")
    assert [index.num_images(part) for part in ("train", "validation", "test")] == [719, 719, 359]


def test_without_scikit_learn_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="scikit-learn is not installed") as caught:
        write_digits(tmp_path)
    assert "--extra demo" in str(caught.value)


def _content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.png")
    }
