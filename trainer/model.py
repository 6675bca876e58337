"""The network of a run: built, its weights loaded, its head replaced, its frozen part marked."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from operator import attrgetter

import torch
import torchvision
from torch import nn

from trainer.failure import SpecError
from trainer.spec import ModelSpec
from trainer.state_dict import load_weights, read_weights, within
from trainer.store import Store

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Network:
    """A model with what training needs to know of its parts."""

    module: nn.Module
    head: str  # name of the layer that gives the logits
    frozen_norms: tuple[nn.Module, ...]  # batch-norms of the frozen part: their statistics stay as they are

    @property
    def num_parameters(self) -> int:
        """Numbers in all parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def num_trainable_parameters(self) -> int:
        """Numbers in the parameters that training changes."""
        return sum(parameter.numel() for parameter in self.trainable_parameters())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that training changes, in the model's order."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def train(self) -> None:
        """Switch to training mode, all but the frozen part's batch-norms: dropout goes on there too."""
        self.module.train()
        for norm in self.frozen_norms:
            norm.eval()


def build_network(spec: ModelSpec, num_classes: int, seed: int, store: Store) -> Network:
    """The network on the CPU, its first weights drawn from `seed` there, and then those of `spec.weights` loaded.

    Raises SpecError for an architecture, argument or part that does not exist, DataError for weights that do not fit.
    """
    torch.manual_seed(seed)
    module = _from_factory(spec, num_classes) if spec.is_factory else _from_torchvision(spec, num_classes)
    head = find_head(module, num_classes, spec.architecture)
    if spec.weights is not None:
        if spec.is_factory:
            head = _sure_head(module, head, spec, num_classes)
        state = read_weights(store, spec.weights, spec.weights_fingerprint)
        load_weights(module, head, state, spec.weights, spec.architecture)
    frozen = frozen_parameters(module, head, spec)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if frozen and not any(parameter.requires_grad for parameter in module.parameters()):
        raise SpecError(
            f"model.freeze: {spec.freeze!r} freezes every parameter of {spec.architecture}, expected some to train",
            hint=f"freeze fewer of its parts: {_patterns(module)}",
        )
    return Network(module, head, tuple(_frozen_norms(module)))


def _from_torchvision(spec: ModelSpec, num_classes: int) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if spec.architecture not in known:
        near = difflib.get_close_matches(spec.architecture, known, n=3)
        raise SpecError(
            f"model.architecture: got {spec.architecture!r}, expected a classifier of torchvision "
            f"{torchvision.__version__} or a factory `package.module:function`",
            hint=f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(known)}",
        )
    builder = torchvision.models.get_model_builder(spec.architecture)
    arguments: dict[str, object] = dict(spec.arguments)
    # googlenet and inception_v3 return their auxiliary logits too when training, unless told not to build them
    if spec.architecture in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    return _call(builder, spec, num_classes, arguments)


def _from_factory(spec: ModelSpec, num_classes: int) -> nn.Module:
    module_name, _, function_name = spec.architecture.partition(":")
    try:
        factory = attrgetter(function_name)(importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"model.architecture: cannot import {spec.architecture!r}: {error}",
            hint="the factory's folder must be on PYTHONPATH, or its package installed, where the trainer runs",
        ) from error
    return _call(factory, spec, num_classes, dict(spec.arguments))


def _call(builder: object, spec: ModelSpec, num_classes: int, arguments: dict[str, object]) -> nn.Module:
    assert callable(builder)
    try:
        module = builder(num_classes=num_classes, **arguments)
    except (TypeError, ValueError) as error:
        wanted = ", ".join(signature(builder).parameters)
        raise SpecError(
            f"model.arguments: {spec.architecture} refuses num_classes={num_classes}, {spec.arguments}: {error}",
            hint=f"it takes: {wanted}",
        ) from error
    if not isinstance(module, nn.Module):
        raise SpecError(f"model.architecture: {spec.architecture} gave {type(module).__name__}, expected a nn.Module")
    return module


def find_head(module: nn.Module, num_classes: int, architecture: str) -> str:
    """Name of the last linear or convolutional layer with `num_classes` outputs: the layer that gives the logits."""
    if found := _as_wide(module, num_classes):
        return found[-1]
    raise SpecError(
        f"model.architecture: {architecture} has no linear or convolutional layer with {num_classes} outputs to be "
        "its head",
        hint="a factory must build a network whose last layer has num_classes outputs",
    )


def _as_wide(module: nn.Module, num_outputs: int) -> list[str]:
    """Names of the linear and convolutional layers with so many outputs, in the network's order."""
    return [
        name
        for name, layer in module.named_modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == num_outputs)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == num_outputs)
    ]


def _sure_head(module: nn.Module, head: str, spec: ModelSpec, num_classes: int) -> str:
    """The layer whose width follows the number of classes, where others of a factory's network are just as wide.

    One of those, taken for the head, would be the only layer of the body that no weights fill.
    """
    if len(_as_wide(module, num_classes)) == 1:
        return head
    return find_head(_from_factory(spec, num_classes + 1), num_classes + 1, spec.architecture)


def frozen_parameters(module: nn.Module, head: str, spec: ModelSpec) -> frozenset[str]:
    """Names of the parameters that `spec.freeze` keeps as they are. Raises SpecError when there is no such part."""
    names = [name for name, _ in module.named_parameters()]
    if spec.freeze == "none":
        return frozenset()
    if isinstance(spec.freeze, str):
        return frozenset(_part(module, names, head, spec.freeze, spec.architecture))
    frozen: set[str] = set()
    for pattern in spec.freeze:
        matched = [n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"{pattern}.*")]
        if not matched:
            raise SpecError(
                f"model.freeze: pattern {pattern!r} matches no parameter of {spec.architecture}",
                hint=f"its parts: {_patterns(module)}",
            )
        frozen.update(matched)
    return frozenset(frozen)


def _part(module: nn.Module, names: list[str], head: str, part: str, architecture: str) -> list[str]:
    """Parameters of the fully connected part (the child that the head is in, if it is linear) or of the rest."""
    child = head.partition(".")[0]
    top = module.get_submodule(child)
    rest = [layer for name, layer in module.named_modules() if name and not within(name, child)]
    if part == "fully_connected":
        exists = any(isinstance(layer, nn.Linear) for layer in top.modules()) and not any(
            isinstance(layer, nn.Conv2d) for layer in top.modules()
        )
        chosen = [name for name in names if within(name, child)]
    else:
        exists = any(isinstance(layer, nn.Conv2d) for layer in rest) and not any(
            isinstance(layer, nn.MultiheadAttention) for layer in rest
        )
        chosen = [name for name in names if not within(name, child)]
    if not exists or not chosen:
        raise SpecError(
            f"model.freeze: {architecture} has no {part.replace('_', ' ')} part of its own",
            hint=f"name modules by pattern instead: {_patterns(module)}",
        )
    return chosen


def _patterns(module: nn.Module) -> str:
    return ", ".join(f"{name}.*" for name, child in module.named_children() if any(True for _ in child.parameters()))


def _frozen_norms(module: nn.Module) -> Iterator[nn.Module]:
    """The batch-norms whose parameters are all frozen; of one without any, its nearest parent's that has some."""
    for name, layer in module.named_modules():
        if isinstance(layer, NORMS) and layer.running_mean is not None:
            parameters: list[nn.Parameter] = []
            while not parameters:
                parameters = list(module.get_submodule(name).parameters())
                if not name:
                    break
                name = name.rpartition(".")[0]
            if not any(parameter.requires_grad for parameter in parameters):
                yield layer
