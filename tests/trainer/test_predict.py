"""What a run sees in a folder of images is what it saw in its test part, and no file is passed over in silence."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from images import png_of_size
from pictures import import_pictures, put_run
from PIL import Image

from trainer.__main__ import main
from trainer.answers import Answer, Beginning
from trainer.dataset import DatasetIndex
from trainer.failure import DataError, ExitCode, SpecError
from trainer.predict import predict
from trainer.result import Result
from trainer.stop import StopSignal
from trainer.store import FileStore


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStore, DatasetIndex, str, Path]:
    """A store with a run that is trained and tested, and the folder of all images."""
    folder = tmp_path_factory.mktemp("predict")
    store = FileStore(folder / "store")
    index = import_pictures(store, folder / "originals")
    run = put_run(store, index, precision="fp32", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRID_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        for words in ([run], [run, "--test"]):
            assert main([*words, "--store", store.uri], stop=StopSignal()) == ExitCode.OK
    return store, index, run, folder / "originals"


@pytest.fixture
def copied(trained: tuple[FileStore, DatasetIndex, str, Path], tmp_path: Path) -> tuple[FileStore, str]:
    """A store of this test's own with the run."""
    shutil.copytree(trained[0].root, tmp_path / "copy")
    return FileStore(tmp_path / "copy"), trained[2]


def answers(run: str, folder: Path, store: FileStore, top: int = 1) -> dict[str, Answer]:
    beginning, *said = predict(run, folder, store, top)
    assert isinstance(beginning, Beginning)
    assert beginning.num_files == len(said)
    found = [each for each in said if isinstance(each, Answer)]
    assert len({each.file for each in found}) == len(said)
    return {each.file: each for each in found}


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    powers_NK = np.exp(logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True))
    return powers_NK / powers_NK.sum(axis=1, keepdims=True)


def test_images_of_the_test_part_are_answered_as_the_test_did(
    trained: tuple[FileStore, DatasetIndex, str, Path],
) -> None:
    store, index, run, folder = trained
    found = answers(run, folder, store, top=9)
    assert list(found) == sorted(found)
    with np.load(io.BytesIO(store.get(f"runs/{run}/test/predictions.npz"))) as arrays:
        expected_NK = softmax(arrays["logits"])
    for entry, expected_K in zip(index.entries("test"), expected_NK, strict=True):
        told = dict(found[entry.path].classes)
        assert list(told) == [index.classes[label] for label in np.argsort(-expected_K)]
        assert [told[name] for name in index.classes] == pytest.approx(expected_K.tolist(), abs=1e-5)


def test_the_images_of_a_batch_do_not_change_an_answer(
    trained: tuple[FileStore, DatasetIndex, str, Path], tmp_path: Path
) -> None:
    store, _, run, folder = trained
    all_of_them = answers(run, folder, store)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.copy(folder / "class1" / "003.png", tmp_path / "deep" / "er" / "one.png")
    alone = answers(run, tmp_path, store)
    assert list(alone) == ["deep/er/one.png"]
    (name, probability), (other, expected) = (
        each.classes[0] for each in (alone["deep/er/one.png"], all_of_them["class1/003.png"])
    )
    assert (name, probability) == (other, pytest.approx(expected, abs=1e-5))


def test_what_is_no_image_is_told_and_the_others_are_answered(
    trained: tuple[FileStore, DatasetIndex, str, Path], tmp_path: Path
) -> None:
    store, index, run, folder = trained
    good = (folder / "class0" / "000.png").read_bytes()
    inside = tmp_path / "inside"
    inside.mkdir()
    for name, content in {
        "a.png": good,
        "broken.png": good[: len(good) // 2],
        "empty.jpg": b"",
        "huge.png": png_of_size(60_000, 60_000),
        "read me.txt": b"no image at all",
        ".hidden.png": good,
        "=1+1.png": good,
    }.items():
        (inside / name).write_bytes(content)
    stream = io.BytesIO()
    Image.new("L", (60_000, 1)).save(stream, "PNG")  # few pixels, which 24 rows would make 34 million of
    (inside / "long.png").write_bytes(stream.getvalue())
    Image.new("L", (60_000, 1)).resize((300_000, 1)).save(inside / "longer.png")
    (tmp_path / "outside.png").write_bytes(good)
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(inside / "pipe.png")

    found = answers(run, inside, store)
    assert ".hidden.png" not in found
    assert {name for name, each in found.items() if each.error is None} == {"=1+1.png", "a.png", "long.png"}
    assert found["a.png"].classes[0][0] in index.classes
    told = {name: each.error or "" for name, each in found.items()}
    assert told["broken.png"].startswith("broken image")
    assert told["empty.jpg"] == "empty file: 0 bytes"
    assert told["huge.png"].startswith("decompression bomb")
    assert told["read me.txt"].startswith("not an image")
    assert told["longer.png"].startswith("300000 x 1 pixels would be 7200000 x 24")
    assert told["link.png"].startswith("a link that leads out of")
    assert told["pipe.png"] == "neither a file nor a folder"


def test_a_folder_without_files_has_no_answers(
    trained: tuple[FileStore, DatasetIndex, str, Path], tmp_path: Path
) -> None:
    store, _, run, _ = trained
    assert answers(run, tmp_path, store) == {}
    with pytest.raises(DataError, match="no such folder"):
        answers(run, tmp_path / "nowhere", store)


def put_result(store: FileStore, run: str, **changes: object) -> None:
    key = f"results/{run}.json"
    result = Result.model_validate_json(store.get(key)).model_copy(update=changes)
    store.put(key, result.model_dump_json().encode())


def test_a_run_that_cannot_be_used_is_refused_with_the_reason(copied: tuple[FileStore, str], tmp_path: Path) -> None:
    store, run = copied
    weights = Result.model_validate_json(store.get(f"results/{run}.json")).best_weights
    assert weights is not None

    def refusal(kind: type[Exception] = DataError, name: str = run) -> str:
        with pytest.raises(kind) as caught:
            list(predict(name, tmp_path, store, 1))
        return str(caught.value)

    assert "of which" in refusal(SpecError, "none-0123456789ab")
    data = store.get(weights)
    store.put(weights, data[:-1] + bytes([data[-1] ^ 1]))
    assert "damaged" in refusal()
    store.delete(weights)
    assert "has lost its weights" in refusal()
    put_result(store, run, best_weights=None)
    assert "kept no weights: its checkpoint.keep was none" in refusal()
    store.delete(f"results/{run}.json")
    assert "has no result" in refusal()


def test_a_data_set_that_was_replaced_or_is_gone_is_told(copied: tuple[FileStore, str], tmp_path: Path) -> None:
    store, run = copied
    import_pictures(FileStore(tmp_path / "other"), tmp_path / "pictures", per_class=6)
    key = "datasets/pictures/index.json"
    store.put(key, FileStore(tmp_path / "other").get(key))
    with pytest.raises(DataError, match="the spec expects"):
        list(predict(run, tmp_path, store, 1))
    store.delete(key)
    with pytest.raises(DataError, match="grid data import pictures"):
        list(predict(run, tmp_path, store, 1))
