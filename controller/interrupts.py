"""What Ctrl-C does to a command: it ends in a word and an exit code at any moment, never in a traceback.

A command that can do better than end, as `grid run` can, sets handlers of its own while it does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, 128 + SIGINT as shells have it."""

TOLD = "interrupted: whatever is in the store is whole, and the same command may be given again"


class Interrupted(BaseException):
    """Ctrl-C. No KeyboardInterrupt, to which libraries give meanings of their own."""


def listen() -> None:
    """From now on a first Ctrl-C raises Interrupted wherever the command is, and a second ends the process."""

    def hear(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _ending(INTERRUPTED, TOLD))
        raise Interrupted

    def lost(what: sys.UnraisableHookArgs) -> None:
        if what.exc_type is Interrupted:  # raised where Python cannot pass it on, as in a destructor
            end(INTERRUPTED, TOLD)
        sys.__unraisablehook__(what)

    signal.signal(signal.SIGINT, hear)
    sys.unraisablehook = lost
    # registered first, so that it is called last: where Python takes itself apart, a default handler would kill it
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def settle(exit_code: int) -> None:
    """From now on Ctrl-C ends the process at once with `exit_code`: what the command came to is said already."""
    signal.signal(signal.SIGINT, _ending(exit_code, None))


def end(exit_code: int, text: str | None = None) -> NoReturn:
    """End the process at once, with `text` as its last words."""
    if text is not None:
        # a terminal shows `^C` on the line that is begun
        with suppress(OSError):
            os.write(2, f"{chr(10) if os.isatty(2) else ''}{text}\n".encode())
    os._exit(exit_code)


def _ending(exit_code: int, text: str | None) -> Callable[[int, FrameType | None], NoReturn]:
    def hear(_number: int, _frame: FrameType | None) -> NoReturn:
        end(exit_code, text)

    return hear
