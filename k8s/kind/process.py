"""Other programs, run and waited for; what is told about it; files that are whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from k8s.kind.settings import CACHE

SCRATCH = CACHE / "scratch"  # empty whenever the lock is taken
_held: list[int] = []  # the lock's file, while it is held
TAIL = 40  # lines of a failed command's output that are shown


class Failed(Exception):
    """Something that a person has to hear about, with a hint where there is a cure."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message + (f"\nhint: {hint}" if hint else ""))


class Impossible(Failed):
    """This machine lacks what a cluster on it takes: no fault, and nothing that trying again would mend."""


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    sys.stderr.write(f"kind: {text}\n")
    sys.stderr.flush()


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is being done and, at its end, how long it took."""
    say(what)
    started = time.monotonic()
    yield
    if (seconds := time.monotonic() - started) >= 1:
        say(f"{what}: done in {seconds:.0f} s")


def run(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    given: str | None = None,
    folder: Path | None = None,
    timeout: float | None = None,
    hint: str = "",
) -> str:
    """What the command printed on stdout. Raises Failed, with the end of its output, when it does not exit 0."""
    ended = attempt(*command, environment=environment, given=given, folder=folder, timeout=timeout)
    if ended.returncode != 0:
        output = "\n".join(f"{ended.stdout}\n{ended.stderr}".strip().splitlines()[-TAIL:])
        raise Failed(f"{' '.join(map(str, command))}: exit {ended.returncode}\n{output}", hint=hint)
    return ended.stdout


def attempt(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    given: str | None = None,
    folder: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """How the command ended: 127 where there is none of that name, 124 when it took longer than `timeout` seconds."""
    line = [str(word) for word in command]
    try:
        return subprocess.run(
            line,
            env={**os.environ, **(environment or {})},
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            pass_fds=_held,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(line, 127, "", f"{line[0]}: not found")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, 124, "", f"no answer within {timeout:.0f} s")


def write_whole(path: Path, text: str) -> None:
    """Make `path` hold `text`, so that whoever reads it meets the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def digest_of(*parts: str | Path) -> str:
    """Twelve hex digits that change with any of the texts, files and folders."""
    result = hashlib.sha256()
    for part in parts:
        paths = [] if isinstance(part, str) else [part] if part.is_file() else sorted(part.rglob("*"))
        pieces = [part.encode()] if isinstance(part, str) else []
        for path in paths:
            if path.is_file() and "__pycache__" not in path.parts:
                pieces += [path.name.encode(), str(path.stat().st_mode & 0o111).encode(), path.read_bytes()]
        for piece in pieces:
            result.update(len(piece).to_bytes(8, "big") + piece)
    return result.hexdigest()[:12]


@contextmanager
def alone() -> Iterator[None]:
    """Holds this machine's one lock: a second start waits for the first.

    The programs that are run hold it, too: when a start is killed, the next waits for what that one left running.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another start or stop is under way: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(SCRATCH, ignore_errors=True)  # of a killed run
        SCRATCH.mkdir()
        _held.append(lock.fileno())
        try:
            yield
        finally:
            _held.clear()
