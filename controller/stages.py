"""What a grid file may hold: stages, what they vary, keep and test. Only models; `checks` has what these cannot see."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, FiniteFloat, NonNegativeInt, PositiveInt, Tag

from trainer.document import dotted_keys
from trainer.spec import ExperimentSpec, Frozen, ValidationMetric

BASE = "base"
SAFE_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"  # fit for a key of the store and a Kubernetes label
MAX_SEEDS = 10_000
LARGEST_SEED = (1 << 53) - 1  # whole numbers above are not exact in every reader of JSON
SPEC_KEYS = dotted_keys(ExperimentSpec)

Values = dict[str, Any]


def _seeds_kind(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "list" if value else None
    is_count = isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value % 1 == 0
    return "count" if is_count else None


Seed = Annotated[NonNegativeInt, Field(le=LARGEST_SEED)]
Seeds = Annotated[
    Annotated[PositiveInt, Field(le=MAX_SEEDS), Tag("count")]
    | Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_SEEDS), Tag("list")],
    Discriminator(
        _seeds_kind,
        custom_error_type="number_or_list",
        custom_error_message="how many seeds, from 1 on, or a list of seeds such as [0, 1, 2]",
    ),
]


def seed_list(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds that a number of them, or a list, means."""
    return tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)


def read_moment(text: str) -> datetime:
    """The moment that the text names. Raises ValueError where that hangs on a time zone, or is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError("expected a moment with its offset from UTC, YYYY-MM-DDThh:mm:ssZ")
    return found


def _checked_moment(text: str) -> str:
    read_moment(text)
    return text


Moment = Annotated[str, AfterValidator(_checked_moment), Field(json_schema_extra={"format": "date-time"})]


class KeepBest(Frozen):
    """Keep the row that is best by the mean over seeds of a validation metric."""

    best: ValidationMetric = Field(description="validation metric, each run's read at its best epoch")


class KeepThis(Frozen):
    """Keep one row whatever the results, for a reason."""

    this: Annotated[Values, Field(min_length=1)] = Field(
        description="values that only this row has, by dotted key, or its `name`"
    )
    because: str = Field(min_length=1, description="the reason, as the table shows it")


class TestBest(Frozen):
    """Test the best distinct experiments of earlier stages."""

    __test__ = False

    best: PositiveInt = Field(description="how many")
    by: ValidationMetric | None = Field(default=None, description="validation metric; that of base.best if left out")
    of: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="stages to choose from; all before this one if left out"
    )


class PinnedRow(Frozen):
    """One row of an earlier stage."""

    stage: str = Field(description="the name of that stage")
    this: Annotated[Values, Field(min_length=1)] = Field(
        description="values that only this row has, by dotted key, or its `name`"
    )
    name: str | None = Field(
        default=None,
        description="what the row is called in the test stage's table; `stage/row` if left out. A row so named is "
        "wanted for itself: `--set keep=best` leaves its stage as it is",
    )


class TestThese(Frozen):
    """Test certain rows of earlier stages whatever the results, for a reason."""

    __test__ = False

    these: Annotated[tuple[PinnedRow, ...], Field(min_length=1)] = Field(description="the rows")
    because: str = Field(min_length=1, description="the reason, as the table shows it")


def _keep_kind(value: Any) -> str:
    pinned = isinstance(value, KeepThis) or (
        isinstance(value, dict) and not value.keys().isdisjoint(("this", "because"))
    )
    return "KeepThis" if pinned else "KeepBest"


def _test_kind(value: Any) -> str:
    pinned = isinstance(value, TestThese) or (
        isinstance(value, dict) and not value.keys().isdisjoint(("these", "because"))
    )
    return "TestThese" if pinned else "TestBest"


Keep = Annotated[Annotated[KeepBest, Tag("KeepBest")] | Annotated[KeepThis, Tag("KeepThis")], Discriminator(_keep_kind)]
Test = Annotated[
    Annotated[TestBest, Tag("TestBest")] | Annotated[TestThese, Tag("TestThese")], Discriminator(_test_kind)
]


PublishedMetric = Literal[
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_balanced_accuracy",
    "validation_top5_accuracy",
    "test_loss",
    "test_accuracy",
    "test_balanced_accuracy",
    "test_top5_accuracy",
    "best_epoch",
    "num_trainable_parameters",
    "num_parameters",
]


class PublishedRow(Frozen):
    """What someone published of one row."""

    this: Annotated[Values, Field(min_length=1)] = Field(
        description="values that only this row has, by dotted key, or its `name`"
    )
    stage: str | None = Field(
        default=None,
        description="in a test stage: the earlier stage that has the row; left out for one that `these` gives a name",
    )
    numbers: Annotated[dict[PublishedMetric, FiniteFloat], Field(min_length=1)] = Field(
        description="the figures by metric; accuracies from 0 to 1, those of the test part in a test stage only"
    )
    at: Values = Field(
        default={},
        description="further values that the figures were published for, by dotted key: where the row has others, "
        "they are left out",
    )
    note: str | None = Field(default=None, description="what is odd about them, as a footnote")


class Published(Frozen):
    """Figures that someone published, shown beside ours; they change no run and no choice."""

    at: Values = Field(default={}, description="as in the rows, for all of them")
    note: str | None = Field(default=None, description="what to know about all of them, below the table")
    apart: tuple[str, ...] = Field(
        default=(),
        description="keys of data and model whose values here are none that the figures were published for: then no "
        "difference is worked out. A form, or `--set`, adds those that it changes",
    )
    rows: Annotated[tuple[PublishedRow, ...], Field(min_length=1)] = Field(description="row by row")


class Stage(Frozen):
    """Experiments that are compared with one another. Points, zip and vary together make their product."""

    name: str = Field(pattern=SAFE_NAME, description="unique within the grid")
    start: str | None = Field(
        default=None,
        alias="from",
        description="the stage whose kept values this one starts from, or `base`; the one before if left out",
    )
    base: ExperimentSpec | None = Field(
        default=None, description="values that this stage starts from in place of the grid's base"
    )
    fixed: Values = Field(default={}, alias="set", description="values for all rows, by dotted key")
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default={}, description="values to try, by dotted key: every combination is a row"
    )
    zipped: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default={}, alias="zip", description="values to try side by side, by dotted key: lists of one length"
    )
    points: tuple[Annotated[Values, Field(min_length=1)], ...] = Field(
        default=(), description="rows one by one: values by dotted key, and a `name` if the values make no good one"
    )
    exclude: tuple[Annotated[Values, Field(min_length=1)], ...] = Field(
        default=(), description="rows to leave out: each that has all of the values given"
    )
    seeds: Seeds | None = Field(default=None, description="seeds of this stage; the grid's if left out")
    keep: Keep | None = Field(
        default=None, description="which row later stages start from; the best by base.best.metric if left out"
    )
    on_failed: Literal["stop", "ignore", "wait"] = Field(
        default="stop",
        description="what a failed row does to the choice: nothing is kept and the grid ends there (stop), the row "
        "counts as the worst (ignore), or the stage waits for `grid retry` (wait). Diverged rows always rank last, "
        "and in a test stage failed ones that each stage it tests ignores",
    )
    test: Test | None = Field(
        default=None, description="makes this a test stage: earlier rows, evaluated once on the test part"
    )
    published: Published | None = Field(default=None, description="figures to compare with")

    @property
    def rule_metric(self) -> str | None:
        """The validation metric by which its rule keeps or tests rows; none where it names them."""
        if self.test is not None:
            return self.test.by if isinstance(self.test, TestBest) else None
        return self.keep.best if isinstance(self.keep, KeepBest) else None


class Form(Frozen):
    """A named variant of a grid, `<grid>.<form>`: some values others, all else the same."""

    description: str = Field(default="", description="one line on what differs")
    fixed: Values = Field(
        default={}, alias="set", description="values for the base and for stages that `set` them, by dotted key"
    )
    mapped: dict[str, Annotated[dict[str, Any], Field(min_length=1)]] = Field(
        default={},
        alias="map",
        description="by dotted key: which value stands for which, wherever the grid has it, in what stages compare, "
        "keep and test, too; without it a stage goes on comparing what it compares",
    )
    seeds: Seeds | None = Field(default=None, description="seeds of the whole grid; as they are if left out")


FORM_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"


class GridFile(Frozen):
    """A grid: what to compare, stage by stage."""

    grid: str = Field(pattern=SAFE_NAME, description="the grid's name in the store")
    description: str = Field(default="", description="one line that `grid list` shows")
    forms: dict[Annotated[str, Field(pattern=FORM_NAME)], Form] = Field(
        default={}, description="variants by name: `grid run <grid>.<form>`"
    )
    base: ExperimentSpec = Field(description="values that every experiment starts from")
    seeds: Seeds = Field(default=1, description="how many seeds, counted from 0, or a list of them")
    max_failed: NonNegativeInt | None = Field(
        default=None, description="with more failed runs than this, no other is started; null never stops"
    )
    deadline: Moment | None = Field(
        default=None,
        description="when it should be done, such as 2026-12-01T08:00:00Z: monitoring warns where it will not be, and "
        "nothing else changes",
    )
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = Field(
        description="in the order of the table; each may start from what an earlier one kept"
    )


class Inclusion(Frozen):
    """Some stages of another grid, with those that they start from."""

    grid: str = Field(description="a grid's name, or a file beside this one")
    stages: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="names of its stages")


def _inclusion_kind(value: Any) -> str:
    return "part" if isinstance(value, dict | Inclusion) else "whole"


Included = Annotated[
    Annotated[str, Tag("whole")] | Annotated[Inclusion, Tag("part")],
    Discriminator(_inclusion_kind),
]


class IncludingFile(Frozen):
    """A grid made of grids: their stages, each under `<grid>.<stage>`, with their own bases and figures."""

    grid: str = Field(pattern=SAFE_NAME, description="the grid's name in the store")
    description: str = Field(default="", description="one line that `grid list` shows")
    include: Annotated[tuple[Included, ...], Field(min_length=1)] = Field(
        description="names of grids that come with the program, files beside this one, or some stages of such"
    )
    seeds: Seeds | None = Field(default=None, description="seeds of the whole grid; each its own if left out")
    max_failed: NonNegativeInt | None = Field(
        default=None, description="with more failed runs than this, no other is started; null never stops"
    )
    deadline: Moment | None = Field(
        default=None,
        description="when it should be done, such as 2026-12-01T08:00:00Z: monitoring warns where it will not be, and "
        "nothing else changes",
    )
    stages: tuple[Stage, ...] = Field(default=(), description="further stages, after those included")
