"""A lock keeps the host's other processes and threads out, and is free once its holder lets it go or ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.failure import StoreError
from trainer.lock import HostLock, locked, take


def test_a_lock_is_free_again_once_released(tmp_path: Path) -> None:
    first, second = (HostLock(tmp_path / "locks" / "x") for _ in range(2))
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


HOLDER = """
import sys, time
from pathlib import Path
from trainer.lock import HostLock
held = HostLock(Path(sys.argv[1]))
print("held" if held.acquire() else "free", flush=True)
time.sleep(600)
"""


def test_a_lock_is_free_again_once_its_holder_is_killed(tmp_path: Path) -> None:
    lock = HostLock(tmp_path / "x")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock.path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not lock.acquire()
        holder.kill()
    assert lock.acquire()
    lock.release()


def test_who_waits_for_a_lock_is_asked_meanwhile_and_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    holder = HostLock(path)
    assert holder.acquire()
    asked = []

    def let_go() -> None:
        asked.append("held")
        if len(asked) == 3:
            holder.release()

    with locked(path, while_waiting=let_go):
        assert not HostLock(path).acquire()
    assert asked == ["held"] * 3
    assert holder.acquire()
    holder.release()


def test_what_is_raised_while_waiting_ends_the_wait(tmp_path: Path) -> None:
    holder = HostLock(tmp_path / "x")
    assert holder.acquire()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "x", while_waiting=stop):
        pytest.fail("the lock is another's")
    holder.release()


def test_readers_share_a_lock_and_keep_a_writer_out(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    with path.open() as first, path.open() as second, path.open() as writer:
        assert take(first.fileno(), is_shared=True)
        assert take(second.fileno(), is_shared=True)
        assert not take(writer.fileno())


def test_a_lock_that_cannot_be_made_is_a_store_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "x"
    with pytest.raises(StoreError, match=f"{path}: locking failed: got Not a directory"):
        HostLock(path).acquire()
    with pytest.raises(NotADirectoryError), locked(path):
        pytest.fail("there is no such lock")
