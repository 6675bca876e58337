"""`grid table` of 10,000 results on an S3 server, against bare GETs of the same objects by as many connections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks.bare import BareS3
from benchmarks.figures import Row, Target, divided, in_turn, timed
from benchmarks.grids import command, in_fresh_process, in_process
from benchmarks.place import Place
from benchmarks.wide import lacking_store, s3_store, wide_grid
from controller.copies import copies_file
from controller.knowledge import NUM_CONNECTIONS

BARE = f"bare GETs of the same objects by {NUM_CONNECTIONS} threads over kept-alive connections"
SIDE = 100
TARGET = Target(0.6, 0.8, more_is_better=True)


def table_over_s3(place: Place, side: int = SIDE) -> list[Row]:
    """The table in a process that is warm, and in a fresh one less the interpreter's own start."""
    side = 10 if place.quick else side
    number = f"{side * side:,}"
    titles = {
        "table-s3": (f"`grid table` of {number} results over S3, for the first time", "in a warm process"),
        "table-s3-again": (
            f"`grid table` of {number} results over S3 that this machine read before",
            "in a warm process; one listing, and copies on this machine",
        ),
        "table-s3-fresh": (
            f"`grid table` of {number} results over S3 that this machine read before, fresh process",
            "less the start of a bare interpreter; one listing, and copies on this machine",
        ),
    }
    if reason := lacking_store():
        return [Row(name, what, BARE, skipped=reason) for name, (what, _) in titles.items()]
    with s3_store(place) as store:
        wide = wide_grid(place, store, side)
        wide.put_results(range(len(wide.runs)))
        bare = BareS3(store)
        keys = bare.list_pages("results/")
        assert len(keys) == len(wide.runs)
        sides: dict[str, Callable[[], float]] = {
            "bare": partial(bare.get_all, keys, NUM_CONNECTIONS),
            "table-s3": timed(lambda: in_process(store, "table", wide.grid.name), before=_forget),
            "table-s3-again": timed(lambda: in_process(store, "table", wide.grid.name)),
            "interpreter": timed(lambda: in_fresh_process(place, ["-c", "pass"])),
            "table-s3-fresh": timed(lambda: in_fresh_process(place, command(store, "table", wide.grid.name))),
        }
        seconds = in_turn(sides, place.rounds, lambda text: place.say(f"table over S3: {text}"))
    seconds["table-s3-fresh"] = [
        whole - own for whole, own in zip(seconds["table-s3-fresh"], seconds["interpreter"], strict=True)
    ]
    return [
        Row(
            name,
            what,
            BARE,
            divided(seconds["bare"], seconds[name]),
            f"{side * side / median(seconds[name]):.0f}/s",
            f"{side * side / median(seconds['bare']):.0f}/s",
            TARGET,
            f"{how}; listed, read, checked and compared, output included; the other side's requests are signed "
            "beforehand, and what they bring is not looked at; server and client share the machine",
        )
        for name, (what, how) in titles.items()
    ]


def _forget() -> None:
    copies_file().unlink(missing_ok=True)
