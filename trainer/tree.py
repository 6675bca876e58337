"""Which files of a source are images of which class: by the folders they lie in, nothing else."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.dataset import order
from trainer.failure import DataError
from trainer.source import Listing, SourceFile
from trainer.splits import FOLDERS, told

ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip")


@dataclass(frozen=True)
class Tree:
    """The files under a data set's root, by paths from there."""

    classes: tuple[str, ...]  # in the order of labels
    files: dict[str, SourceFile]  # of these classes, in canonical order
    labels: dict[str, int]  # of these files
    all_paths: tuple[str, ...]  # these files' and those of classes left out
    bad: tuple[tuple[str, str], ...]  # path and reason: what could not even be listed
    aside: tuple[tuple[str, str], ...]  # path and reason: what is no part of a tree of class folders


def read_tree(listing: Listing, *, root: str | None, exclude: Sequence[str], has_part_folders: bool) -> Tree:
    """The tree of class folders in `listing`.

    Its root is the folder `root`, or else the top, or the folder found by going down as long as there is a single
    folder that has folders in it. With `has_part_folders`, class folders lie one level lower, in train/, test/ and
    perhaps val/. Raises DataError when there are no class folders, when two differ only by case, and when one of
    `exclude` is not there.
    """
    top = _given_root(listing, root) if root is not None else _found_root(listing, has_part_folders)
    depth = 1 if has_part_folders else 0
    aside = list(listing.litter.items())
    doubled: list[tuple[str, str]] = []
    inside: dict[str, SourceFile] = {}
    for file in listing.files:
        path = file.path.removeprefix(top)
        if not file.path.startswith(top):
            aside.append((file.path, f"outside the root folder {top[:-1]}"))
        elif path.count("/") <= depth:
            aside.append((file.path, "in no class folder"))
        elif has_part_folders and path.split("/")[0].casefold() not in FOLDERS:
            aside.append((file.path, "in none of the folders train/, test/ and val/"))
        elif path in inside:
            doubled.append((path, f"another file has the same name in another Unicode form: {file.file.name!a}"))
        else:
            inside[path] = file
    folders = (folder.removeprefix(top) for folder in listing.folders if folder.startswith(top))
    names = {_class_of(path, depth) for path in inside}
    names |= {_class_of(folder, depth) for folder in folders if folder.count("/") == depth and _counts(folder, depth)}
    if has_part_folders and not names:
        raise DataError(
            f"split folders: no folders train/ and test/ in {listing.origin}, expected them with class folders in each",
            hint=f"{_inside(listing, top)}; choose another --split, or name the folder that holds train/ with --root",
        )
    _check_names(names, exclude, listing, top)
    classes = tuple(sorted(names - set(exclude), key=order))
    by_name = {name: label for label, name in enumerate(classes)}
    in_order = sorted(inside, key=lambda path: (order(_class_of(path, depth)), order(path)))
    kept = [path for path in in_order if _class_of(path, depth) in by_name]
    return Tree(
        classes=classes,
        files={path: inside[path] for path in kept},
        labels={path: by_name[_class_of(path, depth)] for path in kept},
        all_paths=tuple(inside),
        bad=tuple(
            (path, reason)
            for path, reason in [*listing.bad, *doubled]
            if not path.startswith(top) or _class_of(path.removeprefix(top), depth) not in exclude
        ),
        aside=tuple(sorted(aside)),
    )


def _counts(folder: str, depth: int) -> bool:
    return depth == 0 or folder.partition("/")[0].casefold() in FOLDERS


def _class_of(path: str, depth: int) -> str:
    parts = path.split("/")
    return parts[depth] if len(parts) > depth else ""


def _given_root(listing: Listing, root: str) -> str:
    folder = "/".join(part for part in root.split("/") if part not in ("", "."))
    if folder and folder not in listing.folders and not any(f.path.startswith(f"{folder}/") for f in listing.files):
        raise DataError(f"source {listing.origin}: no folder {folder!r} for a root", hint=_inside(listing, ""))
    return f"{folder}/" if folder else ""


def _found_root(listing: Listing, has_part_folders: bool) -> str:
    below: dict[str, set[str]] = defaultdict(set)
    for folder in listing.folders | {file.path.rpartition("/")[0] for file in listing.files}:
        parts = folder.split("/") if folder else []
        for depth, name in enumerate(parts):
            below["".join(f"{part}/" for part in parts[:depth])].add(name)
    top = ""
    while len(below[top]) == 1 and not (has_part_folders and below[top] & set(FOLDERS)):
        (only,) = below[top]
        if not below[f"{top}{only}/"]:
            break
        top = f"{top}{only}/"
    return top


def _check_names(names: set[str], exclude: Sequence[str], listing: Listing, top: str) -> None:
    if not names:
        raise DataError(f"source {listing.origin}: no class folders in {top or 'it'}", hint=_inside(listing, top))
    unknown = [name for name in exclude if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        raise DataError(
            f"exclude: no class folder {unknown[0]!r} in {listing.origin}",
            hint=f"the nearest is {near[0]!r}" if near else _inside(listing, top),
        )
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names - set(exclude)):
        spellings[name.casefold()].append(name)
    colliding = [" and ".join(same) for same in spellings.values() if len(same) > 1]
    if colliding:
        raise DataError(
            f"source {listing.origin}: class folders that differ only by case: {told(colliding)}",
            hint="rename or merge them, or leave one out with --exclude: some file systems cannot hold both",
        )
    if not names - set(exclude):
        raise DataError(
            f"source {listing.origin}: every class is excluded: {told(sorted(names))}",
            hint="leave one of them out of --exclude",
        )


def _inside(listing: Listing, top: str) -> str:
    """A hint at what there is instead."""
    archives = [file.path for file in listing.files if file.path.lower().endswith(ARCHIVE_ENDINGS)]
    if archives:
        return f"it holds {archives[0]}: unpack it, or import that"
    seen = sorted({item.removeprefix(top).split("/")[0] for item in listing.folders if item.startswith(top)})
    return f"there is {', '.join(seen[:8])}{' …' if len(seen) > 8 else ''}" if seen else "there are no folders in it"
