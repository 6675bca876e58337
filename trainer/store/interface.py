"""What every store offers, what it raises, and which keys it takes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.failure import SpecError

MIB = 1 << 20
STORE_PATIENCE_SECONDS = 30 * 60.0  # a run, and who waits for runs, bears a store that does not answer for so long
KEY_LIMIT = 900  # bytes; S3 allows 1,024 with the store's own prefix


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    key: str
    size: int  # bytes
    version: str  # changes whenever the content does: an ETag, or a file's time, size and inode
    modified: float  # seconds since the epoch, by the store's clock


@dataclass(frozen=True)
class Retry:
    """A request that failed in a way that can pass, and is sent again after `delay`."""

    operation: str  # reading, writing, replacing, listing, deleting
    key: str
    kind: str  # throttled, server-error, connection, timeout, conflict
    tries: int  # so far
    delay: float  # seconds until the next one
    error: str


@dataclass(frozen=True)
class Request:
    """A request that was answered, or came to nothing."""

    operation: str  # as a Retry has it
    seconds: float  # until the answer, or until it was clear that none comes
    fault: str | None  # a Retry's kind, or refused where it cannot pass; none: answered, be it that there is no object


class NotFound(KeyError):
    """There is no object under that key. What it means is the caller's to say."""


class Conflict(Exception):
    """A conditional write lost: the object exists already, or is no longer the version that was read."""


class Store(Protocol):
    """Objects under `/`-separated keys. Writes are atomic: a reader sees the old object, the new one, or none.

    No part of a key starts with a dot: such names are the store's own. Every method may be called from any thread,
    raises SpecError on a malformed key, StoreError at once on what cannot pass (no bucket, access denied, bad
    endpoint), and StoreError after bounded retries on what can.
    """

    uri: str

    def get(self, key: str) -> bytes:
        """The object's content. Raises NotFound."""
        ...

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's content and its version, for `replace`. Raises NotFound."""
        ...

    def get_many(self, keys: Iterable[str], workers: int = 16) -> Iterator[tuple[str, bytes]]:
        """Each key with its object's content, in the order of `keys`, read ahead where that helps. Raises NotFound."""
        ...

    def open(self, key: str) -> AbstractContextManager[io.BufferedReader]:
        """The object's content as a stream that is read once, front to back. Raises NotFound."""
        ...

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the object, whatever was there, from where its bytes lie; large ones in parts."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streaming; large ones in parts."""
        ...

    def create(self, key: str, data: bytes) -> str:
        """Write the object unless one is there and return its version. Raises Conflict.

        Where `is_conditional` is false that is best effort: the version is of these bytes in any case.
        """
        ...

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Write over the version that was read and return the new version. Raises Conflict, NotFound as `create`."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, in key order, however many pages they fill."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; none being there is no error."""
        ...

    def is_conditional(self) -> bool:
        """Whether two writers can be kept apart by `create` and `replace`: asked of the server once, by trying."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The file that holds the object if there is one, so that it can be memory-mapped; none on a server."""
        ...

    def lock_path(self, name: str) -> Path:
        """Where this host's processes can lock (flock) `name` of this store among themselves; its folder exists."""
        ...


KEY_PART = r"(?!\.)[^/\x00-\x1f\x7f\ud800-\udfff]+"
KEY = re.compile(f"{KEY_PART}(?:/{KEY_PART})*")


def check_key(key: str) -> str:
    """The key itself. Raises SpecError unless it is one."""
    if KEY.fullmatch(key) is None or len(key.encode()) > KEY_LIMIT:
        raise SpecError(
            f"store key: got {key!r}, expected non-empty parts joined by '/', none starting with a dot, "
            f"no control characters, at most {KEY_LIMIT} bytes"
        )
    return key


def check_prefix(prefix: str) -> tuple[str, str]:
    """The folder of `prefix` without its slash, and what names in it must start with."""
    folder, _, start = prefix.rpartition("/")
    if folder:
        check_key(folder)
    if start:
        check_key(start)
    return folder, start
