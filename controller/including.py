"""Grids made of grids: the stages of several, in one document that stands on its own. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.forms import Change, noted
from controller.rows import same
from controller.stages import BASE
from trainer.document import Document, Place, Problem, did_you_mean, spec_error
from trainer.document import Path as DocumentPath

INCLUDE = "include"


@dataclass(frozen=True)
class Part:
    """A grid that another includes: its document, complete, and which of its stages are wanted."""

    name: str  # of the grid, whatever its form
    document: Document
    own: frozenset[str]  # its stages that it did not itself include
    wanted: tuple[str, ...] | None  # of its stages; none: all
    change: Change | None  # what its form changes; none without one, and where it includes what the form changes
    place: DocumentPath  # of the inclusion


def composed(document: Document, parts: Sequence[Part]) -> Document:
    """One grid with the stages of all `parts`, each under `<grid>.<stage>`, then those of `document` itself.

    A stage that two parts bring, since both include its grid, stands once. What a part left to its base and to the
    stages around it is written out, so that each stage means what it meant.
    """
    base = parts[0].document.value[BASE]
    common_seeds = _common([part.document.value.get("seeds", 1) for part in parts])
    seeds = document.value.get("seeds", common_seeds)
    stages: list[dict[str, Any]] = []
    changes: dict[str, Change] = {}  # what the form changes in the stage of that name
    places: dict[DocumentPath, Place] = {place: where for place, where in document.places.items() if _is_head(place)}
    places |= {place: where for place, where in parts[0].document.places.items() if place[0:1] == (BASE,)}
    there: set[str] = set()
    for part in parts:
        for index, stage in _wanted(part, document):
            if stage["name"] in there:
                continue
            there.add(stage["name"])
            if part.change is not None:
                changes[stage["name"]] = part.change
            place: DocumentPath = ("stages", len(stages))
            places |= _moved(part.document, ("stages", index), place)
            own_base = stage.pop(BASE, None)
            if stage.get("from") == BASE:
                begins = own_base or part.document.value[BASE]
                if not same(begins, base):
                    stage[BASE] = begins
                    if own_base is None:
                        places |= _moved(part.document, (BASE,), (*place, BASE))
            if "seeds" in document.value:
                stage.pop("seeds", None)
            elif common_seeds is None and "test" not in stage:
                stage.setdefault("seeds", part.document.value.get("seeds", 1))
            stages.append(stage)
    for index, stage in enumerate(document.value.get("stages", ())):
        places |= _moved(document, ("stages", index), ("stages", len(stages)))
        stages.append(_own(stage, changes))
    value = {
        key: document.value[key] for key in ("grid", "description", "max_failed", "deadline") if key in document.value
    }
    value |= {} if seeds is None else {"seeds": seeds}
    return Document(document.source, {**value, BASE: base, "stages": tuple(stages)}, places)


def _own(stage: Mapping[str, Any], changes: Mapping[str, Change]) -> dict[str, Any]:
    """A stage of the including grid itself, in the form of the stages whose rows it names or starts from."""
    if stage.get("test") is None:
        change = changes.get(str(stage.get("from")))
        return dict(stage) if change is None else change.stage(stage)
    changed = dict(stage)
    these = stage["test"].get("these", ())
    labels = {row["name"]: row["stage"] for row in these if row.get("name")}
    if these:
        rows = tuple(changes[row["stage"]].naming(row) if row["stage"] in changes else row for row in these)
        changed["test"] = {**stage["test"], "these": rows}
    if stage.get("published"):
        named: list[Mapping[str, Any]] = []
        for row in stage["published"]["rows"]:
            change = changes.get(str(row.get("stage") or labels.get(row["this"].get("name"))))
            named.append(row if change is None else change.naming(row))
        published = {**stage["published"], "rows": tuple(named)}
        changed["published"] = published
        if changes:
            keys = [key for change in changes.values() for key in change.keys]
            changed["published"] = noted(published, next(iter(changes.values())).note, keys)
    return changed


def _is_head(place: DocumentPath) -> bool:
    return place[0:1] not in (("stages",), (BASE,))


def _moved(document: Document, before: DocumentPath, after: DocumentPath) -> dict[DocumentPath, Place]:
    length = len(before)
    return {
        (*after, *place[length:]): where for place, where in document.places.items() if place[:length] == before
    } | {after: document.place(before)}


def _common(values: Sequence[Any]) -> Any:
    return values[0] if all(same(value, values[0]) for value in values) else None


def _wanted(part: Part, document: Document) -> Iterator[tuple[int, dict[str, Any]]]:
    """The wanted stages of the part with what they rest on, under their names in the whole; and where each stands."""
    complete = list(_complete(part.document.value["stages"]))
    names = [stage["name"] for stage in complete]
    chosen = set(names if part.wanted is None else part.wanted)
    if unknown := sorted(chosen.difference(names)):
        told = f"got {unknown[0]!r}, expected stages of grid {part.name}: {', '.join(names)}"
        index = (part.wanted or ()).index(unknown[0])
        problem = Problem((*part.place, "stages", index), told, did_you_mean(unknown[0], names))
        raise spec_error([problem], document)
    for stage in reversed(complete):
        if stage["name"] in chosen:
            chosen |= _rests_on(stage)
    prefixed = {name: f"{part.name}.{name}" if name in part.own else name for name in names}
    for index, stage in enumerate(complete):
        if stage["name"] in chosen:
            yield index, _renamed(stage, prefixed)


def _complete(stages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The stages with `from` and `of` written out, which what stands around them says else."""
    trained: list[str] = []
    for stage in stages:
        if stage.get("test") is None:
            start = stage.get("from") or (BASE if stage.get(BASE) or not trained else trained[-1])
            yield {**stage, "from": start}
            trained.append(stage["name"])
        elif "these" in stage["test"]:
            yield dict(stage)
        else:
            yield {**stage, "test": {**stage["test"], "of": stage["test"].get("of") or tuple(trained)}}


def _rests_on(stage: Mapping[str, Any]) -> set[str]:
    test = stage.get("test")
    if test is None:
        return {stage["from"]} - {BASE}
    return set(test.get("of", ())) | {row["stage"] for row in test.get("these", ())}


def _renamed(stage: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    changed = {**stage, "name": names[stage["name"]]}
    if "from" in stage:
        changed["from"] = names.get(stage["from"], stage["from"])
    if test := stage.get("test"):
        changed["test"] = dict(test)
        if "of" in test:
            changed["test"]["of"] = tuple(names[name] for name in test["of"])
        if "these" in test:
            changed["test"]["these"] = _rows_renamed(test["these"], names)
    if published := stage.get("published"):
        changed["published"] = {**published, "rows": _rows_renamed(published["rows"], names)}
    return changed


def _rows_renamed(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    return tuple({**row, "stage": names[row["stage"]]} if row.get("stage") else dict(row) for row in rows)
