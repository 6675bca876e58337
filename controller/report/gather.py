"""Everything that a report tells, read from the store into one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from PIL.Image import Image

from controller.archive import homes
from controller.grid import Grid
from controller.knowledge import NUM_CONNECTIONS
from controller.predicted import Predictions
from controller.report.images import read_images
from controller.report.tested import MISTAKES_SHOWN, Mistake, Scores, mistakes, read_predictions, scores
from controller.search import Expansion, Experiment, Run
from controller.standing import Known, State, Work, run_state
from controller.table import Table
from trainer.dataset import DatasetIndex, load_index
from trainer.failure import DataError, Failure
from trainer.history import PROVENANCE, read_metrics
from trainer.result import EpochMetrics, Provenance, ResultNumbers, TestResult, parse_record
from trainer.store import NotFound, Store

SHEET_SEED = 0  # the same images in every report of a data set
SHEET_IMAGES = 24
THUMBNAIL = 112  # longer side in pixels: of an image on a page that may hold hundreds


@dataclass(frozen=True, slots=True)
class AttemptSeen:
    """One start of a run."""

    name: str
    provenance: Provenance | None  # none where it ended before it could write it
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class RunSeen:
    """A run with all that the store has of it."""

    run: Run
    homes: tuple[str, ...]  # `stage/experiment` of each row that it belongs to
    state: State  # of its training
    reason: str | None  # why it is not done
    result: ResultNumbers | None
    test: TestResult | None
    failure: Failure | None  # final: only `grid retry` lets it be tried again
    metrics: tuple[EpochMetrics, ...]
    attempts: tuple[AttemptSeen, ...]

    @property
    def best_epoch(self) -> int | None:
        """The best epoch so far."""
        if self.result is not None:
            return self.result.best_epoch
        return max((row.epoch for row in self.metrics if row.best), default=None)

    @property
    def seconds(self) -> float:
        """The time that its training took so far."""
        return self.result.wall_seconds if self.result else sum(row.seconds for row in self.metrics)

    @property
    def gpu_seconds(self) -> float:
        """The part of it on a GPU: all or nothing, since a run keeps its numerics."""
        numerics = [each.provenance.numerics for each in self.attempts if each.provenance]
        numerics += [self.result.numerics] if self.result else []
        return self.seconds if any(each.device == "cuda" for each in numerics) else 0.0


@dataclass(frozen=True, slots=True)
class MistakeSeen:
    """A test image that a network is sure of, and wrong."""

    path: str
    label: str
    answer: str
    probability: float
    seed: int
    image: Image | None


@dataclass(frozen=True, slots=True)
class TestedRow:
    """A tested experiment, over all its seeds that are tested."""

    stage: str
    experiment: Experiment
    tests: tuple[TestResult, ...]
    classes: tuple[str, ...]
    scores: Scores | None
    mistakes: tuple[MistakeSeen, ...]
    lacks: tuple[str, ...]  # why something is not there


@dataclass(frozen=True, slots=True)
class DataSeen:
    """A data set, and some of its training images."""

    index: DatasetIndex
    sheet: tuple[tuple[str, Image], ...]  # name of the class, image
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A grid as far as it is, for a report."""

    grid: Grid
    expansion: Expansion
    known: Known
    table: Table
    waiting: Mapping[str, str]  # by stage that is not decided: why
    runs: Mapping[str, RunSeen]
    tested: tuple[TestedRow, ...] = field(default=())
    data: tuple[DataSeen, ...] = field(default=())


def gather(
    grid: Grid,
    expansion: Expansion,
    known: Known,
    active: Mapping[str, str],
    waiting: Mapping[str, str],
    table: Table,
    store: Store,
) -> Gathered:
    """All of the grid; what the store lacks is missing from the value, and said there. Raises as the store does."""
    places = homes(expansion)
    runs = expansion.runs()

    def seen(run: Run) -> RunSeen:
        state, reason = run_state(Work(run.id, is_test=False), known, active)
        return RunSeen(
            run,
            places[run.id],
            state,
            reason,
            known.results.get(run.id),
            known.tests.get(run.id),
            known.failures.get(run.id),
            tuple(read_metrics(store, run.id)),
            read_attempts(store, run.id),
        )

    with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="report") as pool:
        found = dict(zip(runs, pool.map(seen, runs.values()), strict=True))
    names = dict.fromkeys(run.hyperparameters.data.name for run in runs.values())
    indexes = {name: index for name in names if (index := _index(store, name)) is not None}
    data = tuple(_data(store, index) for index in indexes.values())
    tested = tuple(
        _tested(store, stage.name, experiment, known, indexes.get(experiment.spec.data.name))
        for stage in expansion.stages
        if stage.is_test
        for experiment in stage.experiments
        if any(run.id in known.tests for run in experiment.runs)
    )
    return Gathered(grid, expansion, known, table, waiting, found, tested, data)


def read_attempts(store: Store, run: str) -> tuple[AttemptSeen, ...]:
    """The run's attempts in their order, each with its provenance and how it failed. Raises DataError on a torn one."""
    prefix = f"runs/{run}/attempts/"
    keys = sorted(entry.key for entry in store.list(prefix))
    names = list(dict.fromkeys(key.removeprefix(prefix).partition("/")[0] for key in keys))

    def read(key: str) -> bytes | None:
        try:
            return store.get(key) if key in keys else None
        except NotFound:
            return None

    found = []
    for name in names:
        key = f"{prefix}{name}{PROVENANCE}"
        provenance = None if (data := read(key)) is None else parse_record(Provenance, key, data)
        key = f"{prefix}{name}/failure.json"
        failure = None if (data := read(key)) is None else parse_record(Failure, key, data)
        found.append(AttemptSeen(name, provenance, failure))
    return tuple(found)


def _index(store: Store, name: str) -> DatasetIndex | None:
    """The data set's index; none where the store has none that can be read."""
    try:
        return load_index(store, name)
    except DataError:
        return None


def _data(store: Store, index: DatasetIndex) -> DataSeen:
    entries = index.entries("train")
    chosen = sorted(Random(SHEET_SEED).sample(range(len(entries)), min(SHEET_IMAGES, len(entries))))
    images, lacks = read_images(store, index, [entries[row] for row in chosen], THUMBNAIL)
    named = [(index.classes[entries[row].label], image) for row, image in zip(chosen, images, strict=True)]
    return DataSeen(index, tuple((name, image) for name, image in named if image is not None), lacks)


def _tested(store: Store, stage: str, experiment: Experiment, known: Known, index: DatasetIndex | None) -> TestedRow:
    tests = [known.tests[run.id] for run in experiment.runs if run.id in known.tests]
    if index is None:
        lack = f"data set {experiment.spec.data.name} is not in the store: its classes are not known"
        return TestedRow(stage, experiment, tuple(tests), (), None, (), (lack,))
    read: list[tuple[int, Predictions]] = []
    lacks: list[str] = []
    for run in experiment.runs:
        test = known.tests.get(run.id)
        if test is None:
            lacks.append(f"seed {run.seed} is not tested yet")
        elif test.data_fingerprint != index.fingerprint:
            lacks.append(f"seed {run.seed} was tested on another version of the data set")
        else:
            try:
                read.append((run.seed, read_predictions(store, test.predictions, index.num_classes)))
            except DataError as error:
                lacks.append(f"seed {run.seed}: {error.message}")
    found = scores([each for _, each in read]) if read else None
    shown, further = _mistakes(store, read, index)
    return TestedRow(stage, experiment, tuple(tests), index.classes, found, shown, (*lacks, *further))


def _mistakes(
    store: Store, read: Sequence[tuple[int, Predictions]], index: DatasetIndex
) -> tuple[tuple[MistakeSeen, ...], tuple[str, ...]]:
    """The most confident mistakes over all seeds, each image once."""
    entries = index.entries("test")
    made = [(mistake, seed) for seed, each in read for mistake in mistakes(each)]
    made.sort(key=lambda pair: (-pair[0].probability, pair[0].image, pair[1]))
    surest: dict[int, tuple[Mistake, int]] = {}
    for mistake, seed in made:
        surest.setdefault(mistake.image, (mistake, seed))
    first = list(surest.values())[:MISTAKES_SHOWN]
    if any(mistake.image >= len(entries) for mistake, _ in first):
        return (), ("the predictions name images that the data set does not have",)
    images, lacks = read_images(store, index, [entries[mistake.image] for mistake, _ in first], THUMBNAIL)
    return tuple(
        MistakeSeen(
            entries[mistake.image].path,
            index.classes[mistake.label],
            index.classes[mistake.answer],
            mistake.probability,
            seed,
            image,
        )
        for (mistake, seed), image in zip(first, images, strict=True)
    ), lacks
