"""The epochs of a run as its attempts left them in the store, merged to one row each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from trainer.result import EpochMetrics, Provenance, parse_record
from trainer.store import NotFound, Store

PROVENANCE, METRICS = "/provenance.json", "/metrics.jsonl"  # the ends of their keys, below an attempt's folder


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch's row, and about when it ended."""

    metrics: EpochMetrics
    time: float  # seconds since 1970


def dated(rows: Iterable[EpochMetrics], started: float) -> Iterator[Epoch]:
    """The rows of one attempt that began at `started`, in seconds since 1970.

    Rows have durations and no times: an epoch is taken to end when the attempt's epochs up to it, one after another
    from its start on, would have. So the times are the same whoever works them out.
    """
    rows = list(rows)
    ends = accumulate((row.seconds for row in rows), initial=started)
    next(ends)
    return map(Epoch, rows, ends)


def read_epochs(store: Store, run: str) -> list[Epoch]:
    """The run's epochs, one row each: every attempt's, up to the checkpoint from which the next one went on.

    Raises DataError on a corrupt record.
    """
    prefix = f"runs/{run}/attempts/"
    keys = [entry.key for entry in store.list(prefix) if entry.key.endswith((PROVENANCE, METRICS))]
    merged: list[Epoch] = []
    started = 0.0  # where an attempt left no provenance, which is written before any row
    for key in sorted(keys, key=lambda key: (key.rpartition("/")[0], key.endswith(METRICS))):
        try:
            data = store.get(key)
        except NotFound:  # it went since it was listed
            continue
        if key.endswith(PROVENANCE):
            provenance = parse_record(Provenance, key, data)
            goes_on = provenance.resumed_from
            merged = [each for each in merged if goes_on is not None and each.metrics.epoch <= goes_on.epoch]
            started = provenance.started.timestamp()
        else:
            merged += dated((parse_record(EpochMetrics, key, line) for line in data.splitlines()), started)
    return merged


def read_metrics(store: Store, run: str) -> list[EpochMetrics]:
    """The rows of `read_epochs` alone."""
    return [each.metrics for each in read_epochs(store, run)]
