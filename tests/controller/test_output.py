"""Output that cannot be written ends a command with a message; a reader that went away ends it without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controller.output import UNWRITTEN

COMMAND = [sys.executable, "-m", "controller.cli"]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["--help"], ["list"], ["show", "demo", "--json"]], ids=" ".join)
def test_a_full_disk_is_told(tmp_path: Path, words: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "GRID_STORE": f"file://{tmp_path}/store"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == UNWRITTEN
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_a_reader_that_went_away_ends_it_without_a_word(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "show", "demo"], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_closed_stdout_is_no_fault(tmp_path: Path) -> None:
    line = f"exec {' '.join(COMMAND)} list >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_file_takes_the_place_of_a_closed_stdout(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; from controller.output import guard_stdout; guard_stdout(); "
        "file = open('opened', 'w'); file.write(f'{file.fileno()}'); file.close(); os.system('echo lost >&1')"
    )
    line = f'exec {sys.executable} -c "{code}" >&- 2>&-'
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    assert int((tmp_path / "opened").read_text()) > 2
