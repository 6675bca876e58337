"""What differs between two runs: what was asked, how it was computed, what came of it, and where their curves part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.run_records import RunRecord
from controller.table import RESULT_NUMBERS, TEST_FIELDS
from trainer.document import flat
from trainer.result import PASSING, EpochMetrics, Numerics, Result, TestResult

CURVES = tuple(name for name in EpochMetrics.model_fields if name.startswith(("train_", "validation_")))
"""Metrics of an epoch that are learnt: two trainings of one run share them on equal numerics."""

Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Parting:
    """How a metric's two curves differ, over the epochs that both runs have."""

    first: int  # epoch, counted from 1
    largest: float | None  # of the second less the first run, by size; none where only numbers that are not finite do
    epoch: int  # of the largest


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two runs: by name, the first run's value and the second's, none where there is none."""

    runs: tuple[str, str]
    num_keys: int  # of the specs, together
    spec: Mapping[str, Pair]  # by dotted key
    numerics: Mapping[str, Pair]
    versions: Mapping[str, Pair]
    results: Mapping[str, Pair]
    tests: Mapping[str, Pair]
    curves: Mapping[str, Parting]
    epochs: tuple[int, int]  # that each run has
    missing: Mapping[str, tuple[str, ...]]  # of each run what cannot be compared, since it has none

    @property
    def parts_in(self) -> int | None:
        """The first epoch in which a curve differs; none where those of the epochs that both have are the same."""
        return min((parting.first for parting in self.curves.values()), default=None)


def difference(one: RunRecord, other: RunRecord) -> Difference:
    """What differs between two runs, as far as both have it."""
    specs = [dict(flat(each.spec.model_dump(mode="json"))) for each in (one, other)]
    has = {
        "numerics": [each.numerics is not None for each in (one, other)],
        "result": [each.result is not None for each in (one, other)],
        "test": [each.test is not None for each in (one, other)],
        "epochs": [bool(each.epochs) for each in (one, other)],
    }
    return Difference(
        runs=(one.run, other.run),
        num_keys=len({*specs[0], *specs[1]}),
        spec=_differing(*specs),
        numerics=_differing(*(_numbers(each.numerics, tuple(Numerics.model_fields)) for each in (one, other))),
        versions=_differing(one.versions, other.versions),
        results=_differing(*(_numbers(each.result, RESULT_NUMBERS) for each in (one, other))),
        tests=_differing(*(_numbers(each.test, TEST_FIELDS) for each in (one, other))),
        curves=_partings(one.epochs, other.epochs),
        epochs=(len(one.epochs), len(other.epochs)),
        missing={
            each.run: tuple(what for what, present in has.items() if not present[side])
            for side, each in enumerate((one, other))
        },
    )


def gap(pair: Pair) -> float | None:
    """The second value less the first; none where one is no number, or their difference is none."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair):
        return None
    found: float = pair[1] - pair[0]
    return found if math.isfinite(found) else None


def passes(name: str) -> bool:
    """Whether two trainings of one run may differ in that number of its result: times, speeds, memory."""
    return name in PASSING


def as_json(found: Difference) -> dict[str, Any]:
    """The difference as plain values; numbers that are not finite are null."""

    def pairs(values: Mapping[str, Pair]) -> dict[str, Any]:
        return {name: [_plain(value) for value in pair] for name, pair in values.items()}

    def with_gaps(values: Mapping[str, Pair]) -> dict[str, Any]:
        return {name: {"values": each, "difference": gap(values[name])} for name, each in pairs(values).items()}

    return {
        "runs": list(found.runs),
        "missing": {run: list(what) for run, what in found.missing.items()},
        "spec": pairs(found.spec),
        "numerics": pairs(found.numerics),
        "versions": pairs(found.versions),
        "results": with_gaps(found.results),
        "test": with_gaps(found.tests),
        "curves": {
            "epochs": list(found.epochs),
            "parts_in": found.parts_in,
            "metrics": {
                name: {"first": each.first, "largest": each.largest, "epoch": each.epoch}
                for name, each in found.curves.items()
            },
        },
    }


def _numbers(record: Result | TestResult | Numerics | None, names: Sequence[str]) -> dict[str, Any]:
    return {} if record is None else {name: getattr(record, name) for name in names}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    """What is not the same in both, in the order of the first; without one of the two there is nothing to compare."""
    if not one or not other:
        return {}
    pairs = {name: (one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])}
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) or (
        isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    )


def _partings(one: Sequence[EpochMetrics], other: Sequence[EpochMetrics]) -> dict[str, Parting]:
    later = {epoch.epoch: epoch for epoch in other}
    both = [(epoch, later[epoch.epoch]) for epoch in one if epoch.epoch in later]
    found = {}
    for name in CURVES:
        gaps = {
            first.epoch: gap((getattr(first, name), getattr(second, name)))
            for first, second in both
            if not _same(getattr(first, name), getattr(second, name))
        }
        if gaps:
            epoch = max(gaps, key=lambda each: abs(gaps[each] or 0.0))
            found[name] = Parting(min(gaps), gaps[epoch], epoch)
    return found


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
