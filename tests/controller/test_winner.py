"""`grid export`, `predict` and `diff`, on runs that were really trained."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pictures import import_pictures, put_run
from torchvision.models import get_model

from controller.cli import main
from controller.commands.winner import complete_run
from controller.export import arguments
from controller.predictions import as_record, csv_head, csv_row
from controller.run_records import find_run
from trainer.__main__ import main as train
from trainer.answers import Answer
from trainer.dataset import DatasetIndex
from trainer.failure import ExitCode, SpecError
from trainer.identity import with_seed
from trainer.model import build_network
from trainer.result import Result as RunResult
from trainer.spec import ExperimentSpec, ModelSpec
from trainer.stop import StopSignal
from trainer.store import FileStore

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "single-runs.md"
CHATTY = """
from torch import nn

print("a word while it is imported")


def build(num_classes):
    print("and one while it builds")
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
"""


class Trained:
    """A store with three runs: of torchvision's, tested; and two of a factory's, with two learning rates."""

    def __init__(self, folder: Path) -> None:
        self.originals = folder / "originals"
        self.store = FileStore(folder / "store")
        self.index: DatasetIndex = import_pictures(self.store, self.originals, per_class=9)
        data = {"name": "pictures", "fingerprint": self.index.fingerprint, "resize": 40, "crop": 36}
        squeezed = {"data": {**data, "normalize": "imagenet"}, "model": {"architecture": "squeezenet1_1"}}
        chatty = {"data": data, "model": {"architecture": "chatty:build"}, "precision": "fp32", "epochs": 2}
        self.squeezenet = put_run(self.store, self.index, **squeezed, precision="fp32", epochs=1)
        self.slow = put_run(self.store, self.index, **chatty, optimizer={"lr": 0.001})
        self.fast = put_run(self.store, self.index, **chatty, optimizer={"lr": 0.1})
        self.planned = put_run(self.store, self.index, **chatty, optimizer={"lr": 0.2})
        for words in ([self.squeezenet], [self.squeezenet, "--test"], [self.slow], [self.fast]):
            assert train([*words, "--store", self.store.uri], stop=StopSignal()) == ExitCode.OK


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("winner")
    (folder / "chatty.py").write_text(CHATTY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRID_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(folder)
        return Trained(folder)


@pytest.fixture
def here(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder from which commands reach the store, and their child processes the factory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRID_STORE", trained.store.uri)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(trained.originals.parent), *filter(None, sys.path)]))
    yield tmp_path
    gc.unfreeze()  # what a command freezes until its process ends would be torch here, whose parts then call it a leak


def call(*words: str, expected: int = 0) -> Result:
    ended = CliRunner().invoke(main, list(words))
    assert ended.exit_code == expected, ended.output
    return ended


# Export


def test_the_lines_that_the_document_shows_give_the_logits_of_the_test(trained: Trained, here: Path) -> None:
    call("export", trained.squeezenet, "-o", "winner")
    (shown,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(shown.partition("\nabout = ")[2].splitlines()) == 5

    with np.load(io.BytesIO(trained.store.get(f"runs/{trained.squeezenet}/test/predictions.npz"))) as arrays:
        logits_NK = arrays["logits"]
    for entry, logits_K in zip(trained.index.entries("test"), logits_NK, strict=True):
        shutil.copy(trained.originals / entry.path, here / "robin.jpg")  # Pillow looks at what it is, not at its name
        names: dict[str, object] = {}
        with torch.inference_mode():
            exec(shown, names)
        found = names["logits"]
        assert isinstance(found, torch.Tensor)
        assert found[0].numpy() == pytest.approx(logits_K, abs=2e-5)


def test_an_export_has_weights_classes_and_transform(trained: Trained, here: Path) -> None:
    ended = call("export", trained.squeezenet)
    folder = here / trained.squeezenet
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.json",
        "classes.txt",
        "model.safetensors",
        "transform.json",
    ]
    assert all(path.name in ended.stdout for path in folder.iterdir())
    stored = RunResult.model_validate_json(trained.store.get(f"results/{trained.squeezenet}.json")).best_weights
    assert stored is not None
    assert (folder / "model.safetensors").read_bytes() == trained.store.get(stored)
    assert json.loads((folder / "classes.json").read_text()) == ["class0", "class1", "class2"]
    assert (folder / "classes.txt").read_text() == "class0\nclass1\nclass2\n"
    assert json.loads((folder / "transform.json").read_text()) == {
        "run": trained.squeezenet,
        "architecture": "squeezenet1_1",
        "arguments": {"num_classes": 3},
        "num_classes": 3,
        "resize": 40,
        "interpolation": "bilinear",
        "crop": 36,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [3, 36, 36],
    }


def test_an_export_goes_over_another_runs_where_it_is_asked_to(trained: Trained, here: Path) -> None:
    call("export", trained.slow, "-o", "out/winner")
    call("export", trained.slow, "-o", "out/winner")
    refused = call("export", trained.fast, "-o", "out/winner", expected=64).stderr
    assert f"which has the export of run {trained.slow}" in refused
    assert "--replace writes over it" in refused
    assert json.loads((here / "out/winner/transform.json").read_text())["run"] == trained.slow
    told = json.loads(call("export", trained.fast, "-o", "out/winner", "--json", "--replace").stdout)
    assert (told["run"], told["folder"]) == (trained.fast, "out/winner")
    assert told["files"] == {path.name: path.stat().st_size for path in (here / "out" / "winner").iterdir()}
    assert json.loads((here / "out/winner/transform.json").read_text())["run"] == trained.fast


def test_an_export_spares_a_file_of_ones_own(trained: Trained, here: Path) -> None:
    (here / "classes.txt").write_text("mine")
    assert "which has another classes.txt" in call("export", trained.fast, "-o", ".", expected=64).stderr
    assert (here / "classes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told(trained: Trained, here: Path) -> None:
    (here / "file").write_text("in the way")
    assert "which cannot be written" in call("export", trained.fast, "-o", "file/winner", expected=64).stderr


def test_damaged_weights_are_not_exported(trained: Trained, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained.store.root, here / "copy")
    store = FileStore(here / "copy")
    monkeypatch.setenv("GRID_STORE", store.uri)
    weights = RunResult.model_validate_json(store.get(f"results/{trained.fast}.json")).best_weights
    assert weights is not None
    store.put(weights, store.get(weights)[:-1])
    assert "damaged" in call("export", trained.fast, "-o", "winner", expected=65).stderr
    assert list((here / "winner").iterdir()) == []
    store.delete(weights)
    assert "has lost its weights" in call("export", trained.fast, expected=65).stderr


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3", "alexnet"])
def test_what_is_exported_builds_the_network_that_was_trained(architecture: str, file_store: FileStore) -> None:
    experiment = ExperimentSpec.model_validate(
        {"data": {"name": "x", "fingerprint": "a" * 64}, "model": {"architecture": architecture}}
    )
    with torch.device("meta"):
        theirs = get_model(architecture, **arguments(with_seed(experiment, 0), 7)).state_dict()
        ours = build_network(ModelSpec(architecture=architecture), 7, 0, file_store).module.state_dict()
    assert {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in ours.items()}


# Predict


@pytest.mark.slow
def test_a_folder_becomes_rows_of_csv_whatever_a_factory_prints(trained: Trained, here: Path) -> None:
    shutil.copytree(trained.originals, here / "many" / "deep")
    (here / "many" / "=broken.png").write_bytes(b"nothing")
    ended = call("predict", trained.fast[:-3], "many", "--top", "2", "-o", "out.csv", expected=65)
    with (here / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2", "error"]
    assert len(rows) == 28
    (broken,) = [row for row in rows if row["error"]]
    assert (broken["file"], broken["class"], broken["probability_2"]) == ("'=broken.png", "", "")
    assert broken["error"].startswith("not an image")
    for row in rows:
        if not row["error"]:
            assert row["file"].startswith("deep/class")
            assert row["class"] != row["class_2"]
            assert 1 >= float(row["probability"]) >= float(row["probability_2"]) >= 0
    assert ended.stdout == ""
    assert f"{trained.fast} on c" in ended.stderr
    assert "=broken.png is skipped: not an image" in ended.stderr
    assert "error: 1 file of 28 could not be read" in ended.stderr


@pytest.mark.slow
def test_what_the_child_refuses_is_told_as_any_error(
    trained: Trained, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(part for part in sys.path if "winner" not in part))
    ended = call("predict", trained.fast, str(trained.originals), "--top", "2", expected=64)
    assert ended.stdout == ""
    assert "error: model.architecture: cannot import 'chatty:build': No module named 'chatty'" in ended.stderr
    assert "hint: the factory's folder must be on PYTHONPATH" in ended.stderr


def test_a_run_without_a_result_is_told_before_torch_is_loaded(trained: Trained, here: Path) -> None:
    for words in (["predict", trained.planned, "."], ["export", trained.planned]):
        ended = call(*words, expected=65)
        assert f"error: run {trained.planned} has no result" in ended.stderr
        assert "hint: `grid status GRID` says how" in ended.stderr


def test_rows_have_as_many_cells_as_their_head_and_no_formulas() -> None:
    answer = Answer(file="-1.png", classes=(("@a", 0.75), ("b", 0.25)))
    assert csv_row(answer, 1) == ["'-1.png", "'@a", "0.750000", ""]
    assert csv_row(answer, 3) == ["'-1.png", "'@a", "0.750000", "b", "0.250000", "", "", ""]
    assert csv_row(Answer(file="a", error="empty file: 0 bytes"), 2)[1:] == ["", "", "", "", "empty file: 0 bytes"]
    assert all(len(csv_head(top)) == len(csv_row(answer, top)) for top in (1, 2, 3, 9))


def test_a_record_has_every_class_with_its_probability_or_the_reason() -> None:
    answer = Answer(file="-1.png", classes=(("@a", 0.75), ("b", 0.25)))
    classes = [{"class": "@a", "probability": 0.75}, {"class": "b", "probability": 0.25}]
    assert as_record(answer) == {"file": "-1.png", "classes": classes, "error": None}
    assert as_record(Answer(file="a", error="empty")) == {"file": "a", "classes": [], "error": "empty"}


@pytest.mark.slow
def test_no_more_classes_are_told_than_there_are(trained: Trained, here: Path) -> None:
    shutil.copytree(trained.originals / "class0", here / "few")
    ended = call("predict", trained.fast, "few", "--top", "99")
    head, first, *_ = csv.reader(io.StringIO(ended.stdout))
    assert head == ["file", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "error"]
    assert "" not in first[:-1]
    assert f"{trained.fast} knows 3 classes" in ended.stderr


@pytest.mark.slow
def test_a_folder_becomes_json_with_the_file_that_could_not_be_read(trained: Trained, here: Path) -> None:
    shutil.copytree(trained.originals / "class0", here / "few")
    (here / "few" / "broken.png").write_bytes(b"nothing")
    ended = call("predict", trained.fast, "few", "--json", expected=65)
    told = {each["file"]: each for each in json.loads(ended.stdout)}
    assert len(told) == 10
    assert told["broken.png"]["classes"] == []
    assert told["broken.png"]["error"].startswith("not an image")
    assert all(len(each["classes"]) == 1 for name, each in told.items() if name != "broken.png")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        pytest.param(["predict", "squeeze", "nowhere"], "'nowhere', which is no folder", id="no folder"),
        pytest.param(["predict", "squeeze", "file"], "'file', which is no folder", id="a file"),
        pytest.param(["predict", "none-1", "."], "expected the id of a run or its beginning", id="no run"),
        pytest.param(["export", "build"], "which 3 runs begin with", id="several runs"),
        pytest.param(["export", "../x"], "expected the id of a run or its beginning", id="no name of a run"),
        pytest.param(["diff", "squeeze", "x"], "got 'x', of which", id="no second run"),
        pytest.param(["predict", "squeeze", ".", "-o", "no/such/out.csv"], "-o: got 'no/such/out.csv'", id="output"),
    ],
)
def test_what_a_command_line_has_wrong_is_told_before_torch_is_loaded(
    trained: Trained, here: Path, words: list[str], text: str
) -> None:
    (here / "file").write_text("")
    ended = call(*words, expected=64)
    assert text in ended.stderr
    assert "hint: " in ended.stderr


# Diff


def test_two_runs_are_shown_beside_each_other(trained: Trained, here: Path) -> None:
    shown = call("diff", trained.slow, trained.fast).stdout
    assert re.search(rf"^spec +{trained.slow} +{trained.fast}\noptimizer\.lr +0\.001 +0\.1\n\n", shown)
    assert "\nnumerics: the same\nversions: the same\nresults " in shown
    assert re.search(r"^validation_loss +\d\S* +\d\S* +[-+]\d\S*$", shown, re.MULTILINE)
    assert "curves: 2 epochs and 2 epochs, which part in epoch 1" in shown
    assert re.search(r"^validation_loss +1 +[-+]\S+ +[12]$", shown, re.MULTILINE)

    told = json.loads(call("diff", trained.slow, trained.fast, "--json").stdout)
    assert told["runs"] == [trained.slow, trained.fast]
    assert told["spec"] == {"optimizer.lr": [0.001, 0.1]}
    (one, other), between = (told["results"]["validation_loss"][key] for key in ("values", "difference"))
    assert between == other - one
    assert told["curves"]["parts_in"] == 1


def test_a_run_and_itself_are_the_same(trained: Trained, here: Path) -> None:
    ended = call("diff", "squeeze", trained.squeezenet)
    assert re.fullmatch(
        r"spec: all \d+ values are the same\nnumerics: the same\nversions: the same\nresults: the same\n"
        r"test: the same\ncurves: 1 epoch and 1 epoch, the same as far as both go\n",
        ended.stdout,
    )
    assert f"both are {trained.squeezenet}" in ended.stderr


def test_a_run_that_was_never_started_is_compared_by_its_spec(trained: Trained, here: Path) -> None:
    ended = call("diff", trained.fast, trained.planned)
    assert re.search(r"^optimizer\.lr +0\.1 +0\.2$", ended.stdout, re.MULTILINE)
    assert f"note: {trained.planned} lacks numerics, a result, epochs: that is not compared" in ended.stderr
    assert "note: both runs lack a test: that is not compared" in ended.stderr
    assert "results" not in ended.stdout


# Names


def test_a_run_is_found_by_its_id_or_a_beginning_that_it_alone_has(file_store: FileStore) -> None:
    for key in ("results/net-00.json", "runs/net-00/spec.yaml", "runs/net-01/spec.yaml", "results/net-000.json"):
        file_store.put(key, b"")
    assert find_run(file_store, "net-00") == "net-00"  # though net-000 begins so too
    assert find_run(file_store, "net-01") == "net-01"
    assert find_run(file_store, "net-000") == "net-000"
    with pytest.raises(SpecError, match="which 3 runs begin with: net-00, net-000, net-01"):
        find_run(file_store, "net")


def test_runs_with_a_result_complete(trained: Trained, here: Path) -> None:
    context = main.make_context("grid", ["export", "x"])
    option = main.commands["export"].params[0]

    def completed(beginning: str) -> list[str]:
        return [item.value for item in complete_run(context, option, beginning)]

    assert completed("squ") == [trained.squeezenet]
    assert completed("") == sorted([trained.squeezenet, trained.slow, trained.fast])
    assert completed("a/b") == []
