"""`python -m benchmarks [NAME ...]`: measure, show a table, and with --write put it into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.figures import (
    Figure,
    Row,
    machine_text,
    merged,
    read_figures,
    table_text,
    today,
    write_document,
    write_figures,
)
from benchmarks.place import FOLDER, Place, open_place
from trainer.machine import available_threads

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "figures.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def _alexnet(place: Place) -> list[Row]:
    from benchmarks.epochs import alexnet

    return alexnet(place)


def _alexnet_augmented(place: Place) -> list[Row]:
    from benchmarks.epochs import alexnet_augmented

    return alexnet_augmented(place)


def _resnet50(place: Place) -> list[Row]:
    from benchmarks.epochs import resnet50

    return resnet50(place)


def _gpu(place: Place) -> list[Row]:
    from benchmarks.epochs import gpu

    return gpu(place)


def _watched(place: Place) -> list[Row]:
    from benchmarks.watched import watched

    return watched(place)


def _start(place: Place) -> list[Row]:
    from benchmarks.start import start

    return start(place)


def _import(place: Place) -> list[Row]:
    from benchmarks.imports import cold_import

    return cold_import(place)


def _grid(place: Place) -> list[Row]:
    from benchmarks.grids import grid_commands

    return grid_commands(place)


def _jobs(place: Place) -> list[Row]:
    from benchmarks.jobs import jobs

    return jobs(place)


def _controller(place: Place) -> list[Row]:
    from benchmarks.controller import controller

    return controller(place)


def _scrape(place: Place) -> list[Row]:
    from benchmarks.scrape import scrape

    return scrape(place)


def _table_s3(place: Place) -> list[Row]:
    from benchmarks.tables import table_over_s3

    return table_over_s3(place)


def _requests(place: Place) -> list[Row]:
    from benchmarks.audit import requests

    return requests(place)


def _submit(place: Place) -> list[Row]:
    from benchmarks.submit import submit_to_step

    return submit_to_step(place)


# each imports what it needs when it runs: `grid` needs no torch, and `--help` nothing at all
BENCHMARKS: dict[str, tuple[str, Callable[[Place], list[Row]]]] = {
    "alexnet": ("whole epochs of AlexNet, against bare compute and the usual script", _alexnet),
    "alexnet-augmented": ("the same with the report's second augmentation", _alexnet_augmented),
    "resnet50": ("whole epochs of ResNet50 against bare compute", _resnet50),
    "gpu": ("both on a GPU, deterministic and not", _gpu),
    "watched": ("epochs with telemetry and TensorBoard, against the same without", _watched),
    "start": ("process start to first step", _start),
    "import": ("cold import and decode", _import),
    "grid": ("plan of 10,000 points, table of 10,000 results", _grid),
    "jobs": ("1,000 and 10,000 Jobs created and listed, on a real API server", _jobs),
    "controller": ("passes over 10,000 runs, the memory they take, and status, on real servers", _controller),
    "scrape": ("a scrape of the controller at 1,000 runs", _scrape),
    "table-s3": ("table of 10,000 results on a real S3 server", _table_s3),
    "requests": ("API requests of a grid of 1,000 runs, counted by the server", _requests),
    "submit": ("submit to first training step, on the cluster of `make kind-up`", _submit),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for; 0."""
    reader = parser()
    given = reader.parse_args(argv)
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        reader.error(f"got {', '.join(unknown)}, expected names among {', '.join(BENCHMARKS)}")
    if given.rounds is not None and given.rounds < 1:
        reader.error(f"--rounds: got {given.rounds}, expected at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", str(available_threads()))  # of this process and of all it starts
    place = open_place(FOLDER, rounds=given.rounds or (1 if given.quick else 5), quick=given.quick, whole=given.whole)
    rows: list[Row] = []
    for name in given.names or BENCHMARKS:
        place.say(f"benchmark {name}")
        rows += BENCHMARKS[name][1](place)
    machine, date = machine_text(), today()
    print(f"{machine}\n{date}, median of {place.rounds} rounds{', QUICK: no measurement' if place.quick else ''}\n")
    print(table_text(rows))
    if given.write:
        figures = merged(read_figures(FIGURES), [Figure(machine, date, row) for row in rows])
        write_figures(FIGURES, figures)
        write_document(DOCUMENT, figures)
        place.say(f"written: {FIGURES.relative_to(ROOT)}, {DOCUMENT.relative_to(ROOT)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = "\n".join(f"  {name:<18} {text}" for name, (text, _) in BENCHMARKS.items())
    result = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the speeds of docs/benchmarks.md. CALTECH101_DIR names the images; without it the "
        "benchmarks that need them are skipped.",
        epilog=f"names:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("names", metavar="NAME", nargs="*", help="what to measure; all")
    result.add_argument("--rounds", type=int, metavar="N", help="measure each side N times in turn (default 5)")
    result.add_argument("--whole", action="store_true", help="all images where a subset would do: hours on a CPU")
    mode = result.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="synthetic pictures and tiny networks: try the harness")
    mode.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    return result


if __name__ == "__main__":
    sys.exit(main())
