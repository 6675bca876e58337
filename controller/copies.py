"""Small objects of remote stores that this machine has read before, kept by the MD5 of their content.

A listing of an S3 server gives each object's ETag, which of an object that was written at one go is that MD5, unless
the server encrypts with keys of its own: then nothing is kept. So ten thousand results are read once, and later a
listing tells that they are the same. Only what has the MD5 that its name says is ever kept or given.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

from trainer.machine import cache_folder

MAX_BYTES = 1 << 30  # of the file: then it is begun anew
BUSY_SECONDS = 2.0  # that another process's writing is waited for
AT_ONCE = 500  # of the values that one statement may have
_MD5 = re.compile(r"[0-9a-f]{32}")


def copies_file() -> Path:
    """Where they are kept: below GRID_CACHE, or the user's cache."""
    return cache_folder() / "copies.sqlite"


class Copies:
    """The copies in a file, which may be lost at any time: whatever is wrong with it, there are none then."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or copies_file()

    def read(self, versions: Collection[str]) -> dict[str, bytes]:
        """Content by version, of those that are there."""
        wanted = [version for version in versions if _MD5.fullmatch(version)]
        found: dict[str, bytes] = {}
        if not wanted or not self._file.exists():
            return found
        try:
            with closing(self._opened()) as database:
                for start in range(0, len(wanted), AT_ONCE):
                    some = wanted[start : start + AT_ONCE]
                    marks = ", ".join("?" * len(some))
                    found.update(database.execute(f"SELECT md5, content FROM copies WHERE md5 IN ({marks})", some))
        except (sqlite3.Error, OSError):
            return {}
        return {version: content for version, content in found.items() if _is_of(version, content)}

    def keep(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """Keep contents by version, where their version is their MD5."""
        rows = [(version, content) for version, content in contents if _is_of(version, content)]
        if not rows:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._file.exists() and self._file.stat().st_size > MAX_BYTES:
                self._file.unlink()
            with closing(self._opened()) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS copies (md5 TEXT PRIMARY KEY, content BLOB NOT NULL)")
                database.executemany("INSERT OR REPLACE INTO copies VALUES (?, ?)", rows)
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError):  # no database, or a damaged one
                self._file.unlink(missing_ok=True)
        except OSError:  # a folder that may not be written
            return

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._file, timeout=BUSY_SECONDS)
        database.execute("PRAGMA synchronous = OFF")  # a loss of power may cost the copies, and nothing else
        return database


def _is_of(version: str, content: bytes) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == version
