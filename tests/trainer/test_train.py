"""The training loop in its parts: what one step computes, how epochs are scored."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pictures import import_pictures, tiny_run
from torch import nn

from trainer import numerics as numerics_of
from trainer.cache import Cache
from trainer.checkpoint import Progress
from trainer.data import Loader
from trainer.failure import Stopped
from trainer.identity import factory_source_hash
from trainer.lease import Lease
from trainer.optim import build_optimizer
from trainer.part import open_part
from trainer.recorder import LogBuffer, Recorder
from trainer.result import EpochMetrics
from trainer.run import compiled, first_network, memory_format_of, place
from trainer.spec import AugmentationSpec, RunSpec
from trainer.stop import StopSignal
from trainer.store import FileStore
from trainer.train import TrainState, forward, optimizer_step, restart, run_epoch, save, score, train_epoch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FileStore:
    return FileStore(tmp_path_factory.mktemp("store"))


def state_of(store: FileStore, tmp_path: Path, **spec: object) -> TrainState:
    """A run before its first step, in fp32 on one thread."""
    index = import_pictures(store, tmp_path / "images")
    run = tiny_run(index, **{"precision": "fp32", **spec})
    numerics = numerics_of.settle(run, CPU, threads=1)
    numerics_of.apply(numerics)
    network = place(first_network(run, index, store), CPU, numerics)
    parts = [open_part(index, run.data, name, store, Cache(tmp_path / "cache")) for name in ("train", "validation")]
    loaders = [
        Loader(part, run.data, augmentation, CPU, memory_format_of(numerics))
        for part, augmentation in zip(parts, (run.augmentation, AugmentationSpec()), strict=True)
    ]
    return TrainState(
        spec=run,
        numerics=numerics,
        network=network,
        model=compiled(network, numerics),
        optimizer=build_optimizer(run.optimizer, network.trainable_parameters()),
        train=loaders[0],
        validation=loaders[1],
    )


def test_a_step_is_the_one_that_plain_torch_takes(store: FileStore, tmp_path: Path) -> None:
    state = state_of(store, tmp_path, model=model_of("plain"), clip_norm=0.5)
    theirs = first_network(state.spec, import_pictures(store, tmp_path / "images"), store).module
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-5)
    images, labels = state.train.batch(torch.arange(10), seed=0, epoch=0, restart=0)
    for step in range(2):
        optimizer_step(state, images, labels, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(images), labels).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
    for own, other in zip(state.network.module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def model_of(name: str) -> dict[str, object]:
    return {"architecture": f"networks:{name}", "source_hash": factory_source_hash(f"networks:{name}")}


def test_bf16_is_autocast_over_fp32_weights(store: FileStore, tmp_path: Path) -> None:
    state = state_of(store, tmp_path, precision="bf16", model=model_of("usual"))
    images, labels = state.train.batch(torch.arange(10), seed=0, epoch=0, restart=0)
    loss_sum, _ = optimizer_step(state, images, labels, 0)
    assert loss_sum.dtype == torch.float64
    assert math.isfinite(loss_sum.item())
    assert {value.dtype for value in state.network.module.state_dict().values()} == {torch.float32, torch.int64}
    state.network.module.eval()  # dropout draws anew in every pass
    bf16 = forward(state.model, state.numerics, images)
    fp32 = forward(state.model, state.numerics.model_copy(update={"precision": "fp32"}), images)
    assert bf16.dtype == torch.float32
    assert not torch.equal(bf16, fp32)
    torch.testing.assert_close(bf16, fp32, rtol=0.1, atol=0.1)


def test_frozen_parameters_stay_as_they_are(store: FileStore, tmp_path: Path) -> None:
    state = state_of(store, tmp_path, model={**model_of("usual"), "freeze": ["0", "1"]})
    before = {name: value.clone() for name, value in state.network.module.state_dict().items()}
    state.network.train()
    for step in range(2):
        optimizer_step(state, *state.train.batch(torch.arange(10), seed=0, epoch=0, restart=0), step)
    after = state.network.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"6.weight", "6.bias"}


def test_scores_are_those_of_their_definitions() -> None:
    logits_NK = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    labels_N = torch.tensor([0, 0, 0, 2])
    scores = score(logits_NK, labels_N)
    right, wrong = math.log(math.exp(2) + 2) - 2, math.log(math.exp(2) + 2)
    assert scores.accuracy == 0.75
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)  # class 1 has no image to be right about
    assert scores.top5_accuracy == 1.0
    assert scores.loss == pytest.approx((3 * right + wrong) / 4)


def test_top5_counts_a_label_among_the_five_largest_logits() -> None:
    logits_NK = torch.arange(8.0).repeat(2, 1)
    assert score(logits_NK, torch.tensor([3, 2])).top5_accuracy == 0.5


def test_a_spec_of_another_batch_size_has_steps_to_match(store: FileStore, tmp_path: Path) -> None:
    state = state_of(store, tmp_path)
    assert isinstance(state.spec, RunSpec)
    assert state.num_steps == math.ceil(len(state.train.part) / 10)


def recorder_of(store: FileStore) -> Recorder:
    return Recorder(store, "run", Lease(store, "run", StopSignal()), LogBuffer())


def test_the_time_of_an_epoch_that_begins_again_counts(store: FileStore, tmp_path: Path) -> None:
    state = state_of(store, tmp_path, model=model_of("usual"), optimizer={"lr": 1e18})
    assert not train_epoch(state, recorder_of(store), StopSignal(), lambda _: None)
    lost = state.progress
    assert (lost.step_in_epoch, lost.step) == (state.num_steps, state.num_steps)
    assert lost.epoch_seconds > 0
    state.first = state.capture()
    restart(state)
    assert (state.progress.step_in_epoch, state.progress.step, state.progress.restarts) == (0, 0, 1)
    assert state.progress.epoch_seconds == lost.epoch_seconds


def test_the_time_of_a_validation_that_was_not_finite_counts(store: FileStore, tmp_path: Path) -> None:
    state = state_of(store, tmp_path, model=model_of("plain"))
    state.first = state.capture()
    network, seconds = state.network.module, {}

    def broken_once(images: torch.Tensor) -> torch.Tensor:
        when = f"{'training' if network.training else 'validation'} after {state.progress.restarts} restarts"
        seconds.setdefault(when, state.progress.epoch_seconds)
        logits: torch.Tensor = network(images)
        return logits * math.nan if when == "validation after 0 restarts" else logits

    state.model = broken_once
    metrics = run_epoch(state, recorder_of(store), StopSignal(), lambda _: None)
    assert metrics.restarts == 1
    assert seconds["training after 1 restarts"] > seconds["validation after 0 restarts"] > 0
    assert metrics.seconds > seconds["validation after 1 restarts"] > seconds["training after 1 restarts"]


def metrics_of(epoch: int) -> EpochMetrics:
    """An epoch's metrics, of any values."""
    return EpochMetrics.model_construct(epoch=epoch, validation_loss=1.0)


@pytest.mark.parametrize(
    ("best_epoch", "progress", "spec", "is_written_once"),
    [
        (3, {"epoch": 3}, {}, True),
        (1, {"epoch": 3, "since_best": 0}, {}, True),
        (1, {"epoch": 3, "since_best": 0}, {"best": {"optimizer": "keep"}}, False),
        (2, {"epoch": 3, "since_best": 1}, {}, False),
        (3, {"epoch": 3, "step_in_epoch": 2}, {}, False),
        (2, {"epoch": 9, "since_best": 7}, {}, True),
        (2, {"epoch": 9, "since_best": 7}, {"checkpoint": {"keep": "all"}}, False),
    ],
    ids=[
        "right after the best epoch",
        "back at the best",
        "back at the best but for the optimiser",
        "an epoch after the best",
        "in the middle of an epoch",
        "at the end",
        "at the end, all being kept",
    ],
)
def test_a_state_that_is_the_best_one_is_written_once(
    tmp_path: Path, best_epoch: int, progress: dict[str, int], spec: dict[str, object], is_written_once: bool
) -> None:
    store = FileStore(tmp_path / "store")
    state = state_of(store, tmp_path, model=model_of("plain"), epochs=9, **spec)
    state.best, state.best_metrics = state.capture(), metrics_of(best_epoch)
    state.progress = Progress(step=7, **progress)
    lease = Lease(store, "run", StopSignal())
    lease.acquire()
    recorder = Recorder(store, "run", lease, LogBuffer())
    recorder.start()
    save(state, recorder)
    recorder.finish()
    lease.release()
    written = recorder.checkpoints.current
    assert written is not None
    assert (written.state == written.best) == is_written_once
    assert len(list(store.list("runs/run/blobs/"))) == (2 if is_written_once else 4)
    assert not recorder.is_checkpoint_in_flight


def test_a_checkpoint_that_cannot_be_written_is_in_flight_no_more(file_store: FileStore, tmp_path: Path) -> None:
    state = state_of(file_store, tmp_path, model=model_of("plain"))
    lease = Lease(file_store, "run", StopSignal())
    lease.acquire()
    recorder = Recorder(file_store, "run", lease, LogBuffer())
    recorder.start()
    file_store.put("runs/run/checkpoint.json", b"another attempt's")
    save(state, recorder)
    with pytest.raises(Stopped, match="another attempt wrote its checkpoint meanwhile"):
        recorder.finish()
    lease.release()
    assert lease.lost
    assert not recorder.is_checkpoint_in_flight
