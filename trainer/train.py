"""The training loop: optimiser steps, validation, the best epoch kept, going back to it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.augment import derived_seed, epoch_order
from trainer.checkpoint import Progress, Snapshot, snapshot
from trainer.data import Loader
from trainer.failure import Diverged
from trainer.machine import peak_memory
from trainer.model import Network
from trainer.optim import learning_rate, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from trainer.recorder import Recorder
from trainer.result import EpochMetrics, Numerics
from trainer.spec import RunSpec, lower_is_better
from trainer.stop import StopSignal
from trainer.telemetry import SILENT, Telemetry

CHECK_STEPS = 16  # steps between looks at whether the loss is finite: a look waits for the device
REPORT_SECONDS = 1.0

Model = Callable[[Tensor], Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """How far the epoch in progress is."""

    epoch: int  # from 0
    step: int  # optimiser steps done in the epoch
    num_steps: int  # of the epoch
    train_loss: float  # running mean over the epoch, nats
    train_accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Scores:
    """What a network does on one part of the data. Loss in nats per image, accuracies 0..1."""

    loss: float
    accuracy: float
    balanced_accuracy: float
    top5_accuracy: float


@dataclass
class TrainState:
    """All that changes while a run trains, and what it is trained with.

    It may be left between any two steps and, from `progress` and what `capture` gives, taken up in another process
    with the same numbers to the last bit.
    """

    spec: RunSpec
    numerics: Numerics
    network: Network
    model: Model  # the network's forward pass, compiled where the numerics say so
    optimizer: Optimizer
    train: Loader
    validation: Loader
    progress: Progress = field(default_factory=Progress)
    best: Snapshot | None = None
    best_metrics: EpochMetrics | None = None
    first: Snapshot | None = None  # the first weights, held until there is a best epoch
    started: float = field(default_factory=time.monotonic)
    telemetry: Telemetry = SILENT

    @property
    def is_finished(self) -> bool:
        """Whether every epoch is done."""
        return self.progress.epoch >= self.spec.epochs

    @property
    def num_steps(self) -> int:
        """Optimiser steps of one epoch; the last may have a smaller batch."""
        return -(-len(self.train.part) // self.spec.batch_size)

    def capture(self) -> Snapshot:
        """A copy of what the optimiser changes."""
        return snapshot(self.progress.step, self.network.module.state_dict(), optimizer_tensors(self.optimizer))

    def restore(self, state: Snapshot, *, optimizer: str = "restore") -> None:
        """Put back what `capture` gave; the optimiser's state with it (`restore`), not (`keep`), or empty (`reset`)."""
        self.network.module.load_state_dict(state.model.tensors)
        if optimizer != "keep":
            load_optimizer_tensors(self.optimizer, state.optimizer.tensors if optimizer == "restore" else {})

    def advance(self, **changes: float) -> None:
        """Change the progress, and bring its clock and memory up to date."""
        now = time.monotonic()
        self.progress = self.progress.model_copy(
            update={
                "wall_seconds": self.progress.wall_seconds + now - self.started,
                "peak_memory_bytes": max(self.progress.peak_memory_bytes, peak_memory_on(self.train.device)),
                **changes,
            }
        )
        self.started = now


def peak_memory_on(device: torch.device) -> int:
    """Most memory this process has held so far, bytes: allocated on a GPU, resident on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def run_epoch(
    state: TrainState, recorder: Recorder, stop: StopSignal, report: Callable[[StepReport], None]
) -> EpochMetrics:
    """Train the rest of the epoch in progress, validate, and keep or leave what came of it.

    A loss that is not finite begins the epoch again, from the best weights. Raises Stopped between two steps, with
    `state` fit to be saved, and Diverged when the restarts are used up.
    """
    while True:
        if train_epoch(state, recorder, stop, report):
            begun = time.monotonic()
            scores, _ = evaluate(
                state.model, state.network, state.numerics, state.validation, stop, state.telemetry.validated
            )
            state.telemetry.lap("validation")
            if math.isfinite(scores.loss):
                break
            state.advance(epoch_seconds=state.progress.epoch_seconds + time.monotonic() - begun)
        restart(state)
    return conclude_epoch(state, scores, time.monotonic() - begun)


def train_epoch(state: TrainState, recorder: Recorder, stop: StopSignal, report: Callable[[StepReport], None]) -> bool:
    """Train the rest of the epoch; whether its losses are finite throughout.

    1. The order comes from (seed, restarts, epoch); the batches of steps done before a resume are left out.
    2. A step: micro-batches forward and backward, clip, optimiser. Its sums stay on the device.
    3. Every CHECK_STEPS steps, counted from the epoch's start so that a resume changes nothing, the loss is looked at.
    4. A checkpoint is due every `checkpoint.every` seconds; while one is in flight, training goes on.
    """
    spec, progress, telemetry = state.spec, state.progress, state.telemetry
    sums = _Sums(progress, state.train.device)
    order = epoch_order(spec.seed, progress.restarts, progress.epoch, len(state.train.part))
    batches = [order[at : at + spec.batch_size] for at in range(0, len(order), spec.batch_size)]
    begun = reported = saved = time.monotonic()

    def catch_up(step: int) -> None:
        """Bring the progress to `step` steps of this epoch. Waits for the device."""
        state.advance(
            step_in_epoch=step,
            step=progress.step + step - progress.step_in_epoch,
            epoch_seconds=progress.epoch_seconds + time.monotonic() - begun,
            loss_sum=sums.loss.item(),
            num_correct=int(sums.correct.item()),
            num_seen=sums.seen,
        )
        telemetry.lap("device")

    state.network.train()
    telemetry.lap("other")
    telemetry.begin_steps()
    remaining = batches[progress.step_in_epoch :]
    loaded = state.train.batches(remaining, seed=spec.seed, epoch=progress.epoch, restart=progress.restarts)
    for step, (images_BCHW, labels_B) in enumerate(loaded, start=progress.step_in_epoch + 1):
        telemetry.lap("data")
        sums.add(*optimizer_step(state, images_BCHW, labels_B, step - 1), len(labels_B))
        is_last = step == len(batches)
        if is_last or step % CHECK_STEPS == 0:
            is_finite = math.isfinite(sums.loss.item())
            telemetry.caught_up()
            if not is_finite:
                catch_up(step)  # the time that was lost is the epoch's all the same
                return False
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS:
            reported = now
            report(_step_report(sums, progress, step, len(batches), now - begun))
            telemetry.lap("device")  # the report has waited for it
        if stop.reason is not None:
            catch_up(step)
            stop.check()
        if now - saved >= spec.checkpoint.every and not is_last and not recorder.is_checkpoint_in_flight:
            saved = now
            catch_up(step)
            save(state, recorder)
    catch_up(len(batches))
    return True


class _Sums:
    """The epoch's partial sums, on the device so that adding to them never waits."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self.loss = torch.tensor(progress.loss_sum, dtype=torch.float64, device=device)
        self.correct = torch.tensor(progress.num_correct, dtype=torch.int64, device=device)
        self.seen = progress.num_seen

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        self.loss += loss
        self.correct += correct
        self.seen += count


def _step_report(sums: _Sums, before: Progress, step: int, num_steps: int, seconds: float) -> StepReport:
    return StepReport(
        epoch=before.epoch,
        step=step,
        num_steps=num_steps,
        train_loss=sums.loss.item() / sums.seen,
        train_accuracy=sums.correct.item() / sums.seen,
        images_per_second=(sums.seen - before.num_seen) / seconds,
    )


def optimizer_step(state: TrainState, images_BCHW: Tensor, labels_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Change the weights by one batch; its summed loss (float64) and right answers, both left on the device.

    The gradient is that of the mean over the whole batch, however many micro-batches it is computed in.
    """
    spec, progress, micro_batch = state.spec, state.progress, state.numerics.micro_batch
    rate = learning_rate(spec, progress.epoch, step, state.num_steps, progress.restarts)
    set_learning_rate(state.optimizer, rate)
    state.optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), dtype=torch.float64, device=labels_B.device)
    correct = torch.zeros((), dtype=torch.int64, device=labels_B.device)
    for number, at in enumerate(range(0, len(labels_B), micro_batch)):
        labels = labels_B[at : at + micro_batch]
        torch.manual_seed(derived_seed(spec.seed, progress.restarts, progress.epoch, step, number))
        logits_BK = forward(state.model, state.numerics, images_BCHW[at : at + micro_batch])
        loss = F.cross_entropy(logits_BK, labels, reduction="sum", label_smoothing=spec.label_smoothing)
        state.telemetry.lap("forward")
        torch.autograd.backward(loss / len(labels_B))
        loss_sum += loss.detach()
        correct += (logits_BK.detach().argmax(1) == labels).sum()
        state.telemetry.lap("backward")
    if spec.clip_norm is not None:
        nn.utils.clip_grad_norm_(state.network.trainable_parameters(), spec.clip_norm)
    state.optimizer.step()
    state.telemetry.lap("optimizer")
    state.telemetry.stepped(len(labels_B), rate)
    return loss_sum, correct


def forward(model: Model, numerics: Numerics, images_BCHW: Tensor) -> Tensor:
    """float32 logits (B, K), computed in the run's precision."""
    with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=numerics.precision == "bf16"):
        logits_BK = model(images_BCHW)
    return logits_BK.float()


def evaluate(
    model: Model,
    network: Network,
    numerics: Numerics,
    loader: Loader,
    stop: StopSignal,
    seen: Callable[[int], None] = lambda _: None,
) -> tuple[Scores, Tensor]:
    """The network's scores on `loader`'s part, and its logits (N, K) in the part's order. Raises Stopped.

    `seen` is told after each batch how many images it had.
    """
    network.module.eval()
    size, num_images = numerics.micro_batch, len(loader.part)
    batches = [np.arange(at, min(at + size, num_images)) for at in range(0, num_images, size)]
    collected = []
    with torch.inference_mode():
        for images_BCHW, _ in loader.batches(batches, seed=0, epoch=0, restart=0):
            collected.append(forward(model, numerics, images_BCHW))
            seen(len(images_BCHW))
            stop.check()
    logits_NK = torch.cat(collected).cpu()
    return score(logits_NK, torch.from_numpy(loader.part.labels_N)), logits_NK


def score(logits_NK: Tensor, labels_N: Tensor) -> Scores:
    """Scores of float32 `logits_NK` against the true labels, both on the CPU, summed in float64."""
    losses_N = F.cross_entropy(logits_NK, labels_N, reduction="none").double()
    right_N = (logits_NK.argmax(1) == labels_N).double()
    counts_K = torch.bincount(labels_N)
    right_K = torch.bincount(labels_N, weights=right_N)
    present_K = counts_K > 0  # a class that this part lacks has no accuracy to average
    top_N5 = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices
    return Scores(
        loss=losses_N.mean().item(),
        accuracy=right_N.mean().item(),
        balanced_accuracy=(right_K[present_K] / counts_K[present_K]).mean().item(),
        top5_accuracy=(top_N5 == labels_N[:, None]).any(1).double().mean().item(),
    )


def restart(state: TrainState) -> None:
    """Begin the epoch again from the best epoch's weights, or the first ones, with a smaller learning rate.

    The best epoch rather than the last checkpoint: when that was written depends on the clock, and numbers must not.
    The restart's number goes into the draws, which would replay the same loss otherwise. Raises Diverged.
    """
    progress = state.progress
    where = f"epoch {progress.epoch + 1}"
    if progress.restarts >= state.spec.restart.times:
        raise Diverged(
            f"training: the loss is not finite in {where}, after {progress.restarts} restarts",
            hint="lower optimizer.lr, set clip_norm, or allow more with restart.times",
        )
    origin = state.best or state.first
    assert origin is not None
    log.warning("the loss is not finite in %s: restart %d of it", where, progress.restarts + 1)
    state.telemetry.restarted()
    state.restore(origin)
    state.advance(
        restarts=progress.restarts + 1,
        step=progress.step - progress.step_in_epoch,
        step_in_epoch=0,
        loss_sum=0.0,
        num_correct=0,
        num_seen=0,
        since_best=0,
    )


def conclude_epoch(state: TrainState, scores: Scores, seconds: float) -> EpochMetrics:
    """End the epoch: keep it if it is the best, go back to the best if patience is at its end, count it."""
    spec, progress = state.spec, state.progress
    seconds += progress.epoch_seconds
    images = progress.num_seen + len(state.validation.part)
    metrics = EpochMetrics(
        epoch=progress.epoch + 1,
        step=progress.step,
        lr=learning_rate(spec, progress.epoch, state.num_steps - 1, state.num_steps, progress.restarts),
        train_loss=progress.loss_sum / progress.num_seen,
        train_accuracy=progress.num_correct / progress.num_seen,
        validation_loss=scores.loss,
        validation_accuracy=scores.accuracy,
        validation_balanced_accuracy=scores.balanced_accuracy,
        validation_top5_accuracy=scores.top5_accuracy,
        best=_is_better(scores, state.best_metrics, spec.best.metric),
        returned_to_best=False,
        restarts=progress.restarts,
        images_per_second=images / seconds,
        seconds=seconds,
    )
    since_best = 0 if metrics.best else progress.since_best + 1
    if metrics.best:
        state.best, state.best_metrics, state.first = state.capture(), metrics, None
        state.telemetry.lap("checkpoint")
    elif since_best == spec.best.patience and metrics.epoch < spec.epochs:
        assert state.best is not None
        state.restore(state.best, optimizer=spec.best.optimizer)
        metrics, since_best = metrics.model_copy(update={"returned_to_best": True}), 0
    state.advance(
        epoch=metrics.epoch,
        step_in_epoch=0,
        loss_sum=0.0,
        num_correct=0,
        num_seen=0,
        epoch_seconds=0.0,
        since_best=since_best,
        returns=progress.returns + metrics.returned_to_best,
        seconds=progress.seconds + seconds,
        images=progress.images + images,
    )
    state.telemetry.ended(metrics)
    return metrics


def _is_better(scores: Scores, best: EpochMetrics | None, metric: str) -> bool:
    """Whether the scores are strictly better than the best epoch's."""
    if best is None:
        return True
    value, bound = getattr(scores, metric.removeprefix("validation_")), getattr(best, metric)
    return bool(value < bound if lower_is_better(metric) else value > bound)


def save(state: TrainState, recorder: Recorder) -> None:
    """Hand the state to the recorder, which writes it beside the next steps."""
    best = state.best if _is_best(state) or _is_over(state) else None
    recorder.checkpoint(state.progress, best or state.capture(), state.best, state.best_metrics)
    state.telemetry.lap("checkpoint")


def _is_best(state: TrainState) -> bool:
    """Whether the state is the best snapshot itself, right after it was taken or put back: one copy, written once."""
    progress, best = state.progress, state.best_metrics
    if best is None or progress.step_in_epoch > 0:
        return False
    return progress.epoch == best.epoch or (progress.since_best == 0 and state.spec.best.optimizer == "restore")


def _is_over(state: TrainState) -> bool:
    """Whether no step follows and nobody asked to keep the last state: then the best one is all there is to write."""
    return state.is_finished and state.spec.checkpoint.keep != "all"
