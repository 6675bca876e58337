"""stdout, as commands write it: what cannot be written is told apart from every other fault of the machine."""

from __future__ import annotations

import io
import os
import sys

UNWRITTEN = 64
"""The exit code of a command whose output could not be written."""


class OutputError(OSError):
    """stdout takes no more."""


class Output(io.TextIOWrapper):
    """stdout, whose faults are OutputErrors."""

    def write(self, text: str) -> int:
        """Number of characters written. Raises OutputError."""
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error

    def flush(self) -> None:
        """Hand on what is still held. Raises OutputError."""
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


def guard_stdout() -> None:
    """Put an Output in the place of this process's stdout; the old one stays for those who ask for its size."""
    _hold_descriptors()
    inner = sys.stdout
    if not isinstance(inner, io.TextIOWrapper) or isinstance(inner, Output):  # closed, or a test's
        return
    inner.flush()
    raw = io.FileIO(inner.fileno(), "w", closefd=False)
    buffer = raw if inner.write_through else io.BufferedWriter(raw)
    sys.stdout = Output(buffer, inner.encoding, inner.errors, None, inner.line_buffering, inner.write_through)


def _hold_descriptors() -> None:
    """Take those of 0, 1 and 2 that are closed: the next file to be opened would be one, and be written to as such."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def drop_stdout() -> None:
    """Let go what stdout still holds, so that the end of the process does not try it once more."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
