"""Results as a trainer would write them, for tests that train nothing."""

from __future__ import annotations

from typing import Any

from trainer.result import Numerics, Result


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
