"""Batches hold the pixels of torchvision's pipeline wherever they come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from blobs import CONTENTS, SMALL, SPEC
from torchvision.transforms import v2

import trainer.data
from trainer.data import Loader
from trainer.decode import decode_image
from trainer.part import Part
from trainer.spec import AUGMENTATIONS, AugmentationSpec, DataSpec

CPU = torch.device("cpu")


def loader(
    part: Part, data: DataSpec = SPEC, pipeline: str = "none", memory_format: torch.memory_format = torch.channels_last
) -> Loader:
    return Loader(part, data, AugmentationSpec.model_validate(AUGMENTATIONS[pipeline]), CPU, memory_format)


def by_torchvision(data: DataSpec) -> torch.Tensor:
    steps = [v2.Resize(data.resize), v2.CenterCrop(data.crop), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    pipeline = v2.Compose([*steps, v2.Normalize(data.normalize.mean, data.normalize.std)])
    return torch.stack([pipeline(decode_image(encoded_image)) for _, encoded_image in CONTENTS["train"]])


@pytest.mark.parametrize("budget", [None, 0], ids=["mapped", "streamed"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("data", [SPEC, SMALL], ids=["imagenet", "small"])
def test_a_batch_without_augmentation_equals_torchvisions_pipeline(
    open_train: Callable[..., Part], data: DataSpec, memory_format: torch.memory_format, budget: int | None
) -> None:
    part = open_train(data, budget_bytes=budget)
    images, labels = loader(part, data, memory_format=memory_format).batch(np.arange(len(part)), 0, 0, 0)
    assert images.is_contiguous(memory_format=memory_format)
    assert labels.tolist() == [label for label, _ in CONTENTS["train"]]
    torch.testing.assert_close(images, by_torchvision(data), rtol=0, atol=2e-6)


@pytest.mark.parametrize("pipeline", ["none", "report_1", "report_2", "report_3", "report_3b"])
@pytest.mark.parametrize("data", [SPEC, SMALL], ids=["large", "small"])
def test_streamed_batches_equal_mapped_ones_bit_for_bit(
    open_train: Callable[..., Part], data: DataSpec, pipeline: str
) -> None:
    mapped, streamed = open_train(data), open_train(data, budget_bytes=0)
    assert mapped.pixels is not None
    assert streamed.pixels is None
    batches = [np.array([3, 20, 1]), np.array([5]), np.array([0, 7, 8, 19]), np.array([2])]
    ours = [loader(part, data, pipeline).batches(batches, seed=4, epoch=2, restart=0) for part in (mapped, streamed)]
    for (images, labels), (others, other_labels) in zip(*ours, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("data", [SPEC, SMALL], ids=["large", "small"])
def test_an_image_is_augmented_the_same_whatever_is_in_its_batch(
    open_train: Callable[..., Part], data: DataSpec
) -> None:
    made = loader(open_train(data), data, "report_2")
    together, _ = made.batch(np.array([9, 4, 13, 2]), seed=1, epoch=5, restart=0)
    alone, _ = made.batch(torch.tensor([13]), seed=1, epoch=5, restart=0)
    torch.testing.assert_close(alone[0], together[2], rtol=0, atol=0 if data is SPEC else 1e-5)
    for other in ({"seed": 2}, {"epoch": 6}, {"restart": 1}):
        changed, _ = made.batch(np.array([13]), **{"seed": 1, "epoch": 5, "restart": 0} | other)
        assert not torch.equal(changed, alone)


@pytest.mark.parametrize("pipeline", ["report_1", "report_2", "report_3", "report_3b"])
def test_the_way_of_a_gpu_gives_the_pixels_of_the_cpus(
    open_train: Callable[..., Part], pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = open_train()
    indices = np.arange(len(part))
    by_threads, _ = loader(part, SPEC, pipeline).batch(indices, 7, 1, 0)
    monkeypatch.setattr(trainer.data, "SMALL_CROP", 10**6)
    by_gather, _ = loader(part, SPEC, pipeline).batch(indices, 7, 1, 0)
    differences = (by_threads - by_gather).abs()
    # a point on the very edge of an image may be black on one way and not on the other
    assert (differences > 1e-3).float().mean() < 1e-4
    assert differences.mean() < 1e-4


def test_flips_alone_move_whole_pixels(open_train: Callable[..., Part]) -> None:
    part = open_train()
    plain, _ = loader(part).batch(np.arange(len(part)), 0, 0, 0)
    flips = AugmentationSpec(horizontal_flip=1, vertical_flip=1)
    flipped, _ = Loader(part, SPEC, flips, CPU, torch.channels_last).batch(np.arange(len(part)), 0, 0, 0)
    square = [row for row, entry in enumerate(part.entries) if entry.width == entry.height]
    assert square  # the crop of others may be half a pixel off the middle
    assert torch.equal(flipped[square], plain[square].flip(2, 3))


def test_the_number_of_threads_changes_no_augmented_pixel(open_train: Callable[..., Part]) -> None:
    part, before = open_train(), torch.get_num_threads()
    images = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            images.append(loader(part, SPEC, "report_2").batch(np.arange(len(part)), 0, 0, 0)[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*images)


@pytest.mark.parametrize("pipeline", ["none", "report_2"])
def test_a_batch_that_is_still_held_is_not_written_over(open_train: Callable[..., Part], pipeline: str) -> None:
    made = loader(open_train(), SPEC, pipeline)
    part_of_first = made.batch(np.array([0, 1]), 0, 0, 0)[0][1:]
    copy = part_of_first.clone()
    for start in range(2, 8, 2):
        made.batch(np.array([start, start + 1]), 0, 0, 0)
    assert torch.equal(part_of_first, copy)


def test_memory_of_a_dropped_batch_is_used_again(open_train: Callable[..., Part]) -> None:
    made = loader(open_train(), SPEC)
    addresses = {made.batch(np.array([start, start + 1]), 0, 0, 0)[0].data_ptr() for start in range(0, 12, 2)}
    assert len(addresses) <= 2
