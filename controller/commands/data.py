"""`grid data`: image folders into the store, and what the store has of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast, get_args

import click

from controller.commands.surface import (
    READING_SECONDS,
    complete_data_set,
    json_option,
    note,
    print_each,
    print_facts,
    print_json,
    store_option,
    the_store,
)
from controller.wording import bytes_text, count_text, plain

if TYPE_CHECKING:
    from trainer.dataset import DatasetIndex, PartName, SplitRule

REDRAW_SECONDS = 0.2  # on a terminal
PLAIN_SECONDS = 5.0  # between two lines elsewhere
BAR_WIDTH = 24
TEST_SHARE = 0.2  # of each class, with the rule `fraction`
DOING = {"download": "downloading", "unpack": "unpacking", "import": "importing", "read": "reading"}
BYTES_ALONE = ("download", "read")  # steps whose progress is in bytes, and in nothing else
SHOWN = 20  # skipped files that are listed before it says how many more there are


@click.group()
def data() -> None:
    """Import data sets, and look at them.

    A data set is a folder of class folders: birds/robin/1.jpg, birds/wren/1.jpg.

    \b
    Example:
      grid data import birds ~/birds
    """


def split_rules() -> list[str]:
    """The rules of --split."""
    from trainer.dataset import SplitRule

    return sorted(get_args(SplitRule))


def complete_rule(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The rules of --split."""
    return [rule for rule in split_rules() if rule.startswith(incomplete)]


def parse_split(_ctx: click.Context, _option: click.Parameter, text: str) -> tuple[SplitRule, float]:
    """Rule and share of the test part: `fraction=0.3`."""
    rule, separator, share = text.partition("=")
    try:
        number = float(share) if separator else TEST_SHARE
    except ValueError:
        number = 0.0
    if rule not in split_rules() or (separator and rule != "fraction") or not 0 < number < 1:
        wanted = "every-third, folders, lists, fraction or fraction=F with F between 0 and 1"
        raise click.BadParameter(f"got {text!r}, expected {wanted}")
    return cast("SplitRule", rule), number


def parse_lists(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[PartName, Path]:
    """The file of each part: `train=FILE`."""
    found: dict[PartName, Path] = {}
    for each in given:
        part, separator, file = each.partition("=")
        if part not in ("train", "validation", "test") or not separator or not file:
            raise click.BadParameter(f"got {each!r}, expected train=FILE, validation=FILE or test=FILE")
        found[cast("PartName", part)] = Path(file)
    return found


@data.command("import")
@click.argument("name", metavar="NAME")
@click.argument("src", metavar="SRC", type=click.Path(path_type=str))
@store_option
@click.option(
    "--split",
    callback=parse_split,
    shell_complete=complete_rule,
    default="fraction",
    metavar="RULE",
    help="How images become the parts: fraction (a fifth of each class is test; fraction=0.3 for another share), "
    "folders (SRC has train/ and test/, perhaps val/), lists (see --list), or every-third (every third path is test). "
    "Half of what is left for training becomes the validation part, unless SRC has one. Default: fraction.",
)
@click.option(
    "--list",
    "lists",
    callback=parse_lists,
    metavar="PART=FILE",
    multiple=True,
    help="With --split lists: the file that has the paths of part train, validation or test, one a line.",
)
@click.option(
    "--validation",
    "validation_fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    metavar="F",
    help="Share of the training images that becomes the validation part. Default: 0.5.",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed of the draws. Default: 0.")
@click.option("--exclude", multiple=True, metavar="CLASS", help="Leave out this class folder. May be repeated.")
@click.option("--root", metavar="FOLDER", help="Folder inside SRC that holds the class folders; found if left out.")
@click.option(
    "--on-bad",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    help="What a file that is no readable image does: end the import (refuse, the default) or be left out (skip); "
    "the data set then says which and why.",
)
@click.option("--sha256", metavar="HEX", help="SHA-256 that the archive or download must have.")
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help="Most that SRC may download or unpack to.")
@click.option("--replace", is_flag=True, help="Take the place of another data set of this name.")
@json_option
def import_(
    name: str,
    src: str,
    split: tuple[SplitRule, float],
    lists: dict[PartName, Path],
    validation_fraction: float,
    seed: int,
    exclude: tuple[str, ...],
    root: str | None,
    on_bad: Literal["refuse", "skip"],
    sha256: str | None,
    max_bytes: int | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Import SRC into the store as data set NAME.

    SRC is a folder of class folders, a .tar, .tar.gz or .zip archive of one, or a URL of such an archive. The same
    images and rules give the same data set, to the byte; importing it again changes nothing.

    \b
    Examples:
      grid data import birds ~/birds
      grid data import caltech101 ~/101_ObjectCategories --split every-third --exclude BACKGROUND_Google
      grid data import birds https://example.org/birds.tar.gz --sha256 9f86d08…
    """
    from controller.archive import grids_naming
    from trainer.importing import MAX_BYTES, import_dataset

    rule, share = split
    progress = ImportProgress(sys.stderr)
    store = the_store()
    try:
        imported = import_dataset(
            src,
            name,
            store,
            split=rule,
            fraction=share,
            validation_fraction=validation_fraction,
            lists=lists,
            seed=seed,
            exclude=exclude,
            root=root,
            on_bad=on_bad,
            replace=replace,
            sha256=sha256,
            max_bytes=max_bytes or MAX_BYTES,
            progress=progress,
        )
    finally:
        progress.close()
    index = imported.index
    if imported.replaced is not None and (grids := grids_naming(store, "data", name)):
        named = "1 grid names" if len(grids) == 1 else f"{len(grids):,} grids name"
        note(
            f"{named} the data set that this replaced: {', '.join(grids)}; their runs are new ones now: "
            "`grid run GRID --update` trains them"
        )
    if as_json:
        print_json({"outcome": imported.outcome, "num_mended": imported.num_mended, **_summary(index)})
        return
    words = {
        "new": "imported",
        "unchanged": "in the store already, nothing to do",
        "mended": f"{count_text(imported.num_mended, 'shard')} mended",
        "replaced": "replaced",
    }
    click.echo(f"data set {index.name}: {words[imported.outcome]}: {_in_short(index)}")
    if imported.outcome == "mended":
        click.echo("hint: `grid retry GRID` lets runs go on that failed for it", err=True)
    for path, reason in index.skipped[:SHOWN]:
        click.echo(f"left out: {plain(path)}: {plain(reason)}", err=True)
    if len(index.skipped) > SHOWN:
        click.echo(f"and {len(index.skipped) - SHOWN:,} more: grid data show {index.name} --json", err=True)
    for text in index.notes:
        note(text)


class ImportProgress:
    """How far an import is: one line that is redrawn on a terminal, now and then a line elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._step = ""
        self._told = self._began = 0.0
        self._width = 0

    def __call__(self, step: str, done: int, total: int | None, num_bytes: int) -> None:
        """Tell it, unless it was told just now."""
        now = time.monotonic()
        if step != self._step:
            self.close()
            self._step, self._began = step, now
            # what is most often over at once is not told at once
            self._told = 0.0 if self._is_terminal and step != "list" else now
        is_last = done == total
        if now - self._told < (REDRAW_SECONDS if self._is_terminal else PLAIN_SECONDS) and not is_last:
            return
        self._told = now
        text = self._text(step, done, total, num_bytes, now - self._began)
        if self._is_terminal:
            self._out.write(f"\r{text:<{self._width}}")
            self._width = len(text)
        else:
            self._out.write(f"{text}\n")
        self._out.flush()

    def _text(self, step: str, done: int, total: int | None, num_bytes: int, seconds: float) -> str:
        if step == "list":
            return f"looking for images: {count_text(done, 'file')} so far"
        rate = f", {bytes_text(round(num_bytes / seconds))}/s" if seconds > 0.5 else ""
        if step in BYTES_ALONE:
            size = bytes_text(done) + (f" of {bytes_text(total)}" if total else "")
        else:
            thing = "images" if step == "import" else "files"
            size = f"{done:,}{f' of {total:,}' if total else ''} {thing}, {bytes_text(num_bytes)}"
        bar = ""
        if total and self._is_terminal:
            full = BAR_WIDTH * min(done, total) // total
            bar = f" [{'#' * full}{'.' * (BAR_WIDTH - full)}]"
        return f"{DOING.get(step, step)}{bar} {size}{rate}"

    def close(self) -> None:
        """End the line that is being redrawn."""
        if self._is_terminal and self._width:
            self._out.write("\n")
            self._out.flush()
        self._width = 0


@data.command("show")
@click.argument("name", metavar="NAME", shell_complete=complete_data_set)
@store_option
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what data set NAME holds: classes, parts, files that were left out.

    \b
    Example:
      grid data show digits
    """
    from trainer.dataset import PARTS, load_index

    index = load_index(the_store(), name)
    if as_json:
        print_json(_summary(index))
        return
    size = sum(shard.size for shard in index.shards)
    print_facts(
        {
            "data set": index.name,
            "fingerprint": index.fingerprint,
            "images": f"{index.num_images():,}",
            "size": f"{bytes_text(size)} in {count_text(len(index.shards), 'shard')}",
            "classes": f"{index.num_classes}",
            "split": _split_text(index),
            **({"excluded": ", ".join(index.excluded)} if index.excluded else {}),
        }
    )
    click.echo()
    width = max(5, *(len(plain(name)) for name in index.classes))
    click.echo(f"{'class':<{width}}" + "".join(f"  {part:>10}" for part in PARTS))
    for label, class_name in enumerate(index.classes):
        counts = "".join(f"  {index.class_counts(part)[label]:>10,}" for part in PARTS)
        click.echo(f"{plain(class_name):<{width}}{counts}")
    click.echo(f"{'all':<{width}}" + "".join(f"  {index.num_images(part):>10,}" for part in PARTS))
    for text in index.notes:
        click.echo(f"\nnote: {plain(text)}")
    if index.skipped:
        click.echo(f"\nleft out ({len(index.skipped):,}):")
        for path, reason in index.skipped[:SHOWN]:
            click.echo(f"  {plain(path)}: {plain(reason)}")
        if len(index.skipped) > SHOWN:
            click.echo(f"  and {len(index.skipped) - SHOWN:,} more: --json has them all")


def _split_text(index: DatasetIndex) -> str:
    split = index.split
    share = f", {split.test_fraction:g} of each class is test" if split.test_fraction is not None else ""
    validation = split.validation_fraction
    rest = "" if validation is None else f", {validation:g} of the training images is validation, seed {split.seed}"
    return f"{split.rule}{share}{rest}"


def _in_short(index: DatasetIndex) -> str:
    parts = ", ".join(f"{index.num_images(part):,} {part}" for part in index.parts)
    left_out = f"; {len(index.skipped):,} left out" if index.skipped else ""
    return f"{count_text(index.num_images(), 'image')} of {count_text(index.num_classes, 'class')} ({parts}){left_out}"


def _summary(index: DatasetIndex) -> dict[str, Any]:
    return index.model_dump(mode="json", exclude={"images"})


@data.command("list")
@store_option
@json_option
def list_data(as_json: bool) -> None:
    """Show the data sets in the store.

    \b
    Example:
      grid data list
    """
    from controller.doctor import data_set_names
    from trainer.dataset import load_index

    store = the_store(patience_seconds=READING_SECONDS)
    print_each(
        data_set_names(store),
        lambda name: load_index(store, name),
        lambda index: f"{index.name}: {_in_short(index)}",
        _summary,
        nothing=f"no data sets in {store.uri} yet: grid data import NAME SRC",
        as_json=as_json,
    )


@data.command("digits")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path, file_okay=False))
def digits(folder: Path) -> None:
    """Write scikit-learn's handwritten digits to FOLDER, as class folders to import.

    \b
    Example:
      grid data digits digits && grid data import digits digits
    """
    from controller.digits import write_digits

    click.echo(f"{write_digits(folder):,} images in {folder}")
