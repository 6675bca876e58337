"""`grid plan` and `grid table` of a grid with 10,000 points, all with a result in a folder, against reading these.

Both commands read every result: the plan to know what is done and how fast it was, the table to show it. The other side
reads each result file once and parses it with `json.loads`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median

from benchmarks.figures import Row, Target, divided, in_turn, timed
from benchmarks.place import Place, write_photographs
from controller.archive import gather_facts
from controller.cli import main
from controller.grid import read_grid
from controller.search import Run, expand, wanted
from trainer.importing import import_dataset
from trainer.result import Numerics, Result
from trainer.store import FileStore, Store

BARE = "one JSON read of each result file"
SIDE = 100  # points along each of the two values that vary
TARGET = Target(3.0, 1.5, more_is_better=False)


def grid_commands(place: Place) -> list[Row]:
    """Plan and table, in a process that is warm, and in fresh ones less the interpreter's own start."""
    side = 10 if place.quick else SIDE
    store = FileStore(place.folder / f"grid-{side}")
    grid = place.folder / f"grid-{side}.yaml"
    prepare(store, grid, side)
    sides = {
        "bare": timed(lambda: read_each(store.root / "results")),
        "plan": timed(lambda: in_process(store, "plan", grid)),
        "table": timed(lambda: in_process(store, "table", grid)),
        "interpreter": timed(lambda: in_fresh_process(place, ["-c", "pass"])),
        "fresh plan": timed(lambda: in_fresh_process(place, command(store, "plan", grid))),
        "fresh table": timed(lambda: in_fresh_process(place, command(store, "table", grid))),
    }
    seconds = in_turn(sides, place.rounds, lambda text: place.say(f"grid: {text}"))
    for name in ("fresh plan", "fresh table"):
        seconds[name] = [whole - own for whole, own in zip(seconds[name], seconds["interpreter"], strict=True)]
    points = f"{side * side:,}"
    return [
        Row(
            name.replace("fresh ", "") + ("-fresh" if "fresh" in name else ""),
            what,
            BARE,
            divided(seconds[name], seconds["bare"]),
            f"{median(seconds[name]):.2f} s",
            f"{median(seconds['bare']):.2f} s",
            TARGET,
            note,
        )
        for name, what, note in (
            ("plan", f"`grid plan` of {points} points", "in a warm process, output included"),
            ("table", f"`grid table` of {points} results", "in a warm process, output included"),
            ("fresh plan", f"`grid plan` of {points} points, fresh process", "less the start of a bare interpreter"),
            ("fresh table", f"`grid table` of {points} results, fresh process", "less the start of a bare interpreter"),
        )
    ]


def prepare(store: FileStore, grid: Path, side: int) -> None:
    """A grid file, its data set and a result for each of its points, unless they are there."""
    if grid.exists():
        return
    pictures = store.root.parent / "grid-pictures"
    if not pictures.exists():
        write_photographs(pictures)
    import_dataset(pictures, "pictures", store, split="every-third")
    text = grid_text(side)
    partial = grid.with_suffix(".partial.yaml")
    partial.write_text(text, encoding="utf-8")
    wide = read_grid(partial)
    for number, run in enumerate(expand(wide, {}, gather_facts(store, wanted(wide))).runs().values()):
        store.put(f"results/{run.id}.json", result(run, number).model_dump_json(indent=2).encode())
    partial.rename(grid)  # last: it says that all is there


def grid_text(side: int, name: str = "wide") -> str:
    """A grid of side x side points in one stage."""
    rates = ", ".join(f"{0.001 * (number + 1):.3f}" for number in range(side))
    decays = ", ".join(f"{0.00001 * (number + 1):.5f}" for number in range(side))
    return (
        f"grid: {name}\n"
        "base: {data: {name: pictures}, model: {architecture: alexnet}}\n"
        "stages:\n"
        "  - name: wide\n"
        f"    vary: {{optimizer.lr: [{rates}], optimizer.weight_decay: [{decays}]}}\n"
    )


def result(run: Run, number: int) -> Result:
    """A result such as the trainer writes."""
    loss = 1.0 + (number * 7919 % 10_007) / 10_007
    return Result(
        run=run.id,
        spec=run.spec.model_dump(mode="json", exclude={"seed"}),
        seed=run.spec.seed,
        best_epoch=17,
        train_loss=loss * 0.9,
        train_accuracy=0.5 / loss,
        validation_loss=loss,
        validation_accuracy=0.45 / loss,
        validation_balanced_accuracy=0.4 / loss,
        validation_top5_accuracy=0.9 / loss,
        num_parameters=57_417_637,
        num_trainable_parameters=57_417_637,
        epochs_run=30,
        images_per_second=71.3 + loss,
        wall_seconds=2345.6 + loss,
        peak_memory_bytes=3_456_789_012,
        numerics=Numerics(
            precision="fp32",
            threads=2,
            micro_batch=256,
            memory_format="channels_last",
            compile=False,
            deterministic=True,
            device="cpu",
            device_model="Intel(R) Xeon(R) Processor",
            instruction_set="AVX512",
            torch_version="2.11.0",
        ),
        exact=True,
        data_fingerprint=str(run.spec.data.fingerprint),
        weights_fingerprint=None,
        versions={"python": "3.11.7", "torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.3.4", "pillow": "12.0.0"},
        commit="0123456789abcdef0123456789abcdef01234567",
        best_weights=f"runs/{run.id}/blobs/00000204-0123456789abcdef.safetensors",
        attempts=1,
        restarts=0,
        returns_to_best=0,
    )


def read_each(folder: Path) -> None:
    """Parse every file of the folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            json.loads(Path(entry.path).read_bytes())


def command(store: Store, name: str, grid: Path | str) -> list[str]:
    """What a fresh interpreter is given."""
    return ["-m", "controller.cli", *arguments(store, name, grid)]


def arguments(store: Store, name: str, grid: Path | str) -> list[str]:
    """The command line of `grid`."""
    return ["--store", store.uri, name, str(grid)]


def in_process(store: Store, name: str, grid: Path | str) -> None:
    """Run the command here, its output into memory."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
        main(arguments(store, name, grid), prog_name="grid", standalone_mode=False)
    assert out.getvalue(), f"grid {name} printed nothing"


def in_fresh_process(place: Place, argv: list[str]) -> None:
    """Run an interpreter to its end."""
    subprocess.run(
        [sys.executable, *argv],
        env=place.environment(),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
