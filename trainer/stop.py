"""The stop signal: set by SIGTERM or SIGINT from a process's first instruction on, looked at in every step."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

# nothing slow is imported here: until this module is loaded and listens, process 1 of a container hears no signal


class StopSignal:
    """Says whether, and why, the run is to stop at the next step boundary."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.requested_at = math.inf  # by time.monotonic

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason given stands."""
        if self.reason is None:
            self.reason, self.requested_at = reason, time.monotonic()

    def check(self, *, grace_seconds: float = 0.0) -> None:
        """Raise Stopped if a stop was asked for, at least `grace_seconds` ago."""
        if self.reason is not None and time.monotonic() - self.requested_at >= grace_seconds:
            from trainer.failure import Stopped

            raise Stopped(self.reason, hint="the same command goes on from the last checkpoint")

    def listen(self, *, ignore_interrupt: bool = False) -> None:
        """Turn SIGTERM and SIGINT into requests; a terminal's SIGINT is left to the parent where it stops its runs."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignore_interrupt else self._on_signal)
        # the image's entry point holds both back until there is someone to hear them
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.request(f"told to stop by {signal.Signals(number).name}")
