"""A small data set of photographs of all shapes, as the import leaves one in a store."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from typing import Any

import numpy as np
from PIL import Image

from trainer.dataset import PARTS, DatasetIndex, Images, PartCounts, Shard, Split, dataset_key
from trainer.spec import DataSpec
from trainer.store import Store

SPEC = DataSpec.model_validate({"name": "blobs", "resize": 128, "crop": 112, "normalize": "imagenet"})
SMALL = DataSpec.model_validate({"name": "blobs", "resize": 40, "crop": 32})
SIZES = [(60, 90), (200, 131), (97, 97), (150, 40), (128, 128), (45, 45), (333, 250)]


def encoded(number: int, image_format: str = "JPEG") -> bytes:
    width, height = SIZES[number % len(SIZES)]
    y, x = np.mgrid[0:height, 0:width] / 40
    pixels = [
        128 + 120 * np.sin(x * (number % 3 + 1) + number),
        128 + 90 * np.cos(y + number),
        100 + 80 * np.sin(x * y),
    ]
    stream = io.BytesIO()
    Image.fromarray(np.stack(pixels, axis=-1).astype(np.uint8)).save(stream, image_format)
    return stream.getvalue()


def write_dataset(store: Store, contents: dict[str, list[tuple[int, bytes]]], name: str = "blobs") -> DatasetIndex:
    """A data set as the import leaves it: `contents` has label and encoded image of every image of a part."""
    columns: dict[str, list[Any]] = {field: [] for field in Images.model_fields if field != "sha256"}
    shards, digests, num_classes = [], [], 3
    for number, part in enumerate(PARTS):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for place, (label, data) in enumerate(contents.get(part, [])):
                member = tarfile.TarInfo(f"{place:08d}.jpg")
                member.size = len(data)
                width, height = Image.open(io.BytesIO(data)).size
                row = {"path": f"c{label}/{part}{place}.jpg", "label": label, "shard": number, "size": len(data)}
                row |= {"offset": tar.offset + 512, "width": width, "height": height}
                for field, value in row.items():
                    columns[field].append(value)
                digests.append(hashlib.sha256(data).digest())
                tar.addfile(member, io.BytesIO(data))
        text = stream.getvalue()
        file = f"shard-{part}-0-{hashlib.sha256(text).hexdigest()[:8]}.tar"
        store.put(dataset_key(name, file), text)
        shards.append(Shard(name=file, part=part, size=len(text), sha256=hashlib.sha256(text).hexdigest()))
    return DatasetIndex(
        name=name,
        fingerprint=hashlib.sha256(b"".join(digests)).hexdigest(),
        classes=tuple(f"c{label}" for label in range(num_classes)),
        split=Split(
            rule="folders", seed=0, test_fraction=None, validation_fraction=None, training_paths_sha256="0" * 64
        ),
        parts={
            part: PartCounts(
                num_images=len(contents.get(part, [])),
                class_counts=tuple(sum(label == k for label, _ in contents.get(part, [])) for k in range(num_classes)),
                paths_sha256="0" * 64,
            )
            for part in PARTS
        },
        excluded=(),
        skipped=(),
        notes=(),
        shards=tuple(shards),
        images=Images(**columns, sha256=base64.b64encode(b"".join(digests)).decode()),
    )


CONTENTS = {
    "train": [(number % 3, encoded(number)) for number in range(21)],
    "validation": [(number % 3, encoded(number + 30)) for number in range(6)],
    "test": [(number % 3, encoded(number + 50)) for number in range(3)],
}
