"""Networks small enough for tests, as factories `networks:<name>`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain(num_classes: int, width: int = 8) -> nn.Module:
    """Neither batch-norm nor dropout: accumulating micro-batches changes nothing but rounding."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, num_classes),
    )


def usual(num_classes: int, width: int = 8) -> nn.Module:
    """Batch-norm and dropout: state beside the weights, and draws inside the model."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16 * width, num_classes),
    )


class Fragile(nn.Module):
    """Fails as its argument says, in its first forward pass while training."""

    def __init__(self, num_classes: int, how: str) -> None:
        super().__init__()
        self.inner = plain(num_classes)
        self.how = how

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if self.training and self.how == "raise":
            raise RuntimeError("this network always fails")
        logits_BK: Tensor = self.inner(images_BCHW)
        if self.training and self.how == "by chance":
            logits_BK = nn.functional.max_unpool1d(*nn.functional.max_pool1d(logits_BK, 1, return_indices=True), 1)
        return logits_BK * torch.nan if self.training and self.how == "nan" else logits_BK


def fragile(num_classes: int, how: str) -> nn.Module:
    """A network that fails while it trains: `raise`, `nan`, or `by chance`, which torch cannot compute twice alike."""
    return Fragile(num_classes, how)


class Hungry(nn.Module):
    """Runs out of device memory as a real network does: by torch's own error, in the middle of a pass."""

    def __init__(self, num_classes: int, largest: int, num_passes: int | None) -> None:
        super().__init__()
        self.inner = plain(num_classes)
        self.largest = largest
        self.num_passes = num_passes

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if self.num_passes is not None:
            self.num_passes -= 1
        if len(images_BCHW) > self.largest or (self.num_passes is not None and self.num_passes < 0):
            raise torch.OutOfMemoryError(f"no memory for {len(images_BCHW)} images")
        logits_BK: Tensor = self.inner(images_BCHW)
        return logits_BK


def hungry(num_classes: int, largest: int, num_passes: int | None = None) -> nn.Module:
    """A network with device memory for `largest` images at a time, and for `num_passes` passes in one process."""
    return Hungry(num_classes, largest, num_passes)
