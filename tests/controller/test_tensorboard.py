"""A grid in TensorBoard: every run under the names that people gave, once each, and the HParams tab as its table."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from grids import FACTS, NOW, TEXT, runs_of
from pictures import import_pictures
from results import put_attempt, result, result_of_test
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from controller.archive import gather_facts, record_decision
from controller.cli import main
from controller.grid import Grid, parse_grid
from controller.search import Decision, Expansion, Facts, expand, wanted
from controller.standing import Choice
from controller.tensorboard import Board, Logdir, folder_name, free_port, is_taken
from trainer.events import event_file, events_key
from trainer.failure import SpecError
from trainer.history import dated, read_epochs
from trainer.result import EpochMetrics
from trainer.store import FileStore, Store

GRID = parse_grid(TEXT, "small.yaml")
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DECISION = Decision(
    stage="lr", kept=("optimizer.lr=0.05",), because="the rule", metric="validation_loss", saw=(), time=NOW
)


def row(epoch: int, accuracy: float = 0.5, **changes: object) -> EpochMetrics:
    values = {
        "epoch": epoch,
        "step": 3 * epoch,
        "lr": 0.1,
        "train_loss": 1 / epoch,
        "train_accuracy": 0.5,
        "validation_loss": 2 / epoch,
        "validation_accuracy": accuracy,
        "validation_balanced_accuracy": 0.5,
        "validation_top5_accuracy": 1.0,
        "best": True,
        "returned_to_best": False,
        "restarts": 0,
        "images_per_second": 100.0,
        "seconds": 2.0,
    }
    return EpochMetrics.model_validate({**values, **changes})


def put_events(store: Store, expansion: Expansion, run: str, *rows: EpochMetrics) -> None:
    store.put(events_key(run), event_file(expansion.runs()[run].spec, dated(rows, STARTED.timestamp())))


def put_result(store: FileStore, run: str) -> None:
    store.put(f"results/{run}.json", result(run).model_dump_json().encode())


def put_test(store: FileStore, run: str) -> None:
    store.put(f"tests/{run}.json", result_of_test(run, test_loss=0.5, test_accuracy=0.875).model_dump_json().encode())


def expansion_of(*decisions: Decision) -> Expansion:
    return expand(GRID, {each.stage: each for each in decisions}, FACTS)


def decided() -> Decision:
    """Stage lr decided over the rows that it has."""
    rows = next(stage for stage in expansion_of().stages if stage.name == "lr").experiments
    saw = tuple({"experiment": each.name, "runs": [run.id for run in each.runs], "value": 1.0} for each in rows)
    return Decision.model_validate({**DECISION.model_dump(), "kept": (rows[0].name,), "saw": saw})


def logdir(store: Store, tmp_path: Path, choice: Choice | None = None) -> Logdir:
    return Logdir(GRID, store, FACTS, choice or Choice(), tmp_path / "logdir")


def provider_of(folder: Path) -> MultiplexerDataProvider:
    """What TensorBoard's pages ask, over its own reader."""
    multiplexer = EventMultiplexer(
        size_guidance={"tensors": 0}, tensor_size_guidance={"scalars": 0}
    ).AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def last_scalars(folder: Path, tag: str) -> dict[str, float]:
    """The curve's last value by TensorBoard's name of the run."""
    read = provider_of(folder).read_last_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
    return {run: tags[tag].value for run, tags in read.items() if tag in tags}


def hparams_table(folder: Path) -> list[dict[str, Any]]:
    """The rows of the HParams tab, as the plugin's own backend makes them."""
    context = backend_context.Context(TBContext(logdir=str(folder), data_provider=provider_of(folder)))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        aggregation_type=api_pb2.AGGREGATION_AVG,
    )
    answer = list_session_groups.Handler(RequestContext(), context, "", request).run()
    return [
        {
            "name": group.name,
            "sessions": [session.name for session in group.sessions],
            "lr": group.hparams["optimizer.lr"].number_value,
            **{metric.name.tag: metric.value for metric in group.metric_values},
        }
        for group in answer.session_groups
    ]


def test_runs_stand_under_the_names_of_their_rows(store: Store, tmp_path: Path) -> None:
    expansion = expansion_of()
    one, other, third, _ = runs_of(expansion, "lr")
    put_events(store, expansion, one, row(1), row(2, accuracy=0.25))
    put_attempt(store, other, "0001-a", [row(1, accuracy=0.75)], STARTED)
    put_attempt(store, third, "0001-a", [row(1, accuracy=1.0)], STARTED)
    made = logdir(store, tmp_path)
    assert made.refresh() is False
    assert made.num_runs == 3
    first, second = (each.name for each in expansion.stages[0].experiments)
    assert last_scalars(made.folder, "accuracy/validation") == {
        f"lr/{first}/seed 0": 0.25,
        f"lr/{first}/seed 1": 0.75,
        f"lr/{second}/seed 0": 1.0,
    }


def test_the_hparams_tab_has_the_rows_of_the_table_with_means_over_seeds(file_store: FileStore, tmp_path: Path) -> None:
    expansion = expansion_of()
    for run, accuracy in zip(runs_of(expansion, "lr"), (0.25, 0.75, 0.5, 1.0), strict=True):
        put_events(file_store, expansion, run, row(1, accuracy=accuracy), row(2, accuracy=0.0, best=False))
    made = logdir(file_store, tmp_path)
    made.refresh()
    table = {each["name"]: each for each in hparams_table(made.folder)}
    first, second = (f"lr/{each.name}" for each in expansion.stages[0].experiments)
    assert set(table) == {first, second}
    assert (table[first]["lr"], table[second]["lr"]) == (0.05, 0.005)
    assert (table[first]["best/validation_accuracy"], table[second]["best/validation_accuracy"]) == (0.5, 0.75)
    assert table[first]["sessions"] == [f"{first}/seed 0", f"{first}/seed 1"]
    assert not any(tag.startswith("accuracy/") for tag in table[first])


def test_a_stage_that_is_decided_brings_its_rows_and_a_shared_run_stands_in_both(
    file_store: FileStore, tmp_path: Path
) -> None:
    expansion = expansion_of()
    for run in runs_of(expansion, "lr"):
        put_events(file_store, expansion, run, row(1))
        put_result(file_store, run)
    made = logdir(file_store, tmp_path)
    assert made.refresh() is False
    decision = record_decision(file_store, GRID.name, decided())
    assert made.refresh() is True  # the columns are others
    shared = set(runs_of(expansion, "lr")) & set(runs_of(expansion_of(decision), "smoothing"))
    assert len(shared) == 2
    stages = [run.partition("/")[0] for run in last_scalars(made.folder, "loss/train")]
    assert sorted(stages) == ["lr"] * 4 + ["smoothing"] * 2
    assert {each["name"].partition("/")[0] for each in hparams_table(made.folder)} == {"lr", "smoothing"}
    assert made.refresh() is False


def test_a_reopened_stage_takes_its_rows_along(file_store: FileStore, tmp_path: Path) -> None:
    expansion = expansion_of(record_decision(file_store, GRID.name, decided()))
    for run in expansion.runs():
        put_events(file_store, expansion, run, row(1))
    made = logdir(file_store, tmp_path)
    made.refresh()
    assert (made.folder / "smoothing").is_dir()
    file_store.delete(f"grids/{GRID.name}/decisions/lr.json")
    assert made.refresh() is True
    assert not (made.folder / "smoothing").exists()
    assert made.num_runs == 4


def test_a_tested_run_shows_its_numbers_on_the_test_part(file_store: FileStore, tmp_path: Path) -> None:
    expansion = expansion_of()
    run = runs_of(expansion, "lr")[0]
    put_attempt(file_store, run, "0001-a", [row(1), row(2)], STARTED)
    put_events(file_store, expansion, run, row(1), row(2))
    put_result(file_store, run)
    made = logdir(file_store, tmp_path)
    made.refresh()
    assert last_scalars(made.folder, "test/test_accuracy") == {}
    put_test(file_store, run)
    assert made.refresh() is False
    assert list(last_scalars(made.folder, "test/test_accuracy").values()) == [0.875]


class Reads(FileStore):
    """Counts the reads of event files."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def get(self, key: str) -> bytes:
        if "tfevents" in key:
            self.read.append(key)
        return super().get(key)


def test_what_has_not_changed_is_not_fetched_again_and_a_file_grows_in_its_place(tmp_path: Path) -> None:
    store, expansion = Reads(tmp_path / "store"), expansion_of()
    one, other, *_ = runs_of(expansion, "lr")
    for run in (one, other):
        put_events(store, expansion, run, row(1))
    made = logdir(store, tmp_path)
    made.refresh()
    (path,) = made.folder.rglob(events_key(one).rpartition("/")[2])
    inode = path.stat().st_ino
    store.read.clear()
    put_events(store, expansion, one, row(1), row(2), row(3))
    put_result(store, one)
    assert made.refresh() is False
    assert store.read == [events_key(one)]
    assert path.stat().st_ino == inode
    assert made.refresh() is False
    assert store.read == [events_key(one)]


def test_a_run_that_was_trained_otherwise_meanwhile_is_written_anew(file_store: FileStore, tmp_path: Path) -> None:
    expansion = expansion_of()
    run = runs_of(expansion, "lr")[0]
    put_events(file_store, expansion, run, row(1), row(2))
    made = logdir(file_store, tmp_path)
    made.refresh()
    put_events(file_store, expansion, run, row(1), row(2, accuracy=0.25), row(3, accuracy=0.125))
    assert made.refresh() is True
    assert list(last_scalars(made.folder, "accuracy/validation").values()) == [0.125]


def test_a_broken_event_file_is_left_out_and_told(file_store: FileStore, tmp_path: Path) -> None:
    expansion = expansion_of()
    one, other, *_ = runs_of(expansion, "lr")
    file_store.put(events_key(one), b"broken")
    put_events(file_store, expansion, other, row(1))
    made = logdir(file_store, tmp_path)
    made.refresh()
    assert made.num_runs == 1
    assert list(made.lacking) == [one]
    put_events(file_store, expansion, one, row(1))
    made.refresh()
    assert (made.num_runs, made.lacking) == (2, {})


def test_only_the_chosen_stage_is_shown(file_store: FileStore, tmp_path: Path) -> None:
    expansion = expansion_of(record_decision(file_store, GRID.name, decided()))
    for run in expansion.runs():
        put_events(file_store, expansion, run, row(1))
    made = logdir(file_store, tmp_path, Choice(stages=("smoothing",)))
    made.refresh()
    assert [each.name for each in made.folder.iterdir() if each.is_dir()] == ["smoothing"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("optimizer.lr=0.05", "optimizer.lr=0.05"),
        ("weights=a/b.pth", "weights=a∕b.pth"),
        ("..", "_.."),
        ("", "_"),
        ("a\nb\x1b[0m", "a b\N{REPLACEMENT CHARACTER}[0m"),
    ],
    ids=["plain", "slash", "up", "empty", "control"],
)
def test_a_row_s_name_makes_a_folder_s(name: str, wanted: str) -> None:
    assert folder_name(name) == wanted


def test_long_names_stay_apart() -> None:
    names = [folder_name("ä" * 300 + end) for end in "ab"]
    assert names[0] != names[1]
    assert all(len(name.encode()) <= 200 for name in names)


# The command


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FileStore, Grid, Facts]:
    """A folder with a grid, and a store with its data set and what the runs of its first stage left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRID_STORE", raising=False)
    Path("small.yaml").write_text(TEXT.replace('"networks:usual"', "squeezenet1_1"))
    store = FileStore(tmp_path / "store")
    import_pictures(store, tmp_path / "images")
    grid = parse_grid(Path("small.yaml").read_text(), "small.yaml")
    facts = gather_facts(store, wanted(grid))
    expansion = expand(grid, {}, facts)
    for run, accuracy in zip(runs_of(expansion, "lr"), (0.25, 0.75, 0.5, 1.0), strict=True):
        put_attempt(store, run, "0001-a", [row(1, accuracy=accuracy)], STARTED)
        put_events(store, expansion, run, row(1, accuracy=accuracy))
    return store, grid, facts


def test_event_files_are_written_to_a_folder(trained: tuple[FileStore, Grid, Facts], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["tensorboard", "small.yaml", "--stage", "lr", "--export", "curves"])
    assert done.exit_code == 0, done.output
    assert "4 runs written to curves" in done.output
    assert len(last_scalars(tmp_path / "curves", "loss/train")) == 4


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        board = Board(tmp_path, tmp_path / "scratch", port, "title")
        with pytest.raises(SpecError, match=f"--port: got {port}"):
            board.__enter__()
        assert is_taken(port)
        assert free_port() != port


def asked(port: int, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            # the plugin takes a POST from a page of its own alone
            headers = {"Content-Type": "application/json", "X-XSRF-Protected": "1"}
            connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return json.loads(answer.read())
    finally:
        connection.close()


def within(seconds: float, look: Callable[[], Any]) -> Any:
    """What `look` gives as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


@pytest.fixture
def served(trained: tuple[FileStore, Grid, Facts], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`grid tensorboard` as a person starts it, and the port that it tells."""
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "controller.cli", "tensorboard", "small.yaml"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        found = re.search(r"http://localhost:(\d+)/ shows 4 runs of small", told)
        assert found is not None, told
        yield process, int(found[1])
    finally:
        process.terminate()  # killed, it would leave its TensorBoard behind
        process.communicate(timeout=30)


@pytest.mark.slow
def test_a_real_tensorboard_shows_the_grid_and_leaves_nothing(
    served: tuple[subprocess.Popen[str], int], trained: tuple[FileStore, Grid, Facts], tmp_path: Path
) -> None:
    process, port = served
    store, grid, facts = trained
    expansion = expand(grid, {}, facts)
    first, second = (f"lr/{each.name}" for each in expansion.stages[0].experiments)
    runs = [f"{name}/seed {seed}" for name in (first, second) for seed in (0, 1)]
    within(60, lambda: set(runs) <= set(asked(port, "/data/runs")))
    groups = asked(
        port,
        "/data/plugin/hparams/session_groups",
        {
            "startIndex": 0,
            "sliceSize": 100,
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
            "aggregationType": "AGGREGATION_AVG",
        },
    )["sessionGroups"]
    accuracies = {
        group["name"]: metric["value"]
        for group in groups
        for metric in group["metricValues"]
        if metric["name"]["tag"] == "best/validation_accuracy"
    }
    assert accuracies == {first: 0.5, second: 0.75}
    columns = asked(port, "/data/plugin/hparams/experiment", {})["hparamInfos"]
    assert [each["name"] for each in columns] == ["optimizer.lr"]
    run = runs_of(expansion, "lr")[0]  # it goes on meanwhile
    put_events(store, expansion, run, *(each.metrics for each in read_epochs(store, run)), row(2), row(3))
    query = f"/data/plugin/scalars/scalars?run={runs[0].replace(' ', '%20').replace('=', '%3D')}&tag=loss%2Ftrain"
    within(60, lambda: [each[1] for each in asked(port, query)] == [1, 2, 3])
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert not is_taken(port)
    assert not list((tmp_path / "tmp").iterdir())
