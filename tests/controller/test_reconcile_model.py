"""What is decided holds whatever happens in between: a model of Kubernetes, with old views, crashes and rivals."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kubernetes_model import Conflict, World
from results import result, result_of_test

from controller.actions import (
    Action,
    Create,
    Delete,
    ListPods,
    NoteDone,
    NoteKept,
    NoteResumed,
    RecordFailure,
    Resume,
    changes,
    notice,
)
from controller.jobs import JobView
from controller.reconcile import GridView, Kept, Observation, Resumption, decide, failed_anew, told
from controller.standing import Held, Known, Work, run_state

RUNS = ("a", "b", "c", "d")
TEST = Work("a", True)  # to come once run a is trained
EXITS = (0, 0, 0, 1, 64, 65, 69, 70, 71, 75, 137, 143)
RESULTS = {run: result(run) for run in RUNS}
TESTS = {TEST.run: result_of_test(TEST.run)}
ROUNDS = 400  # within which a grid left alone ends


@dataclass
class Viewer:
    """A controller: what it has seen, what it wrote itself, and what it decided and has not done yet."""

    jobs_at: int = 0
    pods_at: int = 0
    seen_jobs: dict[Work, JobView] = field(default_factory=dict)
    pods_hang: bool = False  # the watch of the pods tells nothing, and nobody has noticed
    written: dict[Work, JobView] = field(default_factory=dict)  # answers to own writes that `jobs_at` has not reached
    unlisted: set[Work] = field(default_factory=set)
    todo: deque[tuple[Observation, Action]] = field(default_factory=deque)
    unwritten: set[str] = field(default_factory=set)  # failures that could not be recorded: their Jobs stay

    def advance(self, version: int, listed: Mapping[Work, JobView]) -> None:
        """Take in that the Jobs were those at `version`; of own writes, what came later counts."""
        self.jobs_at = version
        self.written = {work: job for work, job in self.written.items() if int(job.resource_version) > version}
        self.notice({**listed, **self.written})

    def notice(self, now: dict[Work, JobView]) -> None:
        uids = {work: job.uid for work, job in self.seen_jobs.items()}
        uids_now = {work: job.uid for work, job in now.items()}
        self.unlisted |= {work for work in uids | uids_now if uids.get(work) != uids_now.get(work)}
        self.seen_jobs = now


class Cluster(RuleBasedStateMachine):
    """Grids, users, Kubernetes, the store and the controllers, each taking a step when Hypothesis says so."""

    num_controllers = 1

    @initialize(
        first=st.lists(st.sampled_from(RUNS), unique=True, min_size=1),
        second=st.lists(st.sampled_from(RUNS), unique=True),
        windows=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        queued=st.sampled_from((False, False, True)),
        max_failed=st.sampled_from((None, None, 0, 1)),
        ttl=st.sampled_from((None, 30)),
        max_tries=st.integers(1, 3),
        tested=st.booleans(),
    )
    def submit(
        self,
        first: list[str],
        second: list[str],
        windows: tuple[int, int],
        queued: bool,
        max_failed: int | None,
        ttl: int | None,
        max_tries: int,
        tested: bool,
    ) -> None:
        self.world = World()
        self.viewers = [Viewer() for _ in range(self.num_controllers)]
        self.is_steady = True  # no grid has changed, so that the window's bound can be told
        self.told: set[tuple[str, str]] = set()  # happenings of which an Event was written
        self.times = count()  # of decisions
        self.grids: dict[str, GridView] = {}
        for name, runs, window in zip(("x", "y"), (first, second), windows, strict=True):
            wants = {Work(run, False): f"stage-{name}" for run in runs}
            if tested and "a" in runs and name == "x":
                wants[TEST] = "final"
            self.grids[name] = GridView(
                name,
                "active",
                wants,
                parallelism=window,
                queue="queue" if queued and name == "x" else None,
                max_failed=max_failed,
                ttl_seconds=ttl,
                max_tries=max_tries,
                pending_seconds=120.0,
            )

    # Users

    def change(self, name: str, **values: object) -> None:
        self.grids[name] = replace(self.grids[name], **values)  # type: ignore[arg-type]
        self.is_steady = False

    @rule(name=st.sampled_from(("x", "y")), intent=st.sampled_from(("paused", "active", "active", "cancelled")))
    def say(self, name: str, intent: str) -> None:
        if self.grids[name].intent != "cancelled":
            self.change(name, intent=intent)

    @rule(run=st.sampled_from(RUNS), held=st.sampled_from(("paused", "paused", "cancelled")))
    def hold_run(self, run: str, held: Held) -> None:
        """Pause or cancel one run in every grid that wants it; what was cancelled is not merely paused by that."""
        for name, grid in self.grids.items():
            if any(work.run == run for work in grid.wants) and grid.held.get(run) != "cancelled":
                self.change(name, held={**grid.held, run: held})

    @rule(run=st.sampled_from(RUNS))
    def resume_run(self, run: str) -> None:
        """Let one run that is paused go on."""
        for name, grid in self.grids.items():
            if grid.held.get(run) == "paused":
                self.change(name, held={each: held for each, held in grid.held.items() if each != run})

    @rule(name=st.sampled_from(("x", "y")), run=st.sampled_from(RUNS), prune=st.booleans())
    def update(self, name: str, run: str, prune: bool) -> None:
        wants = dict(self.grids[name].wants)
        if wants.pop(Work(run, False), None) is None:
            wants[Work(run, False)] = f"stage-{name}"
        elif run == "a":
            wants.pop(TEST, None)
        self.change(name, wants=wants, prune=prune)

    @precondition(lambda self: self.world.failures)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        del self.world.failures[data.draw(st.sampled_from(sorted(self.world.failures)))]

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data(), how=st.sampled_from(("background", "background", "orphan", "foreground")))
    def delete_by_hand(self, data: st.DataObject, how: str) -> None:
        self.world.delete_by_hand(data.draw(st.sampled_from(sorted(self.world.jobs))), how)

    @precondition(lambda self: self.world.results)
    @rule(name=st.sampled_from(("x", "y")), data=st.data())
    def keep(self, name: str, data: st.DataObject) -> None:
        """A decision keeps a run, or another one is taken that does not."""
        run = data.draw(st.sampled_from(sorted(self.world.results)))
        grid = self.grids[name]
        kept = {} if run in grid.kept else {run: [Kept(f"stage-{name}", str(next(self.times)), f"kept by {name}")]}
        self.change(name, kept=kept)

    # Kubernetes

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def sync(self, data: st.DataObject) -> None:
        self.world.sync(data.draw(st.sampled_from(sorted(self.world.jobs))))

    @precondition(lambda self: self.world.jobs)
    @rule(seconds=st.sampled_from((0, 1, 15)))
    def go_on_fairly(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        for work in list(self.world.jobs):
            self.world.sync(work)
        for name in self.living():
            self.world.start(name)

    @precondition(lambda self: any(job.queue for job in self.world.jobs.values()))
    @rule(data=st.data(), admit=st.booleans())
    def queue(self, data: st.DataObject, admit: bool) -> None:
        work = data.draw(st.sampled_from(sorted(work for work, job in self.world.jobs.items() if job.queue)))
        (self.world.admit if admit else self.world.preempt)(work)

    @rule(what=st.sampled_from((*RUNS, "quota")), broken=st.booleans())
    def weather(self, what: str, broken: bool) -> None:
        if what == "quota":
            self.world.refuses_pods = broken
        else:
            (self.world.broken_images.add if broken else self.world.broken_images.discard)(what)

    @rule(seconds=st.sampled_from((1, 5, 60, 400)))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    def living(self) -> list[str]:
        return sorted(name for name, pod in self.world.pods.items() if not pod.has_ended)

    @precondition(lambda self: self.living())
    @rule(data=st.data(), exit_code=st.sampled_from(EXITS), delay=st.sampled_from((0, 0, 20, 400)), told=st.booleans())
    def end(self, data: st.DataObject, exit_code: int, delay: float, told: bool) -> None:
        pod = self.world.pods[data.draw(st.sampled_from(self.living()))]
        if pod.deleting and exit_code not in (75, 143, 137):
            exit_code = 75
        if pod.phase == "Running" or pod.deleting:
            stored = exit_code != 0 or delay != 400  # else its image does not keep the contract
            self.world.end(pod.name, exit_code, message=told, stored=stored and (told or exit_code == 0), delay=delay)

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        self.world.checkpoint(data.draw(st.sampled_from(self.living())))

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        self.world.evict(data.draw(st.sampled_from(self.living())))

    # Controllers

    @rule(which=st.integers(0, 1), behind=st.tuples(st.integers(0, 6), st.integers(0, 12)), acts=st.integers(0, 3))
    def observe(self, which: int, behind: tuple[int, int], acts: int) -> None:
        """See what the watches have told so far, which may lag behind, each by itself; decide; do some of it."""
        viewer = self.viewers[which % len(self.viewers)]
        self.look(viewer, *behind)
        self.do_next(viewer, acts)

    @rule(which=st.integers(0, 1), rounds=st.integers(1, 3))
    def control(self, which: int, rounds: int) -> None:
        """See all that is, and do all that is decided."""
        viewer = self.viewers[which % len(self.viewers)]
        for _ in range(rounds):
            self.look(viewer, 0, 0)
            self.do_next(viewer, len(viewer.todo))

    @rule(which=st.integers(0, 1), acts=st.integers(1, 4))
    def act(self, which: int, acts: int) -> None:
        """Do the next of what was decided, however long ago."""
        self.do_next(self.viewers[which % len(self.viewers)], acts)

    @rule(which=st.integers(0, 1))
    def start_anew(self, which: int) -> None:
        """The controller was killed at any point, and another one lists all Jobs, then all pods."""
        self.viewers[which % len(self.viewers)] = self.restarted()

    @rule(which=st.integers(0, 1), hangs=st.booleans())
    def hang(self, which: int, hangs: bool) -> None:
        self.viewers[which % len(self.viewers)].pods_hang = hangs

    def look(self, viewer: Viewer, jobs_behind: int, pods_behind: int) -> None:
        world = self.world
        if not viewer.pods_hang:
            viewer.pods_at = max(viewer.pods_at, world.version - pods_behind)
        for version in range(viewer.jobs_at + 1, world.version - jobs_behind + 1):  # a watch tells of all on the way
            viewer.advance(version, world.history[version].jobs)
        self.decide(viewer)

    def do_next(self, viewer: Viewer, count: int) -> None:
        for _ in range(min(count, len(viewer.todo))):
            self.do(viewer, *viewer.todo.popleft())

    def restarted(self) -> Viewer:
        version = self.world.version
        jobs = dict(self.world.history[version].jobs)
        viewer = Viewer(version, version, jobs)
        self.decide(viewer)
        return viewer

    def seen_by(self, viewer: Viewer) -> Observation:
        world = self.world
        viewer.advance(viewer.jobs_at, world.history[viewer.jobs_at].jobs)
        pods = world.history[viewer.pods_at].pods
        results, tests = world.shown(world.results), world.shown(world.tests)
        seen = Observation(
            now=world.now,
            grids=dict(self.grids),
            jobs=viewer.seen_jobs,
            pods=pods,
            unlisted=frozenset(viewer.unlisted),
            results=results,
            tests=tests,
            known=[Known(results={run: RESULTS[run] for run in results}, tests={run: TESTS[run] for run in tests})],
            failures=dict(world.failures),
            resumed={
                pod.work.run: Resumption(pod.name, pod.resumed_from)
                for pod in world.pods.values()
                if pod.phase == "Running" and pod.resumed_from
            },
        )
        sequences = {run: world.checkpoints.get(run, 0) for run in failed_anew(seen)}
        return replace(seen, checkpoints=sequences)

    def decide(self, viewer: Viewer) -> None:
        seen = self.seen_by(viewer)
        actions = decide(seen)
        viewer.todo = deque((seen, action) for action in actions)
        viewer.unwritten.clear()
        check_decision(seen, actions)
        check_told(seen)

    def do(self, viewer: Viewer, seen: Observation, action: Action) -> None:
        world = self.world
        if isinstance(action, ListPods):
            viewer.pods_at = world.version
            viewer.unlisted.clear()
            return
        try:
            if isinstance(action, Create):
                viewer.unlisted.add(action.work)
                job = world.create(action.work, action.grids, seen.grids[action.grid].queue)
            elif isinstance(action, RecordFailure):
                viewer.unwritten.add(action.failure.run)
                world.read(action.job)
                world.record(action.failure)
                viewer.unwritten.discard(action.failure.run)
                return
            elif isinstance(action, Delete):
                if action.job.work.run in viewer.unwritten:
                    return
                deleted = world.delete(action.job)
                if deleted is None:
                    return
                job = deleted
            else:
                patch = changes(action)
                assert patch is not None
                job = world.patch(action.job, patch)
        except Conflict:
            return
        viewer.written[job.work] = job
        if isinstance(action, NoteDone):
            assert (job.uid, "done") not in self.told, "told twice"
            self.told.add((job.uid, "done"))
        if isinstance(action, NoteResumed | NoteKept) and notice(action) is not None:
            happening = job.uid, action.pod if isinstance(action, NoteResumed) else str(action.text)
            assert happening not in self.told, "told twice"
            self.told.add(happening)
        if isinstance(action, Resume):
            self.check_windows(seen, action)

    # What holds

    def check_windows(self, seen: Observation, action: Resume) -> None:
        if len(self.viewers) > 1 and not self.is_steady:
            return
        at_work = [  # what Kueue resumes is in nobody's window
            work
            for work, job in self.world.jobs.items()
            if not job.suspended and not job.is_finished and job.queue is None
        ]
        for grid in seen.grids.values():
            if grid.intent_for(action.job.work.run) == "active" and action.job.work in grid.wants:
                assert grid.parallelism is not None
                wanted = [work for work in grid.wants if grid.intent_for(work.run) != "cancelled"]
                num_at_work = sum(work in wanted for work in at_work)
                assert num_at_work <= grid.parallelism * len(self.viewers), (grid, action, self.world.jobs)

    @invariant()
    def a_run_has_one_pod_that_has_not_ended(self) -> None:
        if not hasattr(self, "world"):
            return
        runs = [pod.work.run for pod in self.world.pods.values() if not pod.has_ended]
        assert len(runs) == len(set(runs)), runs

    def teardown(self) -> None:
        """Left alone, with Kubernetes fair and the trainer sound, every grid ends; and then nothing is left to do."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.refuses_pods = False
        sound = set(RUNS) - world.broken_images
        for viewer in self.viewers:
            viewer.pods_hang = False
        for _ in range(ROUNDS):
            for viewer in self.viewers:
                self.look(viewer, 0, 0)
            if self.is_quiet():
                break
            for viewer in self.viewers:
                self.do_next(viewer, len(viewer.todo))
            self.go_on(sound)
        else:
            raise AssertionError(f"no end: {self.viewers[0].todo}, {world.jobs}, {world.pods}")
        self.check_end()

    def is_quiet(self) -> bool:
        if any(viewer.todo for viewer in self.viewers) or self.living():
            return False
        seen = self.seen_by(self.viewers[0])
        return all(
            not job.is_deleting
            and (job.is_finished or (job.is_suspended and job.queue is None))
            and (job.complete_since is None or seen.is_done(work) or seen.failure(work) is not None)
            for work, job in seen.jobs.items()
        )

    def go_on(self, sound: set[str]) -> None:
        world = self.world
        for work in list(world.jobs):
            if world.jobs[work].queue and world.jobs[work].suspended:
                world.admit(work)
            world.sync(work)
        for name in self.living():
            pod = world.pods[name]
            if pod.deleting or pod.owner is None:  # orphans too end one day, by whoever made them so
                world.end(name, 75)
            elif pod.phase == "Running":
                world.end(name, 0)
            else:
                world.start(name)
        world.pass_time(30)

    def check_end(self) -> None:
        seen = self.seen_by(self.viewers[0])
        halted = {
            name
            for name, grid in self.grids.items()
            if grid.max_failed is not None
            and len({work.run for work in grid.wants if seen.failure(work)}) > grid.max_failed
        }
        for name, grid in self.grids.items():
            for work in grid.wants if name not in halted else ():
                if grid.intent_for(work.run) != "active":
                    continue
                is_waiting_for_training = work.is_test and work.run not in seen.results
                assert seen.is_done(work) or seen.failure(work) or is_waiting_for_training, (name, work, told(seen))
        for work, job in seen.jobs.items():
            wanting = [
                grid for grid in self.grids.values() if work in grid.wants and grid.intent_for(work.run) != "cancelled"
            ]
            assert wanting, f"{job.name} is wanted by no grid"
            assert job.is_finished or not (seen.is_done(work) or seen.failure(work)), f"{job.name} has nothing to do"
            assert job.grids == {grid.name: grid.wants[work] for grid in wanting}


def check_decision(seen: Observation, actions: tuple[Action, ...]) -> None:
    """What no decision may hold, whatever was seen."""
    touched: dict[Work, list[type]] = {}
    for action in actions:
        if isinstance(action, ListPods):
            continue
        work = action.work if isinstance(action, Create) else action.job.work
        touched.setdefault(work, []).append(type(action))
        if isinstance(action, Create | Resume):
            assert not seen.is_done(work)
            assert seen.failure(work) is None
            assert not work.is_test or work.run in seen.results
            wanting = [
                grid for grid in seen.grids.values() if work in grid.wants and grid.intent_for(work.run) == "active"
            ]
            assert wanting, "started though nobody wants it: what was cancelled stays so"
        if isinstance(action, Create):
            assert set(action.grids) == {
                grid.name
                for grid in seen.grids.values()
                if work in grid.wants and grid.intent_for(work.run) != "cancelled"
            }
    for types in touched.values():
        assert len(types) == 1 or types == [RecordFailure, Delete]


def check_told(seen: Observation) -> None:
    """Every run that a grid wants is done, failed, at work, or waits for a reason that is told."""
    active = told(seen)
    numbers = dict.fromkeys(seen.results), dict.fromkeys(seen.tests)
    for grid in seen.grids.values():
        known = Known({}, *numbers, seen.failures, grid.held)  # type: ignore[arg-type]
        for work in grid.wants:
            state, reason = run_state(work, known, active)
            assert state == "done" or reason
            assert reason not in ("never started", "trained, not tested yet")


class Rivals(Cluster):
    """Two controllers that do not know of each other."""

    num_controllers = 2


QUICK = settings(
    max_examples=60,
    stateful_step_count=40,
    derandomize=True,
    phases=(Phase.generate,),
    print_blob=False,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
THOROUGH = settings(QUICK, max_examples=1000, stateful_step_count=70, derandomize=False)


@pytest.mark.parametrize("machine", [pytest.param(Cluster, id="one-controller"), pytest.param(Rivals, id="two")])
def test_what_is_decided_holds_whatever_happens(machine: Callable[[], RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [pytest.param(Cluster, id="one-controller"), pytest.param(Rivals, id="two")])
def test_what_is_decided_holds_over_many_histories(machine: Callable[[], RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=THOROUGH)


def cluster_of(*works: Work, **values: Any) -> Cluster:
    """One controller, and a grid that wants `works`, with none of it done."""
    cluster = Cluster()
    cluster.world, cluster.viewers, cluster.is_steady, cluster.told = World(), [Viewer()], True, set()
    cluster.times = count()
    cluster.grids = {"x": GridView("x", "active", dict.fromkeys(works, "lr"), **{"parallelism": 1, **values})}
    return cluster


@pytest.mark.parametrize("how", ["background", "orphan"])
def test_a_job_deleted_by_hand_gets_no_second_pod_though_the_watch_of_pods_hangs(how: str) -> None:
    cluster = cluster_of(Work("a", False))
    cluster.control(0, 3)
    cluster.hang(0, True)  # from here on it sees no pod
    cluster.go_on_fairly(0)
    cluster.world.delete_by_hand(Work("a", False), how)
    for _ in range(4):
        cluster.control(0, 1)
        cluster.go_on_fairly(0)
        cluster.a_run_has_one_pod_that_has_not_ended()
    assert len(cluster.living()) == 1
    cluster.teardown()
    assert cluster.world.results.keys() == {"a"}


def test_a_controller_that_is_killed_between_two_actions_loses_nothing() -> None:
    works = [Work(run, False) for run in RUNS]
    for killed_after in range(12):
        cluster = cluster_of(*works, parallelism=2)
        for _ in range(killed_after):
            cluster.look(cluster.viewers[0], 0, 0)
            cluster.do_next(cluster.viewers[0], 1)
            cluster.start_anew(0)
        cluster.go_on_fairly(0)
        cluster.teardown()
        assert cluster.world.results.keys() == set(RUNS)


@pytest.mark.parametrize(
    ("progress_seconds", "also"),
    [pytest.param(None, [], id="shown-nowhere"), pytest.param(60.0, ["NoteDone"] * 4, id="shown")],
)
def test_requests_for_a_quiet_grid_are_two_a_run_and_one_where_progress_is_shown(
    progress_seconds: float | None, also: list[str]
) -> None:
    cluster = cluster_of(*(Work(run, False) for run in RUNS), parallelism=2, progress_seconds=progress_seconds)
    done: list[type] = []
    do = cluster.do

    def do_and_count(viewer: Viewer, seen: Observation, action: Action) -> None:
        done.append(type(action))
        do(viewer, seen, action)

    cluster.do = do_and_count  # type: ignore[method-assign]
    cluster.teardown()
    assert sorted(each.__name__ for each in done if each is not ListPods) == ["Create"] * 4 + also + ["Resume"] * 4
    assert done.count(ListPods) == 1


def test_the_model_makes_one_pod_at_a_time() -> None:
    world = World()
    work = Work("a", False)
    seen = world.create(work, {"x": "s"}, None)
    world.sync(work)
    assert not world.pods
    seen = world.patch(world.history[-1].jobs[work], {"spec": {"suspend": False}})
    world.sync(work)
    world.sync(work)
    (pod,) = world.pods.values()
    world.start(pod.name)
    world.patch(world.history[-1].jobs[work], {"spec": {"suspend": True}})
    world.sync(work)
    world.patch(world.history[-1].jobs[work], {"spec": {"suspend": False}})
    world.sync(work)
    assert [each.name for each in world.pods.values()] == [pod.name]  # it is told to stop, and has not ended
    with pytest.raises(Conflict):
        world.patch(seen, {"spec": {"suspend": True}})  # an old version
