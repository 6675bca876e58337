"""What is wrong with a grid file that no model can see by itself: names, keys and values that do not fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controller.rows import Candidate, matches, meaning, varied_keys
from controller.stages import BASE, SPEC_KEYS, GridFile, KeepThis, Published, PublishedRow, Stage, TestBest, TestThese
from trainer.document import Path as DocumentPath
from trainer.document import Problem, did_you_mean, nearest, show_value, takes_any_key, unknown_key_hint
from trainer.spec import ExperimentSpec, below_weights

WEIGHTS = "model.weights"
NAME_LIMIT = 120  # characters in the name of a row: it is the first column of every table


def problems_in(file: GridFile) -> Iterator[Problem]:
    """Each of them, at its place in the document."""
    if not isinstance(file.seeds, int):
        yield from _repeated_seeds(file.seeds, ("seeds",))
    earlier: dict[str, Stage] = {}
    for index, stage in enumerate(file.stages):
        path: DocumentPath = ("stages", index)
        if stage.name in earlier:
            yield Problem((*path, "name"), f"got {stage.name!r} a second time, expected a name of its own")
        if stage.name == BASE:
            yield Problem((*path, "name"), f"got {BASE!r}, expected another name: `from: {BASE}` means the grid's base")
        if stage.seeds is not None and not isinstance(stage.seeds, int):
            yield from _repeated_seeds(stage.seeds, (*path, "seeds"))
        yield from _start_problems(stage, path, earlier)
        yield from _test_problems(stage, path, earlier) if stage.test else _row_problems(stage, path)
        earlier.setdefault(stage.name, stage)


def problems_in_forms(file: GridFile) -> Iterator[Problem]:
    """What is wrong with the grid's forms, each at its place: the rest shows once the grid is in that form."""
    for name, form in file.forms.items():
        path: DocumentPath = ("forms", name)
        for key in form.fixed:
            yield from _key_problems(key, (*path, "set", key))
        for key in form.mapped:
            yield from _key_problems(key, (*path, "map", key))
        if form.seeds is not None and not isinstance(form.seeds, int):
            yield from _repeated_seeds(form.seeds, (*path, "seeds"))


def figure_problems(stages: Sequence[Stage], rows: Mapping[str, Sequence[Candidate]]) -> Iterator[Problem]:
    """What is wrong with the published figures: those of no row, those that there cannot be, each at its place.

    `rows` has those of each stage that trains.
    """
    for index, stage in enumerate(stages):
        if stage.published is not None:
            path: DocumentPath = ("stages", index, "published")
            yield from _at_problems(stage.published.at, (*path, "at"))
            yield from _published_problems(stage, stage.published, rows, (*path, "rows"))


def _published_problems(
    stage: Stage, published: Published, rows: Mapping[str, Sequence[Candidate]], path: DocumentPath
) -> Iterator[Problem]:
    seen: set[Any] = set()
    for index, row in enumerate(published.rows):
        here = (*path, index)
        yield from _at_problems(row.at, (*here, "at"))
        for metric, value in row.numbers.items():
            place = (*here, "numbers", metric)
            if metric.startswith("test_") and stage.test is None:
                yield Problem(place, "stands in a stage that trains, expected in a test stage", "move it to one")
            if metric.endswith("_accuracy") and not 0 <= value <= 1:
                yield Problem(place, f"got {show_value(value)}, expected a number from 0 to 1", "82 % is 0.82")
        names = _named_rows(stage, row, rows)
        if len(names) != 1:
            fitting = f"{len(names)} rows fit" if names else "no row fits"
            known = ", ".join(each.name for each in rows.get(row.stage or stage.name, ())[:10])
            where = f"stage {row.stage or stage.name!r}"
            expected = f"expected one of {where}: {known}" if known else f"expected a row of {where}"
            yield Problem((*here, "this"), f"got {show_value(dict(row.this))}: {fitting}, {expected}")
        elif (row.stage, names[0]) in seen:
            yield Problem((*here, "this"), f"got {names[0]!r} a second time, expected each row once")
        seen.update((row.stage, name) for name in names)


def _named_rows(stage: Stage, row: PublishedRow, rows: Mapping[str, Sequence[Candidate]]) -> list[str]:
    """The rows that published figures may be of: one, where nothing is wrong."""
    if stage.test is None:
        return [] if row.stage is not None else [each.name for each in rows[stage.name] if _is_row(each, row)]
    if row.stage is not None:
        return [each.name for each in rows.get(row.stage, ()) if _is_row(each, row)]
    these = stage.test.these if isinstance(stage.test, TestThese) else ()
    return [each.name for each in these if each.name is not None and row.this == {"name": each.name}]


def _is_row(candidate: Candidate, row: PublishedRow) -> bool:
    return matches(candidate.values, row.this, candidate.name)


def _at_problems(at: Mapping[str, Any], path: DocumentPath) -> Iterator[Problem]:
    for key in at:
        yield from _key_problems(key, (*path, key))
        if any(other.startswith(f"{key}.") for other in SPEC_KEYS):
            yield Problem((*path, key), "names a whole part, expected single values", f"such as {key}.…")


def _repeated_seeds(seeds: Sequence[int], path: DocumentPath) -> Iterator[Problem]:
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            yield Problem(
                (*path, index),
                f"got {seed} a second time, expected each seed once",
                "equal seeds give the same run: leave this one out, or take another",
            )


def _start_problems(stage: Stage, path: DocumentPath, earlier: Mapping[str, Stage]) -> Iterator[Problem]:
    if stage.test is not None:
        return
    starts = [name for name, each in earlier.items() if each.test is None]
    if stage.base is not None:
        if stage.start not in (None, BASE):
            yield Problem(
                (*path, "from"),
                f"got {stage.start!r}, though the stage has a base of its own",
                f"remove `from`, or {BASE!r}",
            )
    elif stage.start is None:
        if earlier and list(earlier.values())[-1].test is not None:
            yield Problem(
                (*path, "name"),
                f"stage {stage.name!r} comes after a test stage, which keeps nothing to start from",
                f"add `from:` with one of {', '.join([*starts, BASE])}",
            )
    elif stage.start not in (*starts, BASE):
        near = nearest(stage.start, [*starts, BASE])
        yield Problem(
            (*path, "from"),
            f"got {stage.start!r}, expected {BASE} or an earlier stage that trains"
            + (f": {', '.join(starts)}" if starts else ""),
            f"did you mean {near!r}?" if near else None,
        )


def _test_problems(stage: Stage, path: DocumentPath, earlier: Mapping[str, Stage]) -> Iterator[Problem]:
    for name, key in (("start", "from"), ("base", "base"), ("fixed", "set"), ("vary", "vary"), ("zipped", "zip"),
                      ("points", "points"), ("exclude", "exclude"), ("keep", "keep"), ("seeds", "seeds")):  # fmt: skip
        if name in stage.model_fields_set:
            yield Problem((*path, key), "not in a test stage, whose rows are earlier ones", f"remove {key!r} or 'test'")
    trained = {name: each for name, each in earlier.items() if each.test is None}
    test = stage.test
    if not trained:
        yield Problem((*path, "test"), "got no stage before it, expected one that trains")
        return
    if isinstance(test, TestBest):
        named = [((*path, "test", "of", index), name) for index, name in enumerate(test.of or ())]
    else:
        assert test is not None
        named = [((*path, "test", "these", index, "stage"), row.stage) for index, row in enumerate(test.these)]
    labels = [row.name for row in test.these if row.name is not None] if isinstance(test, TestThese) else []
    for index, row in enumerate(test.these if isinstance(test, TestThese) else ()):
        if row.name is not None:
            yield from _name_problems(row.name, labels.count(row.name), (*path, "test", "these", index, "name"))
    for place, name in named:
        if name not in trained:
            yield Problem(
                place,
                f"got {name!r}, expected an earlier stage that trains: {', '.join(trained)}",
                did_you_mean(name, list(trained)),
            )
        elif isinstance(test, TestThese):
            index = int(place[4])
            yield from _choice_problems(test.these[index].this, trained[name], (*place[:-1], "this"))


def _row_problems(stage: Stage, path: DocumentPath) -> Iterator[Problem]:
    holders: dict[str, str] = {}
    for part, keys in (("vary", stage.vary), ("zip", stage.zipped)):
        for key, values in keys.items():
            here = (*path, part, key)
            yield from _key_problems(key, here)
            for index, value in enumerate(values):
                yield from _weights_problems(key, value, (*here, index))
            if key in holders:
                yield Problem(here, f"stands in {holders[key]} too, expected in one of them")
            holders[key] = part
            if part == "vary":
                yield from _repeated_values(values, here)
    lengths = {key: len(values) for key, values in stage.zipped.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        yield Problem((*path, "zip"), f"got lists of different lengths: {told}; expected one length")
    names = Counter(str(point["name"]) for point in stage.points if "name" in point)
    for index, point in enumerate(stage.points):
        for key, value in point.items():
            here = (*path, "points", index, key)
            if key == "name":
                yield from _name_problems(value, names[str(value)], here)
                continue
            yield from _key_problems(key, here)
            yield from _weights_problems(key, value, here)
            if key in holders:
                yield Problem(here, f"stands in {holders[key]} too, expected in one of them")
    varied = varied_keys(stage)
    for key, value in stage.fixed.items():
        here = (*path, "set", key)
        yield from _key_problems(key, here)
        yield from _weights_problems(key, value, here)
        if key in varied:
            yield Problem(here, "is set here and varied in the same stage", "remove one of the two")
    for index, excluded in enumerate(stage.exclude):
        for key in excluded:
            if key not in varied and not any(key.startswith(f"{each}.") for each in varied):
                yield Problem(
                    (*path, "exclude", index, key),
                    f"got {key!r}, expected a key that this stage varies: {', '.join(varied) or 'none'}",
                    did_you_mean(key, varied),
                )
    if isinstance(stage.keep, KeepThis):
        yield from _choice_problems(stage.keep.this, stage, (*path, "keep", "this"))


def _name_problems(value: Any, times: int, path: DocumentPath) -> Iterator[Problem]:
    """What is wrong with the name that a row is given, which stands there so many times."""
    if not isinstance(value, str) or not value.strip():
        yield Problem(path, f"got {show_value(value)}, expected text", "put it in quotes")
    elif not value.isprintable() or value != value.strip() or len(value) > NAME_LIMIT:
        wanted = f"one line of at most {NAME_LIMIT} printable characters, without space around it"
        yield Problem(path, f"got {show_value(value)}, expected {wanted}")
    elif times > 1:
        yield Problem(path, f"got {value!r} {times} times, expected a name of its own")


def _key_problems(key: str, path: DocumentPath) -> Iterator[Problem]:
    known = SPEC_KEYS
    if key in known or takes_any_key(ExperimentSpec, key):
        return
    parts = key.split(".")
    while len(parts) > 1 and ".".join(parts[:-1]) not in known:
        parts.pop()
    ends = [other for other in known if other.rpartition(".")[2] == key]
    hint = f"did you mean {ends[0]!r}?" if ends else unknown_key_hint(ExperimentSpec, tuple(parts), None)
    yield Problem(path, f"unknown key; got {parts[-1]!r}", hint)


def _weights_problems(key: str, value: Any, path: DocumentPath) -> Iterator[Problem]:
    """What is wrong with a name of weights: they are looked for before rows are checked."""
    if key == "model" and isinstance(value, Mapping) and "weights" in value:
        key, value, path = WEIGHTS, value["weights"], (*path, "weights")
    if key == WEIGHTS and isinstance(value, str):
        try:
            below_weights(value)
        except ValueError as error:
            yield Problem(path, f"got {show_value(value)}, {error}")


def _repeated_values(values: Sequence[Any], path: DocumentPath) -> Iterator[Problem]:
    seen: set[Any] = set()
    for index, value in enumerate(values):
        key = meaning(value)
        if key in seen:
            yield Problem((*path, index), f"got {show_value(value)} a second time, expected each value once")
        seen.add(key)


def _choice_problems(this: Mapping[str, Any], stage: Stage, path: DocumentPath) -> Iterator[Problem]:
    varied = varied_keys(stage)
    for key in this:
        if key != "name" and key not in varied and not any(key.startswith(f"{each}.") for each in varied):
            known = [*varied, "name"]
            yield Problem(
                (*path, key),
                f"got {key!r}, expected a key that stage {stage.name!r} varies, or name: {', '.join(known)}",
                did_you_mean(key, known),
            )
