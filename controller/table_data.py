"""A table for programs: CSV and JSON, every number exact."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from controller.noise import Comparison, TestComparison
from controller.table import NUMBERS, StageTable, Table, TableRow
from controller.wording import csv_text

CSV_HEAD = ("grid", "stage", "experiment", "runs", "seeds", "state", "reason")
CSV_BESIDE_BEST = (
    *("compared", "difference_low", "difference_high"),  # over seeds, by the stage's metric
    *("test_compared", "test_difference_low", "test_difference_high"),  # over test images, by test accuracy
)
CSV_TAIL = ("seeds_done", "best", *CSV_BESIDE_BEST, "kept", "exact", "notes")


def to_csv(table: Table) -> str:
    """The table by RFC 4180, a row per experiment, every number exact; empty where there is none.

    After `CSV_HEAD` come the means and `_std` of all numbers, then `CSV_TAIL`, then `published_<metric>` and
    `difference_<metric>` of what was published, then what the stages vary by dotted key. Majority rows have no runs; a
    stage whose rows are not known yet has one row without an experiment. Text that a spreadsheet would take for a
    formula begins with an apostrophe.
    """
    varied = sorted({key for stage in table.stages for row in stage.rows for key in row.values})
    published = _published(table.stages)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    head = [*CSV_HEAD, *(name for one in NUMBERS for name in (one, f"{one}_std")), *CSV_TAIL]
    head += [f"{what}_{metric}" for metric in published for what in ("published", "difference")] + varied
    num_fixed = len(CSV_HEAD) + 2 * len(NUMBERS)
    writer.writerow(head)

    def write(cells: list[str]) -> None:
        writer.writerow(cells + [""] * (len(head) - len(cells)))

    for stage in table.stages:
        home = [csv_text(table.grid), csv_text(stage.name)]
        if not stage.rows:
            write([*home, "", "", "", "waiting", csv_text(stage.waiting or "")])
        for row in stage.rows:
            cells = [
                *home,
                csv_text(row.experiment),
                " ".join([run.id for run in row.runs]),
                " ".join([str(run.seed) for run in row.runs]),
                row.state,
                csv_text(row.reason or ""),
            ]
            for pair in zip(row.numbers.means, row.numbers.stds, strict=True):
                cells += ["" if value is None else repr(value) for value in pair]
            cells += [""] * (num_fixed - len(cells))
            cells += (str(row.num_done), _csv_value(row.best))
            for found in (row.beside_best, row.test_beside_best):
                low, high = _interval(found)
                cells += ("" if found is None else found.verdict, _csv_value(low), _csv_value(high))
            cells += (_csv_value(row.kept), _csv_value(row.exact))
            cells.append(" ".join(map(str, row.notes)))
            for metric in published:
                cells += (_csv_value(row.published.get(metric)), _csv_value(row.difference(metric)))
            cells += [_csv_value(row.values.get(key)) for key in varied]
            write(cells)
        for name, one in zip(stage.majority_names, stage.majorities, strict=True):
            numbers = [cell for number in NUMBERS for cell in (_csv_value(one.numbers.get(number)), "")]
            write([*home, name, "", "", "done", csv_text(one.meaning), *numbers])
    return out.getvalue()


def _published(stages: Sequence[StageTable]) -> list[str]:
    """The metrics that were published of any row."""
    found = {metric for stage in stages for metric in stage.published}
    return [name for name in NUMBERS if name in found]


def _interval(found: Comparison | TestComparison | None) -> tuple[float | None, float | None]:
    return (None, None) if found is None or found.interval is None else found.interval


def _csv_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return csv_text(value if isinstance(value, str) else json.dumps(_plain(value)))


def to_json(table: Table) -> str:
    """The table as one line of JSON, every number exact; null where there is none, or none that JSON can write."""
    return json.dumps(_json(table), ensure_ascii=False, allow_nan=False, check_circular=False) + "\n"


def _json(table: Table) -> dict[str, Any]:
    return {
        "grid": table.grid,
        "seeds": table.seeds,
        "stages": [
            {
                "stage": stage.name,
                "is_test": stage.is_test,
                "metric": stage.metric,
                "waiting": stage.waiting,
                "decision": stage.decision.model_dump(mode="json") if stage.decision else None,
                "rows": [_json_row(row) for row in stage.rows],
                "majority": [
                    {"data": one.data, "label": one.label, "numbers": dict(one.numbers)} for one in stage.majorities
                ],
                "remarks": stage.remarks,
            }
            for stage in table.stages
        ],
        "notes": table.notes,
    }


def _json_row(row: TableRow) -> dict[str, Any]:
    return {
        "experiment": row.experiment,
        "values": _plain(row.values),
        "runs": [{"run": run.id, "seed": run.seed, "state": run.state, "reason": run.reason} for run in row.runs],
        "state": row.state,
        "reason": row.reason,
        "best": row.best,
        "compared": _json_compared(row.beside_best),
        "test_compared": _json_compared(row.test_beside_best),
        "kept": row.kept,
        "exact": row.exact,
        "notes": row.notes,
        "num_results": row.numbers.num_results,
        "num_tests": row.numbers.num_tests,
        "numbers": {
            name: {"mean": _finite(mean), "std": _finite(std)}
            for name, mean, std in zip(NUMBERS, row.numbers.means, row.numbers.stds, strict=False)
            if mean is not None
        },
        "published": dict(row.published),
        "difference": {metric: _finite(row.difference(metric)) for metric in row.published},
    }


def _json_compared(found: Comparison | TestComparison | None) -> dict[str, Any] | None:
    if found is None:
        return None
    low, high = map(_finite, _interval(found))
    told = {"verdict": found.verdict, "difference": _finite(found.difference), "low": low, "high": high}
    if isinstance(found, TestComparison):
        return {**told, "num_images": found.num_images}
    return {**told, "num_seeds": found.num_seeds, "p_value": _finite(found.p_value)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: object) -> object:
    """`value` of plain JSON types; what is none of them (a model, say) by its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
