"""What is shown while a grid trains: on a terminal lines that fit it, elsewhere few lines that last."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console, ConsoleDimensions
from views import GRID, RUN

from controller.live import PLAIN_SECONDS, Pace, PlainView, TerminalView, grid_words, open_view, run_words
from controller.screen import Screen


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_large_loss_stays_short() -> None:
    words = run_words(replace(RUN, train_loss=1.302, validation_loss=372_639.1))
    assert words["loss"] == "loss 1.302/3.7e+05"


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


def test_of_many_runs_a_log_tells_in_turns_and_of_few_at_a_time() -> None:
    stream, clock = io.StringIO(), Clock()
    view = PlainView(stream, clock)
    runs = [replace(RUN, label=f"lr/row {number}") for number in range(40)]
    for second in range(60):
        clock.now = 100.0 + second
        view.show(replace(GRID, running=tuple(replace(run, epochs_done=second / 10) for run in runs)))
    told = [int(number) for number in re.findall(r"lr/row (\d+) ", stream.getvalue())]
    assert told == list(range(40))


def test_a_log_has_a_line_of_the_grid_each_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    view = PlainView(stream, clock)
    for second in range(181):
        clock.now = 100.0 + second
        view.show(replace(GRID, running=(), num_done=second))
    assert re.findall(r"demo: (\d+) done", stream.getvalue()) == ["60", "120", "180"]


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


def terminal(stream: io.StringIO, width: int = 100, height: int = 24, clock: Clock | None = None) -> TerminalView:
    console = Console(file=stream, force_terminal=True, width=width, height=height, color_system=None)
    return TerminalView(console, Screen(), clock or Clock())


def test_a_terminal_keeps_what_was_said_and_not_the_lines_in_place() -> None:
    stream = io.StringIO()
    with terminal(stream) as view:
        view.show(GRID)
        view.say("kept", "lr: lr=0.1 [because]")
        view.show(GRID)
    text = stream.getvalue()
    assert "kept   lr: lr=0.1 [because]" in text
    assert text.count("3/30") >= 2
    last = text.rindex("3/30")
    assert "\x1b[2K" in text[last:]  # the lines in place are wiped at the end


def test_a_terminal_is_drawn_once_a_second_and_only_where_something_changed() -> None:
    stream, clock = io.StringIO(), Clock()
    with terminal(stream, clock=clock) as view:
        for tick in range(40):
            clock.now = 100.0 + tick / 4
            view.show(replace(GRID, num_done=tick))
        clock.now += 60
        view.show(replace(GRID, num_done=39))
        before = len(stream.getvalue())
        for _ in range(10):
            clock.now += 1
            view.show(replace(GRID, num_done=39))
        assert len(stream.getvalue()) == before
    drawn = [int(number) for number in re.findall(r"(\d+) done", stream.getvalue())]
    assert sorted(set(drawn)) == [*range(0, 40, 4), 39]


def test_many_things_at_a_time_draw_a_terminal_once() -> None:
    stream, clock = io.StringIO(), Clock()
    with terminal(stream, clock=clock) as view:
        view.show(GRID)
        for number in range(1000):
            view.say("start", f"lr/row {number}")
        assert stream.getvalue().count("3/30") <= 3
    text = stream.getvalue()
    assert [int(number) for number in re.findall(r"start  lr/row (\d+)", text)] == list(range(1000))
    assert text.count("3/30") <= 4


@pytest.mark.parametrize("size", [(40, 24), (200, 50), (100, 10)], ids=["narrower", "larger", "lower"])
def test_a_terminal_of_another_size_is_wiped_and_drawn_at_once(size: tuple[int, int]) -> None:
    stream = io.StringIO()
    with terminal(stream) as view:
        view.show(GRID)
        view.say("done", "lr/x: validation accuracy 0.5")
        before = len(stream.getvalue())
        view.console.size = ConsoleDimensions(*size)
        view.show(GRID)  # by a clock that stands still
        again = stream.getvalue()[before:]
    wiped = again.index("\x1b[H\x1b[2J")
    assert again.index("done   lr/x") > wiped
    frame = again[again.rindex("demo  ") :].splitlines()
    assert all(len(line) <= size[0] for line in frame)
    assert len(frame) < size[1]


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
