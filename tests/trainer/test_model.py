"""Networks are built, loaded and frozen as their spec says."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from trainer.failure import SpecError
from trainer.model import Network, build_network
from trainer.spec import ModelSpec
from trainer.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}")


def build(store: Store, num_classes: int = 101, seed: int = 0, **spec: object) -> Network:
    return build_network(ModelSpec.model_validate(spec), num_classes, seed, store)


def build_without_numbers(store: Store, num_classes: int = 101, **spec: object) -> Network:
    """The network on the meta device: shapes and names without the time it takes to draw weights."""
    with torch.device("meta"):
        return build(store, num_classes, **spec)


def two_layers(num_classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.Linear(width, num_classes))


def bare_norm(num_classes: int) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4, num_classes))


def not_a_module(num_classes: int) -> str:
    return str(num_classes)


@pytest.mark.parametrize(
    ("freeze", "num_trainable"),
    [("none", 57_417_637), ("convolutional", 54_947_941), ("fully_connected", 2_469_696)],
    ids=["none", "convolutional", "fully_connected"],
)
def test_alexnet_trains_as_many_parameters_as_the_report_published(
    store: Store, freeze: str, num_trainable: int
) -> None:
    network = build_without_numbers(store, architecture="alexnet", freeze=freeze)
    assert network.num_parameters == 57_417_637
    assert network.num_trainable_parameters == num_trainable


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("alexnet", "classifier.6"),
        ("convnext_tiny", "classifier.2"),
        ("densenet121", "classifier"),
        ("efficientnet_b0", "classifier.1"),
        ("googlenet", "fc"),
        ("inception_v3", "fc"),
        ("maxvit_t", "classifier.5"),
        ("mnasnet0_5", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("regnet_y_400mf", "fc"),
        ("resnet50", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("squeezenet1_1", "classifier.1"),
        ("swin_t", "head"),
        ("vgg16", "classifier.6"),
        ("vit_b_16", "heads.head"),
    ],
)
def test_every_family_of_torchvision_gets_a_head_for_the_data_sets_classes(
    store: Store, architecture: str, head: str
) -> None:
    # some compute with tensors while they build: those cannot go without numbers
    with torch.device("cpu" if architecture.startswith(("convnext", "maxvit", "regnet", "swin")) else "meta"):
        network = build(store, 7, architecture=architecture)
    assert network.head == head
    layer = network.module.get_submodule(head)
    assert getattr(layer, "out_features", getattr(layer, "out_channels", None)) == 7


def test_equal_seeds_draw_equal_weights_and_others_do_not(store: Store) -> None:
    first, again, other = (build(store, 5, seed, architecture="squeezenet1_1") for seed in (1, 1, 2))
    weights = [network.module.state_dict()["features.0.weight"] for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class Networks:
    @classmethod
    def named(cls, name: str, num_classes: int) -> nn.Module:
        if name != "two":
            raise ValueError(f"no network {name}")
        return two_layers(num_classes)


def test_a_factory_may_be_a_method_of_a_class(store: Store) -> None:
    network = build(store, 3, architecture=f"{__name__}:Networks.named", arguments={"name": "two"})
    assert network.num_parameters == two_layers_numbers(3, 4)


def two_layers_numbers(num_classes: int, width: int) -> int:
    return 3 * width * 9 + width + width * num_classes + num_classes


def test_a_factory_is_called_with_its_arguments(store: Store) -> None:
    network = build(store, 3, architecture=f"{__name__}:two_layers", arguments={"width": 8})
    assert network.num_parameters == two_layers_numbers(3, 8)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"architecture": "alexnett"}, "did you mean alexnet"),
        ({"architecture": "no_such_module:build"}, "cannot import 'no_such_module:build'"),
        ({"architecture": f"{__name__}:no_such_function"}, "no_such_function"),
        ({"architecture": f"{__name__}:not_a_module"}, "gave str, expected a nn.Module"),
        ({"architecture": f"{__name__}:two_layers", "arguments": {"wdth": 1}}, "it takes: num_classes, width"),
        ({"architecture": f"{__name__}:Networks.other"}, "has no attribute 'other'"),
        ({"architecture": f"{__name__}:Networks.named", "arguments": {"name": "three"}}, "no network three"),
        ({"architecture": "squeezenet1_1", "freeze": "fully_connected"}, "features.*, classifier.*"),
        ({"architecture": "vit_b_16", "freeze": "convolutional"}, "conv_proj.*, encoder.*, heads.*"),
        ({"architecture": "alexnet", "freeze": ["feature.*"]}, "pattern 'feature.*' matches no parameter"),
        ({"architecture": "alexnet", "freeze": ["*"]}, "freezes every parameter"),
    ],
    ids=lambda value: "-" if isinstance(value, dict) else value[:30],
)
def test_a_model_that_cannot_be_is_told_with_what_can(store: Store, spec: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_without_numbers(store, **spec)
    assert message in str(caught.value)


def test_modules_frozen_by_pattern_keep_their_batch_norm_statistics(store: Store) -> None:
    network = build(store, 5, architecture="resnet18", freeze=["bn1", "layer1.*"])
    network.train()
    assert not network.module.get_submodule("bn1").training
    assert not network.module.get_submodule("layer1.0.bn1").training
    assert network.module.get_submodule("layer2.0.bn1").training
    assert not network.module.get_parameter("bn1.weight").requires_grad


def test_a_frozen_parameter_of_the_root_does_not_stop_training_mode_below_it(store: Store) -> None:
    network = build_without_numbers(store, architecture="vit_b_16", freeze=["class_token"])
    network.train()
    assert all(layer.training for layer in network.module.modules())


def test_freezing_does_not_stop_stochastic_depth(store: Store) -> None:
    network = build(store, 5, architecture="convnext_tiny", freeze="convolutional")
    network.train()
    depths = [layer for layer in network.module.modules() if isinstance(layer, StochasticDepth)]
    assert depths
    assert all(layer.training for layer in depths)


def test_a_batch_norm_without_parameters_is_frozen_with_its_parent(store: Store) -> None:
    network = build(store, 3, architecture=f"{__name__}:bare_norm", freeze=["0"])
    network.train()
    assert not network.module.get_submodule("0.1").training


def test_freezing_does_not_stop_dropout(store: Store) -> None:
    network = build_without_numbers(store, architecture="alexnet", freeze="fully_connected")
    network.train()
    assert network.module.get_submodule("classifier.0").training


def save(store: Store, state: dict[str, torch.Tensor], file: str) -> str:
    buffer = io.BytesIO()
    if file.endswith(".safetensors"):
        buffer.write(safetensors.torch.save(state))
    else:
        torch.save(state, buffer)
    store.put(f"weights/{file}", buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


@pytest.mark.parametrize("file", ["net.pth", "net.safetensors"])
def test_weights_of_another_number_of_classes_fill_all_but_the_head(store: Store, file: str) -> None:
    trained = build(store, 9, 1, architecture="squeezenet1_1")
    fingerprint = save(store, trained.module.state_dict(), file)
    network = build(store, 5, 2, architecture="squeezenet1_1", weights=file, weights_fingerprint=fingerprint)
    own, theirs = network.module.state_dict(), trained.module.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own if not name.startswith(network.head))
    assert own["classifier.1.weight"].shape[0] == 5
