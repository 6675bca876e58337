"""A grid as read: from its file, with what the command line changes, and written in one canonical form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from controller.checks import figure_problems, problems_in, problems_in_forms
from controller.forms import FORMS, change_of, in_form, noted
from controller.including import INCLUDE, Part, composed
from controller.rows import Candidate, assign, candidates, same
from controller.stages import (
    BASE,
    SPEC_KEYS,
    GridFile,
    IncludingFile,
    Inclusion,
    KeepBest,
    Stage,
    TestBest,
    read_moment,
    seed_list,
)
from trainer.document import (
    Document,
    Place,
    Problem,
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
from trainer.spec import ExperimentSpec, NoIdentity

EXTENSION = "x-"  # top-level keys that begin so are read for their anchors and mean nothing
OWN_KEYS = ("seeds", "max_failed", "deadline", "keep")  # what `--set` takes beside the keys of the base


@dataclass(frozen=True, eq=False)  # each is itself: what was built of it is found by it
class Grid:
    """A grid as read, with what the command line set. `stages` have `from`, `keep`, `seeds` and `test` filled in."""

    document: Document
    base: Mapping[str, Any]  # as written: what is a default is not in it
    description: str
    name: str
    seeds: tuple[int, ...]
    max_failed: int | None
    deadline: datetime | None
    stages: tuple[Stage, ...]
    rows: Mapping[str, tuple[Candidate, ...]]  # of each stage that trains, by its name
    bases: Mapping[str, Mapping[str, Any]]  # of each stage that has one of its own, as written

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

    def base_of(self, stage: Stage) -> Mapping[str, Any]:
        """The values, as written, that the stage starts from where it starts from no other stage."""
        return self.bases.get(stage.name, self.base)

    def base_path(self, stage: Stage) -> DocumentPath:
        """Where those stand in the document."""
        return (*self.path(stage), BASE) if stage.name in self.bases else (BASE,)

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


def shipped_forms(name: str) -> tuple[str, ...]:
    """Names of the forms that the shipped grid of that name has: `<name>.<form>` is a grid as well."""
    value = read_document(_shipped_text(name), f"{name}.yaml").value
    if INCLUDE not in value:
        return tuple(value.get(FORMS, ()))
    parts = [item if isinstance(item, str) else item["grid"] for item in value[INCLUDE]]
    forms = [shipped_forms(part) for part in parts]
    return tuple(form for form in forms[0] if all(form in each for each in forms))


def is_shipped(name: str) -> bool:
    """Whether that is the name of a shipped grid, or of one in one of its forms."""
    shipped = _shipped_names()
    grid, _, form = name.rpartition(".")
    return name in shipped or (grid in shipped and form in shipped_forms(grid))


def read_grid(name_or_path: str | Path, sets: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """The grid of that shipped name or path, changed by `sets` (`key=value` each) and trained with `seeds` seeds.

    `<name>.<form>` is the grid in that form, and so is `<folder>/<name>.<form>.yaml` where no such file is.
    A value that is set goes to the base, and to those of single stages, but for the grid's own keys: `seeds`,
    `max_failed`, `deadline`, and `keep=best`, which puts the rule in the place of every pinned choice but of tests that
    give their rows names. `seeds` goes over the seeds of single stages too. Raises SpecError.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    shipped = _shipped_names()
    if not isinstance(name_or_path, Path):
        head, _, form = name.rpartition(".")
        if name in shipped:
            return parse_grid(_shipped_text(name), _shipped_source(name), sets, seeds)
        if head in shipped and form not in YAML:
            return parse_grid(_shipped_text(head), _shipped_source(head), sets, seeds, form=form)
    text = read_file(path, name)
    if text is not None:
        return parse_grid(text, name, sets, seeds, folder=path.parent)
    is_yaml = path.suffix.removeprefix(".") in YAML
    head, _, form = path.stem.rpartition(".")
    if is_yaml and head:
        whole = path.with_name(f"{head}{path.suffix}")
        text = read_file(whole, str(whole))
        if text is not None:
            return parse_grid(text, str(whole), sets, seeds, form=form, folder=path.parent)
    if isinstance(name_or_path, Path) or is_yaml or "/" in name:
        raise SpecError(f"{name}: {absence(path)}", hint="`grid list` shows the grids that need no file")
    hint = did_you_mean(name, shipped) or "`grid list` shows them; a path to a file is a grid too"
    raise SpecError(
        f"grid: got {show_value(name)}, expected one of {', '.join(shipped)}, one of the store's, or a file",
        hint=hint,
    )


def parse_grid(
    text: str,
    source: str,
    sets: Sequence[str] = (),
    seeds: int | None = None,
    *,
    form: str | None = None,
    folder: Path | None = None,
) -> Grid:
    """The grid that `text` holds, in that form, as `read_grid` reads it; `source` names it in errors.

    What it includes by a path is looked for in `folder`; without one only shipped grids can be included.
    """
    document = _whole(text, source, form, folder, (), {}).document
    validate(GridFile, document)
    for assignment in sets:
        document = _with_set(document, assignment)
    if seeds is not None:
        document = _with_seeds(document, seeds)
    file = _checked(document)
    stages = _completed(file)
    rows = {
        stage.name: candidates(stage, ("stages", index), document)
        for index, stage in enumerate(stages)
        if stage.test is None
    }
    if problems := list(figure_problems(stages, rows)):
        raise spec_error(problems, document)
    return Grid(
        document=document,
        base=document.value["base"],
        description=file.description,
        name=file.grid,
        seeds=seed_list(file.seeds),
        max_failed=file.max_failed,
        deadline=None if file.deadline is None else read_moment(file.deadline),
        stages=stages,
        rows=rows,
        bases={stage["name"]: stage[BASE] for stage in document.value["stages"] if stage.get(BASE) is not None},
    )


def _checked(document: Document) -> GridFile:
    file = validate(GridFile, document)
    if problems := list(problems_in(file)):
        raise spec_error(problems, document)
    return file


def _whole(
    text: str,
    source: str,
    form: str | None,
    folder: Path | None,
    within: tuple[str, ...],
    sources: dict[str, str],
) -> Part:
    """The grid that `text` holds, in that form, with all that it includes in one document.

    `within` are the sources of the grids that include it; `sources` has that of each grid met so far, by its name.
    """
    document = _without_extensions(read_document(text, source))
    if not isinstance(document.value, dict) or INCLUDE not in document.value:
        file = validate(GridFile, document)
        if problems := list(problems_in_forms(file)):
            raise spec_error(problems, document)
        own = frozenset(stage.name for stage in file.stages)
        return Part(file.grid, in_form(document, form), own, None, change_of(document, form), ())
    including = validate(IncludingFile, document)
    parts: list[Part] = []
    for index, item in enumerate(including.include):
        place: DocumentPath = (INCLUDE, index)
        wanted = item.grid if isinstance(item, Inclusion) else item
        part_text, part_source, part_folder = _included(wanted, folder, place, document)
        if part_source in (*within, source):
            raise spec_error([Problem(place, f"got {wanted!r}, which includes this grid")], document)
        part = _whole(part_text, part_source, form, part_folder, (*within, source), sources)
        if sources.setdefault(part.name, part_source) != part_source:
            told = f"got a second grid named {part.name!r}, expected names of their own: the other is"
            raise spec_error([Problem(place, f"{told} {sources[part.name]}")], document)
        _checked(part.document)
        stages = item.stages if isinstance(item, Inclusion) else None
        parts.append(replace(part, wanted=stages, place=place))
    own = frozenset(stage.name for stage in including.stages)
    flat = composed(document, parts)
    if form is not None:
        named = {"grid": f"{including.grid}.{form}", "description": f"{including.description}: {form}"}
        flat = replace(flat, value={**flat.value, **named})
    return Part(including.grid, flat, own, None, None, ())


def _included(name: str, folder: Path | None, place: DocumentPath, document: Document) -> tuple[str, str, Path | None]:
    """Text, source and folder of a grid that another includes."""
    if name in _shipped_names():
        return _shipped_text(name), _shipped_source(name), None
    path = None if folder is None else folder / name
    text = None if path is None else read_file(path, str(path))
    if path is None or text is None:
        expected = f"expected one of {', '.join(_shipped_names())}, or a file beside this one"
        problem = Problem(place, f"got {show_value(name)}, {expected}", did_you_mean(name, _shipped_names()))
        raise spec_error([problem], document)
    return text, str(path), path.parent


def _without_extensions(document: Document) -> Document:
    """The document without the keys that are there to hold anchors, as compose files have them: `x-…`."""
    if not isinstance(document.value, dict):
        return document
    return document.without(key for key in document.value if key.startswith(EXTENSION))


def _shipped_names() -> list[str]:
    folder = files("controller") / "grids"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


YAML = ("yaml", "yml")


def _shipped_source(name: str) -> str:
    return f"grids/{name}.yaml"


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
        return _with_value(document, key, value, source)
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
    changed = _with_base(document, tuple(key.split(".")), value, source)
    return changed if _is_same_training(document, changed, key) else _with_noted_figures(changed, source, key)


def _is_same_training(document: Document, changed: Document, key: str) -> bool:
    """Whether what is set at `key` was so before, or can change no number."""
    if any(isinstance(mark, NoIdentity) for mark in ExperimentSpec.model_fields[key.partition(".")[0]].metadata):
        return True
    before, after = ([part.get(BASE) for part in (each.value, *each.value["stages"])] for each in (document, changed))
    return same(before, after)


def _with_noted_figures(document: Document, source: str, key: str) -> Document:
    """The document with a note at its published figures: not published for what `source` sets at `key`."""
    stages = tuple(
        {**stage, "published": noted(stage["published"], f"figures of the grid without {source}", [key])}
        if isinstance(stage.get("published"), Mapping)
        else stage
        for stage in document.value["stages"]
    )
    return replace(document, value={**document.value, "stages": stages})


def _with_base(document: Document, path: tuple[str, ...], value: Any, source: str) -> Document:
    """The document with the value at `path` of its base, and of each base that a stage has of its own."""
    changed = _placed(document, (BASE, *path), source)
    stages = list(document.value["stages"])
    for index, stage in enumerate(stages):
        if stage.get(BASE) is not None:
            stages[index] = {**stage, BASE: assign(stage[BASE], path, value)}
            changed = _placed(changed, ("stages", index, BASE, *path), source)
    base = assign(document.value[BASE], path, value)
    return replace(changed, value={**document.value, BASE: base, "stages": tuple(stages)})


def _with_value(document: Document, key: str, value: Any, source: str) -> Document:
    return replace(_placed(document, (key,), source), value={**document.value, key: value})


def _placed(document: Document, path: DocumentPath, source: str) -> Document:
    """The document with what is at `path` as coming from `source`."""
    kept = {place: where for place, where in document.places.items() if place[: len(path)] != path}
    return replace(document, places={**kept, path: Place(source, None)})


def _with_rule(document: Document, value: Any) -> Document:
    if value != "best":
        raise SpecError(f"--set keep={value}: got {value!r}, expected best", hint="other choices belong in a grid file")
    stages: list[dict[str, Any]] = []
    roots: dict[str, str] = {}  # of each stage that trains, the one that it grows from
    for stage in document.value["stages"]:
        changed = dict(stage)
        test = changed.get("test")
        if test is None:
            before = None if stage.get(BASE) is not None else next(reversed(roots), None)
            start = str(stage.get("from") or before or BASE)
            roots[stage["name"]] = roots.get(start, stage["name"])
        if isinstance(changed.get("keep"), dict) and "this" in changed["keep"]:
            del changed["keep"]
        if isinstance(test, dict) and "these" in test and not any(row.get("name") for row in test["these"]):
            grown = {roots.get(row["stage"]) for row in test["these"]}
            of = tuple(name for name, root in roots.items() if root in grown)
            changed["test"] = {"best": len(test["these"]), "of": of}
        stages.append(changed)
    return replace(document, value={**document.value, "stages": tuple(stages)})


def _with_seeds(document: Document, seeds: int) -> Document:
    stages = tuple({key: item for key, item in stage.items() if key != "seeds"} for stage in document.value["stages"])
    changed = replace(document, value={**document.value, "stages": stages})
    return _with_value(changed, "seeds", seeds, f"--seeds {seeds}")


def _completed(file: GridFile) -> tuple[Stage, ...]:
    """The stages with what they leave out filled in from those before them and from the base."""
    stages: list[Stage] = []
    metrics = {BASE: file.base.best.metric}  # by the stage: that of the base which it grew from
    for stage in file.stages:
        if stage.test is None:
            before = BASE if stage.base else next((each.name for each in reversed(stages)), BASE)
            start = stage.start or before
            metrics[stage.name] = stage.base.best.metric if stage.base else metrics[start]
            keep = stage.keep or KeepBest(best=metrics[stage.name])
            stages.append(stage.model_copy(update={"start": start, "keep": keep}))
            continue
        test = stage.test
        if isinstance(test, TestBest):
            of = test.of or tuple(each.name for each in stages if each.test is None)
            test = test.model_copy(update={"by": test.by or metrics[of[0]], "of": of})
        stages.append(stage.model_copy(update={"test": test}))
    return tuple(stages)


# The canonical text


def _canonical(value: Mapping[str, Any]) -> dict[str, Any]:
    """The grid's value with keys in the models' order, without what equals a default."""
    out: dict[str, Any] = {}
    for key in ("grid", "description", "seeds", "max_failed", "deadline", BASE):
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
            out[key] = _ordered_base(values[key], "") if key == BASE else values[key]
    return out
