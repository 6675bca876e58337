"""Brings images from a folder, an archive or a URL into the store: shards and an index.

1. `open_source` lists the source's files, `read_tree` finds the class folders, `assign_parts` gives each path a part.
2. Threads read, hash and decode the files (Pillow decodes outside Python's lock); this thread writes what they return
   into shards, in canonical order. What is in flight is bounded in bytes.
3. A finished shard is put into the store beside the work on the next one.
4. The index goes last, in one write. Until then no reader sees anything of the import; shards of an import that fails
   are removed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from trainer.dataset import (
    PARTS,
    DatasetIndex,
    Images,
    PartCounts,
    PartName,
    Shard,
    Split,
    SplitRule,
    dataset_key,
    dataset_lock,
    fingerprint_of,
    load_index,
    order,
    parse_index,
    paths_sha256,
)
from trainer.decode import inspect
from trainer.download import Progress
from trainer.failure import DataError, SpecError
from trainer.machine import available_processors
from trainer.shards import SHARD_BYTES, ShardWriter
from trainer.source import MAX_FILE, SourceFile, open_source, silent
from trainer.spec import DATA_SET_NAME
from trainer.splits import SHOWN, by_class, by_folders, by_lists, every_third, stratified, told
from trainer.store import Conflict, NotFound, Store
from trainer.tree import Tree, read_tree

OnBad = Literal["refuse", "skip"]
Outcome = Literal["new", "unchanged", "mended", "replaced"]

MAX_BYTES = 64 << 30  # of a download, and of what an archive unpacks to
IN_FLIGHT_BYTES = 64 << 20  # of encoded images between reading and writing
CHUNK_BYTES = 1 << 20
CHUNK_FILES = 32


@dataclass(frozen=True)
class Imported:
    """What an import came to."""

    index: DatasetIndex
    outcome: Outcome  # `unchanged`, `mended`: the store had this very data set under this name, whole or not
    num_mended: int = 0  # shards that were missing or damaged, and are there again
    replaced: str | None = None  # fingerprint of the other data set that had the name, where that could be read


@dataclass(frozen=True)
class Rules:
    """How images are given to parts."""

    split: SplitRule
    fraction: float  # of each class that `fraction` makes test
    validation_fraction: float  # of each class of what is left for training, unless the source has a validation part
    lists: Mapping[PartName, Path]
    seed: int


def import_dataset(
    source: str | Path,
    name: str,
    store: Store,
    *,
    split: SplitRule = "fraction",
    fraction: float = 0.2,
    validation_fraction: float = 0.5,
    lists: Mapping[PartName, Path] | None = None,
    seed: int = 0,
    exclude: Sequence[str] = (),
    root: str | None = None,
    on_bad: OnBad = "refuse",
    replace: bool = False,
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
    downloads: Path | None = None,
    progress: Progress = silent,
    num_threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Imported:
    """The data set in the store, imported from `source`; the same source and rules give the same bytes.

    `root` is the folder inside the source that holds the class folders (found, if none). `sha256` is an archive's.
    Raises SpecError on impossible rules, and DataError when the source is wrong, when a file is bad and `on_bad` is
    `refuse`, when a class is left without an image, and when another data set has the name and `replace` is false.
    """
    rules = Rules(split, fraction, validation_fraction, lists or {}, seed)
    _check_request(name, rules, on_bad)
    with (
        open_source(source, sha256=sha256, max_bytes=max_bytes, downloads=downloads, progress=progress) as listing,
        tempfile.TemporaryDirectory(prefix="grid-import-") as scratch,
    ):
        tree = read_tree(listing, root=root, exclude=exclude, has_part_folders=split == "folders")
        parts = assign_parts(tree, rules)
        with _only_import(store, name), _Shelf(store, name, replace) as shelf:
            rows = _Rows(tree, parts, on_bad)
            _write_shards(rows, shelf, Path(scratch), shard_bytes, num_threads or available_processors(), progress)
            rows.check()
            index = rows.index(name, rules, exclude, shelf.shards)
            return _publish(index, shelf, replace)


@contextmanager
def _only_import(store: Store, name: str) -> Iterator[None]:
    """Keeps this host's other imports of the same name out."""
    lock = dataset_lock(store, name)
    if not lock.acquire():
        raise DataError(f"data set {name!r}: another process is importing it", hint="wait for it, or stop it")
    try:
        yield
    finally:
        lock.release()


def _check_request(name: str, rules: Rules, on_bad: str) -> None:
    if not re.fullmatch(DATA_SET_NAME, name):
        raise SpecError(f"name: got {name!r}, expected letters, digits, dots, dashes and underscores")
    if rules.split not in get_args(SplitRule):
        raise SpecError(f"split: got {rules.split!r}, expected one of {', '.join(get_args(SplitRule))}")
    if on_bad not in get_args(OnBad):
        raise SpecError(f"on_bad: got {on_bad!r}, expected refuse or skip")
    for key, share in (("fraction", rules.fraction), ("validation_fraction", rules.validation_fraction)):
        if not 0 < share < 1:
            raise SpecError(f"{key}: got {share}, expected a number between 0 and 1")
    if bool(rules.lists) != (rules.split == "lists"):
        raise SpecError(
            f"split {rules.split}: got {len(rules.lists)} lists of paths, expected "
            + ("lists for train and test" if rules.split == "lists" else "none"),
            hint="lists belong to the split `lists`",
        )


def assign_parts(tree: Tree, rules: Rules) -> dict[str, PartName]:
    """The part of each of the tree's files; files that the rule gives to none are missing."""
    if rules.split == "every-third":
        parts = every_third(tree.all_paths)
    elif rules.split == "lists":
        parts = by_lists(tree.all_paths, rules.lists)
    elif rules.split == "folders":
        parts = by_folders(tree.files)
    else:
        chosen = stratified(by_class(tree.files, tree.labels), rules.fraction, rules.seed, "test")
        parts = {path: "test" if path in chosen else "train" for path in tree.files}
    parts = {path: parts[path] for path in tree.files if path in parts}
    if "validation" not in parts.values():
        training = [path for path, part in parts.items() if part == "train"]
        chosen = stratified(by_class(training, tree.labels), rules.validation_fraction, rules.seed, "validation")
        parts |= dict.fromkeys(chosen, "validation")
    return parts


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as a thread saw it: its content, or what is wrong with it."""

    path: str
    data: bytes = b""
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    ending: str = ""
    fault: str | None = None


def _see(path: str, file: SourceFile) -> _Seen:
    if file.size > MAX_FILE:
        return _Seen(path, fault=f"{file.size} bytes, expected at most {MAX_FILE}")
    try:
        with file.file.open("rb") as stream:
            data = stream.read(file.size + 1)
        if len(data) != file.size:
            return _Seen(path, fault=f"it changed while it was read: from {file.size} bytes to another size")
        width, height, ending = inspect(data)
    except OSError as error:
        return _Seen(path, fault=f"cannot be read: {error.strerror}")
    except DataError as error:
        return _Seen(path, fault=error.message)
    return _Seen(path, data, hashlib.sha256(data).digest(), width, height, ending)


def _see_all(files: Sequence[tuple[str, SourceFile]], num_threads: int) -> Iterator[_Seen]:
    """The files as `_see` sees them, in order, with no more than IN_FLIGHT_BYTES read and not yet taken."""
    waiting: deque[tuple[Future[list[_Seen]], int]] = deque()
    in_flight = 0
    with ThreadPoolExecutor(num_threads, thread_name_prefix="import") as pool:
        try:
            for chunk in _chunks(files):
                size = sum(file.size for _, file in chunk)
                while waiting and (in_flight + size > IN_FLIGHT_BYTES or len(waiting) >= 4 * num_threads):
                    future, taken = waiting.popleft()
                    in_flight -= taken
                    yield from future.result()
                waiting.append((pool.submit(lambda chunk: [_see(*item) for item in chunk], chunk), size))
                in_flight += size
            while waiting:
                yield from waiting.popleft()[0].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _chunks(files: Sequence[tuple[str, SourceFile]]) -> Iterator[list[tuple[str, SourceFile]]]:
    chunk: list[tuple[str, SourceFile]] = []
    size = 0
    for path, file in files:
        if chunk and (size + file.size > CHUNK_BYTES or len(chunk) == CHUNK_FILES):
            yield chunk
            chunk, size = [], 0
        chunk.append((path, file))
        size += file.size
    if chunk:
        yield chunk


class _Rows:
    """The images accepted so far, as the index will have them, and what was not accepted."""

    def __init__(self, tree: Tree, parts: Mapping[str, PartName], on_bad: OnBad) -> None:
        self.tree = tree
        self.parts = parts
        self.on_bad = on_bad
        self.bad = list(tree.bad)
        self.seen: list[_Seen] = []  # without their data
        self.places: list[tuple[int, int]] = []  # shard and offset
        self.sizes: list[int] = []

    @property
    def is_refused(self) -> bool:
        """Whether the import fails already, so that nothing more need be written."""
        return self.on_bad == "refuse" and bool(self.bad)

    def files(self, part: PartName) -> list[tuple[str, SourceFile]]:
        """The part's files, in canonical order."""
        return [(path, file) for path, file in self.tree.files.items() if self.parts.get(path) == part]

    def add(self, seen: _Seen, shard: int, offset: int) -> None:
        """Take an image that was written."""
        self.seen.append(_Seen(seen.path, sha256=seen.sha256, width=seen.width, height=seen.height, ending=seen.ending))
        self.places.append((shard, offset))
        self.sizes.append(len(seen.data))

    def check(self) -> None:
        """Nothing, when the rows make a data set; raises DataError with the paths in the way."""
        if self.is_refused:
            raise DataError(
                f"cannot import: {told([f'{path}: {reason}' for path, reason in self.bad])}",
                hint="mend or remove them, or import without them with --on-bad skip",
            )
        given = {self.tree.labels[path] for path in self.tree.files}
        taken = {self.tree.labels[seen.path] for seen in self.seen}
        empty = [
            f"class {name}: {'no image left' if label in given else 'its folder has no file'}"
            for label, name in enumerate(self.tree.classes)
            if label not in taken
        ]
        if empty:
            raise DataError(f"cannot import: {told(empty)}", hint="leave the class out with --exclude")
        if not any(self.parts[seen.path] == "train" for seen in self.seen):
            raise DataError("cannot import: no image left for training", hint="choose another split")

    def index(self, name: str, rules: Rules, exclude: Sequence[str], shards: Sequence[Shard]) -> DatasetIndex:
        """The index of these rows."""
        tree, parts, seen = self.tree, self.parts, self.seen
        paths: dict[PartName, list[str]] = {part: [] for part in PARTS}
        for item in seen:
            paths[parts[item.path]].append(item.path)
        training = {*paths["train"], *paths["validation"]}
        unlisted = [(path, "in no list") for path in tree.files if path not in parts]
        gives_validation = rules.split == "lists" and "validation" in rules.lists
        gives_validation |= rules.split == "folders" and "validation" in by_folders(tree.files).values()
        return DatasetIndex(
            name=name,
            fingerprint=fingerprint_of(
                tree.classes, [(item.path, tree.labels[item.path], parts[item.path], item.sha256) for item in seen]
            ),
            classes=tree.classes,
            split=Split(
                rule=rules.split,
                seed=rules.seed,
                test_fraction=rules.fraction if rules.split == "fraction" else None,
                validation_fraction=None if gives_validation else rules.validation_fraction,
                training_paths_sha256=paths_sha256(path for path in tree.files if path in training),
            ),
            parts={part: self._part(paths[part]) for part in PARTS},
            excluded=tuple(sorted(exclude, key=order)),
            skipped=tuple(sorted([*self.bad, *tree.aside, *unlisted])),
            notes=tuple(self._notes(paths)),
            shards=tuple(shards),
            images=Images(
                path=tuple(item.path for item in seen),
                label=tuple(tree.labels[item.path] for item in seen),
                shard=tuple(shard for shard, _ in self.places),
                offset=tuple(offset for _, offset in self.places),
                size=tuple(self.sizes),
                width=tuple(item.width for item in seen),
                height=tuple(item.height for item in seen),
                sha256=base64.b64encode(b"".join(item.sha256 for item in seen)).decode(),
            ),
        )

    def _part(self, paths: Sequence[str]) -> PartCounts:
        counts = Counter(self.tree.labels[path] for path in paths)
        return PartCounts(
            num_images=len(paths),
            class_counts=tuple(counts[label] for label in range(len(self.tree.classes))),
            paths_sha256=paths_sha256(paths),
        )

    def _notes(self, paths: Mapping[PartName, Sequence[str]]) -> Iterator[str]:
        if len(self.tree.classes) == 1:
            yield f"there is one class only, {self.tree.classes[0]}: nothing to tell apart"
        yield from (f"the {part} part is empty" for part in PARTS if not paths[part])
        trained = {self.tree.labels[path] for path in paths["train"]}
        untrained = [name for label, name in enumerate(self.tree.classes) if label not in trained]
        if untrained:
            yield f"no image for training in {_some(untrained)}"
        by_content: dict[bytes, list[str]] = defaultdict(list)
        by_spelling: dict[str, list[str]] = defaultdict(list)
        for item in self.seen:
            by_content[item.sha256].append(item.path)
            by_spelling[item.path.casefold()].append(item.path)
        copies = [same for same in by_content.values() if len(same) > 1]
        if copies:
            yield f"{sum(map(len, copies)) - len(copies)} images are copies, byte for byte, of others"
        yield from _pairs("in more than one part", copies, self.parts)
        yield from _pairs(
            "in more than one class",
            copies,
            {path: self.tree.classes[label] for path, label in self.tree.labels.items()},
        )
        collisions = [" and ".join(sorted(same)) for same in by_spelling.values() if len(same) > 1]
        if collisions:
            yield f"paths that differ only by case, which some file systems cannot hold both: {_some(collisions)}"


def _pairs(what: str, copies: Iterable[Sequence[str]], home: Mapping[str, object]) -> Iterator[str]:
    apart = [same for same in copies if len({home[path] for path in same}) > 1]
    if apart:
        told_apart = [" and ".join(f"{path} ({home[path]})" for path in same) for same in apart]
        yield f"the same image {what}: {_some(told_apart)}"


def _some(items: Sequence[str]) -> str:
    rest = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)}: {', '.join(items[:SHOWN])}{rest}"


def _write_shards(
    rows: _Rows, shelf: _Shelf, scratch: Path, shard_bytes: int, num_threads: int, progress: Progress
) -> None:
    files = {part: rows.files(part) for part in PARTS}
    total = sum(map(len, files.values()))
    done = num_bytes = 0
    for part in PARTS:
        writer = ShardWriter(scratch, part, shard_bytes)
        try:
            for seen in _see_all(files[part], num_threads):
                done += 1
                num_bytes += len(seen.data)
                if seen.fault is not None:
                    rows.bad.append((seen.path, seen.fault))
                elif not rows.is_refused:
                    if writer.is_full(len(seen.data)):
                        shelf.put(*writer.finish())
                    offset = writer.add(seen.data, seen.ending, rows.tree.labels[seen.path])
                    rows.add(seen, len(shelf.shards), offset)
                progress("import", done, total, num_bytes)
            if writer.is_open and not rows.is_refused:
                shelf.put(*writer.finish())
        finally:
            writer.close()


class _Shelf:
    """A data set's place in the store while it is being imported; what was put is removed again on an error."""

    def __init__(self, store: Store, name: str, replace: bool) -> None:
        self.store = store
        self.name = name
        self.shards: list[Shard] = []
        self._checks_content = replace  # it mends what is damaged, which its size need not show
        self._sizes = {entry.key: entry.size for entry in store.list(dataset_key(name, "shard-"))}
        self._put: list[str] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="put")
        self._running: Future[None] | None = None

    def __enter__(self) -> _Shelf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._pool.shutdown(wait=True)
        if error is not None:
            self.drop_new()

    def put(self, shard: Shard, path: Path) -> None:
        """Begin to put a finished shard, once the one before it is in the store; the file is deleted then."""
        self.shards.append(shard)
        self.wait()
        self._running = self._pool.submit(self._put_one, shard, path)

    def wait(self) -> None:
        """Come back when all that was put is in the store; raises StoreError if it could not be."""
        if self._running is not None:
            self._running.result()
            self._running = None

    def _put_one(self, shard: Shard, path: Path) -> None:
        key = dataset_key(self.name, shard.name)
        # its name has its hash, and a write is whole or not there
        if self._sizes.get(key) != shard.size or (self._checks_content and self._sha256(key) != shard.sha256):
            self._put.append(key)
            self.store.put_file(key, path)
        path.unlink()

    def _sha256(self, key: str) -> str:
        with self.store.open(key) as stored:
            return hashlib.file_digest(stored, "sha256").hexdigest()

    @property
    def num_put(self) -> int:
        """Shards that the store did not have, or not as they should be."""
        return len(self._put)

    def drop_new(self) -> None:
        """Remove the shards that were put and were not there before, but for those that an index names by now."""
        named: set[str] = set()
        with suppress(DataError):
            named = {dataset_key(self.name, shard.name) for shard in load_index(self.store, self.name).shards}
        for key in self._put:
            if key not in named:
                self.store.delete(key)
        self._put.clear()

    def has(self, shards: Iterable[Shard]) -> bool:
        """Whether the store has all these shards now."""
        sizes = {entry.key: entry.size for entry in self.store.list(dataset_key(self.name, "shard-"))}
        return all(sizes.get(dataset_key(self.name, shard.name)) == shard.size for shard in shards)


def _publish(index: DatasetIndex, shelf: _Shelf, replace: bool) -> Imported:
    """Write the index, unless the store has one that says the same; then remove shards that it no longer names."""
    shelf.wait()
    store, key = shelf.store, dataset_key(index.name, "index.json")
    if not shelf.has(index.shards):
        raise _meanwhile(index.name)
    try:
        text, version = store.get_versioned(key)
    except NotFound:
        try:
            store.create(key, index_text(index))
        except Conflict as error:
            raise _meanwhile(index.name) from error
        return Imported(index, "new")
    try:
        old = parse_index(text, index.name, store.uri)
    except DataError:
        if not replace:
            raise
        old = None
    if old is not None and old.fingerprint == index.fingerprint:
        if old.shards == index.shards and (old == index or not replace):
            return Imported(old, "mended" if shelf.num_put else "unchanged", shelf.num_put)
        if shelf.has(old.shards) and not replace:  # it was cut into other shards
            shelf.drop_new()
            return Imported(old, "unchanged")
    if old is not None and old.fingerprint != index.fingerprint and not replace:
        raise DataError(
            f"data set {index.name!r}: {store.uri} has another one of this name: fingerprint {old.fingerprint[:12]}, "
            f"{old.num_images()} images; this one is {index.fingerprint[:12]}, {index.num_images()} images",
            hint="import it under another name, or give --replace",
        )
    try:
        store.replace(key, index_text(index), version)
    except (Conflict, NotFound) as error:
        raise _meanwhile(index.name) from error
    named = {shard.name for shard in index.shards}
    for shard in old.shards if old is not None else ():
        if shard.name not in named:
            store.delete(dataset_key(index.name, shard.name))
    other = None if old is None or old.fingerprint == index.fingerprint else old.fingerprint
    return Imported(index, "replaced", replaced=other)


def _meanwhile(name: str) -> DataError:
    return DataError(f"data set {name!r}: another host's import changed it meanwhile", hint="import it again")


def index_text(index: DatasetIndex) -> bytes:
    """The index as the store holds it: JSON, a line for each of its keys."""
    fields = index.model_dump(mode="json")
    lines = (f"{json.dumps(key)}: {_json(value)}" for key, value in fields.items() if key != "images")
    columns = (f"  {json.dumps(key)}: {_json(value)}" for key, value in fields["images"].items())
    images = '"images": {\n' + ",\n".join(columns) + "\n}"
    return ("{\n" + ",\n".join([*lines, images]) + "\n}\n").encode()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
