"""Who holds the Lease, against a small API that keeps versions; clocks are the tests' own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from api_server import BREAK, Object, Reply, Request, ScriptedServer, refusal

from controller import election
from controller.cluster import Forbidden, open_cluster
from controller.election import Leadership

pytestmark = pytest.mark.server

DURATION = 15


class Leases:
    """One Lease under versions."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.version = 0
        self.lost_answers = 0  # writes that are done, and whose answer is lost
        self.lock = threading.Lock()
        self.server = ScriptedServer(self.answer)

    def write(self, body: Object) -> Object:
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.lease

    def answer(self, request: Request) -> Reply:
        with self.lock:
            if request.path == "/version":
                return Reply(body={"gitVersion": "v1.35.4"}, headers={"Date": format_datetime(datetime.now(UTC))})
            if request.method == "POST":
                if self.lease is not None:
                    return refusal(409, "AlreadyExists", "already exists")
            elif self.lease is None:
                return refusal(404, "NotFound", "not found")
            elif request.method == "GET":
                return Reply(body=self.lease)
            elif request.body["metadata"]["resourceVersion"] != str(self.version):
                return refusal(409, "Conflict", "the object has been modified")
            written = self.write(request.body)
            if self.lost_answers:
                self.lost_answers -= 1
                return BREAK
            return Reply(body=written)


@pytest.fixture
def leases() -> Iterator[Leases]:
    leases = Leases()
    with leases.server.running():
        yield leases


class Clock:
    """Stands in for the module's `time`: passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return datetime.now(UTC).timestamp()

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(election, "time", clock)
    return clock


@pytest.fixture
def join(leases: Leases, tmp_path: Path) -> Iterator[Callable[..., Leadership]]:
    cluster = open_cluster(kubeconfig=str(leases.server.kubeconfig(tmp_path)))
    yield lambda identity, period_seconds=0.05, **more: Leadership(
        cluster, identity=identity, duration_seconds=DURATION, period_seconds=period_seconds, **more
    )
    cluster.close()


def test_the_first_to_ask_holds_it(leases: Leases, join: Callable[..., Leadership], clock: Clock) -> None:
    one, two = join("one"), join("two")
    assert one.try_once()
    assert not two.try_once()
    assert (one.is_held, two.is_held) == (True, False)
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == "one"


def test_a_holder_that_renews_keeps_it(leases: Leases, join: Callable[..., Leadership], clock: Clock) -> None:
    one, two = join("one"), join("two")
    assert one.try_once()
    for _ in range(10):
        clock.now += DURATION / 2
        assert one.try_once()
        assert not two.try_once()


def test_a_holder_that_fell_silent_loses_it_after_its_duration(
    leases: Leases, join: Callable[..., Leadership], clock: Clock
) -> None:
    one, two = join("one"), join("two")
    assert one.try_once()
    assert not two.try_once()
    clock.now += DURATION - 0.1
    assert not two.try_once()
    assert not one.is_held  # before anyone else may take it
    clock.now += 0.2
    assert two.try_once()
    assert not one.try_once()
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1


def test_clocks_of_holders_are_not_compared(leases: Leases, join: Callable[..., Leadership], clock: Clock) -> None:
    one, two = join("one"), join("two")
    assert one.try_once()
    assert leases.lease is not None
    leases.lease["spec"]["renewTime"] = "2001-01-01T00:00:00.000000Z"  # a clock that is wrong by decades
    assert not two.try_once()
    clock.now += DURATION - 1
    assert not two.try_once()


def test_what_is_given_back_is_free_at_once(leases: Leases, join: Callable[..., Leadership], clock: Clock) -> None:
    one, two = join("one"), join("two")
    assert one.try_once()
    one.release()
    assert not one.is_held
    assert two.try_once()
    one.release()  # no longer its own to give
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == "two"


def test_a_renewal_whose_answer_was_lost_keeps_it(
    leases: Leases, join: Callable[..., Leadership], clock: Clock
) -> None:
    one = join("one")
    leases.lost_answers = 1
    assert one.try_once()
    leases.lost_answers = 1
    assert one.try_once()
    assert one.is_held


def test_a_deleted_lease_is_made_again(leases: Leases, join: Callable[..., Leadership], clock: Clock) -> None:
    one = join("one")
    assert one.try_once()
    leases.lease = None
    assert one.try_once()
    assert leases.lease is not None


def test_of_many_at_once_one_gets_it(leases: Leases, join: Callable[..., Leadership]) -> None:
    contenders = [join(str(number)) for number in range(8)]
    held: list[bool] = []
    threads = [threading.Thread(target=lambda each=each: held.append(each.try_once())) for each in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(held) == [False] * 7 + [True]


def test_in_a_block_it_is_held_and_given_back(leases: Leases, join: Callable[..., Leadership]) -> None:
    with join("one") as one, join("two") as two:
        assert one.wait(10) != two.wait(0.5) or one.is_held != two.is_held
        first, second = (one, two) if one.is_held else (two, one)
        first.__exit__()
        assert second.wait(10)
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == ""


def test_who_gives_way_takes_nothing_and_gives_back_what_it_has(
    leases: Leases, join: Callable[..., Leadership], clock: Clock
) -> None:
    asked: list[bool] = []
    one = join("one", gives_way=lambda: asked.append(True) or len(asked) == 2)  # after it was taken, not before
    assert not one.try_once()
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == ""
    assert one.try_once()
    one._gives_way = lambda: True
    assert not one.try_once()
    assert not one.is_held
    assert leases.lease["spec"]["holderIdentity"] == ""
    assert not one.try_once()
    assert leases.lease["spec"]["holderIdentity"] == ""


def test_an_annotation_says_more_of_the_holder(leases: Leases, join: Callable[..., Leadership], clock: Clock) -> None:
    assert join("one", annotations={"store": "s3://lab"}).try_once()
    seen = join("other").look()
    assert (seen.holder, seen.annotation("store"), seen.annotation("else")) == ("one", "s3://lab", None)


def test_a_process_that_was_killed_a_moment_ago_is_not_surely_alive(
    leases: Leases, join: Callable[..., Leadership], clock: Clock
) -> None:
    assert join("one").try_once()
    quick, sure = join("other").holder(), join("other", 5).holder(surely=True)
    assert quick is not None
    assert sure is not None
    assert (quick.is_alive, sure.is_alive) == (True, False)


def test_a_refusal_is_raised_to_who_waits(leases: Leases, join: Callable[..., Leadership]) -> None:
    leases.server.answer = lambda _: refusal(403, "Forbidden", "no leases for you")
    with join("one") as one, pytest.raises(Forbidden):
        one.wait(10)


def test_the_holder_is_told_to_others(leases: Leases, join: Callable[..., Leadership], clock: Clock) -> None:
    other = join("other")
    assert other.holder() is None
    assert join("one").try_once()
    told = other.holder()
    assert told is not None
    assert (told.identity, told.is_alive) == ("one", True)


def test_a_holder_that_does_not_renew_is_told_as_dead(
    leases: Leases, join: Callable[..., Leadership], clock: Clock
) -> None:
    assert join("one").try_once()
    assert leases.lease is not None
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    leases.lease["spec"]["renewTime"] = long_ago.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    told = join("other", 5).holder()
    assert told is not None
    assert (told.identity, told.is_alive) == ("one", False)
