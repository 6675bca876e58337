"""Batches of one part of a data set, normalised and augmented, on the device that trains.

1. `Loader.batches` takes the images of one batch: straight from the mapping, or decoded ahead in the background
   (trainer/part.py).
2. It crops them, or augments them (trainer/augment.py): on a CPU image by image on threads, on a GPU, which the whole
   part is moved to if it fits, in one go.
3. Conversion to float and normalisation come last, on the device.

Pixel (x, y) of an image of width w that starts at byte s lies at s + 3 (y w + x). Sizes are (width, height).
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.augment import (
    CANVAS_SIDE,
    Draws,
    FloatArray,
    IntArray,
    canvas_points,
    canvas_views,
    change_colours,
    crop_corners,
    crop_views,
    draw,
    gather_crops,
    sample_by_gather,
    sample_image,
    view_matrices,
)
from trainer.cache import Pixels
from trainer.part import Part
from trainer.spec import AugmentationSpec, DataSpec

Batch = tuple[Tensor, Tensor]

DEVICE_SHARE = 0.3  # of the device memory free before the network trains
SMALL_CROP = 96  # below this many pixels a side, an image is too little work for a call per operation
READ_AHEAD = 2  # batches prepared in the background
CROPS_CHUNK = 8  # crops converted at a time: they stay in a core's cache between two operations
ALIGNMENT = 64  # bytes, of a vector register


class _Buffers:
    """Memory for batches on the host, used again once nothing refers to it any more.

    A fresh batch of 150 MB would cost more in page faults than in arithmetic.
    """

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[np.float32]] = []

    def take(self, num_floats: int) -> Tensor:
        """So many floats, of any value."""
        for array in self._arrays:
            # a tensor made from an array refers to it for as long as its storage lives: through views, and through
            # what autograd keeps. Three are this list, the loop's name and getrefcount's own argument.
            if array.size == num_floats and sys.getrefcount(array) == 3:
                return torch.from_numpy(array)
        whole = np.empty(num_floats * 4 + ALIGNMENT, dtype=np.uint8)
        first = -whole.ctypes.data % ALIGNMENT
        array = whole[first : first + num_floats * 4].view(np.float32)
        self._arrays = [array, *self._arrays[:1]]
        return torch.from_numpy(array)


@dataclass(frozen=True)
class _Prepared:
    """A batch before the device has seen it: what one of the three ways to go on needs, on the host."""

    indices: IntArray
    draws: Draws | None
    crops: Tensor | None = None
    images: list[Pixels] | None = None
    packed: Tensor | None = None
    starts: IntArray | None = None


class Loader:
    """Batches of a part for one run: cropped or augmented, normalised, on the device."""

    def __init__(
        self,
        part: Part,
        data: DataSpec,
        augmentation: AugmentationSpec | None,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        self.part = part
        self.device = device
        self._crop = data.crop
        self._memory_format = memory_format
        augmentation = augmentation or AugmentationSpec()
        self._augmentation = augmentation if augmentation.is_geometric or augmentation.is_photometric else None
        self._resamples = bool(augmentation.rotation or augmentation.perspective)
        self._photometric = augmentation.is_photometric
        self._num_canvas = CANVAS_SIDE**2 if augmentation.contrast else 0
        self._corners_N2 = crop_corners(part.resized_N2, data.crop)
        mean, std = torch.tensor(data.normalize.mean), torch.tensor(data.normalize.std)
        self._scale_3, self._bias_3 = (1 / std).to(device), (-mean / std).to(device)
        self._row_scale, self._row_bias = (self._scale_3 / 255).repeat(data.crop), self._bias_3.repeat(data.crop)
        self._labels_N = torch.from_numpy(part.labels_N).to(device)
        self._epoch: tuple[tuple[int, int, int], Draws] | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._buffers = _Buffers()
        self._resident = self._make_resident()
        # one image is enough work for a thread, unless it is small; a GPU wants them all at once
        self._by_gather = device.type != "cpu" or (data.crop < SMALL_CROP and self._augmentation is not None)
        self._only_crops = not (self._resamples or self._photometric)

    def _make_resident(self) -> Tensor | None:
        """The part's pixels on the device, if they are mapped and fit there."""
        if self.part.pixels is None:
            return None
        pixels = torch.from_numpy(self.part.pixels)
        if self.device.type == "cpu":
            return pixels
        free, _ = torch.cuda.mem_get_info(self.device)
        return pixels.to(self.device) if self.part.num_bytes <= DEVICE_SHARE * free else None

    def batch(self, indices_B: IntArray | Tensor, seed: int, epoch: int, restart: int) -> Batch:
        """Images (B, 3, crop, crop), float32, in the memory format, and labels (B,): both on the device."""
        return self._finish(self._prepare(np.asarray(indices_B, dtype=np.int64), seed, epoch, restart))

    def batches(self, batches: Iterable[IntArray | Tensor], seed: int, epoch: int, restart: int) -> Iterator[Batch]:
        """`batch` of each; where that means decoding or copying to a device, the next ones are begun ahead."""
        arrays = (np.asarray(indices_B, dtype=np.int64) for indices_B in batches)
        if self._resident is not None:  # nothing to do ahead: on a CPU a thread would take cores from the network
            for indices_B in arrays:
                yield self._finish(self._prepare(indices_B, seed, epoch, restart))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as ahead:
            waiting: deque[Future[_Prepared]] = deque()
            try:
                for indices_B in arrays:
                    waiting.append(ahead.submit(self._prepare, indices_B, seed, epoch, restart))
                    if len(waiting) > READ_AHEAD:
                        yield self._finish(waiting.popleft().result())
                while waiting:
                    yield self._finish(waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, indices_B: IntArray, seed: int, epoch: int, restart: int) -> _Prepared:
        draws = self._draws(seed, epoch, restart)
        draws = draws.of(indices_B) if draws else None
        if not self._by_gather:
            return _Prepared(indices_B, draws, images=self.part.images(indices_B))
        if self._resident is None and self._only_crops:
            return _Prepared(indices_B, draws, crops=self._pinned(self._host_crops(indices_B, draws)))
        if self._resident is not None:
            return _Prepared(indices_B, draws, packed=self._resident, starts=self.part.starts_N[indices_B])
        images = self.part.images(indices_B)
        starts_B = np.cumsum([0, *(image.size for image in images[:-1])])
        packed = self._pinned(torch.from_numpy(np.concatenate([image.ravel() for image in images])))
        return _Prepared(indices_B, draws, packed=packed, starts=starts_B)

    def _draws(self, seed: int, epoch: int, restart: int) -> Draws | None:
        if self._augmentation is None:
            return None
        if self._epoch is None or self._epoch[0] != (seed, epoch, restart):
            drawn = draw(self._augmentation, seed=seed, restart=restart, epoch=epoch, num_images=len(self.part))
            self._epoch = ((seed, epoch, restart), drawn)
        return self._epoch[1]

    def _pinned(self, tensor: Tensor) -> Tensor:
        """`tensor` in memory that a GPU can copy from beside its work."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _host_crops(self, indices_B: IntArray, draws: Draws | None) -> Tensor:
        crops_BHWC = torch.empty(len(indices_B), self._crop, self._crop, 3, dtype=torch.uint8)
        self._fill_crops(crops_BHWC.numpy(), self.part.images(indices_B), self._corners_N2[indices_B].tolist(), draws)
        return crops_BHWC

    def _fill_crops(
        self,
        out_BHWC: Pixels,
        images: Sequence[Pixels],
        corners: Sequence[Sequence[int]],
        draws: Draws | None,
        at: int = 0,
    ) -> None:
        for row, image in enumerate(images, start=at):
            out_BHWC[row - at] = self._crop_of(image, corners[row], draws, row)

    def _crop_of(self, image: Pixels, corner: Sequence[int], draws: Draws | None, row: int) -> Pixels:
        """The central crop of the image once it is mirrored as the row of draws has it."""
        if draws:
            image = image[:, ::-1] if draws.flip_x[row] else image
            image = image[::-1] if draws.flip_y[row] else image
        left, top = corner
        return image[top : top + self._crop, left : left + self._crop]

    def _finish(self, prepared: _Prepared) -> Batch:
        indices = self._on_device(prepared.indices)
        labels_B = self._labels_N.index_select(0, indices)
        if prepared.images is not None:
            make = self._cropped if self._only_crops else self._augmented_by_threads
            return make(prepared), labels_B
        if prepared.crops is not None:
            return self._normalised(prepared.crops.to(self.device, non_blocking=True)), labels_B
        return self._gathered(prepared), labels_B

    def _cropped(self, prepared: _Prepared) -> Tensor:
        """The batch on the CPU, some images at a time."""
        images, corners = prepared.images, self._corners_N2[prepared.indices].tolist()
        assert images is not None
        shape = (len(images), self._crop, self._crop, 3)
        out_BHWC = self._buffers.take(int(np.prod(shape))).view(shape)
        crops = np.empty((min(len(images), CROPS_CHUNK * torch.get_num_threads()), *shape[1:]), dtype=np.uint8)
        for at in range(0, len(images), len(crops)):
            some = images[at : at + len(crops)]
            self._fill_crops(crops, some, corners, prepared.draws, at)
            self._normalise(torch.from_numpy(crops[: len(some)]), out_BHWC[at : at + len(some)])
        return out_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)

    def _on_device(self, array: npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _normalised(self, crops_BHWC: Tensor) -> Tensor:
        out_BHWC = torch.empty(crops_BHWC.shape, device=self.device)
        self._normalise(crops_BHWC, out_BHWC)
        return out_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)

    def _normalise(self, crops_BHWC: Tensor, out_BHWC: Tensor) -> None:
        """Fill `out_BHWC`: torchvision's ToTensor and Normalize of uint8 crops, up to the rounding of floats."""
        rows = out_BHWC.view(-1, self._crop * 3)  # long rows: along 3 channels nothing would be vectorised
        rows.copy_(crops_BHWC.view(rows.shape))
        torch.addcmul(self._row_bias, rows, self._row_scale, out=rows)

    def _gathered(self, prepared: _Prepared) -> Tensor:
        """The batch from images packed one after another on the device."""
        assert prepared.packed is not None
        assert prepared.starts is not None
        pixels = prepared.packed.to(self.device, non_blocking=True)
        starts_B = self._on_device(prepared.starts)
        resized_B2 = self._on_device(self.part.resized_N2[prepared.indices])
        sizes_B2, draws, side = self.part.sizes_N2[prepared.indices], prepared.draws, self._crop

        def matrices(views_B33: FloatArray) -> tuple[Tensor, Tensor]:
            assert draws is not None
            source, canvas = view_matrices(draws, sizes_B2, views_B33)
            return self._on_device(source), self._on_device(canvas)

        if self._resamples:
            crop = matrices(crop_views(sizes_B2, self.part.resized_N2[prepared.indices], side))
            planes = sample_by_gather(pixels, starts_B, resized_B2, *crop, side)
        else:
            none = np.zeros(len(sizes_B2), dtype=np.bool_)
            flips = np.stack([draws.flip_x, draws.flip_y] if draws else [none, none], axis=1)
            corners_B2 = self._on_device(self._corners_N2[prepared.indices])
            crops_BHWC = gather_crops(pixels, starts_B, resized_B2, corners_B2, self._on_device(flips), side)
            if self._only_crops:
                return self._normalised(crops_BHWC)
            planes = crops_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255).flatten(2)
        if self._photometric:
            assert draws is not None
            if self._num_canvas:
                points_BP, inside_BP = canvas_points(*matrices(canvas_views(sizes_B2)), resized_B2)
                channels = torch.arange(3, device=self.device).view(1, 3, 1)
                wanted = (starts_B[:, None, None] + 3 * points_BP[:, None]) + channels
                seen = pixels.index_select(0, wanted.flatten()).view(wanted.shape)
                planes = torch.cat([planes, seen * (inside_BP[:, None] / 255)], dim=2)
            planes = change_colours(planes, draws, self._num_canvas)
        planes = planes[:, :, : side * side] * self._scale_3[:, None] + self._bias_3[:, None]
        return planes.view(-1, 3, side, side).contiguous(memory_format=self._memory_format)

    def _augmented_by_threads(self, prepared: _Prepared) -> Tensor:
        """The batch image by image: each stays in its core's cache through all operations."""
        images, draws = prepared.images, prepared.draws
        assert images is not None
        assert draws is not None
        sizes_B2, resized_B2 = self.part.sizes_N2[prepared.indices], self.part.resized_N2[prepared.indices]
        num_points, corners = self._crop**2, self._corners_N2[prepared.indices].tolist()
        if self._resamples:
            source_B33, canvas_B33 = view_matrices(draws, sizes_B2, crop_views(sizes_B2, resized_B2, self._crop))
        if self._num_canvas:
            source, canvas = view_matrices(draws, sizes_B2, canvas_views(sizes_B2))
            points_BP, inside_BP = canvas_points(
                torch.from_numpy(source), torch.from_numpy(canvas), torch.from_numpy(resized_B2)
            )
            inside_BP.mul_(1 / 255)
        shape = (len(images), 3, self._crop, self._crop)
        out_BCHW = self._buffers.take(int(np.prod(shape))).view(shape)
        if self._memory_format == torch.channels_last:
            out_BCHW = out_BCHW.view(len(images), self._crop, self._crop, 3).permute(0, 3, 1, 2)

        def augment(row: int) -> None:
            image = torch.from_numpy(images[row])
            planes = torch.empty(1, 3, num_points + self._num_canvas)
            view_CP = planes[0, :, :num_points]
            if self._resamples:
                floats = image.to(torch.float32).permute(2, 0, 1)[None]  # sampled as they lie: channels last
                sample_image(floats, source_B33[row], canvas_B33[row], self._crop, view_CP)
            else:
                crop = np.ascontiguousarray(self._crop_of(images[row], corners[row], draws, row))
                view_CP.view(shape[1:]).copy_(torch.from_numpy(crop).permute(2, 0, 1)).mul_(1 / 255)
            if self._num_canvas:
                seen = image.view(-1, 3).index_select(0, points_BP[row])
                torch.mul(seen.T, inside_BP[row], out=planes[0, :, num_points:])
            if self._photometric:
                planes = change_colours(planes, draws.of(np.array([row])), self._num_canvas)
            normalised = planes[0, :, :num_points] * self._scale_3[:, None]
            out_BCHW[row].copy_(normalised.add_(self._bias_3[:, None]).view(shape[1:]))

        deque(self._pool().map(augment, range(len(images))), maxlen=0)
        return out_BCHW

    def _pool(self) -> ThreadPoolExecutor:
        """As many threads as one operation of torch has here, with one each: set on the first use."""
        if self._workers is None:
            threads = torch.get_num_threads()
            ready = threading.Barrier(threads + 1)

            def start() -> None:
                torch.set_num_threads(1)  # holds for the calling thread, and for threads that torch sees later
                ready.wait()

            workers = ThreadPoolExecutor(threads, thread_name_prefix="augment")
            for _ in range(threads):
                workers.submit(start)
            ready.wait()
            torch.set_num_threads(threads)
            self._workers = workers
        return self._workers
