"""A store with a grid that was trained in part, without training anything: all that a report can show is there once.

Names, reasons and messages hold markup that would change the page's title if any of it were taken for such.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from results import numerics, result

from controller.archive import adopt, gather_facts
from controller.commands.runs import table_of
from controller.grid import Grid, parse_grid
from controller.local import status
from controller.observe import observe
from controller.report.gather import Gathered, gather
from controller.search import Run, wanted
from trainer.dataset import DatasetIndex, load_index
from trainer.failure import Failure
from trainer.importing import import_dataset
from trainer.result import EpochMetrics, Provenance, ResumedFrom, TestResult
from trainer.store import FileStore

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
ATTACK = """<img src=x onerror="document.title='owned'">"""
SCRIPT = """</script><script>document.title='owned'</script>"""
EPOCHS = 6
GRID = f"""
grid: shown
description: >-
  colours & shades {ATTACK} {SCRIPT}
base:
  data: {{name: colours, resize: 16, crop: 16}}
  model: {{architecture: squeezenet1_1}}
  batch_size: 4
  epochs: {EPOCHS}
seeds: 3
stages:
  - name: rate
    vary: {{optimizer.lr: [1e-3, 1e-2, 1]}}
  - name: decay
    points:
      - name: as kept
      - name: {json.dumps(ATTACK)}
        optimizer.weight_decay: 0.01
    keep:
      this: {{name: as kept}}
      because: {json.dumps(SCRIPT)}
  - name: final
    test: {{best: 2, of: [rate]}}
"""
CLASSES = (ATTACK, "a & b", "red")
LOSSES = {"lr=0.001": 1.0, "lr=0.01": 0.4}


def epoch(number: int, loss: float = 1.0, **changes: object) -> EpochMetrics:
    """The metrics of an epoch whose losses fall, but for `changes`."""
    values: dict[str, object] = {
        "epoch": number,
        "step": 10 * number,
        "lr": 0.01,
        "train_loss": loss / number,
        "train_accuracy": 1 - 0.5 / number,
        "validation_loss": loss / number + 0.1,
        "validation_accuracy": 1 - 0.6 / number,
        "validation_balanced_accuracy": 0.5,
        "validation_top5_accuracy": 0.9,
        "best": True,
        "returned_to_best": False,
        "restarts": 0,
        "images_per_second": 100.0,
        "seconds": 2.0,
        **changes,
    }
    return EpochMetrics.model_validate(values)


def write_colours(folder: Path) -> Path:
    """Class folders whose names are markup, with eight plain pictures each."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            shade = tuple(60 + 20 * number if channel == label else 30 for channel in range(3))
            Image.new("RGB", (20, 16), shade).save(folder / name / f"{number}.png")
    return folder


def put_attempt(
    store: FileStore, run: str, name: str, rows: Sequence[EpochMetrics], resumed_from: ResumedFrom | None = None
) -> None:
    """An attempt as a trainer leaves it."""
    provenance = Provenance(
        run=run,
        attempt=name,
        host=f"node-1{ATTACK}",
        started=NOW,
        numerics=numerics(),
        versions={"python": "3.12.1", "torch": "2.11.0"},
        commit="0123456789abcdef",
        resumed_from=resumed_from,
    )
    store.put(f"runs/{run}/attempts/{name}/provenance.json", provenance.model_dump_json().encode())
    lines = "".join(f"{row.model_dump_json()}\n" for row in rows)
    store.put(f"runs/{run}/attempts/{name}/metrics.jsonl", lines.encode())


def put_trained(store: FileStore, run: Run, loss: float) -> None:
    """A run with its result, and two attempts of which the second went on from epoch 3."""
    rows = [epoch(number, loss, returned_to_best=number == 4) for number in range(1, EPOCHS + 1)]
    put_attempt(store, run.id, "0001-aaaaaaaa", [*rows[:3], epoch(4, 99.0)])
    resumed = ResumedFrom(attempt="0001-aaaaaaaa", sequence=3, epoch=3, step=30)
    put_attempt(store, run.id, "0002-bbbbbbbb", rows[3:], resumed)
    written = result(
        run.id,
        seed=run.seed,
        best_epoch=EPOCHS,
        train_loss=loss,
        validation_loss=loss * (1 + 0.02 * run.seed),
        validation_accuracy=0.8 - 0.01 * run.seed,
        wall_seconds=3600.0,
        attempts=2,
    )
    store.put(f"results/{run.id}.json", written.model_dump_json().encode())


def put_tested(store: FileStore, run: Run, index: DatasetIndex) -> None:
    """The run's test: of every class's first image it is wrong, and sure."""
    labels = np.array([entry.label for entry in index.entries("test")], dtype=np.int64)
    answers = labels.copy()
    first = np.unique(labels, return_index=True)[1]
    answers[first] = (labels[first] + 1) % index.num_classes
    logits = np.zeros((len(labels), index.num_classes), dtype=np.float32)
    logits[np.arange(len(labels)), answers] = 3.0
    out = io.BytesIO()
    np.savez_compressed(out, index=np.arange(len(labels)), label=labels, logits=logits)
    key = f"runs/{run.id}/test/predictions.npz"
    store.put(key, out.getvalue())
    tested = TestResult(
        run=run.id,
        test_loss=0.5,
        test_accuracy=float((answers == labels).mean()),
        test_balanced_accuracy=0.5,
        test_top5_accuracy=1.0,
        num_images=len(labels),
        predictions=key,
        numerics=numerics(),
        data_fingerprint=index.fingerprint,
        wall_seconds=1.0,
    )
    store.put(f"tests/{run.id}.json", tested.model_dump_json().encode())


def put_failed(store: FileStore, run: Run) -> None:
    """The run's loss diverged in its second epoch."""
    put_attempt(store, run.id, "0001-cccccccc", [epoch(1, 4.0)])
    failure = Failure(
        run=run.id,
        attempt="0001-cccccccc",
        exit_code=70,
        reason="diverged",
        message=f"loss nan {SCRIPT}",
        hint=f"a smaller rate {ATTACK}",
        final=True,
        time=NOW,
        log_tail=["epoch 1", SCRIPT],
    )
    store.put(f"failures/{run.id}.json", failure.model_dump_json().encode())
    store.put(f"runs/{run.id}/attempts/0001-cccccccc/failure.json", failure.model_dump_json().encode())


def new_store(folder: Path) -> tuple[Grid, FileStore]:
    """A store with the data set and the grid, in which nothing ran."""
    store = FileStore(folder / "store")
    import_dataset(write_colours(folder / "colours"), "colours", store, split="every-third")
    grid = parse_grid(GRID, "shown.yaml")
    adopt(grid, store, gather_facts(store, wanted(grid)))
    return grid, store


def shown_store(folder: Path) -> tuple[Grid, FileStore]:
    """The same with a stage that is done but for a row that diverged, one that is half done, and a test."""
    grid, store = new_store(folder)
    facts = gather_facts(store, wanted(grid))
    index = load_index(store, "colours")
    sight = observe(grid, store, facts)
    for experiment in sight.expansion.stages[0].experiments:
        for run in experiment.runs:
            if experiment.name in LOSSES:
                put_trained(store, run, LOSSES[experiment.name])
            else:
                put_failed(store, run)
    sight = observe(grid, store, facts)
    decay = sight.expansion.stages[1]
    put_attempt(store, decay.experiments[1].runs[0].id, "0001-dddddddd", [epoch(1), epoch(2)])
    for experiment in sight.expansion.stages[2].experiments:
        for run in experiment.runs:
            put_tested(store, run, index)
    return grid, store


def gathered(grid: Grid, store: FileStore) -> Gathered:
    """What a report of the grid would show."""
    standing = status(grid, store)
    table = table_of(grid, standing, store)
    return gather(grid, standing.expansion, standing.known, standing.active, standing.waiting, table, store)
