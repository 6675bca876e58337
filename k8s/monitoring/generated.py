"""The files of k8s/monitoring and the table of docs/monitoring.md that come from code, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from controller.telemetry import DESCRIPTIONS as OF_CONTROLLER
from k8s.monitoring.fleet_board import fleet_board
from k8s.monitoring.grid_board import grid_board
from k8s.monitoring.run_board import run_board
from trainer.telemetry import DESCRIPTIONS as OF_TRAINER
from trainer.telemetry import Metric

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "monitoring.md"
RULES = HERE / "plain" / "rules.yaml"
BOARDS = {"grid": grid_board, "run": run_board, "fleet": fleet_board}
_BEGIN = "<!-- {}: written by `python -m k8s.monitoring`; change DESCRIPTIONS in {}, not this -->"
_END = "<!-- end -->"


def files() -> dict[Path, str]:
    """The text of each generated file, by its path."""
    boards = {HERE / "dashboards" / f"{name}.json": board_text(make()) for name, make in BOARDS.items()}
    return {**boards, HERE / "operator" / "prometheus-rule.yaml": rule_text(), PAGE: page_text()}


def board_text(made: dashboard.Dashboard) -> str:
    """The dashboard's JSON model, its panels numbered in their order, so that a link to one leads to the same again."""
    model = made.build()
    for number, panel in enumerate(model.panels or (), start=1):
        panel.id_val = number
    text = JSONEncoder(sort_keys=True).encode(model)
    found = json.loads(text)
    for variable in found["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):  # of intervals alone, and the builders write it for every kind
            variable.pop(key, None)
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def rule_text() -> str:
    """rules.yaml as the Prometheus Operator takes it."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "experiment-grid", "labels": {"app.kubernetes.io/part-of": "experiment-grid"}},
        "spec": yaml.safe_load(RULES.read_text(encoding="utf-8")),
    }
    mark = "# written by `python -m k8s.monitoring` from plain/rules.yaml; change that, not this\n"
    return mark + yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)


def page_text() -> str:
    """docs/monitoring.md with its tables of metrics as the code has them."""
    text = PAGE.read_text(encoding="utf-8")
    for name, module, described in (
        ("trainer", "trainer/telemetry.py", OF_TRAINER),
        ("controller", "controller/telemetry.py", OF_CONTROLLER),
    ):
        begin = _BEGIN.format(name, module)
        before, found, rest = text.partition(begin)
        if not found:
            raise ValueError(f"{PAGE.name}: the line {begin!r} is missing: it says where the table belongs")
        text = f"{before}{begin}\n\n{metric_table(described)}\n{_END}{rest.partition(_END)[2]}"
    return text


def num_series(metric: Metric) -> int:
    """Series of the metric at most, for each set of values of the labels that are names or ids."""
    parts = len(metric.buckets) + 3 if metric.type == "histogram" else 1  # the bucket of all, the sum, the count
    return parts * max(1, len(metric.values))


def metric_table(described: Sequence[Metric]) -> str:
    """Markdown: what each metric is, one a row."""
    lines = ["| metric | kind | unit | labels | series | meaning |", "| --- | --- | --- | --- | --- | --- |"]
    for metric in described:
        labels = [f"`{label}`" for label in metric.labels]
        if metric.values:
            labels[-1] += ": " + ", ".join(metric.values)
        meaning = metric.help.replace("|", "\\|")
        cells = (f"`{metric.name}`", metric.type, metric.unit, "; ".join(labels), str(num_series(metric)), meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
