"""What differs between two grids, told in lines: what an update would change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controller.grid import Grid
from controller.rows import MISSING, same
from controller.stages import Keep, KeepBest, KeepThis, Stage, Test, TestBest, TestThese
from trainer.document import show_value
from trainer.spec import Frozen


def describe_changes(old: Grid, new: Grid) -> list[str]:
    """What differs between two grids, a line each; nothing when both come to the same."""
    before, after = dict(_flat(old.base)), dict(_flat(new.base))
    lines = [
        f"base.{key}: {_shown(before, key)} becomes {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if not same(before.get(key, MISSING), after.get(key, MISSING))
    ]
    if old.name != new.name:
        lines.append(f"grid: {old.name} becomes {new.name}")
    if old.seeds != new.seeds:
        lines.append(f"seeds: {_listed(old.seeds)} becomes {_listed(new.seeds)}")
    if old.max_failed != new.max_failed:
        lines.append(f"max_failed: {show_value(old.max_failed)} becomes {show_value(new.max_failed)}")
    if old.deadline != new.deadline:
        was, now = ("null" if each is None else each.isoformat() for each in (old.deadline, new.deadline))
        lines.append(f"deadline: {was} becomes {now}")
    earlier = {stage.name: stage for stage in old.stages}
    later = {stage.name: stage for stage in new.stages}
    lines += [f"stage {name}: removed" for name in earlier if name not in later]
    for name, stage in later.items():
        if name not in earlier:
            lines.append(f"stage {name}: added")
        else:
            lines += [f"stage {name}: {line}" for line in _stage_changes(old, earlier[name], new, stage)]
    common = [name for name in earlier if name in later]
    if common != [name for name in later if name in earlier]:
        lines.append("stages: in another order")
    return lines


def _stage_changes(old: Grid, before: Stage, new: Grid, after: Stage) -> Iterator[str]:
    for key, was, now in (
        ("from", before.start, after.start),
        ("seeds", old.stage_seeds(before), new.stage_seeds(after)),
        ("on_failed", before.on_failed, after.on_failed),
    ):
        if not same(was, now) and not (key == "seeds" and before.seeds is None and after.seeds is None):
            yield f"{key}: {show_value(was)} becomes {show_value(now)}"
    yield from _leaf_changes("base", old.bases.get(before.name, {}), new.bases.get(after.name, {}))
    yield from _leaf_changes("set", before.fixed, after.fixed)
    yield from _rule_changes("keep", before.keep, after.keep)
    yield from _rule_changes("test", before.test, after.test)
    if before.test is not None or after.test is not None:
        return
    was_rows = {row.name: row.values for row in old.candidates(before)}
    now_rows = {row.name: row.values for row in new.candidates(after)}
    removed = [name for name in was_rows if name not in now_rows]
    added = [name for name in now_rows if name not in was_rows]
    changed = [name for name in now_rows if name in was_rows and not same(dict(was_rows[name]), dict(now_rows[name]))]
    for what, names in (("loses", removed), ("gains", added), ("changes the values of", changed)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"{what} {'row' if len(names) == 1 else 'rows'} {', '.join(names[:5])}{more}"
    kept = [name for name in now_rows if name in was_rows]
    if not removed and not added and kept != [name for name in was_rows if name in now_rows]:
        yield "rows in another order"


def _rule_changes(key: str, was: Keep | Test | None, now: Keep | Test | None) -> Iterator[str]:
    """What changes in a choice: its values, or, of one of another kind, what it is."""
    if type(was) is type(now):
        yield from _leaf_changes(key, _dumped(was), _dumped(now))
    else:
        yield f"{key}: {_rule_text(was)} becomes {_rule_text(now)}"


def _rule_text(rule: Keep | Test | None) -> str:
    match rule:
        case KeepThis():
            return f"the row with {_values_text(rule.this)}"
        case KeepBest():
            return f"the best by {rule.best}"
        case TestThese():
            return " and ".join(f"the row of {row.stage} with {_values_text(row.this)}" for row in rule.these)
        case TestBest():
            return f"the best {rule.best} by {rule.by}"
    return "nothing"


def _values_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {show_value(value)}" for key, value in values.items())


def _leaf_changes(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value, however deep, that is not the same in both."""
    before, after = dict(_flat(was, f"{key}.")), dict(_flat(now, f"{key}."))
    for leaf in dict.fromkeys([*before, *after]):
        if not same(before.get(leaf, MISSING), after.get(leaf, MISSING)):
            yield f"{leaf}: {_shown(before, leaf, 'nothing')} becomes {_shown(after, leaf, 'nothing')}"


def _dumped(model: Frozen | None) -> Mapping[str, Any]:
    return {} if model is None else model.model_dump(by_alias=True, exclude_none=True)


def _shown(values: Mapping[str, Any], key: str, otherwise: str = "the default") -> str:
    return show_value(values[key]) if key in values else otherwise


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({f"{key}[{index}]": item for index, item in enumerate(value)}, prefix)
        else:
            yield f"{prefix}{key}", value


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
