"""A data set's index: its classes, its parts, and where in the shards each image lies.

`datasets/<name>/index.json` is written last, so that whoever finds it finds all that it names:

    shard-<part>-<number>-<hash>.tar    WebDataset shards; no shard holds images of two parts
    index.json                          this index

A shard is a plain tar file. Image n of a part is the pair `<n, eight digits>.<format>` and `<n>.cls` (the label as
decimal digits); the image's bytes are those of the source, and the index has their offset inside the shard.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, get_args

from pydantic import Field, ValidationError

from trainer.failure import DataError
from trainer.lock import HostLock
from trainer.result import Record
from trainer.spec import DataSpec, Sha256
from trainer.store import NotFound, Store

PartName = Literal["train", "validation", "test"]
SplitRule = Literal["every-third", "lists", "folders", "fraction"]

PARTS: tuple[PartName, ...] = get_args(PartName)
FORMAT_VERSION = 1


class ImageEntry(Record):
    """One image: where its encoded bytes are, and what it is."""

    path: str = Field(description="category/file in the source, Unicode form NFC; its part's folder before it, if any")
    label: int = Field(description="index into the data set's classes")
    part: PartName
    shard: int = Field(description="index into the data set's shards")
    offset: int = Field(description="first byte of the encoded image inside the shard")
    size: int = Field(description="bytes of the encoded image")
    width: int = Field(description="pixels of the decoded image, turned as its EXIF orientation says")
    height: int
    sha256: Sha256 = Field(description="of the encoded image")


class Shard(Record):
    """One tar file of images of one part."""

    name: str = Field(description="the key's last component")
    part: PartName
    size: int = Field(description="bytes")
    sha256: Sha256


class PartCounts(Record):
    """One part in numbers."""

    num_images: int
    class_counts: tuple[int, ...] = Field(description="images of each class, in the order of the classes")
    paths_sha256: Sha256 = Field(description="of the part's paths in canonical order, joined by newlines")


class Split(Record):
    """How images were given to parts."""

    rule: SplitRule
    seed: int = Field(description="seed of the draws that the rule or the validation part needed")
    test_fraction: float | None = Field(description="asked for by `fraction`, stratified by class")
    validation_fraction: float | None = Field(
        description="of the source's training images, stratified by class; none where the source has a validation part"
    )
    training_paths_sha256: Sha256 = Field(
        description="of the paths of train and validation together in canonical order, joined by newlines"
    )


class Images(Record):
    """The images as columns, grouped by part (train, validation, test), each in canonical order."""

    path: tuple[str, ...]
    label: tuple[int, ...]
    shard: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    width: tuple[int, ...]
    height: tuple[int, ...]
    sha256: str = Field(description="the images' SHA-256s one after another, 32 bytes each, in base64")


class DatasetIndex(Record):
    """A data set as `datasets/<name>/index.json` holds it. Canonical order is by class, then path, see `order`."""

    version: int = FORMAT_VERSION
    name: str
    fingerprint: Sha256 = Field(description="identity of classes, images, labels and parts; see `fingerprint_of`")
    classes: tuple[str, ...] = Field(description="names by label")
    split: Split
    parts: dict[PartName, PartCounts]
    excluded: tuple[str, ...] = Field(description="class folders left out on request")
    skipped: tuple[tuple[str, str], ...] = Field(
        description="files of the source that are not in the set: path, reason"
    )
    notes: tuple[str, ...] = Field(description="what a reader should know: the same image in two parts, small classes")
    shards: tuple[Shard, ...]
    images: Images

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def num_images(self, part: PartName | None = None) -> int:
        """Images of the part, or of the whole set."""
        return len(self.images.path) if part is None else self.parts[part].num_images

    def class_counts(self, part: PartName) -> tuple[int, ...]:
        """Images of each class in the part, by label."""
        return self.parts[part].class_counts

    def rows(self, part: PartName) -> range:
        """Where the part's images lie in the columns of `images`."""
        start = sum(self.num_images(earlier) for earlier in PARTS[: PARTS.index(part)])
        return range(start, start + self.num_images(part))

    def entries(self, part: PartName) -> list[ImageEntry]:
        """The part's images in canonical order."""
        images, digests = self.images, self._digests
        return [
            ImageEntry.model_construct(
                path=images.path[row],
                label=images.label[row],
                part=part,
                shard=images.shard[row],
                offset=images.offset[row],
                size=images.size[row],
                width=images.width[row],
                height=images.height[row],
                sha256=digests[32 * row : 32 * row + 32].hex(),
            )
            for row in self.rows(part)
        ]

    def shard_key(self, shard: int) -> str:
        """Key of a shard in the store."""
        return dataset_key(self.name, self.shards[shard].name)

    def resized_bytes(self, resize: int, parts: Iterable[PartName] = PARTS) -> int:
        """Bytes of the parts' images as uint8 RGB, resized so that the shorter side has `resize` pixels, uncropped."""
        images = self.images
        total = 0
        for part in parts:
            for row in self.rows(part):
                height, width = resized_shape(images.height[row], images.width[row], resize)
                total += 3 * height * width
        return total

    @cached_property
    def _digests(self) -> bytes:
        return base64.b64decode(self.images.sha256)


def resized_shape(height: int, width: int, resize: int) -> tuple[int, int]:
    """Height and width once the shorter side has `resize` pixels; the longer is rounded down, as torchvision does.

    https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.Resize.html
    """
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)


def dataset_key(name: str, file: str) -> str:
    """Key in the store of one of the data set's files."""
    return f"datasets/{name}/{file}"


def dataset_lock(store: Store, name: str) -> HostLock:
    """The host's lock on changing the data set in `store`: who imports it has it."""
    return HostLock(store.lock_path(f"data-{name}"))


def order(path: str) -> tuple[str, str]:
    """Sort key of canonical order: without case by category, then by file; equal names by their exact letters."""
    return path.casefold().replace("/", "\0"), path


def paths_sha256(paths: Iterable[str]) -> str:
    """SHA-256, in hex, of the paths joined by newlines."""
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()


def fingerprint_of(classes: Sequence[str], rows: Iterable[tuple[str, int, PartName, bytes]]) -> str:
    """SHA-256, in hex, of all that a run can see of a data set: neither its name nor how its shards are cut.

    `rows` are path, label, part and SHA-256 digest of each image in the index's order. What is hashed is a line of
    JSON for the classes and then one for each image, `[path, label, part, hex digest]`, ASCII, each ended by a newline.
    """
    digest = hashlib.sha256()
    digest.update(_line(list(classes)))
    for path, label, part, content in rows:
        digest.update(_line([path, label, part, content.hex()]))
    return digest.hexdigest()


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def load_index(store: Store, name: str) -> DatasetIndex:
    """The data set's index. Raises DataError when there is none, or when it is not one that this version reads."""
    key = dataset_key(name, "index.json")
    try:
        text = store.get(key)
    except NotFound as error:
        raise DataError(
            f"data set {name!r}: no {key} in {store.uri}", hint=f"import it with `grid data import {name} FOLDER`"
        ) from error
    return parse_index(text, name, store.uri)


def load_expected_index(data: DataSpec, store: Store) -> DatasetIndex:
    """The index of a run's data set. Raises DataError when it is not the data set that the spec expects."""
    index = load_index(store, data.name)
    if index.fingerprint != data.fingerprint:
        raise DataError(
            f"data: data set {data.name!r} has fingerprint {index.fingerprint}, the spec expects {data.fingerprint}",
            hint="the data set was imported anew since the run was planned: plan again, or import the old data",
        )
    return index


def parse_index(text: bytes, name: str, uri: str) -> DatasetIndex:
    """The index that `text` holds, from the store at `uri`; raises DataError as `load_index` does."""
    key = dataset_key(name, "index.json")
    try:
        index = DatasetIndex.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in fault["loc"]) or "the file"
        raise DataError(
            f"data set {name!r}: {uri}: {key} is not an index: {place}: {fault['msg']}",
            hint="import it again with --replace",
        ) from error
    if index.version != FORMAT_VERSION:
        raise DataError(
            f"data set {name!r}: {key} has format version {index.version}, expected {FORMAT_VERSION}",
            hint="import it again with --replace, or use the version of experiment-grid that wrote it",
        )
    _check_columns(index, key)
    return index


def _check_columns(index: DatasetIndex, key: str) -> None:
    images = index.images
    num_images = sum(part.num_images for part in index.parts.values())
    columns = {name: len(getattr(images, name)) for name in Images.model_fields if name != "sha256"}
    columns["sha256"] = len(index._digests) // 32
    wrong = [f"{name} has {length}" for name, length in columns.items() if length != num_images]
    if wrong or set(index.parts) != set(PARTS):
        raise DataError(
            f"data set {index.name!r}: {key} does not agree with itself: {num_images} images in its parts, but "
            f"{', '.join(wrong) or 'not the parts ' + ', '.join(PARTS)}",
            hint="import it again with --replace",
        )
