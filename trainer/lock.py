"""File locks among this host's processes; the kernel frees one when its holder ends, however it ends.

They are flock's, which belong to an opening of the file and not to a process: two threads keep each other out as well.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.failure import StoreError


class HostLock:
    """An exclusive lock that its holder keeps from `acquire` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; whether it is held now. Raises StoreError where its file cannot be made."""
        descriptor = None
        try:
            descriptor = _opened(self.path)
            if take(descriptor):
                self._descriptor, descriptor = descriptor, None
        except OSError as error:
            raise StoreError(
                f"{self.path}: locking failed: got {error.strerror}, expected a file that this process can write",
                hint="let this user write there, or choose another store",
            ) from error
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return self._descriptor is not None

    def release(self) -> None:
        """Free the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def locked(path: Path, *, while_waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Holds the exclusive lock of the file, which it waits for; raises OSError where the file cannot be made.

    `while_waiting` is called again and again until the lock is free, and has to take its time; what it raises ends the
    wait.
    """
    descriptor = _opened(path)
    try:
        if while_waiting is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            while not take(descriptor):
                while_waiting()
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int, *, is_shared: bool = False) -> bool:
    """Whether the open file holds its lock now, until it and its copies are closed. Raises OSError without locks."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path) -> int:
    """The lock's file, made with its folders where they are not there."""
    flags, mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666  # as the umask has it: a lab shares a store's locks
    try:
        return os.open(path, flags, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, mode)
