"""What differences in a table are more than noise: over seeds, and over the images of the test part.

docs/comparing.md describes the method, where it comes from, and what it does not say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from controller.predicted import Predictions

# numpy and scipy are loaded where they are used: a table of one seed needs neither

LEVEL = 0.05
"""Chance of calling any row of a stage worse, or any tested row different, where none is."""
FEWEST_SEEDS = 3
"""So many seeds must two rows share to be compared: two have one difference of differences to judge the noise by."""
NUM_RESAMPLES = 10_000
SAME = 1e-9  # of the largest value: what differs by less differs by rounding

Verdict = Literal["best", "cannot be told from it", "worse", "too few seeds to say"]
TestVerdict = Literal["better", "cannot be told from it", "worse"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What can be said of a row beside the best of its stage, in the metric's own units."""

    verdict: Verdict
    num_seeds: int  # that both have a finite value of; of a best row, its own
    difference: float | None = None  # the row's mean less the best row's, over those seeds
    interval: tuple[float, float] | None = None  # of that; zero is outside exactly where Holm's step tells them apart
    p_value: float | None = None  # adjusted by Holm, two-sided


@dataclass(frozen=True, slots=True)
class TestComparison:
    """What can be said of a tested row beside the best, by the test images they answer otherwise."""

    __test__ = False  # no class of test cases, for all that pytest can tell from its name

    num_images: int
    difference: float  # the row's test accuracy less the best row's
    interval: tuple[float, float]

    @property
    def verdict(self) -> TestVerdict:
        """On which side of zero the interval lies; the best is chosen by validation, so that a row may be better."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "cannot be told from it"


# Over seeds


def compare(
    rows: Sequence[Mapping[int, float]],
    *,
    lower_is_better: bool,
    best: Collection[int] | None = None,
    level: float = LEVEL,
) -> tuple[Comparison, ...]:
    """What can be said of each row of a stage; a row is its value of the metric by seed.

    `best` are the indices of the best row, or of several that are equally good; by default `best_rows`. A value that
    is not finite is that of a seed that diverged: it is left out, as a seed without a result is. Against several best
    rows a row is compared with each, and the comparison that tells least counts.
    """
    values = [{seed: value for seed, value in row.items() if math.isfinite(value)} for row in rows]
    chosen = sorted(set(best_rows(rows, lower_is_better=lower_is_better) if best is None else best))
    tests = {
        index: max((_paired(row, values[other]) for other in chosen), key=_Paired.says_little)
        for index, row in enumerate(values)
        if chosen and index not in chosen
    }
    levels, p_values = _holm({index: test.p_value for index, test in tests.items() if test.p_value is not None}, level)
    found = []
    for index, row in enumerate(values):
        test = tests.get(index)
        if index in chosen:
            found.append(Comparison("best", len(row), 0.0 if row else None))
        elif test is None or test.p_value is None:
            found.append(
                Comparison("too few seeds to say", test.num_seeds if test else 0, test.difference if test else None)
            )
        else:
            assert test.difference is not None
            is_worse = test.p_value <= levels[index] and (test.difference > 0) == lower_is_better
            found.append(
                Comparison(
                    "worse" if is_worse else "cannot be told from it",
                    test.num_seeds,
                    test.difference,
                    test.interval(levels[index]),
                    p_values[index],
                )
            )
    return tuple(found)


def best_rows(rows: Sequence[Mapping[int, float]], *, lower_is_better: bool) -> tuple[int, ...]:
    """Indices of the rows with the best mean, several where they are equal but for rounding; none without values.

    A row with a value that is not finite is not among them: what diverged is not the best.
    """
    means = {
        index: _mean(list(row.values()))
        for index, row in enumerate(rows)
        if row and all(math.isfinite(value) for value in row.values())
    }
    if not means:
        return ()
    first = min(means.values()) if lower_is_better else max(means.values())
    near = SAME * max(abs(mean) for mean in means.values())
    return tuple(index for index, mean in means.items() if abs(mean - first) <= near)


@dataclass(frozen=True, slots=True)
class _Paired:
    """A paired t-test of two rows, over the seeds that both have."""

    num_seeds: int
    difference: float | None = None  # mean
    error: float | None = None  # standard error of that; none where the differences do not scatter
    p_value: float | None = None  # two-sided; none with too few seeds

    def says_little(self) -> tuple[float, ...]:
        """Sort key: the larger, the less is told."""
        return (
            2.0 if self.p_value is None else self.p_value,
            -self.num_seeds,
            self.error or 0.0,
            self.difference or 0.0,
        )

    def interval(self, level: float) -> tuple[float, float] | None:
        """Where the true difference lies, but for a chance of `level`; none where nothing shows how far it scatters."""
        from scipy.special import stdtrit  # a third of what scipy.stats takes to load, which calls the same

        if self.error is None or self.difference is None:
            return None
        reach = float(stdtrit(self.num_seeds - 1, 1 - level / 2)) * self.error
        return self.difference - reach, self.difference + reach


def _paired(row: Mapping[int, float], other: Mapping[int, float]) -> _Paired:
    seeds = sorted(set(row) & set(other))
    number = len(seeds)
    if not number:
        return _Paired(0)
    differences = [row[seed] - other[seed] for seed in seeds]
    mean = _mean(differences)
    if number < FEWEST_SEEDS:
        return _Paired(number, mean)
    from scipy.special import stdtr

    error = math.hypot(*[each - mean for each in differences]) / math.sqrt(number * (number - 1))
    rounding = SAME * max(abs(row[seed]) + abs(other[seed]) for seed in seeds)
    if not math.isfinite(error):  # numbers near the largest that there are
        return _Paired(number, mean, None, 1.0)
    if error <= rounding:
        # no scatter to hold the mean against: what is left is that all have one sign, as so many coins would by chance
        return _Paired(number, mean, None, 1.0 if abs(mean) <= rounding else 2 * 0.5**number)
    return _Paired(number, mean, error, 2 * float(stdtr(number - 1, -abs(mean) / error)))


def _mean(values: Sequence[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # numbers near the largest that there are; ValueError: inf and -inf
        return math.nan


def _holm(p_values: Mapping[int, float], level: float) -> tuple[dict[int, float], dict[int, float]]:
    """Of each comparison the level that Holm's step holds it against, and its adjusted p-value.

    From the first that is not rejected on, all are held against that one's level: so a comparison is rejected exactly
    where its p-value is at most its level, and its interval at that level says the same.
    """
    levels: dict[int, float] = {}
    adjusted: dict[int, float] = {}
    held, before, largest, has_stopped = level, -1.0, 0.0, False
    for rank, index in enumerate(sorted(p_values, key=lambda index: p_values[index])):
        p_value, remaining = p_values[index], len(p_values) - rank
        if not has_stopped and p_value != before:  # equal ones are held against one level, whatever their order
            held = level / remaining
            has_stopped = p_value > held
        largest = max(largest, min(1.0, p_value * remaining))
        levels[index], adjusted[index], before = held, largest, p_value
    return levels, adjusted


# Over test images


@dataclass(frozen=True, slots=True)
class Answers:
    """What a run answered on the test part: of each image which it is, what it shows, and whether it was told right."""

    index: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]


def answers_of(predictions: Predictions) -> Answers:
    """What the predictions come to: the class with the largest logit is the answer."""
    right_N = predictions.logits.argmax(axis=1) == predictions.labels
    return Answers(predictions.indices, predictions.labels, right_N)


def compare_tests(
    rows: Sequence[Sequence[Answers]],
    best: int,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[TestComparison | None, ...]:
    """What can be said of the test accuracy of each row beside the row `best`; a row has the answers of its runs.

    A paired bootstrap over images: each resample draws as many images as there are, with replacement, the same for
    both rows; of the differences that it gives, `level` divided by the number of comparisons lies outside the
    interval. A row's answer to an image counts as the share of its runs that are right. None stands for the best row
    itself, for a row without answers, and for one that was tested on other images.
    """
    if not rows[best]:
        return (None,) * len(rows)
    first = rows[best][0]
    compared = [
        index
        for index, row in enumerate(rows)
        if index != best and row and all(_same_images(first, each) for each in (*row, *rows[best])) and len(first.label)
    ]
    reference_N = _share_right(rows[best])
    found: list[TestComparison | None] = [None] * len(rows)
    for index in compared:
        differences_N = _share_right(rows[index]) - reference_N
        interval = _bootstrap(differences_N, level / len(compared), num_resamples, seed)
        found[index] = TestComparison(len(differences_N), float(differences_N.mean()), interval)
    return tuple(found)


def _same_images(one: Answers, other: Answers) -> bool:
    import numpy as np

    return np.array_equal(one.index, other.index) and np.array_equal(one.label, other.label)


def _share_right(row: Sequence[Answers]) -> npt.NDArray[np.float64]:
    import numpy as np

    shares_N: npt.NDArray[np.float64] = np.mean([each.right for each in row], axis=0, dtype=np.float64)
    return shares_N


def _bootstrap(
    differences_N: npt.NDArray[np.float64], level: float, num_resamples: int, seed: int
) -> tuple[float, float]:
    """The percentile interval of the mean.

    Images of equal difference are as one to the mean: how many of each kind a resample draws is one multinomial draw
    over a handful of kinds, in the place of thousands of images.
    """
    import numpy as np

    kinds, counts = np.unique(differences_N.round(12), return_counts=True)
    number = len(differences_N)
    drawn = np.random.default_rng(seed).multinomial(number, counts / number, size=num_resamples)
    low, high = np.quantile(drawn @ kinds / number, [level / 2, 1 - level / 2])
    return float(low), float(high)
