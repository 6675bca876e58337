"""Event files: TensorBoard's own readers find the run's numbers in them, once each and in their order."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pictures import import_pictures, put_run, tiny_run
from PIL import Image
from results import put_attempt, result_of_test
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.summary.writer.record_writer import RecordWriter

from trainer.__main__ import main
from trainer.dataset import DatasetIndex
from trainer.events import (
    BEST,
    CURVES,
    SHEET_TAG,
    EventFile,
    are_wanted,
    event_file,
    events_key,
    experiment_file,
    hyperparameters,
    in_group,
    record_of_test,
    sheet_of,
)
from trainer.failure import DataError, ExitCode, SpecError
from trainer.history import Epoch, dated, read_epochs
from trainer.result import EpochMetrics
from trainer.spec import ExperimentSpec, RunSpec
from trainer.stop import StopSignal
from trainer.store import FileStore

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPEC = RunSpec.model_validate(
    {
        "data": {"name": "pictures", "fingerprint": "f" * 64},
        "model": {"architecture": "alexnet", "freeze": ["features.*"]},
        "epochs": 3,
        "seed": 1,
    }
)


def row(epoch: int, *, best: bool = True, **changes: float) -> EpochMetrics:
    values = {
        "epoch": epoch,
        "step": 3 * epoch,
        "lr": 0.1 / epoch,
        "train_loss": 1 / epoch,
        "train_accuracy": 0.1 * epoch,
        "validation_loss": 2 / epoch,
        "validation_accuracy": 0.05 * epoch,
        "validation_balanced_accuracy": 0.04 * epoch,
        "validation_top5_accuracy": 0.3,
        "best": best,
        "returned_to_best": False,
        "restarts": 0,
        "images_per_second": 100.0,
        "seconds": 2.0,
    }
    return EpochMetrics.model_validate({**values, **changes})


def epochs(*rows: EpochMetrics) -> list[Epoch]:
    return list(dated(rows, STARTED.timestamp()))


def opened(folder: Path, data: bytes) -> EventAccumulator:
    """The file as TensorBoard's reader, which checks every checksum, has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.out.tfevents.0.run").write_bytes(data)
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def points(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in accumulator.Scalars(tag)]


def session_of(accumulator: EventAccumulator) -> Mapping[str, object]:
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = hparams.parse_session_start_info_plugin_data(content)
    kinds = {name: value.WhichOneof("kind") for name, value in session.hparams.items()}
    return {"group": session.group_name, **{name: getattr(session.hparams[name], kinds[name]) for name in kinds}}


def test_tensorboard_reads_every_curve_back(tmp_path: Path) -> None:
    rows = [row(1), row(2), row(3, best=False, returned_to_best=True)]
    read = opened(tmp_path, event_file(SPEC, epochs(*rows)))
    for tag, field in CURVES.items():
        assert points(read, tag) == [(each.epoch, pytest.approx(getattr(each, field))) for each in rows], tag
    assert points(read, "training/returns_to_best") == [(1, 0), (2, 0), (3, 1)]
    assert [each.wall_time for each in read.Scalars("loss/train")] == [STARTED.timestamp() + 2 * n for n in (1, 2, 3)]


def test_the_best_epoch_s_curves_end_in_the_table_s_numbers(tmp_path: Path) -> None:
    read = opened(tmp_path, event_file(SPEC, epochs(row(1), row(2), row(3, best=False))))
    for field in BEST:
        assert points(read, f"best/{field}")[-1] == (3, pytest.approx(getattr(row(2), field))), field


def test_the_file_before_an_epoch_begins_the_file_after_it() -> None:
    rows = epochs(row(1), row(2, best=False), row(3))
    sheet = sheet_of(np.zeros((3, 8, 8, 3), np.uint8))
    files = [event_file(SPEC, rows[:number], sheet) for number in range(4)]
    assert files[0] == b""
    assert all(after.startswith(before) and len(after) > len(before) for before, after in pairwise(files))


def test_a_record_is_framed_as_tensorboard_frames_it() -> None:
    data = event_file(SPEC, epochs(row(1)))
    written = io.BytesIO()
    writer, at = RecordWriter(written), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        writer.write(data[at + 12 : at + 12 + length])
        at += 16 + length
    assert written.getvalue() == data


def test_a_run_is_done_after_its_last_epoch_alone(tmp_path: Path) -> None:
    unfinished = opened(tmp_path / "a", event_file(SPEC, epochs(row(1), row(2))))
    finished = opened(tmp_path / "b", event_file(SPEC, epochs(row(1), row(2), row(3))))
    assert "_hparams_/session_end_info" not in unfinished.Tags()["tensors"]
    content = finished.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert hparams.parse_session_end_info_plugin_data(content).end_time_secs == STARTED.timestamp() + 6


def test_times_never_run_backwards(tmp_path: Path) -> None:
    late = Epoch(row(1), 100.0)
    read = opened(tmp_path, event_file(SPEC, [late, Epoch(row(2), 50.0)]))
    assert [each.wall_time for each in read.Scalars("loss/train")] == [100.0, 100.0]


def test_hyperparameters_are_what_runs_may_be_compared_by(tmp_path: Path) -> None:
    told = hyperparameters(SPEC)
    assert told["optimizer.lr"] == 1e-3
    assert told["optimizer.name"] == "sgd"
    assert told["optimizer.nesterov"] is False
    assert told["model.freeze"] == '["features.*"]'
    assert told["augmentation.horizontal_flip"] == 0
    assert not {"seed", "data.fingerprint", "recipe.name", "checkpoint.every", "micro_batch", "model.arguments"} & set(
        told
    )
    session = session_of(opened(tmp_path, event_file(SPEC, epochs(row(1)))))
    assert {name: session[name] for name in told} == told


def test_runs_that_differ_by_seed_alone_share_a_row(tmp_path: Path) -> None:
    specs = [SPEC, SPEC.model_copy(update={"seed": 7}), SPEC.model_copy(update={"batch_size": 1})]
    groups = [
        session_of(opened(tmp_path / str(number), event_file(spec, epochs(row(1)))))["group"]
        for number, spec in enumerate(specs)
    ]
    assert groups[0] == groups[1] != groups[2]


def test_another_name_of_the_row_changes_nothing_else(tmp_path: Path) -> None:
    data = event_file(SPEC, epochs(row(1), row(2)))
    before, after = opened(tmp_path / "a", data), opened(tmp_path / "b", in_group(data, "rate/0.1"))
    assert session_of(after) == {**session_of(before), "group": "rate/0.1"}
    assert points(after, "loss/train") == points(before, "loss/train")


@pytest.mark.parametrize(
    "data", [b"", b"no events", experiment_file([], is_tested=False, time=0.0)], ids=["empty", "other", "no-run"]
)
def test_what_is_no_run_s_event_file_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="event file"):
        in_group(data, "rate/0.1")


def test_a_test_follows_at_the_best_epoch(tmp_path: Path) -> None:
    rows = epochs(row(1), row(2), row(3, best=False))
    test = result_of_test("r", test_accuracy=0.75)
    read = opened(tmp_path, event_file(SPEC, rows) + record_of_test(test, rows[1]))
    assert points(read, "test/test_accuracy") == [(2, 0.75)]
    assert [step for step, _ in points(read, "loss/train")] == [1, 2, 3]


def test_the_columns_of_a_grid_are_what_differs_in_it(tmp_path: Path) -> None:
    rows = [
        {"optimizer.lr": 0.1, "optimizer.name": "sgd", "optimizer.nesterov": False, "epochs": 3.0, "odd": 1.0},
        {"optimizer.lr": 0.01, "optimizer.name": "adamw", "epochs": 3.0, "odd": "text"},
    ]
    read = opened(tmp_path, experiment_file(rows, is_tested=True, time=0.0))
    content = read.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = hparams.parse_experiment_plugin_data(content)
    assert [each.name for each in experiment.hparam_infos] == ["optimizer.lr", "optimizer.name", "optimizer.nesterov"]
    interval = experiment.hparam_infos[0].domain_interval
    assert (interval.min_value, interval.max_value) == (0.01, 0.1)
    tags = [each.name.tag for each in experiment.metric_infos]
    assert tags[:2] == ["best/validation_accuracy", "best/validation_balanced_accuracy"]
    assert tags[-1] == "test/test_loss"


@pytest.mark.parametrize(
    ("num", "side", "wanted"),
    [(16, 20, (86, 86)), (3, 20, (64, 20)), (16, 224, (518, 518))],
    ids=["whole", "few", "large"],
)
def test_a_sheet_holds_the_images_in_rows_of_four(num: int, side: int, wanted: tuple[int, int]) -> None:
    shades = np.arange(num, dtype=np.uint8)[:, None, None, None] * 15
    sheet = Image.open(io.BytesIO(sheet_of(np.broadcast_to(shades, (num, side, side, 3)))))
    assert sheet.size == wanted
    width = min(side, 128)
    places = [((number % 4) * (width + 2) + 5, (number // 4) * (width + 2) + 5) for number in range(num)]
    seen = [sheet.getpixel(place) for place in places]
    assert np.allclose(seen, shades.reshape(num, 1).repeat(3, axis=1), atol=4)


@pytest.mark.parametrize(
    ("environment", "wanted"), [({}, True), ({"GRID_TENSORBOARD": "on"}, True), ({"GRID_TENSORBOARD": "off"}, False)]
)
def test_event_files_are_written_unless_switched_off(environment: dict[str, str], wanted: bool) -> None:
    assert are_wanted(environment) is wanted


def test_an_unknown_word_for_the_switch_is_refused() -> None:
    with pytest.raises(SpecError, match="GRID_TENSORBOARD: got 'false', expected on or off"):
        are_wanted({"GRID_TENSORBOARD": "false"})


# Attempts


def test_attempts_are_cut_where_the_next_one_went_on_and_dated_by_their_starts(file_store: FileStore) -> None:
    later = datetime(2026, 1, 3, tzinfo=UTC)
    put_attempt(file_store, "r", "0001-a", [row(1), row(2), row(3)], STARTED)
    put_attempt(file_store, "r", "0002-b", [row(2, lr=0.5), row(3, lr=0.5)], later, after=1)
    read = read_epochs(file_store, "r")
    assert [(each.metrics.epoch, each.metrics.lr) for each in read] == [(1, 0.1), (2, 0.5), (3, 0.5)]
    assert [each.time for each in read] == [STARTED.timestamp() + 2, later.timestamp() + 2, later.timestamp() + 4]


def test_an_attempt_that_began_anew_leaves_nothing_of_those_before(file_store: FileStore) -> None:
    put_attempt(file_store, "r", "0001-a", [row(1), row(2)], STARTED)
    put_attempt(file_store, "r", "0002-b", [row(1, lr=0.5)], STARTED)
    assert [(each.metrics.epoch, each.metrics.lr) for each in read_epochs(file_store, "r")] == [(1, 0.5)]


class StopAtEpoch(StopSignal):
    """Asks for a stop once the store has the metrics of so many epochs."""

    def __init__(self, store: FileStore, run: str, num_epochs: int) -> None:
        self._store, self._run, self._num_epochs = store, run, num_epochs
        super().__init__()
        self.requested_at = 0.0

    @property
    def reason(self) -> str | None:
        is_far = len(read_epochs(self._store, self._run)) >= self._num_epochs
        return "the test said so" if is_far else None

    @reason.setter
    def reason(self, value: str | None) -> None:
        assert value is None


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FileStore, DatasetIndex]:
    store = FileStore(tmp_path / "store")
    monkeypatch.setenv("GRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return store, import_pictures(store, tmp_path / "images")


def train(store: FileStore, run: str, stop: StopSignal | None = None) -> int:
    return main([run, "--store", store.uri], stop=stop or StopSignal())


def curves_of(folder: Path, data: bytes) -> dict[str, list[tuple[int, float]]]:
    """All curves but those that depend on the clock."""
    read = opened(folder, data)
    tags = set(read.Tags()["scalars"]) | {tag for tag in read.Tags()["tensors"] if not tag.startswith("_hparams_")}
    clocked = ("training/images_per_second", "training/seconds", SHEET_TAG)
    return {tag: points(read, tag) for tag in sorted(tags) if tag not in clocked}


def test_a_run_cut_off_and_resumed_has_the_curves_of_one_that_was_not(
    data: tuple[FileStore, DatasetIndex], tmp_path: Path
) -> None:
    store, index = data
    spec = {"epochs": 5, "augmentation": "report_2", "checkpoint": {"every": 0.01}}
    run = put_run(store, index, **spec)
    whole = FileStore(tmp_path / "whole")
    for entry in store.list(""):
        whole.put(entry.key, store.get(entry.key))
    assert train(whole, run) == ExitCode.OK
    for num_epochs in (1, 3):
        assert train(store, run, StopAtEpoch(store, run, num_epochs)) == ExitCode.STOPPED
    assert train(store, run) == ExitCode.OK
    cut, straight = (each.get(events_key(run)) for each in (store, whole))
    assert curves_of(tmp_path / "cut", cut) == curves_of(tmp_path / "straight", straight)
    steps = [step for step, _ in points(opened(tmp_path / "cut", cut), "loss/train")]
    assert steps == [1, 2, 3, 4, 5]
    images = [
        opened(tmp_path / name, content).Images(SHEET_TAG) for name, content in (("cut", cut), ("straight", straight))
    ]
    assert images[0][0].encoded_image_string == images[1][0].encoded_image_string
    assert store.get(events_key(run)) == event_file(
        tiny_run(index, **spec), read_epochs(store, run), images[0][0].encoded_image_string
    )


def test_what_training_computes_does_not_depend_on_the_switch(
    data: tuple[FileStore, DatasetIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, index = data
    run = put_run(store, index, augmentation="report_2")
    silent = FileStore(tmp_path / "silent")
    for entry in store.list(""):
        silent.put(entry.key, store.get(entry.key))
    assert train(store, run) == ExitCode.OK
    monkeypatch.setenv("GRID_TENSORBOARD", "off")
    assert train(silent, run) == ExitCode.OK
    assert not list(silent.list(f"runs/{run}/tensorboard/"))
    passing = {"seconds", "images_per_second"}
    numbers = [[each.metrics.model_dump(exclude=passing) for each in read_epochs(one, run)] for one in (store, silent)]
    assert numbers[0] == numbers[1]


def test_the_sheet_shows_what_the_network_gets(data: tuple[FileStore, DatasetIndex], tmp_path: Path) -> None:
    store, index = data
    run = put_run(store, index, augmentation={"grayscale": 1.0}, epochs=1)
    assert train(store, run) == ExitCode.OK
    (sheet,) = opened(tmp_path / "read", store.get(events_key(run))).Images(SHEET_TAG)
    shown = np.asarray(Image.open(io.BytesIO(sheet.encoded_image_string)).convert("RGB"), dtype=np.int64)
    assert shown.shape == (86, 86, 3)
    assert np.abs(shown[:20, :20] - shown[:20, :20].mean(axis=2, keepdims=True)).max() < 8  # grey, and no other
    assert shown[:20, :20].std() > 1


def test_an_earlier_attempt_that_cannot_be_read_does_not_end_a_run(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    assert train(store, run, StopAtEpoch(store, run, 1)) == ExitCode.STOPPED
    (metrics,) = (each.key for each in store.list(f"runs/{run}/attempts/") if each.key.endswith("metrics.jsonl"))
    store.put(metrics, b"torn")
    assert train(store, run) == ExitCode.OK
    assert store.get(events_key(run))


def test_a_growing_file_is_the_one_that_is_made_at_once() -> None:
    file = EventFile(SPEC)
    rows = epochs(row(1), row(2, best=False), row(3))
    for each in rows:
        file.add(each)
    assert file.data == event_file(SPEC, rows)
    assert Event.FromString(file.data[12:][: int.from_bytes(file.data[:8], "little")]).file_version == "brain.Event:2"


def test_of_an_experiment_without_a_seed_there_are_the_same_hyperparameters() -> None:
    experiment = ExperimentSpec.model_validate(SPEC.model_dump(exclude={"seed"}))
    assert hyperparameters(experiment) == hyperparameters(SPEC)
