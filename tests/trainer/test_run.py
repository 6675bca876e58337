"""One attempt after another brings a run to its result, with the same numbers however often it was cut off."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import import_pictures, put_run, tiny_run
from stores import BUCKET, FlakyServer, Place

from trainer.__main__ import main
from trainer.cache import Cache
from trainer.checkpoint import Checkpoint
from trainer.dataset import PARTS, DatasetIndex
from trainer.failure import ExitCode, Failure
from trainer.history import read_metrics
from trainer.identity import run_id, write_spec
from trainer.lease import run_lock
from trainer.logs import read_line
from trainer.part import open_part
from trainer.result import PASSING, Result, TestResult
from trainer.stop import StopSignal
from trainer.store import FileStore


class StopAfter(StopSignal):
    """Asks for a stop from its n-th look on: one look a step, one a validation batch, a few at the start."""

    def __init__(self, num_looks: int) -> None:
        self.num_looks = num_looks
        super().__init__()
        self.requested_at = 0.0

    @property
    def reason(self) -> str | None:
        self.num_looks -= 1
        return "the test said so" if self.num_looks < 0 else None

    @reason.setter
    def reason(self, value: str | None) -> None:
        assert value is None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStore, DatasetIndex]:
    folder = tmp_path_factory.mktemp("pictures")
    store = FileStore(folder / "store")
    index = import_pictures(store, folder / "originals")
    for name in PARTS:  # decoded here, so that a run's looks at its stop signal can be counted
        open_part(index, tiny_run(index).data, name, store, Cache(folder / "images"))
    return store, index


def train(store: FileStore, run: str, *options: str, stop: StopSignal | None = None) -> int:
    return main([run, "--store", store.uri, *options], stop=stop or StopSignal())


def result_of(store: FileStore, run: str) -> Result:
    return Result.model_validate_json(store.get(f"results/{run}.json"))


def lasting(result: Result) -> dict[str, Any]:
    return {name: value for name, value in result.model_dump().items() if name not in PASSING}


def numbers_of(store: FileStore, run: str) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"seconds", "images_per_second"}) for row in read_metrics(store, run)]


def failure_of(store: FileStore, run: str) -> Failure:
    return Failure.model_validate_json(store.get(f"failures/{run}.json"))


def test_a_run_ends_in_its_result_and_leaves_only_the_best_weights(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    assert train(store, run) == ExitCode.OK
    result = result_of(store, run)
    rows = read_metrics(store, run)
    best = min(rows, key=lambda row: row.validation_loss)
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert (result.best_epoch, result.validation_loss) == (best.epoch, best.validation_loss)
    assert (result.train_loss, result.train_accuracy) == (best.train_loss, best.train_accuracy)
    assert result.epochs_run == 3
    assert result.exact
    assert result.data_fingerprint == index.fingerprint
    assert [entry.key for entry in store.list(f"runs/{run}/blobs/")] == [result.best_weights]
    assert not list(store.list(f"runs/{run}/checkpoint.json"))
    log = next(e.key for e in store.list(f"runs/{run}/attempts/") if e.key.endswith("log.txt"))
    assert "epoch 3 of 3" in store.get(log).decode()


def test_a_finished_run_exits_at_once_and_changes_nothing(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    train(store, run)
    before = {entry.key: entry.version for entry in store.list("")}
    assert train(store, run) == ExitCode.OK
    assert {entry.key: entry.version for entry in store.list("")} == before


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"augmentation": "report_2", "micro_batch": 4},
        {"optimizer": {"name": "adamw", "lr": 0.01}, "schedule": {"name": "cosine", "warmup_epochs": 1.5}},
        {"optimizer": {"lr": 0.9}, "epochs": 6, "best": {"patience": 1}},
        {"optimizer": {"lr": 0.9}, "epochs": 6, "best": {"patience": 1, "optimizer": "keep"}},
    ],
    ids=["plain", "augmented", "adamw", "back-to-best", "back-keeping-optimiser"],
)
def test_a_run_cut_off_between_any_two_steps_ends_with_the_same_numbers(
    data: tuple[FileStore, DatasetIndex], tmp_path: Path, spec: dict[str, Any]
) -> None:
    store, index = data
    run = put_run(store, index, **spec)
    assert train(store, run) == ExitCode.OK
    straight = result_of(store, run)
    weights, rows = store.get(str(straight.best_weights)), numbers_of(store, run)
    store.delete(f"results/{run}.json")
    for entry in list(store.list(f"runs/{run}/")):
        if not entry.key.endswith("spec.yaml"):
            store.delete(entry.key)

    num_attempts = 0
    num_looks = 12 if "micro_batch" in spec else 6  # enough for an attempt to get through a whole validation
    while (code := train(store, run, stop=StopAfter(num_looks + num_attempts % 3))) != ExitCode.OK:
        assert code == ExitCode.STOPPED
        num_attempts += 1
        assert num_attempts < 40
    assert num_attempts >= 2
    assert lasting(result_of(store, run)) == lasting(straight)
    assert store.get(str(straight.best_weights)) == weights
    assert numbers_of(store, run) == rows


def test_a_damaged_checkpoint_means_the_one_before(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    train(store, run)
    straight = lasting(result_of(store, run))
    store.delete(f"results/{run}.json")
    for looks in (7, 7):
        assert train(store, run, stop=StopAfter(looks)) == ExitCode.STOPPED
    newest = Checkpoint.model_validate_json(store.get(f"runs/{run}/checkpoint.json"))
    blob = store.get(newest.state.model)
    store.put(newest.state.model, blob[: len(blob) // 2])
    assert train(store, run) == ExitCode.OK
    assert lasting(result_of(store, run)) == straight


def test_a_run_with_no_whole_checkpoint_is_not_begun_anew_in_silence(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    train(store, run, stop=StopAfter(7))
    for entry in list(store.list(f"runs/{run}/blobs/")):
        store.put(entry.key, b"damaged")
    assert train(store, run) == ExitCode.DATA
    assert "no whole checkpoint" in failure_of(store, run).message
    assert f"delete runs/{run}/checkpoint.json" in str(failure_of(store, run).hint)


def test_a_loss_that_is_never_finite_fails_for_good(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index, model={"architecture": "networks:fragile", "arguments": {"how": "nan"}})
    assert train(store, run) == ExitCode.TRAINING
    failure = failure_of(store, run)
    assert failure.reason == "diverged"
    assert failure.final
    assert "after 2 restarts" in failure.message
    assert any("restart 2" in line for line in failure.log_tail)


def test_a_restart_lowers_the_learning_rate_until_the_loss_is_finite(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    spec = {
        "model": {"architecture": "networks:plain"},
        "optimizer": {"lr": 1e18, "momentum": 0},
        "restart": {"times": 3, "lr_factor": 1e-10},
    }
    run = put_run(store, index, **spec)
    assert train(store, run) == ExitCode.OK
    result = result_of(store, run)
    assert result.restarts > 0
    assert read_metrics(store, run)[-1].lr == pytest.approx(1e18 * 1e-10**result.restarts)


def test_going_back_to_the_best_puts_its_weights_back(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index, optimizer={"lr": 0.9}, epochs=6, best={"patience": 1}, checkpoint={"keep": "all"})
    assert train(store, run) == ExitCode.OK
    rows = read_metrics(store, run)
    assert [row.returned_to_best for row in rows] == [not row.best and row.epoch < 6 for row in rows]
    assert result_of(store, run).returns_to_best == sum(row.returned_to_best for row in rows) > 0
    assert len(rows) == 6


def test_micro_batches_change_nothing_but_rounding(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    model = {"architecture": "networks:plain"}
    whole, parts = (put_run(store, index, model=model, micro_batch=size) for size in (None, 3))
    assert whole != parts
    for run in (whole, parts):
        assert train(store, run) == ExitCode.OK
    assert result_of(store, parts).validation_loss == pytest.approx(result_of(store, whole).validation_loss, rel=1e-4)


def test_the_test_part_is_touched_by_test_alone(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    shards = {entry.shard for entry in index.entries("test")}
    hidden = {index.shard_key(shard): store.get(index.shard_key(shard)) for shard in shards}
    for key in hidden:
        store.delete(key)
    run = put_run(store, index)
    assert train(store, run) == ExitCode.OK
    for key, content in hidden.items():
        store.put(key, content)
    assert train(store, run, "--test") == ExitCode.OK
    tested = TestResult.model_validate_json(store.get(f"tests/{run}.json"))
    with np.load(store.local_path(tested.predictions)) as predictions:
        assert sorted(predictions.files) == ["index", "label", "logits"]
        assert predictions["logits"].shape == (index.num_images("test"), 3)
        right = predictions["logits"].argmax(axis=1) == predictions["label"]
    assert tested.test_accuracy == pytest.approx(right.mean())
    assert tested.num_images == index.num_images("test")


def test_testing_a_run_without_a_result_is_an_error(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    assert train(store, run, "--test") == ExitCode.DATA


def test_a_run_that_another_process_trains_is_left_to_it(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    lock = run_lock(store, run)
    assert lock.acquire()
    try:
        assert train(store, run) == ExitCode.STOPPED
    finally:
        lock.release()
    assert not list(store.list("results/"))
    assert train(store, run) == ExitCode.OK


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ({"model": {"architecture": "alexnett"}}, ExitCode.SPEC, "alexnett"),
        ({"recipe": {"version": 999}}, ExitCode.SPEC, "version 999"),
        (
            {"model": {"architecture": "networks:plain", "weights": "x.pth", "weights_fingerprint": "0" * 64}},
            ExitCode.DATA,
            "weights/x.pth",
        ),
        ({"data": {"name": "nothing", "fingerprint": "0" * 64}}, ExitCode.DATA, "nothing"),
        ({"data": {"name": "pictures", "fingerprint": "0" * 64}}, ExitCode.DATA, "has fingerprint"),
    ],
    ids=["architecture", "recipe", "weights", "no-data", "other-data"],
)
def test_what_cannot_be_trained_fails_for_good_and_says_why(
    data: tuple[FileStore, DatasetIndex], spec: dict[str, Any], code: ExitCode, message: str
) -> None:
    store, index = data
    run = put_run(store, index, **spec)
    assert train(store, run) == code
    failure = failure_of(store, run)
    assert failure.final
    assert failure.exit_code == code
    assert message in failure.message


def test_a_fault_in_a_models_own_code_is_no_final_failure(
    data: tuple[FileStore, DatasetIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, index = data
    words = tmp_path / "termination-log"
    words.touch()
    monkeypatch.setenv("GRID_TERMINATION_LOG", str(words))
    run = put_run(store, index, model={"architecture": "networks:fragile", "arguments": {"how": "raise"}})
    assert train(store, run) == 1
    assert not list(store.list("failures/"))
    said = json.loads(words.read_text())
    assert said["message"].startswith("RuntimeError: this network always fails (")
    assert "networks.py:" in said["message"]
    (kept,) = [e.key for e in store.list(f"runs/{run}/attempts/") if e.key.endswith("failure.json")]
    assert any("this network always fails" in line for line in Failure.model_validate_json(store.get(kept)).log_tail)


def test_a_checkpoint_of_a_loss_that_is_not_finite_can_be_read_again(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    model = {"architecture": "networks:fragile", "arguments": {"how": "nan"}}
    run = put_run(store, index, model=model, batch_size=1)  # steps enough that none is looked at before the stop
    assert train(store, run, stop=StopAfter(7)) == ExitCode.STOPPED
    assert train(store, run) == ExitCode.TRAINING
    assert failure_of(store, run).reason == "diverged"


def test_a_checkpoint_that_another_attempt_wrote_stops_this_one(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index, checkpoint={"every": 1e-9})
    events = 0

    def intrude(event: dict[str, Any]) -> None:
        nonlocal events
        events += 1
        if events == 1:
            key = f"runs/{run}/checkpoint.json"
            while not list(store.list(key)):
                time.sleep(0.01)
            store.put(key, store.get(key).replace(b'"sequence":', b'"sequence": '))

    assert main([run, "--store", store.uri], emit=intrude, stop=StopSignal()) == ExitCode.STOPPED
    assert not list(store.list("results/"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(["photo.yaml"], "photo.yaml:1: not readable as UTF-8 text: got byte 0xff", id="no text"),
        pytest.param(["folder"], "SPEC: got 'folder': a folder, expected a file", id="a folder"),
        pytest.param(["x" * 5_000], "no such file", id="too long for a name"),
        pytest.param(["none", "--store-patience", "-1"], "got '-1', expected seconds, 0 or more", id="no patience"),
    ],
)
def test_a_spec_that_cannot_be_read_ends_with_64(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("photo.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    assert main([*words, "--store", "file://./store"], stop=StopSignal()) == ExitCode.SPEC
    assert told in caplog.text
    assert "Traceback" not in caplog.text


def test_a_wrong_command_line_is_a_wrong_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "termination-log"
    words.touch()
    monkeypatch.setenv("GRID_TERMINATION_LOG", str(words))
    assert main(["--no-such-option"], stop=StopSignal()) == ExitCode.SPEC
    assert "--store" in json.loads(words.read_text())["message"]


def test_a_machine_that_computes_otherwise_goes_on_only_when_told_to(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    assert train(store, run, stop=StopAfter(7)) == ExitCode.STOPPED
    key = f"runs/{run}/numerics.json"
    settled = json.loads(store.get(key))
    store.put(key, json.dumps({**settled, "instruction_set": "NEON"}).encode())
    assert train(store, run) == ExitCode.DEVICE
    (kept,) = [e.key for e in store.list(f"runs/{run}/attempts/") if e.key.endswith("failure.json")]
    failure = Failure.model_validate_json(store.get(kept))
    assert "instruction_set was 'NEON'" in failure.message
    assert "--resume inexact" in str(failure.hint)
    assert train(store, run, "--resume", "inexact", stop=StopAfter(7)) == ExitCode.STOPPED
    store.put(key, json.dumps(settled).encode())  # back on the first machine
    assert train(store, run) == ExitCode.OK
    assert not result_of(store, run).exact


def test_a_run_on_a_server_equals_the_one_in_a_folder(data: tuple[FileStore, DatasetIndex], place: Place) -> None:
    folder, index = data
    run = put_run(folder, index)
    assert train(folder, run) == ExitCode.OK
    store = place.connect()
    for entry in folder.list("datasets/"):
        store.put(entry.key, folder.get(entry.key))
    put_run(store, index)
    assert main([run, "--store", store.uri], stop=StopAfter(8)) == ExitCode.STOPPED
    assert main([run, "--store", store.uri], stop=StopSignal()) == ExitCode.OK
    result = Result.model_validate_json(store.get(f"results/{run}.json"))
    assert lasting(result) == lasting(result_of(folder, run))
    assert store.get(str(result.best_weights)) == folder.get(str(result.best_weights))


@pytest.mark.server
def test_a_store_that_goes_away_ends_the_attempt_with_its_own_exit(
    data: tuple[FileStore, DatasetIndex], flaky: FlakyServer
) -> None:
    folder, index = data
    store = Place("flaky", f"s3://{BUCKET}/gone", is_conditional=True).connect()
    for entry in folder.list("datasets/"):
        store.put(entry.key, folder.get(entry.key))
    run = put_run(store, index)

    def break_the_server(event: dict[str, Any]) -> None:
        flaky.faults = [("", "slow-down")] * 1000

    options = ["--store", store.uri, "--store-patience", "1"]
    assert main([run, *options], emit=break_the_server, stop=StopSignal()) == ExitCode.STORE
    flaky.faults = []
    assert main([run, *options], stop=StopSignal()) == ExitCode.OK


def test_a_spec_that_was_edited_is_refused(data: tuple[FileStore, DatasetIndex], tmp_path: Path) -> None:
    store, index = data
    text = write_spec(tiny_run(index)).replace("epochs: 3", "epochs: 4")
    (tmp_path / "spec.yaml").write_text(text)
    assert main([str(tmp_path / "spec.yaml"), "--store", store.uri], stop=StopSignal()) == ExitCode.SPEC


def test_a_run_from_a_spec_file_is_found_by_its_id_afterwards(
    data: tuple[FileStore, DatasetIndex], tmp_path: Path
) -> None:
    store, index = data
    spec = tiny_run(index, epochs=1)
    (tmp_path / "spec.yaml").write_text(write_spec(spec))
    assert main([str(tmp_path / "spec.yaml"), "--store", store.uri], stop=StopSignal()) == ExitCode.OK
    assert store.get(f"runs/{run_id(spec)}/spec.yaml").decode() == write_spec(spec)
    assert train(store, run_id(spec), "--test") == ExitCode.OK


def test_a_spec_that_is_nowhere_is_told(data: tuple[FileStore, DatasetIndex]) -> None:
    store, _ = data
    assert train(store, "alexnet-000000000000") == ExitCode.SPEC


def test_other_seeds_give_other_numbers(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    runs = [put_run(store, index, seed=seed) for seed in (0, 1)]
    for run in runs:
        train(store, run)
    first, second = (result_of(store, run) for run in runs)
    assert first.validation_loss != second.validation_loss
    assert run_id(tiny_run(index, seed=1)) == runs[1]


def put_hungry(store: FileStore, index: DatasetIndex, **arguments: int) -> str:
    return put_run(store, index, model={"architecture": "networks:hungry", "arguments": arguments})


def test_too_little_device_memory_halves_the_micro_batch_until_it_fits(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run, roomy = put_hungry(store, index, largest=4), put_hungry(store, index, largest=10)
    for each in (run, roomy):
        assert train(store, each) == ExitCode.OK
    result = result_of(store, run)
    assert result.numerics.micro_batch == 3  # of 10, then 5
    assert result.exact
    assert json.loads(store.get(f"runs/{run}/numerics.json"))["micro_batch"] == 3
    assert [row.epoch for row in read_metrics(store, run)] == [1, 2, 3]
    assert result.validation_loss == pytest.approx(result_of(store, roomy).validation_loss, rel=1e-4)


def test_device_memory_for_not_even_one_image_fails_for_good(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_hungry(store, index, largest=0)
    assert train(store, run) == ExitCode.TRAINING
    failure = failure_of(store, run)
    assert (failure.reason, failure.during) == ("out-of-device-memory", "train")
    assert "no memory for 1 images" in failure.message
    assert "micro_batch" in str(failure.hint)


def test_device_memory_that_sufficed_before_is_the_devices_fault(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_hungry(store, index, largest=10, num_passes=8)  # an epoch has 6: each attempt comes one further
    assert [train(store, run) for _ in range(3)] == [ExitCode.DEVICE, ExitCode.DEVICE, ExitCode.OK]
    assert result_of(store, run).numerics.micro_batch == 10
    assert result_of(store, run).attempts == 3
    failures = [
        Failure.model_validate_json(store.get(entry.key))
        for entry in store.list(f"runs/{run}/attempts/")
        if entry.key.endswith("failure.json")
    ]
    assert all("the run fitted before and does not now" in failure.message for failure in failures)


def test_a_run_that_kept_no_weights_cannot_be_tested_and_says_what_to_do(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index, checkpoint={"keep": "none"})
    assert train(store, run) == ExitCode.OK
    assert not list(store.list(f"runs/{run}/blobs/"))
    assert train(store, run, "--test") == ExitCode.DATA
    failure = failure_of(store, run)
    assert failure.during == "test"
    assert "kept no weights: its checkpoint.keep was none" in failure.message
    before = lasting(result_of(store, run))
    store.delete(f"results/{run}.json")  # what the hint says
    assert f"delete results/{run}.json" in str(failure.hint)
    assert put_run(store, index, checkpoint={"keep": "best"}) == run
    assert [train(store, run), train(store, run, "--test")] == [ExitCode.OK, ExitCode.OK]
    after = lasting(result_of(store, run))
    assert {**after, "spec": None, "best_weights": None} == {**before, "spec": None, "best_weights": None}


def log_of(store: FileStore, run: str, attempt: int) -> list[str]:
    (key,) = [e.key for e in store.list(f"runs/{run}/attempts/{attempt:04d}-") if e.key.endswith("log.txt")]
    return store.get(key).decode().splitlines()


def test_an_attempt_says_first_of_all_where_the_run_begins_or_goes_on(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    run = put_run(store, index)
    events: list[dict[str, Any]] = []
    for stop in (StopAfter(12), StopSignal()):
        main([run, "--store", store.uri], emit=events.append, stop=stop)
    first, second = (read_line(log_of(store, run, number)[0]).message for number in (1, 2))
    assert re.fullmatch(r"attempt 0001-\w+ begins the run: 3 epochs", first)
    goes_on = r"attempt 0002-\w+ goes on in epoch 2 of 3, after \d steps of it, "
    assert re.fullmatch(goes_on + r"from the checkpoint of attempt 0001-\w+", second)
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    assert resumed["epoch"] == 1
    assert resumed["attempt"].startswith("0001-")
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]


def test_a_network_that_cannot_be_computed_twice_alike_says_what_to_set(data: tuple[FileStore, DatasetIndex]) -> None:
    store, index = data
    model = {"architecture": "networks:fragile", "arguments": {"how": "by chance"}}
    run = put_run(store, index, model=model)
    assert train(store, run) == ExitCode.SPEC
    assert failure_of(store, run).message.startswith("deterministic: ")
    assert "deterministic: false" in str(failure_of(store, run).hint)
    assert train(store, put_run(store, index, model=model, deterministic=False)) == ExitCode.OK
