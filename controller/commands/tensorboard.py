"""`grid tensorboard`: the runs of a grid in TensorBoard."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from controller import interrupts
from controller.commands.surface import (
    choice_of,
    choice_options,
    grid_argument,
    grid_facts,
    note,
    store_option,
    stored_or_named_grid,
    tell,
    the_store,
)
from controller.wording import count_text

if TYPE_CHECKING:
    from types import FrameType

    from controller.tensorboard import Logdir

LOOK_SECONDS = 5.0  # between two looks at a folder; TensorBoard itself looks so often
FAR_LOOK_SECONDS = 20.0  # at a server, which each look costs requests
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@grid_argument
@store_option
@choice_options
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Listen there. Default: 6006, or another that is free. Only this machine can reach it.",
)
@click.option(
    "--export",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the event files to FOLDER instead, for a TensorBoard of your own; the same command brings them up to "
    "date.",
)
def tensorboard(grid: str, stages: tuple[str, ...], only: str | None, port: int | None, export: Path | None) -> None:
    """Open the runs of GRID in TensorBoard: curves, sample images, and the HParams tab as a table.

    They come from the store, under the names of stages and experiments, and are kept up to date as long as it runs.
    Ctrl-C ends it and leaves nothing behind. Runs trained before there were event files get theirs from their metrics.

    \b
    Examples:
      grid tensorboard demo
      grid tensorboard demo --stage learning_rate --port 6007
      grid tensorboard demo --export curves && tensorboard --logdir curves
    """
    from controller.tensorboard import Logdir

    store = the_store()
    found = stored_or_named_grid(grid, store)
    choice_of(found, only, stages)  # an unknown stage is told before the store is read
    facts = grid_facts(found, store)

    def logdir(folder: Path) -> Logdir:
        made = Logdir(found, store, facts, choice_of(found, only, stages), folder)
        made.refresh()
        for run, why in made.lacking.items():
            note(f"{run} is left out: {why}")
        return made

    if export is not None:
        made = logdir(export)
        tell(f"{count_text(made.num_runs, 'run')} written to {export}")
        return
    _hear_stops()
    with tempfile.TemporaryDirectory(prefix="grid-tensorboard-") as scratch:
        try:
            seconds = LOOK_SECONDS if store.uri.startswith("file:") else FAR_LOOK_SECONDS
            _serve(logdir(Path(scratch, "runs")), Path(scratch, "tmp"), port, seconds)
        except interrupts.Interrupted:
            pass  # how it is to end


def _hear_stops() -> None:
    """From now on the first stop signal raises Interrupted; none after it disturbs the clearing away."""

    def hear(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        raise interrupts.Interrupted

    for number in STOPS:
        signal.signal(number, hear)


def _serve(logdir: Logdir, scratch: Path, port: int | None, seconds: float) -> None:
    """Keep TensorBoard over the folder, and the folder up to date, until a signal ends both."""
    from controller.tensorboard import Board
    from trainer.failure import StoreError

    with Board(logdir.folder, scratch, port, f"grid {logdir.grid.name}") as board:
        tell(f"{board.url} shows {count_text(logdir.num_runs, 'run')} of {logdir.grid.name}; Ctrl-C ends it")
        told = set(logdir.lacking)
        while True:
            time.sleep(seconds)
            board.check()
            try:
                must_restart = logdir.refresh()
            except StoreError as error:  # what is shown stays
                note(f"not up to date: {error.message}")
                continue
            for run in set(logdir.lacking) - told:
                note(f"{run} is left out: {logdir.lacking[run]}")
            told |= set(logdir.lacking)
            if must_restart:
                board.restart()
