"""Cache files are whole or not there, and what nobody uses makes room for what is needed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.cache import (
    DISK_BYTES,
    HEADER_BYTES,
    Cache,
    CacheFile,
    Pixels,
    cache_usage,
    disk_limit,
    open_used,
    remove_unused,
    write_at,
)
from trainer.failure import SpecError

SIZE = 40_000
ON_DISK = -(-(HEADER_BYTES + SIZE) // 4096) * 4096

Opened = Callable[..., Pixels]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Maps the file of a name, made if need be; the folder has room for two and a half."""

    def pixels(name: str, value: int = 7) -> Pixels:
        file = CacheFile(tmp_path / f"{name}.rgb", num_images=1, num_bytes=SIZE)
        cache = Cache(tmp_path, budget_bytes=0, disk_bytes=5 * ON_DISK // 2, threads=1)
        return cache.pixels(file, lambda descriptor: write_at(descriptor, bytes([value]) * SIZE, HEADER_BYTES))

    return pixels


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def age(path: Path, seconds: float) -> None:
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_a_file_is_made_once_and_mapped_from_then_on(opened: Opened, tmp_path: Path) -> None:
    assert np.array_equal(opened("a", 7), np.full(SIZE, 7))
    assert np.array_equal(opened("a", 8), np.full(SIZE, 7))
    assert names(tmp_path) == ["a.rgb"]


def test_the_least_recently_used_file_makes_room(opened: Opened, tmp_path: Path) -> None:
    for name in ("a", "b"):
        opened(name)
    age(tmp_path / "a.rgb", 20)
    age(tmp_path / "b.rgb", 10)
    opened("a")
    opened("c")
    assert names(tmp_path) == ["a.rgb", "c.rgb"]


def test_a_file_that_is_mapped_is_not_removed_until_it_is_let_go(opened: Opened, tmp_path: Path) -> None:
    held, other = opened("a"), opened("b")
    age(tmp_path / "a.rgb", 20)
    third = opened("c")
    assert names(tmp_path) == ["a.rgb", "b.rgb", "c.rgb"]
    assert remove_unused(tmp_path, 0) == 0
    del other, third
    assert remove_unused(tmp_path, 0) == 2 * ON_DISK
    assert names(tmp_path) == ["a.rgb"]
    assert held[0] == 7


def test_a_removed_file_is_made_again(opened: Opened, tmp_path: Path) -> None:
    opened("a")
    remove_unused(tmp_path, 0)
    assert names(tmp_path) == []
    assert opened("a", 9)[-1] == 9


def test_what_a_killed_process_left_goes_first_and_what_is_being_filled_stays(opened: Opened, tmp_path: Path) -> None:
    opened("a")
    for name in ("killed", "filling"):
        (tmp_path / f"{name}.partial").write_bytes(bytes(SIZE))
        (tmp_path / f"{name}.lock").touch()
    with (tmp_path / "filling.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_unused(tmp_path, 10 * ON_DISK)
    assert names(tmp_path) == ["a.rgb", "filling.partial"]


def test_copies_of_shards_count_and_are_removed_like_files(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("read", "unread"):
        (tmp_path / "shards" / f"{name}.tar").write_bytes(bytes(8192))
    assert cache_usage(tmp_path).num_bytes == 16384
    with open_used(tmp_path / "shards" / "read.tar"):
        assert remove_unused(tmp_path, 0) == 8192
    assert names(tmp_path / "shards") == ["read.tar"]


def test_usage_is_what_the_files_take(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRID_CACHE_BYTES", "5000")
    opened("a")
    found = cache_usage(tmp_path)
    assert (found.folder, found.num_files, found.num_bytes, found.limit) == (tmp_path, 1, ON_DISK, 5000)
    assert cache_usage(tmp_path / "none").num_files == 0


def test_a_failed_filling_leaves_nothing(tmp_path: Path) -> None:
    def fail(descriptor: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Cache(tmp_path, budget_bytes=0, threads=1).pixels(CacheFile(tmp_path / "a.rgb", 1, SIZE), fail)
    assert names(tmp_path) == []


def test_a_disk_that_is_too_full_is_an_error(tmp_path: Path) -> None:
    file = CacheFile(tmp_path / "a.rgb", 1, 1 << 60)
    with pytest.raises(OSError, match="its disk is too full"):
        Cache(tmp_path, budget_bytes=0, threads=1).pixels(file, lambda descriptor: None)


def test_the_limit_is_set_by_the_environment() -> None:
    assert disk_limit({}) == DISK_BYTES
    assert disk_limit({"GRID_CACHE_BYTES": "123"}) == 123
    with pytest.raises(SpecError, match="GRID_CACHE_BYTES: got '2G', expected a number of bytes"):
        disk_limit({"GRID_CACHE_BYTES": "2G"})
