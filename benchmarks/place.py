"""Where benchmarks work: a folder of their own with a store, a cache of decoded images, and the data sets in it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.dataset import DatasetIndex, load_index
from trainer.failure import DataError
from trainer.importing import import_dataset
from trainer.store import FileStore

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "bench"
REAL_DATA = "CALTECH101_DIR"
BACKGROUND = "BACKGROUND_Google"


@dataclass(frozen=True)
class Data:
    """A data set in the benchmarks' store, and the files it came from."""

    index: DatasetIndex
    source: Path  # holds the class folders
    text: str  # what it is, for tables


@dataclass(frozen=True)
class Place:
    """What every benchmark is given."""

    folder: Path
    store: FileStore
    rounds: int
    quick: bool  # synthetic pictures and tiny networks: the harness is tried, nothing is measured
    whole: bool  # all images of the data set where a subset would do

    def say(self, text: str) -> None:
        """Tell how far it is."""
        print(text, file=sys.stderr, flush=True)

    def data(self) -> Data | None:
        """The images to train on; none where the real ones are wanted and not there."""
        return self._pictures() if self.quick else self._caltech101()

    def environment(self) -> dict[str, str]:
        """The environment of a fresh process: one that finds its modules compiled once the warm-up has run it."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode")}

    def forget_runs(self) -> None:
        """Remove what earlier measurements left in the store, so that the next one begins from nothing."""
        for name in ("runs", "results", "failures", "tests"):
            shutil.rmtree(self.store.root / name, ignore_errors=True)

    def _caltech101(self) -> Data | None:
        given = os.environ.get(REAL_DATA)
        if not given:
            return None
        try:
            index = load_index(self.store, "caltech101")
        except DataError:
            self.say(f"importing {given} into {self.store.uri}")
            index = import_dataset(given, "caltech101", self.store, split="every-third", exclude=(BACKGROUND,)).index
        return Data(index, _root(Path(given), index), "Caltech-101")

    def _pictures(self) -> Data:
        source = self.folder / "pictures"
        if not source.exists():
            write_photographs(source)
        index = import_dataset(source, "pictures", self.store, split="every-third", replace=True).index
        return Data(index, source, "synthetic pictures")


def open_place(folder: Path, *, rounds: int, quick: bool, whole: bool) -> Place:
    """The benchmarks' folder; decoded images go there too, whatever the caller's environment says."""
    folder = folder / "quick" if quick else folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["GRID_CACHE"] = str(folder / "images")
    return Place(folder, FileStore(folder / "store"), rounds, quick, whole)


def _root(given: Path, index: DatasetIndex) -> Path:
    """The folder that holds the index's class folders: `given` or one in it."""
    first = index.images.path[0]
    for folder in (given, *sorted(given.iterdir())):
        if (folder / first).is_file():
            return folder
    raise DataError(
        f"{REAL_DATA}={given}: has no {first}, which the data set in the benchmarks' store was imported with",
        hint=f"remove {FOLDER} and run the benchmarks again",
    )


def write_photographs(folder: Path, *, num_classes: int = 3, per_class: int = 24) -> None:
    """A tree of class folders with small JPEG files: stripes under noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:48, 0:64]
    for label in range(num_classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(per_class):
            stripes = 128 + 60 * np.sin((rows * label + columns * (num_classes - label)) / 5)
            pixels = stripes[:, :, None] + random.normal(0, 30, (48, 64, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / f"class{label}" / f"{number:03d}.jpg")
