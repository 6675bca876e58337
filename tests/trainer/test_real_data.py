"""The report's network on the report's data: two epochs of the real Caltech-101 in CALTECH101_DIR."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from pictures import put_run

from trainer.__main__ import main
from trainer.failure import ExitCode
from trainer.importing import import_dataset
from trainer.result import Result
from trainer.stop import StopSignal
from trainer.store import FileStore

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("CALTECH101_DIR" not in os.environ, reason="CALTECH101_DIR does not name the real Caltech-101"),
]


def test_alexnet_begins_to_learn_caltech101(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRID_CACHE", str(tmp_path / "cache"))
    store = FileStore(tmp_path / "store")
    source = os.environ["CALTECH101_DIR"]
    index = import_dataset(source, "caltech101", store, split="every-third", exclude=["BACKGROUND_Google"]).index
    run = put_run(
        store,
        index,
        data={"name": index.name, "fingerprint": index.fingerprint},
        model={"architecture": "alexnet"},
        batch_size=256,
        epochs=2,
        optimizer={"lr": 0.05},
    )
    assert main([run, "--store", store.uri], stop=StopSignal()) == ExitCode.OK
    result = Result.model_validate_json(store.get(f"results/{run}.json"))
    assert result.num_parameters == 57_417_637
    assert result.best_epoch == 2
    # an even guess over 101 classes costs ln 101 nats; always naming the largest class is right 0.092 of the time
    assert result.validation_loss < math.log(101) - 0.1
    assert result.validation_accuracy > 0.09
