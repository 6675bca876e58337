"""Sizes of networks, found without computing, against what training them takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from trainer.measure import answers, measure
from trainer.sizes import Shape, shape_of, state_bytes, training_bytes
from trainer.spec import DataSpec, ExperimentSpec, ModelSpec, SgdSpec

FACTOR = 1.6  # between the estimate and what a run took

TRAINING = """
import re, sys
import torch
from trainer.model import build_network
from trainer.optim import build_optimizer
from trainer.spec import ModelSpec, SgdSpec
from trainer.store import FileStore
from pathlib import Path

architecture, num_classes, crop, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
network = build_network(ModelSpec(architecture=architecture), num_classes, 0, FileStore(Path.cwd()))
network.train()
optimizer = build_optimizer(SgdSpec(), network.trainable_parameters())
best = {name: value.clone() for name, value in network.module.state_dict().items()}
for _ in range(2):
    loss = network.module(torch.randn(batch, 3, crop, crop)).logsumexp(1).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    written = {name: value.clone() for name, value in network.module.state_dict().items()}
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def shape(architecture: str = "resnet18", **further: int) -> Shape:
    values = {"num_classes": 10, "crop": 64, **further}
    return Shape(model=ModelSpec(architecture=architecture), **values)


def test_the_counts_are_the_networks_own() -> None:
    size = measure(shape("alexnet", num_classes=101, crop=224))

    assert (size.num_parameters, size.num_trainable_parameters, size.num_buffers) == (57_417_637, 57_417_637, 0)


def test_larger_images_keep_more_and_a_frozen_part_keeps_less() -> None:
    small, large = measure(shape(crop=32)), measure(shape(crop=64))
    frozen = measure(shape().model_copy(update={"model": ModelSpec(architecture="resnet18", freeze="convolutional")}))

    assert large.image_bytes == pytest.approx(4 * small.image_bytes, rel=0.05)
    assert frozen.image_bytes < large.image_bytes / 10
    assert frozen.num_trainable_parameters == 5130


def test_a_network_that_refuses_the_images_is_told_and_the_next_is_measured() -> None:
    found = answers([value.model_dump(mode="json") for value in (shape("alexnet", crop=16), shape("no_such"), shape())])

    assert "RuntimeError: " in found[0]["error"]
    assert found[1]["error"].startswith("model.architecture: got 'no_such'")
    assert found[2]["size"]["num_parameters"] == 11_181_642


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "batch"), [("resnet18", 64), ("shufflenet_v2_x1_0", 64), ("alexnet", 32)], ids=lambda part: part
)
def test_the_estimate_is_near_what_training_takes(architecture: str, batch: int) -> None:
    words = [architecture, "10", "96", str(batch)]
    done = subprocess.run([sys.executable, "-c", TRAINING, *words], capture_output=True, text=True, check=True)
    spec = ExperimentSpec(
        data=DataSpec(name="x", resize=96, crop=96),
        model=ModelSpec(architecture=architecture),
        batch_size=batch,
        optimizer=SgdSpec(),
    )
    asked = json.dumps([shape_of(spec, 10).model_dump(mode="json")])
    told = subprocess.run(
        [sys.executable, "-m", "trainer.measure"], input=asked, capture_output=True, text=True, check=True
    )
    size = measure(shape_of(spec, 10)).model_copy(
        update={"process_bytes": json.loads(told.stdout)[0]["size"]["process_bytes"]}
    )

    assert 1 / FACTOR < training_bytes(spec, size) / int(done.stdout) < FACTOR
    assert state_bytes(spec, size.num_parameters, size.num_trainable_parameters) < training_bytes(spec, size)
