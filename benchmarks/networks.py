"""A network for `--quick`, as a factory `benchmarks.networks:tiny`."""

from __future__ import annotations

from torch import nn


def tiny(num_classes: int) -> nn.Module:
    """Small enough for a step of a millisecond, with batch-norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128, num_classes),
    )
