"""How a process that runs for ever is: what it is asked over HTTP, and a log that says when a server is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Literal, Self, TextIO

from controller.live import GridProgress, Word
from controller.wording import plain, seconds_text
from trainer.failure import SpecError
from trainer.logs import Form, Line, human_lines, json_text, stamp
from trainer.serving import Answer, PathServer

ROUND_SECONDS = 300.0  # since a round began, after which it hangs: servers are asked for seconds, and then later again

Level = Literal["info", "warning", "error"]
_LEVELS: dict[Word, Level] = {"failed": "error", "waits": "warning", "again": "warning"}


class Log:
    """A line for each event: its time, its level, what happened. A view for what runs without anyone looking.

    As JSON a line says which of `grids` it is about: that whose name the text begins with.
    """

    def __init__(self, stream: TextIO, form: Form = "text") -> None:
        self.grids: Collection[str] = ()
        self._stream = stream
        self._form = form
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def write(self, level: Level, text: str) -> None:
        """Tell of one event, on one line whatever its text."""
        self._write(level, text, about=text)

    def _write(self, level: Level, text: str, *, about: str) -> None:
        message = "; ".join(plain(each.strip()) for each in text.splitlines() if each.strip())
        grid = about.partition(": ")[0]
        line = Line(message, stamp(), level, {"grid": grid} if grid in self.grids else {})
        with self._lock:
            print(json_text(line) if self._form == "json" else human_lines(line)[0], file=self._stream, flush=True)

    def say(self, word: Word, text: str) -> None:
        """Tell of one thing that happened to a grid."""
        self._write(_LEVELS.get(word, "info"), text if word == "note" else f"{word} {text}", about=text)

    def show(self, progress: GridProgress) -> None:
        """Nothing: nobody looks."""


class Link:
    """Whether a server answers; its silence is told once, and so is its end."""

    def __init__(self, server: str, log: Log) -> None:
        self._server = server
        self._log = log
        self._silent_since: float | None = None
        self.answered_at: float | None = None  # by the monotonic clock
        self.why: str | None = None  # it does not answer, or refuses

    def failed(self, why: str) -> None:
        """It did not answer, or refused."""
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            self._log.write("warning", f"{self._server} does not answer as it should, asking again: {why}")
        self.why = why

    def answered(self) -> None:
        """It did."""
        if self._silent_since is not None:
            silent = seconds_text(time.monotonic() - self._silent_since)
            self._log.write("info", f"{self._server} answers again, after {silent}")
        self._silent_since = self.why = None
        self.answered_at = time.monotonic()


class Rounds:
    """Whether a loop goes round."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def begin(self) -> None:
        """Note that a round, or a part of it that may take as long, begins."""
        self._began = time.monotonic()

    def answer(self) -> Answer:
        """What the path /healthz is answered with."""
        seconds = time.monotonic() - self._began
        told = f"the last round began {seconds:.0f} s ago"
        return Answer(200 if seconds < ROUND_SECONDS else 503, told)


class HealthServer(PathServer):
    """A PathServer in a `with` block. Raises SpecError, which names `option`, where the port is not to be had."""

    def __init__(
        self,
        port: int,
        paths: Mapping[str, Callable[[], Answer]],
        by_accept: Mapping[str, Callable[[str], Answer]] | None = None,
        *,
        option: str = "--port",
    ) -> None:
        try:
            super().__init__(port, paths, name="health", by_accept=by_accept)
        except OSError as error:
            raise SpecError(
                f"{option}: got {port}, which is not to be had: {error.strerror}, expected a free port",
                hint=f"{option} 0 takes any free one",
            ) from error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
