"""Results as a trainer would write them, for tests that train nothing."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from trainer.result import EpochMetrics, Numerics, Provenance, Result, ResumedFrom, TestResult
from trainer.store import Store


def numerics(**changes: Any) -> Numerics:
    """Numerics of some processor, but for `changes`."""
    values: dict[str, Any] = {
        "precision": "fp32",
        "threads": 1,
        "micro_batch": 4,
        "memory_format": "channels_last",
        "compile": False,
        "deterministic": True,
        "device": "cpu",
        "device_model": "A Processor",
        "instruction_set": "AVX2",
        "torch_version": "2.11.0",
    }
    return Numerics(**{**values, **changes})


def result(run: str, **changes: Any) -> Result:
    """A result of `run`, but for `changes`."""
    values: dict[str, Any] = {
        "run": run,
        "spec": {"data": {"name": "digits"}},
        "seed": 0,
        "best_epoch": 1,
        "train_loss": 0.1,
        "train_accuracy": 0.5,
        "validation_loss": 1 / 3,
        "validation_accuracy": 0.75,
        "validation_balanced_accuracy": 0.75,
        "validation_top5_accuracy": 1.0,
        "num_parameters": 10,
        "num_trainable_parameters": 10,
        "epochs_run": 5,
        "images_per_second": 100.0,
        "wall_seconds": 5.0,
        "peak_memory_bytes": 1 << 20,
        "numerics": numerics(),
        "exact": True,
        "data_fingerprint": "a" * 64,
        "weights_fingerprint": None,
        "versions": {},
        "commit": None,
        "best_weights": None,
        "attempts": 1,
        "restarts": 0,
        "returns_to_best": 0,
    }
    return Result(**{**values, **changes})


def result_of_test(run: str, **changes: Any) -> TestResult:
    """The numbers of `run` on the test part, but for `changes`."""
    values: dict[str, Any] = {
        "run": run,
        "test_loss": 1.0,
        "test_accuracy": 0.5,
        "test_balanced_accuracy": 0.5,
        "test_top5_accuracy": 1.0,
        "num_images": 4,
        "predictions": "none",
        "numerics": numerics(),
        "data_fingerprint": "f" * 64,
        "wall_seconds": 1.0,
    }
    return TestResult(**{**values, **changes})


def put_attempt(
    store: Store, run: str, attempt: str, rows: Iterable[EpochMetrics], started: datetime, *, after: int | None = None
) -> None:
    """What an attempt leaves of its epochs, and where it was; one that goes on does so `after` that epoch."""
    provenance = Provenance(
        run=run,
        attempt=attempt,
        host="h",
        started=started,
        numerics=numerics(),
        versions={},
        commit=None,
        resumed_from=None if after is None else ResumedFrom(attempt="0001-a", sequence=1, epoch=after, step=0),
    )
    store.put(f"runs/{run}/attempts/{attempt}/provenance.json", provenance.model_dump_json().encode())
    text = "".join(f"{each.model_dump_json()}\n" for each in rows)
    store.put(f"runs/{run}/attempts/{attempt}/metrics.jsonl", text.encode())
