"""What a controller tells Prometheus: values by what passes saw, and a scrape against the list of what there is."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from api_server import Request as ApiRequest
from api_server import ScriptedServer, refusal
from expansions import FACTS, TEST, failure_of, parse, result_of
from kubernetes_views import job_view_of, pod_view_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from controller import telemetry as module
from controller.acted import ActedGrid
from controller.attempts import NOT_STARTED
from controller.cluster import JOBS, ClusterError, open_cluster
from controller.health import HealthServer, Log
from controller.jobs import JobView, PodView
from controller.mirror import Mirror
from controller.reconcile import Observation, Resumption
from controller.serve import Controller
from controller.settings import parse_settings
from controller.standing import Held, Work
from controller.telemetry import (
    DESCRIPTIONS,
    ENDED_DESCRIPTIONS,
    REASONS,
    STATES,
    ControllerTelemetry,
    reason_of,
    run_states,
    standing_of,
)
from trainer.result import EpochMetrics
from trainer.stop import StopSignal
from trainer.store import FileStore, Request

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HEAD = "grid: g\nbase:\n  data: {name: digits}\n  model: {architecture: alexnet}\n  epochs: 10\n"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = NOW.timestamp() - 600

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def telemetry(clock: Clock) -> ControllerTelemetry:
    made = ControllerTelemetry(clock)
    clock.now = NOW.timestamp()
    return made


def act(store: FileStore, head: str = HEAD, name: str = "g", **settings: Any) -> ActedGrid:
    """A grid of three rates, then two gammas, then a test of two."""
    lines = [f"{key}={value}" for key, value in settings.items()]
    made = parse_settings("image: none:1\nnamespace: lab\n", "settings", lines)
    return ActedGrid(parse(TEST, head.replace("grid: g\n", f"grid: {name}\n")), store, FACTS, settings=made)


def know(acted: ActedGrid, **values: Any) -> None:
    """Let the store have said that."""
    acted.sight = replace(acted.sight, known=replace(acted.sight.known, **values))


def works(acted: ActedGrid) -> list[Work]:
    return list(acted.sight.work)


def job(work: Work, **values: Any) -> JobView:
    return job_view_of(work, **{"grids": {"g": "rate"}, "created": ago(100), "num_active": 1, **values})


def pod(work: Work, **values: Any) -> PodView:
    """The Job's pod, which has run for a minute."""
    return pod_view_of(work, **{"created": ago(80), "started": ago(60), **values})


def failed_pod(work: Work, exit_code: int | None = 1, **values: Any) -> PodView:
    return pod(work, **{"phase": "Failed", "exit_code": exit_code, "finished": ago(5), **values})


def seen(acted: ActedGrid, *things: JobView | PodView, now: datetime = NOW, **values: Any) -> Observation:
    pods: dict[Work, list[PodView]] = {}
    for each in things:
        if isinstance(each, PodView):
            pods.setdefault(each.work, []).append(each)
    jobs = {each.work: each for each in things if isinstance(each, JobView)}
    return Observation(now, {acted.grid.name: acted.view()}, jobs, pods, **values)


def tell(telemetry: ControllerTelemetry, acted: ActedGrid, observed: Observation, **values: Any) -> None:
    """Tell of a pass."""
    told = {"seconds": 0.2, "num_pending": 0, "acts": True, **values}
    telemetry.passed({acted.grid.name: acted}, observed, acted.store, **told)


def read(telemetry: ControllerTelemetry) -> dict[tuple[str, ...], float]:
    """A scrape: by name, then the labels' values in the order of the labels' names."""
    found = read_text(telemetry.answer("").text)
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for each in found
        for sample in each.samples
    }


def row(epoch: int, **values: Any) -> EpochMetrics:
    numbers: dict[str, Any] = dict.fromkeys(EpochMetrics.model_fields, 0) | {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "train_accuracy": 0.5,
        "validation_loss": 2 / epoch,
        "validation_accuracy": 0.4,
        "best": True,
        "returned_to_best": False,
    }
    return EpochMetrics(**{**numbers, **values})


def leave_rows(store: FileStore, run: str, *rows: EpochMetrics) -> None:
    store.put(f"runs/{run}/attempts/1/metrics.jsonl", "".join(f"{each.model_dump_json()}\n" for each in rows).encode())


# How grids stand


@pytest.mark.parametrize(
    ("make", "known", "state"),
    [
        pytest.param(lambda _: (), {}, "waiting", id="no-job-yet"),
        pytest.param(lambda w: (job(w, is_deleting=True),), {}, "waiting", id="its-job-goes"),
        pytest.param(lambda w: (job(w, is_suspended=True),), {}, "queued", id="a-suspended-job"),
        pytest.param(lambda w: (job(w),), {}, "pending", id="no-pod-yet"),
        pytest.param(lambda w: (job(w), pod(w, phase="Pending", node=None)), {}, "pending", id="no-node"),
        pytest.param(lambda w: (job(w), pod(w, phase="Pending")), {}, "starting", id="its-image-is-pulled"),
        pytest.param(lambda w: (job(w), pod(w)), {}, "running", id="its-pod-runs"),
        pytest.param(lambda w: (job(w), failed_pod(w)), {}, "pending", id="the-next-attempt-is-due"),
        pytest.param(lambda w: (job(w, complete_since=ago(1)),), {}, "running", id="its-numbers-are-not-read"),
        pytest.param(lambda w: (job(w, is_suspended=True),), {"held": "paused"}, "waiting", id="paused"),
        pytest.param(lambda _: (), {"held": "cancelled"}, "cancelled", id="cancelled"),
        pytest.param(lambda _: (), {"failed": True}, "failed", id="failed"),
        pytest.param(lambda w: (pod(w),), {"failed": True}, "running", id="failed-and-trained-again-by-hand"),
        pytest.param(lambda w: (job(w, complete_since=ago(1)),), {"done": True}, "done", id="done"),
    ],
)
def test_a_run_is_in_one_state(
    file_store: FileStore, make: Callable[[Work], tuple[Any, ...]], known: dict[str, Any], state: str
) -> None:
    acted = act(file_store)
    work = works(acted)[0]
    held: dict[str, Held] = {work.run: known["held"]} if "held" in known else {}
    know(
        acted,
        held=held,
        failures={work.run: failure_of(work.run)} if "failed" in known else {},
        results={work.run: result_of(work.run, 1.0)} if "done" in known else {},
    )
    assert run_states(acted, seen(acted, *make(work)))[work.run] == state
    assert state in STATES


def test_progress_counts_what_is_over_whole_and_what_is_under_way_by_its_epochs(file_store: FileStore) -> None:
    acted = act(file_store)
    first, second, third = works(acted)
    know(acted, results={first.run: result_of(first.run, 1.0)}, failures={second.run: failure_of(second.run)})
    observed = seen(acted, job(third), pod(third), progress={third.run: {"epoch": "4"}})
    assert standing_of(acted, observed).progress == {"rate": pytest.approx(2.4 / 3), "gamma": 0.0, "test": 0.0}
    paused = seen(acted, job(third, is_suspended=True, progress={"epoch": "5"}))
    assert standing_of(acted, paused).progress["rate"] == pytest.approx(2.5 / 3)


def test_the_end_is_estimated_by_what_is_left_at_the_pace_so_far(file_store: FileStore) -> None:
    acted = act(file_store)
    first, second, third = works(acted)
    assert standing_of(acted, seen(acted)).completion is None  # nothing runs
    running = (job(first), pod(first), job(second), pod(second))
    assert standing_of(acted, seen(acted, *running)).completion is None  # no epoch has ended
    observed = seen(acted, *running, progress={first.run: {"epoch": "6"}, second.run: {"epoch": "6"}})
    # 10 s an epoch: 4 + 4 + 10 epochs of this stage and 20 of the next, by two at once
    assert standing_of(acted, observed).completion == pytest.approx(NOW.timestamp() + (180 + 200) / 2)
    resumed = replace(observed, resumed={first.run: Resumption("x", 5), second.run: Resumption("x", 5)})
    assert standing_of(acted, resumed).completion == pytest.approx(NOW.timestamp() + 3 * (180 + 200) / 2)
    know(acted, results={third.run: result_of(third.run, 1.0)})  # 1 s an epoch
    assert standing_of(acted, seen(acted, *running)).completion == pytest.approx(NOW.timestamp() + (20 + 20) / 2)


def test_a_grids_deadline_is_shown_as_a_moment(telemetry: ControllerTelemetry, file_store: FileStore) -> None:
    acted = act(file_store, HEAD + "deadline: 2026-03-01T14:00:00+01:00\n")
    tell(telemetry, acted, seen(acted))
    assert read(telemetry)["grid_deadline_timestamp_seconds", "g"] == datetime(2026, 3, 1, 13, tzinfo=UTC).timestamp()


def test_every_reason_of_a_failure_is_one_of_the_list() -> None:
    assert reason_of(failure_of("a", reason="out-of-memory")) == "oom"
    assert reason_of(failure_of("a", reason="diverged")) == "diverged"
    assert reason_of(failure_of("a", reason="of a later version")) == "other"


# What is counted


def test_a_pod_that_starts_is_an_attempt_and_the_first_one_ends_the_wait(
    telemetry: ControllerTelemetry, file_store: FileStore
) -> None:
    acted = act(file_store)
    first, second, _ = works(acted)
    for _ in range(2):  # each once
        tell(telemetry, acted, seen(acted, job(first), pod(first), job(second, tries="{}"), pod(second)))
    told = read(telemetry)
    assert told["grid_attempts_total", "g"] == 2
    assert (told["grid_queue_seconds_count", "g"], told["grid_queue_seconds_sum", "g"]) == (1, 40)


def test_what_happened_before_the_process_began_is_not_counted(
    telemetry: ControllerTelemetry, file_store: FileStore
) -> None:
    acted = act(file_store, gpu="{count: 2}")
    first, second, _ = works(acted)
    old = {"created": ago(900), "started": ago(800)}
    know(acted, failures={second.run: failure_of(second.run, exit_code=NOT_STARTED, reason="image")})
    observed = seen(
        acted,
        job(first),
        pod(first, **old),
        job(second),
        pod(second, **old, phase="Failed", exit_code=1, finished=ago(700)),
    )
    tell(telemetry, acted, observed)
    told = read(telemetry)
    assert told["grid_attempts_total", "g"] == told["grid_queue_seconds_count", "g"] == 0
    assert {told["grid_failures_total", "g", reason] for reason in REASONS} == {0}
    assert told["grid_gpu_seconds_total", "g"] == 2 * 600  # since it began


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        pytest.param({"exit_code": 1}, "crashed", id="crashed"),
        pytest.param({"exit_code": 137, "exit_reason": "OOMKilled"}, "oom", id="out-of-memory"),
        pytest.param({"exit_code": 65}, "data", id="final-by-its-exit-code"),
        pytest.param({"exit_code": None, "reason": "Evicted"}, "evicted", id="evicted"),
        pytest.param({"exit_code": 75}, None, id="told-to-stop"),
        pytest.param({"exit_code": 137, "is_disrupted": True}, None, id="disrupted"),
    ],
)
def test_an_attempt_that_failed_by_itself_is_counted_once_with_its_reason(
    telemetry: ControllerTelemetry, file_store: FileStore, values: dict[str, Any], reason: str | None
) -> None:
    acted = act(file_store)
    work = works(acted)[0]
    tell(telemetry, acted, seen(acted))
    for _ in range(2):
        tell(telemetry, acted, seen(acted, job(work), failed_pod(work, **values)))
    know(
        acted, failures={work.run: failure_of(work.run, exit_code=values["exit_code"] or NOT_STARTED, reason="crashed")}
    )
    if values["exit_code"] is not None:  # that it is final by now is no second failure
        tell(telemetry, acted, seen(acted, job(work), failed_pod(work, **values)))
    told = read(telemetry)
    assert {
        each: told["grid_failures_total", "g", each] for each in REASONS if told["grid_failures_total", "g", each]
    } == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(NOT_STARTED, "image"), (NOT_STARTED, "lost"), (0, "result-missing"), (143, "deadline")],
    ids=["image", "lost", "result-missing", "deadline"],
)
def test_work_that_failed_without_an_attempt_is_counted_when_its_failure_is_there(
    telemetry: ControllerTelemetry, file_store: FileStore, exit_code: int, reason: str
) -> None:
    acted = act(file_store)
    run = works(acted)[0].run
    tell(telemetry, acted, seen(acted))
    know(acted, failures={run: failure_of(run, exit_code=exit_code, reason=reason)})
    for _ in range(2):
        tell(telemetry, acted, seen(acted))
    assert read(telemetry)["grid_failures_total", "g", reason] == 1


def test_gpu_time_grows_with_each_pass_and_ends_with_the_pod(
    telemetry: ControllerTelemetry, clock: Clock, file_store: FileStore
) -> None:
    acted = act(file_store, gpu="{count: 4}")
    work = works(acted)[0]
    tell(telemetry, acted, seen(acted, job(work), pod(work)))
    assert read(telemetry)["grid_gpu_seconds_total", "g"] == 4 * 60
    clock.now += 10
    tell(telemetry, acted, seen(acted, job(work), pod(work)))
    assert read(telemetry)["grid_gpu_seconds_total", "g"] == 4 * 70
    clock.now += 100
    ended = failed_pod(work, finished=NOW + timedelta(seconds=15))
    for _ in range(2):
        tell(telemetry, acted, seen(acted, job(work), ended))
    assert read(telemetry)["grid_gpu_seconds_total", "g"] == 4 * 75


def test_the_delay_of_a_start_ends_where_the_attempt_leaves_its_provenance(
    telemetry: ControllerTelemetry, clock: Clock, file_store: FileStore
) -> None:
    acted = act(file_store)
    work = works(acted)[0]
    started = datetime.now(UTC) - timedelta(seconds=1)  # by the clock of the store, which is this machine's
    clock.now = started.timestamp()
    observed = seen(acted, job(work), pod(work, created=started - timedelta(seconds=99), started=started))
    tell(telemetry, acted, observed)
    assert read(telemetry)["grid_start_delay_seconds_count", "g"] == 0
    file_store.put(f"runs/{work.run}/attempts/1/provenance.json", b"{}")
    tell(telemetry, acted, observed)  # too soon to ask again
    assert read(telemetry)["grid_start_delay_seconds_count", "g"] == 0
    for _ in range(2):
        clock.now += module.ASK_AGAIN_SECONDS
        tell(telemetry, acted, observed)
    told = read(telemetry)
    assert told["grid_start_delay_seconds_count", "g"] == 1
    assert 99 <= told["grid_start_delay_seconds_sum", "g"] < 200


def test_what_a_pass_left_undone_is_pending(telemetry: ControllerTelemetry, file_store: FileStore) -> None:
    acted = act(file_store)
    tell(telemetry, acted, seen(acted), num_pending=7, seconds=0.3)
    told = read(telemetry)
    assert told["grid_pending_actions",] == 7
    assert told["grid_reconcile_seconds_bucket", "0.5"] == 1
    assert told["grid_reconcile_seconds_bucket", "0.25"] == 0
    assert told["grid_reconcile_timestamp_seconds",] == NOW.timestamp()


# What ended


def test_a_run_that_ended_shows_its_last_values_for_an_hour(
    telemetry: ControllerTelemetry, clock: Clock, file_store: FileStore
) -> None:
    acted = act(file_store)
    work = works(acted)[0]
    tell(telemetry, acted, seen(acted, job(work), pod(work)))
    leave_rows(file_store, work.run, row(1), row(2), row(3, best=False))
    know(acted, results={work.run: result_of(work.run, 1.0)})
    clock.now += 10
    tell(telemetry, acted, seen(acted, job(work, complete_since=NOW)))
    told = {key: value for key, value in read(telemetry).items() if work.run in key and key[0] not in OF_STANDING}
    assert told == {
        ("grid_run_epoch", work.run): 3,
        ("grid_run_epochs", work.run): 10,
        ("grid_run_loss_nats", "train", work.run): pytest.approx(1 / 3),
        ("grid_run_loss_nats", "validation", work.run): pytest.approx(2 / 3),
        ("grid_run_accuracy_ratio", "train", work.run): 0.5,
        ("grid_run_accuracy_ratio", "validation", work.run): 0.4,
        ("grid_run_best_epoch", work.run): 2,
        ("grid_run_best_validation_loss_nats", work.run): 1.0,
        ("grid_run_best_validation_accuracy_ratio", work.run): 0.4,
    }
    clock.now = NOW.timestamp() + module.ENDED_SECONDS + 1
    tell(telemetry, acted, seen(acted, job(work, complete_since=NOW)))
    assert ("grid_run_epoch", work.run) not in read(telemetry)


OF_STANDING = ("grid_run_info", "grid_run_state", "grid_run_failure")


def test_a_run_without_readable_epochs_shows_what_its_result_says(
    telemetry: ControllerTelemetry, file_store: FileStore
) -> None:
    acted = act(file_store)
    work = works(acted)[0]
    tell(telemetry, acted, seen(acted))
    file_store.put(f"runs/{work.run}/attempts/1/metrics.jsonl", b"broken\n")
    know(acted, results={work.run: result_of(work.run, 0.25)})
    tell(telemetry, acted, seen(acted, job(work, complete_since=NOW)))
    told = read(telemetry)
    assert told["grid_run_best_validation_loss_nats", work.run] == 0.25
    assert ("grid_run_loss_nats", "validation", work.run) not in told


@pytest.mark.parametrize(
    ("is_first_pass", "complete", "is_shown"),
    [(True, 60, True), (True, 7200, False), (True, None, False), (False, None, True)],
    ids=["a-minute-before-the-process-began", "long-before", "nobody-knows-when", "seen-to-end-without-its-job"],
)
def test_of_the_runs_that_had_ended_those_of_the_last_hour_are_shown(
    telemetry: ControllerTelemetry, file_store: FileStore, is_first_pass: bool, complete: float | None, is_shown: bool
) -> None:
    acted = act(file_store)
    work = works(acted)[0]
    if not is_first_pass:
        tell(telemetry, acted, seen(acted))
    know(acted, results={work.run: result_of(work.run, 1.0)})
    jobs = () if complete is None else (job(work, complete_since=ago(complete)),)
    tell(telemetry, acted, seen(acted, *jobs))
    assert (("grid_run_epoch", work.run) in read(telemetry)) == is_shown


def test_a_failed_run_that_is_tried_again_is_shown_by_its_trainer_alone(
    telemetry: ControllerTelemetry, clock: Clock, file_store: FileStore
) -> None:
    acted = act(file_store)
    work = works(acted)[0]
    tell(telemetry, acted, seen(acted))
    leave_rows(file_store, work.run, row(1))
    know(acted, failures={work.run: failure_of(work.run, reason="diverged")})
    clock.now += 10
    tell(telemetry, acted, seen(acted))
    told = read(telemetry)
    assert told["grid_run_epoch", work.run] == told["grid_run_failure", "diverged", work.run] == 1
    know(acted, failures={})
    clock.now += 10
    tell(telemetry, acted, seen(acted))
    told = read(telemetry)
    assert ("grid_run_epoch", work.run) not in told
    assert not any(key[0] == "grid_run_failure" for key in told)


# What is bounded


def test_only_so_many_runs_that_ended_last_are_shown(
    telemetry: ControllerTelemetry, file_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENDED", 2)
    acted = act(file_store)
    tell(telemetry, acted, seen(acted))
    know(acted, results={work.run: result_of(work.run, 1.0) for work in works(acted)})
    ends = [job(work, complete_since=ago(seconds)) for work, seconds in zip(works(acted), (30, 10, 20), strict=True)]
    for _ in range(2):
        tell(telemetry, acted, seen(acted, *ends))
    shown = {key[1] for key in read(telemetry) if key[0] == "grid_run_epoch"}
    assert shown == {work.run for work in works(acted)[1:]}


def test_only_so_many_runs_have_series_and_those_of_grids_that_are_over_go_first(
    telemetry: ControllerTelemetry, file_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RUNS", 4)
    over, going = act(file_store, name="over"), act(file_store, HEAD.replace("10", "20"), name="going")
    know(over, results={work.run: result_of(work.run, 1.0) for work in works(over)})
    grids = {"over": over, "going": going}
    observed = Observation(NOW, {name: each.view() for name, each in grids.items()}, {})
    telemetry.passed(grids, observed, file_store, seconds=0.1, num_pending=0, acts=True)
    told = read(telemetry)
    assert sorted(key[2] for key in told if key[0] == "grid_run_info") == ["going", "going", "going", "over"]
    assert len([key for key in told if key[0] == "grid_run_state"]) == 4
    assert told["grid_runs", "over", "done"] == 3  # all are counted


def test_a_run_of_two_grids_is_shown_in_each_and_has_one_state(
    telemetry: ControllerTelemetry, file_store: FileStore
) -> None:
    grids = {"a": act(file_store, name="a"), "b": act(file_store, name="b")}
    grids["a"].intent = "cancelled"
    work = works(grids["a"])[0]
    views = {name: each.view() for name, each in grids.items()}
    observed = Observation(NOW, views, {work: job(work)}, {work: [pod(work, phase="Pending")]})
    telemetry.passed(grids, observed, file_store, seconds=0.1, num_pending=0, acts=True)
    told = read(telemetry)
    assert {key[2] for key in told if key[0] == "grid_run_info" and work.run in key} == {"a", "b"}
    assert [key[2] for key in told if key[0] == "grid_run_state" and key[1] == work.run] == ["starting"]
    assert (told["grid_grids", "active"], told["grid_grids", "cancelled"]) == (1, 1)


def test_a_grid_that_left_leaves_no_series_and_one_that_rests_stays(
    telemetry: ControllerTelemetry, file_store: FileStore
) -> None:
    acted = act(file_store)
    tell(telemetry, acted, seen(acted))
    know(acted, results={work.run: result_of(work.run, 1.0) for work in works(acted)})
    telemetry.rest("g", acted, seen(acted))
    assert read(telemetry)["grid_runs", "g", "done"] == 3
    telemetry.forget("g")
    assert not any("g" in key for key in read(telemetry))


def test_a_process_that_may_not_act_shows_nothing_of_grids(
    telemetry: ControllerTelemetry, file_store: FileStore
) -> None:
    acted = act(file_store)
    tell(telemetry, acted, seen(acted))
    assert read(telemetry)["grid_controller_leading",] == 1
    tell(telemetry, acted, seen(acted), acts=False)
    told = read(telemetry)
    assert told["grid_controller_leading",] == 0
    assert not any("g" in key for key in told)
    assert told["grid_reconcile_seconds_count",] == 2


# What is asked of servers


def test_requests_to_the_store_are_timed_and_those_that_came_to_nothing_are_told(
    telemetry: ControllerTelemetry,
) -> None:
    telemetry.asked(Request("reading", 0.02, None))
    telemetry.asked(Request("reading", 9.0, "timeout"))
    told = read(telemetry)
    assert told["grid_store_request_seconds_count", "reading"] == 2
    assert told["grid_store_request_seconds_bucket", "0.025", "reading"] == 1
    assert (told["grid_store_errors_total", "timeout"], told["grid_store_errors_total", "refused"]) == (1, 0)


@pytest.fixture
def api() -> Iterator[ScriptedServer]:
    def answer(request: ApiRequest) -> Any:
        return refusal(404, "NotFound", f"no {request.path}")

    with ScriptedServer(answer).running() as running:
        yield running


@pytest.mark.server
def test_requests_to_the_api_are_counted_over_all_connections_there_ever_were(
    telemetry: ControllerTelemetry, api: ScriptedServer, tmp_path: Path
) -> None:
    for number in (1, 2):
        with open_cluster(kubeconfig=str(api.kubeconfig(tmp_path))) as cluster:
            mirror = Mirror(cluster)
            mirror.restarts["pods", "ended"] += 3
            telemetry.follow((cluster,), mirror)
            with pytest.raises(ClusterError):
                cluster.get(JOBS, "none")
        told = read(telemetry)
        assert told["grid_api_requests_total", "404", "get"] == number
        assert told["grid_watch_restarts_total", "pods"] == 3 * number
    assert told["grid_watch_restarts_total", "jobs"] == 0


def test_a_controller_is_not_ready_before_it_has_seen_the_namespace(file_store: FileStore) -> None:
    def connect(**_: Any) -> Any:
        raise AssertionError("nothing is asked yet")

    controller = Controller(connect, file_store, Log(StringIO()), stop=StopSignal(), leave_tables=lambda _: None)
    assert controller.ready()[:2] == (503, "what is in the namespace is not listed yet")
    assert controller.rounds.answer().status == 200


# A real scrape


def everything(telemetry: ControllerTelemetry, clock: Clock, store: FileStore) -> None:
    """Let each metric have a value."""
    acted = act(store, HEAD + "deadline: 2026-03-02T00:00:00Z\n", gpu="{count: 1}")
    first, second, third = works(acted)
    tell(telemetry, acted, seen(acted))
    leave_rows(store, first.run, row(1))
    know(acted, results={first.run: result_of(first.run, 1.0)}, failures={second.run: failure_of(second.run)})
    clock.now += 10
    telemetry.asked(Request("listing", 0.01, None))
    tell(telemetry, acted, seen(acted, job(third), pod(third), progress={third.run: {"epoch": "3"}}))


@pytest.mark.server
@pytest.mark.parametrize(
    ("accept", "media_type", "parse_it"),
    [
        pytest.param("", "text/plain; version=0.0.4; charset=utf-8", read_text, id="text"),
        pytest.param(
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
            read_openmetrics,
            id="openmetrics",
        ),
    ],
)
def test_a_scrape_shows_every_documented_metric_and_label_and_none_other(
    telemetry: ControllerTelemetry,
    clock: Clock,
    api: ScriptedServer,
    file_store: FileStore,
    tmp_path: Path,
    accept: str,
    media_type: str,
    parse_it: Any,
) -> None:
    everything(telemetry, clock, file_store)
    with (
        open_cluster(kubeconfig=str(api.kubeconfig(tmp_path))) as cluster,
        HealthServer(0, {}, {"/metrics": telemetry.answer}) as server,
    ):
        telemetry.follow((cluster,), None)
        with pytest.raises(ClusterError):
            cluster.get(JOBS, "none")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
    assert (answer.status, answer.headers["Content-Type"]) == (200, media_type)
    families = {each.name: each for each in parse_it(text)}
    documented = {each.name.removesuffix("_total"): each for each in (*DESCRIPTIONS, *ENDED_DESCRIPTIONS)}
    assert families.keys() == documented.keys()
    for name, metric in documented.items():
        found = families[name]
        assert (found.type, found.documentation) == (metric.type, metric.help)
        labels = {tuple(sorted(sample.labels.keys() - {"le"})) for sample in found.samples}
        assert labels == {tuple(sorted(metric.labels))}, name
        if metric.values:
            assert {sample.labels[metric.labels[-1]] for sample in found.samples} <= {*metric.values}, name


def test_names_say_their_units_as_prometheus_wants_them() -> None:
    for metric in DESCRIPTIONS:
        assert metric.name.startswith("grid_")
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert not metric.unit or metric.name.removesuffix("_total").endswith(f"_{metric.unit}"), metric.name
        assert metric.help.endswith(".")
    assert len({each.name for each in (*DESCRIPTIONS, *ENDED_DESCRIPTIONS)}) == len(DESCRIPTIONS) + 7
