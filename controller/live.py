"""What is happening, shown while it happens: a line for each run at work and one for the grid, on stderr.

On a terminal the lines stay in place and are redrawn; elsewhere plain lines follow one another, few enough to keep.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between two plain lines of one run
OWN_LINES = 3  # of the terminal that the runs leave: the grid's line, the folded rest, the prompt
BAR_WIDTH = 12

Word = Literal["start", "done", "failed", "again", "kept", "waits", "note"]
_STYLES: dict[Word, str] = {"done": "green", "failed": "bold red", "again": "yellow", "kept": "cyan", "waits": "yellow"}


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far one run at work is. Losses in nats per image, accuracies 0..1."""

    label: str  # stage/experiment seed 0
    doing: Literal["starting", "training", "testing", "stopping"]
    num_epochs: int
    epochs_done: float = 0.0  # with the part of the one in progress
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None

    @property
    def epoch(self) -> int:
        """Number of the epoch in progress, from 1."""
        return min(int(self.epochs_done) + 1, self.num_epochs)


@dataclass(frozen=True, slots=True)
class GridProgress:
    """How far a grid is, counted in distinct runs and in tests of them."""

    grid: str
    num_done: int
    num_waiting: int
    num_failed: int
    running: tuple[RunProgress, ...] = ()
    elsewhere: tuple[str, ...] = ()  # runs that other processes train: `label: running on node-1:4711, epoch 3`
    later_stages: tuple[str, ...] = ()  # whose rows are not known yet
    seconds_left: float | None = None  # for all that is known
    loading: bool = False  # nothing can start yet
    stopping: bool = False


class View(Protocol):
    """Shows progress from `__enter__` to `__exit__`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, word: Word, text: str) -> None:
        """Tell of one thing that happened."""
        ...

    def show(self, progress: GridProgress) -> None:
        """Bring what is shown up to date."""
        ...


def open_view(stream: TextIO | None = None) -> View:
    """A view that suits `stream`, stderr if none is given."""
    console = Console(file=stream) if stream is not None else Console(stderr=True)
    return TerminalView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(stream)


class PlainView:
    """Lines for a log: what happened, and at most one line for each run in PLAIN_SECONDS."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._told: dict[str, tuple[float, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, word: Word, text: str) -> None:
        """Tell of one thing that happened."""
        print(f"{word:<6} {text}", file=self._stream, flush=True)

    def show(self, progress: GridProgress) -> None:
        """Tell how each run is, of which PLAIN_SECONDS have nothing been told."""
        now = self._clock()
        for run in progress.running:
            before = self._told.setdefault(run.label, (now, ""))
            text = " ".join(filter(None, (run.label, *run_words(run).values())))
            if run.train_loss is not None and now - before[0] >= PLAIN_SECONDS and text != before[1]:
                self._told[run.label] = (now, text)
                self.say("note", text)


class TerminalView:
    """Lines that stay in place; what happened scrolls away above them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, word: Word, text: str) -> None:
        """Tell of one thing that happened."""
        self.console.print(Text.assemble((f"{word:<6} ", _STYLES.get(word, "dim")), text), soft_wrap=True)

    def show(self, progress: GridProgress) -> None:
        """Draw the lines anew, as many as the terminal has room for now."""
        self._live.update(render(progress, self.console.height), refresh=True)


def render(progress: GridProgress, height: int) -> RenderableType:
    """The lines of a terminal `height` lines high: runs at work, those folded away, the grid."""
    room = max(1, height - OWN_LINES)
    shown = progress.running[:room]
    elsewhere = progress.elsewhere[: room - len(shown)]
    folded = len(progress.running) + len(progress.elsewhere) - len(shown) - len(elsewhere)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(width=BAR_WIDTH)
    for _ in range(5):
        table.add_column(no_wrap=True)
    for run in shown:
        words = run_words(run)
        bar = ProgressBar(total=max(run.num_epochs, 1), completed=run.epochs_done, width=BAR_WIDTH)
        table.add_row(Text(run.label, style="bold"), bar, *words.values())
    rows: list[RenderableType] = [table] if shown else []
    rows += [Text(text, style="dim", no_wrap=True, overflow="ellipsis") for text in elsewhere]
    if folded:
        rows.append(Text(f"… and {folded} more", style="dim"))
    rows.append(Text(grid_words(progress), no_wrap=True, overflow="ellipsis"))
    return Group(*rows)


def run_words(run: RunProgress) -> dict[str, str]:
    """What there is to say of a run, by column; empty where it is not known yet."""
    if run.doing != "training":
        return {"epoch": run.doing, "loss": "", "accuracy": "", "speed": "", "left": ""}
    return {
        "epoch": f"epoch {run.epoch}/{run.num_epochs}",
        "loss": _pair("loss", run.train_loss, run.validation_loss),
        "accuracy": _pair("acc", run.train_accuracy, run.validation_accuracy),
        "speed": "" if run.images_per_second is None else f"{run.images_per_second:.0f} images/s",
        "left": "" if run.seconds_left is None else f"{show_seconds(run.seconds_left)} left",
    }


def _pair(name: str, train: float | None, validation: float | None) -> str:
    """A number in training, then on the validation part."""
    if train is None:
        return ""
    return f"{name} {train:.3f}" + ("" if validation is None else f"/{validation:.3f}")


def grid_words(progress: GridProgress) -> str:
    """The grid's line."""
    counts = [
        (progress.num_done, "done"),
        (len(progress.running), "stopping" if progress.stopping else "running"),
        (len(progress.elsewhere), "running elsewhere"),
        (progress.num_waiting, "waiting"),
        (progress.num_failed, "failed"),
    ]
    text = ", ".join(f"{count} {word}" for count, word in counts if count or word == "done")
    if progress.loading:
        text += ", loading torch"
    if progress.seconds_left is not None:
        text += f", about {show_seconds(progress.seconds_left)} left"
    if progress.later_stages:
        text += f", then {', '.join(progress.later_stages)}"
    return f"{progress.grid}: {text}"


def show_seconds(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 3 h 20 min, 2 days 4 h."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} day{'s' if days > 1 else ''} {hours} h"


@dataclass(slots=True)
class Pace:
    """Time left of something, from how far it came since it was first seen."""

    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, float] | None = field(default=None, init=False)  # when, and how far it was then
    _last: tuple[float, float] | None = field(default=None, init=False)

    def note(self, done: float) -> None:
        """Take note that `done` of the whole is done, 0..1."""
        if self._first is None:
            self._first = (self.clock(), done)
        self._last = (self.clock(), done)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the whole is done at the pace so far; none while nothing has moved."""
        if self._first is None or self._last is None or self._last[1] <= self._first[1]:
            return None
        pace = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return max(0.0, (1 - self._last[1]) / pace - (self.clock() - self._last[0]))
