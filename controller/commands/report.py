"""`grid report`: all that came of a grid, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from controller.commands.surface import (
    form_of,
    grid_argument,
    note,
    store_option,
    stored_or_named_grid,
    tell,
    the_store,
    write_output,
)
from controller.wording import bytes_text, count_text, listed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controller.report.gather import Gathered
    from trainer.store import Store

FORMATS = ("html", "md", "latex")
ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".tex": "latex"}


@click.command()
@grid_argument
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="What to write. Default: as the ending of FILE says, else html.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=f"Write to FILE; its ending, {', '.join(ENDINGS)}, chooses the form.",
)
def report(grid: str, form: str | None, output: Path | None) -> None:
    """Write GRID's report: one HTML file with tables, curves, figures, mistakes, and how to reproduce each row.

    The page is put beside the grid in the store, with its figures as SVG and PNG in figures/; FILE is a further copy.
    It needs no network. A grid that is not finished has a report too, which says what is missing. md is for a README,
    latex for the tables of a paper; without FILE both are printed.

    \b
    Examples:
      grid report demo
      grid report demo -o demo.html
      grid report demo --format latex > tables.tex
    """
    form = form or form_of(output, ENDINGS, FORMATS, "html")
    store = the_store()
    gathered = gathered_report(grid, store)
    if form == "html":
        _leave_page(gathered, store, output)
        return
    from controller.report.text import to_latex, to_markdown

    text = to_latex(gathered) if form == "latex" else to_markdown(gathered)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_output(output, text)
        note(f"written to {output}")


def gathered_report(given: str, store: Store) -> Gathered:
    """All that the store has of the grid that a command line means."""
    from controller.commands.runs import standing_of, table_of
    from controller.report.gather import gather

    found = stored_or_named_grid(given, store)
    standing = standing_of(found, store)
    table = table_of(found, standing, store)
    return gather(found, standing.expansion, standing.known, standing.active, standing.waiting, table, store)


def _leave_page(gathered: Gathered, store: Store, output: Path | None) -> None:
    from controller.report.files import figure_files
    from controller.report.page import page
    from controller.report.story import missing

    text = page(gathered)
    if output is not None:
        write_output(output, text)
    name = gathered.grid.name
    key = f"grids/{name}/report.html"
    store.put(key, text.encode())
    num_figures = leave_figures(store, name, figure_files(gathered))
    place = store.local_path(key)
    tell(f"report: {output or place or f'{store.uri}/{key}'} ({bytes_text(len(text.encode()))})")
    tell(f"figures: {count_text(num_figures, 'file')} below grids/{name}/figures/ in the store", err=True)
    if lacking := missing(gathered):
        tell(f"not whole yet: {listed(lacking, 3)}", err=True)


def leave_figures(store: Store, grid: str, figures: Iterable[tuple[str, bytes]]) -> int:
    """Put the figures beside the grid in the store, in the place of all that were there; how many there are now."""
    folder = f"grids/{grid}/figures/"
    left = {entry.key for entry in store.list(folder)}
    count = 0
    for name, content in figures:
        store.put(f"{folder}{name}", content)
        left.discard(f"{folder}{name}")
        count += 1
    for key in left:
        store.delete(key)
    return count
