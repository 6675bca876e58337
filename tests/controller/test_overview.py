"""What a grid has come to, counted for those who watch it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pictures import import_pictures
from results import result
from views import RUN

from controller.archive import gather_facts, record_failure
from controller.grid import Grid, parse_grid
from controller.live import GridProgress, RunProgress
from controller.observe import Sight, observe, take_up
from controller.overview import Overview, time_left
from controller.search import wanted
from controller.standing import Choice, Work, chosen_work
from trainer.failure import Failure
from trainer.store import FileStore

TEXT = """\
grid: small
deadline: 2026-12-01T08:00:00Z
base:
  data: {name: pictures, resize: 24, crop: 20}
  model: {architecture: alexnet}
seeds: 2
stages:
  - name: lr
    vary: {optimizer.lr: [0.1, 0.01]}
    keep: {best: validation_accuracy}
  - name: size
    vary: {batch_size: [8, 16, 32]}
  - name: final
    test: {best: 1}
"""


@pytest.fixture
def store(file_store: FileStore, tmp_path: Path) -> FileStore:
    import_pictures(file_store, tmp_path / "pictures", per_class=6)
    return file_store


@pytest.fixture
def grid(store: FileStore) -> Grid:
    grid = parse_grid(TEXT, "small.yaml")
    take_up(grid, store, Choice())
    return grid


def look(grid: Grid, store: FileStore) -> Sight:
    return observe(grid, store, gather_facts(store, wanted(grid)))


def shown(grid: Grid, sight: Sight, running: Mapping[Work, RunProgress] | None = None) -> GridProgress:
    return Overview().progress(grid, sight, sight.work, running or {})


def finish(store: FileStore, run: str, accuracy: float) -> None:
    found = result(run).model_copy(update={"validation_accuracy": accuracy, "wall_seconds": 50.0})
    store.put(f"results/{run}.json", found.model_dump_json().encode())


def test_a_grid_that_has_not_begun_says_what_it_may_come_to(store: FileStore, grid: Grid) -> None:
    progress = shown(grid, look(grid, store))
    assert (progress.num_done, progress.num_waiting, progress.num_failed) == (0, 4, 0)
    assert [(each.name, each.depth, each.num_runs) for each in progress.stages] == [
        ("lr", 0, 4),
        ("size", 1, 6),
        ("final", 0, 0),
    ]
    assert [each.waiting is None for each in progress.stages] == [True, False, False]
    assert progress.deadline == datetime(2026, 12, 1, 8, tzinfo=UTC)
    assert progress.seconds_left is None
    assert progress.waits == ()


def test_rows_have_means_over_the_seeds_that_are_done_and_the_best_is_the_tables(store: FileStore, grid: Grid) -> None:
    first, second, third, _ = (work.run for work in look(grid, store).work)
    finish(store, first, 0.4)
    finish(store, second, 0.6)
    finish(store, third, 0.9)
    rows = shown(grid, look(grid, store)).stages[0].rows
    assert [(row.num_done, row.num_seeds, row.accuracy, row.is_best) for row in rows] == [
        (2, 2, 0.5, True),
        (1, 2, 0.9, False),
    ]
    assert rows[0].spread == pytest.approx(0.1414, abs=1e-4)
    assert rows[1].spread is None


def test_what_a_stage_kept_is_told_and_later_stages_count(store: FileStore, grid: Grid) -> None:
    for work in look(grid, store).work:
        finish(store, work.run, 0.5)
    progress = shown(grid, look(grid, store))
    assert progress.stages[0].kept == ("lr=0.1",)
    assert progress.stages[1].num_runs == 6
    assert progress.num_waiting == 6
    assert progress.seconds_left == 6 * 50


def test_runs_at_work_count_in_every_stage_that_names_them(store: FileStore, grid: Grid) -> None:
    for work in look(grid, store).work:
        finish(store, work.run, 0.5)
    sight = look(grid, store)
    todo = [work for work in sight.work if not sight.known.is_done(work)]
    progress = Overview().progress(grid, sight, sight.work, {todo[0]: RUN}, elsewhere={todo[1]: "running on node-1"})
    assert [each.num_running for each in progress.stages] == [0, 2, 0]
    assert progress.num_waiting == 4
    assert progress.elsewhere[0].endswith(": running on node-1")


def test_failures_come_with_their_reasons_the_newest_first(store: FileStore, grid: Grid) -> None:
    works = look(grid, store).work
    for hour, work in enumerate(works[:2]):
        record_failure(
            store,
            Failure(
                run=work.run,
                attempt=None,
                exit_code=65,
                reason="data",
                message=f"nan {hour}",
                final=True,
                time=datetime(2026, 1, 1, hour, tzinfo=UTC),
            ),
        )
    progress = shown(grid, look(grid, store))
    assert progress.failed == (("lr/lr=0.1 seed 1", "data: nan 1"), ("lr/lr=0.1 seed 0", "data: nan 0"))
    assert (progress.num_failed, progress.stages[0].num_failed, progress.num_waiting) == (2, 2, 2)
    for work in works[2:]:
        finish(store, work.run, 0.5)
    assert "data: nan" in str(shown(grid, look(grid, store)).stages[0].waiting)


def test_waits_are_gathered_by_their_reason(store: FileStore, grid: Grid) -> None:
    sight = look(grid, store)
    runs = [work.run for work in sight.work]
    reasons = {
        runs[0]: "queued: no room",
        runs[1]: "image: not found",
        runs[2]: "queued: no room",
        runs[3]: "running on n",
    }
    progress = Overview().progress(grid, sight, sight.work, {sight.work[3]: RUN}, reasons=reasons)
    assert progress.waits == (
        ("queued: no room", 2, "lr/lr=0.1 seed 0"),
        ("image: not found", 1, "lr/lr=0.1 seed 1"),
    )


def test_a_part_of_the_grid_is_counted_alone(store: FileStore, grid: Grid) -> None:
    sight = look(grid, store)
    progress = Overview().progress(grid, sight, chosen_work(sight.expansion, Choice("*lr=0.01*")), {})
    assert progress.num_waiting == 2
    assert progress.stages[0].num_runs == 2


def test_what_is_known_is_worked_out_once_for_many_looks(store: FileStore, grid: Grid) -> None:
    overview, sight = Overview(), look(grid, store)
    first = overview.progress(grid, sight, sight.work, {})
    assert overview.progress(grid, sight, sight.work, {}).stages[0] is first.stages[0]
    finish(store, sight.work[0].run, 0.5)
    after = look(grid, store)
    assert overview.progress(grid, after, after.work, {}).num_done == 1


def test_the_time_left_counts_what_waits() -> None:
    running = [RunProgress("a", "training", 3, seconds_left=10.0), RunProgress("b", "training", 3, seconds_left=30.0)]
    assert time_left(running, 4, []) is None
    assert time_left(running, 0, []) == 30.0
    assert time_left(running, 4, [50.0]) == (10 + 30 + 4 * 50) / 2
    assert time_left([], 0, [50.0]) is None


def test_where_nothing_has_ended_the_runs_at_work_tell_how_long_one_takes() -> None:
    run = RunProgress("a", "training", 4, epochs_done=1.0, seconds_left=30.0)
    assert time_left([run], 2, []) == 30 + 2 * 40
