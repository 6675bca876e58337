"""Ctrl-C at any moment: a word and an exit code, never a traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.interrupts import BARELY_BEGUN, INTERRUPTED, TOLD

PRESS = "os.kill(os.getpid(), signal.SIGINT)"


def ended(code: str) -> tuple[int, str]:
    """How a process ends that runs `code`, and what it says."""
    text = f"import os, signal, sys\nfrom controller import interrupts\n{code}"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(
            f"interrupts.listen()\ntry:\n    {PRESS}\nexcept interrupts.Interrupted:\n    {PRESS}",
            (INTERRUPTED, f"{TOLD}\n"),
            id="a-second-one-ends-it-at-once",
        ),
        pytest.param(
            f"interrupts.listen()\nclass Last:\n    def __del__(self):\n        {PRESS}\nlast = Last()\ndel last",
            (INTERRUPTED, f"{TOLD}\n"),
            id="in-a-destructor",
        ),
        pytest.param(f"interrupts.listen()\ninterrupts.settle(75)\n{PRESS}", (75, ""), id="when-all-is-said"),
        pytest.param(
            "import atexit\natexit.register(lambda: None)\ninterrupts.listen()\n"
            "class Last:\n    def __del__(self, press=os.kill, me=os.getpid()):\n        press(me, signal.SIGINT)\n"
            "sys.modules['last'] = Last()\nsys.exit(3)",
            (3, ""),
            id="while-python-takes-itself-apart",
        ),
    ],
)
def test_an_interrupt_ends_in_a_word_and_a_code(code: str, expected: tuple[int, str]) -> None:
    assert ended(code) == expected


@pytest.mark.parametrize("module", ["click", "controller.commands.program", "controller.wording"])
def test_an_interrupt_while_modules_are_loaded_ends_in_a_word(module: str) -> None:
    code = (
        "class Press:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == '{module}':\n"
        f"            {PRESS}\n"
        "sys.meta_path.insert(0, Press())\n"
        "import controller.cli"
    )
    assert ended(code) == (INTERRUPTED, f"{BARELY_BEGUN}\n")


@pytest.mark.parametrize("handler", ["signal.default_int_handler", "signal.SIG_IGN"])
def test_whoever_imports_the_command_keeps_his_own_answer_to_ctrl_c(handler: str) -> None:
    code = f"signal.signal(signal.SIGINT, {handler})\nimport controller.cli\n"
    assert ended(f"{code}assert signal.getsignal(signal.SIGINT) == {handler}") == (0, "")


def moment(number: int) -> tuple[int, str, str]:
    """How `grid list` ends that is interrupted so many fiftieths of a second after its start."""
    command = [sys.executable, "-m", "controller.cli", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(number / 50)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.slow
def test_an_interrupt_at_any_moment_of_the_start_is_answered_once_python_itself_has_started() -> None:
    told = {f"{BARELY_BEGUN}\n", f"{TOLD}\n"}
    found = [moment(number) for number in range(20)]
    ours = [(code, err) for code, _, err in found if "Traceback" not in err and code != -signal.SIGINT]
    for code, err in ours:
        assert (code == INTERRUPTED and err in told) or (code, err) == (0, "")
    assert any(err in told for _, err in ours)
    # before it is heard, Python is on its way to the first lines of cli.py: in no other module of ours
    early = "".join(err for _, _, err in found if "Traceback" in err)
    names = set(re.findall(r'File ".*/controller/(.*?)"', early))
    assert names <= {"__init__.py", "cli.py", "interrupts.py"}
    assert "Aborted" not in early


def opened(fifo: Path, seconds: float = 60) -> int:
    """The fifo, opened for writing once another process reads from it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"nobody read {fifo} in {seconds} s")


@pytest.mark.parametrize("words", [("table", "slow"), ("plan", "slow"), ("run", "slow")], ids=lambda words: words[0])
def test_a_command_that_is_interrupted_says_so(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "store" / "grids" / "slow").mkdir(parents=True)
    fifo = tmp_path / "store" / "grids" / "slow" / "grid.yaml"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "controller.cli", "--store", f"file://{tmp_path}/store", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        writer = opened(fifo)
        time.sleep(0.2)  # it reads now, and nothing comes
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        os.close(writer)
    assert (process.returncode, out, err) == (INTERRUPTED, "", f"{TOLD}\n")
