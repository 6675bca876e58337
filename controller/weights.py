"""Weights in the store: a file brought in whole or not at all, what it holds, and which network it fits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from pydantic import ValidationError

from controller.architectures import check_classifier, check_factory
from controller.archive import (
    BLOCK,
    HEAD_BYTES,
    check_weights_head,
    grids_naming,
    keep_sha256,
    weights_sha256,
    weights_version,
)
from controller.origins import likely_architecture, origin_of
from controller.wording import listed
from trainer.download import Progress, download
from trainer.failure import DataError, ExitCode, SpecError
from trainer.lock import HostLock
from trainer.source import silent
from trainer.spec import ModelSpec, Scalar, below_weights
from trainer.store import NotFound, Store
from trainer.weights import SUFFIXES, Answer, Contents, Fit, Question, check_hash_in_name, hash_in_name, refuse_misfit

MAX_BYTES = 16 << 30
CHILD = ("-m", "trainer.fitting")
CHILD_SECONDS = 600.0

Outcome = Literal["new", "unchanged", "replaced"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file of the store, and what is known of it."""

    name: str
    size: int  # bytes
    sha256: str
    grids: tuple[str, ...]  # of the store, that name it
    contents: Contents | None = None  # none: the file was not opened
    fit: Fit | None = None  # none: it is not known which network it is of

    @property
    def vouched(self) -> str | None:
        """The digits of its hash that its name vouches for; none where nothing does."""
        return hash_in_name(self.name)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to."""

    weights: Weights
    outcome: Outcome
    vouched: str | None  # the digits that the name it had where it came from, or has now, vouches for


def import_weights(
    source: str,
    store: Store,
    *,
    name: str | None = None,
    model: ModelSpec | None = None,
    replace: bool = False,
    max_bytes: int = MAX_BYTES,
    downloads: Path | None = None,
    progress: Progress = silent,
) -> Imported:
    """The file at a path or an address as `weights/<name>` of the store, in one write, after all else is settled.

    1. The file is fetched, and hashed; what its name says of the hash must be so.
    2. A process that has torch reads it, running nothing that it may hold, and tries it on `model`, or else on the
       network that its name tells.
    3. It is written, and its hash beside it. The same file again changes nothing.

    Raises DataError where it is another file, no state dict, does not fit, or has another's name without `replace`;
    SpecError on a name or network that cannot be; StoreError where the store takes no more.
    """
    if (path := _local_path(source)) is not None:
        _check_source(source, path)  # before the name: that of a folder is no fault of --name
    given = _base_name(source)
    name = _checked_name(given if name is None else name)
    model = model or model_of(name) or model_of(given)
    if model is not None:
        check_model(model)
    with _local(source, max_bytes, downloads, progress) as file:
        before = file.stat()
        sha256 = _hashed(file, name, progress)
        for each in dict.fromkeys((given, name)):
            check_hash_in_name(each, sha256)
        contents, fit = look_into(file, name, model)
        if fit is not None:
            refuse_misfit(fit, name)
        with _only_writer(store, name):
            outcome = _outcome(store, name, sha256, replace=replace)
            if outcome != "unchanged":
                store.put_file(f"weights/{name}", file)
                _see_that_it_stayed(store, name, file, before)
                if (version := weights_version(store, name)) is not None:
                    keep_sha256(store, name, version, sha256)
    weights = Weights(name, before.st_size, sha256, tuple(grids_naming(store, "weights", name)), contents, fit)
    return Imported(weights, outcome, hash_in_name(name) or hash_in_name(given))


def _base_name(source: str) -> str:
    path = urlsplit(source).path if _is_address(source) else source
    return unquote(path).rstrip("/").rpartition("/")[2] if _is_address(source) else Path(path).name


def _is_address(source: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE) is not None


def _checked_name(name: str) -> str:
    """`name` itself. Raises SpecError unless a weights file may have it."""
    try:
        below_weights(name)
    except ValueError as error:
        raise SpecError(f"--name: got {name!r}: {error}") from error
    if not name.endswith(SUFFIXES):
        raise SpecError(
            f"--name: got {name!r}, expected a name that ends in {', '.join(SUFFIXES)}: it says how to read the file",
            hint="say with --name how the file is to be called in the store",
        )
    return name


def _local_path(source: str) -> Path | None:
    """Where the source lies on this machine; none where it is another's address."""
    if not _is_address(source):
        return Path(source).expanduser()
    return Path(url2pathname(urlsplit(source).path)) if source.lower().startswith("file:") else None


def _check_source(source: str, path: Path) -> None:
    """Nothing, where the source is a file; raises DataError otherwise."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"source {source}: {what}; expected a state dict", hint="name the file that torch.save wrote")


@contextmanager
def _local(source: str, max_bytes: int, downloads: Path | None, progress: Progress) -> Iterator[Path]:
    """The file on this machine, for as long as the context lasts."""
    scheme = source.partition("://")[0].lower() if _is_address(source) else ""
    if scheme in ("http", "https"):
        with download(source, sha256=None, max_bytes=max_bytes, folder=downloads, progress=progress) as file:
            yield file
        return
    if scheme not in ("", "file"):
        raise DataError(
            f"source {source}: expected a file, or an address that begins with https://, http:// or file://",
            hint="fetch it by other means first, and import the file",
        )
    path = _local_path(source)
    assert path is not None
    _check_source(source, path)
    if path.stat().st_size > max_bytes:
        raise DataError(f"source {source}: {path.stat().st_size} bytes, expected at most {max_bytes}")
    yield path


def _hashed(file: Path, name: str, progress: Progress) -> str:
    """The file's SHA-256, read to its end. Raises DataError where it begins otherwise than such a file does."""
    total, done, digest = file.stat().st_size, 0, hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                if not done:
                    check_weights_head(name, block[:HEAD_BYTES])
                done += len(block)
                digest.update(block)
                progress("read", done, total, done)
    except OSError as error:
        raise DataError(f"source {file}: cannot be read: {error.strerror}") from error
    if not done:
        check_weights_head(name, b"")
    return digest.hexdigest()


@contextmanager
def _only_writer(store: Store, name: str) -> Iterator[None]:
    """Keeps this host's other imports under the same name out."""
    lock = HostLock(store.lock_path(f"weights-{name.replace('/', '_')}"))
    if not lock.acquire():
        raise DataError(f"weights {name!r}: another process is importing them", hint="wait for it, or stop it")
    try:
        yield
    finally:
        lock.release()


def _outcome(store: Store, name: str, sha256: str, *, replace: bool) -> Outcome:
    """What writing the file comes to. Raises DataError where it would take another's place and must not."""
    if weights_version(store, name) is None:
        return "new"
    try:
        held = weights_sha256(store, name)
    except DataError:  # damaged, or not what its name says: the new one is
        return "replaced"
    if held == sha256:
        return "unchanged"
    if replace:
        return "replaced"
    grids = grids_naming(store, "weights", name)
    used = f"; {', '.join(grids)} would start from other weights" if grids else ""
    raise DataError(
        f"weights {name!r}: {store.uri} has another file of this name, SHA-256 {held[:12]}…, got {sha256[:12]}…{used}",
        hint="--name keeps both; --replace takes its place: runs that start from it are new ones then",
    )


def _see_that_it_stayed(store: Store, name: str, file: Path, before: os.stat_result) -> None:
    """Raise DataError, and remove what was written, where the file changed since it was hashed."""
    now = file.stat()
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        store.delete(f"weights/{name}")
        raise DataError(f"weights {name!r}: {file} changed while it was read", hint="import it once it is whole")


def model_of(name: str) -> ModelSpec | None:
    """The network that a file of this name is of, as far as anybody knows."""
    origin = origin_of(name)
    if origin is not None:
        return ModelSpec(architecture=origin.architecture, arguments=dict(origin.arguments))
    likely = likely_architecture(name)
    return None if likely is None else ModelSpec(architecture=likely)


def given_model(architecture: str | None, arguments: Mapping[str, Scalar]) -> ModelSpec | None:
    """The network that a command line names. Raises SpecError where there is none such."""
    if architecture is None:
        if arguments:
            raise SpecError("--argument: got arguments without a network", hint="name it with --architecture")
        return None
    try:
        return ModelSpec(architecture=architecture, arguments=dict(arguments))
    except ValidationError as error:
        raise SpecError(
            f"--architecture: got {architecture!r} with {dict(arguments)}, expected a classifier of torchvision such "
            "as alexnet, or a factory `package.module:function`",
            hint=error.errors(include_url=False)[0]["msg"],
        ) from error


def check_model(model: ModelSpec) -> None:
    """Nothing, when there is such a network; raises SpecError otherwise."""
    if model.is_factory:
        check_factory(model.architecture)
    else:
        check_classifier(model.architecture)


def look_into(file: Path, name: str, model: ModelSpec | None) -> tuple[Contents, Fit | None]:
    """What the file holds, and how it fits the network, asked of a process that has torch.

    Raises DataError where it is no state dict, SpecError where the network cannot be built.
    """
    question = Question(path=file.resolve(), name=name, model=model)
    try:
        done = subprocess.run(
            [sys.executable, *CHILD],
            input=question.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=True,
        )
        found = Answer.model_validate_json(done.stdout.splitlines()[-1])  # a factory may print something before
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines()
        raise DataError(f"weights {name!r}: torch could not read them: {lines[-1] if lines else error}") from error
    except (OSError, subprocess.SubprocessError, ValidationError, IndexError, json.JSONDecodeError) as error:
        raise DataError(f"weights {name!r}: torch could not be asked: {error}") from error
    if (trouble := found.trouble) is not None:
        kind = SpecError if trouble.exit_code == ExitCode.SPEC else DataError
        raise kind(trouble.message, hint=trouble.hint)
    assert found.contents is not None
    return found.contents, found.fit


def weights_names(store: Store) -> list[str]:
    """Names of the weights files in the store."""
    return [entry.key.removeprefix("weights/") for entry in store.list("weights/")]


def known_weights(store: Store, name: str) -> Weights:
    """What is known of a weights file of the store without opening it. Raises DataError where there is none."""
    key = f"weights/{name}"
    size = next((entry.size for entry in store.list(key) if entry.key == key), 0)
    return Weights(name, size, weights_sha256(store, name), tuple(grids_naming(store, "weights", name)))


def remove_weights(store: Store, name: str, *, force: bool = False) -> Weights:
    """What was known of the weights file, which is gone from the store then, with its hash.

    Raises DataError where there is none, or where grids of the store name it and it is not to go by `force`.
    """
    entry = next((each for each in store.list(f"weights/{name}") if each.key == f"weights/{name}"), None)
    if entry is None:
        held = listed(weights_names(store), 5) or "none"
        raise DataError(
            f"weights {name!r}: not in {store.uri}, which has {held}", hint="`grid weights list` shows them"
        )
    with _only_writer(store, name):
        grids = tuple(grids_naming(store, "weights", name))
        if grids and not force:
            raise DataError(
                f"weights {name!r}: {listed(grids, 5)} {'names' if len(grids) == 1 else 'name'} them: runs that start "
                "from them could not be trained without",
                hint="`grid gc --forget GRID --delete` removes a grid; --force removes the weights all the same, and "
                "what is trained stays",
            )
        known = _kept_sha256(store, name)
        store.delete(f"weights/{name}")
        with suppress(NotFound):
            store.delete(f"hashes/{name}.json")
    return Weights(name, entry.size, known, grids)


def _kept_sha256(store: Store, name: str) -> str:
    """The file's hash, empty where it is not what it should be: then it may go without one."""
    try:
        return weights_sha256(store, name)
    except DataError:
        return ""


def read_weights(store: Store, name: str, model: ModelSpec | None) -> Weights:
    """The weights file of the store, opened, and tried on `model`, or else on the network that its name tells.

    Raises DataError where there is none, or it is no state dict.
    """
    known = known_weights(store, name)
    model = model or model_of(name)
    if model is not None:
        check_model(model)
    with _local_copy(store, name) as file:
        contents, fit = look_into(file, name, model)
    return Weights(name, known.size, known.sha256, known.grids, contents, fit)


@contextmanager
def _local_copy(store: Store, name: str) -> Iterator[Path]:
    """The weights file on this machine: where the store is a folder the file itself."""
    key = f"weights/{name}"
    if (path := store.local_path(key)) is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="grid-weights-") as scratch:
        copy = Path(scratch, Path(name).name)
        try:
            with store.open(key) as stream, copy.open("wb") as target:
                shutil.copyfileobj(stream, target, BLOCK)
        except NotFound as error:  # removed since it was listed
            raise DataError(f"weights {name!r}: no {key} in {store.uri}") from error
        yield copy
