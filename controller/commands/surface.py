"""What commands share: options, names that complete, the grid and store that a command line means, output for programs.

Everything that takes time to import is imported where it is used: `grid --help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from controller.wording import count_text, listed, plain, seconds_text, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controller.grid import Grid
    from controller.search import Expansion, Facts
    from controller.standing import Choice
    from trainer.failure import DataError
    from trainer.store import Request, Retry, Store

DEFAULT_STORE = "file://./store"
STORE_IN_META = "controller.store"
WORKING_SECONDS = 60.0  # how long a command that changes something waits for a store that does not answer
READING_SECONDS = 15.0  # and one that only shows something
TOLD_SECONDS = 5.0  # between two lines of a wait
WIDTH = 120  # characters of a line where the output is no terminal

F = TypeVar("F", bound=Callable[..., Any])
Read = TypeVar("Read")


# Options


def _remember_store(ctx: click.Context, _option: click.Parameter, uri: str | None) -> None:
    if uri is not None:
        ctx.meta[STORE_IN_META] = uri


def store_option(function: F) -> F:
    """Add --store, which may stand before the command's name or after it; the later one counts."""
    return click.option(
        "--store",
        metavar="URI",
        expose_value=False,
        callback=_remember_store,
        help="Where data and results live: file://./folder, file:///folder or s3://bucket/prefix. "
        "Default: GRID_STORE, else file://./store.",
    )(function)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
set_option = click.option(
    "--set",
    "sets",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a value of the grid's base, such as epochs=5 or optimizer.lr=1e-2. May be repeated.",
)
seeds_option = click.option("--seeds", metavar="N", type=click.IntRange(1), help="Train every row with N seeds.")
as_option = click.option(
    "--as", "new_name", metavar="NAME", help="Keep the grid under another name, beside the one it came from."
)


def _some_pattern(_ctx: click.Context, _option: click.Parameter, pattern: str | None) -> str | None:
    if pattern == "":
        raise click.BadParameter("got nothing, expected a pattern; '*' takes all")
    return pattern


only_option = click.option(
    "--only",
    metavar="PATTERN",
    callback=_some_pattern,
    help="Only experiments whose name matches, such as '*lr=0.01*', or runs by their ids; * is any text.",
)


def grid_options(function: F) -> F:
    """Add GRID, --store, and what changes the grid before it is used: --set, --seeds, --as."""
    for each in (as_option, seeds_option, set_option, store_option, grid_argument):
        function = each(function)
    return function


def choice_options(function: F) -> F:
    """Add --stage and --only: which part of a grid the command is about."""
    return stage_option(only_option(function))


def store_uri() -> str:
    """The URI of the store that the command line means."""
    given: str | None = click.get_current_context().meta.get(STORE_IN_META)
    # an empty --store is a script's variable that was never set: nobody means the default by it
    return given if given is not None else os.environ.get("GRID_STORE") or DEFAULT_STORE


def the_store(
    *, patience_seconds: float = WORKING_SECONDS, on_request: Callable[[Request], None] | None = None
) -> Store:
    """The store that the command line means; a wait for a server that does not answer is told on stderr."""
    from trainer.store import S3Store, open_store

    waits = Waits(store_uri(), patience_seconds)
    store = open_store(store_uri(), patience_seconds=patience_seconds, on_retry=waits, on_request=on_request)
    if isinstance(store, S3Store):
        waits.server = store.endpoint
    return store


class Waits:
    """Tells of a store that does not answer: at the second try, then every TOLD_SECONDS, whichever thread waits."""

    def __init__(self, server: str, patience_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.server = server
        self.patience_seconds = patience_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._series = threading.local()  # since when the operation of this thread is tried
        self._told_at = float("-inf")

    def __call__(self, retry: Retry) -> None:
        """Called before each wait."""
        now = self._clock()
        if retry.tries == 1:  # one is nothing to speak of
            self._series.began = now
            return
        with self._lock:
            if now - self._told_at < TOLD_SECONDS:
                return
            self._told_at = now
        left = max(0.0, self.patience_seconds - (now - getattr(self._series, "began", now)))
        click.echo(
            f"waiting for {plain(self.server)}, which gives no answer ({plain(retry.kind)}, {retry.operation} "
            f"{plain(retry.key)}): trying for another {seconds_text(left)}",
            err=True,
        )


# Names that complete


def complete_grid(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped grids and, once their name is there, their forms; those in the store, then files."""
    from controller.grid import shipped_forms, shipped_grids

    shipped = shipped_grids()
    names = [CompletionItem(name, help=text) for name, text in shipped if name.startswith(incomplete)]
    forms = [f"{name}.{form}" for name, _ in shipped if incomplete.startswith(name) for form in shipped_forms(name)]
    names += [CompletionItem(name) for name in forms if name.startswith(incomplete)]
    known = {item.value for item in names}
    stored = [name for name in _quietly(_stored_names, ctx) if name.startswith(incomplete) and name not in known]
    return [*names, *map(CompletionItem, stored), CompletionItem(incomplete, type="file")]


def complete_stage(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Stages of the grid that the command line names so far."""
    given = ctx.params.get("grid") or next(iter(ctx.args), None)  # after `--stage` arguments are not told apart yet
    if not isinstance(given, str):
        return []

    def stages(inner: click.Context) -> list[str]:
        with inner.scope(cleanup=False):
            return [stage.name for stage in named_grid(given).stages]

    return [CompletionItem(name) for name in _quietly(stages, ctx) if name.startswith(incomplete)]


def complete_data_set(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Data sets in the store."""
    return [CompletionItem(name) for name in _quietly(_data_sets, ctx) if name.startswith(incomplete)]


def _stored_names(ctx: click.Context) -> list[str]:
    from controller.archive import stored_grids

    with ctx.scope(cleanup=False):
        return stored_grids(the_store(patience_seconds=1))


def _data_sets(ctx: click.Context) -> list[str]:
    from controller.doctor import data_set_names

    with ctx.scope(cleanup=False):
        return data_set_names(the_store(patience_seconds=1))


def _quietly(names: Callable[[click.Context], list[str]], ctx: click.Context) -> list[str]:
    """Names, or none where they cannot be had: a completion has nowhere to show an error."""
    from trainer.failure import GridError

    try:
        return names(ctx)
    except GridError:
        return []


grid_argument = click.argument("grid", metavar="GRID", shell_complete=complete_grid)
grid_or_run_argument = click.argument("grid", metavar="GRID|RUN", shell_complete=complete_grid)
stage_option = click.option(
    "--stage",
    "stages",
    metavar="STAGE",
    multiple=True,
    shell_complete=complete_stage,
    help="Only this stage. May be repeated.",
)


# Grids


def named_grid(given: str, sets: tuple[str, ...] = (), seeds: int | None = None, new_name: str | None = None) -> Grid:
    """The grid that a command line means: a shipped one, a file, or one of the store, changed as it asks.

    `<grid>.<form>` means a grid of the first two kinds in one of its forms.
    """
    from controller.archive import stored_grid
    from controller.grid import is_shipped, parse_grid, read_grid
    from controller.stages import SAFE_NAME

    found: Grid | None = None
    if is_shipped(given) or not re.match(SAFE_NAME, given) or Path(given).is_file() or Path(given).suffix in YAML:
        found = read_grid(given, sets, seeds)
    else:
        store = the_store(patience_seconds=READING_SECONDS)
        found = stored_grid(store, given)
        if found is None:
            raise _no_such_grid(given, store)
        if sets or seeds is not None:
            found = parse_grid(found.text(), f"{store.uri}: grid {given}", sets, seeds)
    return found if new_name is None else _renamed(found, new_name)


YAML = (".yaml", ".yml")


def _no_such_grid(given: str, store: Store) -> Exception:
    from controller.archive import stored_grids
    from controller.grid import shipped_forms, shipped_grids
    from trainer.document import nearest, show_value
    from trainer.failure import SpecError

    shipped = [name for name, _ in shipped_grids()]
    stored = [name for name in stored_grids(store) if name not in shipped]
    forms = [f"{name}.{form}" for name in shipped if given.startswith(f"{name}.") for form in shipped_forms(name)]
    near = nearest(given, [*shipped, *forms, *stored])
    return SpecError(
        f"grid: got {show_value(given)}, expected one of {listed(shipped, 10)}, one of {store.uri} "
        f"({listed(stored, 10) or 'which has none yet'}), or a file",
        hint=f"did you mean {near!r}?" if near else "`grid list` shows them; a path to a file is a grid too",
    )


def _renamed(grid: Grid, name: str) -> Grid:
    from controller.grid import parse_grid
    from controller.stages import SAFE_NAME
    from trainer.document import write_yaml
    from trainer.failure import SpecError

    if not re.match(SAFE_NAME, name):
        raise SpecError(
            f"--as: got {name!r}, expected up to 63 letters, digits, '-', '_' or '.', a letter or digit first and last"
        )
    return parse_grid(write_yaml({**grid.document.value, "grid": name}), f"--as {name}")


def choice_of(grid: Grid, only: str | None, stages: tuple[str, ...], expansion: Expansion | None = None) -> Choice:
    """The part of the grid that --only and --stage choose.

    Raises SpecError on a stage that it has not, and, where its `expansion` is known, on a pattern that fits no row.
    """
    from controller.standing import Choice, refuse_no_fit

    choice = Choice(only, tuple(grid.stage(name).name for name in stages))
    if expansion is not None:
        refuse_no_fit(choice, grid, expansion)
    return choice


def stored_or_named_grid(given: str, store: Store) -> Grid:
    """The grid as the store has it, with what `grid run` set; the named one where the store has none of its name."""
    from controller.archive import stored_grid

    named = named_grid(given)
    stored = stored_grid(store, named.name)
    if stored is None:
        return named
    if stored.digest != named.digest:
        note(f"{named.name} in {store.uri} differs from {given}: this is the store's")
    return stored


def fitting_expansion(grid: Grid, store: Store, facts: Facts) -> Expansion:
    """The grid with the store's decisions for its name, without those over other rows than the grid has."""
    from controller.knowledge import read_decisions
    from controller.search import fitting

    expansion, misfits = fitting(grid, read_decisions(store, grid.name), facts)
    tell_misfits(misfits, store)
    return expansion


def tell_misfits(stages: Iterable[str], store: Store) -> None:
    """Say which decisions are left out; `grid run --update` sets them aside for good."""
    left_out = list(stages)
    if left_out:
        note(
            f"left out: {count_text(len(left_out), 'decision')} in {store.uri} over other rows than the grid has now, "
            f"or by another rule: {listed(left_out, 3)}; `grid run` with --update decides anew, with --as NAME under "
            "another name"
        )


def grid_facts(grid: Grid, store: Store, lacking: dict[str, DataError] | None = None) -> Facts:
    """What the store and this machine know of all that the grid names; `lacking` takes what is wrong with weights."""
    from controller.archive import gather_facts
    from controller.search import wanted

    return gather_facts(store, wanted(grid), lacking=lacking)


# Output: data on stdout, everything else on stderr


def width_of_output(*, err: bool = False) -> int:
    """Characters of a line of stdout or stderr: what COLUMNS says, else the terminal's; WIDTH where it is none."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    try:
        return os.get_terminal_size(2 if err else 1).columns or WIDTH
    except OSError:
        return WIDTH


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def tell(text: str, *, indent: int = 0, hang: int = 2, err: bool = False) -> None:
    """Print `text`, broken where it is wider than the output; lines after the first stand `hang` deeper."""
    width = width_of_output(err=err)
    first, *rest = text.splitlines() or [""]
    lines = wrapped(first, width, indent=indent, hang=hang)
    for line in rest:
        lines += wrapped(line.strip(), width, indent=indent + hang, hang=0)
    click.echo("\n".join(lines), err=err)


def note(text: str) -> None:
    """Say something beside the output."""
    tell(f"note: {text}", err=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print `value` as JSON, for programs; on one line without `indent`."""
    click.echo(json.dumps(value, indent=indent, ensure_ascii=False, default=str))


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, the values aligned."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {plain(str(value))}".rstrip())


def print_each(
    names: Sequence[str],
    read: Callable[[str], Read],
    shown: Callable[[Read], str],
    record: Callable[[Read], dict[str, Any]],
    *,
    nothing: str,
    as_json: bool,
) -> None:
    """Print what is known of each name, on a line or as JSON; a note says what is wrong with one that is damaged."""
    from trainer.failure import DataError

    records = []
    for name in names:
        try:
            found = read(name)
        except DataError as error:
            note(f"{error.message}; {error.hint}")
            continue
        if as_json:
            records.append(record(found))
        else:
            tell(shown(found))
    if as_json:
        print_json(records)
    elif not names:
        tell(nothing, err=True)


def form_of(output: Path | None, endings: Mapping[str, str], forms: Sequence[str], default: str) -> str:
    """The form of what is written, as the ending of `output` says; `default` without one. Raises SpecError."""
    from trainer.failure import SpecError

    if output is None:
        return default
    form = endings.get(output.suffix.lower())
    if form is None:
        raise SpecError(
            f"-o: got {str(output)!r}, expected a name that ends in {listed(list(endings), 10)}",
            hint=f"or say how to write it: --format {'|'.join(forms)}",
        )
    return form


def write_output(output: Path, text: str) -> None:
    """Write what -o names. Raises SpecError where that cannot be."""
    from trainer.failure import SpecError

    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise SpecError(
            f"-o: got {str(output)!r}, which cannot be written: {error.strerror}",
            hint="name a file in a folder that is there and that you may write",
        ) from error
