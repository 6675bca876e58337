"""What the predictions of a test say: a confusion matrix, classes by accuracy, confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from controller.predicted import ANEW, Predictions, parse_predictions
from trainer.failure import DataError
from trainer.store import NotFound, Store

MISTAKES_SHOWN = 24
CLASSES_SHOWN = 8  # at either end
PAIRS_SHOWN = 10


class Mistake(NamedTuple):
    """A wrong answer, and how sure the network was of it."""

    image: int  # index within the test part
    label: int
    answer: int
    probability: float  # softmax of the logits


class ClassScore(NamedTuple):
    """One class of the test part; counts are over all seeds."""

    label: int
    accuracy: float
    num_images: int


class Confusion(NamedTuple):
    """Images of one class that were taken for another; counts are over all seeds."""

    label: int
    answer: int
    num_images: int
    part: float  # of all images of the class


@dataclass(frozen=True, slots=True)
class Scores:
    """What the answers of some seeds come to."""

    num_seeds: int
    counts: npt.NDArray[np.int64]  # (K, K) by true class and answer: images, summed over seeds
    by_class: tuple[ClassScore, ...]  # classes with test images, worst first

    @property
    def only_answer(self) -> int | None:
        """The class that every image is taken for; none where there are more of them."""
        answers = np.flatnonzero(self.counts.sum(axis=0))
        return int(answers[0]) if len(answers) == 1 else None

    @property
    def accuracy(self) -> float:
        """The part of all answers that are right."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def worst(self) -> tuple[ClassScore, ...]:
        """The classes that are recognised worst; at most the worse half."""
        return self.by_class[: min(CLASSES_SHOWN, (len(self.by_class) + 1) // 2)]

    @property
    def best(self) -> tuple[ClassScore, ...]:
        """The classes that are recognised best, the best first; at most the better half."""
        return self.by_class[::-1][: min(CLASSES_SHOWN, len(self.by_class) // 2)]

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """The most frequent confusions."""
        off_KK = self.counts.copy()
        np.fill_diagonal(off_KK, 0)
        totals_K = self.counts.sum(axis=1)
        places = np.argsort(-off_KK, axis=None, kind="stable")[:PAIRS_SHOWN]
        pairs = zip(*np.unravel_index(places, off_KK.shape), strict=True)
        return tuple(
            Confusion(int(label), int(answer), int(off_KK[label, answer]), float(off_KK[label, answer] / total))
            for label, answer in pairs
            if off_KK[label, answer] and (total := totals_K[label])
        )


def read_predictions(store: Store, key: str, num_classes: int) -> Predictions:
    """The predictions that the store has under `key`. Raises DataError where there are none, or none that fit."""
    try:
        found = parse_predictions(key, store.get(key))
    except NotFound as error:
        raise DataError(f"{key}: not in the store", hint=ANEW) from error
    if found.logits.shape[1] != num_classes:
        raise DataError(f"{key}: got answers of {found.logits.shape[1]} classes, expected {num_classes}", hint=ANEW)
    return found


def scores(predictions: Sequence[Predictions]) -> Scores:
    """What the answers come to, summed over `predictions`, one for each seed."""
    num_classes = predictions[0].logits.shape[1]
    counts_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
    for each in predictions:
        np.add.at(counts_KK, (each.labels, each.logits.argmax(axis=1)), 1)
    totals_K = counts_KK.sum(axis=1)
    by_class = [
        ClassScore(label, float(counts_KK[label, label] / total), int(total))
        for label, total in enumerate(totals_K)
        if total
    ]
    by_class.sort(key=lambda each: each.accuracy)
    return Scores(len(predictions), counts_KK, tuple(by_class))


def mistakes(predictions: Predictions, number: int = MISTAKES_SHOWN) -> tuple[Mistake, ...]:
    """The `number` wrong answers of which the network is surest, the surest first."""
    logits_NK = predictions.logits.astype(np.float64)
    answer_N = logits_NK.argmax(axis=1)
    shifted_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    sure_N = 1 / np.exp(shifted_NK).sum(axis=1)
    wrong = np.flatnonzero((answer_N != predictions.labels) & np.isfinite(sure_N))
    chosen = wrong[np.argsort(-sure_N[wrong], kind="stable")][:number]
    return tuple(
        Mistake(int(predictions.indices[n]), int(predictions.labels[n]), int(answer_N[n]), float(sure_N[n]))
        for n in chosen
    )
