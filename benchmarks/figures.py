"""What a benchmark says, as a value, as text for a terminal, and as the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from trainer.machine import available_processors, available_threads, visible_gpus

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEADER = ("benchmark", "against", "ours", "other side", "ratio", "least … most", "wanted", "aim", "met", "measured")


@dataclass(frozen=True)
class Target:
    """What a ratio should reach: at least that much where more is better, at most where less is."""

    bound: float
    aim: float
    more_is_better: bool

    def verdict(self, ratio: float) -> str:
        """Whether `ratio` meets the aim, the bound, or neither."""
        sign = 1 if self.more_is_better else -1
        if sign * ratio >= sign * self.aim:
            return "aim"
        return "yes" if sign * ratio >= sign * self.bound else "no"


@dataclass(frozen=True)
class Row:
    """One line of the table: a ratio measured so many times, or why it was not measured.

    With a `unit` it is an absolute figure in that unit, and there is no other side.
    """

    name: str
    what: str
    against: str
    ratios: tuple[float, ...] = ()  # with a unit the figures themselves
    ours: str = ""
    other: str = ""
    target: Target | None = None  # none for a row that is there for comparison
    note: str = ""
    skipped: str = ""
    unit: str = ""

    @property
    def ratio(self) -> float:
        """Median of the rounds."""
        return median(self.ratios)

    def cells(self) -> tuple[str, ...]:
        """The row under HEADER, but for the date."""
        if self.skipped:
            return (self.what, self.against, self.skipped, *[""] * 6)
        places, unit = (0, f" {self.unit}") if self.unit else (3, "")
        ratio = "" if self.unit else f"{self.ratio:.3f}"
        spread = f"{min(self.ratios):.{places}f} … {max(self.ratios):.{places}f}{unit}"
        if self.target is None:
            wanted = aim = met = ""
        else:
            sign = "≥" if self.target.more_is_better else "≤"
            wanted, aim = f"{sign} {self.target.bound:g}{unit}", f"{self.target.aim:g}{unit}"
            met = self.target.verdict(self.ratio)
        return (self.what, self.against, self.ours, self.other, ratio, spread, wanted, aim, met)


@dataclass(frozen=True)
class Figure:
    """A row with where and when it was measured."""

    machine: str
    date: str
    row: Row


def machine_text() -> str:
    """This machine in a line: processors, instruction set, memory, GPU, and the versions that compute."""
    gpus = f", {len(visible_gpus())} GPU ({_gpu_name()})" if visible_gpus() else ", no GPU"
    return (
        f"{available_processors()} x {_processor()} ({_amx()} AMX), {available_threads()} threads, "
        f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB{gpus}, Python {platform.python_version()}, "
        f"torch {version('torch')}, torchvision {version('torchvision')}, Pillow {version('pillow')}"
    )


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "not usable"


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _amx() -> str:
    return "with" if "amx_bf16" in _cpuinfo("flags").split() else "without"


def today() -> str:
    """The date by this machine's clock."""
    return time.strftime("%Y-%m-%d")


# Measuring


def in_turn(
    sides: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None], warm_ups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each side, which returns its own, in `rounds` rounds A B A B …; the warm-up rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warm_ups, rounds):
        for name, side in sides.items():
            taken = side()
            say(f"{'warm-up' if number < 0 else f'round {number + 1} of {rounds}'}: {name} {taken:.3f} s")
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def timed(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> Callable[[], float]:
    """`work` as a side of `in_turn`: what is timed is the call, `before` is done first."""

    def side() -> float:
        before()
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return side


def divided(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    """Round by round, one by the other."""
    return tuple(a / b for a, b in zip(one, other, strict=True))


# Texts


def table_text(rows: Iterable[Row]) -> str:
    """The rows for a terminal: one block each, which no width breaks."""
    blocks = []
    for row in rows:
        cells = row.cells()
        lines = [f"{cells[0]}", f"  against {cells[1]}"]
        if row.skipped:
            lines.append(f"  not measured: {row.skipped}")
        else:
            spread = f"({cells[5]} over {len(row.ratios)} rounds)"
            wanted = f", wanted {cells[6]}, aim {cells[7]}: {_met(cells[8])}" if row.target else ""
            if row.unit:
                lines.append(f"  {cells[2]} {spread}{wanted}")
            else:
                lines += [f"  {cells[2]}; other side {cells[3]}", f"  ratio {cells[4]} {spread}{wanted}"]
        if row.note:
            lines.append(f"  {row.note}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _met(verdict: str) -> str:
    return {"aim": "aim met", "yes": "met", "no": "NOT met"}[verdict]


def markdown(figures: Sequence[Figure]) -> str:
    """A table for each machine, the newest first, and the rows' notes below it."""
    by_machine: dict[str, list[Figure]] = {}
    for figure in sorted(figures, key=lambda figure: figure.date, reverse=True):
        by_machine.setdefault(figure.machine, []).append(figure)
    return "\n\n".join(_machine_markdown(machine, found) for machine, found in by_machine.items())


def _machine_markdown(machine: str, figures: Sequence[Figure]) -> str:
    figures = sorted(figures, key=lambda figure: figure.row.name)
    lines = [f"### {machine}", "", _line(HEADER), _line(["---"] * len(HEADER))]
    lines += [_line([*figure.row.cells(), figure.date]) for figure in figures]
    notes = [f"- {figure.row.what}: {figure.row.note}" for figure in figures if figure.row.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# Files


def merged(old: Sequence[Figure], new: Sequence[Figure]) -> list[Figure]:
    """Both, where a row measured anew on the same machine takes the old one's place; a skipped one never does."""
    kept = {(figure.machine, figure.row.name): figure for figure in old}
    for figure in new:
        key = (figure.machine, figure.row.name)
        if not figure.row.skipped or key not in kept:
            kept[key] = figure
    return list(kept.values())


def read_figures(path: Path) -> list[Figure]:
    """Figures of earlier measurements; none where there is no file."""
    if not path.exists():
        return []
    return [_figure(value) for value in json.loads(path.read_text(encoding="utf-8"))]


def _figure(value: dict[str, Any]) -> Figure:
    row = value["row"]
    target = Target(**row["target"]) if row["target"] else None
    return Figure(value["machine"], value["date"], Row(**{**row, "ratios": tuple(row["ratios"]), "target": target}))


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write the figures where `read_figures` finds them."""
    text = json.dumps([asdict(figure) for figure in figures], indent=2, ensure_ascii=False)
    _replace(path, text + "\n")


def write_document(path: Path, figures: Sequence[Figure]) -> None:
    """Put the tables between the markers of the document, and leave the rest of it. Raises ValueError without them."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}, between which the figures go")
    _replace(path, f"{before}{BEGIN}\n\n{markdown(figures)}\n\n{END}{after}")


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
