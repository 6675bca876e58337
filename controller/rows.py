"""The rows of one stage: their values, and the names that tell them apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.stages import Stage
from trainer.document import Document, Problem, show_value, spec_error
from trainer.document import Path as DocumentPath
from trainer.spec import AUGMENTATIONS, NORMALIZATIONS

PRESETS: dict[DocumentPath, Mapping[str, Mapping[str, Any]]] = {
    ("augmentation",): AUGMENTATIONS,
    ("data", "normalize"): NORMALIZATIONS,
}


@dataclass(frozen=True)
class Candidate:
    """One row of a stage before it is known what it starts from."""

    name: str
    values: Mapping[str, Any]  # what the stage varies, by dotted key
    origins: tuple[DocumentPath, ...]  # where in the grid file each of the values stands


def candidates(stage: Stage, path: DocumentPath, document: Document) -> tuple[Candidate, ...]:
    """The rows of the stage at `path`: points, zip and vary make their product, the last key going round fastest.

    Raises SpecError when two rows have one name, nothing is left, or an exclusion fits no row.
    """
    labels = _labels(varied_keys(stage))
    rows: list[tuple[tuple[str, ...], dict[str, Any], tuple[DocumentPath, ...]]] = [((), {}, ())]
    for group in _groups(stage, path):
        written = [(_group_name(values, labels), values, places) for values, places in group]
        rows = [
            ((*words, name), {**before, **{k: v for k, v in values.items() if k != "name"}}, (*origins, *places))
            for words, before, origins in rows
            for name, values, places in written
        ]
    problems = []
    for index, wanted in enumerate(stage.exclude):
        left = [row for row in rows if not matches(row[1], wanted)]
        if len(left) == len(rows):
            problems.append(Problem((*path, "exclude", index), f"got {show_value(wanted)}, which fits no row"))
        rows = left
    if not rows:
        problems.append(Problem((*path, "exclude"), "excludes every row, expected at least one to stay"))
    default = " ".join(_group_name({key: value}, _labels(list(stage.fixed))) for key, value in stage.fixed.items())
    found = [Candidate(" ".join(filter(None, words)) or default or "default", values, at) for words, values, at in rows]
    names: dict[str, Candidate] = {}
    for row in found:
        if row.name in names:
            place = row.origins[0] if row.origins else path
            problems.append(
                Problem(place, f"two rows are named {row.name!r}", "give points a `name`, or remove one of the two")
            )
        names[row.name] = row
    if problems:
        raise spec_error(problems, document)
    return tuple(found)


def _groups(stage: Stage, path: DocumentPath) -> Iterator[list[tuple[dict[str, Any], tuple[DocumentPath, ...]]]]:
    if stage.points:
        yield [
            (point, tuple((*path, "points", index, key) for key in point if key != "name"))
            for index, point in enumerate(stage.points)
        ]
    if stage.zipped:
        keys = list(stage.zipped)
        yield [
            (dict(zip(keys, values, strict=True)), tuple((*path, "zip", key, index) for key in keys))
            for index, values in enumerate(zip(*stage.zipped.values(), strict=True))
        ]
    for key, values in stage.vary.items():
        yield [({key: value}, ((*path, "vary", key, index),)) for index, value in enumerate(values)]


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """The shortest end of each key that no other key shares; `optimizer.name` is `optimizer`."""
    paths = {key: key.split(".")[:-1] if key.endswith(".name") else key.split(".") for key in keys}
    labels = {}
    for key, parts in paths.items():
        others = [other for name, other in paths.items() if name != key]
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
            length += 1
        unique = all(other != parts for other in others)
        labels[key] = ".".join(parts[-length:]) if unique else key
    return labels


def _group_name(values: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    if "name" in values:
        return str(values["name"])
    return " ".join(f"{labels[key]}={_word(value)}" for key, value in values.items())


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else _flow(value)
    if len(text) <= 60:
        return text
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return f"{text[:50]}…{digest[:4]}"


def _flow(value: Any) -> str:
    """`value` in full on one line; names must not hang on what an error message finds short enough."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return value if isinstance(value, str) else show_value(value)


def varied_keys(stage: Stage) -> list[str]:
    """The dotted keys that the stage's rows differ in."""
    points = (key for point in stage.points for key in point if key != "name")
    return list(dict.fromkeys([*points, *stage.zipped, *stage.vary]))


def assign(values: Mapping[str, Any], path: Sequence[str], value: Any, outer: DocumentPath = ()) -> dict[str, Any]:
    """A copy of `values` in which `value` stands at `path`; a named pipeline on the way there is written out."""
    head, rest = path[0], path[1:]
    if not rest:
        return {**values, head: value}
    here = (*outer, head)
    inner = values.get(head)
    if isinstance(inner, str):
        inner = PRESETS.get(here, {}).get(inner, {})
    return {**values, head: assign(inner if isinstance(inner, Mapping) else {}, rest, value, here)}


def same(one: Any, other: Any) -> bool:
    """Whether two values of a grid mean the same: 1 and 1.0 do, 1 and true do not."""
    return bool(meaning(one) == meaning(other))


def matches(values: Mapping[str, Any], wanted: Mapping[str, Any], name: str | None = None) -> bool:
    """Whether a row that has `values` by dotted key, and `name`, has all that is `wanted`."""
    for key, value in wanted.items():
        if key == "name":
            if name != value:
                return False
        elif not same(_look_up(values, key), value):
            return False
    return True


MISSING = object()


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    """The value of a row at dotted `key`, also inside a whole object that the row has."""
    if key in values:
        return values[key]
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        inner: Any = values.get(".".join(parts[:length]), MISSING)
        if inner is MISSING:
            continue
        for part in parts[length:]:
            inner = inner.get(part, MISSING) if isinstance(inner, Mapping) else MISSING
        return inner
    return MISSING


def meaning(value: Any) -> Any:
    """Something hashable that equal meanings share."""
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, meaning(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(meaning, value)))
    return (type(value) is bool, value)
