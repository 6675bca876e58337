"""A probe says what a run would find, on stdout and where Kubernetes reads a pod's last words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import probe
from trainer.failure import TERMINATION_LIMIT, ExitCode
from trainer.probe import Answer, TorchAnswer
from trainer.store import FileStore


@pytest.fixture
def last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("GRID_TERMINATION_LOG", str(path))
    return path


def test_a_store_that_can_be_used_is_told_with_its_time(
    last_words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "ask_torch", TorchAnswer)  # which takes seconds to load
    store = FileStore(tmp_path / "store")
    assert probe.main(["--store", store.uri]) == ExitCode.OK
    answer = Answer.model_validate_json(last_words.read_text())
    assert json.loads(capsys.readouterr().out) == json.loads(last_words.read_text())
    assert answer.store is not None
    assert answer.store.error is None
    assert answer.store.stamp is not None
    assert abs(answer.store.stamp - answer.time) < 60
    assert answer.store.is_conditional is True
    assert list(store.list("")) == []


def test_a_store_that_cannot_be_used_is_told_with_its_exit_code(
    last_words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ask_torch", TorchAnswer)
    (tmp_path / "file").touch()
    assert probe.main(["--store", f"file://{tmp_path}/file"]) == ExitCode.STORE
    answer = Answer.model_validate_json(last_words.read_text())
    assert answer.store is not None
    assert answer.store.error is not None
    assert answer.store.stamp is None
    assert probe.main(["--store", "ftp://nowhere"]) == ExitCode.SPEC
    assert len(last_words.read_bytes()) < TERMINATION_LIMIT


def test_a_probe_of_its_own_process_says_how_a_run_would_be_computed() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "trainer.probe"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = Answer.model_validate_json(ended.stdout)
    assert answer.threads == 1
    assert answer.store is None
    assert answer.torch.error is None
    assert answer.torch.numerics is not None
    assert answer.torch.numerics.torch_version == answer.torch.version
    assert answer.torch.numerics.threads == 1
