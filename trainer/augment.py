"""Random draws of training, and the augmentation of images by them.

Every number is drawn from (seed, restart, epoch, index) alone: neither batches nor their order nor threads change it.
Pixels go through these steps, which equal torchvision's transforms on the image at its own size and then Resize and
CenterCrop, within the tolerance that tests/trainer/test_augment.py states:

1. `draw` gives an epoch's numbers, a row for each image.
2. `view_matrices` composes crop, resize, perspective, rotation and flips to one projective map for each image, from
   the pixels that the network sees back to the cached image.
3. `sample_image` (one image, on a CPU thread) or `sample_by_gather` (a batch, on any device) reads the cached image
   there once, bilinearly; black lies wherever one of the steps would have had to read outside its image.
4. `change_colours` turns grey, then applies brightness, contrast, saturation and hue in each image's own order.

Maps work on continuous coordinates: pixel i covers i..i+1, as in Pillow. B batch, C channels, H W pixels, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.spec import AugmentationSpec

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

CANVAS_SIDE = 32
"""Contrast turns about the mean grey of the whole image, not of the crop: this many points squared stand for it."""


class _Purpose(IntEnum):
    """What numbers are drawn for: equal (seed, restart, epoch) give unrelated numbers for different purposes."""

    ORDER = 1
    AUGMENTATION = 2
    MODEL = 3
    WEIGHTS = 4


class Colour(IntEnum):
    """The four operations of torchvision's ColorJitter, by its own numbers."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3


# Columns of an image's row of draws. Their number and order never change: every draw after them would.
_FLIP_X, _FLIP_Y, _ANGLE, _PERSPECTIVE, _CORNERS, _GREY, _ORDER, _FACTORS = 0, 1, 2, 3, 4, 12, 13, 17
_COLUMNS = 24


def epoch_order(seed: int, restart: int, epoch: int, num_images: int) -> IntArray:
    """The order in which an epoch shows the images: a permutation of 0..num_images-1."""
    keys = _philox(_Purpose.ORDER, seed, restart, epoch).random_raw(num_images)
    return np.argsort(keys, kind="stable")


def derived_seed(seed: int, restart: int, epoch: int, step: int, micro_batch: int) -> int:
    """The seed for torch.manual_seed before one micro-batch (dropout): below 2**63."""
    sequence = _sequence(_Purpose.MODEL, seed, restart, epoch, step, micro_batch)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def weights_seed(seed: int) -> int:
    """The seed for torch.manual_seed before the first weights are drawn: below 2**63."""
    return int(_sequence(_Purpose.WEIGHTS, seed).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _philox(purpose: _Purpose, seed: int, *place: int) -> np.random.Philox:
    # random_raw of a bit generator is what NumPy promises never to change: https://numpy.org/neps/nep-0019-rng-policy
    return np.random.Philox(_sequence(purpose, seed, *place))


def _sequence(purpose: _Purpose, seed: int, *place: int) -> np.random.SeedSequence:
    # The seed goes last: it alone may need more than one 32-bit word, so no two calls of one purpose look equal.
    assert all(0 <= number < 1 << 32 for number in place)
    return np.random.SeedSequence([purpose, *place, seed])


@dataclass(frozen=True)
class Draws:
    """Numbers drawn for some images, a row each, and the spec that they were drawn by."""

    spec: AugmentationSpec
    flip_x: BoolArray
    flip_y: BoolArray
    angle: FloatArray
    """Degrees, counter-clockwise."""
    perspective: BoolArray
    corners: FloatArray
    """(N, 4, 2): how far each corner moves inwards, 0..1 of the most it may; top left, then clockwise; x, y."""
    grey: BoolArray
    order: IntArray
    """(N, 4): which `Colour` comes first, second, …"""
    factors: FloatArray
    """(N, 4): the factor of each `Colour`; hue's is a part of a full turn."""

    def __len__(self) -> int:
        return len(self.angle)

    def of(self, indices: IntArray) -> Draws:
        """The rows of these images."""
        return Draws(
            self.spec,
            self.flip_x[indices],
            self.flip_y[indices],
            self.angle[indices],
            self.perspective[indices],
            self.corners[indices],
            self.grey[indices],
            self.order[indices],
            self.factors[indices],
        )


def draw(spec: AugmentationSpec, *, seed: int, restart: int, epoch: int, num_images: int) -> Draws:
    """An epoch's draws for the images 0..num_images-1.

    Row i is the same however many images there are, and a column the same whatever else the spec asks for.
    """
    raw = _philox(_Purpose.AUGMENTATION, seed, restart, epoch).random_raw(num_images * _COLUMNS)
    raw = raw.reshape(num_images, _COLUMNS)
    uniform: FloatArray = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    spreads = np.array([spec.brightness, spec.contrast, spec.saturation])
    lowest = np.append(np.maximum(0, 1 - spreads), -spec.hue)
    highest = np.append(1 + spreads, spec.hue)
    return Draws(
        spec=spec,
        flip_x=uniform[:, _FLIP_X] < spec.horizontal_flip,
        flip_y=uniform[:, _FLIP_Y] < spec.vertical_flip,
        angle=spec.rotation * (2 * uniform[:, _ANGLE] - 1),
        perspective=uniform[:, _PERSPECTIVE] < (spec.perspective.p if spec.perspective else 0),
        corners=uniform[:, _CORNERS : _CORNERS + 8].reshape(num_images, 4, 2),
        grey=uniform[:, _GREY] < spec.grayscale,
        order=np.argsort(raw[:, _ORDER : _ORDER + 4], axis=1, kind="stable"),
        factors=lowest + (highest - lowest) * uniform[:, _FACTORS : _FACTORS + 4],
    )


def endpoints(corners_B42: FloatArray, sizes_B2: IntArray, distortion: float) -> FloatArray:
    """Where perspective moves the corners of images of these sizes (width, height): whole pixels, (B, 4, 2).

    As torchvision's RandomPerspective.get_params: each coordinate is drawn evenly from the whole numbers that lie at
    most `distortion` times half the side inwards of the corner.
    """
    reach = np.floor(distortion * (sizes_B2 // 2))[:, None, :]
    moved = np.floor(corners_B42 * (reach + 1))
    corner = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    far = sizes_B2[:, None, :] - reach - 1 + moved
    ends: FloatArray = np.where(corner == 1, far, moved)
    return ends


def view_matrices(
    draws: Draws, sizes_B2: IntArray, views_B33: FloatArray
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Maps (B, 3, 3) from a view's points to the images, and to the canvas between rotation and perspective.

    `views_B33` maps the view's points to an image's own pixels, `sizes_B2` (width, height) as it was decoded. Both
    results map to -1..1 from edge to edge: the image's part of the view is where both stay within.
    """
    widths, heights = sizes_B2[:, 0].astype(np.float64), sizes_B2[:, 1].astype(np.float64)
    zero, one = np.zeros_like(widths), np.ones_like(widths)
    to_unit = _matrices([2 / widths, zero, -one], [zero, 2 / heights, -one], [zero, zero, one])
    canvas = views_B33
    if draws.spec.perspective:
        canvas = _perspective(draws, sizes_B2, draws.spec.perspective.distortion) @ canvas
    # Pillow's rotate: counter-clockwise for the eye, about the centre, https://pillow.readthedocs.io Image.rotate
    radians = np.deg2rad(draws.angle)
    cos, sin = np.cos(radians), np.sin(radians)
    x, y = widths / 2, heights / 2
    rotation = _matrices([cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [zero, zero, one])
    mirror = _matrices(
        [np.where(draws.flip_x, -1.0, 1.0), zero, zero],
        [zero, np.where(draws.flip_y, -1.0, 1.0), zero],
        [zero, zero, one],
    )
    source = mirror @ to_unit @ rotation @ canvas
    canvas = to_unit @ canvas
    size = np.abs(canvas[:, 2:, :]).max(axis=2, keepdims=True)
    return (source / size).astype(np.float32), (canvas / size).astype(np.float32)


def _matrices(*rows: Sequence[FloatArray]) -> FloatArray:
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _perspective(draws: Draws, sizes_B2: IntArray, distortion: float) -> FloatArray:
    """Maps (B, 3, 3), up to a factor each, that take the moved corners back; identity where nothing is drawn.

    The corners are whole pixels and the map is used on continuous coordinates, half a pixel off, as torchvision has
    it. Unit square to quadrilateral is Heckbert's closed form (Fundamentals of Texture Mapping, 1989, section 2.2.3).
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = endpoints(draws.corners, sizes_B2, distortion).transpose(1, 2, 0)
    dx1, dy1, dx2, dy2 = x1 - x2, y1 - y2, x3 - x2, y3 - y2
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    # multiplied by the determinant, which may be 0 for an image a pixel wide
    det = dx1 * dy2 - dx2 * dy1
    g, h = sx * dy2 - sy * dx2, dx1 * sy - dy1 * sx
    a, b, c = det * (x1 - x0) + g * x1, det * (x3 - x0) + h * x3, det * x0
    d, e, f = det * (y1 - y0) + g * y1, det * (y3 - y0) + h * y3, det * y0
    # adjugate instead of inverse: a factor does not matter
    unit = _matrices(
        [e * det - f * h, c * h - b * det, b * f - c * e],
        [f * g - d * det, a * det - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    )
    scale = np.concatenate([sizes_B2 - 1, np.ones((len(sizes_B2), 1), np.int64)], axis=1)
    found = scale[:, :, None] * unit
    moves = draws.perspective & (det != 0) & np.isfinite(found).all(axis=(1, 2)) & (np.abs(found[:, 2]).max(axis=1) > 0)
    return np.where(moves[:, None, None], found, np.eye(3))


def crop_views(sizes_B2: IntArray, resized_B2: IntArray, crop: int) -> FloatArray:
    """Maps (B, 3, 3) from the pixel numbers of the central crop to the image's pixels at its own size."""
    corner = crop_corners(resized_B2, crop) + 0.5
    scale = sizes_B2 / resized_B2
    return _scale_and_shift(scale, corner * scale)


def canvas_views(sizes_B2: IntArray) -> FloatArray:
    """Maps (B, 3, 3) from CANVAS_SIDE x CANVAS_SIDE point numbers, spread over all of the image, to its pixels."""
    scale = sizes_B2 / CANVAS_SIDE
    return _scale_and_shift(scale, scale / 2)


def crop_corners(resized_B2: IntArray, crop: int) -> IntArray:
    """Left and top of the central crop, rounded half to even as torchvision's center_crop: (B, 2)."""
    return np.rint((resized_B2 - crop) / 2).astype(np.int64)


def _scale_and_shift(scale_B2: FloatArray, shift_B2: FloatArray) -> FloatArray:
    zero, one = np.zeros(len(scale_B2)), np.ones(len(scale_B2))
    return _matrices([scale_B2[:, 0], zero, shift_B2[:, 0]], [zero, scale_B2[:, 1], shift_B2[:, 1]], [zero, zero, one])


# --- sampling


def sample_image(
    image_1CHW: Tensor,
    source_33: npt.NDArray[np.float32],
    canvas_33: npt.NDArray[np.float32],
    side: int,
    out_CP: Tensor,
) -> None:
    """Fill `out_CP` with a view of side x side points of a float image of 0..255, as 0..1."""
    numbers = torch.arange(side, dtype=torch.float32)
    columns, rows = numbers.view(1, side), numbers.view(side, 1)

    def plane(row: Sequence[float]) -> Tensor:
        return columns * row[0] + (rows * row[1] + row[2])

    source, canvas = source_33.tolist(), canvas_33.tolist()
    is_projective = bool(canvas[2][0] or canvas[2][1])
    grid = torch.empty(1, side, side, 2)
    if is_projective:
        nearness = plane(canvas[2]).reciprocal_()
        x, y = plane(source[0]).mul_(nearness), plane(source[1]).mul_(nearness)
        far = torch.maximum(plane(canvas[0]).mul_(nearness).abs_(), plane(canvas[1]).mul_(nearness).abs_())
        grid[0, :, :, 0], grid[0, :, :, 1] = x, y
        far = torch.maximum(far, torch.maximum(x.abs_(), y.abs_()))
    else:
        factor = 1 / canvas[2][2]
        x, y = (plane([value * factor for value in row]) for row in source[:2])
        grid[0, :, :, 0], grid[0, :, :, 1] = x, y
        far = torch.maximum(x.abs_(), y.abs_())
    inside = far.le_(1).mul_(1 / 255)
    sampled = F.grid_sample(image_1CHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.mul(sampled[0].flatten(1), inside.flatten(), out=out_CP)


def sample_by_gather(
    pixels: Tensor,
    starts_B: Tensor,
    resized_B2: Tensor,
    source_B33: Tensor,
    canvas_B33: Tensor,
    side: int,
) -> Tensor:
    """Views (B, 3, side * side) as 0..1 of images of different sizes, in one go on the device of `pixels`.

    `pixels` holds uint8 RGB images one after another; `starts_B` is each one's first byte, `resized_B2` its width and
    height there. Equal to `sample_image` up to rounding.
    """
    x, y, inside = _places(source_B33, canvas_B33, side)
    widths, heights = (resized_B2[:, axis].to(torch.float32).view(-1, 1, 1) for axis in (0, 1))
    left, right, x_part = _neighbours(x, widths)
    top, bottom, y_part = _neighbours(y, heights)
    starts, strides = starts_B.view(-1, 1, 1), resized_B2[:, :1, None].to(torch.int64)
    taps = [
        (starts + 3 * (row * strides + column), weight)
        for row, y_weight in ((top, 1 - y_part), (bottom, y_part))
        for column, weight in ((left, (1 - x_part) * y_weight), (right, x_part * y_weight))
    ]
    inside.mul_(1 / 255)
    views = torch.empty(len(starts_B), 3, side * side, device=pixels.device)
    for channel in range(3):
        total = torch.zeros_like(inside)
        for place, weight in taps:
            value = pixels.index_select(0, (place + channel).flatten()).view(place.shape)
            total.addcmul_(value.to(torch.float32), weight)
        torch.mul(total, inside, out=views[:, channel].view(inside.shape))
    return views


def _places(source_B33: Tensor, canvas_B33: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where side x side points of a view lie in each image, -1..1 along x and y, and 1 for inside or 0: (B, H, W)."""
    numbers = torch.arange(side, dtype=torch.float32, device=source_B33.device)
    columns, rows = numbers.view(1, 1, side), numbers.view(1, side, 1)

    def plane(matrices_B33: Tensor, row: int) -> Tensor:
        a, b, c = matrices_B33[:, row, :, None, None].unbind(1)
        return columns * a + (rows * b + c)

    nearness = plane(canvas_B33, 2).reciprocal_()
    x, y = (plane(source_B33, row).mul_(nearness) for row in (0, 1))
    far = torch.maximum(x.abs(), y.abs())
    for row in (0, 1):
        far = torch.maximum(far, plane(canvas_B33, row).mul_(nearness).abs_())
    return x, y, far.le_(1)  # 0 for NaN, which a point on the horizon may be


def canvas_points(source_B33: Tensor, canvas_B33: Tensor, resized_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Points spread over all of each augmented image: which of the image's pixels is seen there, and whether any is.

    Pixel numbers (B, CANVAS_SIDE ** 2), int64, row by row; and 1 where there is one, 0 where black is.
    """
    x, y, inside = _places(source_B33, canvas_B33, CANVAS_SIDE)
    widths, heights = (resized_B2[:, axis].view(-1, 1, 1) for axis in (0, 1))
    column, row = (
        torch.nan_to_num((place + 1) * (length / 2)).clamp_(min=0).to(torch.int64).minimum(length - 1)
        for place, length in ((x, widths), (y, heights))
    )
    return (row * widths + column).flatten(1), inside.flatten(1)


def _neighbours(places: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels beside a place in -1..1 along an axis of `sizes` pixels, and how near it is to the second."""
    middle = torch.nan_to_num((places + 1) * (sizes / 2) - 0.5)
    middle = torch.minimum(middle.clamp_(min=0), sizes - 1)
    first = middle.floor()
    second = torch.minimum(first + 1, sizes - 1)
    return first.to(torch.int64), second.to(torch.int64), middle - first


def gather_crops(
    pixels: Tensor, starts_B: Tensor, resized_B2: Tensor, corners_B2: Tensor, flips_B2: Tensor, crop: int
) -> Tensor:
    """Crops (B, crop, crop, 3), uint8, of images in `pixels` (as in `sample_by_gather`), on its device.

    `corners_B2` is left and top, `flips_B2` whether to mirror along x and y, first the image and then the crop.
    """
    numbers = torch.arange(crop, device=pixels.device)
    places = numbers + corners_B2[:, :, None]
    places = torch.where(flips_B2[:, :, None], resized_B2[:, :, None] - 1 - places, places)
    columns, rows = places[:, 0, None, :], places[:, 1, :, None]
    first = starts_B[:, None, None] + 3 * (rows * resized_B2[:, :1, None] + columns)
    wanted = first[..., None] + torch.arange(3, device=pixels.device)
    return pixels.index_select(0, wanted.flatten()).view(wanted.shape)


# --- colours


def change_colours(pixels_BCP: Tensor, draws: Draws, num_canvas: int) -> Tensor:
    """`pixels_BCP` (0..1) turned grey and jittered as drawn: changed in place, or a single channel if all are grey.

    The last `num_canvas` points stand for the whole image: contrast takes its mean from them.
    """
    spec = draws.spec
    if spec.grayscale == 1:
        pixels_BCP = grey_of(pixels_BCP)
    elif draws.grey.any():
        _on_rows(pixels_BCP, draws.grey, lambda some: grey_of(some).expand(-1, 3, -1).clone())
    spreads = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    for place in range(4):
        for colour in Colour:
            if spreads[colour] == 0:
                continue
            rows = draws.order[:, place] == colour
            if rows.any():
                factors = draws.factors[rows, colour]
                _on_rows(pixels_BCP, rows, _change(colour, factors, num_canvas))
    return pixels_BCP


def _on_rows(pixels_BCP: Tensor, rows: BoolArray, change: Callable[[Tensor], Tensor]) -> None:
    if rows.all():
        changed = change(pixels_BCP)
        if changed is not pixels_BCP:
            pixels_BCP.copy_(changed)
        return
    indices = torch.from_numpy(np.flatnonzero(rows)).to(pixels_BCP.device)
    pixels_BCP.index_copy_(0, indices, change(pixels_BCP.index_select(0, indices)))


def _change(colour: Colour, factors_B: FloatArray, num_canvas: int) -> Callable[[Tensor], Tensor]:
    def change(pixels_BCP: Tensor) -> Tensor:
        factors_B11 = torch.from_numpy(factors_B.astype(np.float32)).to(pixels_BCP.device).view(-1, 1, 1)
        match colour:
            case Colour.BRIGHTNESS:
                return pixels_BCP.mul_(factors_B11).clamp_(0, 1)
            case Colour.CONTRAST:
                mean = grey_of(pixels_BCP[:, :, -num_canvas:]).mean(dim=2, keepdim=True)
                return pixels_BCP.mul_(factors_B11).add_(mean * (1 - factors_B11)).clamp_(0, 1)
            case Colour.SATURATION:
                return adjust_saturation(pixels_BCP, factors_B11)
            case Colour.HUE:
                return adjust_hue(pixels_BCP, factors_B11)

    return change


def grey_of(pixels_BCP: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B, (B, 1, P): ITU-R 601-2 luma, Pillow's conversion to "L"."""
    if pixels_BCP.shape[1] == 1:
        return pixels_BCP
    red, green, blue = pixels_BCP[:, 0:1], pixels_BCP[:, 1:2], pixels_BCP[:, 2:3]
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def adjust_saturation(pixels_BCP: Tensor, factors_B11: Tensor) -> Tensor:
    """`pixels_BCP`, in place, away from its own grey by the factor."""
    if pixels_BCP.shape[1] == 1:
        return pixels_BCP
    grey = grey_of(pixels_BCP).mul_(1 - factors_B11)
    return pixels_BCP.mul_(factors_B11).add_(grey).clamp_(0, 1)


def adjust_hue(pixels_BCP: Tensor, turns_B11: Tensor) -> Tensor:
    """`pixels_BCP`, in place, with the hue turned: value and chroma of the HSV hexcone stay.

    Back from HSV by channel = V - C * clamp(min(k, 4 - k), 0, 1), k = (n + 6 H) mod 6, n = 5, 3, 1 for red, green,
    blue (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative). Comparisons are kept as floats: choosing
    by torch.where is ten times as slow on a CPU as arithmetic.
    """
    if pixels_BCP.shape[1] == 1:
        return pixels_BCP
    red, green, blue = pixels_BCP[:, 0:1], pixels_BCP[:, 1:2], pixels_BCP[:, 2:3]
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    # sixths of a turn, times chroma: from red by default of green, from green by that of blue
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), green.clone().eq_(largest))
    hue.lerp_(green - blue, red.clone().eq_(largest))
    # grey has no chroma, and any hue does
    hue.div_(chroma.clamp(min=1e-9)).mul_(1 / 6).add_(turns_B11 + 1)
    offsets = torch.tensor([5 / 6, 3 / 6, 1 / 6], device=pixels_BCP.device).view(3, 1)
    torch.add(hue, offsets, out=pixels_BCP)
    # smallest + chroma * clamp(|k - 2| - 1, 0, 1)
    pixels_BCP.frac_().mul_(6).sub_(2).abs_().clamp_(1, 2)
    return pixels_BCP.mul_(chroma).add_(smallest.sub_(chroma))
