"""Which part of a data set each image belongs to. Paths in, parts out: nothing here opens an image."""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from unicodedata import normalize

from trainer.dataset import PartName, order
from trainer.failure import DataError

FOLDERS: dict[str, PartName] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names, without case, of the folders that the rule `folders` goes by."""

SHOWN = 20  # paths an error lists before it says how many more there are


def every_third(paths: Iterable[str]) -> dict[str, PartName]:
    """Train or test for each path: sorted without case, the first path and every third after it are test.

    The rule of the report's course lists; it counts classes that are then left out, and files that are no images.
    """
    return {path: "train" if number % 3 else "test" for number, path in enumerate(sorted(paths, key=order))}


def by_folders(paths: Iterable[str]) -> dict[str, PartName]:
    """The part that each path's first folder names. Raises DataError when there is no training folder."""
    parts = {
        path: FOLDERS[first.casefold()] for path in paths if (first := path.partition("/")[0]).casefold() in FOLDERS
    }
    if "train" not in parts.values():
        raise DataError(
            "split folders: no images in a folder train/, expected class folders in train/, test/ and perhaps val/",
            hint="choose another --split, or name the folder that holds train/ with --root",
        )
    return parts


def by_lists(paths: Iterable[str], lists: Mapping[PartName, Path]) -> dict[str, PartName]:
    """The part whose list names each path; paths that no list names are missing.

    A list is a text file in UTF-8 with a path from the data set's root on each line. Raises DataError on a line that
    names no file, and on a path that is named twice.
    """
    known = set(paths)
    named: dict[str, tuple[PartName, str]] = {}
    wrong: list[str] = []
    for part, file in lists.items():
        for number, line in enumerate(_lines(file), start=1):
            path = normalize("NFC", line.strip().removeprefix("./"))
            place = f"{file}:{number}"
            if not path:
                continue
            if path not in known:
                near = _nearest(path, known) if len(wrong) < SHOWN else []
                wrong.append(f"{place}: no file {path!r}" + (f", the nearest is {near[0]!r}" if near else ""))
            elif path in named:
                wrong.append(f"{place}: {path!r} is named a second time, first by {named[path][1]}")
            else:
                named[path] = (part, place)
    missing = {"train", "test"} - set(lists)
    if missing:
        raise DataError(
            f"split lists: no list for {' and '.join(sorted(missing))}", hint="give --list train=FILE --list test=FILE"
        )
    if wrong:
        raise DataError(f"split lists: {told(wrong)}", hint="paths start at the folder that holds the class folders")
    return {path: part for path, (part, _) in named.items()}


def _nearest(path: str, known: set[str]) -> list[str]:
    """The path in the same folder that is most like `path`, if one is."""
    folder = path.rpartition("/")[0]
    return difflib.get_close_matches(path, (other for other in known if other.rpartition("/")[0] == folder), 1)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"split lists: cannot read {file}: {error}") from error


def stratified(paths_by_class: Sequence[Sequence[str]], fraction: float, seed: int, draw: str) -> set[str]:
    """The paths chosen: `fraction` of each class, and of all classes together, as evenly as whole images allow.

    How many of a class: the classes' counts are added up in order, and after each class the number chosen so far is
    the sum times `fraction`, rounded down. With one half, that leaves the odd image of the first odd class unchosen,
    chooses that of the second, and so on in turn. Which ones: those with the smallest SHA-256 of
    `<seed>/<draw>/<path>`; so an image's place does not hang on its neighbours' names, nor one draw on another.
    """
    share = Fraction(str(fraction))
    chosen: set[str] = set()
    seen = 0
    for paths in paths_by_class:
        seen += len(paths)
        count = int(seen * share) - len(chosen)
        ranked = sorted(paths, key=lambda path: hashlib.sha256(f"{seed}/{draw}/{path}".encode()).digest())
        chosen.update(ranked[:count])
    return chosen


def by_class(paths: Iterable[str], labels: Mapping[str, int]) -> list[list[str]]:
    """The paths of each class, in the order of the labels."""
    grouped: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        grouped[labels[path]].append(path)
    return [grouped[label] for label in sorted(grouped)]


def told(faults: Sequence[str]) -> str:
    """The faults one below the other, the first twenty of them, after their number when there are more than one."""
    if len(faults) == 1:
        return faults[0]
    shown = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
    rest = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{len(faults)} faults:{shown}{rest}"
