"""The command line, from its words to its output and exit code, on a store in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from results import result

from controller.cli import SECTIONS, main
from controller.commands.data import ImportProgress
from controller.commands.runs import counted_work
from controller.commands.surface import Waits, tell_misfits
from controller.gc import find_unwanted, read_contents, remove
from controller.standing import State, Work
from trainer.dataset import dataset_lock, load_index
from trainer.failure import Failure
from trainer.lease import LeaseRecord, lease_key
from trainer.store import FileStore, Retry

GRID = """
grid: tiny
description: two learning rates
base:
  data: {name: shades, resize: 8, crop: 8}
  model: {architecture: squeezenet1_1}
  batch_size: 4
  epochs: 1
seeds: 2
stages:
  - name: rate
    vary: {optimizer.lr: [1e-3, 1e-2]}
  - name: best
    test: {best: 1}
"""

Call = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images and a grid, and no store named in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRID_STORE", raising=False)
    for name, shade in (("dark", 30), ("light", 220)):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (9, 8), (shade + number,) * 3).save(tmp_path / "shades" / name / f"{number}.png")
    (tmp_path / "tiny.yaml").write_text(GRID)
    return tmp_path


def call(*words: str, expected: int = 0) -> Result:
    """What `grid WORDS` prints; it must exit as expected."""
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expected, result.output
    return result


def answer(*words: str, expected: int = 0) -> object:
    """The JSON that `grid WORDS --json` prints on stdout."""
    return json.loads(call(*words, "--json", expected=expected).stdout)


@pytest.fixture
def imported(folder: Path) -> Path:
    call("data", "import", "shades", "shades", "--split", "fraction=0.2")
    return folder


def store_of(folder: Path) -> FileStore:
    return FileStore(folder / "store")


def put_result(store: FileStore, run: str, spec: dict[str, object], seed: int, loss: float) -> None:
    written = result(run, spec=spec, seed=seed, train_loss=loss, validation_loss=loss)
    store.put(f"results/{run}.json", written.model_dump_json().encode())


def planned_runs(stage: str = "rate") -> list[str]:
    plan = answer("plan", "tiny.yaml")
    assert isinstance(plan, dict)
    rows = next(each["rows"] for each in plan["stages"] if each["name"] == stage)
    return [run for row in rows for run in row["runs"]]


def test_help_lists_every_command_with_a_line_and_the_exit_codes() -> None:
    text = call("--help").output
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(main.commands)
    for name in listed:
        assert f"\n  {name} " in text
    assert "..." not in text.partition("\nCompare:")[2]  # no line is cut
    assert "75  stopped" in text


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in main.commands.items():
        inner = getattr(command, "commands", None)
        found += [(name, each) for each in inner] if inner else [(name,)]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_help_of_each_command_has_an_example_of_it(words: tuple[str, ...]) -> None:
    text = call(*words, "-h").output
    assert "Example" in text
    assert f"grid {' '.join(words)}" in text.partition("Example")[2]


def test_help_answers_without_loading_what_takes_time() -> None:
    code = (
        "import sys\nfrom controller.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'boto3', 'rich', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_no_command_of_the_controller_loads_torch() -> None:
    code = (
        "import sys, importlib, pkgutil, controller\n"
        "for each in pkgutil.walk_packages(controller.__path__, 'controller.'):\n"
        "    importlib.import_module(each.name)\n"
        "print(sorted({'torch', 'torchvision', 'boto3', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_shipped_grids_are_listed(folder: Path) -> None:
    found = answer("list")
    assert isinstance(found, list)
    forms = {each["grid"]: each["forms"] for each in found if each["from"] == "shipped"}
    assert (forms["demo"], forms["from_scratch"], forms["report"]) == ([], ["mini"], ["mini"])
    assert "also report.mini" in " ".join(call("list").stdout.split())


@pytest.mark.parametrize("named", ["from_scratch.mini", "report.mini"])
def test_a_grid_is_named_in_its_form(folder: Path, named: str) -> None:
    shown = call("show", named).stdout
    assert f"\ngrid: {named}\n" in shown
    assert "images_per_class: 2" in shown


def test_a_form_that_there_is_not_is_told_with_the_nearest(folder: Path) -> None:
    assert "did you mean 'from_scratch.mini'?" in call("show", "from_scratch.mimi", expected=64).stderr


def test_a_grid_of_the_store_is_listed_and_can_be_named(imported: Path) -> None:
    store_of(imported).put("grids/tiny/grid.yaml", GRID.encode())
    assert "tiny" in call("list").stdout
    assert "two learning rates" in call("show", "tiny").stdout


def test_a_shown_grid_is_a_grid_file(folder: Path) -> None:
    text = call("show", "tiny.yaml", "--set", "epochs=7", "--as", "longer").stdout
    (folder / "longer.yaml").write_text(text)
    assert "# stage rate: 2 rows with 2 seeds, starting from the base" in text
    shown = answer("show", "longer.yaml")
    assert isinstance(shown, dict)
    assert (shown["grid"], shown["base"]["epochs"]) == ("longer", 7)


def test_an_error_has_a_hint_and_an_exit_code_and_no_traceback(folder: Path) -> None:
    result = call("plan", "tiny.yaml", expected=65)
    assert result.stdout == ""
    assert result.stderr.startswith("error: data set 'shades'")
    assert "\nhint: import it with `grid data import shades" in result.stderr


@pytest.mark.parametrize(
    ("words", "expected", "text"),
    [
        pytest.param(["plan", "dem"], 64, "did you mean 'demo'?", id="a grid that is nearly named"),
        pytest.param(["status", "nope"], 64, "(which has none yet), or a file", id="a grid that is nowhere"),
        pytest.param(["show", "demo", "--as", "a b"], 64, "error: --as: got 'a b', expected up to 63", id="a new name"),
        pytest.param(["plan", "no/such.yaml"], 64, "no such file", id="a file that is not there"),
        pytest.param(["plan", "no/such/" + "x" * 300 + ".yaml"], 64, "no such file", id="a name too long for a file"),
        pytest.param(["plan", "./shades"], 64, "shades: a folder, expected a file", id="a folder"),
        pytest.param(["--store", "", "list"], 64, "store: got ''", id="a variable that was never set"),
        pytest.param(["status", "demo", "--only", ""], 2, "expected a pattern", id="no pattern"),
        pytest.param(["--store", "s3://b/x", "list"], 64, "which 'b' has not", id="no name of a bucket"),
        pytest.param(["show", "demo", "--set", "lr"], 64, "got 'lr', expected key=value", id="no assignment"),
        pytest.param(["show", "demo", "--set", "epoch=3"], 64, "epochs", id="a key that is nearly right"),
        pytest.param(["--store", "ftp://x", "gc"], 64, "expected file:///folder", id="another kind of store"),
        pytest.param(["data", "show", "none"], 65, "grid data import none", id="no such data set"),
        pytest.param(["data", "import", "x", "shades", "--split", "half"], 2, "expected every-third", id="a split"),
        pytest.param(["data", "import", "x", "shades", "--list", "a"], 2, "expected train=FILE", id="a list"),
        pytest.param(["plan"], 2, "Missing argument 'GRID'", id="no grid"),
        pytest.param(["gc", "--forget", "none"], 64, "expected a grid in", id="a grid to forget"),
    ],
)
def test_what_is_wrong_is_told_with_the_cure(folder: Path, words: list[str], expected: int, text: str) -> None:
    result = call(*words, expected=expected)
    assert text in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("before", "after", "environment", "where"),
    [
        pytest.param([], [], None, "store", id="by default"),
        pytest.param([], [], "file://./named", "named", id="by the environment"),
        pytest.param(["--store", "file://./first"], [], "file://./named", "first", id="before the command"),
        pytest.param([], ["--store", "file://./last"], "file://./named", "last", id="after the command"),
        pytest.param(["--store", "file://./first"], ["--store", "file://./last"], None, "last", id="twice"),
    ],
)
def test_the_store_is_named_before_or_after_the_command(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
    after: list[str],
    environment: str | None,
    where: str,
) -> None:
    if environment:
        monkeypatch.setenv("GRID_STORE", environment)
    call(*before, "data", "import", "shades", "shades", *after)
    assert (folder / where / "datasets" / "shades" / "index.json").is_file()


def test_an_import_tells_its_parts_and_a_second_one_changes_nothing(folder: Path) -> None:
    words = ("data", "import", "shades", "shades")
    assert "20 images of 2 classes (8 train, 8 validation, 4 test)" in call(*words).stdout
    assert "nothing to do" in call(*words).stdout


def test_a_bad_image_is_refused_by_path_or_left_out_and_told(folder: Path) -> None:
    (folder / "shades" / "dark" / "\x1b[31mred.png").write_bytes(b"no image")
    refused = call("data", "import", "shades", "shades", expected=65)
    assert "red.png" in refused.stderr
    assert "\x1b" not in refused.stderr
    skipped = call("data", "import", "shades", "shades", "--on-bad", "skip")
    assert "left out: dark/" in skipped.stderr
    assert "\x1b" not in skipped.output
    shown = call("data", "show", "shades").stdout
    assert "left out (1):" in shown
    assert "\x1b" not in shown


def test_a_data_set_is_shown_class_by_class(imported: Path) -> None:
    lines = call("data", "show", "shades").stdout.splitlines()
    assert [line.split() for line in lines if line.startswith(("dark", "light", "all"))] == [
        ["dark", "4", "4", "2"],
        ["light", "4", "4", "2"],
        ["all", "8", "8", "4"],
    ]
    summary = answer("data", "show", "shades")
    assert isinstance(summary, dict)
    assert summary["classes"] == ["dark", "light"]
    assert len(str(summary["fingerprint"])) == 64


def test_a_plan_counts_what_the_store_has_already(imported: Path) -> None:
    runs = planned_runs()
    assert len(set(runs)) == 4
    put_result(store_of(imported), runs[0], {}, 0, 1.0)
    plan = answer("plan", "tiny.yaml")
    assert isinstance(plan, dict)
    assert plan["new_now"] == 3
    assert "3 to train" in call("plan", "tiny.yaml").stdout


def test_seeds_and_values_change_what_is_planned(imported: Path) -> None:
    before = planned_runs()
    plan = answer("plan", "tiny.yaml", "--seeds", "3", "--set", "epochs=2")
    assert isinstance(plan, dict)
    assert plan["new_now"] == 6
    assert not set(before) & {run for row in plan["stages"][0]["rows"] for run in row["runs"]}


def test_status_tells_what_is_done_and_what_failed(imported: Path) -> None:
    store, runs = store_of(imported), planned_runs()
    put_result(store, runs[0], {}, 0, 1.0)
    failure = Failure(run=runs[1], attempt=None, exit_code=70, reason="diverged", message="not finite", final=True)
    store.put(f"failures/{runs[1]}.json", failure.model_dump_json().encode())
    status = answer("status", "tiny.yaml")
    assert isinstance(status, dict)
    assert status["counts"] == {"done": 1, "running": 0, "waiting": 2, "failed": 1}
    first = status["stages"][0]["experiments"][0]["runs"]
    assert [run["state"] for run in first] == ["done", "failed"]
    assert first[1]["reason"] == "diverged: not finite"
    text = call("status", "tiny.yaml").stdout
    assert "failed: diverged: not finite" in text


@pytest.mark.parametrize("command", ["status", "table", "report"])
def test_what_there_is_of_a_grid_is_shown_without_its_data(imported: Path, command: str) -> None:
    store, runs = store_of(imported), planned_runs()
    call("status", "tiny.yaml")
    for run in runs:
        index = load_index(store, "shades")
        done = result(run, spec={"data": {"name": "shades"}}, data_fingerprint=index.fingerprint)
        store.put(f"results/{run}.json", done.model_dump_json().encode())
    store.put("grids/tiny/grid.yaml", GRID.encode())
    for entry in list(store.list("datasets/")):
        store.delete(entry.key)
    told = call(command, "tiny.yaml")
    assert "no datasets/shades" not in told.stderr  # nothing is left to train
    store.delete(f"results/{runs[0]}.json")
    told = call(command, "tiny.yaml")
    assert "import it with `grid data import shades FOLDER`" in " ".join(told.stderr.split())
    assert "decision" not in told.stderr


@pytest.mark.parametrize(
    ("states", "told"),
    [
        pytest.param({Work("a", False): "done", Work("b", False): "done"}, "2 done", id="runs"),
        pytest.param(
            {Work("a", False): "done", Work("b", False): "failed", Work("a", True): "waiting"},
            "1 done, 1 waiting, 1 failed (2 runs, 1 test)",
            id="runs-and-tests",
        ),
        pytest.param({}, "nothing to do yet", id="nothing"),
    ],
)
def test_runs_and_tests_are_counted_apart(states: dict[Work, State], told: str) -> None:
    assert counted_work(states) == told


def test_decisions_that_do_not_fit_are_one_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell_misfits(["one", "two", "three", "four", "five"], store_of(folder))
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("note: left out: 5 decisions in ")
    assert "one, two, three and 2 more; `grid run` with --update decides anew, with --as NAME under another" in told
    tell_misfits([], store_of(folder))
    assert capsys.readouterr().err == ""


def put_failure(store: FileStore, run: str, **changes: object) -> None:
    values = {"attempt": None, "exit_code": 70, "reason": "diverged", "message": "not finite", "final": True}
    store.put(
        f"failures/{run}.json", Failure.model_validate({"run": run, **values, **changes}).model_dump_json().encode()
    )


def test_status_and_logs_show_the_last_words_of_a_run_without_a_log(imported: Path) -> None:
    store, runs = store_of(imported), planned_runs()
    words = [f"line {number}" for number in range(8)]
    put_failure(store, runs[0], exit_code=137, reason="crashed", message="ended by SIGKILL", log_tail=words)
    put_failure(store, runs[2], log_tail=["epoch 1 of 1"])
    status = answer("status", "tiny.yaml")
    assert isinstance(status, dict)
    first, untouched = status["stages"][0]["experiments"][0]["runs"]
    assert first["failure"]["log_tail"] == words
    assert untouched["failure"] is None
    shown = call("status", "tiny.yaml").stdout.splitlines()
    assert [line.strip() for line in shown if "line " in line] == words[3:]
    assert not [line for line in shown if "epoch 1 of 1" in line]  # the trainer itself said why
    printed = call("logs", runs[0])
    assert printed.stdout.splitlines() == words
    assert "it left no log" in printed.stderr
    put_failure(store, runs[1], hint="a smaller learning rate may help")
    assert call("logs", runs[1]).stdout.splitlines() == [
        "diverged: not finite",
        "hint: a smaller learning rate may help",
    ]


def test_status_fits_the_terminal_and_says_what_to_do(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    store, runs = store_of(imported), planned_runs()
    message = f"the loss {'was not finite and ' * 6}\n\x1b[31mstayed so"
    put_failure(store, runs[1], message=message, hint="a smaller learning rate may help")
    put_failure(store, runs[2], reason="crashed", message="broke", exit_code=1, attempt="0003-ab")
    shown = call("status", "tiny.yaml")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "\x1b" not in shown.output
    assert "    failed: diverged: the loss was not finite and" in shown.stdout
    assert "[31mstayed so\n" in shown.stdout
    assert "    hint: a smaller learning rate may help\n" in shown.stdout
    assert f"see runs/{runs[2]}/attempts/0003-ab/log.txt" in " ".join(shown.stdout.split())
    assert "`grid retry tiny` lets what failed be tried again" in shown.stderr


def test_a_row_with_one_run_is_told_on_one_line(imported: Path) -> None:
    (imported / "tiny.yaml").write_text(GRID.replace("seeds: 2", "seeds: 1"))
    store, runs = store_of(imported), planned_runs()
    put_result(store, runs[0], {}, 0, 1.0)
    put_failure(store, runs[1])
    lines = call("status", "tiny.yaml").stdout.splitlines()
    assert [" ".join(line.split()) for line in lines if "lr=" in line] == [
        "lr=0.001 done",
        "lr=0.01 failed: diverged: not finite",
    ]


@pytest.mark.parametrize("command", ["plan", "status", "table", "retry"])
def test_a_pattern_that_fits_nothing_is_an_error_of_every_command(imported: Path, command: str) -> None:
    told = call(command, "tiny.yaml", "--only", "lr=0.02", expected=64).stderr
    assert "--only: got 'lr=0.02', which fits no row of grid tiny: lr=0.001, lr=0.01" in told
    assert "did you mean 'lr=0.01'?" in told


def test_retry_clears_failures_and_says_which(imported: Path) -> None:
    store, runs = store_of(imported), planned_runs()
    failure = Failure(run=runs[1], attempt=None, exit_code=70, reason="diverged", message="not finite", final=True)
    store.put(f"failures/{runs[1]}.json", failure.model_dump_json().encode())
    cleared = answer("retry", "tiny.yaml")
    assert isinstance(cleared, dict)
    assert list(cleared["cleared"]) == [runs[1]]
    assert "nothing failed for good" in call("retry", "tiny.yaml").stdout


def test_retry_clears_what_is_chosen(imported: Path) -> None:
    store, runs = store_of(imported), planned_runs()
    for run in (runs[0], runs[2]):
        failure = Failure(run=run, attempt=None, exit_code=70, reason="diverged", message="not finite", final=True)
        store.put(f"failures/{run}.json", failure.model_dump_json().encode())
    assert "nothing failed for good" in call("retry", "tiny.yaml", "--stage", "best").stdout
    cleared = answer("retry", "tiny.yaml", "--stage", "rate", "--only", runs[2])
    assert isinstance(cleared, dict)
    assert list(cleared["cleared"]) == [runs[2]]
    assert "--only" in call("retry", "tiny.yaml", "--only", "none", expected=64).stderr


def test_a_plan_counts_only_what_is_chosen(imported: Path) -> None:
    plan = answer("plan", "tiny.yaml", "--stage", "rate", "--only", "*0.01")
    assert isinstance(plan, dict)
    assert [each["name"] for each in plan["stages"]] == ["rate"]
    assert plan["new_now"] == 2
    assert plan["choice"] == {"only": "*0.01", "stages": ["rate"]}
    assert "only what --only '*0.01' takes is counted" in call("plan", "tiny.yaml", "--only", "*0.01").stdout
    assert "expected a stage" in call("plan", "tiny.yaml", "--stage", "none", expected=64).stderr


def test_a_run_under_training_runs_for_every_command(imported: Path) -> None:
    store, run = store_of(imported), planned_runs()[0]
    failure = Failure(run=run, attempt=None, exit_code=70, reason="diverged", message="not finite", final=True)
    store.put(f"failures/{run}.json", failure.model_dump_json().encode())
    now = datetime.now(UTC)
    lease = LeaseRecord(holder="node-1:7", host="node-1", attempt="0002-x", heartbeat=now, epoch=2)
    store.put(lease_key(run), lease.model_dump_json().encode())
    status, table = answer("status", "tiny.yaml"), answer("table", "tiny.yaml")
    assert isinstance(status, dict)
    assert isinstance(table, dict)
    told = status["stages"][0]["experiments"][0]["runs"][0]
    assert (told["state"], told["reason"]) == ("running", "running on node-1:7, epoch 3")
    assert told.pop("failure") is None  # which a table does not have
    assert table["stages"][0]["rows"][0]["runs"][0] == told


def test_a_stage_without_a_decision_has_nothing_to_reopen(imported: Path) -> None:
    assert "has no decision" in call("reopen", "tiny.yaml", "rate").stdout
    assert "expected a stage" in call("reopen", "tiny.yaml", "none", expected=64).stderr


def test_a_decision_that_is_reopened_is_gone(imported: Path) -> None:
    store, runs = store_of(imported), planned_runs()
    seen = [(runs[:2], 2.0), (runs[2:], 1.0)]
    plan = answer("plan", "tiny.yaml")
    assert isinstance(plan, dict)
    names = [row["experiment"] for row in plan["stages"][0]["rows"]]
    decision = {
        "stage": "rate",
        "kept": [names[1]],
        "because": "lowest validation_loss",
        "metric": "validation_loss",
        "saw": [
            {"experiment": name, "runs": ids, "value": value} for name, (ids, value) in zip(names, seen, strict=True)
        ],
        "time": datetime.now(UTC).isoformat(),
    }
    store.put("grids/tiny/grid.yaml", GRID.encode())
    store.put("grids/tiny/decisions/rate.json", json.dumps(decision).encode())
    assert answer("reopen", "tiny", "rate") == {"grid": "tiny", "open": ["rate"]}
    assert not list(store.list("grids/tiny/decisions/"))


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("terminal", "tiny: seeds 0, 1"),
        ("markdown", "# tiny"),
        ("csv", "grid,stage,experiment,runs,seeds,state,reason"),
        ("json", '{"grid": "tiny"'),
        ("svg", "<svg"),
    ],
)
def test_a_table_is_written_in_each_form(imported: Path, form: str, start: str) -> None:
    for run in planned_runs()[:2]:
        put_result(store_of(imported), run, {}, 0, 1.0)
    assert call("table", "tiny.yaml", "--format", form).stdout.startswith(start)
    call("table", "tiny.yaml", "--format", form, "-o", "out.txt")
    assert (imported / "out.txt").read_text().startswith(start)


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["-o", "out.md"], "# tiny"),
        (["-o", "out.CSV"], "grid,stage,experiment"),
        (["-o", "out.json"], '{"grid": "tiny"'),
        (["-o", "out.svg"], "<svg"),
        (["-o", "out.txt"], "tiny: seeds 0, 1"),
        (["-o", "out.md", "--format", "csv"], "grid,stage,experiment"),
        (["-o", "out.md", "--json"], '{"grid": "tiny"'),
        (["-o", "out", "--format", "markdown"], "# tiny"),
    ],
    ids=" ".join,
)
def test_the_ending_of_a_file_chooses_the_form_of_a_table(imported: Path, words: list[str], start: str) -> None:
    assert "note: written to out" in call("table", "tiny.yaml", *words).stderr
    assert (imported / words[1]).read_text().startswith(start)


@pytest.mark.parametrize(
    ("output", "message", "hint"),
    [
        ("out.pdf", "expected a name that ends in .md, .csv, .json, .svg, .txt", "--format terminal|markdown"),
        ("none/out.md", "got 'none/out.md', which cannot be written: No such file", "name a file in a folder"),
        ("shades.md", "which cannot be written: Is a directory", "name a file in a folder"),
    ],
    ids=["another-ending", "no-folder", "a-folder"],
)
def test_a_table_that_cannot_be_written_is_told(imported: Path, output: str, message: str, hint: str) -> None:
    (imported / "shades.md").mkdir()
    told = call("table", "tiny.yaml", "-o", output, expected=64).stderr
    assert message in told
    assert hint in told


def test_a_table_and_a_status_read_a_data_set_s_index_once(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    get = FileStore.get

    def counted(store: FileStore, key: str) -> bytes:
        read.append(key)
        return get(store, key)

    monkeypatch.setattr(FileStore, "get", counted)
    for command in ("table", "status"):
        call(command, "tiny.yaml")
        assert read.count("datasets/shades/index.json") == 1
        read.clear()


def test_a_table_shows_only_what_is_asked_for(imported: Path) -> None:
    table = answer("table", "tiny.yaml", "--stage", "rate", "--only", "*0.01")
    assert isinstance(table, dict)
    assert [each["stage"] for each in table["stages"]] == ["rate"]
    assert len(table["stages"][0]["rows"]) == 1
    one = answer("table", "tiny.yaml", "--stage", "rate", "--stage", "best", "--only", planned_runs()[3])
    assert isinstance(one, dict)
    assert [len(each["rows"]) for each in one["stages"]] == [1, 0]
    assert "expected a stage" in call("table", "tiny.yaml", "--stage", "none", expected=64).stderr


def test_names_from_files_are_no_markup(imported: Path) -> None:
    text = GRID.replace("vary: {optimizer.lr: [1e-3, 1e-2]}", "points: [{name: '[bold]x[/]', optimizer.lr: 1e-3}]")
    (imported / "tiny.yaml").write_text(text)
    assert "[bold]x[/]" in call("table", "tiny.yaml").stdout
    assert "[bold]x[/]" in call("status", "tiny.yaml").stdout
    assert "[bold]x[/]" in call("table", "tiny.yaml", "--format", "svg").stdout.replace("&#160;", " ")


def test_the_store_s_grid_is_shown_where_the_file_differs(imported: Path) -> None:
    store_of(imported).put("grids/tiny/grid.yaml", GRID.replace("seeds: 2", "seeds: 1").encode())
    result = call("status", "tiny.yaml")
    assert "differs from tiny.yaml" in result.stderr
    assert "2 waiting" in result.stdout


def test_gc_shows_first_and_removes_only_when_told_to(imported: Path) -> None:
    store = store_of(imported)
    store.put("grids/tiny/grid.yaml", GRID.encode())
    wanted = planned_runs()[0]
    for run in (wanted, "alexnet-000000000000"):
        store.put(f"runs/{run}/spec.yaml", b"seed: 0\n")
    assert "run alexnet-000000000000: of no grid" in call("gc").stdout
    assert store.get("runs/alexnet-000000000000/spec.yaml")
    found = answer("gc", "--delete")
    assert isinstance(found, dict)
    assert [(each["name"], each["state"]) for each in found["unwanted"]] == [("alexnet-000000000000", "removed")]
    assert [entry.key for entry in store.list("runs/")] == [f"runs/{wanted}/spec.yaml"]


def test_gc_removes_no_run_while_a_grid_cannot_be_read_and_goes_on_with_what_is_of_nobody(imported: Path) -> None:
    store = store_of(imported)
    store.put("grids/torn/grid.yaml", b"grid: [")
    store.put("runs/alexnet-000000000000/spec.yaml", b"seed: 0\n")
    store.put("datasets/shades/shard-train-0.tar", b"of an import that never ended")
    make_old(imported / "store")
    told = call("gc", "--delete", "--datasets")
    assert "shards shades: of an import that was replaced or never ended" in told.stdout
    assert "removed 1 thing" in told.stdout
    assert store.get("runs/alexnet-000000000000/spec.yaml")
    assert store.get("datasets/shades/index.json")
    call("gc", "--delete", "--forget", "torn")
    assert list(store.list("grids/")) + list(store.list("runs/")) == []


def test_gc_says_how_to_get_past_a_grid_that_cannot_be_read(imported: Path) -> None:
    store_of(imported).put("grids/torn/grid.yaml", b"grid: [")
    told = call("gc")
    said = " ".join(told.stderr.split())
    assert "warning: grid torn: what it needs cannot be told: " in said
    assert "`grid gc --forget torn` counts the grid as gone; until then all runs and data sets stay" in said
    assert told.stdout == "nothing to remove: grids may want all there is\n"
    answered = answer("gc")
    assert isinstance(answered, dict)
    assert list(answered["untold_grids"]) == ["torn"]
    assert "torn" in call("list").stdout


def test_gc_shows_and_empties_the_cache_of_decoded_images(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRID_CACHE", str(imported / "cache"))
    (imported / "cache" / "images").mkdir(parents=True)
    image = imported / "cache" / "images" / "shades.rgb"
    image.write_bytes(b"x" * 8192)
    told = " ".join(call("gc", "--cache").stdout.split())
    assert f"keeps 8.2 kB of decoded images in {imported}/cache/images; `grid gc --cache --delete`" in told
    assert image.exists()
    assert "cache" not in call("gc", "--delete").output
    assert image.exists()
    answered = answer("gc", "--cache", "--delete")
    assert isinstance(answered, dict)
    assert answered["cache"] == {"folder": f"{imported}/cache/images", "bytes": 8192, "bytes_removed": 8192}
    assert not image.exists()


def test_gc_leaves_data_sets_alone_unless_told_to(imported: Path) -> None:
    assert "nothing to remove" in call("gc", "--datasets").stdout
    make_old(imported / "store")
    assert "nothing to remove" in call("gc", "--delete").stdout
    assert "data set shades: named by no grid" in call("gc", "--datasets").stdout
    lock = dataset_lock(store_of(imported), "shades")
    assert lock.acquire()
    held = call("gc", "--datasets", "--delete")
    lock.release()
    assert "data set shades is being imported and stays" in held.stderr
    assert "removed 0 things" in held.stdout
    assert "removed 1 thing" in call("gc", "--datasets", "--delete").stdout
    assert list(store_of(imported).list("datasets/")) == []


def make_old(store: Path) -> None:
    for path in store.rglob("*"):
        os.utime(path, (0, 0))


def test_gc_keeps_what_a_grid_came_to_want_while_it_removed(imported: Path) -> None:
    store = store_of(imported)
    for run in (planned_runs()[0], "alexnet-000000000000"):
        store.put(f"runs/{run}/spec.yaml", b"seed: 0\n")
    make_old(imported / "store")
    items = find_unwanted(read_contents(store, {}), {}, time.time(), data_sets=True)
    assert [item.kind for item in items] == ["data set", "run", "run"]
    store.put("grids/tiny/grid.yaml", GRID.encode())
    done = remove(store, items)
    assert [item.name for item in done.removed] == ["alexnet-000000000000"]
    assert [item.name for item in done.wanted] == ["shades", planned_runs()[0]]
    assert remove(store, done.wanted, forget=["tiny"]).removed == done.wanted


def retried(tries: int, kind: str = "connection") -> Retry:
    return Retry("reading", "grids/x/grid.yaml", kind, tries, 1.0, "refused")


def test_a_wait_names_the_server_and_how_long_it_will_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    waits = Waits("http://127.0.0.1:9", 15.0, clock=lambda: now[0])
    for tries in range(1, 13):
        waits(retried(tries))
        now[0] += 1.0
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in told] == [
        "trying for another 14 s",
        "trying for another 9 s",
        "trying for another 4 s",
    ]
    expected = "waiting for http://127.0.0.1:9, which gives no answer (connection, reading grids/x/grid.yaml)"
    assert told[0].startswith(expected)


def test_one_request_that_is_sent_again_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    waits = Waits("http://127.0.0.1:9", 15.0)
    waits(retried(1))
    waits(retried(1))
    assert capsys.readouterr().err == ""


def test_a_command_that_only_reads_gives_up_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_ACCESS_KEY_ID", "a")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr("controller.commands.runs.READING_SECONDS", 2.0)
    told = call("--store", "s3://bucket/lab", "status", "tiny.yaml", expected=69).stderr
    assert "expected an answer from http://127.0.0.1:9" in told
    assert "hint: is the server up?" in told


def complete(words: list[str], incomplete: str = "") -> list[str]:
    """What the shell would offer after `grid WORDS`."""
    line = " ".join(["grid", *words, incomplete])
    environment = {"_GRID_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) + 1)}
    result = CliRunner().invoke(main, prog_name="grid", env=environment)
    return [item.partition(",")[2] for item in result.stdout.splitlines() if item]


@pytest.mark.parametrize(
    ("words", "start", "offered"),
    [
        pytest.param([], "re", ["render", "reopen", "report", "resume", "retry"], id="commands"),
        pytest.param(["plan"], "de", ["demo", "de"], id="grids"),
        pytest.param(["reopen", "tiny.yaml"], "", ["rate", "best"], id="stages"),
        pytest.param(["run", "tiny.yaml", "--stage"], "r", ["rate"], id="stages of an option"),
        pytest.param(["data", "show"], "", ["shades"], id="data sets"),
        pytest.param(["data", "import", "x", "y", "--split"], "f", ["folders", "fraction"], id="rules"),
        pytest.param(["reopen", "none"], "", [], id="no such grid"),
    ],
)
def test_names_complete(imported: Path, words: list[str], start: str, offered: list[str]) -> None:
    assert sorted(complete(words, start)) == sorted(offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_asks_the_program(shell: str) -> None:
    assert "_GRID_COMPLETE" in call("completion", shell).stdout


class Terminal:
    """What a terminal was sent."""

    def __init__(self, is_terminal: bool) -> None:
        self.text = ""
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("is_terminal", "expected"),
    [
        (True, "\rimporting [########################] 10 of 10 images, 5 B\n"),
        (False, "importing 10 of 10 images, 5 B\n"),
    ],
    ids=["terminal", "file"],
)
def test_an_import_s_progress_is_redrawn_on_a_terminal_only(is_terminal: bool, expected: str) -> None:
    out = Terminal(is_terminal)
    progress = ImportProgress(out)  # type: ignore[arg-type]
    progress("import", 10, 10, 5)
    progress.close()
    assert out.text == expected


@pytest.mark.parametrize(
    ("is_terminal", "expected"),
    [(True, "\rlooking for images: 2,000 files so far\n"), (False, "looking for images: 2,000 files so far\n")],
    ids=["terminal", "file"],
)
def test_a_long_look_for_images_is_told_and_a_short_one_is_not(
    is_terminal: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, moments = Terminal(is_terminal), iter((100.0, 100.1, 106.0))
    monkeypatch.setattr("controller.commands.data.time.monotonic", lambda: next(moments))
    progress = ImportProgress(out)  # type: ignore[arg-type]
    progress("list", 1, None, 0)
    progress("list", 20, None, 0)
    assert out.text == ""
    progress("list", 2000, None, 0)
    progress.close()
    assert out.text == expected


@pytest.mark.slow
def test_a_grid_is_run_and_compared(imported: Path) -> None:
    (imported / "tiny.yaml").write_text(GRID.replace("seeds: 2", "seeds: 1").replace("8, crop: 8", "32, crop: 32"))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "controller.cli", "run", "tiny.yaml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["counts"] == {"done": 3, "running": 0, "waiting": 0, "failed": 0}
    assert status["stages"][0]["kept"]
    assert (imported / "store" / "grids" / "tiny" / "table.csv").is_file()
    assert "best" in call("table", "tiny").stdout


def test_a_plan_without_its_weights_says_which_runs_lack_them_and_run_refuses_with_the_same_cure(
    imported: Path,
) -> None:
    text = GRID.replace(
        "vary: {optimizer.lr: [1e-3, 1e-2]}", "vary: {model.weights: [null, squeezenet1_1-b8a52dc0.pth]}"
    )
    (imported / "tiny.yaml").write_text(text)
    cure = "`grid weights import https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth`"
    planned = call("plan", "tiny.yaml", expected=65)
    assert "squeezenet1_1-b8a52dc0.pth is missing: 2 runs start from it" in planned.stdout
    assert "lacks its weights" in planned.stdout
    assert cure in " ".join(planned.stderr.split())
    for command in ("run", "submit"):
        refused = call(command, "tiny.yaml", expected=65)
        assert cure in " ".join(refused.stderr.split())
    assert [entry.key for entry in store_of(imported).list("grids/")] == []
    assert [entry.key for entry in store_of(imported).list("runs/")] == []
