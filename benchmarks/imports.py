"""Cold import and decode of a data set against torchvision's decoding of the same files.

Cold: neither the store nor the cache of decoded images has anything. The files themselves are in the page cache on
both sides, and what ours writes goes to the disk of the benchmarks' folder.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from benchmarks.figures import Row, Target, divided, in_turn, timed
from benchmarks.place import BACKGROUND, Data, Place
from trainer.cache import Cache
from trainer.dataset import PARTS
from trainer.importing import import_dataset
from trainer.machine import available_processors
from trainer.part import open_part
from trainer.spec import DataSpec
from trainer.store import FileStore

WHAT = "cold import and decode of all images"
BARE = "read and hash every file, torchvision's decode_jpeg and resize, all cores, nothing written"
RESIZE = 256


def cold_import(place: Place) -> list[Row]:
    """Import into an empty store and fill an empty cache, against the bare decoding."""
    data = place.data()
    if data is None:
        return [Row("import", WHAT, BARE, skipped="CALTECH101_DIR is not set")]
    paths = [data.source / path for path in data.index.images.path]
    num_bytes = sum(len(path.read_bytes()) for path in paths)  # which also brings them into the page cache
    sides = {
        "ours": lambda: import_and_decode(place, data),
        "bare": timed(lambda: bare_decode(paths)),
    }
    seconds = in_turn(sides, place.rounds, lambda text: place.say(f"import: {text}"))
    return [
        Row(
            "import",
            WHAT,
            BARE,
            divided(seconds["ours"], seconds["bare"]),
            f"{median(seconds['ours']):.1f} s",
            f"{median(seconds['bare']):.1f} s",
            Target(1.3, 1.1, more_is_better=False),
            f"{len(paths)} files of {data.text}, {num_bytes / 1e6:.0f} MB; ours writes "
            f"{data.index.resized_bytes(RESIZE) / 1e6:.0f} MB of pixels and the shards; "
            "input in the page cache on both sides",
        )
    ]


def import_and_decode(place: Place, data: Data) -> float:
    """Seconds of an import and of filling the cache; removing what was written is not counted."""
    with tempfile.TemporaryDirectory(dir=place.folder) as scratch:

        def work() -> None:
            store = FileStore(Path(scratch) / "store")
            excluded = (BACKGROUND,) if data.index.excluded else ()
            index = import_dataset(data.source, data.index.name, store, split="every-third", exclude=excluded).index
            cache = Cache(Path(scratch) / "images")
            spec = DataSpec(name=index.name, fingerprint=index.fingerprint, resize=RESIZE)
            for part in PARTS:
                open_part(index, spec, part, store, cache)

        return timed(work)()


def bare_decode(paths: list[Path]) -> None:
    """Read, hash, decode and resize every file, a thread for each core and one thread for each operation."""
    num_threads = available_processors()
    before = torch.get_num_threads()
    ready = threading.Barrier(num_threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)  # holds for the calling thread, and for threads that torch sees later
        ready.wait()

    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(num_threads):
            pool.submit(begin)
        ready.wait()
        for _ in pool.map(decode_all, [paths[start::num_threads] for start in range(num_threads)]):
            pass
    torch.set_num_threads(before)


def decode_all(paths: list[Path]) -> None:
    """Read, hash, decode and resize these files."""
    for path in paths:
        content = bytearray(path.read_bytes())
        hashlib.sha256(content).digest()
        image = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)
        resize(image, [RESIZE], antialias=True)
