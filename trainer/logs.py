"""The lines of a log: what each holds, how it is written for programs and for people, and how both are read again.

A process writes its log to stderr in the form that GRID_LOG asks for: `text`, for people, or `json`, a JSON object a
line. The store has an attempt's log as JSON lines in either case.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, get_args

from trainer.failure import encodable

VARIABLE = "GRID_LOG"
Form = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error", "critical")
MESSAGE_LIMIT, TRACEBACK_LIMIT = 4_000, 8_000  # characters; container engines break lines of more than 16 KiB
_KEYS = frozenset({"time", "level", "message", "traceback"})
_TEXT = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z) ({'|'.join(LEVELS)}) +(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was logged. Without time and level it was written beside the log, as by a library in C."""

    message: str
    time: str | None = None  # RFC 3339, UTC, milliseconds: as texts they are in order
    level: str | None = None
    about: Mapping[str, str | int] = field(default_factory=dict)  # run, attempt, epoch, grid: as far as is known
    traceback: str | None = None

    @property
    def attempt(self) -> str | None:
        """The attempt that logged it, where it says so."""
        attempt = self.about.get("attempt")
        return None if attempt is None else str(attempt)


@dataclass(slots=True)
class About:
    """What this process works at: each line that it logs says so."""

    run: str | None = None
    epoch: int | None = None  # in progress, from 1; of a line that tells of an epoch's end, that epoch
    attempt: str | None = None

    def clear(self) -> None:
        """Forget it: what is logged next is about something else."""
        self.run = self.epoch = self.attempt = None


ABOUT = About()
"""Of the one attempt that a process is."""


def stamp(seconds: float | None = None) -> str:
    """A time as lines have it, from seconds of the epoch; now without."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def line_of(record: logging.LogRecord, about: About = ABOUT) -> Line:
    """What was logged; a message that does not fit its values is kept beside them."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - whoever wrote that call, the line is not lost
        message = f"{record.msg!r} with {record.args!r}"
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else record.stack_info
    return Line(
        message=_cut(encodable(message.strip())),
        time=stamp(record.created),
        level=record.levelname.lower(),
        about={name: value for name, value in asdict(about).items() if value is not None},
        traceback=_end_of(encodable(trace.rstrip())) if trace and trace.strip() else None,
    )


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + "…"


def _end_of(text: str) -> str:
    return text if len(text) <= TRACEBACK_LIMIT else "…" + text[-TRACEBACK_LIMIT:]


# Written


def json_text(line: Line) -> str:
    """The line as a JSON object on one line."""
    said = {"time": line.time, "level": line.level, **line.about, "message": line.message}
    if line.traceback is not None:
        said["traceback"] = line.traceback
    return json.dumps(said, ensure_ascii=False)


def human_lines(line: Line) -> list[str]:
    """The line for people: time, level and message, then what belongs to it."""
    first, *rest = [*line.message.splitlines(), *(line.traceback or "").splitlines()] or [""]
    return [first if line.time is None else f"{line.time} {line.level or 'info':<7} {first}", *rest]


# Read


def read_lines(texts: Iterable[str]) -> Iterator[Line]:
    """The lines of a log in either form, or in none."""
    for text in texts:
        yield read_line(text)


def read_line(text: str) -> Line:
    """What one line of a log says; its text alone where it is of neither form."""
    if text.startswith("{"):
        with suppress(ValueError):
            said = json.loads(text)
            if isinstance(said, dict) and isinstance(said.get("message"), str):
                return _line(said)
    if (found := _TEXT.fullmatch(text)) is not None:
        return Line(found[3], found[1], found[2])
    return Line(text)


def _line(said: dict[str, Any]) -> Line:
    time, level, trace = said.get("time"), said.get("level"), said.get("traceback")
    return Line(
        message=said["message"],
        time=time if isinstance(time, str) else None,
        level=level if level in LEVELS else None,
        about={name: value for name, value in said.items() if name not in _KEYS and isinstance(value, (str, int))},
        traceback=trace if isinstance(trace, str) else None,
    )


# Of this process


def asked_form() -> tuple[Form, str | None]:
    """The form that GRID_LOG asks for, and what is wrong with it, if anything is: then it is text."""
    asked = os.environ.get(VARIABLE, "")
    if asked == "json":
        return "json", None
    wrong = asked not in ("", *get_args(Form))
    return "text", f"{VARIABLE}: got {asked!r}, expected text or json: the log is text" if wrong else None


class Formatter(logging.Formatter):
    """Writes what is logged in one of the forms."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines of one."""
        line = line_of(record)
        return json_text(line) if self._form == "json" else "\n".join(human_lines(line))


def log_to_stderr(form: Form | None = None, *, level: int = logging.INFO) -> None:
    """Let all that this process logs, warns of, or does not catch go to stderr, by `form` or as GRID_LOG asks.

    A crash of the interpreter itself leaves Python's bare trace there: nothing else runs any more by then.
    """
    if sys.stderr is None:
        return
    asked, wrong = asked_form()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(form or asked))
    handler.setLevel(level)
    root = logging.getLogger()
    root.setLevel(level)
    root.addHandler(handler)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells every process where its credentials are from
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    with suppress(OSError, ValueError):  # stderr is no file
        faulthandler.enable()
    if wrong is not None and form is None:
        logging.getLogger(__name__).warning(wrong)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("trainer").critical("ended by %s: %s", kind.__name__, _said(error), exc_info=(kind, error, trace))


def _uncaught_in_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is SystemExit or ended.exc_value is None:
        return
    name = ended.thread.name if ended.thread is not None else "unknown"
    logging.getLogger("trainer").error(
        "thread %s ended by %s: %s",
        name,
        ended.exc_type.__name__,
        _said(ended.exc_value),
        exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback),
    )


def _unraisable(met: Any) -> None:
    """Log what Python met where nobody can catch it; sys.UnraisableHookArgs is known to type checkers alone."""
    kind, error = met.exc_type, met.exc_value
    logging.getLogger("trainer").error(
        "%s: %s: %s",
        met.err_msg or "ignored",
        kind.__name__,
        _said(error) if error is not None else "",
        exc_info=(kind, error, met.exc_traceback) if error is not None else None,
    )


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error that cannot even be told is told by its name
        return ""
