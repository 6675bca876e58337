"""A stop is heard from the process's first instruction on."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.failure import ExitCode, Stopped
from trainer.identity import with_seed, write_spec
from trainer.spec import ExperimentSpec
from trainer.stop import StopSignal


def write_run(path: Path) -> Path:
    values = {"data": {"name": "none", "fingerprint": "0" * 64}, "model": {"architecture": "alexnet"}}
    path.write_text(write_spec(with_seed(ExperimentSpec.model_validate(values), 0)), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_that_comes_while_the_first_modules_load_stops_the_run(tmp_path: Path, number: signal.Signals) -> None:
    spec = write_run(tmp_path / "spec.yaml")
    command = [sys.executable, "-X", "importtime", "-m", "trainer", str(spec), "--store", f"file://{tmp_path}/store"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        loaded = []
        for line in process.stderr:  # a line for each module, once it is loaded
            loaded.append(line.rpartition("|")[2].strip())
            if "trainer.stop" in loaded and loaded[-1] != "trainer.stop":
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == ExitCode.STOPPED, rest
    assert f"stopped: told to stop by {number.name}" in rest
    assert not {name for name in loaded if name.startswith(("pydantic", "yaml", "numpy", "torch"))}
    assert " torch\n" not in rest


def test_a_stop_is_raised_once_its_grace_is_over() -> None:
    stop = StopSignal()
    stop.check()
    assert stop.requested_at == math.inf
    stop.request("first")
    stop.request("second")
    stop.check(grace_seconds=60)
    with pytest.raises(Stopped, match="first"):
        stop.check()
