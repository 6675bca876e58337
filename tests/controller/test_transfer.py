"""From a training to weights to a training on other classes: the body is the file's, and only the last layer is new."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pictures import put_run, write_pictures

from controller.weights import import_weights
from trainer.__main__ import main
from trainer.augment import weights_seed
from trainer.dataset import DatasetIndex, load_index
from trainer.failure import ExitCode
from trainer.identity import read_spec
from trainer.importing import import_dataset
from trainer.model import build_network
from trainer.result import Result
from trainer.spec import ModelSpec
from trainer.state_dict import StateDict
from trainer.stop import StopSignal
from trainer.store import FileStore, Store

SIDE = 64  # pixels: AlexNet refuses less
HEADS = {"alexnet": "classifier.6", "resnet50": "fc", "vgg16": "classifier.6"}
REPORTED = {"none": 57_417_637, "convolutional": 54_947_941, "fully_connected": 2_469_696}  # AlexNet, 101 classes
SOURCE_CLASSES = ("airplanes", "dalmatian", "Motorbikes", "sunflower")  # what the weights are trained on

pytestmark = pytest.mark.slow
needs_data = pytest.mark.skipif(
    "CALTECH101_DIR" not in os.environ, reason="CALTECH101_DIR does not name the real Caltech-101"
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    monkeypatch.setenv("GRID_CACHE", str(tmp_path / "cache"))
    store = FileStore(tmp_path / "store")
    yield store
    for entry in store.list(""):  # gigabytes, which pytest would keep for three sessions
        store.delete(entry.key)


def put_pictures(store: Store, tmp_path: Path) -> None:
    """Stripes of six directions: the first three to train the weights on, the others to start from them."""
    tree = write_pictures(tmp_path / "pictures", num_classes=6, per_class=9)
    for name, excluded in (("source", "345"), ("target", "012")):
        import_dataset(tree, name, store, split="every-third", exclude=[f"class{each}" for each in excluded])


def put_caltech(store: Store, _tmp_path: Path) -> None:
    """Four classes of the real Caltech-101 to train the weights on, all others to start from them."""
    folder = os.environ["CALTECH101_DIR"]
    classes = sorted(each.name for each in Path(folder).iterdir() if each.is_dir())
    others = [each for each in classes if each not in SOURCE_CLASSES]
    import_dataset(folder, "source", store, split="every-third", exclude=others)
    import_dataset(folder, "target", store, split="every-third", exclude=["BACKGROUND_Google", *SOURCE_CLASSES])


def trained(store: FileStore, name: str, **model: object) -> Result:
    """The result of a brief run on the data set."""
    index = load_index(store, name)
    run = put_run(
        store,
        index,
        data={
            "name": name,
            "fingerprint": index.fingerprint,
            "resize": SIDE,
            "crop": SIDE,
            "normalize": "imagenet",
            "images_per_class": 3,
        },
        model=model,
        batch_size=8,
        epochs=1,
        optimizer={"lr": 0.001, "momentum": 0},
    )
    assert main([run, "--store", store.uri], stop=StopSignal()) == ExitCode.OK
    return Result.model_validate_json(store.get(f"results/{run}.json"))


def best_state(store: Store, result: Result) -> StateDict:
    assert result.best_weights is not None
    return safetensors.torch.load(store.get(result.best_weights))


def exported(store: Store, result: Result, architecture: str, folder: Path) -> Path:
    """The run's best weights as torchvision publishes its own: a state dict under a name with its hash."""
    buffer = io.BytesIO()
    torch.save(best_state(store, result), buffer)
    digits = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    file = folder / f"{architecture}-classes-{digits}.pth"
    file.write_bytes(buffer.getvalue())
    return file


def first_state(store: Store, run: str, index: DatasetIndex) -> StateDict:
    """The weights that the run begins with."""
    spec = read_spec(store.get(f"runs/{run}/spec.yaml").decode(), run)
    return build_network(spec.model, index.num_classes, weights_seed(spec.seed), store).module.state_dict()


@pytest.mark.parametrize("architecture", HEADS)
@pytest.mark.parametrize(
    "put_images",
    [put_pictures, pytest.param(put_caltech, marks=[pytest.mark.data, needs_data])],
    ids=["stripes", "caltech"],
)
def test_a_run_on_other_classes_starts_from_weights_that_were_trained_here(
    architecture: str, put_images: object, store: FileStore, tmp_path: Path
) -> None:
    assert callable(put_images)
    put_images(store, tmp_path)
    source = trained(store, "source", architecture=architecture)
    file = exported(store, source, architecture, tmp_path)

    imported = import_weights(str(file), store)
    assert imported.vouched == file.stem[-8:]
    assert imported.weights.fit is not None
    assert (imported.weights.fit.architecture, imported.weights.fit.head) == (architecture, HEADS[architecture])

    target = load_index(store, "target")
    named = {"architecture": architecture, "weights": file.name, "weights_fingerprint": imported.weights.sha256}
    moved = trained(store, "target", **named, freeze="convolutional")
    assert moved.weights_fingerprint == imported.weights.sha256

    given, first, last = best_state(store, source), first_state(store, moved.run, target), best_state(store, moved)
    body = [name for name in given if not name.startswith(HEADS[architecture])]
    assert given.keys() == first.keys()
    assert all(torch.equal(first[name], given[name]) for name in body)
    head = f"{HEADS[architecture]}.weight"
    assert first[head].shape[0] == target.num_classes
    assert not torch.equal(first[head][: len(given[head])], given[head][: len(first[head])])
    is_kept = {name: torch.equal(last[name], given[name]) for name in body}
    frozen = [name for name in body if not name.startswith(("classifier.", "fc."))]
    assert frozen
    assert all(is_kept[name] for name in frozen)
    assert not torch.equal(last[head], first[head])

    if architecture == "alexnet":
        counts = {
            freeze: build_network(
                ModelSpec.model_validate({**named, "freeze": freeze}), 101, 0, store
            ).num_trainable_parameters
            for freeze in REPORTED
        }
        assert counts == REPORTED


def test_a_run_does_not_begin_without_its_weights(store: FileStore, tmp_path: Path) -> None:
    put_pictures(store, tmp_path)
    index = load_index(store, "target")
    model = {"architecture": "networks:usual", "weights": "gone.pth", "weights_fingerprint": "0" * 64}
    run = put_run(store, index, model=model)
    assert main([run, "--store", store.uri], stop=StopSignal()) == ExitCode.DATA
    assert list(store.list(f"results/{run}")) == []
    assert "has no weights/gone.pth" in json.loads(store.get(f"failures/{run}.json"))["message"]
