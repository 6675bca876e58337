"""`grid export`, `predict` and `diff`: what is done with single runs once they are trained."""

from __future__ import annotations

import csv
import json
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from click.shell_completion import CompletionItem

from controller.commands.surface import (
    READING_SECONDS,
    json_option,
    note,
    print_json,
    store_option,
    store_uri,
    tell,
    the_store,
)
from controller.wording import bytes_text, columns, count_text, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from controller.difference import Difference, Pair
    from trainer.answers import Answer

TOLD_SECONDS = 5.0  # between two lines that say how far it is
HASH_DIGITS = 64
SHOWN_DIGITS = 12  # of a hash
SHOWN_ERRORS = 10
ABSENT = {"numerics": "numerics", "result": "a result", "test": "a test", "epochs": "epochs"}


def complete_run(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Runs in the store that have a result."""
    from controller.run_records import BEGINNING, run_names
    from trainer.failure import GridError

    if incomplete and not BEGINNING.fullmatch(incomplete):
        return []
    try:
        with ctx.scope(cleanup=False):
            return [CompletionItem(name) for name in run_names(the_store(patience_seconds=1), incomplete)]
    except GridError:  # a completion has nowhere to show it
        return []


def _run_argument(name: str) -> Callable[[Any], Any]:
    return click.argument(name, metavar=name.upper(), shell_complete=complete_run)


# Export


@click.command()
@_run_argument("run")
@store_option
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where to write; made if it is not there. Default: a folder named as the run, here.",
)
@click.option("--replace", is_flag=True, help="Write over another run's export in FOLDER.")
@json_option
def export(run: str, output: Path | None, replace: bool, as_json: bool) -> None:
    """Write RUN's best weights, its classes and its transform to FOLDER, for plain torch and torchvision.

    RUN is a run's id or its beginning. The files are model.safetensors, classes.json, classes.txt (one a line) and
    transform.json: architecture, arguments and num_classes, then resize, crop, mean and std of the input.

    \b
    Examples:
      grid export alexnet-0123456789ab
      grid export alexnet-0123 -o winner
    """
    from controller.export import export as write
    from controller.run_records import find_run
    from trainer.trained import read_trained

    store = the_store()
    trained = read_trained(store, find_run(store, run))
    folder = output if output is not None else Path(trained.run)
    sizes = write(trained, store, folder, replace=replace)
    if as_json:
        print_json({"run": trained.run, "folder": str(folder), "files": sizes})
        return
    for name, size in sizes.items():
        click.echo(f"{plain(str(folder / name))}  {bytes_text(size)}")


# Predict


@click.command(epilog="Exits 65 where a file could not be read: its row says why, and all others are there.")
@_run_argument("run")
@click.argument("folder", type=click.Path(path_type=Path))
@store_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE. Default: stdout.",
)
@click.option(
    "--top", type=click.IntRange(1), default=1, metavar="N", help="The N likeliest classes of each image. Default: 1."
)
@json_option
def predict(run: str, folder: Path, output: Path | None, top: int, as_json: bool) -> None:
    """Classify the images in FOLDER, and in folders within, by RUN's best weights: one row of CSV each.

    RUN is a run's id or its beginning. Images are decoded, resized and cropped as in training, on a GPU where there
    is one. Columns are file, class, probability, class_2, probability_2 and so on with --top, error; --json writes a
    list of the same in their place, once all are done. Hidden files are left out.

    \b
    Examples:
      grid predict alexnet-0123456789ab ~/holidays -o holidays.csv
      grid predict alexnet-0123 ~/holidays --top 3
    """
    from controller.predictions import as_record, csv_head, csv_row, predictions
    from controller.run_records import find_run
    from trainer.answers import Beginning
    from trainer.failure import DataError, SpecError
    from trainer.trained import read_trained

    if not folder.is_dir():
        raise SpecError(
            f"FOLDER: got {str(folder)!r}, which is no folder", hint="name a folder that holds images, here or deeper"
        )
    store = the_store(patience_seconds=READING_SECONDS)
    found = find_run(store, run)
    trained = read_trained(store, found)  # what is wrong is told now, not after the seconds that torch takes to load
    if top > trained.index.num_classes:
        top = trained.index.num_classes
        note(f"{found} knows {count_text(top, 'class')}: all of them are told")
    unread: list[Answer] = []
    num_done = num_files = 0
    told = 0.0
    records: list[dict[str, Any]] = []
    with ExitStack() as opened:
        out = sys.stdout if output is None else _opened(output, opened)
        writer = csv.writer(out, lineterminator="\n")
        # closed at once whatever ends the loop, and its process with it
        for said in opened.enter_context(closing(predictions(found, folder, store_uri(), top))):
            if isinstance(said, Beginning):
                num_files, told = said.num_files, time.monotonic()
                note(f"{found} on {said.device}: {count_text(num_files, 'file')} in {plain(str(folder))}")
                continue
            if as_json:
                records.append(as_record(said))
            else:
                if not num_done:  # what failed before any answer leaves no head
                    writer.writerow(csv_head(top))
                writer.writerow(csv_row(said, top))
            num_done += 1
            if said.error is not None:
                unread.append(said)
            if time.monotonic() - told >= TOLD_SECONDS:
                told = time.monotonic()
                note(f"{num_done:,} of {count_text(num_files, 'file')}")
        if as_json:
            out.write(f"{json.dumps(records, indent=2, ensure_ascii=False)}\n")
    for each in unread[:SHOWN_ERRORS]:
        note(f"{plain(each.file)} is skipped: {plain(each.error or '')}")
    if output is not None:
        note(f"written to {output}")
    if not num_done:
        raise DataError(f"folder: {folder} has no files", hint="name a folder that holds images")
    if unread:
        raise DataError(
            f"{count_text(len(unread), 'file')} of {num_done:,} could not be read",
            hint="their rows have no class, and say why in the column error",
        )


def _opened(output: Path, open_files: ExitStack) -> TextIO:
    from trainer.failure import SpecError

    try:
        return open_files.enter_context(output.open("w", encoding="utf-8", newline=""))
    except OSError as error:
        raise SpecError(
            f"-o: got {str(output)!r}, which cannot be written: {error.strerror}",
            hint="name a file in a folder that is there and that you may write",
        ) from error


# Diff


@click.command()
@_run_argument("a")
@_run_argument("b")
@store_option
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Show what differs between the runs A and B: spec, numerics, versions, results, tests, curves.

    A and B are ids of runs, or their beginnings; differences are B less A. A run without a result is compared as far
    as it has come. Exits 0 whether they differ or not.

    \b
    Examples:
      grid diff alexnet-0123456789ab alexnet-ba9876543210
      grid diff alexnet-01 alexnet-ba --json
    """
    from controller.difference import as_json as plain_values
    from controller.difference import difference
    from controller.run_records import find_run, read_run

    store = the_store(patience_seconds=READING_SECONDS)
    names = [find_run(store, each) for each in (a, b)]
    found = difference(*(read_run(store, name) for name in names))
    if as_json:
        print_json(plain_values(found))
        return
    _show(found)


def _show(found: Difference) -> None:
    one, other = found.runs
    if one == other:
        note(f"both are {one}")
    _show_pairs("spec", found.spec, found.runs, f"all {found.num_keys} values are the same")
    missing = _tell_missing(found)
    if "numerics" not in missing:
        _show_pairs("numerics", found.numerics, found.runs, "the same")
        _show_pairs("versions", found.versions, found.runs, "the same")
    if "result" not in missing:
        _show_numbers("results", found.results, found.runs)
    if "test" not in missing:
        _show_numbers("test", found.tests, found.runs)
    if "epochs" not in missing:
        _show_curves(found)


def _tell_missing(found: Difference) -> set[str]:
    """Say what cannot be compared, since one run or both have none of it; the names of that."""
    first, second = (found.missing.get(run, ()) for run in found.runs)
    for who, what in (
        ("both runs lack", [name for name in first if name in second]),
        (f"{found.runs[0]} lacks", [name for name in first if name not in second]),
        (f"{found.runs[1]} lacks", [name for name in second if name not in first]),
    ):
        if what:
            note(f"{who} {', '.join(ABSENT[name] for name in what)}: that is not compared")
    return {*first, *second}


def _show_pairs(title: str, pairs: Mapping[str, Pair], runs: tuple[str, str], otherwise: str) -> None:
    if not pairs:
        click.echo(f"{title}: {otherwise}")
        return
    _show_rows([(title, *runs), *((name, *map(_shown, pair)) for name, pair in pairs.items())])


def _show_numbers(title: str, pairs: Mapping[str, Pair], runs: tuple[str, str]) -> None:
    from controller.difference import gap, passes

    if not pairs:
        click.echo(f"{title}: the same")
        return
    rows = []
    for name, pair in sorted(
        pairs.items(), key=lambda each: passes(each[0])
    ):  # what passes with the machine comes last
        between = gap(pair)
        rows.append((name, *map(_number, pair), "" if between is None else _number(between, sign="+")))
    _show_rows([(title, *runs, "difference"), *rows], right=(1, 2, 3))


def _show_curves(found: Difference) -> None:
    epochs = " and ".join(count_text(number, "epoch", "epochs") for number in found.epochs)
    if found.parts_in is None:
        tell(f"curves: {epochs}, the same as far as both go")
        return
    tell(f"curves: {epochs}, which part in epoch {found.parts_in}")
    rows = [
        (name, str(each.first), "" if each.largest is None else _number(each.largest, sign="+"), str(each.epoch))
        for name, each in found.curves.items()
    ]
    _show_rows([("metric", "from epoch", "largest difference", "in epoch"), *rows], right=(1, 2, 3))


def _show_rows(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    for line in columns([tuple(map(plain, row)) for row in rows], right):
        click.echo(line)
    click.echo()


def _shown(value: object) -> str:
    from trainer.document import show_value

    if isinstance(value, str):
        is_hash = len(value) == HASH_DIGITS and set(value) <= set("0123456789abcdef")
        return f"{value[:SHOWN_DIGITS]}…" if is_hash else value
    if isinstance(value, float):
        return _number(value)
    return show_value(value)


def _number(value: float, *, sign: str = "") -> str:
    """A number to six digits, whole ones in full."""
    if isinstance(value, int) or (value == value // 1 and abs(value) < 1e15):
        return f"{int(value):{sign},}"
    return f"{value:{sign}.6g}"
