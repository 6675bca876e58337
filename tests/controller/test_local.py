"""A grid on this machine: what is chosen, what is started, what an exit means; and real grids, real kills."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pytest
from grids import TEXT, runs_of
from pictures import import_pictures
from results import result

from controller import local, workers
from controller.archive import checkpoint_sequence, gather_facts, hold_run, read_held, record_failure
from controller.attempts import MAX_TRIES, crash_failure, end_text, numbers_missing, show_exit, unrecorded_failure
from controller.grid import Grid, parse_grid
from controller.knowledge import read_decisions, read_failures, read_leases, read_results
from controller.live import GridProgress, RunProgress, View, Word
from controller.local import (
    Backoff,
    Outcome,
    Verdict,
    judge,
    next_starts,
    retry,
    run_grid,
    status,
)
from controller.search import Decision, Facts, expand, wanted
from controller.standing import Choice, Work, chosen_work
from controller.workers import Machine, Share, num_threads, share_of
from trainer.child import PRELOAD, report_load
from trainer.failure import DataError, ExitCode, Failure, SpecError, StoreError
from trainer.identity import read_spec
from trainer.lease import run_lock
from trainer.result import PASSING, Result
from trainer.spec import DataSpec, ExperimentSpec, ModelSpec
from trainer.store import FileStore

MIB = 1 << 20

NOW = datetime(2026, 1, 1, tzinfo=UTC)


# --- values in, values out


def spec(batch_size: int = 256, crop: int = 224) -> ExperimentSpec:
    return ExperimentSpec(
        data=DataSpec(name="d", crop=crop), model=ModelSpec(architecture="alexnet"), batch_size=batch_size
    )


@pytest.mark.parametrize(
    ("machine", "parallel", "small", "threads"),
    [
        pytest.param(Machine(8, MIB), None, True, 1, id="small-steps-take-one-thread"),
        pytest.param(Machine(8, MIB), None, False, 8, id="large-steps-take-all"),
        pytest.param(Machine(8, MIB), 2, False, 4, id="asked-for-two-at-once"),
        pytest.param(Machine(8, MIB), 16, True, 1, id="more-at-once-than-processors"),
        pytest.param(Machine(8, MIB, ("0", "1")), None, True, 4, id="processors-shared-by-gpus"),
        pytest.param(Machine(8, MIB, threads=3), None, False, 3, id="omp-num-threads-is-obeyed"),
    ],
)
def test_threads_hang_on_the_run_and_the_machine_alone(
    machine: Machine, parallel: int | None, small: bool, threads: int
) -> None:
    assert num_threads(spec(16, 32) if small else spec(), machine, parallel) == threads


SMALL, LARGE = spec(16, 32), spec()
ROOMY = 1 << 50


@pytest.mark.parametrize(
    ("machine", "parallel", "wanted", "shares"),
    [
        pytest.param(Machine(3, ROOMY), None, [SMALL] * 5, [Share(1)] * 3, id="small-runs-fill-the-processors"),
        pytest.param(Machine(3, ROOMY), None, [LARGE] * 2, [Share(3)], id="a-large-run-alone"),
        pytest.param(Machine(3, ROOMY), None, [SMALL, LARGE, SMALL], [Share(1)], id="none-passes-one-that-waits"),
        pytest.param(Machine(3, 4 << 30), None, [SMALL] * 3, [Share(1)] * 2, id="as-memory-allows"),
        pytest.param(Machine(3, 0), None, [SMALL] * 3, [Share(1)], id="one-always"),
        pytest.param(Machine(3, 0), 2, [SMALL] * 3, [Share(1)] * 2, id="as-asked"),
        pytest.param(
            Machine(8, ROOMY, ("0", "1")), None, [LARGE] * 3, [Share(4, "0"), Share(4, "1")], id="one-for-each-gpu"
        ),
        pytest.param(
            Machine(8, ROOMY, ("5",)), 2, [LARGE] * 3, [Share(4, "5"), Share(4, "5")], id="two-on-a-gpu-as-asked"
        ),
    ],
)
def test_as_many_start_as_the_machine_has_room_for(
    machine: Machine, parallel: int | None, wanted: list[ExperimentSpec], shares: list[Share]
) -> None:
    ready = [Work(str(number), False) for number in range(len(wanted))]
    specs = {str(number): each for number, each in enumerate(wanted)}
    starts = next_starts(ready, specs, machine, parallel, [])
    assert starts == list(zip(ready, shares, strict=False))


def test_what_is_at_work_takes_its_share() -> None:
    assert share_of(SMALL, Machine(2, ROOMY), None, [Share(1), Share(1)]) is None
    assert share_of(SMALL, Machine(2, ROOMY), None, [Share(1)]) == Share(1)
    assert share_of(LARGE, Machine(2, ROOMY, ("0", "1")), None, [Share(1, "0")]) == Share(1, "1")


def test_a_share_is_given_by_variables() -> None:
    assert Share(3).environment() == {"OMP_NUM_THREADS": "3"}
    assert Share(3, "1").environment() == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize(
    ("exit_code", "verdict"),
    [
        pytest.param(0, "done", id="done"),
        pytest.param(64, "failed", id="spec"),
        pytest.param(65, "failed", id="data"),
        pytest.param(70, "failed", id="training"),
        pytest.param(69, "again", id="store"),
        pytest.param(71, "again", id="device"),
        pytest.param(1, "again", id="crash"),
        pytest.param(137, "again", id="killed"),
        pytest.param(75, "elsewhere", id="stopped"),
    ],
)
def test_an_exit_code_says_what_comes_next(exit_code: int, verdict: Verdict) -> None:
    assert judge(exit_code, Backoff(), 0, 0.0)[0] == verdict


def test_attempts_without_a_newer_checkpoint_are_bounded_and_further_apart() -> None:
    backoff, verdicts = Backoff(), []
    for _ in range(MAX_TRIES):
        verdict, backoff = judge(137, backoff, 4, 100.0)
        verdicts.append((verdict, backoff.not_before))
    assert verdicts[:-1] == [("again", 100.0 + pause) for pause in local.PAUSE_SECONDS]
    assert verdicts[-1][0] == "give up"


def test_every_later_attempt_waits_as_long_as_the_last_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_TRIES", 6)
    backoff, pauses = Backoff(), []
    for _ in range(5):
        verdict, backoff = judge(137, backoff, 4, 100.0)
        assert verdict == "again"
        pauses.append(backoff.not_before - 100.0)
    first, last = local.PAUSE_SECONDS
    assert pauses == pytest.approx([first, last, last, last, last])


def test_attempts_with_a_newer_checkpoint_are_not_bounded() -> None:
    backoff = Backoff()
    for sequence in range(1, 20):
        verdict, backoff = judge(137, backoff, sequence, 0.0)
        assert verdict == "again"


def test_a_stop_by_someone_else_counts_for_nothing() -> None:
    _, backoff = judge(137, Backoff(), 0, 0.0)
    assert judge(75, backoff, 0, 0.0)[1].count == backoff.count


def test_a_killed_run_is_suspected_to_need_memory() -> None:
    failure = crash_failure(Work("a-1", False), None, 137, None, ["last words"], NOW)
    assert (failure.reason, failure.final, failure.log_tail) == ("crashed", True, ["last words"])
    assert "SIGKILL" in failure.message
    assert "out of memory" in str(failure.hint)


def test_an_end_is_told_by_the_last_line_that_warns_without_its_time() -> None:
    stamp = "2026-11-23T08:00:00.000Z"
    tail = [f"{stamp} info    begins", f"{stamp} error   no bucket", "hint: make one", f"{stamp} info    epoch 1 of 2"]
    assert end_text(69, None, tail) == "ended with exit code 69: no bucket"
    assert unrecorded_failure(Work("a-1", False), None, 65, tail[:2], NOW).message == "no bucket"


def test_what_the_trainer_recorded_is_the_failure() -> None:
    recorded = Failure(run="a-1", attempt="0003-x", exit_code=71, reason="device", message="broken", final=False)
    failure = crash_failure(Work("a-1", False), "0003-x", 71, recorded, [], NOW)
    assert (failure.reason, failure.exit_code, failure.final) == ("device", 71, True)
    assert failure.message.startswith("broken")


@pytest.mark.parametrize(("is_test", "during"), [(False, "train"), (True, "test")], ids=["training", "test"])
def test_a_failure_says_whether_training_or_the_test_failed(is_test: bool, during: str) -> None:
    work = Work("a-1", is_test)
    found = [
        crash_failure(work, None, 137, None, [], NOW),
        unrecorded_failure(work, "0001-x", 65, ["no such image"], NOW),
        unrecorded_failure(work, None, 65, [], NOW),
        numbers_missing(work, [], NOW),
    ]
    assert {(each.during, each.final) for each in found} == {(during, True)}
    assert [each.reason for each in found] == ["crashed", "data", "data", "result-missing"]
    assert [each.message for each in found[1:3]] == ["no such image", "ended with exit code 65"]


RECORDED = Failure(run="a-1", attempt="0003-x", exit_code=69, reason="store", message="no space left", final=False)


@pytest.mark.parametrize(
    ("exit_code", "recorded", "tail", "told"),
    [
        pytest.param(69, RECORDED, ["other"], "store: no space left", id="as-the-trainer-recorded-it"),
        pytest.param(69, None, ["begins", "no space left", "hint: free some", ""], "no space left", id="as-it-said"),
        pytest.param(69, None, [], "ended with exit code 69", id="without-a-word"),
        pytest.param(137, None, ["epoch 1 of 3"], "ended by SIGKILL", id="killed-amid-its-work"),
    ],
)
def test_an_attempt_to_be_repeated_says_why_it_ended(
    exit_code: int, recorded: Failure | None, tail: list[str], told: str
) -> None:
    text = end_text(exit_code, recorded, tail)
    assert text.endswith(told)
    assert len(text) <= len(f"{show_exit(exit_code)}: {told}")


def test_an_exit_is_told_in_words() -> None:
    assert show_exit(1) == "ended with exit code 1"
    assert show_exit(139) == "ended by SIGSEGV"
    assert show_exit(255) == "ended with exit code 255"


# --- real runs


class Watcher:
    """A view that remembers what was said, and does something whenever there is something to show."""

    def __init__(self, act: Callable[[GridProgress], None] = lambda progress: None) -> None:
        self.act = act
        self.said: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, word: Word, text: str) -> None:
        self.said.append((word, text))
        print(word, text)  # noqa: T201 - shown by pytest when a test fails

    def show(self, progress: GridProgress) -> None:
        self.act(progress)

    def words(self) -> list[str]:
        return [word for word, _ in self.said]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(local, "PAUSE_SECONDS", (0.05, 0.1))


def small(text: str = TEXT, *sets: str) -> Grid:
    return parse_grid(text, "small.yaml", sets)


ONE_RUN = TEXT.replace("seeds: 2\n", "")[: TEXT.index("  - name: smoothing") - len("seeds: 2\n")].replace(
    "[0.05, 0.005]", "[0.05]"
)
LONG = ONE_RUN.replace("epochs: 3", "epochs: 60\n  checkpoint: {every: 0.05}")


def pid_of(store: FileStore, run: str) -> int:
    """The process that trains the run, as its lease has it."""
    return int(read_leases(store, [run])[run].holder.rpartition(":")[2])


def train(store: FileStore, text: str, view: View | None = None, **values: Any) -> Outcome:
    return run_grid(small(text), store, view=view or Watcher(), **values)


def until(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Return once it holds; a regression fails here instead of waiting for ever."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds:.0f} s"
        time.sleep(0.05)


def one_result(store: FileStore) -> Result:
    (result,) = read_results(store).values()
    return result


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The result of the long run, undisturbed."""
    folder = tmp_path_factory.mktemp("straight")
    store = FileStore(folder / "store")
    import_pictures(store, folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRID_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        assert train(store, LONG).exit_code == ExitCode.OK
    return one_result(store)


@pytest.fixture
def pictures(file_store: FileStore, tmp_path: Path) -> FileStore:
    import_pictures(file_store, tmp_path / "pictures")
    return file_store


def test_nothing_is_loaded_where_nothing_is_left_to_train(pictures: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in expand(small(ONE_RUN), {}, _facts(pictures)).runs():
        pictures.put(f"results/{run}.json", result(run).model_dump_json().encode())
    started: list[object] = []
    monkeypatch.setattr(workers, "_start_server", started.append)
    assert train(pictures, ONE_RUN).exit_code == ExitCode.OK
    assert started == []


def test_what_is_trained_is_shown_without_the_data_that_it_was_trained_on(pictures: FileStore) -> None:
    trained, other = expand(small(ONE_RUN.replace("[0.05]", "[0.05, 0.5]")), {}, _facts(pictures)).runs().values()
    done = result(
        trained.id,
        spec=trained.spec.model_dump(mode="json"),
        data_fingerprint=trained.hyperparameters.data.fingerprint,
    )
    pictures.put(f"results/{trained.id}.json", done.model_dump_json().encode())
    pictures.delete("datasets/pictures/index.json")
    seen = status(small(ONE_RUN), pictures)
    assert seen.state(Work(trained.id, is_test=False)) == ("done", None)
    assert seen.lacking == {}
    seen = status(small(ONE_RUN.replace("[0.05]", "[0.05, 0.5]")), pictures)
    assert seen.state(Work(other.id, is_test=False)) == ("waiting", "never started")
    assert "`grid data import pictures FOLDER`" in str(seen.lacking["pictures"])


def test_a_grid_is_shown_though_the_store_has_nothing_of_it(file_store: FileStore) -> None:
    seen = status(small(), file_store)
    assert {seen.state(work)[0] for work in chosen_work(seen.expansion, Choice())} == {"waiting"}
    assert list(seen.lacking) == ["pictures"]


def test_a_process_that_nobody_waits_for_any_more_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PRELOAD, SimpleNamespace(load_error=None))
    reports, remote = multiprocessing.Pipe(duplex=False)
    report_load(remote)
    assert reports.recv() is None
    reports.close()
    report_load(remote)
    remote.close()


@pytest.mark.slow
def test_a_grid_goes_stage_after_stage_to_its_test(pictures: FileStore) -> None:
    view = Watcher()
    outcome = train(pictures, TEXT, view, parallel=2)
    assert outcome.exit_code == ExitCode.OK
    assert not outcome.stopped
    assert set(read_decisions(pictures, "small")) == {"lr", "smoothing", "final"}
    runs = outcome.expansion.runs()
    assert set(read_results(pictures)) == set(runs)
    assert len(runs) == 6
    assert set(outcome.known.tests) == set(runs_of(outcome.expansion, "final"))
    assert view.words().count("start") == 6 + 2
    for name, run in runs.items():
        assert read_spec(pictures.get(f"runs/{name}/spec.yaml").decode(), name) == run.spec
        assert b"epoch 3 of 3" in b"".join(
            pictures.get(entry.key)
            for entry in pictures.list(f"runs/{name}/attempts/")
            if entry.key.endswith("log.txt")
        )

    again = Watcher()
    assert train(pictures, TEXT, again).exit_code == ExitCode.OK
    assert again.said == []  # all that it comes to was in the store

    seen = status(small(), pictures)
    assert {seen.state(work)[0] for work in chosen_work(seen.expansion, Choice())} == {"done"}
    assert seen.active == {}


@pytest.mark.slow
def test_the_numbers_are_those_of_a_trainer_started_by_hand(
    pictures: FileStore, straight: Result, tmp_path: Path
) -> None:
    key = f"runs/{straight.run}/spec.yaml"
    run = next(iter(expand(small(LONG), {}, _facts(pictures)).runs().values()))
    local.write_run_spec(pictures, run)
    assert run.id == straight.run
    assert pictures.get(key)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "trainer", run.id, "--store", pictures.uri]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert one_result(pictures).model_dump(exclude=set(PASSING)) == straight.model_dump(exclude=set(PASSING))


@pytest.mark.slow
def test_a_run_that_was_paused_is_not_started_though_it_is_asked_for(pictures: FileStore) -> None:
    text = TEXT[: TEXT.index("  - name: smoothing")].replace("seeds: 2", "seeds: 1")
    grid = small(text)
    runs = list(expand(grid, {}, gather_facts(pictures, wanted(grid))).runs())
    hold_run(grid, pictures, runs[0], "paused")
    view = Watcher()
    outcome = train(pictures, text, view, only=runs[0])
    assert outcome.exit_code == ExitCode.OK
    assert view.said == [("waits", f"not started: 1 paused: {runs[0]}; `grid resume RUN` lets one go on")]
    assert train(pictures, text).waiting == {"lr": "for 1 of 2 runs, of which 1 paused"}
    assert set(read_results(pictures)) == {runs[1]}
    assert read_held(pictures, "small") == {runs[0]: "paused"}
    hold_run(grid, pictures, runs[0], None)
    assert train(pictures, text).waiting == {}
    assert set(read_results(pictures)) == set(runs)


def _facts(store: FileStore) -> Facts:
    return local.gather_facts(store, local.wanted(small()))


@pytest.mark.slow
def test_a_run_killed_at_work_is_tried_again_and_ends_the_same(pictures: FileStore, straight: Result) -> None:
    killed: list[int] = []

    def kill(progress: GridProgress) -> None:
        if len(killed) == 2 or not progress.running or progress.running[0].epochs_done < 1 + 20 * len(killed):
            return
        if (pid := pid_of(pictures, straight.run)) not in killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    view = Watcher(kill)
    assert train(pictures, LONG, view).exit_code == ExitCode.OK
    assert len(killed) == view.words().count("again") > 0
    result = one_result(pictures)
    assert result.attempts == len(killed) + 1
    assert result.model_dump(exclude=set(PASSING)) == straight.model_dump(exclude=set(PASSING))


@pytest.mark.slow
def test_ctrl_c_lets_runs_save_and_the_same_command_goes_on(pictures: FileStore, straight: Result) -> None:
    def interrupt(progress: GridProgress) -> None:
        if not progress.stopping and progress.running and progress.running[0].epochs_done > 1:
            os.kill(pid_of(pictures, straight.run), signal.SIGINT)  # a terminal sends it to the whole group
            os.kill(os.getpid(), signal.SIGINT)

    view = Watcher(interrupt)
    outcome = train(pictures, LONG, view)
    assert outcome.stopped
    assert outcome.exit_code == ExitCode.STOPPED
    assert view.said[-1][1] == "stopped: the same command goes on from here"
    assert read_results(pictures) == {}
    assert read_failures(pictures) == {}
    assert checkpoint_sequence(pictures, straight.run) > 0
    assert read_leases(pictures, [straight.run])[straight.run].released
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    view = Watcher()
    assert train(pictures, LONG, view).exit_code == ExitCode.OK
    assert "start" not in view.words()
    assert re.fullmatch(r"lr/lr=0\.05 \(.*\) from epoch \d+", dict(view.said)["resume"])
    assert one_result(pictures).model_dump(exclude=set(PASSING)) == straight.model_dump(exclude=set(PASSING))


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_loses_nothing(pictures: FileStore, straight: Result) -> None:
    processes: list[int] = []

    def interrupt(progress: GridProgress) -> None:
        if progress.running and progress.running[0].epochs_done > 1:
            processes.append(pid_of(pictures, straight.run))
            os.kill(processes[0], signal.SIGSTOP)  # a run that does not get to saving
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    outcome = train(pictures, LONG, Watcher(interrupt))
    assert outcome.exit_code == ExitCode.STOPPED
    with pytest.raises(ProcessLookupError):
        os.kill(processes[0], 0)
    assert train(pictures, LONG).exit_code == ExitCode.OK
    assert one_result(pictures).model_dump(exclude=set(PASSING)) == straight.model_dump(exclude=set(PASSING))


@pytest.mark.slow
def test_a_run_that_diverges_fails_for_good_and_the_others_finish(pictures: FileStore) -> None:
    text = TEXT[: TEXT.index("  - name: smoothing")].replace("seeds: 2\n", "")
    text = text.replace("networks:usual", "networks:plain").replace("vary: {optimizer.lr: [0.05, 0.005]}", "points: []")
    text = text.replace(
        "points: []",
        'points: [{name: nan, model.architecture: "networks:fragile", model.arguments: {how: nan}}, {name: good}]',
    )
    view = Watcher()
    outcome = train(pictures, text, view)
    assert outcome.exit_code == ExitCode.TRAINING
    (failure,) = outcome.failed.values()
    assert failure.reason == "diverged"
    assert len(outcome.known.results) == 1
    assert view.words().count("start") == 2
    assert train(pictures, text).exit_code == ExitCode.TRAINING  # it is not tried again

    grid = small(text)
    assert [each.reason for each in retry(grid, pictures).values()] == ["diverged"]
    assert read_failures(pictures) == {}
    seen = status(grid, pictures)
    assert sorted(seen.state(work)[0] for work in chosen_work(seen.expansion, Choice())) == ["done", "waiting"]


@pytest.mark.slow
def test_a_store_that_cannot_be_written_ends_the_command_and_fails_no_run(pictures: FileStore) -> None:
    (run,) = expand(small(ONE_RUN), {}, gather_facts(pictures, wanted(small(ONE_RUN)))).runs()
    pictures.put(f"runs/{run}/attempts", b"a file where a folder has to be")
    with pytest.raises(StoreError, match="attempts"):
        train(pictures, ONE_RUN)
    assert read_failures(pictures) == {}
    pictures.delete(f"runs/{run}/attempts")
    assert train(pictures, ONE_RUN).exit_code == ExitCode.OK


@pytest.mark.slow
def test_a_networks_changed_source_makes_other_runs_and_the_old_decision_is_set_aside_on_request(
    pictures: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import networks\n\ndef own(num_classes):\n    return networks.plain(num_classes)\n"
    (tmp_path / "own_network.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    text = ONE_RUN.replace("networks:usual", "own_network:own")
    assert train(pictures, text).exit_code == ExitCode.OK
    (tmp_path / "own_network.py").write_text(source + "# changed\n")
    assert status(small(text), pictures).misfits
    with pytest.raises(SpecError, match="saw other runs"):
        train(pictures, text)
    assert train(pictures, text, update=True).exit_code == ExitCode.OK
    assert not status(small(text), pictures).misfits


CRASHES = """
import os, signal
from torch import nn

def dies(num_classes, exit_code=0):
    if exit_code:
        raise RuntimeError("this factory always fails")
    os.write(2, b"the last words\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_runs_that_always_crash_end_as_failures_and_then_nothing_new_starts(
    pictures: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing.py").write_text(CRASHES)
    monkeypatch.syspath_prepend(tmp_path)
    text = ONE_RUN.replace("networks:usual", "crashing:dies").replace("base:", "max_failed: 1\nbase:", 1)
    text = text.replace("vary: {optimizer.lr: [0.05]}", "vary: {model.arguments.exit_code: [0, 1, 2]}")
    view = Watcher()
    outcome = train(pictures, text, view, parallel=1)
    assert outcome.exit_code == ExitCode.TRAINING
    killed, raised = outcome.failed.values()
    assert (killed.exit_code, killed.reason, killed.final) == (137, "crashed", True)
    assert "the last words" in killed.log_tail
    assert "out of memory" in str(killed.hint)
    assert (raised.exit_code, raised.reason, raised.final) == (1, "crashed", True)
    assert "this factory always fails" in raised.message
    for failure in (killed, raised):  # while one waits for its next attempt, the third run may begin too
        starts = [word for word, told in view.said if word == "start" and failure.run in told]
        assert len(starts) == MAX_TRIES
    assert "more than max_failed 1" in view.said[-1][1]
    outputs = [entry.key for entry in pictures.list(f"runs/{killed.run}/") if entry.key.endswith("output.txt")]
    assert len(outputs) == MAX_TRIES
    assert b"the last words" in pictures.get(outputs[0])


@pytest.mark.slow
def test_a_run_that_another_process_holds_is_waited_for(pictures: FileStore) -> None:
    run = next(iter(expand(small(ONE_RUN), {}, _facts(pictures)).runs()))
    lock = run_lock(pictures, run)
    assert lock.acquire()
    shown: list[GridProgress] = []

    def release(progress: GridProgress) -> None:
        if progress.elsewhere:
            shown.append(progress)
            lock.release()

    view = Watcher(release)
    assert train(pictures, ONE_RUN, view).exit_code == ExitCode.OK
    assert shown[0].elsewhere == ("lr/lr=0.05: running in another process",)
    assert not shown[0].running
    assert view.words()[:2] == ["waits", "start"]
    assert one_result(pictures).attempts == 1


@pytest.mark.slow
def test_a_run_that_fails_in_another_process_is_told_as_failed(pictures: FileStore) -> None:
    run = next(iter(expand(small(ONE_RUN), {}, _facts(pictures)).runs()))
    lock = run_lock(pictures, run)
    assert lock.acquire()

    def fail(progress: GridProgress) -> None:
        if progress.elsewhere and not read_failures(pictures, [run]):
            record_failure(pictures, crash_failure(Work(run, False), None, 137, None, [], NOW))
            lock.release()

    view = Watcher(fail)
    outcome = train(pictures, ONE_RUN, view)
    assert outcome.exit_code == ExitCode.TRAINING
    assert outcome.told == {run}
    assert view.words() == ["waits", "failed"]
    assert view.said[1][1].startswith("lr/lr=0.05 (trained elsewhere): crashed: ended by SIGKILL")


DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
DIES_ONCE = """
import os, pathlib, signal
first = pathlib.Path(__file__).with_name("first")
if not first.exists():
    first.touch()
    os.kill(os.getpid(), signal.SIGKILL)
raise ImportError("failed to map segment")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "num_again", "told"),
    [
        pytest.param("raise ImportError('failed to map segment')", 0, "failed to map segment", id="not-loadable"),
        pytest.param(DIES_ONCE, 1, "failed to map segment", id="killed-once"),
        pytest.param(DIES, 1, "ended from outside", id="killed-each-time"),
    ],
)
def test_a_machine_that_cannot_load_torch_ends_the_command_and_fails_no_run(
    pictures: FileStore, tmp_path: Path, source: str, num_again: int, told: str
) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(source)
    (tmp_path / "small.yaml").write_text(ONE_RUN)
    ended = subprocess.run(
        [sys.executable, "-c", "from controller.cli import main; main()", "run", tmp_path / "small.yaml"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(broken.parent), *filter(None, sys.path)]),
            "GRID_STORE": pictures.uri,
            "COLUMNS": "400",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == ExitCode.DEVICE, ended.stderr
    (error,) = re.findall(r"^error: (.*)$", ended.stderr, re.MULTILINE)
    assert error.startswith("torch: got ")
    assert told in error
    assert "hint: is there memory enough?" in ended.stderr
    assert len(re.findall("^again ", ended.stderr, re.MULTILINE)) == num_again
    assert "Traceback" not in ended.stderr
    assert not read_failures(pictures)


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_waited_for_while_runs_are_at_work(
    pictures: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_AGAIN_SECONDS", 0.05)
    left = [2]  # times that it answers before the first that it does not

    def read(store: FileStore, grid: str) -> dict[str, Decision]:
        left[0] -= 1
        if -2 <= left[0] < 0:
            raise StoreError("no answer")
        return read_decisions(store, grid)

    monkeypatch.setattr("controller.observe.read_decisions", read)
    text = ONE_RUN.replace("optimizer.lr: [0.05]", "epochs: [1, 80]")
    view = Watcher()
    assert train(pictures, text, view, parallel=2).exit_code == ExitCode.OK
    assert view.words().count("waits") == 2
    assert len(read_results(pictures)) == 2


@pytest.mark.slow
def test_a_run_that_ends_while_the_store_does_not_answer_is_not_forgotten(
    pictures: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOOK_AGAIN_SECONDS", 0.05)
    left = [2]  # times that it does not answer

    def sequence(store: FileStore, run: str) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise StoreError("no answer")
        return checkpoint_sequence(store, run)

    monkeypatch.setattr(local, "checkpoint_sequence", sequence)
    text = ONE_RUN.replace("optimizer.lr: [0.05]", "epochs: [1, 80]")
    view = Watcher()
    assert train(pictures, text, view, parallel=2).exit_code == ExitCode.OK
    assert view.words().count("waits") == 2
    assert view.words().count("done") == 2


PROGRAM = """
import sys
from controller.grid import read_grid
from controller.local import run_grid
from trainer.store import open_store

if __name__ == "__main__":
    outcome = run_grid(read_grid(sys.argv[1]), open_store(sys.argv[2]), parallel=1)
    assert "torch" not in sys.modules
    sys.exit(outcome.exit_code)
"""


@pytest.fixture
def start_program(tmp_path: Path) -> Callable[[FileStore, str], subprocess.Popen[str]]:
    """Starts `run_grid` in a process of its own, as a terminal does."""

    def start(store: FileStore, text: str) -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
        (tmp_path / "small.yaml").write_text(text)
        return subprocess.Popen(
            [sys.executable, tmp_path / "program.py", tmp_path / "small.yaml", store.uri],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.mark.slow
def test_two_terminals_train_nothing_twice(
    pictures: FileStore, start_program: Callable[[FileStore, str], subprocess.Popen[str]]
) -> None:
    text = TEXT.replace("epochs: 3", "epochs: 12")
    with start_program(pictures, text) as other:
        assert other.stderr is not None
        first = other.stderr.readline()
        view = Watcher()
        outcome = train(pictures, text, view, parallel=1)
        told = first + other.stderr.read()
    assert other.returncode == outcome.exit_code == ExitCode.OK
    assert [result.attempts for result in read_results(pictures).values()] == [1] * 6
    starts = re.findall(r"^start +(.*)$", told, re.MULTILINE) + [text for word, text in view.said if word == "start"]
    assert len(set(starts)) == 6 + 2
    kept = re.findall(r"^kept +(.*)$", told, re.MULTILINE) + [text for word, text in view.said if word == "kept"]
    assert {text.partition(":")[0] for text in kept} == {"lr", "smoothing", "final"}
    assert len(set(kept)) == 3  # whoever says it tells the decision that stands
    assert status(small(text), pictures).known == outcome.known


@pytest.mark.slow
def test_when_the_controller_is_killed_its_runs_save_and_stop(
    pictures: FileStore, start_program: Callable[[FileStore, str], subprocess.Popen[str]], straight: Result
) -> None:
    run = straight.run
    with start_program(pictures, LONG) as program:
        until(lambda: checkpoint_sequence(pictures, run) >= 2 or program.poll() is not None)
        assert program.poll() is None
        program.kill()
    assert program.returncode == -signal.SIGKILL
    until(lambda: read_leases(pictures, [run])[run].released)
    lease = read_leases(pictures, [run])[run]
    assert read_results(pictures) == {}
    assert train(pictures, LONG).exit_code == ExitCode.OK
    result = one_result(pictures)
    assert result.attempts == int(lease.attempt.partition("-")[0]) + 1
    assert result.model_dump(exclude=set(PASSING)) == straight.model_dump(exclude=set(PASSING))


HOLDER = """
import sys, time
from trainer.lease import Lease
from trainer.stop import StopSignal
from trainer.store import open_store

lease = Lease(open_store(sys.argv[1]), sys.argv[2], StopSignal())
lease.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_holder_on_this_host_that_was_killed_does_not_run(pictures: FileStore) -> None:
    run = next(iter(expand(small(ONE_RUN), {}, _facts(pictures)).runs()))
    work = Work(run, False)
    command = [sys.executable, "-c", HOLDER, pictures.uri, run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert re.fullmatch(
            rf"running on .*:{holder.pid}, epoch 1", str(status(small(ONE_RUN), pictures).state(work)[1])
        )
        pictures.put(f"runs/{run}/checkpoint.json", b'{"sequence": 7, "progress": {"epoch": 4}}')
        assert str(status(small(ONE_RUN), pictures).state(work)[1]).endswith(", epoch 5")  # the lease is older
        holder.kill()
    assert not read_leases(pictures, [run])[run].released
    assert status(small(ONE_RUN), pictures).state(work) == ("waiting", "stopped, goes on from epoch 5")
    pictures.delete(f"runs/{run}/checkpoint.json")
    assert status(small(ONE_RUN), pictures).state(work) == ("waiting", "never started")


def test_folders_of_killed_sessions_are_swept_and_those_in_use_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, has_lock, age in (("killed", True, 0), ("new", False, 0), ("old", False, 100)):
        folder = tmp_path / f"{local.FOLDER_PREFIX}{name}"
        folder.mkdir()
        (folder / "0001-run.txt").write_text("output")
        if has_lock:
            (folder / "lock").touch()
        os.utime(folder, (time.time() - age, time.time() - age))
    (tmp_path / f"{local.FOLDER_PREFIX}link").symlink_to(tmp_path)
    with local.own_folder() as first, local.own_folder() as second:
        found = {path.name.removeprefix(local.FOLDER_PREFIX) for path in tmp_path.glob(f"{local.FOLDER_PREFIX}*")}
        assert found == {"new", "link", *(path.name.removeprefix(local.FOLDER_PREFIX) for path in (first, second))}
    assert not first.exists()


@pytest.mark.slow
def test_a_machine_that_computes_otherwise_is_told_at_once_and_may_go_on_inexactly(pictures: FileStore) -> None:
    def interrupt(progress: GridProgress) -> None:
        if not progress.stopping and progress.running and progress.running[0].epochs_done > 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(pictures, LONG, Watcher(interrupt)).stopped
    [run] = expand(small(LONG), {}, _facts(pictures)).runs()
    key = f"runs/{run}/numerics.json"
    pictures.put(key, pictures.get(key).replace(b'"device_model": "', b'"device_model": "another than '))
    view = Watcher()
    outcome = train(pictures, LONG, view)
    assert outcome.exit_code == ExitCode.TRAINING
    assert [failure.reason for failure in outcome.failed.values()] == ["numerics"]
    assert "`grid run small --resume inexact`" in str(outcome.failed[run].hint)
    assert "again" not in view.words()
    assert outcome.told == {run}

    view = Watcher()
    assert train(pictures, LONG, view, resume="inexact").exit_code == ExitCode.OK
    assert view.words() == ["resume", "done", "kept"][: len(view.words())]
    assert re.search(r" from epoch \d+$", view.said[0][1])
    assert not one_result(pictures).exact


@pytest.mark.slow
def test_a_stage_that_cannot_begin_yet_is_told(pictures: FileStore) -> None:
    view = Watcher()
    assert train(pictures, TEXT, view, stages=["smoothing"]).exit_code == ExitCode.OK
    assert view.said == [("waits", "smoothing: for stage lr to be decided")]
    with pytest.raises(SpecError, match="which fits no row of grid small"):
        train(pictures, TEXT, only="zzz*")


def test_nothing_starts_without_the_data_set(file_store: FileStore) -> None:
    with pytest.raises(DataError, match="grid data import pictures"):
        train(file_store, TEXT)
    assert list(file_store.list("")) == []


def test_an_unknown_stage_is_told(pictures: FileStore) -> None:
    with pytest.raises(SpecError, match="smoothing"):
        train(pictures, TEXT, stages=["smooth"])


def test_a_retry_that_fits_no_run_is_told(pictures: FileStore) -> None:
    with pytest.raises(SpecError, match="--only"):
        retry(small(), pictures, Choice("no such row"))


def test_progress_knows_its_epoch() -> None:
    run = RunProgress("a", "training", 3, epochs_done=2.0)
    assert (run.epoch, replace(run, epochs_done=3.0).epoch) == (3, 3)
