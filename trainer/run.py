"""One run from its spec to its result: what an attempt does, in order."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer import events
from trainer import numerics as numerics_of
from trainer.augment import epoch_order, weights_seed
from trainer.cache import Cache
from trainer.checkpoint import Checkpoint, Snapshot, read_blob
from trainer.data import Loader
from trainer.dataset import DatasetIndex, PartName, load_expected_index
from trainer.failure import DataError, DeviceError, OutOfDeviceMemory, SpecError, Stopped
from trainer.history import read_epochs, read_metrics
from trainer.identity import write_spec
from trainer.lease import Lease, attempt_number
from trainer.machine import available_threads
from trainer.model import Network, build_network
from trainer.optim import build_optimizer
from trainer.part import Part, open_part
from trainer.recorder import LogBuffer, Recorder
from trainer.result import EpochMetrics, Numerics, Provenance, Result, ResumedFrom, Stored, TestResult, parse_record
from trainer.spec import AugmentationSpec, Recipe, RunSpec
from trainer.stop import StopSignal
from trainer.store import Conflict, NotFound, Store
from trainer.telemetry import SILENT, DeviceMemory, Telemetry
from trainer.train import StepReport, TrainState, evaluate, run_epoch, save

RECIPE = Recipe()
"""The recipe that this code is. A change that alters any run's numbers needs a new version."""

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors")

Report = ResumedFrom | StepReport | EpochMetrics
"""What an attempt tells of itself as it goes: where it goes on, how far it is, what each epoch came to."""

log = logging.getLogger(__name__)


@dataclass
class Attempt:
    """What one start of a run works with."""

    run: str
    spec: RunSpec
    store: Store
    lease: Lease
    recorder: Recorder
    stop: StopSignal
    cache: Cache
    exact: bool  # whether to refuse a machine that cannot obey the run's numerics
    report: Callable[[Report], None]
    started: float = field(default_factory=time.monotonic)
    telemetry: Telemetry = SILENT


def run_experiment(attempt: Attempt) -> Result:
    """Train the run to its end, from the newest whole checkpoint if there is one, and write its result.

    1. settle the numerics, or obey those that an earlier attempt settled on
    2. open the data, build the network, take up the checkpoint
    3. epoch after epoch: train, validate, keep or go back, write metrics and checkpoint beside the next steps
    4. write the result, drop what is no longer needed
    """
    refuse_other_recipes(attempt.spec)
    keep_spec(attempt)
    device = numerics_of.pick_device()
    settled = settle(attempt, device)
    while True:
        try:
            return _train(attempt, device, settled)
        except torch.OutOfMemoryError as error:
            settled = smaller_micro_batch(attempt, settled, error)
        torch.cuda.empty_cache()  # out here the failed attempt's tensors are garbage


def _train(attempt: Attempt, device: torch.device, settled: Numerics) -> Result:
    spec, telemetry = attempt.spec, attempt.telemetry
    used = numerics_of.obeyed(settled, device, exact=attempt.exact)
    numerics_of.apply(used)
    watch_memory(device, telemetry)
    telemetry.lap("other")
    found = attempt.recorder.checkpoints.read()
    tell_where_it_begins(attempt, found[0] if found else None)
    telemetry.lap("store")
    index = load_expected_index(spec.data, attempt.store)
    train, validation = open_images(attempt, index, "train"), open_images(attempt, index, "validation")
    telemetry.lap("data")
    state = new_state(attempt, device, used, index, train, validation)
    resume(state, found)
    state.progress = state.progress.model_copy(update={"exact": state.progress.exact and used == settled})
    telemetry.lap("other")
    provenance = write_provenance(attempt, used, state)
    telemetry.lap("store")
    write_events(attempt, state, provenance)
    telemetry.lap("data")
    try:
        while not state.is_finished:
            metrics = run_epoch(state, attempt.recorder, attempt.stop, attempt.report)
            attempt.recorder.record(metrics)
            attempt.lease.epoch, attempt.lease.validation_accuracy = metrics.epoch, metrics.validation_accuracy
            attempt.report(metrics)
            telemetry.lap("other")
            if not (state.is_finished or attempt.recorder.is_checkpoint_in_flight):
                save(state, attempt.recorder)
    except Stopped:
        if not attempt.lease.lost:
            save(state, attempt.recorder)
        raise
    save(state, attempt.recorder)
    attempt.recorder.finish()
    result = write_result(attempt, state)
    telemetry.lap("store")
    return result


def watch_memory(device: torch.device, telemetry: Telemetry) -> None:
    """Let telemetry read a GPU's memory, as torch's allocator counts it: asking it waits for nothing."""
    if device.type == "cuda":
        limit = torch.cuda.get_device_properties(device).total_memory
        telemetry.watch_device(
            lambda: DeviceMemory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device), limit)
        )


def refuse_other_recipes(spec: RunSpec) -> None:
    """Raise SpecError unless this code is the recipe that the spec names: its numbers would be another's."""
    if spec.recipe != RECIPE:
        raise SpecError(
            f"recipe: got {spec.recipe.name} version {spec.recipe.version}, this trainer is {RECIPE.name} version "
            f"{RECIPE.version}",
            hint="use the image or the commit that the grid was planned with, or plan the grid again",
        )


def keep_spec(attempt: Attempt) -> None:
    """Put the spec into the store where it is not yet: a pod has it from its Job, a test finds it by the run's id."""
    with suppress(Conflict):
        attempt.store.create(f"runs/{attempt.run}/spec.yaml", write_spec(attempt.spec).encode())


def settle(attempt: Attempt, device: torch.device) -> Numerics:
    """The numerics an earlier attempt settled on, or this one's, written for those to come."""
    key = f"runs/{attempt.run}/numerics.json"
    try:
        return read_record(attempt.store, key, Numerics)
    except NotFound:
        settled = numerics_of.settle(attempt.spec, device, available_threads())
    try:
        attempt.store.create(key, settled.model_dump_json(indent=2).encode())
    except Conflict:
        return read_record(attempt.store, key, Numerics)
    return settled


def read_record(store: Store, key: str, model: type[Stored]) -> Stored:
    """The record under `key`. Raises NotFound, and DataError where the object is none."""
    return parse_record(model, key, store.get(key))


def smaller_micro_batch(attempt: Attempt, settled: Numerics, error: Exception) -> Numerics:
    """Numerics with half the micro-batch, written anew; allowed only while the run has no checkpoint.

    Raises OutOfDeviceMemory when there is nothing left to halve, DeviceError when the run has fitted before.
    """
    hint = "set a smaller micro_batch in the grid, or ask for a device with more memory"
    # in this order: what is in flight now is current once it no longer is
    if attempt.recorder.is_checkpoint_in_flight or attempt.recorder.checkpoints.current is not None:
        raise DeviceError(f"device memory: the run fitted before and does not now: {error}", hint=hint) from error
    if settled.micro_batch == 1:
        raise OutOfDeviceMemory(f"device memory: too small even for one image at a time: {error}", hint=hint) from error
    smaller = settled.model_copy(update={"micro_batch": (settled.micro_batch + 1) // 2})
    log.warning(
        "device memory is too small for a micro-batch of %d, trying %d", settled.micro_batch, smaller.micro_batch
    )
    attempt.lease.check()
    attempt.store.put(f"runs/{attempt.run}/numerics.json", smaller.model_dump_json(indent=2).encode())
    return smaller


def open_images(attempt: Attempt, index: DatasetIndex, name: PartName) -> Part:
    """One part of the data, decoded. Raises DataError when it has no images."""
    part = open_part(index, attempt.spec.data, name, attempt.store, attempt.cache)
    if not len(part):
        raise DataError(f"data: data set {index.name!r} has no {name} images", hint="import it with another split")
    attempt.stop.check()
    return part


def new_state(
    attempt: Attempt, device: torch.device, numerics: Numerics, index: DatasetIndex, train: Part, validation: Part
) -> TrainState:
    """The run before its first step, on `device`."""
    spec = attempt.spec
    network = place(first_network(spec, index, attempt.store), device, numerics)
    memory_format = memory_format_of(numerics)
    return TrainState(
        spec=spec,
        numerics=numerics,
        network=network,
        model=compiled(network, numerics),
        optimizer=build_optimizer(spec.optimizer, network.trainable_parameters()),
        train=Loader(train, spec.data, spec.augmentation, device, memory_format),
        validation=Loader(validation, spec.data, AugmentationSpec(), device, memory_format),
        started=attempt.started,
        telemetry=attempt.telemetry,
    )


def first_network(spec: RunSpec, index: DatasetIndex, store: Store) -> Network:
    """The network with its first weights, on the CPU."""
    return build_network(spec.model, index.num_classes, weights_seed(spec.seed), store)


def best_network(spec: RunSpec, best_weights: str, index: DatasetIndex, store: Store) -> Network:
    """The network with the weights of the run's best epoch, on the CPU. Raises DataError where they are not whole."""
    unpretrained = spec.model.model_copy(update={"weights": None})  # they would be overwritten at once
    network = first_network(spec.model_copy(update={"model": unpretrained}), index, store)
    network.module.load_state_dict(read_blob(store, best_weights).tensors)
    return network


def place(network: Network, device: torch.device, numerics: Numerics) -> Network:
    """The network moved to `device`, in the numerics' memory format and, where they say so, repeatable there."""
    if device.type == "cuda" and numerics.deterministic:
        numerics_of.make_repeatable(network.module)
    network.module.to(device).to(memory_format=memory_format_of(numerics))
    return network


def memory_format_of(numerics: Numerics) -> torch.memory_format:
    """torch's name for the numerics' memory format."""
    return torch.channels_last if numerics.memory_format == "channels_last" else torch.contiguous_format


def compiled(network: Network, numerics: Numerics) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network's forward pass, compiled where the numerics say so."""
    forward: Callable[[torch.Tensor], torch.Tensor] = network.module
    return torch.compile(forward) if numerics.compile else forward


def tell_where_it_begins(attempt: Attempt, checkpoint: Checkpoint | None) -> None:
    """Say, first of all in the attempt's log, where the run begins or goes on, and report the latter."""
    attempt_name, epochs = attempt.lease.attempt, attempt.spec.epochs
    if checkpoint is None:
        log.info("attempt %s begins the run: %d epochs", attempt_name, epochs)
        return
    attempt.telemetry.go_on(checkpoint.progress, checkpoint.best_metrics, lambda: epoch_before(attempt, checkpoint))
    attempt.report(resumed_from(checkpoint))
    log.info(
        "attempt %s goes on in epoch %d of %d, after %d steps of it, from the checkpoint of attempt %s",
        attempt_name,
        min(checkpoint.progress.epoch + 1, epochs),
        epochs,
        checkpoint.progress.step_in_epoch,
        checkpoint.attempt,
    )


def epoch_before(attempt: Attempt, checkpoint: Checkpoint) -> EpochMetrics | None:
    """The last epoch that the checkpoint has behind it, as an earlier attempt left it; none where it left none."""
    try:
        rows = read_metrics(attempt.store, attempt.run)
    except DataError as error:  # no reason not to train
        log.warning("telemetry lacks the last epoch of earlier attempts: %s", error)
        return None
    return next((row for row in rows if row.epoch == checkpoint.progress.epoch), None)


def resumed_from(checkpoint: Checkpoint) -> ResumedFrom:
    """The checkpoint as the attempt that goes on from it remembers it."""
    progress = checkpoint.progress
    return ResumedFrom(
        attempt=checkpoint.attempt, sequence=checkpoint.sequence, epoch=progress.epoch, step=progress.step
    )


def resume(state: TrainState, found: tuple[Checkpoint, Snapshot, Snapshot | None] | None) -> None:
    """Take the run up from its newest whole checkpoint; without one it begins."""
    if found is None:
        state.first = state.capture()
        return
    checkpoint, saved, best = found
    state.progress, state.best, state.best_metrics = checkpoint.progress, best, checkpoint.best_metrics
    if best is None:
        state.first = state.capture()  # a restart before any best epoch needs the first weights
    state.restore(saved)


def write_provenance(attempt: Attempt, numerics: Numerics, state: TrainState) -> Provenance:
    """Write where and with what this attempt computes, and from which checkpoint it goes on."""
    found = attempt.recorder.checkpoints.current
    provenance = Provenance(
        run=attempt.run,
        attempt=attempt.lease.attempt,
        host=platform.node(),
        started=datetime.now(UTC),
        numerics=numerics,
        versions=package_versions(),
        commit=code_commit(),
        resumed_from=found and resumed_from(found),
    )
    attempt.recorder.write("provenance.json", provenance)
    log.info(
        "%s: %d of %d parameters train, %d training and %d validation images, %s on %s, %d threads",
        attempt.run,
        state.network.num_trainable_parameters,
        state.network.num_parameters,
        len(state.train.part),
        len(state.validation.part),
        numerics.precision,
        numerics.device_model,
        numerics.threads,
    )
    return provenance


def write_events(attempt: Attempt, state: TrainState, provenance: Provenance) -> None:
    """Let the recorder write the run's event file for TensorBoard, unless the environment says that it is not to be.

    It goes on after the epochs that this attempt goes on from, as all attempts left them in the store.
    """
    if not events.are_wanted(os.environ):
        return
    images_NHWC, num_epochs = first_images(state), state.progress.epoch

    def begin() -> events.EventFile:
        file = events.EventFile(attempt.spec, events.sheet_of(images_NHWC))
        try:
            earlier = read_epochs(attempt.store, attempt.run) if num_epochs else []
        except DataError as error:  # no reason not to train
            log.warning("the event file for TensorBoard lacks the epochs of earlier attempts: %s", error)
            earlier = []
        for epoch in earlier:
            if epoch.metrics.epoch <= num_epochs:
                file.add(epoch)
        return file

    attempt.recorder.write_events(provenance.started.timestamp(), begin)


def first_images(state: TrainState) -> npt.NDArray[np.uint8]:
    """The first images that the run's network gets or got in epoch 1, (N, H, W, 3), with the normalisation undone.

    Draws come from (seed, epoch, index) alone: that they are made once more changes none.
    """
    spec = state.spec
    first = epoch_order(spec.seed, 0, 0, len(state.train.part))[: events.SHEET_IMAGES]
    images_BCHW, _ = state.train.batch(first, seed=spec.seed, epoch=0, restart=0)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.data.normalize.mean, spec.data.normalize.std))
    pixels_BCHW = images_BCHW.cpu() * std + mean
    return pixels_BCHW.mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@cache
def code_commit() -> str | None:
    """Commit of this code: what the image was built from (GRID_COMMIT), or the checkout's; `+` marks local changes."""
    if "GRID_COMMIT" in os.environ:
        return os.environ["GRID_COMMIT"]
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    ask = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_result(attempt: Attempt, state: TrainState) -> Result:
    """Write the run's result, once, and leave of its checkpoints what the spec says. Returns the one that stands."""
    spec, progress, best = state.spec, state.progress, state.best_metrics
    checkpoint = attempt.recorder.checkpoints.current
    assert best is not None
    assert checkpoint is not None
    assert checkpoint.best is not None
    result = Result(
        run=attempt.run,
        spec=spec.model_dump(mode="json", exclude={"seed"}),
        seed=spec.seed,
        best_epoch=best.epoch,
        train_loss=best.train_loss,
        train_accuracy=best.train_accuracy,
        validation_loss=best.validation_loss,
        validation_accuracy=best.validation_accuracy,
        validation_balanced_accuracy=best.validation_balanced_accuracy,
        validation_top5_accuracy=best.validation_top5_accuracy,
        num_parameters=state.network.num_parameters,
        num_trainable_parameters=state.network.num_trainable_parameters,
        epochs_run=progress.epoch,
        images_per_second=progress.images / progress.seconds,
        wall_seconds=progress.wall_seconds,
        peak_memory_bytes=progress.peak_memory_bytes,
        numerics=state.numerics,
        exact=progress.exact,
        data_fingerprint=str(spec.data.fingerprint),
        weights_fingerprint=spec.model.weights_fingerprint,
        versions=package_versions(),
        commit=code_commit(),
        best_weights=None if spec.checkpoint.keep == "none" else checkpoint.best.model,
        attempts=attempt_number(attempt.lease.attempt),
        restarts=progress.restarts,
        returns_to_best=progress.returns,
    )
    attempt.lease.check()
    log.info("best epoch %d: %s %.4f", best.epoch, spec.best.metric, getattr(best, spec.best.metric))
    attempt.recorder.write_log()
    try:
        attempt.store.create(f"results/{attempt.run}.json", result.model_dump_json(indent=2).encode())
    except Conflict:  # another attempt's stands: the numbers are the same
        result = read_record(attempt.store, f"results/{attempt.run}.json", Result)
    if spec.checkpoint.keep != "all":
        attempt.recorder.checkpoints.retain_only(result.best_weights)
    return result


def test_experiment(attempt: Attempt) -> TestResult:
    """Evaluate the run's best weights on the test part, once, and write the numbers and the predictions.

    Raises DataError when the run has no result or kept no weights.
    """
    spec, store, run = attempt.spec, attempt.store, attempt.run
    try:
        result = read_record(store, f"results/{run}.json", Result)
    except NotFound as error:
        raise DataError(f"--test: run {run} has no result", hint="train it first: leave --test out") from error
    if result.best_weights is None:
        raise DataError(
            f"--test: run {run} kept no weights: its checkpoint.keep was none",
            hint=f"set checkpoint.keep to best, delete results/{run}.json and train it again: to the same numbers, on "
            "equal numerics",
        )
    refuse_other_recipes(spec)
    device = numerics_of.pick_device()
    used = numerics_of.obeyed(result.numerics, device, exact=attempt.exact)
    numerics_of.apply(used)
    index = load_expected_index(spec.data, store)
    part = open_images(attempt, index, "test")
    network = place(best_network(spec, result.best_weights, index, store), device, used)
    loader = Loader(part, spec.data, AugmentationSpec(), device, memory_format_of(used))
    scores, logits_NK = evaluate(compiled(network, used), network, used, loader, attempt.stop)
    predictions = f"runs/{run}/test/predictions.npz"
    store.put(predictions, _predictions(part.indices_N, part.labels_N, logits_NK))
    tested = TestResult(
        run=run,
        test_loss=scores.loss,
        test_accuracy=scores.accuracy,
        test_balanced_accuracy=scores.balanced_accuracy,
        test_top5_accuracy=scores.top5_accuracy,
        num_images=len(part),
        predictions=predictions,
        numerics=used,
        data_fingerprint=index.fingerprint,
        wall_seconds=time.monotonic() - attempt.started,
    )
    attempt.lease.check()
    try:
        store.create(f"tests/{run}.json", tested.model_dump_json(indent=2).encode())
    except Conflict:
        return read_record(store, f"tests/{run}.json", TestResult)
    return tested


def _predictions(index_N: npt.NDArray[np.int64], label_N: npt.NDArray[np.int64], logits_NK: torch.Tensor) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(buffer, index=index_N, label=label_N, logits=logits_NK.numpy())
    return buffer.getvalue()


@contextmanager
def open_attempt(
    run: str,
    spec: RunSpec,
    store: Store,
    stop: StopSignal,
    log_buffer: LogBuffer,
    *,
    exact: bool,
    report: Callable[[Report], None],
    started: float,
    telemetry: Telemetry = SILENT,
) -> Iterator[Attempt]:
    """An attempt that holds the run's lease; in the end its log is in the store and the lease is free."""
    lease = Lease(store, run, stop)
    lease.acquire()
    telemetry.begin_attempt(attempt_number(lease.attempt))
    recorder = Recorder(store, run, lease, log_buffer, telemetry)
    recorder.start()
    try:
        cache = Cache(progress=lambda _done, _total: stop.check())
        yield Attempt(run, spec, store, lease, recorder, stop, cache, exact, report, started, telemetry)
    finally:
        try:
            recorder.close()
        finally:
            lease.release()
