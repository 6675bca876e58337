"""A run's identity, a hash of what can change its numbers and of nothing else, and the spec file that bears it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from importlib.machinery import PathFinder
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer.document import Document, read_document, validate, write_yaml
from trainer.failure import SpecError
from trainer.spec import ExperimentSpec, Neutral, NoIdentity, RunSpec

ID_DIGITS = 12
NAME_LIMIT = 40  # with the hash, below the 63 characters that a Kubernetes label may have


_quoted: Callable[[str], str] = json.encoder.encode_basestring_ascii


def canonical_json(value: Any) -> str:
    """The one JSON text that equal meanings share: keys sorted, no spaces, and 1, 1.0 and 1e0 are one number."""
    kind = type(value)
    if kind is float and isfinite(value):
        return str(int(value)) if value.is_integer() else float.__repr__(value)
    if kind is str:
        return _quoted(value)
    if kind in _SIMPLE:  # before all that is asked by isinstance, which takes pydantic long to answer
        return "null" if value is None else str(value).lower()
    if isinstance(value, BaseModel):
        return f"{{{','.join(_entries(value))}}}"
    if isinstance(value, dict):
        items = sorted((str(key), item) for key, item in value.items())
        return f"{{{','.join([f'{_quoted(key)}:{canonical_json(item)}' for key, item in items])}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(canonical_json, value))}]"
    return json.dumps(value)


_SIMPLE = frozenset((int, bool, type(None)))


@cache
def _identity_fields(model: type[BaseModel]) -> tuple[tuple[str, Neutral | None], ...]:
    """Names of the fields that count, sorted, with the value at which one does not: asked of pydantic once a model."""
    fields = []
    for name, field in sorted(model.model_fields.items()):
        if not any(isinstance(mark, NoIdentity) for mark in field.metadata):
            fields.append((name, next((mark for mark in field.metadata if isinstance(mark, Neutral)), None)))
    return tuple(fields)


def _entries(model: BaseModel) -> list[str]:
    values = model.__dict__
    return [
        f'"{name}":{canonical_json(values[name])}'
        for name, neutral in _identity_fields(type(model))
        if neutral is None or values[name] != neutral.value
    ]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_complete(spec: ExperimentSpec) -> None:
    if spec.data.fingerprint is None:
        raise SpecError(
            f"data.fingerprint: missing for data set {spec.data.name!r}, expected its SHA-256",
            hint="`grid show` writes specs with every fingerprint filled in",
        )
    if spec.model.weights is not None and spec.model.weights_fingerprint is None:
        raise SpecError(f"model.weights_fingerprint: missing for {spec.model.weights!r}, expected its SHA-256")
    if spec.model.is_factory and spec.model.source_hash is None:
        raise SpecError(f"model.source_hash: missing for {spec.model.architecture!r}, expected its source's SHA-256")


def run_hash(spec: RunSpec) -> str:
    """SHA-256, in hex, of the canonical JSON of everything in `spec` that can change the run's numbers."""
    _check_complete(spec)
    return _sha256(canonical_json(spec))


def run_id(spec: RunSpec) -> str:
    """The run's id, `<architecture>-<12 hex>`: a DNS label, so that it can name a Job."""
    return _named(spec, run_hash(spec))


class Identifier:
    """Gives ids to the runs of many specs: what a spec shares with the one before, as the same object, is not written
    out anew."""

    def __init__(self) -> None:
        self._fields = [field for field in _identity_fields(RunSpec) if field[0] != "seed"]
        self._names = list(enumerate(name for name, _ in self._fields))
        self._num_before = sum(name < "seed" for name, _ in self._fields)
        self._values: list[Any] = [object()] * len(self._fields)  # of the spec before; none of any spec at first
        self._entries = [""] * len(self._fields)  # with the comma that parts them from the seed's

    def run_ids(self, spec: ExperimentSpec, seeds: Iterable[int]) -> list[str]:
        """`run_id` of the runs that `spec` and each of `seeds` make."""
        _check_complete(spec)
        held, values = self._values, spec.__dict__
        for index, name in self._names:
            value = values[name]
            if value is not held[index]:
                held[index] = value
                neutral = self._fields[index][1]
                entry = f'"{name}":{canonical_json(value)}'
                entry = f"{entry}," if index < self._num_before else f",{entry}"
                self._entries[index] = "" if neutral is not None and value == neutral.value else entry
        before, after = "".join(self._entries[: self._num_before]), "".join(self._entries[self._num_before :])
        return [_named(spec, _sha256(f'{{{before}"seed":{seed}{after}}}')) for seed in seeds]


def _named(spec: ExperimentSpec, digest: str) -> str:
    return f"{_label(spec.model.short_name)}-{digest[:ID_DIGITS]}"


@cache
def _label(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:NAME_LIMIT].strip("-") or "model"


_SPEC_HEADER = """\
# One run, complete: `python -m trainer SPEC --store URI` trains it.
# `hash` is of all that can change its numbers; the trainer refuses a spec that does not match it.
"""


def write_spec(run: RunSpec) -> str:
    """The text of `spec.yaml`: the run's id, its full hash, and the spec with every default written out."""
    full_hash = run_hash(run)
    parts = {"run": _named(run, full_hash), "hash": full_hash, **run.model_dump(mode="json", by_alias=True)}
    return _SPEC_HEADER + "".join(_written(key, json.dumps(value)) for key, value in parts.items())


@lru_cache(maxsize=1024)  # the runs of a grid have nearly all of their parts in common, and YAML is slow to write
def _written(key: str, json_text: str) -> str:
    return write_yaml({key: json.loads(json_text)})


def read_spec(text: str, source: str) -> RunSpec:
    """The run that the text of a `spec.yaml` describes; `source` names the file in errors.

    `run` and `hash` may be left out of a spec written by hand. Raises SpecError when they do not match the rest.
    """
    document = read_document(text, source)
    head = document.value if isinstance(document.value, dict) else {}
    run = validate(RunSpec, document.without(("run", "hash")) if head else document)
    for key, wanted in (("hash", run_hash(run)), ("run", run_id(run))):
        if key in head and head[key] != wanted:
            raise _mismatch(document, key, wanted)
    return run


def _mismatch(document: Document, key: str, wanted: str) -> SpecError:
    return SpecError(
        f"{document.place((key,))}: {key}: got {document.value[key]!r}, expected {wanted!r} for this spec",
        hint="the file was changed after it was written, or by a version with other rules: write it anew from its grid",
    )


def with_seed(spec: ExperimentSpec, seed: int) -> RunSpec:
    """The run that `spec` and `seed` make; of a run, the same with another seed."""
    return RunSpec.model_construct(**{name: getattr(spec, name) for name in ExperimentSpec.model_fields}, seed=seed)


def factory_source_hash(architecture: str) -> str:
    """SHA-256, in hex, of the source a factory `package.module:function` lives in, found without importing it.

    A module on its own counts alone; a module of a package counts with every `.py` file of its top-level package,
    since any of them may change what it builds. Raises SpecError when there is no such module.
    """
    module = architecture.partition(":")[0]
    top = _source_root(module)
    files = [top] if top.is_file() else sorted(top.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        text = file.read_bytes()
        digest.update(f"{file.relative_to(top.parent).as_posix()}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()


def _source_root(module: str) -> Path:
    """The file of a top-level module, or the folder of a top-level package that holds `module`."""
    path: list[str] | None = None
    root: Path | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        found = PathFinder.find_spec(name, path)
        if found is None or found.origin is None:
            raise SpecError(
                f"model.architecture: no module {name!r} to import {module!r} from",
                hint="add its folder to PYTHONPATH, or install its package",
            )
        root = root or (Path(found.origin).parent if found.submodule_search_locations else Path(found.origin))
        path = list(found.submodule_search_locations or [])
    assert root is not None
    return root
