"""A grid as read: from its file, with what the command line changes, and written in one canonical form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from controller.checks import problems_in
from controller.rows import Candidate, assign, candidates, same
from controller.stages import BASE, SPEC_KEYS, GridFile, KeepBest, Stage, TestBest, seed_list
from trainer.document import (
    Document,
    Place,
    absence,
    did_you_mean,
    nearest,
    read_document,
    read_file,
    show_value,
    spec_error,
    takes_any_key,
    validate,
    write_yaml,
)
from trainer.document import Path as DocumentPath
from trainer.failure import SpecError
from trainer.spec import ExperimentSpec

EXTENSION = "x-"  # top-level keys that begin so are read for their anchors and mean nothing
OWN_KEYS = ("seeds", "max_failed", "keep")  # what `--set` takes beside the keys of the base


@dataclass(frozen=True, eq=False)  # each is itself: what was built of it is found by it
class Grid:
    """A grid as read, with what the command line set. `stages` have `from`, `keep`, `seeds` and `test` filled in."""

    document: Document
    base: Mapping[str, Any]  # as written: what is a default is not in it
    description: str
    name: str
    seeds: tuple[int, ...]
    max_failed: int | None
    stages: tuple[Stage, ...]
    rows: Mapping[str, tuple[Candidate, ...]]  # of each stage that trains, by its name

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises SpecError with the nearest names."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise SpecError(
            f"stage: got {name!r}, expected a stage of grid {self.name}: {', '.join(s.name for s in self.stages)}",
            hint=did_you_mean(name, [stage.name for stage in self.stages]),
        )

    def path(self, stage: Stage) -> DocumentPath:
        """Where the stage stands in the document."""
        return ("stages", [each.name for each in self.stages].index(stage.name))

    def stage_seeds(self, stage: Stage) -> tuple[int, ...]:
        """Seeds that each row of the stage is trained with."""
        return self.seeds if stage.seeds is None else seed_list(stage.seeds)

    def candidates(self, stage: Stage) -> tuple[Candidate, ...]:
        """The stage's rows in order, without those excluded; names and values do not hang on what it starts from."""
        return self.rows[stage.name]

    def text(self) -> str:
        """The grid in canonical YAML: no comments, no defaults, keys in one order; reads back as an equal grid."""
        return write_yaml(_canonical(self.document.value))

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical text."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def shipped_grids() -> list[tuple[str, str]]:
    """Name and description of each grid that comes with this program, by name."""
    found = []
    for name in _shipped_names():
        value = read_document(_shipped_text(name), f"{name}.yaml").value
        found.append((name, str(value.get("description", ""))))
    return found


def read_grid(name_or_path: str | Path, sets: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """The grid of that shipped name or path, changed by `sets` (`key=value` each) and trained with `seeds` seeds.

    A value that is set goes to the base, but for the grid's own keys: `seeds`, `max_failed`, and `keep=best`, which
    puts the rule in the place of every pinned choice. `seeds` goes over the seeds of single stages too. Raises
    SpecError.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    if not isinstance(name_or_path, Path) and name in _shipped_names():
        return parse_grid(_shipped_text(name), f"grids/{name}.yaml", sets, seeds)
    text = read_file(path, name)
    if text is None:
        looks_like_path = isinstance(name_or_path, Path) or path.suffix in {".yaml", ".yml"} or "/" in name
        if looks_like_path:
            raise SpecError(f"{name}: {absence(path)}", hint="`grid list` shows the grids that need no file")
        hint = did_you_mean(name, _shipped_names()) or "`grid list` shows them; a path to a file is a grid too"
        raise SpecError(
            f"grid: got {show_value(name)}, expected one of {', '.join(_shipped_names())}, one of the store's, "
            "or a file",
            hint=hint,
        )
    return parse_grid(text, name, sets, seeds)


def parse_grid(text: str, source: str, sets: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """The grid that `text` holds, as `read_grid` reads it; `source` names it in errors."""
    document = _without_extensions(read_document(text, source))
    validate(GridFile, document)
    for assignment in sets:
        document = _with_set(document, assignment)
    if seeds is not None:
        document = _with_seeds(document, seeds)
    file = validate(GridFile, document)
    if problems := list(problems_in(file)):
        raise spec_error(problems, document)
    stages = _completed(file)
    return Grid(
        document=document,
        base=document.value["base"],
        description=file.description,
        name=file.grid,
        seeds=seed_list(file.seeds),
        max_failed=file.max_failed,
        stages=stages,
        rows={
            stage.name: candidates(stage, ("stages", index), document)
            for index, stage in enumerate(stages)
            if stage.test is None
        },
    )


def _without_extensions(document: Document) -> Document:
    """The document without the keys that are there to hold anchors, as compose files have them: `x-…`."""
    if not isinstance(document.value, dict):
        return document
    return document.without(key for key in document.value if key.startswith(EXTENSION))


def _shipped_names() -> list[str]:
    folder = files("controller") / "grids"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _shipped_text(name: str) -> str:
    return (files("controller") / "grids" / f"{name}.yaml").read_text(encoding="utf-8")


# What the command line changes


def _with_set(document: Document, assignment: str) -> Document:
    source = f"--set {assignment}"
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise SpecError(f"{source}: got {assignment!r}, expected key=value, as in `--set optimizer.lr=0.1`")
    value = read_document(text, source).value
    known = SPEC_KEYS
    if key == "keep":
        return _with_rule(document, value)
    if key in OWN_KEYS:
        return _with_value(document, (key,), value, source)
    if key not in known and not takes_any_key(ExperimentSpec, key):
        key = key.removeprefix(f"{BASE}.")
    if key not in known and not takes_any_key(ExperimentSpec, key):
        ends = [other for other in known if other.rpartition(".")[2] == key]
        near = ends[0] if ends else nearest(key, [*known, *OWN_KEYS])
        raise SpecError(
            f"{source}: unknown key; got {key!r}, expected a key of the base or one of {', '.join(OWN_KEYS)}",
            hint=f"did you mean {near!r}?" if near else None,
        )
    for stage in document.value["stages"]:
        for part in ("set", "vary", "zip", "points"):
            held = stage.get(part, ())
            for taken in (taken for each in (held if isinstance(held, tuple) else (held,)) for taken in each):
                if key == taken or key.startswith(f"{taken}."):
                    raise SpecError(
                        f"{source}: stage {stage['name']!r} gives {taken} its own "
                        f"{'value' if part == 'set' else 'values'}, which win over the base",
                        hint="change the stage in a copy of the grid file, or set another key",
                    )
    return _with_value(document, (BASE, *key.split(".")), value, source)


def _with_value(document: Document, path: tuple[str, ...], value: Any, source: str) -> Document:
    if path[0] == BASE:
        changed = {**document.value, BASE: assign(document.value[BASE], path[1:], value)}
    else:
        changed = {**document.value, path[0]: value}
    kept = {place: where for place, where in document.places.items() if place[: len(path)] != path}
    return Document(document.source, changed, {**kept, path: Place(source, None)})


def _with_rule(document: Document, value: Any) -> Document:
    if value != "best":
        raise SpecError(f"--set keep={value}: got {value!r}, expected best", hint="other choices belong in a grid file")
    stages = []
    for stage in document.value["stages"]:
        changed = dict(stage)
        if isinstance(changed.get("keep"), dict) and "this" in changed["keep"]:
            del changed["keep"]
        if isinstance(changed.get("test"), dict) and "these" in changed["test"]:
            changed["test"] = {"best": len(changed["test"]["these"])}
        stages.append(changed)
    return replace(document, value={**document.value, "stages": tuple(stages)})


def _with_seeds(document: Document, seeds: int) -> Document:
    stages = tuple({key: item for key, item in stage.items() if key != "seeds"} for stage in document.value["stages"])
    changed = replace(document, value={**document.value, "stages": stages})
    return _with_value(changed, ("seeds",), seeds, f"--seeds {seeds}")


def _completed(file: GridFile) -> tuple[Stage, ...]:
    """The stages with what they leave out filled in from those before them and from the base."""
    stages: list[Stage] = []
    for stage in file.stages:
        if stage.test is None:
            start = stage.start or (stages[-1].name if stages else BASE)
            keep = stage.keep or KeepBest(best=file.base.best.metric)
            stages.append(stage.model_copy(update={"start": start, "keep": keep}))
            continue
        test = stage.test
        if isinstance(test, TestBest):
            of = test.of or tuple(each.name for each in stages if each.test is None)
            test = test.model_copy(update={"by": test.by or file.base.best.metric, "of": of})
        stages.append(stage.model_copy(update={"test": test}))
    return tuple(stages)


# The canonical text


def _canonical(value: Mapping[str, Any]) -> dict[str, Any]:
    """The grid's value with keys in the models' order, without what equals a default."""
    out: dict[str, Any] = {}
    for key in ("grid", "description", "seeds", "max_failed", BASE):
        if key == BASE:
            out[key] = _ordered_base(value[BASE], "")
        elif key == "seeds":
            seeds = seed_list(value.get("seeds", 1))
            if seeds != (0,):
                out[key] = len(seeds) if seeds == tuple(range(len(seeds))) else seeds
        elif value.get(key) not in (None, ""):
            out[key] = value[key]
    out["stages"] = [_ordered_stage(stage) for stage in value["stages"]]
    return out


def _ordered_base(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    order = {key: position for position, key in enumerate(SPEC_KEYS)}
    keys = sorted(values, key=lambda key: (order.get(f"{prefix}{key}", len(order)), key))
    return {
        key: _ordered_base(values[key], f"{prefix}{key}.") if isinstance(values[key], Mapping) else values[key]
        for key in keys
    }


def _ordered_stage(values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, about in Stage.model_fields.items():
        key = about.alias or name
        if key in values and not same(values[key], about.default):
            out[key] = values[key]
    return out
