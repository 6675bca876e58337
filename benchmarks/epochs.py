"""Whole epochs of a real run against bare compute of the same images, and against the script a user would write.

One run of the trainer is measured from inside: at each epoch's end, when all that it wrote is written, it is held and
the other sides do one epoch of their own. So the sides take turns in one process, on the same threads; the first epoch
of each side is its warm-up. What is timed of ours is everything between two such moments: saving the epoch before,
drawing, augmenting, steps, validation, metrics, writing the checkpoint.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.figures import Row, Target, divided, timed
from benchmarks.place import Data, Place
from benchmarks.usual_script import train
from trainer import numerics as numerics_of
from trainer import run as running
from trainer.cache import Cache
from trainer.data import Loader
from trainer.identity import factory_source_hash, run_id, with_seed
from trainer.machine import available_threads
from trainer.optim import build_optimizer
from trainer.part import Part, open_part
from trainer.recorder import LogBuffer, Recorder
from trainer.result import EpochMetrics
from trainer.run import Report, compiled, first_network, memory_format_of, open_attempt, run_experiment
from trainer.spec import AugmentationSpec, ExperimentSpec, RunSpec
from trainer.stop import StopSignal
from trainer.train import forward

BARE = "bare compute of the same images on tensors in memory"
SCRIPT = "the usual script; the other side is its limit, bare compute ÷ script"


@dataclass(frozen=True)
class Case:
    """A run to measure. `images_per_class` keeps an epoch short on a CPU; a GPU takes the whole data set."""

    name: str
    what: str
    architecture: str
    batch_size: int
    images_per_class: int
    bound: float
    aim: float
    augmentation: str = "none"
    deterministic: bool = True
    with_script: bool = False


# 10 and 1 images of each of 101 classes: about 30 s and 20 s for an epoch with its validation on two cores
ALEXNET = Case("alexnet", "AlexNet, batch 256", "alexnet", 256, 10, 0.90, 0.97, with_script=True)
ALEXNET_AUGMENTED = Case(
    "alexnet-augmented",
    "AlexNet, batch 256, augmentation report_2",
    "alexnet",
    256,
    10,
    0.90,
    0.97,
    augmentation="report_2",
    with_script=True,
)
RESNET50 = Case("resnet50", "ResNet50, batch 16", "resnet50", 16, 1, 0.93, 0.98)
GPU_CASES = tuple(
    Case(
        f"gpu-{architecture}-{'deterministic' if deterministic else 'free'}",
        f"{title}, batch {batch_size}, on the GPU, {'' if deterministic else 'not '}deterministic",
        architecture,
        batch_size,
        10,
        0.90,
        0.97,
        deterministic=deterministic,
    )
    for architecture, title, batch_size in (("alexnet", "AlexNet", 256), ("resnet50", "ResNet50", 16))
    for deterministic in (True, False)
)


def alexnet(place: Place) -> list[Row]:
    """AlexNet without augmentation, against bare compute and against the usual script."""
    return on_cpu(place, ALEXNET)


def alexnet_augmented(place: Place) -> list[Row]:
    """The same with the report's second pipeline."""
    return on_cpu(place, ALEXNET_AUGMENTED)


def resnet50(place: Place) -> list[Row]:
    """ResNet50 against bare compute."""
    return on_cpu(place, RESNET50)


def gpu(place: Place) -> list[Row]:
    """Both networks on a GPU, deterministic and not, against bare compute of the same."""
    rows: list[Row] = []
    for case in GPU_CASES:
        rows += measured(place, case) if torch.cuda.is_available() else [skipped(case, "no GPU here")]
    return rows


def on_cpu(place: Place, case: Case) -> list[Row]:
    """The case's rows, where it would train on a CPU."""
    if torch.cuda.is_available():
        return [skipped(case, "this machine trains on its GPU; CUDA_VISIBLE_DEVICES= measures its CPU")]
    if place.whole:  # a row of its own beside the subset's
        case = replace(case, name=f"{case.name}-whole", what=f"{case.what}, all images")
    return measured(place, case)


def skipped(case: Case, reason: str) -> Row:
    """A row that says why the case was not measured."""
    return Row(case.name, case.what, BARE, skipped=reason)


def measured(place: Place, case: Case) -> list[Row]:
    """The case's rows."""
    data = place.data()
    if data is None:
        return [skipped(case, "CALTECH101_DIR is not set")]
    spec = run_spec(place, data, case)
    place.forget_runs()
    place.say(f"{case.name}: {case.what}, {data.text}, {spec.data.images_per_class or 'all'} images per class")
    bare = Bare(place, data, spec)
    sides: dict[str, Callable[[], float]] = {"bare": timed(bare.epoch)}
    if case.with_script:
        sides["script"] = timed(script_epochs(place, data, spec, bare))
    seconds = run_beside(place, spec, sides)
    place.forget_runs()
    return rows_of(case, data, bare, seconds)


def run_spec(place: Place, data: Data, case: Case) -> RunSpec:
    """The run that the case trains: one epoch of warm-up and one for each round."""
    whole = place.whole or torch.cuda.is_available()
    values: dict[str, object] = {
        "data": {
            "name": data.index.name,
            "fingerprint": data.index.fingerprint,
            "images_per_class": None if whole else case.images_per_class,
        },
        "model": {"architecture": case.architecture},
        "augmentation": case.augmentation,
        "batch_size": case.batch_size,
        "epochs": place.rounds + 1,
        "deterministic": case.deterministic,
    }
    if place.quick:
        tiny = "benchmarks.networks:tiny"
        values["data"] = {"name": data.index.name, "fingerprint": data.index.fingerprint, "resize": 32, "crop": 28}
        values["model"] = {"architecture": tiny, "source_hash": factory_source_hash(tiny)}
        values["batch_size"] = 10
    return with_seed(ExperimentSpec.model_validate(values), 0)


class Bare:
    """Forward, backward and step for every training image and forward for every validation image, and nothing else."""

    def __init__(self, place: Place, data: Data, spec: RunSpec) -> None:
        self.device = numerics_of.pick_device()
        self.numerics = numerics_of.settle(spec, self.device, available_threads())
        numerics_of.apply(self.numerics)
        self.network = running.place(first_network(spec, data.index, place.store), self.device, self.numerics)
        self.model = compiled(self.network, self.numerics)
        self.optimizer = build_optimizer(spec.optimizer, self.network.trainable_parameters())
        cache = Cache()
        self.parts = [open_part(data.index, spec.data, name, place.store, cache) for name in ("train", "validation")]
        self.training, self.validation = (self._tensors(spec, part) for part in self.parts)
        self.num_images = sum(len(part) for part in self.parts)

    def _tensors(self, spec: RunSpec, part: Part) -> list[tuple[Tensor, Tensor]]:
        loader = Loader(part, spec.data, AugmentationSpec(), self.device, memory_format_of(self.numerics))
        batches = [np.arange(at, min(at + spec.batch_size, len(part))) for at in range(0, len(part), spec.batch_size)]
        return [(images.clone(), labels) for images, labels in loader.batches(batches, seed=0, epoch=0, restart=0)]

    def epoch(self) -> None:
        """Compute one epoch."""
        self.network.train()
        for images, labels in self.training:
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(F.cross_entropy(forward(self.model, self.numerics, images), labels))
            self.optimizer.step()
        self.network.module.eval()
        with torch.inference_mode():
            for images, _ in self.validation:
                forward(self.model, self.numerics, images)
        self.synchronize()

    def synchronize(self) -> None:
        """Wait until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def script_epochs(place: Place, data: Data, spec: RunSpec, bare: Bare) -> Callable[[], object]:
    """The usual script on the very files of the run's two parts; each call is its next epoch."""
    training, validation = ([(data.source / entry.path, entry.label) for entry in part.entries] for part in bare.parts)
    network = first_network(spec, data.index, place.store)
    epochs = train(
        network.module,
        training,
        validation,
        resize=spec.data.resize,
        crop=spec.data.crop,
        augment=spec.augmentation.is_geometric,
        batch_size=spec.batch_size,
        lr=spec.optimizer.lr,
    )
    return lambda: next(epochs)


def run_beside(place: Place, spec: RunSpec, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each epoch of the run (`ours`) and of each other side, warm-up left out."""
    run = run_id(spec)
    with open_attempt(
        run,
        spec,
        place.store,
        StopSignal(),
        LogBuffer(),
        exact=True,
        report=lambda _: None,
        started=time.monotonic(),
    ) as attempt:
        turns = Turns(place, attempt.recorder, sides)
        attempt.report = turns
        run_experiment(attempt)
    return turns.seconds


class Turns:
    """Takes the run's reports; at each epoch's end the run waits while the other sides do one of theirs."""

    def __init__(self, place: Place, recorder: Recorder, sides: Mapping[str, Callable[[], float]]) -> None:
        self.place = place
        self.recorder = recorder
        self.sides = sides
        self.seconds: dict[str, list[float]] = {name: [] for name in ("ours", *sides)}
        self.begun = time.perf_counter()

    def __call__(self, what: Report) -> None:
        """Note the epoch's time and let the others have their turn."""
        if not isinstance(what, EpochMetrics):
            return
        ended = time.perf_counter()
        while self.recorder.is_checkpoint_in_flight:  # of the epoch before; its writing is part of ours
            time.sleep(0.001)
        self.recorder.check()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._note(what.epoch, "ours", now - self.begun, f" ({now - ended:.3f} s of it waiting for the checkpoint)")
        for name, side in self.sides.items():
            gc.collect()
            self._note(what.epoch, name, side())
        gc.collect()
        self.begun = time.perf_counter()

    def _note(self, epoch: int, name: str, seconds: float, remark: str = "") -> None:
        turn = "warm-up" if epoch == 1 else f"round {epoch - 1} of {self.place.rounds}"
        self.place.say(f"{turn}: {name} {seconds:.3f} s{remark}")
        if epoch > 1:
            self.seconds[name].append(seconds)


def rows_of(case: Case, data: Data, bare: Bare, seconds: Mapping[str, list[float]]) -> list[Row]:
    """The case's rows from what was measured."""

    def speed(name: str) -> str:
        return f"{bare.num_images / median(seconds[name]):.1f} images/s"

    target = Target(case.bound, case.aim, more_is_better=True)
    of_bare = divided(seconds["bare"], seconds["ours"])
    note = (
        f"{len(bare.parts[0])} training and {len(bare.parts[1])} validation images of {data.text}, "
        f"{bare.numerics.precision}, {bare.numerics.threads} threads, {bare.numerics.memory_format}; ratio of images/s"
    )
    rows = [Row(case.name, case.what, BARE, of_bare, speed("ours"), speed("bare"), target, note)]
    if "script" in seconds:
        gain = median(divided(seconds["script"], seconds["ours"]))
        limit = median(divided(seconds["script"], seconds["bare"]))
        note = f"ours {speed('ours')}, script {speed('script')}; ours ÷ script is {gain / limit:.3f} of the limit"
        rows.append(
            Row(f"{case.name}-script", case.what, SCRIPT, of_bare, f"{gain:.2f} x", f"{limit:.2f} x", target, note)
        )
    return rows
