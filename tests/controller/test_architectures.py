"""Torchvision's classifiers are known by name without loading torch."""

from __future__ import annotations

import torchvision

from controller.architectures import torchvision_classifiers


def test_the_names_read_from_the_source_are_those_that_torchvision_lists() -> None:
    assert torchvision_classifiers() == set(torchvision.models.list_models(module=torchvision.models))
