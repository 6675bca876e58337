"""Draws depend on nothing but their place, and pixels equal torchvision's PIL pipeline for the same draws.

The tolerance: images are compared in units of 0..255 on the crop that the network sees. Pillow rounds to whole numbers
after each transform and filters twice (transform, then resize) where one sampling filters once, so single pixels at
sharp edges differ; what is bounded is the mean of absolute differences, and their 95th percentile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from trainer.augment import (
    CANVAS_SIDE,
    Colour,
    Draws,
    adjust_hue,
    canvas_views,
    change_colours,
    crop_views,
    derived_seed,
    draw,
    endpoints,
    epoch_order,
    sample_by_gather,
    sample_image,
    view_matrices,
)
from trainer.spec import AUGMENTATIONS, AugmentationSpec

GEOMETRIC = AUGMENTATIONS["report_1"]
SIZES = [(320, 240), (200, 300), (256, 256), (300, 200), (261, 397)]
CALTECH = os.environ.get("CALTECH101_DIR")


def photo(width: int, height: int, seed: int) -> Image.Image:
    """A picture as smooth as photographs are: coloured blobs, one over the other, on a slope of light."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    pixels = np.stack([60 + 120 * x, 90 + 60 * y, 150 - 90 * x * y], axis=-1)
    for _ in range(12):
        cx, cy, radius = generator.random(3) * (1, height / width, 0.25) + (0, 0, 0.05)
        blob = 1 / (1 + np.exp((np.hypot(x - cx, y - cy) - radius) * 90))
        pixels += blob[..., None] * (generator.random(3) * 255 - pixels)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def resized(image: Image.Image, resize: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(tv.resize(image, [resize]))


def by_pillow(image: Image.Image, draws: Draws, row: int, resize: int, crop: int) -> np.ndarray[Any, Any]:
    """torchvision's transforms with the draws of `row`, as 0..255."""
    spec = draws.spec
    image = tv.hflip(image) if draws.flip_x[row] else image
    image = tv.vflip(image) if draws.flip_y[row] else image
    if spec.rotation:
        image = tv.rotate(image, float(draws.angle[row]), tv.InterpolationMode.BILINEAR)
    if spec.perspective and draws.perspective[row]:
        width, height = image.size
        size = np.array([[width, height]])
        ends = endpoints(draws.corners[row : row + 1], size, spec.perspective.distortion)[0].astype(int).tolist()
        starts = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
        image = tv.perspective(image, starts, ends, tv.InterpolationMode.BILINEAR)
    image = tv.to_grayscale(image, 3) if draws.grey[row] else image
    changes = {
        Colour.BRIGHTNESS: (spec.brightness, tv.adjust_brightness),
        Colour.CONTRAST: (spec.contrast, tv.adjust_contrast),
        Colour.SATURATION: (spec.saturation, tv.adjust_saturation),
        Colour.HUE: (spec.hue, tv.adjust_hue),
    }
    for colour in draws.order[row]:
        spread, change = changes[Colour(colour)]
        image = change(image, float(draws.factors[row, colour])) if spread else image
    return np.asarray(tv.center_crop(tv.resize(image, [resize]), [crop]), dtype=np.float64)


def by_threads(image: Image.Image, draws: Draws, row: int, resize: int, crop: int) -> torch.Tensor:
    """The same by one sampling of the resized image, on the way a CPU takes: (1, C, P)."""
    pixels = resized(image, resize)
    sizes, after = np.array([image.size]), np.array([pixels.shape[1::-1]])
    drawn = draws.of(np.array([row]))
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    out = torch.empty(1, 3, crop**2 + CANVAS_SIDE**2)
    views = ((crop_views(sizes, after, crop), crop, 0), (canvas_views(sizes), CANVAS_SIDE, crop**2))
    for view, side, start in views:
        source, canvas = view_matrices(drawn, sizes, view)
        sample_image(planes, source[0], canvas[0], side, out[0, :, start : start + side**2])
    return out


def ours(image: Image.Image, draws: Draws, row: int, resize: int, crop: int) -> np.ndarray[Any, Any]:
    planes = by_threads(image, draws, row, resize, crop)
    changed = change_colours(planes, draws.of(np.array([row])), CANVAS_SIDE**2).expand(1, 3, -1)
    return changed[0, :, : crop**2].view(3, crop, crop).permute(1, 2, 0).double().numpy() * 255


def drawn(values: dict[str, Any], num_images: int = 24, seed: int = 5) -> Draws:
    return draw(AugmentationSpec.model_validate(values), seed=seed, restart=0, epoch=3, num_images=num_images)


CASES = {
    # values, largest mean of absolute differences, largest 95th percentile
    "horizontal-flip": ({"horizontal_flip": 1}, 0.4, 1.0),
    "vertical-flip": ({"vertical_flip": 1}, 0.4, 1.0),
    "rotation": ({"rotation": 30}, 1.0, 3.0),
    "rotation-to-any-side": ({"rotation": 180}, 1.0, 3.0),
    "perspective": ({"perspective": {"p": 1}}, 1.0, 3.0),
    "rotation-and-perspective": ({"rotation": 30, "perspective": {"p": 1}}, 1.0, 3.0),
    "geometric": (GEOMETRIC, 1.0, 3.0),
    "grey": ({"grayscale": 1}, 0.6, 1.5),
    "brightness": ({"brightness": 0.4}, 0.8, 1.5),
    "contrast": ({"contrast": 0.4}, 1.0, 2.0),
    "saturation": ({"saturation": 0.4}, 1.0, 2.0),
    "hue": ({"hue": 0.1}, 2.0, 5.0),
    "jitter": ({"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}, 2.5, 6.0),
    "report-2": (AUGMENTATIONS["report_2"], 2.5, 6.0),
    "report-3": (AUGMENTATIONS["report_3"], 1.5, 4.0),
    "report-3b": (AUGMENTATIONS["report_3b"], 1.5, 4.0),
}


@pytest.mark.parametrize(("values", "mean", "high"), CASES.values(), ids=CASES.keys())
def test_pixels_equal_the_pil_pipeline(values: dict[str, Any], mean: float, high: float) -> None:
    draws = drawn(values, num_images=len(SIZES))
    pairs = []
    for row, (width, height) in enumerate(SIZES):
        image = photo(width, height, row)
        pairs.append((by_pillow(image, draws, row, 256, 224), ours(image, draws, row, 256, 224)))
    differences = np.abs(np.stack([a - b for a, b in pairs]))
    assert differences.mean() < mean
    assert np.percentile(differences, 95) < high


@pytest.mark.data
@pytest.mark.skipif(not CALTECH, reason="CALTECH101_DIR is not set")
@pytest.mark.parametrize("values", [case[0] for case in CASES.values()], ids=CASES.keys())
def test_pixels_of_real_photographs_equal_the_pil_pipeline(values: dict[str, Any]) -> None:
    files = sorted(Path(CALTECH or "").glob("**/image_0007.jpg"))[::5]
    assert files
    draws = drawn(values, num_images=len(files))
    pairs = []
    for row, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        pairs.append((by_pillow(image, draws, row, 256, 224), ours(image, draws, row, 256, 224)))
    differences = np.abs(np.stack([a - b for a, b in pairs]))
    # photographs have grain: a picture that is moved is filtered twice by Pillow and once by us
    moved = draws.spec.rotation or draws.spec.perspective
    assert differences.mean() < (4 if moved else 2)
    assert np.percentile(differences, 95) < (15 if moved else 4)


def test_black_lies_where_pillow_leaves_black() -> None:
    draws = drawn({"rotation": 180, "perspective": {"p": 1, "distortion": 0.6}}, num_images=8)
    white = Image.new("RGB", (300, 220), "white")
    for row in range(8):
        expected = by_pillow(white, draws, row, 256, 224) > 127
        assert ((ours(white, draws, row, 256, 224) > 127) != expected).mean() < 0.004
        assert not expected.all()


def test_contrast_turns_about_the_mean_of_the_whole_image() -> None:
    # a dark crop between two bright sides, which the network never sees
    pixels = np.full((200, 600, 3), 250, dtype=np.uint8)
    pixels[:, 180:420] = 40
    draws = drawn({"contrast": 0.4}, num_images=1)
    image = Image.fromarray(pixels)
    assert np.abs(by_pillow(image, draws, 0, 256, 224) - ours(image, draws, 0, 256, 224)).mean() < 1.5


def test_gathering_a_batch_equals_sampling_each_image() -> None:
    images = [photo(width, height, row) for row, (width, height) in enumerate(SIZES)]
    draws = drawn(GEOMETRIC, num_images=len(images))
    small = [resized(image, 256) for image in images]
    sizes = np.array([image.size for image in images])
    after = np.array([pixels.shape[1::-1] for pixels in small])
    source, canvas = view_matrices(draws, sizes, crop_views(sizes, after, 224))
    starts = np.cumsum([0, *(pixels.size for pixels in small[:-1])])
    gathered = sample_by_gather(
        torch.from_numpy(np.concatenate([pixels.ravel() for pixels in small])),
        torch.from_numpy(starts),
        torch.from_numpy(after),
        torch.from_numpy(source),
        torch.from_numpy(canvas),
        224,
    )
    for row, image in enumerate(images):
        alone = by_threads(image, draws, row, 256, 224)[0, :, : 224**2]
        assert ((gathered[row] - alone).abs() > 1e-3).float().mean() < 1e-4


def test_a_batch_of_different_orders_equals_each_image_alone() -> None:
    draws = drawn(AUGMENTATIONS["report_2"] | {"grayscale": 0.3}, num_images=16)
    assert len({tuple(order) for order in draws.order.tolist()}) > 5
    planes = torch.rand(16, 3, 3000, generator=torch.Generator().manual_seed(0))
    alone = [change_colours(planes[row : row + 1].clone(), draws.of(np.array([row])), 500) for row in range(16)]
    torch.testing.assert_close(change_colours(planes.clone(), draws, 500), torch.cat(alone), rtol=0, atol=1e-5)


def test_hue_equals_torchvisions_on_floats() -> None:
    planes = torch.rand(4, 3, 2000, generator=torch.Generator().manual_seed(0))
    planes[:, :, :100] = planes[:, :1, :100]  # grey
    planes[:, 1, 100:200] = planes[:, 0, 100:200]  # two channels alike
    for turn in (-0.5, -0.1, 0.0, 0.07, 0.5):
        expected = tv.adjust_hue(planes[..., None], turn)[..., 0]
        torch.testing.assert_close(adjust_hue(planes.clone(), torch.full((4, 1, 1), turn)), expected, rtol=0, atol=1e-5)


def test_draws_are_the_same_for_ever() -> None:
    # golden numbers: a change here is a new version of the recipe
    draws = draw(AugmentationSpec.model_validate(AUGMENTATIONS["report_2"]), seed=1, restart=0, epoch=2, num_images=3)
    assert draws.flip_x.tolist() == [False, True, False]
    assert draws.order.tolist() == [[1, 3, 0, 2], [3, 1, 0, 2], [0, 2, 1, 3]]
    np.testing.assert_allclose(draws.angle, [-0.8098284121638843, 12.313174768760653, 21.250874633799192], rtol=1e-15)
    assert epoch_order(1, 0, 2, 8).tolist() == [7, 4, 3, 1, 5, 6, 2, 0]
    assert derived_seed(1, 0, 2, 3, 4) == 8651212874567834096


def test_an_images_draws_do_not_depend_on_how_many_images_there_are() -> None:
    spec = AugmentationSpec.model_validate(AUGMENTATIONS["report_2"])
    few, many = (draw(spec, seed=9, restart=1, epoch=4, num_images=number) for number in (10, 1000))
    same = many.of(np.arange(10))
    assert np.array_equal(few.factors, same.factors)
    assert np.array_equal(few.corners, same.corners)


def test_a_draw_does_not_depend_on_what_else_the_spec_asks_for() -> None:
    one = drawn({"rotation": 30})
    both = drawn({"rotation": 30, "horizontal_flip": 0.5, "hue": 0.1, "perspective": {}})
    assert np.array_equal(one.angle, both.angle)


@pytest.mark.parametrize("other", [(2, 0, 0), (1, 1, 0), (1, 0, 1), (1 + (1 << 32), 0, 0)], ids=str)
def test_seed_restart_and_epoch_each_change_the_draws(other: tuple[int, int, int]) -> None:
    assert not np.array_equal(epoch_order(1, 0, 0, 50), epoch_order(*other, 50))
    assert derived_seed(1, 0, 0, 7, 0) != derived_seed(*other, 7, 0)


def test_an_epochs_order_is_a_permutation() -> None:
    assert sorted(epoch_order(3, 0, 1, 100).tolist()) == list(range(100))


def test_seeds_of_steps_and_micro_batches_differ() -> None:
    seeds = {derived_seed(0, 0, 0, step, micro) for step in range(30) for micro in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_draws_are_spread_as_torchvisions_are() -> None:
    draws = drawn(AUGMENTATIONS["report_2"], num_images=20_000)
    assert abs(draws.flip_x.mean() - 0.5) < 0.02
    assert abs(draws.perspective.mean() - 0.5) < 0.02
    assert (np.abs(draws.angle) <= 30).all()
    assert abs(draws.angle.std() - 60 / 12**0.5) < 0.3
    assert draws.factors.min(axis=0) == pytest.approx([0.6, 0.6, 0.6, -0.1], abs=1e-3)
    assert draws.factors.max(axis=0) == pytest.approx([1.4, 1.4, 1.4, 0.1], abs=1e-3)
    orders, counts = np.unique(draws.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 0.85 * counts.mean()


def test_perspective_moves_corners_as_far_as_torchvision_does() -> None:
    draws = drawn({"perspective": {"p": 1, "distortion": 0.5}}, num_images=5000)
    ends = endpoints(draws.corners, np.tile([[11, 21]], (5000, 1)), 0.5)
    # RandomPerspective.get_params: int(0.5 * (11 // 2)) = 2 and int(0.5 * (21 // 2)) = 5 pixels inwards, both included
    assert ends.min(axis=0).tolist() == [[0, 0], [8, 0], [8, 15], [0, 15]]
    assert ends.max(axis=0).tolist() == [[2, 5], [10, 5], [10, 20], [2, 20]]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 2), (3, 200)], ids=str)
def test_tiny_images_stay_finite(size: tuple[int, int]) -> None:
    draws = drawn({"rotation": 180, "perspective": {"p": 1, "distortion": 1}}, num_images=20)
    image = Image.new("RGB", size, "white")
    for row in range(20):
        pixels = ours(image, draws, row, 16, 16)
        assert np.isfinite(pixels).all()
        assert pixels.min() >= 0
        assert pixels.max() <= 255.01
