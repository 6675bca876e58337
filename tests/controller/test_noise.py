"""What is said of a row beside the best: against textbooks, under every order and shift, and as often as it claims."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit
from scipy.stats import bootstrap, ttest_rel

from controller.noise import Answers, answers_of, best_rows, compare, compare_tests
from controller.predicted import Predictions

# Student 1908, "The probable error of a mean": hours of sleep that ten patients gained by one drug and by another
ONE_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
OTHER_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

Row = Mapping[int, float]


def row(values: Sequence[float]) -> Row:
    return dict(enumerate(values))


def with_p_value(p_value: float, mean: float = 1.0) -> list[float]:
    """Three numbers whose mean differs from 0 with that two-sided p-value."""
    spread = mean * math.sqrt(3) / float(stdtrit(2, 1 - p_value / 2))
    return [mean - spread, mean, mean + spread]


def test_two_rows_are_compared_as_student_did() -> None:
    first, second = compare([row(OTHER_DRUG), row(ONE_DRUG)], lower_is_better=False)

    assert (first.verdict, second.verdict, second.num_seeds) == ("best", "worse", 10)
    assert second.difference == pytest.approx(-1.58)
    assert second.interval == pytest.approx((-2.4598858, -0.7001142))
    assert second.p_value == pytest.approx(0.00283289)
    assert second.p_value == pytest.approx(ttest_rel(ONE_DRUG, OTHER_DRUG).pvalue)


def test_several_rows_are_held_to_the_levels_of_holms_steps() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    found = compare([row([0.0] * 3), *(row(with_p_value(each)) for each in p_values)], lower_is_better=True)

    assert [each.verdict for each in found] == ["best", "worse", *["cannot be told from it"] * 2, "worse"]
    assert [each.p_value for each in found[1:]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for each, level in zip(found[1:], [0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4], strict=True):
        assert each.interval is not None
        reach = stdtrit(2, 1 - level / 2) / stdtrit(2, 1 - p_values[found.index(each) - 1] / 2)
        assert each.interval == pytest.approx((1 - reach, 1 + reach))


@pytest.mark.parametrize(
    ("best", "other", "verdict", "num_seeds", "difference"),
    [
        pytest.param({0: 1.0, 1: 2.0}, {0: 3.0, 1: 5.0}, "too few seeds to say", 2, 2.5, id="two seeds"),
        pytest.param({0: 1.0}, {0: 2.0}, "too few seeds to say", 1, 1.0, id="one seed"),
        pytest.param({0: 1.0, 1: 1.1, 2: 1.2}, {}, "too few seeds to say", 0, None, id="no value"),
        pytest.param(
            {0: 1.0, 1: 1.1, 2: 1.2}, {3: 2.0, 4: 2.1, 5: 2.2}, "too few seeds to say", 0, None, id="no common seed"
        ),
        pytest.param(
            {0: 1.0, 1: 1.1, 2: 1.2, 3: 0.5},
            {0: 2.0, 1: 2.11, 2: 2.19, 7: 9.0},
            "worse",
            3,
            1.0,
            id="seeds of one row alone",
        ),
        pytest.param(
            {0: 1.0, 1: 1.1, 2: 1.2},
            {0: 2.0, 1: 2.2, 2: math.nan},
            "too few seeds to say",
            2,
            1.05,
            id="a seed that diverged",
        ),
        pytest.param(
            {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.3},
            {0: 2.0, 1: 2.11, 2: 2.19, 3: math.inf},
            "worse",
            3,
            1.0,
            id="one that diverged and three that did not",
        ),
        pytest.param(
            {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5, 2: 3.5}, "cannot be told from it", 3, 0.5, id="no scatter"
        ),
        pytest.param(
            {seed: float(seed) for seed in range(6)},
            {seed: seed + 0.1 for seed in range(6)},
            "worse",
            6,
            0.1,
            id="no scatter over six seeds",
        ),
        pytest.param(
            {0: -1.7e308, 1: 0.0, 2: 1.0},
            {0: 1.7e308, 1: 0.0, 2: 1.0},
            "cannot be told from it",
            3,
            None,
            id="numbers that overflow",
        ),
    ],
)
def test_what_cannot_be_compared_in_the_usual_way_is_decided(
    best: Row, other: Row, verdict: str, num_seeds: int, difference: float | None
) -> None:
    found = compare([best, other], lower_is_better=True, best=[0])[1]
    assert (found.verdict, found.num_seeds) == (verdict, num_seeds)
    if verdict != "cannot be told from it" or difference is not None:
        assert found.difference == (None if difference is None else pytest.approx(difference))


def test_equal_rows_are_both_the_best() -> None:
    same = row([0.3, 0.1, 0.2])
    assert [each.verdict for each in compare([same, row([0.2, 0.3, 0.1]), same], lower_is_better=False)] == ["best"] * 3
    told = compare([same, same], lower_is_better=False, best=[0])[1]
    assert (told.verdict, told.difference, told.p_value, told.interval) == ("cannot be told from it", 0.0, 1.0, None)


def test_against_several_best_rows_the_comparison_that_tells_least_counts() -> None:
    wide, narrow = row([0.0, 5.0, -5.0]), row([0.0, 0.001, -0.001])
    other = row([1.0, 1.002, 0.999])
    assert compare([narrow, other], lower_is_better=True)[1].verdict == "worse"
    found = compare([narrow, wide, other], lower_is_better=True)
    assert [each.verdict for each in found] == ["best", "best", "cannot be told from it"]
    few = compare([row([0.0, 0.001, -0.001]), row([0.0]), other], lower_is_better=True, best=[0, 1])
    assert few[2].verdict == "too few seeds to say"


def test_a_row_that_is_better_on_the_common_seeds_is_not_called_worse() -> None:
    marked = {0: 2.0, 1: 2.1, 2: 2.2, 3: -20.0}
    found = compare([marked, {0: 1.0, 1: 1.11, 2: 1.19}], lower_is_better=True)
    assert [each.verdict for each in found] == ["best", "cannot be told from it"]
    assert found[1].interval is not None
    assert found[1].interval[1] < 0


def test_what_diverged_is_not_the_best_and_without_values_nothing_is() -> None:
    assert best_rows([row([0.1, math.nan]), row([0.5, 0.6]), {}], lower_is_better=True) == (1,)
    assert best_rows([{}, row([math.inf])], lower_is_better=True) == ()
    assert [each.verdict for each in compare([{}, row([math.nan])], lower_is_better=True)] == [
        "too few seeds to say"
    ] * 2
    assert compare([], lower_is_better=True) == ()


NUMBERS = st.integers(-400, 400).map(lambda number: number / 8)
TABLES = st.lists(st.dictionaries(st.integers(0, 5), NUMBERS, max_size=6), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=TABLES, lower=st.booleans(), random=st.randoms())
def test_the_order_of_rows_and_seeds_changes_nothing(rows: list[dict[int, float]], lower: bool, random: Random) -> None:
    places = list(range(len(rows)))
    random.shuffle(places)
    turned = [dict(reversed(rows[place].items())) for place in places]
    found, again = compare(rows, lower_is_better=lower), compare(turned, lower_is_better=lower)
    assert [found[place] for place in places] == list(again)


@settings(max_examples=60, deadline=None)
@given(rows=TABLES, lower=st.booleans(), shift=st.integers(-64, 64), factor=st.sampled_from([0.25, 1, 4]))
def test_a_shift_and_a_scale_change_no_verdict(
    rows: list[dict[int, float]], lower: bool, shift: int, factor: float
) -> None:
    moved = [{seed: factor * value + shift for seed, value in each.items()} for each in rows]
    mirrored = [{seed: -value for seed, value in each.items()} for each in rows]
    verdicts = [each.verdict for each in compare(rows, lower_is_better=lower)]
    assert [each.verdict for each in compare(moved, lower_is_better=lower)] == verdicts
    assert [each.verdict for each in compare(mirrored, lower_is_better=not lower)] == verdicts


@settings(max_examples=60, deadline=None)
@given(rows=TABLES, lower=st.booleans())
def test_the_interval_and_the_verdict_say_the_same(rows: list[dict[int, float]], lower: bool) -> None:
    for each in compare(rows, lower_is_better=lower):
        if each.interval is not None:
            low, high = each.interval
            assert low <= (each.difference or 0) <= high
            worse_side = low > 0 if lower else high < 0
            assert (each.verdict == "worse") == worse_side


def test_the_interval_holds_the_true_difference_as_often_as_it_claims() -> None:
    random = np.random.default_rng(0)
    num_held = 0
    for _ in range(1000):
        common = random.normal(0, 3, 4)  # what a seed does to both rows
        one, other = common + random.normal(0, 1, 4), common + random.normal(0.5, 1, 4)
        interval = compare([row(one.tolist()), row(other.tolist())], lower_is_better=True, best=[0])[1].interval
        assert interval is not None
        num_held += interval[0] <= 0.5 <= interval[1]
    assert 930 <= num_held <= 970  # three standard deviations of a count around 950


@pytest.mark.parametrize(("num_rows", "largest"), [(2, 0.07), (4, 0.10)], ids=["two rows", "four rows"])
def test_of_rows_that_are_alike_few_are_called_worse(num_rows: int, largest: float) -> None:
    random = np.random.default_rng(1)
    num_wrong = 0
    for _ in range(600):
        found = compare([row(random.normal(size=5).tolist()) for _ in range(num_rows)], lower_is_better=True)
        num_wrong += any(each.verdict == "worse" for each in found)
    assert 0.02 < num_wrong / 600 < largest  # 0.07 at four rows: the best was chosen by the same numbers


def test_a_real_difference_is_seen() -> None:
    random = np.random.default_rng(2)
    common = random.normal(0, 1, 5)
    rows = [row((common + effect + random.normal(0, 0.1, 5)).tolist()) for effect in (0, 0.02, 2, 3)]
    verdicts = [each.verdict for each in compare(rows, lower_is_better=True)]
    assert verdicts[2:] == ["worse", "worse"]
    assert "worse" not in verdicts[:2]


def answers(right: Sequence[bool] | np.ndarray, index: Sequence[int] | None = None) -> Answers:
    right_N = np.asarray(right, dtype=bool)
    index_N = np.arange(len(right_N)) if index is None else np.asarray(index)
    return Answers(index_N, np.zeros(len(right_N), dtype=np.int64), right_N)


def test_the_interval_over_images_is_that_of_resampling_them_one_by_one() -> None:
    random = np.random.default_rng(3)
    best, other = random.random(400) < 0.6, random.random(400) < 0.5
    _, found = compare_tests([[answers(best)], [answers(other)]], 0)
    assert found is not None
    differences = other.astype(float) - best
    plain = bootstrap((differences,), np.mean, n_resamples=4000, method="percentile", random_state=0)
    assert found.difference == pytest.approx(differences.mean())
    assert found.interval == pytest.approx(tuple(plain.confidence_interval), abs=0.006)
    assert found.verdict == ("worse" if found.interval[1] < 0 else "cannot be told from it")


def test_images_that_both_answer_alike_do_not_blur_the_difference() -> None:
    right = np.arange(3000) < 1500
    other = right.copy()
    other[:40] = False  # 40 images fewer, out of 3,000 that are otherwise answered alike
    _, found = compare_tests([[answers(right)], [answers(other)]], 0)
    assert found is not None
    assert found.verdict == "worse"
    independent = 1.96 * math.sqrt(2 * 0.25 / 3000)
    assert found.interval[1] - found.interval[0] < independent


def test_a_tested_row_may_be_better_than_the_one_that_validation_chose() -> None:
    weak, strong = np.arange(500) < 200, np.arange(500) < 300
    none, found = compare_tests([[answers(weak)], [answers(strong)]], 0)
    assert none is None
    assert found is not None
    assert (found.verdict, found.num_images) == ("better", 500)


def test_the_seeds_of_a_row_count_as_shares_and_same_answers_as_no_difference() -> None:
    one, other = answers([True, True, False, False]), answers([True, False, True, False])
    _, found, again = compare_tests([[one, other], [one], [other, one]], 0)
    assert found is not None
    assert again is not None
    assert found.difference == 0.0
    assert (again.difference, again.interval, again.verdict) == (0.0, (0.0, 0.0), "cannot be told from it")


def test_rows_of_other_images_are_not_compared() -> None:
    best = answers([True, False, True])
    rows = [[best], [], [answers([True, True])], [answers([True, False, True], index=[2, 1, 0])], [best]]
    found = compare_tests(rows, 0)
    assert [each is None for each in found] == [True, True, True, True, False]
    assert compare_tests([[], [best]], 0) == (None, None)
    assert compare_tests([[answers([])], [answers([])]], 0) == (None, None)


def test_the_same_answers_give_the_same_interval_in_whichever_order_rows_come() -> None:
    random = np.random.default_rng(4)
    rows = [[answers(random.random(300) < share)] for share in (0.6, 0.5, 0.55)]
    found = compare_tests(rows, 0)
    assert compare_tests(rows, 0) == found
    assert compare_tests([rows[2], rows[0], rows[1]], 1) == (found[2], None, found[1])
    assert compare_tests(rows, 0, seed=1) != found


def test_more_comparisons_make_wider_intervals() -> None:
    random = np.random.default_rng(5)
    rows = [[answers(random.random(300) < 0.5)] for _ in range(10)]
    alone, among = compare_tests(rows[:2], 0)[1], compare_tests(rows, 0)[1]
    assert alone is not None
    assert among is not None
    assert among.interval[0] < alone.interval[0] < alone.interval[1] < among.interval[1]


def test_the_interval_over_images_holds_the_true_difference_as_often_as_it_claims() -> None:
    random = np.random.default_rng(6)
    num_held = 0
    for _ in range(400):
        hard = random.random(300)  # images that are hard for one are hard for the other
        one, other = hard + random.normal(0, 0.2, 300) < 0.6, hard + random.normal(0, 0.2, 300) < 0.5
        found = compare_tests([[answers(one)], [answers(other)]], 0, num_resamples=1000)[1]
        assert found is not None
        num_held += found.interval[0] <= TRUE_DIFFERENCE <= found.interval[1]
    assert 360 <= num_held <= 395


def _share_below(limit: float) -> float:
    """Chance that a uniform number plus normal noise of 0.2 lies below the limit."""
    points = np.linspace(0, 1, 20_001)
    return float(np.mean([0.5 * math.erfc((point - limit) / (0.2 * math.sqrt(2))) for point in points]))


TRUE_DIFFERENCE = _share_below(0.5) - _share_below(0.6)


def test_an_answer_is_the_class_with_the_largest_logit() -> None:
    logits_NK = np.array([[0.0, 2.0], [0.0, 1.0]], np.float32)
    found = answers_of(Predictions(np.array([3, 4]), np.array([1, 0]), logits_NK))
    assert (found.index.tolist(), found.label.tolist(), found.right.tolist()) == ([3, 4], [1, 0], [True, False])


def test_a_table_that_needs_no_comparison_loads_no_library_for_it() -> None:
    code = (
        "import sys\nfrom controller.noise import compare\n"
        "print([c.verdict for c in compare([{0: 1.0}, {0: 2.0}], lower_is_better=True)])\n"
        "print(sorted({'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['best', 'too few seeds to say']", "[]"]
