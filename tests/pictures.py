"""Small pictures that a small network can tell apart, imported by the ordinary path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.dataset import DatasetIndex
from trainer.identity import factory_source_hash, run_id, with_seed, write_spec
from trainer.importing import import_dataset
from trainer.spec import ExperimentSpec, RunSpec
from trainer.store import Store


def write_pictures(folder: Path, *, num_classes: int = 3, per_class: int = 24, seed: int = 0) -> Path:
    """A tree of class folders: noise over stripes whose direction and width tell the class."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:40, 0:48]
    for label in range(num_classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            angle = np.pi * label / num_classes + random.normal(0, 0.1)
            wave = np.sin((np.cos(angle) * rows + np.sin(angle) * columns) / 2 + random.uniform(0, 6))
            pixels = 128 + 60 * wave[:, :, None] + random.normal(0, 40, (40, 48, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / f"class{label}" / f"{number:03d}.png")
    return folder


def import_pictures(store: Store, folder: Path, name: str = "pictures", *, per_class: int = 24) -> DatasetIndex:
    """The pictures as data set `name`: a third test, the rest half training and half validation."""
    return import_dataset(write_pictures(folder, per_class=per_class), name, store, split="every-third").index


def put_run(store: Store, index: DatasetIndex, *, seed: int = 0, **spec: object) -> str:
    """The id of a run on `index` whose spec is in the store; `spec` changes a tiny run's values."""
    run = tiny_run(index, seed=seed, **spec)
    store.put(f"runs/{run_id(run)}/spec.yaml", write_spec(run).encode())
    return run_id(run)


def tiny_run(index: DatasetIndex, *, seed: int = 0, **spec: object) -> RunSpec:
    """A run of a second: 3 epochs of 3 steps with a network that has batch-norm and dropout."""
    values = {
        "data": {"name": index.name, "fingerprint": index.fingerprint, "resize": 24, "crop": 20},
        "model": {"architecture": "networks:usual"},
        "batch_size": 10,
        "epochs": 3,
        "optimizer": {"lr": 0.05},
        **spec,
    }
    experiment = ExperimentSpec.model_validate(values)
    if experiment.model.is_factory:
        hashed = {"source_hash": factory_source_hash(experiment.model.architecture)}
        experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update=hashed)})
    return with_seed(experiment, seed)
