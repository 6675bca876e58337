"""The recipe computes what its version always did: whole runs, epoch by epoch, against the day it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import import_pictures, put_run

from trainer.__main__ import main
from trainer.failure import ExitCode
from trainer.history import read_metrics
from trainer.run import RECIPE
from trainer.stop import StopSignal
from trainer.store import FileStore

RUNS: dict[str, dict[str, object]] = {
    "sgd": {"optimizer": {"lr": 0.05}, "schedule": {"step_size": 1, "gamma": 0.5}},
    "adamw-augmented": {
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        "augmentation": "report_2",
        "label_smoothing": 0.1,
        "clip_norm": 1.0,
        "micro_batch": 4,
    },
    "back-to-the-best": {"optimizer": {"lr": 0.2}, "epochs": 5, "best": {"patience": 1}},
}

# Training loss, validation loss and whether training went back to the best, of each epoch. A change here means that
# runs would no longer repeat: give the recipe a new version, and these their new values.
EPOCHS: dict[str, list[tuple[float, float, bool]]] = {
    "sgd": [(1.07027, 1.07281, False), (0.98629, 1.02945, False), (0.74783, 0.98033, False)],
    "adamw-augmented": [(1.09321, 1.08193, False), (1.27857, 1.07417, False), (1.17326, 1.06451, False)],
    "back-to-the-best": [
        (1.05661, 1.02966, False),
        (0.79309, 0.97004, False),
        (0.8726, 0.57865, False),
        (0.24257, 1.29412, True),
        (0.41825, 0.13056, False),
    ],
}


def epochs_of(folder: Path, spec: dict[str, object]) -> list[tuple[float, float, bool]]:
    store = FileStore(folder / "store")
    run = put_run(store, import_pictures(store, folder / "images"), precision="fp32", **spec)
    assert main([run, "--store", store.uri], stop=StopSignal()) == ExitCode.OK
    return [(row.train_loss, row.validation_loss, row.returned_to_best) for row in read_metrics(store, run)]


@pytest.mark.parametrize("name", RUNS)
def test_the_recipe_computes_what_its_version_always_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert RECIPE.version == 1, "a new version needs new values"
    for row, expected in zip(epochs_of(tmp_path, RUNS[name]), EPOCHS[name], strict=True):
        # instruction sets differ in rounding; a changed draw, order or rule differs far more than this
        assert row == pytest.approx(expected, rel=5e-3)
