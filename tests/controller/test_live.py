"""What is shown while a grid trains: on a terminal lines that fit it, elsewhere few lines that last."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from controller.live import (
    PLAIN_SECONDS,
    GridProgress,
    Pace,
    PlainView,
    RunProgress,
    TerminalView,
    grid_words,
    open_view,
    render,
    run_words,
)

RUN = RunProgress(
    label="lr/lr=0.1 seed 0",
    doing="training",
    num_epochs=30,
    epochs_done=2.5,
    train_loss=1.23456,
    train_accuracy=0.5,
    validation_loss=1.5,
    validation_accuracy=0.4,
    images_per_second=123.4,
    seconds_left=600,
)
GRID = GridProgress(grid="demo", num_done=3, num_waiting=4, num_failed=1, running=(RUN,), later_stages=("test",))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drawn(progress: GridProgress, width: int = 120, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(render(progress, height, width))
    return capture.get().splitlines()


@pytest.mark.parametrize(
    ("width", "told", "left_out"),
    [
        pytest.param(120, ["━", "loss 1.2", "acc 0.5", "images/s", "10 min left"], [], id="all"),
        pytest.param(80, ["loss 1.2", "acc 0.5", "10 min left"], ["━", "images/s", "…"], id="bar-and-speed-go-first"),
        pytest.param(60, ["acc 0.5", "10 min left"], ["loss", "…"], id="then-the-loss"),
        pytest.param(36, ["lr/lr=0.1", "epoch 3/30"], ["left", "acc"], id="the-epoch-stays"),
    ],
)
def test_a_narrow_terminal_goes_without_columns_and_cuts_none(width: int, told: list[str], left_out: list[str]) -> None:
    line = drawn(GRID, width=width)[0]
    assert all(text in line for text in told), line
    assert not any(text in line for text in left_out), line


def test_a_large_loss_stays_short() -> None:
    words = run_words(replace(RUN, train_loss=1.302, validation_loss=372_639.1))
    assert words["loss"] == "loss 1.302/3.7e+05"


def test_a_name_cannot_drive_the_terminal() -> None:
    lines = drawn(replace(GRID, running=(replace(RUN, label="lr/\x1b[2Jrow"),)))
    assert "\x1b" not in "".join(lines)


def many(count: int) -> GridProgress:
    return replace(GRID, running=tuple(replace(RUN, label=f"lr/row {number}") for number in range(count)))


def test_a_run_has_one_line_and_the_grid_another() -> None:
    line, last = drawn(GRID)
    assert re.search(r"lr/lr=0\.1 seed 0 .*epoch 3/30.*loss 1\.235/1\.500.*acc 0\.500/0\.400", line)
    assert re.search(r"123 images/s.*10 min left", line)
    assert last.strip() == "demo: 3 done, 1 running, 4 waiting, 1 failed, then test"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_fit_any_width(width: int) -> None:
    lines = drawn(replace(many(3), elsewhere=("lr/x: running on node-1:4711, epoch 3" * 3,)), width=width)
    assert len(lines) == 5
    assert all(len(line.rstrip()) <= width for line in lines)


@pytest.mark.parametrize("height", [1, 4, 10, 24])
def test_runs_beyond_the_terminals_height_are_folded(height: int) -> None:
    lines = drawn(many(100), height=height)
    shown = sum("lr/row" in line for line in lines)
    assert len(lines) <= max(height, 3)
    assert f"… and {100 - shown} more" in "\n".join(lines)


def test_many_runs_that_fit_are_all_shown() -> None:
    assert sum("lr/row" in line for line in drawn(many(20))) == 20


@pytest.mark.parametrize("doing", ["starting", "testing", "stopping"])
def test_a_run_that_does_not_train_says_what_it_does(doing: str) -> None:
    words = run_words(replace(RUN, doing=doing))  # type: ignore[arg-type]  # the literals stand above
    assert [word for word in words.values() if word] == [doing]


def test_the_grids_line_tells_of_stopping_and_of_the_time_left() -> None:
    text = grid_words(replace(GRID, stopping=True, seconds_left=45, elsewhere=("x",)))
    assert text == "demo: 3 done, 1 stopping, 1 running elsewhere, 4 waiting, 1 failed, about 45 s left, then test"


def test_further_lines_stand_below_the_first() -> None:
    stream = io.StringIO()
    with open_view(stream) as view:
        view.say("failed", "lr/x: data: broken\n  \x1b[31mby a\nhint: mend it")
    assert stream.getvalue() == (
        "failed lr/x: data: broken\n       \N{REPLACEMENT CHARACTER}[31mby a\n       hint: mend it\n"
    )


def test_plain_lines_are_rare() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainView(stream, clock) as view:
        for second in range(35):
            clock.now = 100.0 + second
            view.show(replace(GRID, running=(replace(RUN, epochs_done=second / 10),)))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 34 // PLAIN_SECONDS
    assert all(line.startswith("note   lr/lr=0.1 seed 0 epoch ") for line in lines)


def test_a_plain_line_is_not_told_twice() -> None:
    stream, clock = io.StringIO(), Clock()
    view = PlainView(stream, clock)
    for second in range(60):
        clock.now = 100.0 + second
        view.show(GRID)
    assert len(stream.getvalue().splitlines()) == 1


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    stream = io.StringIO()
    with open_view(stream) as view:
        view.say("done", "lr/lr=0.1: validation accuracy 0.5")
        view.show(GRID)
    assert stream.getvalue() == "done   lr/lr=0.1: validation accuracy 0.5\n"


def test_a_log_is_no_terminal_whatever_colours_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_view(io.StringIO()), PlainView)


def test_where_stderr_is_closed_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with open_view() as view:
        view.say("done", "lr/lr=0.1")
    assert capsys.readouterr().out == ""


def test_what_draws_on_a_terminal_is_loaded_for_one_alone() -> None:
    code = (
        "import io, sys\nfrom controller.live import open_view\n"
        "open_view(io.StringIO()).say('done', 'lr/lr=0.1')\nprint('rich.console' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_terminal_keeps_what_was_said_and_not_the_lines_in_place() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, height=24, color_system=None)
    with TerminalView(console) as view:
        view.show(GRID)
        view.say("kept", "lr: lr=0.1 [because]")
        view.show(GRID)
    text = stream.getvalue()
    assert "kept   lr: lr=0.1 [because]" in text
    assert text.count("epoch 3/30") >= 2
    last = text.rindex("epoch 3/30")
    assert "\x1b[2K" in text[last:]  # the lines in place are wiped at the end


def test_the_time_left_follows_the_pace_since_it_was_first_seen() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.note(0.5)
    assert pace.seconds_left is None
    clock.now += 10
    pace.note(0.6)
    assert pace.seconds_left == pytest.approx(40)
    clock.now += 5
    assert pace.seconds_left == pytest.approx(35)
