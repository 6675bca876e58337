"""`grid logs`: all attempts at a run in order, from pods and store, each line once, and live until the run is over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_server import Reply, Request, ScriptedServer, refusal
from click.testing import CliRunner, Result
from grids import TEXT
from pictures import import_pictures
from results import result

from controller.archive import write_settings
from controller.attempt_logs import RunLogs, after, merged
from controller.cli import main
from controller.commands import logs as command
from controller.grid import parse_grid
from controller.jobs import RUN_LABEL
from controller.observe import take_up
from controller.settings import parse_settings
from controller.standing import Choice
from trainer.failure import ExitCode, Failure
from trainer.lease import LeaseRecord, lease_key
from trainer.logs import Line, human_lines, json_text, read_line
from trainer.store import FileStore

RUN = "usual-0123456789ab"
FIRST, SECOND = "0001-aaaaaaaa", "0002-bbbbbbbb"
SETTINGS = 'image: none:1\nnamespace: lab\nstore: {uri: "s3://bucket"}\n'
HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)


def line(second: float, message: str, level: str = "info", attempt: str = FIRST, traceback: str | None = None) -> Line:
    moment = (HOUR + timedelta(seconds=second)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Line(message, moment, level, {"run": RUN, "attempt": attempt}, traceback)


BEGUN = [line(0, f"attempt {FIRST} begins the run: 2 epochs"), line(1, "epoch 1 of 2"), line(2, "stopped: by SIGTERM")]
GOES_ON = [
    line(60, f"attempt {SECOND} goes on in epoch 2 of 2", attempt=SECOND),
    line(61, "the store does not answer", "warning", attempt=SECOND),
    line(62, "epoch 2 of 2", attempt=SECOND),
]


def texts(*lines: Line) -> bytes:
    return "".join(f"{json_text(each)}\n" for each in lines).encode()


@pytest.fixture
def store(alone: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
    monkeypatch.setattr(command, "LOG_AGAIN_SECONDS", 0.01)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return FileStore(alone / "store")


def put_log(store: FileStore, attempt: str, *lines: Line) -> None:
    store.put(f"runs/{RUN}/attempts/{attempt}/log.txt", texts(*lines))


def put_lease(store: FileStore, attempt: str, *, released: bool = False, host: str = "node") -> None:
    lease = LeaseRecord(
        holder=f"{host}:1", host=f"{host}/-/-", attempt=attempt, heartbeat=datetime.now(UTC), released=released
    )
    store.put(lease_key(RUN), lease.model_dump_json().encode())


def put_result(store: FileStore) -> None:
    store.put(f"results/{RUN}.json", result(RUN, attempts=2).model_dump_json().encode())


@pytest.fixture
def two(store: FileStore) -> FileStore:
    """A store with a run that two attempts brought to its result."""
    put_log(store, FIRST, *BEGUN)
    put_log(store, SECOND, *GOES_ON)
    put_lease(store, SECOND, released=True)
    put_result(store)
    return store


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["logs", RUN, *words])


def messages(*words: str) -> list[str]:
    """The messages of what is printed, without the titles."""
    said = [json.loads(each) for each in call("--json", *words).stdout.splitlines()]
    return [each["message"] for each in said if "end" not in each]


# What is merged


def test_of_what_both_have_the_stores_line_stands_and_the_rest_is_where_it_belongs() -> None:
    failed = line(3, "it failed", "error", traceback="Traceback\nValueError: x")
    kept = [*BEGUN[:2], failed]
    output = [
        Line("before the log"),
        *(
            Line(text) if not text.startswith("2026") else read_line(text)
            for each in kept
            for text in human_lines(each)
        ),
        Line("Fatal Python error: Segmentation fault"),
    ]
    assert merged(kept, output) == [output[0], *kept, output[-1]]


@pytest.mark.parametrize(
    ("kept", "seen", "expected"),
    [
        ([], BEGUN, BEGUN),
        (BEGUN, [], BEGUN),
        (BEGUN[:2], BEGUN, BEGUN),
        (BEGUN, BEGUN[1:], BEGUN),
        ([BEGUN[0], Line("9 lines are left out here"), BEGUN[2]], BEGUN, None),
        ([BEGUN[0], BEGUN[0]], [BEGUN[0], BEGUN[0]], [BEGUN[0], BEGUN[0]]),
    ],
    ids=["no store", "no pod", "the store is behind", "the pod's beginning is gone", "cut in the store", "said twice"],
)
def test_no_line_is_lost_and_none_is_doubled(kept: list[Line], seen: list[Line], expected: list[Line] | None) -> None:
    found = merged(kept, seen)
    if expected is not None:
        assert found == expected
    else:
        assert [each for each in found if each in BEGUN] == BEGUN


@pytest.mark.parametrize(
    ("count", "last", "expected"),
    [(0, None, 3), (2, BEGUN[1], 1), (3, BEGUN[2], 0), (9, BEGUN[0], 2), (9, Line("elsewhere"), 1)],
    ids=["nothing", "by number", "all of it", "by the last line", "by the time"],
)
def test_what_comes_after_is_found_again(count: int, last: Line | None, expected: int) -> None:
    assert len(after(BEGUN, count, last, str(BEGUN[1].time))) == expected


# What is printed


def test_all_attempts_are_shown_in_order_each_below_its_title(two: FileStore) -> None:
    shown = call()
    assert shown.exit_code == ExitCode.OK
    lines = shown.stdout.splitlines()
    assert lines[0] == f"==> attempt 1 ({FIRST}), from 2026-11-23T08:00:00.000Z: stopped: by SIGTERM <=="
    assert lines[1:4] == [human_lines(each)[0] for each in BEGUN]
    assert lines[4].startswith(f"==> attempt 2 ({SECOND}), host node, from 2026-11-23T08:01:00.000Z: done: the result")
    assert lines[5:] == [human_lines(each)[0] for each in GOES_ON]
    assert "\x1b" not in shown.stdout


def test_as_json_each_line_is_an_object_that_names_its_run_and_attempt(two: FileStore) -> None:
    two.put(f"runs/{RUN}/attempts/{FIRST}/output.txt", b"Killed\n")
    said = [json.loads(each) for each in call("--json").stdout.splitlines()]
    assert {each["run"] for each in said} == {RUN}
    assert [each["attempt"] for each in said] == [FIRST] * 5 + [SECOND] * 4
    assert [each["end"] for each in said if "end" in each] == [
        "stopped: by SIGTERM",
        "done: the result is in the store",
    ]
    assert said[1]["level"] == "info"
    (raw,) = [each for each in said if each["message"] == "Killed"]
    assert (raw["time"], raw["level"]) == (None, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--attempt", "1"), BEGUN),
        (("--attempt", "2"), GOES_ON),
        (("--tail", "4"), [BEGUN[2], *GOES_ON]),
        (("--tail", "0"), []),
        (("--level", "warning"), [GOES_ON[1]]),
        (("--level", "error"), []),
        (("--since", "2026-11-23T08:01:01Z"), GOES_ON[1:]),
        (("--since", "2026-11-23T10:01:01+02:00"), GOES_ON[1:]),
        (("--since", "2026-11-24"), []),
        (("--since", "1s", "--level", "debug"), []),
        (("--attempt", "2", "--tail", "1"), [GOES_ON[2]]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_only_the_lines_that_are_asked_for_are_shown(
    two: FileStore, words: tuple[str, ...], expected: list[Line]
) -> None:
    assert messages(*words) == [each.message for each in expected]


def test_an_attempt_of_which_no_line_is_asked_for_has_no_title(two: FileStore) -> None:
    assert [each[:13] for each in call("--level", "warning").stdout.splitlines()] == ["==> attempt 2", "2026-11-23T08"]


def test_what_was_written_beside_the_log_is_shown_at_every_level_and_has_the_time_of_the_line_before(
    two: FileStore,
) -> None:
    put_log(two, FIRST, *BEGUN, Line("Fatal Python error"))
    assert messages("--level", "error") == ["Fatal Python error"]
    assert messages("--since", "2026-11-23T08:00:02Z", "--attempt", "1") == [BEGUN[2].message, "Fatal Python error"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--since", "soon"), "--since: got 'soon'"),
        (("--attempt", "3"), "--attempt: got 3, expected 1 or 2"),
    ],
    ids=["time", "attempt"],
)
def test_what_cannot_be_meant_is_told(two: FileStore, words: tuple[str, ...], told: str) -> None:
    shown = call(*words)
    assert shown.exit_code == ExitCode.SPEC
    assert told in shown.stderr


def test_what_could_drive_a_terminal_is_shown_as_no_such_thing(two: FileStore) -> None:
    put_log(two, SECOND, line(60, "two\nlines\x1b[2J", traceback="Trace\n  back"))
    assert call("--attempt", "2").stdout.splitlines()[1:] == [
        "2026-11-23T08:01:00.000Z info    two",
        "lines\N{REPLACEMENT CHARACTER}[2J",
        "Trace",
        "  back",
    ]


@pytest.mark.parametrize(
    ("variables", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_a_terminal_has_colour_unless_its_user_says_no(
    two: FileStore, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_coloured: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "is_terminal", lambda: True)
    shown = CliRunner().invoke(main, ["logs", RUN], color=True)
    assert ("\x1b[33m2026-11-23T08:01:01.000Z warning" in shown.stdout) == is_coloured
    assert ("\x1b" in shown.stdout) == is_coloured


# How attempts ended


def ends(store: FileStore) -> list[str | None]:
    return [each.end for each in RunLogs(store, RUN).read()]


def test_an_attempt_whose_heartbeat_is_new_is_at_work(store: FileStore) -> None:
    put_log(store, FIRST, *BEGUN[:2])
    put_lease(store, FIRST)
    assert ends(store) == [None]
    assert "at work <==" in call().stdout
    put_lease(store, FIRST, released=True)
    assert ends(store) == ["ended without a word, as by SIGKILL"]


def test_a_failure_says_how_its_attempt_ended(store: FileStore) -> None:
    put_log(store, FIRST, *BEGUN[:2])
    put_log(store, SECOND, *GOES_ON)
    failure = Failure(run=RUN, attempt=FIRST, exit_code=69, reason="store", message="no answer", final=False)
    store.put(f"runs/{RUN}/attempts/{FIRST}/failure.json", failure.model_dump_json().encode())
    final = failure.model_copy(update={"attempt": SECOND, "reason": "diverged", "message": "nan", "final": True})
    store.put(f"failures/{RUN}.json", final.model_dump_json().encode())
    assert ends(store) == ["failed: store: no answer", "failed: diverged: nan"]


# Live


def test_a_local_run_is_followed_from_attempt_to_attempt_until_it_is_over(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it goes on beside: one attempt, a pause, the next, the result; each step once the last one was seen."""
    steps: list[Callable[[], None]] = [
        lambda: put_log(store, FIRST, *BEGUN[:2]),
        lambda: put_log(store, FIRST, *BEGUN),
        lambda: put_lease(store, FIRST, released=True),
        lambda: put_lease(store, SECOND),
        lambda: put_log(store, SECOND, *GOES_ON[:1]),
        lambda: put_result(store),
        lambda: put_log(store, SECOND, *GOES_ON),
        lambda: put_lease(store, SECOND, released=True),
    ]
    monkeypatch.setattr(command.time, "sleep", lambda _: steps.pop(0)() if steps else pytest.fail("it went on"))
    put_log(store, FIRST, *BEGUN[:1])
    put_lease(store, FIRST)
    shown = call("-f")
    assert shown.exit_code == ExitCode.OK
    lines = shown.stdout.splitlines()
    assert [each for each in lines if not each.startswith("==>")] == [
        human_lines(each)[0] for each in (*BEGUN, *GOES_ON)
    ]
    assert [each.partition(": ")[2] for each in lines if each.startswith("==>")] == [
        "at work <==",
        "stopped: by SIGTERM <==",
        "at work <==",
        "done: the result is in the store <==",
    ]
    assert shown.stderr.count("waiting for its next attempt") == 1
    assert not steps


def test_a_log_that_is_over_is_followed_no_further(two: FileStore) -> None:
    assert call("-f").stdout == call().stdout


class Pods:
    """A namespace with pods of the run that write, end and go as a test says; a log of theirs can be followed once."""

    def __init__(self, store: FileStore) -> None:
        self.store = store
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[Line]] = {}
        self.live: dict[str, Callable[[], Iterator[Line]]] = {}  # what a pod writes while it is followed

    def add(self, name: str, *lines: Line, phase: str = "Running", exit_code: int | None = None) -> None:
        ended = {"terminated": {"exitCode": exit_code, "startedAt": "2026-11-23T08:00:00Z"}}
        running = {"running": {"startedAt": "2026-11-23T08:00:00Z"}}
        self.pods[name] = {
            "metadata": {
                "name": name,
                "uid": name,
                "resourceVersion": "1",
                "creationTimestamp": f"2026-11-23T08:0{len(self.pods)}:00Z",
                "labels": {RUN_LABEL: RUN},
            },
            "spec": {"nodeName": "n1"},
            "status": {
                "phase": phase,
                "containerStatuses": [{"name": "trainer", "state": running if exit_code is None else ended}],
            },
        }
        self.logs[name] = list(lines)

    def answer(self, request: Request) -> Reply:
        if request.path == "/api/v1/namespaces/lab/pods":
            return Reply(body={"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [*self.pods.values()]})
        name = request.path.split("/")[-2]
        if not request.path.endswith("/log") or name not in self.pods:
            return refusal(404, "NotFound", "not found", kind="pods", name=name)
        lines = iter(list(self.logs[name]))
        if "follow" in request.query:
            return Reply(lines=map(stamped, self.followed(name, lines)))
        return Reply(lines=map(stamped, lines))

    def followed(self, name: str, lines: Iterator[Line]) -> Iterator[Line]:
        yield from lines
        yield from self.live.get(name, lambda: iter(()))()


def stamped(each: Line) -> bytes:
    return f"{each.time or BEGUN[0].time} {json_text(each) if each.time else each.message}\n".encode()


@pytest.fixture
def pods(store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pods]:
    import_pictures(store, tmp_path / "pictures", per_class=3)
    write_settings(store, "small", parse_settings(SETTINGS, "settings.yaml"))
    take_up(parse_grid(TEXT, "small.yaml"), store, Choice())
    pods = Pods(store)
    with ScriptedServer(pods.answer).running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(Path())))
        yield pods


@pytest.mark.server
def test_what_pods_wrote_stands_beside_what_the_store_has(pods: Pods) -> None:
    put_log(pods.store, FIRST, *BEGUN)
    pods.add("pod-a", *BEGUN[:1], Line("beside the log"), *BEGUN[1:], phase="Failed", exit_code=75)
    pods.add("pod-b", *GOES_ON)
    shown = call()
    assert shown.exit_code == ExitCode.OK
    lines = shown.stdout.splitlines()
    assert f"attempt 1 ({FIRST}), pod pod-a, node n1, from 2026-11-23T08:00:00.000Z: stopped: by SIGTERM" in lines[0]
    assert lines[2] == "beside the log"
    assert f"attempt 2 ({SECOND}), pod pod-b, node n1" in lines[5]
    assert len(lines) == 2 + 1 + len(BEGUN) + len(GOES_ON)
    assert lines[5].endswith("at work <==")


@pytest.mark.server
def test_a_run_in_pods_is_followed_through_their_ends_and_what_a_lost_one_wrote_last_is_read_from_the_store(
    pods: Pods,
) -> None:
    pods.add("pod-a", *BEGUN[:1])

    def first() -> Iterator[Line]:
        yield BEGUN[1]
        pods.add("pod-a", *BEGUN, phase="Failed", exit_code=75)  # its last line is not in the stream
        put_log(pods.store, FIRST, *BEGUN)
        pods.add("pod-b")

    def second() -> Iterator[Line]:
        yield from GOES_ON[:2]
        put_log(pods.store, SECOND, *GOES_ON)
        put_result(pods.store)
        del pods.pods["pod-b"]  # gone with its node

    pods.live = {"pod-a": first, "pod-b": second}
    shown = call("-f")
    assert shown.exit_code == ExitCode.OK, shown.output
    lines = shown.stdout.splitlines()
    assert [each for each in lines if not each.startswith("==>")] == [
        human_lines(each)[0] for each in (*BEGUN, *GOES_ON)
    ]
    assert [each.rpartition(": ")[2] for each in lines if each.startswith("==>")] == [
        "at work <==",
        "by SIGTERM <==",
        "at work <==",
        "the result is in the store <==",
    ]


@pytest.mark.server
def test_an_attempt_that_is_asked_for_is_all_that_is_followed(pods: Pods) -> None:
    pods.add("pod-a", *BEGUN, phase="Failed", exit_code=75)
    pods.add("pod-b")

    def live() -> Iterator[Line]:
        yield from GOES_ON
        pods.add("pod-b", *GOES_ON, phase="Succeeded", exit_code=0)
        put_result(pods.store)

    pods.live = {"pod-b": live}
    assert messages("-f", "--attempt", "2") == [each.message for each in GOES_ON]


@pytest.mark.server
def test_a_pod_that_never_had_an_attempt_is_shown_by_when_it_was(pods: Pods) -> None:
    put_log(pods.store, SECOND, *GOES_ON)
    pods.add("pod-a", Line("no module named trainer"), phase="Failed", exit_code=1)
    lines = call().stdout.splitlines()
    assert lines[0].startswith("==> an attempt without a number, pod pod-a, node n1")
    assert lines[0].endswith("ended with exit code 1 <==")
    assert lines[1] == "no module named trainer"
    assert lines[2].startswith("==> attempt 2")
