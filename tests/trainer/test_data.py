"""Parts are cached whole or not at all; batches hold the pixels of torchvision's pipeline wherever they come from."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import trainer.data
from trainer.data import Cache, Loader, Part, open_part
from trainer.dataset import PARTS, DatasetIndex, Images, Shard, Split, dataset_key
from trainer.dataset import Part as PartFacts
from trainer.decode import decode_image
from trainer.failure import DataError
from trainer.spec import AUGMENTATIONS, AugmentationSpec, DataSpec
from trainer.store import FileStore, Store, open_store

CPU = torch.device("cpu")
SPEC = DataSpec.model_validate({"name": "blobs", "resize": 128, "crop": 112, "normalize": "imagenet"})
SMALL = DataSpec.model_validate({"name": "blobs", "resize": 40, "crop": 32})
SIZES = [(60, 90), (200, 131), (97, 97), (150, 40), (128, 128), (45, 45), (333, 250)]


def encoded(number: int, image_format: str = "JPEG") -> bytes:
    width, height = SIZES[number % len(SIZES)]
    y, x = np.mgrid[0:height, 0:width] / 40
    pixels = [
        128 + 120 * np.sin(x * (number % 3 + 1) + number),
        128 + 90 * np.cos(y + number),
        100 + 80 * np.sin(x * y),
    ]
    stream = io.BytesIO()
    Image.fromarray(np.stack(pixels, axis=-1).astype(np.uint8)).save(stream, image_format)
    return stream.getvalue()


def write_dataset(store: Store, contents: dict[str, list[tuple[int, bytes]]], name: str = "blobs") -> DatasetIndex:
    """A data set as the import leaves it: `contents` has label and encoded image of every image of a part."""
    columns: dict[str, list[Any]] = {field: [] for field in Images.model_fields if field != "sha256"}
    shards, digests, num_classes = [], [], 3
    for number, part in enumerate(PARTS):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for place, (label, data) in enumerate(contents.get(part, [])):
                member = tarfile.TarInfo(f"{place:08d}.jpg")
                member.size = len(data)
                width, height = Image.open(io.BytesIO(data)).size
                row = {"path": f"c{label}/{part}{place}.jpg", "label": label, "shard": number, "size": len(data)}
                row |= {"offset": tar.offset + 512, "width": width, "height": height}
                for field, value in row.items():
                    columns[field].append(value)
                digests.append(hashlib.sha256(data).digest())
                tar.addfile(member, io.BytesIO(data))
        text = stream.getvalue()
        file = f"shard-{part}-0-{hashlib.sha256(text).hexdigest()[:8]}.tar"
        store.put(dataset_key(name, file), text)
        shards.append(Shard(name=file, part=part, size=len(text), sha256=hashlib.sha256(text).hexdigest()))
    return DatasetIndex(
        name=name,
        fingerprint=hashlib.sha256(b"".join(digests)).hexdigest(),
        classes=tuple(f"c{label}" for label in range(num_classes)),
        split=Split(
            rule="folders", seed=0, test_fraction=None, validation_fraction=None, training_paths_sha256="0" * 64
        ),
        parts={
            part: PartFacts(
                num_images=len(contents.get(part, [])),
                class_counts=tuple(sum(label == k for label, _ in contents.get(part, [])) for k in range(num_classes)),
                paths_sha256="0" * 64,
            )
            for part in PARTS
        },
        excluded=(),
        skipped=(),
        notes=(),
        shards=tuple(shards),
        images=Images(**columns, sha256=base64.b64encode(b"".join(digests)).decode()),
    )


CONTENTS = {
    "train": [(number % 3, encoded(number)) for number in range(21)],
    "validation": [(number % 3, encoded(number + 30)) for number in range(6)],
    "test": [(number % 3, encoded(number + 50)) for number in range(3)],
}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    opened = open_store(f"file://{tmp_path}/store")
    assert isinstance(opened, FileStore)
    return opened


@pytest.fixture
def index(store: FileStore) -> DatasetIndex:
    return write_dataset(store, CONTENTS)


@pytest.fixture
def open_train(tmp_path: Path, store: FileStore, index: DatasetIndex) -> Callable[..., Part]:
    def opened(data: DataSpec = SPEC, folder: str = "cache", **cache: Any) -> Part:
        return open_part(index, data, "train", store, Cache(tmp_path / folder, threads=2, **cache))

    return opened


def loader(
    part: Part, data: DataSpec = SPEC, pipeline: str = "none", memory_format: torch.memory_format = torch.channels_last
) -> Loader:
    return Loader(part, data, AugmentationSpec.model_validate(AUGMENTATIONS[pipeline]), CPU, memory_format)


def by_torchvision(data: DataSpec) -> torch.Tensor:
    steps = [v2.Resize(data.resize), v2.CenterCrop(data.crop), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    pipeline = v2.Compose([*steps, v2.Normalize(data.normalize.mean, data.normalize.std)])
    return torch.stack([pipeline(decode_image(encoded_image)) for _, encoded_image in CONTENTS["train"]])


@pytest.mark.parametrize("budget", [None, 0], ids=["mapped", "streamed"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("data", [SPEC, SMALL], ids=["imagenet", "small"])
def test_a_batch_without_augmentation_equals_torchvisions_pipeline(
    open_train: Callable[..., Part], data: DataSpec, memory_format: torch.memory_format, budget: int | None
) -> None:
    part = open_train(data, budget_bytes=budget)
    images, labels = loader(part, data, memory_format=memory_format).batch(np.arange(len(part)), 0, 0, 0)
    assert images.is_contiguous(memory_format=memory_format)
    assert labels.tolist() == [label for label, _ in CONTENTS["train"]]
    torch.testing.assert_close(images, by_torchvision(data), rtol=0, atol=2e-6)


@pytest.mark.parametrize("pipeline", ["none", "report_1", "report_2", "report_3", "report_3b"])
@pytest.mark.parametrize("data", [SPEC, SMALL], ids=["large", "small"])
def test_streamed_batches_equal_mapped_ones_bit_for_bit(
    open_train: Callable[..., Part], data: DataSpec, pipeline: str
) -> None:
    mapped, streamed = open_train(data), open_train(data, budget_bytes=0)
    assert mapped.pixels is not None
    assert streamed.pixels is None
    batches = [np.array([3, 20, 1]), np.array([5]), np.array([0, 7, 8, 19]), np.array([2])]
    ours = [loader(part, data, pipeline).batches(batches, seed=4, epoch=2, restart=0) for part in (mapped, streamed)]
    for (images, labels), (others, other_labels) in zip(*ours, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("data", [SPEC, SMALL], ids=["large", "small"])
def test_an_image_is_augmented_the_same_whatever_is_in_its_batch(
    open_train: Callable[..., Part], data: DataSpec
) -> None:
    made = loader(open_train(data), data, "report_2")
    together, _ = made.batch(np.array([9, 4, 13, 2]), seed=1, epoch=5, restart=0)
    alone, _ = made.batch(torch.tensor([13]), seed=1, epoch=5, restart=0)
    torch.testing.assert_close(alone[0], together[2], rtol=0, atol=0 if data is SPEC else 1e-5)
    for other in ({"seed": 2}, {"epoch": 6}, {"restart": 1}):
        changed, _ = made.batch(np.array([13]), **{"seed": 1, "epoch": 5, "restart": 0} | other)
        assert not torch.equal(changed, alone)


@pytest.mark.parametrize("pipeline", ["report_1", "report_2", "report_3", "report_3b"])
def test_the_way_of_a_gpu_gives_the_pixels_of_the_cpus(
    open_train: Callable[..., Part], pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = open_train()
    indices = np.arange(len(part))
    by_threads, _ = loader(part, SPEC, pipeline).batch(indices, 7, 1, 0)
    monkeypatch.setattr(trainer.data, "SMALL_CROP", 10**6)
    by_gather, _ = loader(part, SPEC, pipeline).batch(indices, 7, 1, 0)
    differences = (by_threads - by_gather).abs()
    # a point on the very edge of an image may be black on one way and not on the other
    assert (differences > 1e-3).float().mean() < 1e-4
    assert differences.mean() < 1e-4


def test_flips_alone_move_whole_pixels(open_train: Callable[..., Part]) -> None:
    part = open_train()
    plain, _ = loader(part).batch(np.arange(len(part)), 0, 0, 0)
    flips = AugmentationSpec(horizontal_flip=1, vertical_flip=1)
    flipped, _ = Loader(part, SPEC, flips, CPU, torch.channels_last).batch(np.arange(len(part)), 0, 0, 0)
    square = [row for row, entry in enumerate(part.entries) if entry.width == entry.height]
    assert square  # the crop of others may be half a pixel off the middle
    assert torch.equal(flipped[square], plain[square].flip(2, 3))


def test_the_number_of_threads_changes_no_augmented_pixel(open_train: Callable[..., Part]) -> None:
    part, before = open_train(), torch.get_num_threads()
    images = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            images.append(loader(part, SPEC, "report_2").batch(np.arange(len(part)), 0, 0, 0)[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*images)


@pytest.mark.parametrize("pipeline", ["none", "report_2"])
def test_a_batch_that_is_still_held_is_not_written_over(open_train: Callable[..., Part], pipeline: str) -> None:
    made = loader(open_train(), SPEC, pipeline)
    part_of_first = made.batch(np.array([0, 1]), 0, 0, 0)[0][1:]
    copy = part_of_first.clone()
    for start in range(2, 8, 2):
        made.batch(np.array([start, start + 1]), 0, 0, 0)
    assert torch.equal(part_of_first, copy)


def test_memory_of_a_dropped_batch_is_used_again(open_train: Callable[..., Part]) -> None:
    made = loader(open_train(), SPEC)
    addresses = {made.batch(np.array([start, start + 1]), 0, 0, 0)[0].data_ptr() for start in range(0, 12, 2)}
    assert len(addresses) <= 2


def test_a_second_opening_needs_no_shard(
    open_train: Callable[..., Part], store: FileStore, index: DatasetIndex
) -> None:
    first = open_train()
    for shard in range(len(index.shards)):
        store.delete(index.shard_key(shard))
    again = open_train()
    assert again.pixels is not None
    assert first.pixels is not None
    assert np.array_equal(again.pixels, first.pixels)


def test_the_test_part_is_not_read_for_training(
    open_train: Callable[..., Part], store: FileStore, index: DatasetIndex
) -> None:
    store.delete(index.shard_key(2))
    assert len(open_train()) == 21


def test_only_the_first_images_of_each_class_are_taken(open_train: Callable[..., Part]) -> None:
    whole, some = open_train(), open_train(SPEC.model_copy(update={"images_per_class": 2}))
    assert some.labels_N.tolist() == [0, 1, 2, 0, 1, 2]
    assert some.indices_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert all(np.array_equal(a, b) for a, b in zip(some.images(np.arange(6)), whole.images(np.arange(6)), strict=True))


def test_two_runs_that_fill_at_once_decode_each_image_once(
    open_train: Callable[..., Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, parts = [], []

    def counted(data: bytes) -> Image.Image:
        decoded.append(data)
        time.sleep(0.005)  # long enough that the other one finds the lock taken
        return decode_image(data)

    monkeypatch.setattr(trainer.data, "decode_image", counted)
    runs = [threading.Thread(target=lambda: parts.append(open_train())) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(decoded) == 21
    assert np.array_equal(parts[0].pixels, parts[1].pixels)


def test_a_filling_that_was_broken_off_leaves_nothing_that_is_used(
    open_train: Callable[..., Part], tmp_path: Path
) -> None:
    class Told(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == total:
            raise Told

    with pytest.raises(Told):
        open_train(progress=stop)
    assert list((tmp_path / "cache").glob("*.rgb")) == []
    seen: list[tuple[int, int]] = []
    part = open_train(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (21, 21)
    assert part.pixels is not None


@pytest.mark.parametrize("damage", ["cut", "headless", "killed"])
def test_a_torn_cache_file_is_made_again(open_train: Callable[..., Part], tmp_path: Path, damage: str) -> None:
    whole = open_train()
    assert whole.pixels is not None
    expected = whole.pixels.copy()
    (path,) = (tmp_path / "cache").glob("*.rgb")
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "headless":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.with_suffix(".partial").write_bytes(b"\xff" * 2 * path.stat().st_size)
        path.unlink()
    assert np.array_equal(open_train().images(np.array([0]))[0].ravel(), expected[: 3 * 128 * 192])
    assert path.stat().st_size == 4096 + len(expected)


@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.EINVAL, None], ids=["unsupported", "invalid", "missing"])
def test_a_file_system_that_cannot_reserve_room_has_a_cache_too(
    open_train: Callable[..., Part], monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    def refuse(*_: int) -> None:
        assert refusal is not None
        raise OSError(refusal, os.strerror(refusal))

    if refusal is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    refused = open_train().pixels
    monkeypatch.undo()
    usual = open_train(folder="other").pixels
    assert refused is not None
    assert usual is not None
    assert np.array_equal(refused, usual)


KILLED = """
import os, sys, pickle, signal
from pathlib import Path
from trainer.data import *
from trainer.store import open_store
index, data, uri, folder = pickle.loads(sys.stdin.buffer.read())
def die(done, total):
    if done: os.kill(os.getpid(), signal.SIGKILL)
open_part(index, data, "train", open_store(uri), Cache(Path(folder), threads=2, progress=die))
"""


@pytest.mark.slow
def test_a_killed_filling_is_taken_over(
    open_train: Callable[..., Part], store: FileStore, index: DatasetIndex, tmp_path: Path
) -> None:
    given = pickle.dumps((index, SPEC, store.uri, str(tmp_path / "cache")))
    run = subprocess.run([sys.executable, "-c", KILLED], input=given, check=False)
    assert run.returncode == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == [".partial"]
    killed, other = open_train(), open_train(folder="other")
    assert killed.pixels is not None
    assert other.pixels is not None
    assert np.array_equal(killed.pixels, other.pixels)


def test_a_folder_that_cannot_be_written_is_done_without(
    open_train: Callable[..., Part], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    part = open_train(folder="file/cache")
    assert part.pixels is None
    assert "decoded anew for each batch" in caplog.text
    assert part.images(np.array([4]))[0].shape == (128, 128, 3)


@pytest.mark.parametrize("budget", [None, 0], ids=["mapped", "streamed"])
def test_changed_bytes_are_refused_by_path(
    open_train: Callable[..., Part], store: FileStore, index: DatasetIndex, budget: int | None
) -> None:
    entry = index.entries("train")[7]
    path = store.local_path(index.shard_key(entry.shard))
    text = bytearray(path.read_bytes())
    text[entry.offset + entry.size // 2] ^= 1
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"c1/train7\.jpg: got bytes with another SHA-256"):
        open_train(budget_bytes=budget).images(np.array([7]))


@pytest.mark.parametrize(
    ("change", "message"),
    [(None, "not there, but the index names it"), (b"short", "got 5 bytes, expected")],
    ids=["missing", "cut"],
)
def test_a_shard_that_is_not_whole_is_named(
    open_train: Callable[..., Part], store: FileStore, index: DatasetIndex, change: bytes | None, message: str
) -> None:
    key = index.shard_key(0)
    if change is None:
        store.delete(key)
    else:
        store.put(key, change)
    with pytest.raises(DataError, match=message) as caught:
        open_train()
    assert key in str(caught.value)
    assert "hint: " in str(caught.value)


class Remote(FileStore):
    """A folder that gives away no paths, as a server does."""

    def local_path(self, key: str) -> None:  # type: ignore[override]  # the protocol allows it, the folder's own does not
        return None


def remote(store: FileStore) -> Remote:
    opened = Remote.__new__(Remote)
    opened.__dict__.update(store.__dict__)
    return opened


@pytest.mark.parametrize(("budget", "copies"), [(None, 0), (0, 1)], ids=["mapped", "streamed"])
def test_shards_on_a_server_are_copied_for_as_long_as_they_are_read(
    store: FileStore,
    index: DatasetIndex,
    tmp_path: Path,
    open_train: Callable[..., Part],
    budget: int | None,
    copies: int,
) -> None:
    part = open_part(index, SPEC, "train", remote(store), Cache(tmp_path / "far", budget_bytes=budget, threads=2))
    indices = np.arange(len(part))
    for far, near in zip(part.images(indices), open_train().images(indices), strict=True):
        assert np.array_equal(far, near)
    assert len(list((tmp_path / "far" / "shards").glob("*.tar"))) == copies


def test_a_copy_with_another_hash_is_refused(store: FileStore, index: DatasetIndex, tmp_path: Path) -> None:
    store.put(index.shard_key(0), b"x" * index.shards[0].size)
    with pytest.raises(DataError, match="another SHA-256"):
        open_part(index, SPEC, "train", remote(store), Cache(tmp_path / "far", threads=2))
    assert list((tmp_path / "far" / "shards").glob("*.tar")) == []


def test_parts_share_one_budget(store: FileStore, index: DatasetIndex, tmp_path: Path) -> None:
    probe = open_part(index, SPEC, "train", store, Cache(tmp_path / "probe", threads=1))
    cache = Cache(tmp_path / "cache", budget_bytes=probe.num_bytes + 1000, threads=1)
    train, validation = (open_part(index, SPEC, name, store, cache) for name in ("train", "validation"))
    assert train.pixels is not None
    assert validation.pixels is None
