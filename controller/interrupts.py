"""What Ctrl-C does to a command: it ends in a word and an exit code at any moment, never in a traceback.

A command that can do better than end, as `grid run` can, sets handlers of its own while it does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # typing's own takes as long to load as all the rest, and until then nothing hears Ctrl-C
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, 128 + SIGINT as shells have it."""

TOLD = "interrupted: whatever is in the store is whole, and the same command may be given again"


BARELY_BEGUN = "interrupted"


class Interrupted(BaseException):
    """Ctrl-C. No KeyboardInterrupt, to which libraries give meanings of their own."""


@contextmanager
def loading() -> Iterator[None]:
    """Until the end of the block Ctrl-C ends the process at once, unless something else listens already.

    KeyboardInterrupt would not do: raised in the midst of an import it may be lost, or become another error. Before
    Python has come here it is Python's to answer: killed by the signal, or a traceback out of its own start.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _ending(INTERRUPTED, BARELY_BEGUN))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
