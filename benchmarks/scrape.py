"""A scrape of a controller that acts on 1,024 runs, all of which ended within the hour: seconds and bytes."""

from __future__ import annotations

import http.client
from datetime import UTC, datetime

from benchmarks.figures import Row, Target, in_turn, timed
from benchmarks.grids import grid_text, prepare
from benchmarks.place import Place
from controller.acted import ActedGrid
from controller.archive import gather_facts
from controller.grid import parse_grid
from controller.health import HealthServer
from controller.reconcile import Observation
from controller.search import wanted
from controller.settings import parse_settings
from controller.telemetry import READ_AT_ONCE, ControllerTelemetry
from trainer.result import EpochMetrics
from trainer.store import FileStore

SIDE = 32
NOTHING = "nothing: a figure of its own"
SECONDS, BYTES = Target(1000, 250, more_is_better=False), Target(5000, 2500, more_is_better=False)
NOTE = (
    "over HTTP on loopback, server and client in one process; every run has its last values, its state and its place, "
    "the most that a run ever has"
)


def scrape(place: Place) -> list[Row]:
    """What a scrape takes, and how long it is, in Prometheus' text format."""
    side = 4 if place.quick else SIDE
    telemetry = ended_grid(place, side)
    sizes: list[int] = []
    with HealthServer(0, {}, {"/metrics": telemetry.answer}) as server:

        def once() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.request("GET", "/metrics")
            sizes.append(len(connection.getresponse().read()))
            connection.close()

        taken = in_turn({"scrape": timed(once)}, place.rounds, lambda text: place.say(f"scrape: {text}"))["scrape"]
    milliseconds = tuple(1000 * each for each in taken)
    kilobytes = tuple(size / 1000 for size in sizes[-place.rounds :])
    what = f"a scrape of the controller at {side * side:,} runs"
    return [
        _row("scrape-time", what, milliseconds, "ms", SECONDS),
        _row("scrape-size", f"{what}: its size", kilobytes, "kB", BYTES),
    ]


def _row(name: str, what: str, figures: tuple[float, ...], unit: str, target: Target) -> Row:
    row = Row(name, what, NOTHING, figures, target=target, note=NOTE, unit=unit)
    return Row(name, what, NOTHING, figures, f"{row.ratio:,.0f} {unit}", target=target, note=NOTE, unit=unit)


def ended_grid(place: Place, side: int) -> ControllerTelemetry:
    """What has been told of a grid of side x side runs that ended a moment ago, after thirty epochs each."""
    store = FileStore(place.folder / f"scrape-{side}")
    prepare(store, place.folder / f"scrape-{side}.yaml", side)
    grid = parse_grid(grid_text(side), "wide")
    settings = parse_settings("image: none:1\ngpu: {count: 1}\n", "settings")
    acted = ActedGrid(grid, store, gather_facts(store, wanted(grid)), settings=settings)
    telemetry = ControllerTelemetry()

    def tell() -> None:
        seen = Observation(datetime.now(UTC), {grid.name: acted.view()}, {})
        telemetry.passed({grid.name: acted}, seen, store, seconds=0.1, num_pending=0, acts=True)

    tell()
    rows = b"".join(_epoch(number).model_dump_json().encode() + b"\n" for number in range(1, 31))
    for run in acted.sight.runs:
        store.put(f"runs/{run}/attempts/1/metrics.jsonl", rows)
    acted.relist(lambda _: None)
    for _ in range(1 + side * side // READ_AT_ONCE):
        tell()
    return telemetry


def _epoch(number: int) -> EpochMetrics:
    loss = 1 + 1 / (number + 0.123456789)
    return EpochMetrics(
        epoch=number,
        step=123 * number,
        lr=0.001,
        train_loss=0.9 * loss,
        train_accuracy=0.5 / loss,
        validation_loss=loss,
        validation_accuracy=0.45 / loss,
        validation_balanced_accuracy=0.4 / loss,
        validation_top5_accuracy=0.9 / loss,
        best=number == 17,
        returned_to_best=False,
        restarts=0,
        images_per_second=71.3,
        seconds=78.9,
    )
