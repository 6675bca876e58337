"""Files from the web: in bounded space, with progress, taken up again where they broke off.

1. What has arrived lies in the user's cache folder as `<hash of the address>.part`, with the server's ETag or date
   beside it, so that a later process finds both.
2. A request for the rest names that ETag (`If-Range`): a server whose file has changed sends all of it again.
3. An interruption is followed by up to RETRIES further requests in a row that bring nothing, with growing pauses.
4. The file is deleted when the caller has used it without an error, and kept otherwise: a second try is then cheap.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.failure import DataError
from trainer.lock import HostLock
from trainer.machine import cache_folder

RETRIES = 5
FIRST_PAUSE = 0.5  # seconds; doubled after each try that brings nothing
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Progress(Protocol):
    """Told how far a step has come: `download` and `read` count bytes, `list` and `unpack` files, `import` images."""

    def __call__(self, step: str, done: int, total: int | None, num_bytes: int) -> None:
        """`done` of `total` (none: not known) and the bytes handled so far."""


@dataclass(frozen=True)
class _Answer:
    """What a request brought: whether the file is whole, and why not."""

    is_whole: bool
    fault: str = ""


@contextmanager
def download(
    url: str,
    *,
    sha256: str | None,
    max_bytes: int,
    folder: Path | None,
    progress: Progress,
    first_pause: float = FIRST_PAUSE,
) -> Iterator[Path]:
    """The file at `url` on disk, for as long as the context lasts.

    `folder` holds what has arrived; none means the user's cache folder. Raises DataError when the server refuses, does
    not answer, or sends more than `max_bytes`, and when the file's SHA-256 is not `sha256`.
    """
    part = (folder or cache_folder() / "downloads") / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.part"
    lock = HostLock(part.with_suffix(".lock"))
    if not lock.acquire():
        raise DataError(f"source {url}: another process is fetching it", hint="wait for it, or stop it")
    try:
        _fetch(url, part, max_bytes, progress, first_pause)
        if sha256 is not None:
            try:
                check_sha256(part, url, sha256)
            except DataError:
                _forget(part)
                raise
        yield part
        _forget(part)
    finally:
        lock.release()


def check_sha256(file: Path, origin: str, expected: str) -> None:
    """Nothing, when the file's SHA-256 is `expected`; raises DataError otherwise."""
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, "sha256").hexdigest()
    if got != expected.lower():
        raise DataError(
            f"source {origin}: got SHA-256 {got}, expected {expected}",
            hint="it is another file than the one that was meant, or it arrived broken",
        )


def _fetch(url: str, part: Path, max_bytes: int, progress: Progress, pause: float) -> None:
    """Fill `part` until it is whole."""
    tries = 0
    while True:
        before = _size(part)
        answer = _request(url, part, max_bytes, progress)
        if answer.is_whole:
            return
        tries = 1 if _size(part) > before else tries + 1
        if tries > RETRIES:
            raise DataError(
                f"source {url}: {answer.fault}, {tries} times in a row, after {_size(part)} bytes",
                hint="try again later: the download goes on from there",
            )
        time.sleep(pause * 2 ** (tries - 1) * random.uniform(0.5, 1))


def _request(url: str, part: Path, max_bytes: int, progress: Progress) -> _Answer:
    """One request for what is missing of the file, and as much of the answer as comes."""
    have, tag = _size(part), _tag(part)
    if have and tag is None:
        _forget(part)  # nothing says that the rest would be of the same file
        have = 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "experiment-grid"}
    if have and tag:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            return _receive(url, response, part, have, max_bytes, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                    return _Answer(is_whole=True)
                _forget(part)
                return _Answer(is_whole=False, fault="the file at that address became shorter")
            if error.code in PASSING:
                return _Answer(is_whole=False, fault=f"the server answers {error.code} {error.reason}")
            raise DataError(f"source {url}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"source {url}: no space left in {part.parent} after {_size(part)} bytes",
                hint="set GRID_CACHE to a folder with more room",
            ) from error
        return _Answer(is_whole=False, fault=f"no answer: {error}")


def _receive(
    url: str, response: http.client.HTTPResponse, part: Path, have: int, max_bytes: int, progress: Progress
) -> _Answer:
    is_rest = response.status == http.HTTPStatus.PARTIAL_CONTENT
    if is_rest and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        _forget(part)
        return _Answer(is_whole=False, fault="the server sends another range than was asked for")
    done = have if is_rest else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length and length.isdecimal() else None
    if total is not None and total > max_bytes:
        raise _too_large(url, f"{total} bytes", max_bytes)
    if not is_rest:
        _keep_tag(part, response)
    with part.open("ab" if is_rest else "wb") as target:
        while block := response.read1(BLOCK):
            done += len(block)
            if done > max_bytes:
                raise _too_large(url, f"more than {max_bytes} bytes", max_bytes)
            target.write(block)
            progress("download", done, total, done)
    if total is not None and done < total:
        return _Answer(is_whole=False, fault=f"the connection closed after {done} of {total} bytes")
    return _Answer(is_whole=True)


def _too_large(url: str, got: str, max_bytes: int) -> DataError:
    return DataError(
        f"source {url}: {got}, expected at most {max_bytes}", hint="allow more with --max-bytes if it is meant"
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _tag_file(part: Path) -> Path:
    return part.with_suffix(".json")


def _tag(part: Path) -> str | None:
    try:
        tag = json.loads(_tag_file(part).read_text())
    except (OSError, ValueError):
        return None
    return tag if isinstance(tag, str) else None


def _keep_tag(part: Path, response: http.client.HTTPResponse) -> None:
    """Note what tells this version of the file from another: a strong ETag, or else the date of its last change."""
    etag = response.headers.get("ETag", "")
    tag = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    part.unlink(missing_ok=True)  # before the tag changes: a part never lies beside the tag of another version
    _tag_file(part).write_text(json.dumps(tag))


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)
