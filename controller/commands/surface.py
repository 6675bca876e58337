"""What commands share: options, names that complete, the grid and store that a command line means, output for programs.

Everything that takes time to import is imported where it is used: `grid --help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controller.grid import Grid
    from controller.search import Expansion, Facts
    from controller.standing import Choice
    from trainer.store import Store

DEFAULT_STORE = "file://./store"
STORE_IN_META = "controller.store"

F = TypeVar("F", bound=Callable[..., Any])


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


def only_option(function: F) -> F:
    """Add --only."""
    return click.option(
        "--only",
        metavar="PATTERN",
        help="Only experiments whose name matches, such as '*lr=0.01*', or runs by their ids; * is any text.",
    )(function)


def store_uri() -> str:
    """The URI of the store that the command line means."""
    uri: str = click.get_current_context().meta.get(STORE_IN_META) or os.environ.get("GRID_STORE") or DEFAULT_STORE
    return uri


def the_store(*, patience_seconds: float = 60) -> Store:
    """The store that the command line means; a wait for a server that does not answer is told on stderr."""
    from trainer.store import Retry, open_store

    def told(retry: Retry) -> None:
        if retry.tries == 3:  # one or two are nothing to speak of
            click.echo(f"waiting for the store: {plain(retry.operation)} {plain(retry.key)}: {retry.kind}", err=True)

    return open_store(store_uri(), patience_seconds=patience_seconds, on_retry=told)


# Names that complete


def complete_grid(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped grids, those in the store, then files."""
    from controller.grid import shipped_grids

    names = [CompletionItem(name, help=text) for name, text in shipped_grids() if name.startswith(incomplete)]
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
    """The grid that a command line means: a shipped one, a file, or one of the store, changed as it asks."""
    from controller.archive import grid_key
    from controller.grid import SAFE_NAME, parse_grid, read_grid, shipped_grids
    from trainer.store import NotFound

    is_shipped = given in [name for name, _ in shipped_grids()]
    if is_shipped or Path(given).is_file() or not re.match(SAFE_NAME, given):
        found = read_grid(given, sets, seeds)
    else:
        store = the_store()
        try:
            text = store.get(grid_key(given)).decode()
        except (NotFound, ValueError):
            found = read_grid(given, sets, seeds)  # tells what names there are
        else:
            found = parse_grid(text, f"{store.uri}/{grid_key(given)}", sets, seeds)
    return found if new_name is None else _renamed(found, new_name)


def _renamed(grid: Grid, name: str) -> Grid:
    from controller.grid import parse_grid
    from trainer.document import write_yaml

    return parse_grid(write_yaml({**grid.document.value, "grid": name}), f"--as {name}")


def choice_of(grid: Grid, only: str | None, stages: tuple[str, ...]) -> Choice:
    """The part of the grid that --only and --stage choose. Raises SpecError on a stage that it has not."""
    from controller.standing import Choice

    return Choice(only, tuple(grid.stage(name).name for name in stages))


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
    for stage in stages:
        note(
            f"the decision of stage {stage} in {store.uri} is over other rows than the grid has now and is left out; "
            "`grid run` with --update decides anew"
        )


def grid_facts(grid: Grid, store: Store) -> Facts:
    """What the store and this machine know of all that the grid names."""
    from controller.archive import gather_facts
    from controller.search import wanted

    return gather_facts(store, wanted(grid))


# Output: data on stdout, everything else on stderr


def plain(text: str) -> str:
    """`text` without the characters that could drive a terminal; names of files may hold any."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def note(text: str) -> None:
    """Say something beside the output."""
    click.echo(f"note: {plain(text)}", err=True)


def print_json(value: Any) -> None:
    """Print `value` as JSON, for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, the values aligned."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {plain(str(value))}".rstrip())


def bytes_text(size: int) -> str:
    """`size` bytes for reading: 12.3 MB."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def count_text(count: int, word: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
