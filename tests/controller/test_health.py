"""What a process that runs for ever says of itself."""

from __future__ import annotations

import http.client
import json
import re
from io import StringIO

import pytest

from controller import health
from controller.health import HealthServer, Link, Log, Rounds
from trainer.failure import SpecError
from trainer.serving import Answer


def test_every_event_is_one_line_with_its_time_and_level() -> None:
    stream = StringIO()
    log = Log(stream)
    log.say("failed", "small: lr/a: training: diverged\nhint: a smaller step \x1b[31m")
    log.say("note", "acts on it")
    first, second = stream.getvalue().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z error   failed small: lr/a: .*; hint: a smaller", first)
    assert "\x1b" not in first
    assert second.endswith("Z info    acts on it")


def test_as_json_an_event_names_the_grid_that_it_is_about() -> None:
    stream = StringIO()
    log = Log(stream, "json")
    log.grids = {"small"}
    log.say("failed", "small: lr/a: diverged\nhint: a smaller step")
    log.write("info", "the store answers again: after 3 s")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {"level": "error", "grid": "small", "message": "failed small: lr/a: diverged; hint: a smaller step"}
    assert set(second) == {"time", "level", "message"}


def test_a_silence_is_told_once_and_so_is_its_end() -> None:
    stream = StringIO()
    link = Link("the store", Log(stream))
    link.answered()
    assert link.why is None
    link.failed("no answer")
    link.failed("refused")
    assert link.why == "refused"
    link.answered()
    link.answered()
    assert link.why is None
    first, second = stream.getvalue().splitlines()
    assert "warning the store does not answer as it should, asking again: no answer" in first
    assert "the store answers again, after " in second


def test_a_loop_that_goes_round_is_well_and_one_that_hangs_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds()
    assert rounds.answer().status == 200
    monkeypatch.setattr(health, "ROUND_SECONDS", 0)
    assert rounds.answer().status == 503


@pytest.mark.server
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_paths_are_answered_as_they_say(host: str) -> None:
    paths = {"/healthz": lambda: Answer(200, "well"), "/readyz": lambda: Answer(503, "no store")}
    with HealthServer(0, paths) as server:
        answers = {}
        for path in ("/healthz", "/readyz?verbose", "/metrics"):
            connection = http.client.HTTPConnection(host, server.port, timeout=10)
            connection.request("GET", path)
            answer = connection.getresponse()
            answers[path] = answer.status, answer.read().decode()
            connection.close()
    assert answers["/healthz"] == (200, "well\n")
    assert answers["/readyz?verbose"] == (503, "no store\n")
    assert answers["/metrics"] == (404, "there is /healthz, /readyz\n")


@pytest.mark.server
def test_a_port_that_is_taken_is_told() -> None:
    with HealthServer(0, {}) as server, pytest.raises(SpecError, match=f"--port: got {server.port}"):
        HealthServer(server.port, {})
