"""A small grid for tests: three stages over pictures that a small network tells apart."""

from __future__ import annotations

from datetime import UTC, datetime

from controller.search import DataFacts, Expansion, Facts

TEXT = """\
grid: small
base:
  data: {name: pictures, resize: 24, crop: 20}
  model: {architecture: "networks:usual"}
  batch_size: 10
  epochs: 3
seeds: 2
stages:
  - name: lr
    vary: {optimizer.lr: [0.05, 0.005]}
  - name: smoothing
    vary: {label_smoothing: [0, 0.1]}
  - name: final
    test: {best: 1}
"""
FACTS = Facts(data={"pictures": DataFacts("f" * 64, 3, {}, {})}, factories={"networks:usual": "a" * 64})
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def runs_of(expansion: Expansion, stage: str) -> list[str]:
    """Ids of the stage's runs, in the order of its rows."""
    found = next(each for each in expansion.stages if each.name == stage)
    return [run.id for experiment in found.experiments for run in experiment.runs]
