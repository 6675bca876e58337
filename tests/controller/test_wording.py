"""How commands write sizes, durations, counts and lists."""

from __future__ import annotations

import pytest

from controller.wording import bytes_text, columns, count_text, elided, listed, plain, plural_of, seconds_text, wrapped


@pytest.mark.parametrize(
    ("size", "text"),
    [
        pytest.param(0, "0 B", id="nothing"),
        pytest.param(999, "999 B", id="bytes"),
        pytest.param(999.6, "1.0 kB", id="rounded-up-to-the-next-unit"),
        pytest.param(1500, "1.5 kB", id="kilobytes"),
        pytest.param(99_949_000, "99.9 MB", id="three-digits"),
        pytest.param(99_960_000, "100 MB", id="no-fourth-digit"),
        pytest.param(999_600_000, "1.0 GB", id="no-thousand-megabytes"),
        pytest.param(2_610_000_000, "2.6 GB", id="gigabytes"),
        pytest.param(5_200_000_000_000_000, "5,200 TB", id="beyond-the-largest-unit"),
    ],
)
def test_sizes_are_written_in_powers_of_a_thousand(size: float, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(-3, "0 s", id="past"),
        pytest.param(89.4, "89 s", id="seconds"),
        pytest.param(90, "2 min", id="minutes"),
        pytest.param(89 * 60, "89 min", id="many-minutes"),
        pytest.param(100 * 60, "1 h 40 min", id="hours"),
        pytest.param(86_340, "23 h 59 min", id="a-day-nearly"),
        pytest.param(26 * 3600, "1 day 2 h", id="a-day"),
        pytest.param(52 * 3600, "2 days 4 h", id="days"),
    ],
)
def test_times_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("noun", "plural"), [("run", "runs"), ("class", "classes"), ("entry", "entries"), ("day", "days")]
)
def test_nouns_have_their_plural(noun: str, plural: str) -> None:
    assert plural_of(noun) == plural


def test_counts_come_with_their_noun() -> None:
    assert count_text(1, "class") == "1 class"
    assert count_text(0, "class") == "0 classes"
    assert count_text(12_000, "run") == "12,000 runs"
    assert count_text(2, "index", "indices") == "2 indices"


def test_a_long_list_is_counted_and_no_single_name_is_left_out() -> None:
    assert listed(["a", "b", "c"], shown=2) == "a, b, c"
    assert listed(["a", "b", "c", "d"], shown=2) == "a, b and 2 more"


def test_text_cannot_drive_a_terminal() -> None:
    assert plain("\x1b[31mred\u202e") == "\ufffd[31mred\ufffd"
    assert plain("two\nlines\tand a tab") == "two lines and a tab"
    assert plain("naïve ± 東京") == "naïve ± 東京"


def test_text_that_is_too_long_ends_in_an_ellipsis() -> None:
    assert elided("lr=0.01 wd=0.1", 8) == "lr=0.01…"
    assert elided("lr=0.01", 7) == "lr=0.01"


def test_wrapped_lines_fit_and_hang_below_the_first() -> None:
    lines = wrapped("keeps lr=0.01, because lowest validation_loss, mean over 3 seeds: 1.234", 40, indent=2)
    assert lines == ["  keeps lr=0.01, because lowest", "    validation_loss, mean over 3 seeds:", "    1.234"]


def test_cells_stand_below_each_other() -> None:
    assert columns([("a", "1", "x"), ("bbb", "22", "")], right=(1,)) == ["a     1  x", "bbb  22"]
    assert columns([]) == []
