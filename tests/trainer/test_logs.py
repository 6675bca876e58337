"""What a process logs is one line each for programs, is read back as it was, and is in the store whatever ends it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pictures import import_pictures, put_run

from trainer import recorder as recording
from trainer.failure import LOG_TAIL_LINES, ExitCode, Failure, StoreAway, StoreError
from trainer.lease import Lease
from trainer.logs import (
    ABOUT,
    MESSAGE_LIMIT,
    TRACEBACK_LIMIT,
    Line,
    human_lines,
    json_text,
    line_of,
    read_line,
    read_lines,
)
from trainer.recorder import LogBuffer, Recorder
from trainer.stop import StopSignal
from trainer.store import FileStore

ROOT = Path(__file__).resolve().parents[2]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    ABOUT.clear()


def logged(message: str, *values: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("trainer", level, __file__, 1, message, values, None)


def raised(text: str) -> logging.LogRecord:
    try:
        raise ValueError(text)
    except ValueError:
        return logging.LogRecord("trainer", logging.ERROR, __file__, 1, "it failed", (), sys.exc_info())


# Lines


def test_a_line_says_when_and_about_what_it_is() -> None:
    ABOUT.run, ABOUT.attempt, ABOUT.epoch = "usual-0123456789ab", "0002-1b2c3d4e", 7
    said = json.loads(json_text(line_of(logged("epoch %d of %d", 7, 9))))
    assert list(said) == ["time", "level", "run", "epoch", "attempt", "message"]
    assert TIME.fullmatch(said["time"])
    assert (said["level"], said["run"], said["epoch"], said["attempt"]) == (
        "info",
        "usual-0123456789ab",
        7,
        "0002-1b2c3d4e",
    )
    assert said["message"] == "epoch 7 of 9"


def test_what_is_not_known_yet_is_left_out() -> None:
    assert list(json.loads(json_text(line_of(logged("waiting"))))) == ["time", "level", "message"]


def test_an_exception_is_one_line_with_its_traceback_in_one_field() -> None:
    text = json_text(line_of(raised("no such class")))
    assert "\n" not in text
    said = json.loads(text)
    assert said["message"] == "it failed"
    assert said["traceback"].startswith("Traceback (most recent call last):\n")
    assert said["traceback"].endswith("ValueError: no such class")


@pytest.mark.parametrize(
    "line",
    [
        Line("stopped", "2026-11-23T08:00:00.000Z", "info", {"run": "a-1", "epoch": 3}),
        Line("two\nlines “” \x1b[31m", "2026-11-23T08:00:00.001Z", "error", {}, "Traceback\n  File"),
        Line("written beside the log"),
    ],
    ids=["plain", "with a traceback", "raw"],
)
def test_a_json_line_is_read_as_it_was(line: Line) -> None:
    assert read_line(json_text(line)) == line


def test_a_line_for_people_is_read_by_its_time_and_level() -> None:
    line = Line("the store is away", "2026-11-23T08:00:00.000Z", "warning", {"run": "a-1"})
    assert human_lines(line) == ["2026-11-23T08:00:00.000Z warning the store is away"]
    assert read_line(human_lines(line)[0]) == Line(line.message, line.time, line.level)


@pytest.mark.parametrize(
    "text",
    ["Fatal Python error: Segmentation fault", "", "{", '{"message": 3}', "[1]", '{"a": NaN', "2026-11-23 INFO x"],
)
def test_what_is_no_line_of_a_log_is_read_as_its_text(text: str) -> None:
    assert read_line(text) == Line(text)


def test_a_message_that_does_not_fit_its_values_is_not_lost() -> None:
    line = line_of(logged("epoch %d", "seven"))
    assert "epoch %d" in line.message
    assert "seven" in line.message


def test_a_name_that_is_no_unicode_can_be_logged() -> None:
    assert json_text(line_of(logged("bad \udcff"))).encode()


def test_of_a_long_message_the_beginning_is_kept_and_of_a_long_traceback_the_end() -> None:
    line = line_of(logged("x" * 100_000))
    assert len(line.message) == MESSAGE_LIMIT + 1
    trace = line_of(raised("y" * 100_000 + " the end")).traceback
    assert trace is not None
    assert len(trace) == TRACEBACK_LIMIT + 1
    assert trace.endswith(" the end")


# A process's stderr


def stderr_of(code: str, form: str, tmp_path: Path) -> tuple[int, list[str]]:
    """Exit code and stderr of a Python process that has set up its log and goes on with `code`."""
    file = tmp_path / "process.py"
    file.write_text(f"import logging\nfrom trainer.logs import log_to_stderr\nlog_to_stderr()\n{code}")
    environment = {**os.environ, "GRID_LOG": form, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr.splitlines()


CODE = """
import threading, warnings
warnings.warn("this is old", DeprecationWarning, stacklevel=1)
logging.getLogger("some.library").info("a library's word")
def fail():
    raise OSError("in a thread")
thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
class Bad:
    def __del__(self):
        raise RuntimeError("in the end")
del Bad
Bad2 = type("Bad2", (), {"__del__": lambda self: 1 / 0})
Bad2()
raise ValueError("nobody catches it")
"""


def test_all_that_a_process_tells_as_json_is_json(tmp_path: Path) -> None:
    code, lines = stderr_of(CODE, "json", tmp_path)
    assert code == 1
    said: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [(each["level"], "traceback" in each) for each in said] == [
        ("warning", False),
        ("info", False),
        ("error", True),
        ("error", True),
        ("critical", True),
    ]
    warned, _, thread, unraisable, uncaught = said
    assert "DeprecationWarning: this is old" in warned["message"]
    assert "thread worker ended by OSError: in a thread" in thread["message"]
    assert "ZeroDivisionError" in unraisable["message"]
    assert uncaught["message"] == "ended by ValueError: nobody catches it"
    assert uncaught["traceback"].endswith("ValueError: nobody catches it")


@pytest.mark.parametrize("form", ["", "text"])
def test_for_people_a_line_begins_with_its_time_and_level(tmp_path: Path, form: str) -> None:
    _, lines = stderr_of('logging.getLogger("trainer").warning("the store is away")', form, tmp_path)
    assert [read_line(line).message for line in lines] == ["the store is away"]
    assert re.fullmatch(TIME.pattern + " warning the store is away", lines[0])


def test_a_form_that_there_is_not_is_told_and_ends_nothing(tmp_path: Path) -> None:
    code, lines = stderr_of("", "jsno", tmp_path)
    assert code == 0
    assert "GRID_LOG: got 'jsno', expected text or json" in lines[0]


def test_a_crash_of_the_interpreter_leaves_a_trace(tmp_path: Path) -> None:
    code, lines = stderr_of("import faulthandler\nfaulthandler._sigsegv()", "json", tmp_path)
    assert code == -signal.SIGSEGV
    assert lines[0].startswith("Fatal Python error: Segmentation fault")


# What is kept for the store


def test_the_end_of_a_log_is_kept_for_people() -> None:
    buffer = LogBuffer()
    for number in range(100):
        buffer.handle(logged("line %d\nhint: none", number))
    buffer.handle(raised("the last word"))
    assert len(buffer.tail) == LOG_TAIL_LINES
    assert buffer.tail[-1] == "ValueError: the last word"
    assert any(TIME.match(line) and line.endswith("line 99") for line in buffer.tail)


def test_of_a_long_log_the_beginning_and_the_end_are_kept_and_what_is_missing_is_said() -> None:
    buffer = LogBuffer(limit=20_000)
    for number in range(5_000):
        buffer.handle(logged("line %d", number))
    content = buffer.content()
    assert len(content) < 21_000
    messages = [line.message for line in read_lines(content.decode().splitlines())]
    (gap,) = [place for place, message in enumerate(messages) if "left out here" in message]
    assert messages[:gap] == [f"line {number}" for number in range(gap)]
    rest = len(messages) - gap - 1
    assert messages[gap + 1 :] == [f"line {number}" for number in range(5_000 - rest, 5_000)]
    assert messages[gap].startswith(f"{5_000 - gap - rest:,} lines")
    assert 2 * gap < rest


def test_logging_what_cannot_be_told_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Untold:
        def __repr__(self) -> str:
            raise ValueError("no words")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    buffer = LogBuffer()
    buffer.handle(logged("%d", Untold()))
    buffer.handle(logged("and so on"))
    assert [line.message for line in read_lines(buffer.content().decode().splitlines())] == ["and so on"]


class Refusing(FileStore):
    """Takes no log."""

    error: StoreError | None = StoreError("runs/: got no right to write it")

    def put(self, key: str, data: bytes | memoryview) -> None:
        if key.endswith("log.txt") and self.error is not None:
            raise self.error
        super().put(key, data)


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    lease = Lease(Refusing(tmp_path / "store"), "run", StopSignal())
    lease.acquire()
    yield lease
    lease.release()


def test_a_store_that_refuses_the_log_ends_no_training(lease: Lease, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(lease.store, "run", lease, LogBuffer())
    recorder.start()
    recorder.write_log()
    recorder.close()
    assert "the attempt's log cannot be written: runs/: got no right" in caplog.text


def test_a_store_that_was_away_for_as_long_as_it_is_waited_for_is_told(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "error", StoreAway("no answer"))
    recorder = Recorder(lease.store, "run", lease, LogBuffer())
    with pytest.raises(StoreAway, match="no answer"):
        recorder.write_log()


def test_what_is_logged_between_two_epochs_is_soon_in_the_store(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(Refusing, "error", None)
    buffer = LogBuffer()
    recorder = Recorder(lease.store, "run", lease, buffer)
    recorder.start()
    written: list[str] = []
    for text in ("first", "second"):
        buffer.handle(logged(text))
        until = time.monotonic() + 20
        while text not in written and time.monotonic() < until:
            time.sleep(0.01)
            for entry in lease.store.list("runs/run/attempts/"):
                written = [line.message for line in read_lines(lease.store.get(entry.key).decode().splitlines())]
    recorder.close()
    assert written == ["first", "second"]


def test_what_failed_before_keeps_the_log_out_of_no_store(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refusing, "error", None)
    buffer = LogBuffer()
    recorder = Recorder(lease.store, "run", lease, buffer)
    recorder.start()
    buffer.handle(logged("the last word"))

    def fail() -> None:
        raise StoreError("the disk is full")

    recorder._submit(fail)
    recorder.close()
    (log,) = [entry.key for entry in lease.store.list("runs/run/attempts/") if entry.key.endswith("log.txt")]
    assert b"the last word" in lease.store.get(log)


# A whole trainer


FACTORY = """
import logging, warnings
from networks import plain

def noisy(num_classes):
    warnings.warn("this network is old")
    logging.getLogger("some.library").warning("a library's word")
    return plain(num_classes)
"""


@pytest.mark.slow
def test_a_stopped_trainers_log_is_json_to_its_last_line_in_the_pod_and_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    store = FileStore(tmp_path / "store")
    index = import_pictures(store, tmp_path / "originals")
    run = put_run(store, index, model={"architecture": "noisy_factory:noisy"}, epochs=100_000)
    environment = {
        **os.environ,
        "GRID_LOG": "json",
        "GRID_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", tmp_path))),
        "GRID_TERMINATION_LOG": str(tmp_path / "termination"),
    }
    (tmp_path / "termination").touch()
    command = [sys.executable, "-m", "trainer", run, "--store", store.uri]
    lines = []
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "epoch 2 of" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == ExitCode.STOPPED
    said: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert {each["run"] for each in said} == {run}
    (attempt,) = {each["attempt"] for each in said if "attempt" in each}
    warned = next(each for each in said if "this network is old" in each["message"])
    assert warned["level"] == "warning"
    ended = next(each for each in said if "epoch 2 of" in each["message"])
    assert ended["epoch"] == 2
    assert said[-1]["message"] == "stopped: told to stop by SIGTERM"
    assert said[-1]["epoch"] >= 2
    kept = store.get(f"runs/{run}/attempts/{attempt}/log.txt").decode().splitlines(keepends=True)
    assert kept == lines
    told = Failure.model_validate_json((tmp_path / "termination").read_bytes())
    assert told.log_tail
    assert human_lines(read_line(lines[-1]))[-1] == told.log_tail[-1]
