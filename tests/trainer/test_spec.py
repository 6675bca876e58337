from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from trainer.document import Document, validate
from trainer.failure import SpecError
from trainer.spec import (
    AUGMENTATIONS,
    NORMALIZATIONS,
    AdamWSpec,
    AugmentationSpec,
    CosineSpec,
    ExperimentSpec,
    Normalization,
    SgdSpec,
    lower_is_better,
)

BASE: dict[str, Any] = {"data": {"name": "digits"}, "model": {"architecture": "alexnet"}}


def spec_of(**values: Any) -> ExperimentSpec:
    return validate(ExperimentSpec, Document("x.yaml", {**BASE, **values}, {}))


def test_the_defaults_are_the_reports() -> None:
    spec = spec_of()

    assert (spec.batch_size, spec.epochs, spec.data.resize, spec.data.crop) == (256, 30, 256, 224)
    assert spec.optimizer == SgdSpec(lr=1e-3, momentum=0.9, weight_decay=5e-5)
    assert spec.schedule.model_dump() == {"name": "step", "step_size": 20, "gamma": 0.1, "warmup_epochs": 0}
    assert spec.best.patience == 5


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_pipelines_name_stands_for_its_values(name: str) -> None:
    assert spec_of(augmentation=name).augmentation == AugmentationSpec(**AUGMENTATIONS[name])


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_normalizations_name_stands_for_its_values(name: str) -> None:
    assert spec_of(data={"name": "d", "normalize": name}).data.normalize == Normalization(**NORMALIZATIONS[name])


def test_a_name_chooses_the_optimizer_and_the_schedule() -> None:
    spec = spec_of(optimizer={"name": "adamw", "betas": (0.8, 0.9)}, schedule={"name": "cosine"})

    assert spec.optimizer == AdamWSpec(name="adamw", betas=(0.8, 0.9))
    assert spec.schedule == CosineSpec(name="cosine")


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"data": {"name": "d", "resize": 100, "crop": 101}}, id="crop larger than resize"),
        pytest.param({"micro_batch": 300}, id="micro-batch larger than batch"),
        pytest.param({"optimizer": {"nesterov": True, "momentum": 0}}, id="nesterov without momentum"),
        pytest.param({"model": {"architecture": "a b"}}, id="architecture that is no name"),
        pytest.param({"model": {"architecture": "a.b:C.d.e"}}, id="factory deeper than a class's method"),
        pytest.param(
            {"model": {"architecture": "alexnet", "weights_fingerprint": "1" * 64}}, id="fingerprint of no weights"
        ),
        pytest.param({"model": {"architecture": "alexnet", "arguments": {"pretrained": True}}}, id="pretrained=True"),
        pytest.param(
            {"model": {"architecture": "alexnet", "arguments": {"weights": "IMAGENET1K_V1"}}},
            id="weights as an argument",
        ),
        pytest.param({"data": {"name": "../x"}}, id="data set that leaves its folder"),
        pytest.param({"data": {"name": "d", "fingerprint": "abc"}}, id="fingerprint that is no SHA-256"),
        pytest.param({"optimizer": {"name": "adamw", "momentum": 0.9}}, id="value of another optimizer"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        spec_of(**values)


def test_a_spec_does_not_change() -> None:
    with pytest.raises(ValidationError):
        spec_of().epochs = 3  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize(("metric", "lower"), [("validation_loss", True), ("validation_accuracy", False)])
def test_losses_improve_downwards(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


def test_every_model_has_a_meaning() -> None:
    def visit(model: type[BaseModel]) -> None:
        assert model.__doc__
        for field in model.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                visit(field.annotation)

    visit(ExperimentSpec)
