"""Learning rates follow their schedule, and an optimiser's state survives being stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, learning_rate, load_optimizer_tensors, optimizer_tensors
from trainer.spec import AdamWSpec, ExperimentSpec, SgdSpec
from trainer.tensors import copied


def experiment(**values: object) -> ExperimentSpec:
    return ExperimentSpec.model_validate({"data": {"name": "x"}, "model": {"architecture": "alexnet"}, **values})


def test_step_schedule_equals_torchs_own() -> None:
    spec = experiment(optimizer={"lr": 0.1}, schedule={"step_size": 3, "gamma": 0.5}, epochs=10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    for epoch in range(10):
        assert learning_rate(spec, epoch, 0, 5, 0) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_cosine_schedule_equals_torchs_own() -> None:
    spec = experiment(optimizer={"lr": 0.1}, schedule={"name": "cosine"}, epochs=10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for epoch in range(10):
        assert learning_rate(spec, epoch, 0, 5, 0) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_step_by_step_to_the_full_rate() -> None:
    spec = experiment(optimizer={"lr": 1.0}, schedule={"name": "constant", "warmup_epochs": 1.5})
    rates = [learning_rate(spec, epoch, step, 4, 0) for epoch in range(3) for step in range(4)]
    assert rates == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1, 1, 1, 1, 1])


def test_every_restart_lowers_the_rate() -> None:
    spec = experiment(optimizer={"lr": 1.0}, restart={"lr_factor": 0.1})
    assert learning_rate(spec, 0, 0, 1, 2) == pytest.approx(0.01)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("spec", [SgdSpec(lr=0.1), AdamWSpec(name="adamw", lr=0.1)], ids=["sgd", "adamw"])
def test_a_stored_optimiser_goes_on_as_if_never_stored(spec: SgdSpec | AdamWSpec, device: str) -> None:
    torch.manual_seed(0)
    straight, stored = (nn.Linear(3, 2).to(device) for _ in range(2))
    stored.load_state_dict(straight.state_dict())
    first, second = (build_optimizer(spec, list(module.parameters())) for module in (straight, stored))
    batch = torch.randn(4, 3, device=device)
    for number in range(4):
        if number == 2:
            file = copied(optimizer_tensors(second))
            second = build_optimizer(spec, list(stored.parameters()))
            load_optimizer_tensors(second, file.tensors)
        for module, optimizer in ((straight, first), (stored, second)):
            optimizer.zero_grad()
            module(batch).square().sum().backward()
            optimizer.step()
    assert {value.device.type for value in optimizer_tensors(second).values()} == {device}
    assert torch.equal(straight.weight, stored.weight)
    assert torch.equal(straight.bias, stored.bias)


def test_an_empty_state_is_the_one_before_the_first_step() -> None:
    module = nn.Linear(3, 2)
    optimizer = build_optimizer(SgdSpec(), list(module.parameters()))
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer_tensors(optimizer)
    load_optimizer_tensors(optimizer, {})
    assert not optimizer_tensors(optimizer)
