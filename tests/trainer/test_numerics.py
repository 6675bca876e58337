"""This process's torch computes as the numerics say."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import nn

from trainer import numerics as numerics_of
from trainer.result import Numerics
from trainer.spec import ExperimentSpec

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def settled(device: str, **values: object) -> Numerics:
    spec = ExperimentSpec.model_validate({"data": {"name": "x"}, "model": {"architecture": "alexnet"}, **values})
    return numerics_of.settle(spec, torch.device(device), threads=1)


@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "free"])
def test_determinism_is_set_as_the_numerics_say(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    monkeypatch.setenv(CUBLAS, "")  # so that it is put back
    monkeypatch.delenv(CUBLAS)
    numerics_of.apply(settled("cpu", deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.deterministic == deterministic
    assert not torch.backends.cudnn.benchmark
    assert (os.environ.get(CUBLAS) == ":4096:8") == deterministic


def test_a_workspace_that_the_environment_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    numerics_of.apply(settled("cpu"))
    assert os.environ[CUBLAS] == ":16:8"


def test_a_cpu_has_no_tf32() -> None:
    assert settled("cpu", precision="tf32").precision == "fp32"


@pytest.mark.parametrize("size", [6, (6, None), (1, 7), (4, 9)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (2, 3, 12, 18), (2, 3, 13, 5), (2, 3, 1, 1)], ids=str)
def test_a_repeatable_pool_computes_what_torchs_own_does(
    size: int | tuple[int | None, int | None], shape: tuple[int, ...]
) -> None:
    images_BCHW = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    own, theirs = numerics_of.RepeatablePool(size), nn.AdaptiveAvgPool2d(size)
    torch.testing.assert_close(own(images_BCHW), theirs(images_BCHW))
    weights = torch.randn_like(theirs(images_BCHW))
    gradients = [torch.autograd.grad((pool(images_BCHW) * weights).sum(), images_BCHW)[0] for pool in (own, theirs)]
    torch.testing.assert_close(*gradients)


def test_only_the_pools_that_need_it_are_replaced() -> None:
    module = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d((6, 6))), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2))
    before = dict(module.state_dict())
    numerics_of.make_repeatable(module)
    assert [type(layer).__name__ for layer in module.modules() if not isinstance(layer, nn.Sequential)] == [
        "RepeatablePool",
        "AdaptiveAvgPool2d",
        "AvgPool2d",
    ]
    assert module.state_dict() == before


@pytest.mark.cuda
@pytest.mark.parametrize("architecture", ["alexnet", "vgg11", "resnet18"])
def test_a_gpu_repeats_itself_to_the_last_bit_in_deterministic_mode(architecture: str) -> None:
    numerics_of.apply(settled("cuda"))

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = torchvision.models.get_model(architecture, num_classes=9)
        numerics_of.make_repeatable(module)
        module.cuda()(torch.randn(4, 3, 224, 224).cuda()).square().sum().backward()
        return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]

    first, second = gradients(), gradients()
    assert len(first) > 10
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
