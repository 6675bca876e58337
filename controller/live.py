"""What is happening, shown while it happens: on a terminal a view that stays in place, elsewhere plain lines.

On a terminal what happened scrolls away above the view, which is drawn anew once a second at most; elsewhere lines
follow one another, few enough to keep. What draws on a terminal (screen.py) is loaded for one alone: most commands need
of this module no more than its words.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TextIO

from controller.wording import plain, seconds_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from controller.screen import Screen

PLAIN_SECONDS = 10.0  # between two plain lines of one run
PLAIN_RUNS = 8  # of which a plain line is told in that time: those that were told of longest ago
PLAIN_GRID_SECONDS = 60.0  # between two plain lines of the grid
REDRAW_SECONDS = 1.0  # between two drawings on a terminal, but for another size of it
SAY_SECONDS = 0.5  # between two writings of what happened above a view that stands, which is drawn anew with each
EVENTS_KEPT = 100  # of what happened, to be written again where a terminal of another size is wiped

Word = Literal["start", "resume", "done", "failed", "again", "kept", "waits", "note"]
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
    validation_accuracies: tuple[float, ...] = ()  # of the epochs done, the first one first

    @property
    def epoch(self) -> int:
        """Number of the epoch in progress, from 1."""
        return min(int(self.epochs_done) + 1, self.num_epochs)


@dataclass(frozen=True, slots=True)
class RowProgress:
    """What a row has come to so far: means over those of its seeds that are done, on the test part in a test stage."""

    name: str
    num_done: int
    num_seeds: int
    accuracy: float | None = None  # 0..1
    spread: float | None = None  # of the accuracy: sample standard deviation; none of one seed
    loss: float | None = None  # nats per image
    is_best: bool = False  # by the stage's metric, among the rows whose seeds are all done
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class StageProgress:
    """How far a stage is, counted in distinct runs, or in tests of them."""

    name: str
    is_test: bool
    depth: int  # stages that it starts from, one from the other
    num_runs: int  # known, or to be expected where its rows wait for a decision
    num_done: int = 0
    num_running: int = 0
    num_failed: int = 0
    kept: tuple[str, ...] = ()
    waiting: str | None = None  # why its rows are not known yet, or why it keeps nothing where only a person can help
    rows: tuple[RowProgress, ...] = ()

    @property
    def num_waiting(self) -> int:
        """Runs that are neither done nor failed nor at work."""
        return max(0, self.num_runs - self.num_done - self.num_running - self.num_failed)


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
    seconds_left: float | None = None  # for all that is known, and what is to be expected of later stages
    loading: bool = False  # nothing can start yet
    stopping: bool = False
    stages: tuple[StageProgress, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()  # label and reason
    waits: tuple[tuple[str, int, str], ...] = ()  # a reason, how many wait for it, the label of the first
    machines: str | None = None  # what trains: `2 processors`, `3 nodes`
    deadline: datetime | None = None  # by which it ought to be done, with its time zone


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
    shown_on = stream or sys.stderr
    if shown_on is None or not shown_on.isatty():
        return PlainView(stream)
    from rich.console import Console

    console = Console(file=stream) if stream is not None else Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return PlainView(stream)
    from controller.screen import ASCII, UNICODE, Screen, shows_unicode

    return TerminalView(console, Screen(UNICODE if shows_unicode(console.encoding, os.environ) else ASCII))


def _said(word: Word, text: str) -> list[str]:
    """The lines that tell `text`, without what could drive a terminal; further lines stand below the first one's."""
    first, *rest = text.splitlines() or [""]
    return [f"{word:<6} {plain(first)}".rstrip(), *(f"       {plain(line.strip())}" for line in rest)]


class PlainView:
    """Lines for a log: what happened, and now and then how some of the runs and the grid are.

    In PLAIN_SECONDS at most one line for a run and PLAIN_RUNS in all, in PLAIN_GRID_SECONDS one for the grid.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._told: dict[str, tuple[float, str]] = {}  # by run: when, and what
        self._grid: tuple[float, str] | None = None  # likewise
        self._lines_at: deque[float] = deque(maxlen=PLAIN_RUNS)  # when the last lines of runs were told

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, word: Word, text: str) -> None:
        """Tell of one thing that happened; nobody, where stderr is closed."""
        if self._stream is not None:
            print("\n".join(_said(word, text)), file=self._stream, flush=True)

    def show(self, progress: GridProgress) -> None:
        """Tell how those are of which nothing has been told for their time, as far as lines are left for it."""
        now = self._clock()
        labels = {run.label for run in progress.running}
        self._told = {label: told for label, told in self._told.items() if label in labels}
        for run in progress.running:
            self._told.setdefault(run.label, (now, ""))
        for run in sorted(progress.running, key=lambda run: self._told[run.label][0]):
            since, before = self._told[run.label]
            if now - since < PLAIN_SECONDS or self._is_full(now):
                break
            text = " ".join(filter(None, (run.label, *run_words(run).values())))
            if run.train_loss is not None and text != before:
                self._told[run.label] = (now, text)
                self._lines_at.append(now)
                self.say("note", text)
        self._show_grid(progress, now)

    def _is_full(self, now: float) -> bool:
        return len(self._lines_at) == PLAIN_RUNS and now - self._lines_at[0] < PLAIN_SECONDS

    def _show_grid(self, progress: GridProgress, now: float) -> None:
        since, before = self._grid = self._grid or (now, "")
        text = grid_words(progress)
        if now - since >= PLAIN_GRID_SECONDS and text != before:
            self._grid = (now, text)
            self.say("note", text)


class TerminalView:
    """A view that stays in place at the foot of the terminal; what happened scrolls away above it.

    The size of the terminal is looked at with each `show`. Where it is another one, the screen is wiped before it is
    drawn anew: terminals differ in what they make of the lines that stand there.
    """

    def __init__(self, console: Console, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._screen = screen
        self._clock = clock
        self._size = console.size
        self._live = self._new_live()
        self._drawn: list[Text] = []
        self._drawn_at = self._said_at = float("-inf")
        self._progress: GridProgress | None = None
        self._untold: list[Text] = []  # said, and not written yet
        self._events: deque[Text] = deque(maxlen=EVENTS_KEPT)

    def _new_live(self) -> Live:
        from rich.live import Live

        return Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell()
        self._live.stop()

    def say(self, word: Word, text: str) -> None:
        """Tell of one thing that happened; of many at a time with what comes next, a `show` or the end."""
        from rich.text import Text

        first, *rest = _said(word, text)
        lines = Text("\n").join([Text(first), *map(Text, rest)])
        lines.stylize(_STYLES.get(word, "dim"), 0, len(word))
        self._untold.append(lines)
        if not self._drawn or self._clock() - self._said_at >= SAY_SECONDS:
            self._tell()

    def show(self, progress: GridProgress) -> None:
        """Draw the view anew, as large as the terminal is now, if it is time for that."""
        self._progress = progress
        if self.console.size != self._size:
            self._begin_anew()
            self._draw()
        elif self._clock() - self._drawn_at >= REDRAW_SECONDS:
            self._draw()
        self._tell()

    def _tell(self) -> None:
        """Write what was said above the view."""
        if not self._untold:
            return
        from rich.text import Text

        lines, self._untold = Text("\n").join(self._untold), []
        self._events.append(lines)
        self._said_at = self._clock()
        if self.console.size != self._size:
            self._begin_anew()
            self._draw()
        else:
            self.console.print(lines, soft_wrap=True)

    def _draw(self) -> None:
        from rich.console import Group

        self._drawn_at = self._clock()
        if self._progress is None:
            return
        lines = self._screen.draw(self._progress, *self._size, datetime.now().astimezone())
        if lines != self._drawn:
            self._drawn = lines
            self._live.update(Group(*lines), refresh=True)

    def _begin_anew(self) -> None:
        """Wipe the screen, and write what happened last again."""
        from rich.control import Control

        self._size = self.console.size
        self._live.stop()
        self.console.control(Control.home(), Control.clear())
        self._live = self._new_live()
        self._live.start()
        self._drawn = []
        recent: list[Text] = []
        room = self._size.height
        for lines in reversed(self._events):
            room -= sum(1 + len(line) // max(1, self._size.width) for line in lines.split())
            if room < 0:
                break
            recent.insert(0, lines)
        for lines in recent:
            self.console.print(lines, soft_wrap=True)


def run_words(run: RunProgress) -> dict[str, str]:
    """What there is to say of a run, by column; empty where it is not known yet."""
    if run.doing != "training":
        return {"epoch": run.doing, "loss": "", "accuracy": "", "speed": "", "left": ""}
    return {
        "epoch": f"epoch {run.epoch}/{run.num_epochs}",
        "loss": _pair("loss", run.train_loss, run.validation_loss),
        "accuracy": _pair("acc", run.train_accuracy, run.validation_accuracy),
        "speed": "" if run.images_per_second is None else f"{run.images_per_second:.0f} images/s",
        "left": "" if run.seconds_left is None else f"{seconds_text(run.seconds_left)} left",
    }


def _pair(name: str, train: float | None, validation: float | None) -> str:
    """A number in training, then on the validation part."""
    if train is None:
        return ""
    return f"{name} {number_text(train)}" + ("" if validation is None else f"/{number_text(validation)}")


def number_text(value: float) -> str:
    """A loss or an accuracy; one that has left all bounds by its power of ten."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"


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
        text += f", about {seconds_text(progress.seconds_left)} left"
    if progress.later_stages:
        text += f", then {', '.join(progress.later_stages)}"
    return f"{progress.grid}: {text}"


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
