"""`python -m trainer.predict RUN FOLDER --store URI`: what a trained run sees in the images of a folder, in JSON lines.

1. The run's network is built, with the weights of its best epoch, on a GPU where there is one.
2. The folder's files are decoded and resized as those of a data set are, some batches ahead on threads; what cannot
   be decoded is answered with the reason.
3. A batch is cropped, normalised and computed as the trainer evaluates its own test part.

It is a program of its own because the controller never loads torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from trainer import numerics as numerics_of
from trainer.answers import Answer, Beginning, Ending
from trainer.cache import Pixels
from trainer.data import Loader
from trainer.dataset import ImageEntry, resized_shape
from trainer.decode import MAX_PIXELS, decode_image
from trainer.failure import DataError, GridError, encodable
from trainer.machine import available_threads
from trainer.part import Part, resized
from trainer.run import best_network, memory_format_of, place, refuse_other_recipes
from trainer.source import MAX_FILE, SourceFile, open_source, silent
from trainer.spec import RunSpec
from trainer.store import Store, open_store
from trainer.train import forward
from trainer.trained import read_trained

PATIENCE_SECONDS = 60.0  # for a store that does not answer
LARGEST_BATCH = 128  # images at a time, which are held decoded


def main(argv: Sequence[str] | None = None) -> int:
    """Answer, and say why where that is not to be had; the exit code of what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m trainer.predict", description="Say what a run sees in a folder.")
    parser.add_argument("run", metavar="RUN", help="the id of a run that has a result")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--store", required=True, metavar="URI", help="file:///folder or s3://bucket/prefix")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="classes of each image (default: 1)")
    given = parser.parse_args(argv)
    out = _own_stdout()
    try:
        store = open_store(given.store, patience_seconds=PATIENCE_SECONDS)
        for said in predict(given.run, given.folder, store, given.top):
            _say(said, out)
    except GridError as error:
        _say(Ending(message=encodable(error.message), hint=error.hint and encodable(error.hint)), out)
        return int(error.exit_code)
    return 0


def predict(run: str, folder: Path, store: Store, top: int) -> Iterator[Beginning | Answer]:
    """What the run's network sees in each file under `folder`, in the order of their paths; hidden ones are left out.

    Last come those that could not even be listed. Raises as `read_trained` does, and DataError without the folder.
    """
    trained = read_trained(store, run)
    spec, index = trained.spec, trained.index
    refuse_other_recipes(spec)
    device = numerics_of.pick_device()
    here = {"compile": False, "threads": available_threads()}  # a few images are no reason to compile
    used = numerics_of.obeyed(trained.result.numerics, device, exact=False).model_copy(update=here)
    numerics_of.apply(used)
    network = place(best_network(spec, trained.weights, index, store), device, used)
    network.module.eval()
    with open_source(folder, sha256=None, max_bytes=0, downloads=None, progress=silent) as listing:
        yield Beginning(device=device.type, num_files=len(listing.files) + len(listing.bad))
        size = min(used.micro_batch, LARGEST_BATCH)
        for paths, images in _batches(sorted(listing.files, key=lambda file: file.path), spec.data.resize, size):
            kept = [image for image in images if not isinstance(image, str)]
            if kept:
                loader = Loader(_part(kept, spec), spec.data, None, device, memory_format_of(used))
                images_BCHW, _ = loader.batch(np.arange(len(kept)), seed=0, epoch=0, restart=0)
                with torch.inference_mode():
                    logits_BK = forward(network.module, used, images_BCHW)
                    found = logits_BK.double().softmax(1).topk(min(top, index.num_classes), dim=1)
                values, labels = found.values.tolist(), found.indices.tolist()
            answered = iter(range(len(kept)))
            for path, image in zip(paths, images, strict=True):
                if isinstance(image, str):
                    yield Answer(file=path, error=image)
                    continue
                row = next(answered)
                names = [index.classes[label] for label in labels[row]]
                yield Answer(file=path, classes=tuple(zip(names, values[row], strict=True)))
        for path, reason in listing.bad:
            yield Answer(file=path, error=reason)


def _batches(files: Sequence[SourceFile], resize: int, size: int) -> Iterator[tuple[list[str], list[Pixels | str]]]:
    """Paths and images of some files at a time; the next ones are decoded meanwhile."""
    groups = [files[at : at + size] for at in range(0, len(files), size)]
    with ThreadPoolExecutor(available_threads(), thread_name_prefix="decode") as pool:
        ahead = [pool.submit(_decoded, file, resize) for file in groups[0]] if groups else []
        for number, group in enumerate(groups):
            following = groups[number + 1] if number + 1 < len(groups) else []
            current, ahead = ahead, [pool.submit(_decoded, file, resize) for file in following]
            yield [file.path for file in group], [each.result() for each in current]


def _decoded(file: SourceFile, resize: int) -> Pixels | str:
    """The image, decoded and resized, or why there is none."""
    if file.size > MAX_FILE:
        return f"{file.size} bytes, expected at most {MAX_FILE}"
    try:
        image = decode_image(file.file.read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except DataError as error:
        return encodable(error.message)
    height, width = resized_shape(image.height, image.width, resize)
    if height * width > MAX_PIXELS:
        return (
            f"{image.width} x {image.height} pixels would be {width} x {height}, expected at most {MAX_PIXELS} pixels"
        )
    return np.array(resized(image, resize))


def _part(images: Sequence[Pixels], spec: RunSpec) -> Part:
    """The images as a part of a data set, as far as a Loader looks at one."""
    entries = [
        ImageEntry(
            path="", label=0, part="test", shard=0, offset=0, size=0, width=width, height=height, sha256="0" * 64
        )
        for height, width, _ in (image.shape for image in images)
    ]
    part = Part("test", list(enumerate(entries)), spec.data.resize)
    part.pixels = np.concatenate([image.ravel() for image in images])
    return part


def _own_stdout() -> TextIO:
    """A stream to what is stdout now; whatever else writes to stdout, such as a model factory, goes to stderr."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _say(what: Beginning | Answer | Ending, out: TextIO) -> None:
    out.write(f"{what.model_dump_json()}\n")
    out.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to answer, which ends this
    sys.exit(main())
