"""The live view's lines: what they say, and that they fit the terminal whatever is to be said."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from views import GRID, NOW, RUN, WHOLE

from controller.live import GridProgress, RowProgress, RunProgress, StageProgress
from controller.screen import ASCII, UNICODE, Screen, apportioned, clock_text, shares, shows_unicode

GOLDEN = Path(__file__).parent / "golden"


def drawn(progress: GridProgress, width: int = 120, height: int = 24, screen: Screen | None = None) -> list[str]:
    return [line.plain for line in (screen or Screen()).draw(progress, width, height, NOW)]


def many(count: int) -> GridProgress:
    runs = (replace(RUN, label=f"lr/row {number}", seconds_left=float(number)) for number in range(count))
    return replace(GRID, running=tuple(runs))


@pytest.mark.parametrize(
    ("name", "width", "height", "screen"),
    [
        pytest.param("80x24", 80, 24, Screen(UNICODE), id="80x24"),
        pytest.param("200x50", 200, 50, Screen(UNICODE), id="200x50"),
        pytest.param("40x24", 40, 24, Screen(UNICODE), id="40-columns"),
        pytest.param("80x40-ascii", 80, 40, Screen(ASCII), id="ascii"),
    ],
)
def test_the_view_is_the_one_that_was_looked_at(name: str, width: int, height: int, screen: Screen) -> None:
    golden = GOLDEN / f"view-{name}.txt"
    text = "".join(f"{line}\n" for line in drawn(WHOLE, width, height, screen))
    assert text == golden.read_text(encoding="utf-8")


WORDS = st.text(st.characters(codec="utf-8"), max_size=60)
NUMBERS = st.none() | st.floats()
COUNTS = st.integers(0, 20_000)
RUNS = st.builds(
    RunProgress,
    WORDS,
    st.sampled_from(["starting", "training", "testing", "stopping"]),
    st.integers(1, 1000),
    st.floats(0, 1000),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e8),
    st.lists(st.floats(), max_size=40).map(tuple),
)
ROWS = st.builds(RowProgress, WORDS, COUNTS, COUNTS, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.booleans())
STAGES = st.builds(
    StageProgress,
    WORDS,
    st.booleans(),
    st.integers(0, 30),
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.lists(WORDS, max_size=2).map(tuple),
    st.none() | WORDS,
    st.lists(ROWS, max_size=8).map(tuple),
)
PROGRESS = st.builds(
    GridProgress,
    WORDS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.lists(RUNS, max_size=12).map(tuple),
    st.lists(WORDS, max_size=4).map(tuple),
    st.lists(WORDS, max_size=3).map(tuple),
    st.none() | st.floats(0, 1e8),
    st.booleans(),
    st.booleans(),
    st.lists(STAGES, max_size=8).map(tuple),
    st.lists(st.tuples(WORDS, WORDS), max_size=6).map(tuple),
    st.lists(st.tuples(WORDS, COUNTS, WORDS), max_size=6).map(tuple),
    st.none() | WORDS,
    st.none() | st.datetimes(timezones=st.just(UTC)),
)


@settings(max_examples=80, derandomize=True, deadline=None, phases=(Phase.generate,))
@given(
    PROGRESS,
    st.integers(1, 250) | st.just(80),
    st.integers(1, 70) | st.just(24),
    st.sampled_from([Screen(UNICODE), Screen(ASCII)]),
)
def test_the_view_is_never_higher_or_wider_than_the_terminal(
    progress: GridProgress, width: int, height: int, screen: Screen
) -> None:
    lines = drawn(progress, width, height, screen)
    assert 1 <= len(lines) <= max(1, height - 1)
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)
    assert screen.glyphs is UNICODE or all(line.isascii() for line in lines)


@pytest.mark.parametrize("height", [10, 24, 50])
@pytest.mark.parametrize("width", [80, 200])
def test_of_more_runs_than_lines_those_with_the_most_time_left_are_shown(width: int, height: int) -> None:
    lines = drawn(many(100), width, height)
    shown = [line.split()[1] for line in lines if line.startswith("lr/row")]
    assert shown == [str(number) for number in range(100 - len(shown), 100)]
    assert shown
    assert f"and {100 - len(shown)} more runs at work" in lines


def test_runs_that_fit_are_all_shown_and_nothing_is_folded() -> None:
    lines = drawn(many(12))
    assert sum(line.startswith("lr/row") for line in lines) == 12
    assert not any("more" in line for line in lines)


def test_runs_elsewhere_are_counted_among_those_not_shown() -> None:
    progress = replace(many(30), elsewhere=tuple(f"lr/x{number}: running on node-1" for number in range(5)))
    lines = drawn(progress, height=24)
    shown = sum(line.startswith("lr/") for line in lines)
    assert f"and {35 - shown} more runs at work" in lines


def test_failures_beyond_their_lines_are_counted() -> None:
    failed = tuple((f"lr/row {number}", "diverged: nan") for number in range(40))
    lines = drawn(replace(many(40), failed=failed))
    shown = [line for line in lines if line.startswith("failed lr/row")]
    assert shown[0] == "failed lr/row 0: diverged: nan"
    assert f"and {40 - len(shown)} more failed runs" in lines


def test_a_stage_at_work_is_shown_before_those_that_wait() -> None:
    stages = tuple(StageProgress(f"stage{number}", False, 0, 4) for number in range(40))
    busy = replace(stages[25], num_running=2)
    lines = drawn(replace(GRID, stages=(*stages[:25], busy, *stages[26:])))
    assert any(line.startswith("stage25") and "2 running" in line for line in lines)
    assert any(line.startswith("and ") and line.endswith("more stages") for line in lines)


@pytest.mark.parametrize(
    ("width", "told", "left_out"),
    [
        pytest.param(120, ["█·", "0.400", "▁█", "1.235/1.500", "123", "10 min"], [], id="all"),
        pytest.param(80, ["█·", "0.400", "▁█", "10 min"], [], id="eighty"),
        pytest.param(60, ["0.400", "▁█", "10 min"], ["1.235/1.500"], id="the-loss-goes-first"),
        pytest.param(30, ["0.400"], ["██", "10 min", "1.235"], id="the-accuracy-stays"),
    ],
)
def test_a_narrow_terminal_goes_without_columns_and_cuts_none(width: int, told: list[str], left_out: list[str]) -> None:
    line = next(line for line in drawn(GRID, width) if "3/30" in line)
    assert all(text in line for text in told), line
    assert not any(text in line for text in left_out), line


def test_a_long_name_keeps_its_end_where_names_differ() -> None:
    runs = tuple(replace(RUN, label=f"network/architecture=shufflenet_v2_x0_5 seed {seed}") for seed in range(2))
    lines = drawn(replace(GRID, running=runs), 80)
    assert [line.split("  ")[0].endswith(f"x0_5 seed {seed}") for seed in range(2) for line in lines[-2:]] == [
        True,
        False,
        False,
        True,
    ]


def test_a_name_cannot_drive_the_terminal() -> None:
    lines = drawn(replace(GRID, running=(replace(RUN, label="lr/\x1b[2Jrow"),)))
    assert "\x1b" not in "".join(lines)


def test_a_run_that_does_not_train_says_what_it_does() -> None:
    for doing in ("starting", "testing", "stopping"):
        line = drawn(replace(GRID, running=(replace(RUN, doing=doing),)))[-1]
        assert line.split()[3] == doing
        assert "0.400" not in line


def test_bars_tell_states_apart_without_colour() -> None:
    stage = StageProgress("lr", False, 0, 8, num_done=2, num_running=2, num_failed=2)
    line = next(line for line in drawn(replace(GRID, stages=(stage,)), 50) if line.startswith("lr  "))
    assert line.split()[1] == "██▒▒▒×××··"
    line = next(line for line in drawn(replace(GRID, stages=(stage,)), 50, screen=Screen(ASCII)) if "lr  " in line)
    assert line.split()[1] == "##===xxx.."


@pytest.mark.parametrize(
    ("counts", "width", "cells"),
    [
        pytest.param([1, 0, 0, 9_999], 20, [1, 0, 0, 19], id="one-of-many-is-seen"),
        pytest.param([9_998, 1, 1, 0], 20, [18, 1, 1, 0], id="two-of-many-are-seen"),
        pytest.param([0, 0, 0, 0], 20, [0, 0, 0, 0], id="nothing"),
        pytest.param([5, 5, 5, 5], 2, [0, 1, 1, 0], id="fewer-cells-than-states"),
    ],
)
def test_a_bar_is_shared_by_counts(counts: list[int], width: int, cells: list[int]) -> None:
    assert apportioned(counts, width) == cells


@pytest.mark.parametrize(
    ("values", "unicode", "ascii_"),
    [
        pytest.param([], "", "", id="none"),
        pytest.param([0.5], "▁", "_", id="one"),
        pytest.param([0.1, 0.5, 0.9], "▁▅█", "_=#", id="rising"),
        pytest.param([0.5, 0.501, 0.5], "▁▁▁", "___", id="noise-is-flat"),
        pytest.param([float("nan"), 0.1, 0.9], "▁█", "_#", id="nan-is-left-out"),
    ],
)
def test_a_sparkline_rises_with_its_values(values: list[float], unicode: str, ascii_: str) -> None:
    assert Screen(UNICODE).spark(values) == unicode
    assert Screen(ASCII).spark(values) == ascii_


def test_a_sparkline_shows_the_last_epochs() -> None:
    assert Screen().spark([1.0] * 50 + [0.0], 8) == "███████▁"


@pytest.mark.parametrize(
    ("ahead", "told"),
    [
        pytest.param(timedelta(hours=2), "15:30", id="soon"),
        pytest.param(timedelta(hours=30), "Thu 19:30", id="this-week"),
        pytest.param(timedelta(days=30), "2026-04-03 13:30", id="later"),
    ],
)
def test_a_time_has_its_day_where_it_is_not_near(ahead: timedelta, told: str) -> None:
    assert clock_text(NOW + ahead, NOW) == told


@pytest.mark.parametrize(
    ("minutes", "left", "told"),
    [
        pytest.param(60, 600.0, "deadline 14:30, 50 min to spare", id="met"),
        pytest.param(60, 7200.0, "deadline 14:30, missed by 60 s", id="missed"),
        pytest.param(60, None, "deadline 14:30", id="unknown"),
        pytest.param(-60, None, "deadline 12:30, missed by 60 min", id="past"),
    ],
)
def test_the_deadline_says_whether_it_is_met(minutes: int, left: float | None, told: str) -> None:
    deadline = NOW + timedelta(minutes=minutes)
    text = "\n".join(drawn(replace(GRID, deadline=deadline, seconds_left=left)))
    assert told.replace("60 s", "60 min") in text


@pytest.mark.parametrize(
    ("room", "wants", "least", "given"),
    [
        pytest.param(20, [3, 2], [1, 1], [3, 2], id="enough"),
        pytest.param(3, [9, 9, 9, 9], [2, 1, 1, 1], [1, 1, 1, 0], id="one-each-as-far-as-it-goes"),
        pytest.param(8, [9, 1, 9], [3, 1, 2], [5, 1, 2], id="what-is-left-goes-to-the-first"),
        pytest.param(0, [3], [1], [0], id="none"),
    ],
)
def test_lines_are_shared_out(room: int, wants: list[int], least: list[int], given: list[int]) -> None:
    assert shares(room, wants, least) == given


@pytest.mark.parametrize(
    ("encoding", "environment", "shown"),
    [
        pytest.param("utf-8", {"LANG": "de_DE.UTF-8"}, True, id="utf-8"),
        pytest.param("utf-8", {"LANG": "C.UTF-8", "LC_CTYPE": "C.UTF-8"}, True, id="c-utf-8"),
        pytest.param("utf-8", {"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False, id="c-as-python-coerces-it"),
        pytest.param("utf-8", {"LC_CTYPE": "C.UTF-8"}, False, id="no-locale"),
        pytest.param("utf-8", {"LC_CTYPE": "UTF-8"}, True, id="macos"),
        pytest.param("utf-8", {"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False, id="all-is-c"),
        pytest.param("utf-8", {"LC_ALL": "C.UTF-8"}, True, id="all-is-utf-8"),
        pytest.param("iso8859-1", {"LANG": "de_DE"}, False, id="latin-1"),
        pytest.param(None, {"LANG": "de_DE.UTF-8"}, False, id="no-encoding"),
    ],
)
def test_more_than_ascii_is_shown_where_the_locale_can(
    encoding: str | None, environment: dict[str, str], *, shown: bool
) -> None:
    assert shows_unicode(encoding, environment) == shown


def test_moments_are_told_in_the_zone_of_the_terminal() -> None:
    deadline = datetime.fromisoformat("2026-03-04T20:00:00+05:00")
    assert "deadline 15:00" in "\n".join(drawn(replace(GRID, deadline=deadline)))
