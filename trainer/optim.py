"""The optimiser of a run and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from trainer.spec import AdamWSpec, CosineSpec, ExperimentSpec, OptimizerSpec, ScheduleSpec, StepSpec


def build_optimizer(spec: OptimizerSpec, parameters: list[nn.Parameter]) -> Optimizer:
    """The optimiser over `parameters`, one fused kernel a step."""
    if isinstance(spec, AdamWSpec):
        return AdamW(parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)
    return SGD(
        parameters,
        lr=spec.lr,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov,
        fused=True,
    )


def learning_rate(spec: ExperimentSpec, epoch: int, step: int, num_steps: int, restarts: int) -> float:
    """Learning rate of optimiser step `step` (from 0, of `num_steps`) in epoch `epoch` (from 0)."""
    rate = spec.optimizer.lr * _schedule(spec.schedule, epoch, spec.epochs) * spec.restart.lr_factor**restarts
    warmup_steps = spec.schedule.warmup_epochs * num_steps
    return rate * min(1.0, (epoch * num_steps + step + 1) / warmup_steps) if warmup_steps else rate


def _schedule(spec: ScheduleSpec, epoch: int, epochs: int) -> float:
    if isinstance(spec, StepSpec):
        return spec.gamma ** (epoch // spec.step_size)
    if isinstance(spec, CosineSpec):
        return spec.lr_end + (1 - spec.lr_end) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return 1.0


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by `<parameter number>.<name>`, on the device it lives on; empty before the first step."""
    return {
        f"{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; an empty mapping is the state before the first step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state.clear()
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # beside its parameter, as fused optimisers want even their step counters; in its layout where it has its shape
        like = parameter if value.shape == parameter.shape else value
        optimizer.state[parameter][name] = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
        optimizer.state[parameter][name].copy_(value)
