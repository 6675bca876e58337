"""What a scrape of a training shows: what is documented, and nothing else; and the training is as without."""

from __future__ import annotations

import logging
import math
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import import_pictures, put_run
from prometheus_client.parser import text_string_to_metric_families

from trainer.__main__ import main
from trainer.checkpoint import Progress
from trainer.dataset import DatasetIndex
from trainer.failure import ExitCode
from trainer.history import read_metrics
from trainer.result import PASSING, EpochMetrics, Result
from trainer.stop import StopSignal
from trainer.store import FileStore, Request, Retry
from trainer.telemetry import (
    DESCRIPTIONS,
    PHASES,
    SILENT,
    DeviceMemory,
    Distribution,
    Instruments,
    Metric,
    Telemetry,
    asked_port,
)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]  # by sample name and labels
Event = dict[str, Any]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStore, DatasetIndex]:
    folder = tmp_path_factory.mktemp("pictures")
    store = FileStore(folder / "store")
    return store, import_pictures(store, folder / "originals")


def scraped(port: int) -> Series:
    """What a scrape has."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    series = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(series) == len(samples)
    return series


class Scraper:
    """Scrapes a training at each of its events; the training waits meanwhile."""

    def __init__(self, caplog: pytest.LogCaptureFixture, until: Callable[[Series], bool] = lambda _: True) -> None:
        self.caplog = caplog
        self.until = until  # to be met by what the last epoch's end finds
        self.scrapes: list[tuple[Event, Series]] = []

    epochs = 3  # of a tiny run

    @property
    def port(self) -> int:
        """The port of the training, as its log names it."""
        found = re.search(r"telemetry on port (\d+)", self.caplog.text)
        assert found is not None
        return int(found[1])

    def __call__(self, event: Event) -> None:
        series = scraped(self.port)
        deadline = time.monotonic() + 20
        is_last = event.get("epoch") == self.epochs and event["event"] == "epoch"
        while is_last and not self.until(series) and time.monotonic() < deadline:  # what is written beside the training
            time.sleep(0.01)
            series = scraped(self.port)
        self.scrapes.append((event, series))


def train(store: FileStore, run: str, emit: Scraper | None = None, *, stop: StopSignal | None = None) -> int:
    """One attempt; with `emit`, one that is scraped."""
    port = None if emit is None else 0
    return main([run, "--store", store.uri], emit=emit, stop=stop or StopSignal(), telemetry_port=port)


def of(series: Series, name: str, **labels: str) -> float:
    """The one series of that name that has these labels and `run`."""
    (value,) = (
        value for (found, having), value in series.items() if found == name and labels.items() <= dict(having).items()
    )
    return value


def has_checkpoint(series: Series) -> bool:
    return any(name == "grid_run_checkpoint_bytes" for name, _ in series)


def documented(metric: Metric, run: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Every series that a metric may have."""
    further = [{metric.labels[-1]: value} for value in metric.values] or [{}]
    sets = [{"run": run, **labels} for labels in further]
    if metric.type != "histogram":
        return {(metric.name, frozenset(labels.items())) for labels in sets}
    bounds = [*map(str, metric.buckets), "+Inf"]
    return {(f"{metric.name}_bucket", frozenset({**labels, "le": le}.items())) for labels in sets for le in bounds} | {
        (f"{metric.name}_{end}", frozenset(labels.items())) for labels in sets for end in ("sum", "count")
    }


def test_a_scrape_shows_every_documented_series_and_no_other(
    data: tuple[FileStore, DatasetIndex], caplog: pytest.LogCaptureFixture
) -> None:
    store, index = data
    run = put_run(store, index)
    caplog.set_level(logging.INFO, "trainer")
    emit = Scraper(caplog, has_checkpoint)
    assert train(store, run, emit) == ExitCode.OK
    series = emit.scrapes[-1][1]
    expected = set().union(*(documented(metric, run) for metric in DESCRIPTIONS))
    absent = {name for name, _ in expected - series.keys()}
    on_gpu = {"grid_run_device_memory_bytes", "grid_run_device_memory_peak_bytes", "grid_run_device_memory_limit_bytes"}
    assert series.keys() <= expected
    assert absent - {"grid_run_memory_limit_bytes"} == on_gpu


def test_a_scrape_has_the_numbers_of_the_epoch_that_ended(
    data: tuple[FileStore, DatasetIndex], caplog: pytest.LogCaptureFixture
) -> None:
    store, index = data
    run = put_run(store, index)
    caplog.set_level(logging.INFO, "trainer")
    emit = Scraper(caplog)
    begun = time.time()
    assert train(store, run, emit) == ExitCode.OK
    rows = {row.epoch: row for row in read_metrics(store, run)}
    epochs = [(event["epoch"], series) for event, series in emit.scrapes if event["event"] == "epoch"]
    assert [epoch for epoch, _ in epochs] == [1, 2, 3]
    for epoch, series in epochs:
        row, best = rows[epoch], min((rows[each] for each in range(1, epoch + 1)), key=lambda row: row.validation_loss)
        assert of(series, "grid_run_epoch") == epoch
        assert of(series, "grid_run_epochs") == 3
        assert of(series, "grid_run_attempt") == 1
        assert of(series, "grid_run_loss_nats", part="train") == row.train_loss
        assert of(series, "grid_run_loss_nats", part="validation") == row.validation_loss
        assert of(series, "grid_run_accuracy_ratio", part="train") == row.train_accuracy
        assert of(series, "grid_run_accuracy_ratio", part="validation") == row.validation_accuracy
        assert of(series, "grid_run_learning_rate") == row.lr
        assert of(series, "grid_run_best_epoch") == best.epoch
        assert of(series, "grid_run_best_validation_loss_nats") == best.validation_loss
        assert of(series, "grid_run_best_validation_accuracy_ratio") == best.validation_accuracy
        assert of(series, "grid_run_steps_total") == of(series, "grid_run_step_seconds_count") == 3 * epoch
        assert of(series, "grid_run_images_total", part="train") == 24 * epoch
        assert of(series, "grid_run_images_total", part="validation") == 24 * epoch
        assert of(series, "grid_run_store_errors_total", kind="refused") == 0
        assert of(series, "grid_run_store_requests_total", operation="writing") > 0
        seconds = {phase: of(series, "grid_run_phase_seconds_total", phase=phase) for phase in PHASES}
        assert min(seconds.values()) >= 0
        assert seconds["backward"] > 0
        assert math.fsum(seconds.values()) <= time.time() - begun
        assert begun <= of(series, "grid_run_started_timestamp_seconds")
        assert of(series, "grid_run_last_step_timestamp_seconds") <= time.time()
        assert of(series, "grid_run_resident_memory_bytes") <= of(series, "grid_run_resident_memory_peak_bytes") * 1.1


def test_numbers_are_the_same_with_and_without_a_listener(
    data: tuple[FileStore, DatasetIndex], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched, index = data
    alone = FileStore(tmp_path / "alone")
    for entry in watched.list("datasets/"):
        alone.put(entry.key, watched.get(entry.key))
    caplog.set_level(logging.INFO, "trainer")
    results = []
    for store, emit in ((watched, Scraper(caplog)), (alone, None)):
        run = put_run(store, index, augmentation="report_2", micro_batch=4)
        assert train(store, run, emit) == ExitCode.OK
        result = Result.model_validate_json(store.get(f"results/{run}.json"))
        rows = [row.model_dump(exclude={"seconds", "images_per_second"}) for row in read_metrics(store, run)]
        results.append((result.model_dump(exclude=set(PASSING)), rows))
    assert results[0] == results[1]


class StopAtEpoch(Scraper):
    """Asks for a stop once that epoch has ended and its checkpoint is whole."""

    def __init__(self, caplog: pytest.LogCaptureFixture, stop: StopSignal, epoch: int) -> None:
        super().__init__(caplog)
        self.stop, self.epoch = stop, epoch

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event["event"] == "epoch" and event["epoch"] == self.epoch:
            self.stop.request("the test said so")


def test_gauges_go_on_in_the_next_attempt_and_counters_begin_again(
    data: tuple[FileStore, DatasetIndex], caplog: pytest.LogCaptureFixture
) -> None:
    store, index = data
    run = put_run(store, index, epochs=4)
    caplog.set_level(logging.INFO, "trainer")
    stop = StopSignal()
    assert train(store, run, StopAtEpoch(caplog, stop, 2), stop=stop) == ExitCode.STOPPED
    rows = read_metrics(store, run)
    best = min(rows, key=lambda row: row.validation_loss)
    caplog.clear()
    emit = Scraper(caplog)
    assert train(store, run, emit) == ExitCode.OK
    event, series = emit.scrapes[0]
    assert (event["event"], event["epoch"]) == ("resumed", 2)
    assert of(series, "grid_run_attempt") == 2
    assert of(series, "grid_run_epoch") == 2
    assert of(series, "grid_run_best_epoch") == best.epoch
    assert of(series, "grid_run_best_validation_accuracy_ratio") == best.validation_accuracy
    assert of(series, "grid_run_loss_nats", part="train") == rows[1].train_loss
    assert of(series, "grid_run_accuracy_ratio", part="validation") == rows[1].validation_accuracy
    assert of(series, "grid_run_steps_total") == 0
    assert of(series, "grid_run_images_total", part="train") == 0
    assert of(emit.scrapes[-1][1], "grid_run_images_total", part="validation") == 48


def test_a_last_epoch_that_was_not_the_best_is_looked_up() -> None:
    rows = [epoch_of(1, 0.5, best=True), epoch_of(2, 0.7, best=False)]
    instruments = Instruments(0)
    instruments.begin("run", 4)
    instruments.go_on(Progress(epoch=2), rows[0], lambda: rows[1])
    values = told(instruments)
    assert values["grid_run_best_validation_loss_nats", "run"] == 0.5
    assert values["grid_run_loss_nats", "validation"] == 0.7


def epoch_of(epoch: int, validation_loss: float, *, best: bool, returned: bool = False) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        step=3 * epoch,
        lr=0.1,
        train_loss=1.0,
        train_accuracy=0.5,
        validation_loss=validation_loss,
        validation_accuracy=0.5,
        validation_balanced_accuracy=0.5,
        validation_top5_accuracy=1.0,
        best=best,
        returned_to_best=returned,
        restarts=0,
        images_per_second=1.0,
        seconds=1.0,
    )


def told(instruments: Instruments) -> dict[tuple[str, str], float]:
    """Samples by name and the value of their last label."""
    samples = [sample for family in instruments.collect() for sample in family.samples]
    return {(sample.name, list(sample.labels.values())[-1]): sample.value for sample in samples}


def test_what_happens_seldom_is_counted() -> None:
    instruments = Instruments(0)
    instruments.begin("run", 4)
    instruments.watch_device(lambda: DeviceMemory(1, 2, 3))
    instruments.restarted()
    instruments.ended(epoch_of(1, 0.5, best=True))
    instruments.ended(epoch_of(2, 0.7, best=False, returned=True))
    instruments.retried(Retry("writing", "a", "throttled", 1, 0.1, "slow down"))
    instruments.on_request(Request("writing", 0.2, "throttled"))
    instruments.on_request(Request("writing", 3.0, None))
    values = told(instruments)
    assert values["grid_run_restarts_total", "run"] == values["grid_run_returns_to_best_total", "run"] == 1
    assert values["grid_run_best_validation_loss_nats", "run"] == 0.5
    assert values["grid_run_loss_nats", "validation"] == 0.7
    assert values["grid_run_store_retries_total", "throttled"] == 1
    assert values["grid_run_store_errors_total", "throttled"] == 1
    assert values["grid_run_store_requests_total", "writing"] == 2
    assert values["grid_run_store_request_seconds_sum", "writing"] == 3.2
    memory = [values[f"grid_run_device_memory_{name}bytes", "run"] for name in ("", "peak_", "limit_")]
    assert memory == [1, 2, 3]


def test_steps_between_two_looks_count_with_their_mean() -> None:
    instruments = Instruments(0)
    instruments.begin("run", 1)
    instruments.begin_steps()
    for _ in range(4):
        instruments.lap("data")
        instruments.stepped(8, 0.1)
    time.sleep(0.01)
    instruments.caught_up()
    instruments.caught_up()
    values = told(instruments)
    assert values["grid_run_step_seconds_count", "run"] == values["grid_run_steps_total", "run"] == 4
    assert values["grid_run_images_total", "train"] == 32
    stepping = sum(values["grid_run_phase_seconds_total", phase] for phase in ("data", "device"))
    assert values["grid_run_step_seconds_sum", "run"] == pytest.approx(stepping, abs=1e-3)


def test_a_distribution_counts_what_is_at_most_each_bound() -> None:
    distribution = Distribution((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        distribution.observe(value)
    distribution.observe(1.0, times=2)
    counts, total = distribution.read()
    assert counts == [("0.1", 2), ("1.0", 5), ("+Inf", 6)]
    assert total == pytest.approx(9.65)


def test_a_port_that_is_taken_ends_no_training(
    data: tuple[FileStore, DatasetIndex], caplog: pytest.LogCaptureFixture
) -> None:
    store, index = data
    run = put_run(store, index, epochs=1)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([run, "--store", store.uri], stop=StopSignal(), telemetry_port=port) == ExitCode.OK
    assert f"GRID_TELEMETRY_PORT: got {port}, which is not to be had" in caplog.text
    (log,) = (entry.key for entry in store.list(f"runs/{run}/attempts/") if entry.key.endswith("log.txt"))
    assert "training goes on without telemetry" in store.get(log).decode()


def test_only_metrics_are_served_and_only_while_it_trains(
    data: tuple[FileStore, DatasetIndex], caplog: pytest.LogCaptureFixture
) -> None:
    store, index = data
    run = put_run(store, index, epochs=1)
    caplog.set_level(logging.INFO, "trainer")
    statuses: list[int] = []

    def ask_else(event: Event) -> None:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{emit.port}/", timeout=10)
        with refused.value as answer:
            statuses.append(answer.code)

    emit = Scraper(caplog)
    assert main([run, "--store", store.uri], emit=ask_else, stop=StopSignal(), telemetry_port=0) == ExitCode.OK
    assert set(statuses) == {404}
    with pytest.raises(urllib.error.URLError):
        scraped(emit.port)


@pytest.mark.parametrize("options", [[], ["--test"]], ids=["finished", "test"])
def test_what_does_not_train_serves_nothing(
    data: tuple[FileStore, DatasetIndex], caplog: pytest.LogCaptureFixture, options: list[str]
) -> None:
    store, index = data
    run = put_run(store, index, epochs=1)
    assert train(store, run) == ExitCode.OK
    caplog.set_level(logging.INFO, "trainer")
    assert main([run, "--store", store.uri, *options], stop=StopSignal(), telemetry_port=0) == ExitCode.OK
    assert "telemetry on port" not in caplog.text


def test_without_a_run_there_is_nothing_to_scrape() -> None:
    assert list(Instruments(0).collect()) == []


@pytest.mark.parametrize(
    ("text", "port", "is_told"),
    [("", None, False), ("9100", 9100, False), ("0", 0, False), ("65536", None, True), ("http", None, True)],
    ids=["unset", "a-port", "any", "too-large", "a-word"],
)
def test_the_port_is_the_environments(
    caplog: pytest.LogCaptureFixture, text: str, port: int | None, is_told: bool
) -> None:
    assert asked_port({"GRID_TELEMETRY_PORT": text}) == port
    assert ("training goes on without telemetry" in caplog.text) is is_told


def test_a_trainer_that_nobody_scrapes_loads_no_server() -> None:
    code = (
        "import sys, trainer.__main__, trainer.telemetry; "
        "print(*(sys.modules.keys() & {'prometheus_client', 'http.server', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_names_and_units_follow_prometheus() -> None:
    names = [metric.name for metric in DESCRIPTIONS]
    assert len(set(names)) == len(names)
    for metric in DESCRIPTIONS:
        assert re.fullmatch(r"grid_run_[a-z_]+[a-z]", metric.name)
        assert metric.name.endswith("_total") is (metric.type == "counter")
        assert metric.name.removesuffix("_total").endswith(f"_{metric.unit}" if metric.unit else "")
        assert metric.labels[0] == "run"
        assert bool(metric.values) is (len(metric.labels) == 2)
        assert bool(metric.buckets) is (metric.type == "histogram")
        assert metric.help.endswith(".")


def test_what_is_silent_takes_all_that_instruments_take() -> None:
    assert type(SILENT) is Telemetry
    assert SILENT.on_request is None
    told_of = {name for name in vars(Instruments) if not name.startswith("_")} - {"collect", "port"}
    assert told_of == {name for name in vars(Telemetry) if not name.startswith("_")}
