"""What is left of a failure can always be written, and fits where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.failure import (
    TERMINATION_LIMIT,
    DataError,
    Failure,
    GridError,
    failure_of,
    write_termination_message,
)


@pytest.mark.parametrize(
    ("error", "log_tail"),
    [
        (DataError("short", hint="cure"), []),
        (DataError("short", hint="cure"), [f"line {number} " + "x" * 200 for number in range(40)]),
        (DataError("long " * 2000, hint="cure"), ["line"]),
        (DataError("short", hint="one of " + "alexnet, " * 2000), ["line"]),
        (DataError("é" * 3000, hint="日" * 3000), ["ü" * 5000]),
        (ValueError('"\\\n' * 3000), []),
    ],
    ids=["short", "long log", "long message", "long hint", "all of it", "no error of ours"],
)
def test_a_termination_message_is_whole_json_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, log_tail: list[str]
) -> None:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("GRID_TERMINATION_LOG", str(path))
    failure = failure_of(error, "alexnet-000000000000", "0001-a", log_tail, during="test")
    write_termination_message(failure)
    assert path.stat().st_size <= TERMINATION_LIMIT
    said = Failure.model_validate_json(path.read_bytes())
    assert (said.run, said.exit_code, said.reason, said.during) == (
        failure.run,
        failure.exit_code,
        failure.reason,
        "test",
    )
    assert said.message[:5] == failure.message[:5]
    assert said.log_tail == failure.log_tail[len(failure.log_tail) - len(said.log_tail) :]


def test_where_nobody_reads_a_termination_message_none_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRID_TERMINATION_LOG", str(tmp_path / "none"))
    write_termination_message(failure_of(DataError("x"), "run", None, []))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [GridError("bad \udcff", hint="bad \udcff"), OSError("bad \udcff")], ids=repr)
def test_a_name_that_is_no_unicode_can_be_recorded(error: Exception) -> None:
    failure = failure_of(error, "run", None, [])
    assert "bad \\udcff" in Failure.model_validate_json(failure.model_dump_json()).message
