"""What is happening, shown while it happens: a line for each run at work and one for the grid, on stderr.

On a terminal the lines stay in place and are redrawn; elsewhere plain lines follow one another, few enough to keep.
What draws on a terminal is loaded for one alone: most commands need of this module no more than its words.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TextIO

from rich.cells import cell_len

from controller.wording import plain, seconds_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PLAIN_SECONDS = 10.0  # between two plain lines of one run
OWN_LINES = 3  # of the terminal that the runs leave: the grid's line, the folded rest, the prompt
BAR_WIDTH = 12

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
    shown_on = stream or sys.stderr
    if shown_on is None or not shown_on.isatty():
        return PlainView(stream)
    from rich.console import Console

    console = Console(file=stream) if stream is not None else Console(stderr=True)
    return TerminalView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(stream)


def _said(word: Word, text: str) -> list[str]:
    """The lines that tell `text`, without what could drive a terminal; further lines stand below the first one's."""
    first, *rest = text.splitlines() or [""]
    return [f"{word:<6} {plain(first)}".rstrip(), *(f"       {plain(line.strip())}" for line in rest)]


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
        """Tell of one thing that happened; nobody, where stderr is closed."""
        if self._stream is not None:
            print("\n".join(_said(word, text)), file=self._stream, flush=True)

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
        from rich.live import Live

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
        from rich.text import Text

        first, *rest = _said(word, text)
        lines = Text("\n").join([Text(first), *map(Text, rest)])
        lines.stylize(_STYLES.get(word, "dim"), 0, len(word))
        self.console.print(lines, soft_wrap=True)

    def show(self, progress: GridProgress) -> None:
        """Draw the lines anew, as many as the terminal has room for now."""
        self._live.update(render(progress, self.console.height, self.console.width), refresh=True)


def render(progress: GridProgress, height: int, width: int) -> RenderableType:
    """The lines of a terminal of that height and width: runs at work, those folded away, the grid."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    room = max(1, height - OWN_LINES)
    shown = progress.running[:room]
    elsewhere = progress.elsewhere[: room - len(shown)]
    folded = len(progress.running) + len(progress.elsewhere) - len(shown) - len(elsewhere)
    words = [run_words(run) for run in shown]
    columns = _columns([plain(run.label) for run in shown], words, width)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for name in columns:
        table.add_column(no_wrap=True, width=BAR_WIDTH if name == BAR else None)
    for run, each in zip(shown, words, strict=True):
        bar = ProgressBar(total=max(run.num_epochs, 1), completed=run.epochs_done, width=BAR_WIDTH)
        cells = [bar if name == BAR else each[name] for name in columns]
        table.add_row(Text(plain(run.label), style="bold"), *cells)
    rows: list[RenderableType] = [table] if shown else []
    rows += [Text(plain(text), style="dim", no_wrap=True, overflow="ellipsis") for text in elsewhere]
    if folded:
        rows.append(Text(f"… and {folded} more", style="dim"))
    rows.append(Text(grid_words(progress), no_wrap=True, overflow="ellipsis"))
    return Group(*rows)


BAR = "bar"
LEAVING = (BAR, "speed", "loss", "left", "accuracy")  # columns in the order in which a narrow terminal goes without


def _columns(labels: Sequence[str], words: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """Columns beside the label for which there is room; a label is cut short sooner than two fifths of the line."""
    widths = {BAR: BAR_WIDTH}
    for each in words:
        widths |= {name: max(len(text), widths.get(name, 0)) for name, text in each.items()}
    label = min(max(map(cell_len, labels), default=0), width * 2 // 5)
    columns = [name for name in widths if widths[name]]
    for name in LEAVING:
        if label + sum(widths[each] + 1 for each in columns) <= width:
            break
        columns = [each for each in columns if each != name]
    return columns


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
    return f"{name} {_number(train)}" + ("" if validation is None else f"/{_number(validation)}")


def _number(value: float) -> str:
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
