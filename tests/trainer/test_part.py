"""Parts are cached whole or not at all, and streamed where they do not fit."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blobs import SPEC
from PIL import Image

import trainer.part
from trainer.cache import Cache
from trainer.dataset import DatasetIndex
from trainer.decode import decode_image
from trainer.failure import DataError
from trainer.part import Part, open_part
from trainer.store import FileStore


def test_a_second_opening_needs_no_shard(
    open_train: Callable[..., Part], file_store: FileStore, index: DatasetIndex
) -> None:
    first = open_train()
    for shard in range(len(index.shards)):
        file_store.delete(index.shard_key(shard))
    again = open_train()
    assert again.pixels is not None
    assert first.pixels is not None
    assert np.array_equal(again.pixels, first.pixels)


def test_the_test_part_is_not_read_for_training(
    open_train: Callable[..., Part], file_store: FileStore, index: DatasetIndex
) -> None:
    file_store.delete(index.shard_key(2))
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

    monkeypatch.setattr(trainer.part, "decode_image", counted)
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
from trainer.cache import Cache
from trainer.part import open_part
from trainer.store import open_store
index, data, uri, folder = pickle.loads(sys.stdin.buffer.read())
def die(done, total):
    if done: os.kill(os.getpid(), signal.SIGKILL)
open_part(index, data, "train", open_store(uri), Cache(Path(folder), threads=2, progress=die))
"""


@pytest.mark.slow
def test_a_killed_filling_is_taken_over(
    open_train: Callable[..., Part], file_store: FileStore, index: DatasetIndex, tmp_path: Path
) -> None:
    given = pickle.dumps((index, SPEC, file_store.uri, str(tmp_path / "cache")))
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
    open_train: Callable[..., Part], file_store: FileStore, index: DatasetIndex, budget: int | None
) -> None:
    entry = index.entries("train")[7]
    path = file_store.local_path(index.shard_key(entry.shard))
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
    open_train: Callable[..., Part], file_store: FileStore, index: DatasetIndex, change: bytes | None, message: str
) -> None:
    key = index.shard_key(0)
    if change is None:
        file_store.delete(key)
    else:
        file_store.put(key, change)
    with pytest.raises(DataError, match=message) as caught:
        open_train()
    assert key in str(caught.value)
    assert "hint: " in str(caught.value)


class Remote(FileStore):
    """A folder that gives away no paths, as a server does."""

    def local_path(self, key: str) -> None:  # type: ignore[override]  # the protocol allows it, the folder's own does not
        return None


def remote(file_store: FileStore) -> Remote:
    opened = Remote.__new__(Remote)
    opened.__dict__.update(file_store.__dict__)
    return opened


@pytest.mark.parametrize(("budget", "copies"), [(None, 0), (0, 1)], ids=["mapped", "streamed"])
def test_shards_on_a_server_are_copied_for_as_long_as_they_are_read(
    file_store: FileStore,
    index: DatasetIndex,
    tmp_path: Path,
    open_train: Callable[..., Part],
    budget: int | None,
    copies: int,
) -> None:
    part = open_part(index, SPEC, "train", remote(file_store), Cache(tmp_path / "far", budget_bytes=budget, threads=2))
    indices = np.arange(len(part))
    for far, near in zip(part.images(indices), open_train().images(indices), strict=True):
        assert np.array_equal(far, near)
    assert len(list((tmp_path / "far" / "shards").glob("*.tar"))) == copies


def test_a_copy_with_another_hash_is_refused(file_store: FileStore, index: DatasetIndex, tmp_path: Path) -> None:
    file_store.put(index.shard_key(0), b"x" * index.shards[0].size)
    with pytest.raises(DataError, match="another SHA-256"):
        open_part(index, SPEC, "train", remote(file_store), Cache(tmp_path / "far", threads=2))
    assert list((tmp_path / "far" / "shards").glob("*.tar")) == []


def test_parts_share_one_budget(file_store: FileStore, index: DatasetIndex, tmp_path: Path) -> None:
    probe = open_part(index, SPEC, "train", file_store, Cache(tmp_path / "probe", threads=1))
    cache = Cache(tmp_path / "cache", budget_bytes=probe.num_bytes + 1000, threads=1)
    train, validation = (open_part(index, SPEC, name, file_store, cache) for name in ("train", "validation"))
    assert train.pixels is not None
    assert validation.pixels is None
