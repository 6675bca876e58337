"""`grid serve` against a real kube-apiserver and the real Job controller, with commands and watches beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pictures import import_pictures
from stores import FlakyServer, Server, place_on

from cluster.apiserver import NOBODY, connections_reset, programs
from cluster.lab import SETTINGS, STAGES, THREE_STAGES, Ended, Kubelet, Lab
from controller import serve
from controller.archive import gather_facts, grid_key, set_intent, settings_key, stored_grid, stored_settings
from controller.cli import main
from controller.cluster import CONFIG_MAPS, EVENTS, LEASES, Cluster, ObjectAbsent, open_cluster
from controller.commands.serve import leave_tables_of
from controller.election import Leadership
from controller.grid import Grid
from controller.health import HealthServer, Log
from controller.jobs import grid_label
from controller.knowledge import read_decisions
from controller.live import PlainView
from controller.observe import expanded
from controller.registry import Submission, enter_grid, object_name
from controller.search import wanted
from controller.serve import Controller
from controller.standing import Work
from controller.telemetry import ControllerTelemetry
from controller.who_acts import Acting
from trainer.failure import ExitCode
from trainer.stop import StopSignal
from trainer.store import FileStore, S3Store, Store

ROOT = Path(__file__).parent.parent.parent
ONE = "  - name: lr\n    vary: {optimizer.lr: [0.5]}\n"


def until(what: str, holds: Callable[[], Any], seconds: float = 60) -> Any:
    """What `holds` gives, once it gives something."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return found


def enter(lab: Lab, name: str, store: str | None = None) -> None:
    """What `grid submit` writes into the namespace, or a later command does."""
    uri = store or lab.store.uri
    enter_grid(lab.cluster, Submission(name, lab.grids[name].digest, uri, uri))


def submit(lab: Lab, name: str, stages: str = STAGES, **settings: Any) -> None:
    lab.submit(name, stages, **settings)
    enter(lab, name)


@dataclass
class Serving:
    """A controller in a thread of the test."""

    stop: StopSignal
    stream: StringIO
    url: str

    @property
    def told(self) -> str:
        return self.stream.getvalue()

    def says(self, text: str) -> None:
        end = time.monotonic() + 60
        while text not in self.told:
            assert time.monotonic() < end, f"waited 60 s for {text!r} in the log, which has\n{self.told}"
            time.sleep(0.1)

    def asked(self, path: str) -> tuple[int, str]:
        return asked(f"{self.url}{path}")


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def serving(lab: Lab, *, store: FileStore | S3Store | None = None, kubeconfig: Path | None = None) -> Iterator[Serving]:
    def connect(*, patience_seconds: float, on_retry: Any) -> Cluster:
        path = str(kubeconfig or lab.server.kubeconfig())
        return open_cluster(
            lab.cluster.namespace, kubeconfig=path, patience_seconds=patience_seconds, on_retry=on_retry
        )

    stop, stream, telemetry = StopSignal(), StringIO(), ControllerTelemetry()
    controller = Controller(
        connect,
        store or lab.store,
        Log(stream),
        stop=stop,
        leave_tables=leave_tables_of,
        duration_seconds=5,
        renew_seconds=4,
        telemetry=telemetry,
    )
    thread = threading.Thread(target=controller.run)
    paths = {"/healthz": controller.rounds.answer, "/readyz": controller.ready}
    with HealthServer(0, paths, {"/metrics": telemetry.answer}) as health:
        thread.start()
        try:
            yield Serving(stop, stream, f"http://127.0.0.1:{health.port}")
        finally:
            stop.request("told to stop by the test")
            thread.join()


def test_a_grid_whose_config_map_stands_is_trained_to_its_tables(lab: Lab) -> None:
    with Kubelet(lab) as kubelet, serving(lab) as served:
        served.says("leads in namespace")
        submit(lab, "small", THREE_STAGES)
        until("the table", lambda: list(lab.store.list("grids/small/table.json")))
        served.says("small: is over: 5 of 5 pieces of work done")
        metrics = served.asked("/metrics")[1]
        for line in (
            'grid_runs{grid="small",state="done"} 4.0',
            'grid_attempts_total{grid="small"} 5.0',
            'grid_queue_seconds_count{grid="small"} 5.0',
            'grid_stage_progress_ratio{grid="small",stage="final"} 1.0',
            'grid_failures_total{grid="small",reason="crashed"} 0.0',
            "grid_controller_leading 1.0",
            'grid_api_requests_total{code="201",verb="create"}',
        ):
            assert line in metrics
    assert set(read_decisions(lab.store, "small")) == {"lr", "smoothing", "final"}
    assert set(kubelet.starts.values()) == {1}
    assert kubelet.most_at_once <= 2
    told = served.told.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (info|warning|error) +\S", line) for line in told)
    assert "\x1b" not in served.told
    assert sum("done small: " in line for line in told) == 5
    assert served.told.count("small: acts on it, of ") == 1
    lease = lab.cluster.get(LEASES, "experiment-grid")
    assert lease["spec"]["holderIdentity"] == ""


def test_grids_come_and_go_and_a_touched_one_is_looked_at_at_once(lab: Lab) -> None:
    submit(lab, "small")
    with serving(lab) as served:
        until("Jobs", lambda: len(lab.jobs()) == 3)
        submit(lab, "other", "  - name: lr\n    vary: {optimizer.lr: [0.0001]}\n")
        until("the other's Job", lambda: _running(lab) == 3)
        set_intent(lab.grids["small"], lab.store, "paused")
        enter(lab, "small")
        until("only the other's to run", lambda: _running(lab) == 1, 10)
        served.says("small: is paused: 0 of 3 pieces of work done")
        set_intent(lab.grids["small"], lab.store, "active")
        enter(lab, "small")
        until("all to run that fit", lambda: _running(lab) == 3, 10)
        lab.cluster.delete(CONFIG_MAPS, object_name("small"))
        served.says("small: stands in the namespace no longer")
        set_intent(lab.grids["small"], lab.store, "paused")
        enter(lab, "other")
        time.sleep(1)
        assert _running(lab) == 3


def _running(lab: Lab) -> int:
    return [job["spec"]["suspend"] for job in lab.jobs().values()].count(False)


def test_a_grid_of_another_store_is_told_and_left_alone(lab: Lab) -> None:
    lab.submit("small")
    enter(lab, "small", "s3://elsewhere")
    submit(lab, "other", ONE)
    with serving(lab) as served:
        served.says("got the store s3://elsewhere")
        until("the other's Job", lambda: len(lab.jobs()) == 1)
        events = until("an event", lambda: lab.cluster.list(EVENTS, lambda event: event).items)
        (told,) = [event for event in events if event["involvedObject"]["kind"] == "ConfigMap"]
        assert (told["reason"], told["involvedObject"]["name"]) == ("LeftAlone", "grid-small")
        enter(lab, "small")
        until("its Jobs", lambda: len(lab.jobs()) == 3)
    assert served.told.count("s3://elsewhere") == 1


def test_a_grid_that_cannot_be_read_is_told_once_and_the_others_go_on(lab: Lab) -> None:
    for name in ("absent", "torn", "moved"):
        submit(lab, name)
    texts = {key: lab.store.get(key) for key in (grid_key("torn"), grid_key("absent"))}
    lab.store.delete(grid_key("absent"))
    lab.store.put(grid_key("torn"), b"grid: [")
    lab.store.put(
        settings_key("moved"), lab.store.get(settings_key("moved")).replace(b"namespace: test-", b"namespace: x-")
    )
    submit(lab, "small", ONE)
    submit(lab, "queued", **{"queue.name": "lab"})
    with serving(lab) as served:
        served.says("expected Kueue to be installed")
        until("the Job of the one that can be read", lambda: len(lab.jobs()) == 1)
        served.says("got no grid of that name")
        served.says("the grid 'torn' in the store cannot be read")
        served.says("in which its ConfigMap stands")
        lab.store.put(settings_key("small"), b"image: []\n")  # while it is acted on
        enter(lab, "small")
        served.says("grids/small/settings.yaml")
        for key, text in texts.items():
            lab.store.put(key, text)
        enter(lab, "torn")
        until("its Jobs", lambda: len(lab.jobs()) == 3)
    assert served.told.count("the grid 'torn' in the store cannot be read") == 1
    assert served.told.count(" error ") == 5


def test_a_grid_that_cannot_be_acted_on_is_told_once_and_the_others_go_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "AGAIN_SECONDS", 0.5)
    submit(lab, "large", f"  - name: lr\n    vary: {{model.arguments: [{{note: {'x' * 110_000}}}]}}\n")
    submit(lab, "damaged", "  - name: lr\n    vary: {optimizer.lr: [0.25]}\n", max_tries=1)
    submit(lab, "binary", ONE)
    lab.store.put(settings_key("binary"), b"image: \xff\n")
    submit(lab, "small", THREE_STAGES)

    def end(work: Work, _number: int) -> Ended:
        if work.run not in expanded(lab.grids["damaged"], {}, facts).runs:
            return Ended()
        lab.store.put(f"failures/{work.run}.json", b"{")  # nobody has read it when the failure is to be recorded
        return Ended(1)

    facts = gather_facts(lab.store, wanted(lab.grids["damaged"]))
    with Kubelet(lab, end), serving(lab) as served:
        served.says("large: resnet18-")
        served.says("got a spec of 111,")
        served.says("got bytes that are no text")
        served.says("damaged: failures/")
        served.says("small: is over: 5 of 5 pieces of work done")
        taken = stored_grids_read(monkeypatch)
        until("it to be tried again", lambda: taken.count("large") > 1)
    for fault in ("got a spec of", "got bytes that are no text", "failures/"):
        assert served.told.count(fault) == 1
    assert served.told.count("large: acts on it") == 1


def test_a_grid_whose_jobs_the_server_refuses_holds_up_no_other(lab: Lab) -> None:
    refused = {"spec": {"containers": [{"name": "trainer", "volumeMounts": [{"name": "nowhere", "mountPath": "/n"}]}]}}
    rates = ", ".join(str(number / 100) for number in range(1, 41))  # more than there are connections
    stages = f"  - name: lr\n    vary: {{optimizer.lr: [{rates}]}}\n"
    submit(lab, "a_refused", stages, pod_template_patch=refused)
    submit(lab, "small", THREE_STAGES)
    with Kubelet(lab), serving(lab) as served:
        served.says("nowhere")
        served.says("small: is over: 5 of 5 pieces of work done")
    assert all(grid_label("small") in job["metadata"]["labels"] for job in lab.jobs().values())


def stored_grids_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the grids that the controller reads from the store from now on, each time it does."""
    names: list[str] = []

    def read(store: Store, name: str) -> Grid | None:
        names.append(name)
        return stored_grid(store, name)

    monkeypatch.setattr(serve, "stored_grid", read)
    return names


def test_a_grid_whose_settings_are_for_elsewhere_is_not_read_again_until_they_change(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "AGAIN_SECONDS", 0.2)
    taken = stored_grids_read(monkeypatch)
    submit(lab, "small", ONE)
    settings = lab.store.get(settings_key("small"))
    lab.store.put(settings_key("small"), settings.replace(b"namespace: test-", b"namespace: x-"))
    with serving(lab) as served:
        served.says("in which its ConfigMap stands")
        time.sleep(1)
        lab.store.put(settings_key("small"), settings)
        until("its Job", lambda: len(lab.jobs()) == 1)
    assert taken == ["small"]


def test_of_two_one_acts_and_the_other_takes_over(lab: Lab) -> None:
    submit(lab, "small")
    with serving(lab) as first:
        first.says("leads in namespace")
        with serving(lab) as second:
            second.says("follows ")
            assert second.asked("/readyz")[0] == 200
            until("Jobs", lambda: len(lab.jobs()) == 3)
            assert "acts on it" not in second.told
            first.stop.request("told to stop by the test")
            second.says("leads in namespace")
            set_intent(lab.grids["small"], lab.store, "paused")
            until("the new leader to pause it", lambda: _running(lab) == 0)


def test_a_lease_that_someone_else_has_taken_ends_all_acting(lab: Lab) -> None:
    submit(lab, "small")
    with serving(lab) as served:
        until("Jobs", lambda: _running(lab) == 2)
        taken = {"holderIdentity": "someone", "leaseDurationSeconds": 15}
        lab.cluster.patch(LEASES, "experiment-grid", {"spec": taken})
        served.says("the Lease is lost")
        served.says("follows someone")
        assert served.asked("/readyz") == (200, "follows someone\n")
        set_intent(lab.grids["small"], lab.store, "paused")
        enter(lab, "small")
        time.sleep(2)
        assert _running(lab) == 2
        until("it to lead again, when someone has not renewed it", lambda: _running(lab) == 0)


def test_a_watch_only_looks_beside_a_serve_and_acts_when_that_is_gone(lab: Lab) -> None:
    submit(lab, "small")
    view = PlainView(lab.told)
    with serving(lab) as served:
        served.says("leads in namespace")
        with lab.connect() as here, Acting(here, "small", (lab.store.uri,), view) as acting:
            assert str(acting.other()) in served.told
            assert acting.is_served
            assert not acting()
            assert "holderIdentity" not in _lease(lab, "grid-small")
            # of a store that this serve does not act on
            with Acting(lab.cluster, "small", ("s3://elsewhere",), view) as elsewhere:
                assert elsewhere.other() is None
            served.stop.request("told to stop by the test")
            until("the watch to act", acting, 20)


def test_a_watch_gives_way_to_a_serve_that_comes(lab: Lab) -> None:
    submit(lab, "small")
    with lab.connect() as here, Acting(here, "small", (lab.store.uri,), PlainView(lab.told)) as acting:
        assert acting.other() is None
        with serving(lab) as served:
            until("the watch to give way", lambda: not acting(), 20)
            served.says("small: acts on it")
            until("Jobs", lambda: len(lab.jobs()) == 3)
            assert not acting()


def test_a_serve_leaves_a_grid_to_whoever_keeps_its_lease(lab: Lab) -> None:
    submit(lab, "small", ONE)
    submit(lab, "other")
    lease = Leadership(lab.cluster, identity="watch", name="grid-small", period_seconds=0.5)  # looks at no other Lease
    with lease, serving(lab) as served:
        served.says("small: watch acts on it")
        until("the Jobs of the other", lambda: len(lab.jobs()) == 3)
        assert "small: acts on it" not in served.told
        set_intent(lab.grids["other"], lab.store, "cancelled")
        enter(lab, "other")
        until("those to go that nobody wants", lambda: len(lab.jobs()) == 0 or _grids(lab) == set())
        lease.__exit__()
        served.says("small: acts on it")
        until("its Job", lambda: "small" in _grids(lab))


def _lease(lab: Lab, name: str) -> dict[str, Any]:
    try:
        spec = lab.cluster.get(LEASES, name)["spec"]
    except ObjectAbsent:
        return {}
    return {key: value for key, value in spec.items() if value}


def _grids(lab: Lab) -> set[str]:
    labels = {key for job in lab.jobs().values() for key in job["metadata"]["labels"]}
    return {key.partition("/")[2] for key in labels if key.startswith("grid.")}


# Servers that are away


def test_an_api_server_that_is_away_is_waited_for(lab: Lab) -> None:
    submit(lab, "small")
    with connections_reset(), serving(lab) as served:
        until("Jobs", lambda: _running(lab) == 2)
        assert served.asked("/readyz") == (200, "leads\n")
        lab.server.stop()
        until("it to be unready", lambda: served.asked("/readyz")[0] == 503)
        assert "the API server: " in served.asked("/readyz")[1]
        assert served.asked("/healthz")[0] == 200
        lab.server.start()
        until("it to be ready", lambda: served.asked("/readyz")[0] == 200)
        served.says("leads in namespace")
        set_intent(lab.grids["small"], lab.store, "paused")
        enter(lab, "small")
        until("the word that came then", lambda: _running(lab) == 0)
    assert served.told.count("the API server does not answer as it should") == 1
    assert served.told.count("the API server answers again, after ") == 1


@dataclass
class Gate(FlakyServer):
    """Breaks every request while it is closed."""

    is_closed: bool = field(default=False, kw_only=True)

    def take(self, request: str) -> str | None:
        return "reset" if self.is_closed else None


def test_a_store_that_is_away_is_waited_for(
    lab: Lab, rclone: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Gate(rclone).running() as gate:
        assert isinstance(gate, Gate)
        store = place_on(gate.server, monkeypatch).connect(patience_seconds=1)
        import_pictures(store, tmp_path / "again", per_class=3)
        lab.store = store
        submit(lab, "small")
        with serving(lab) as served:
            until("Jobs", lambda: _running(lab) == 2)
            gate.is_closed = True
            enter(lab, "small")
            until("it to be unready", lambda: served.asked("/readyz")[0] == 503)
            assert "the store: " in served.asked("/readyz")[1]
            assert served.asked("/healthz")[0] == 200
            gate.is_closed = False
            until("it to be ready", lambda: served.asked("/readyz")[0] == 200)
            set_intent(lab.grids["small"], store, "paused")
            enter(lab, "small")
            until("the word that came then", lambda: _running(lab) == 0)
        assert served.told.count("the store does not answer as it should") == 1
        assert served.told.count("the store answers again, after ") == 1


def test_a_store_that_is_away_is_noticed_without_a_grid_too(
    lab: Lab, rclone: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(serve, "STORE_AGAIN_SECONDS", 0.2)
    with Gate(rclone).running() as gate:
        assert isinstance(gate, Gate)
        store = place_on(gate.server, monkeypatch).connect(patience_seconds=1)
        with serving(lab, store=store) as served:
            until("it to be ready", lambda: served.asked("/readyz") == (200, "leads\n"))
            gate.is_closed = True
            until("it to be unready", lambda: served.asked("/readyz")[0] == 503)
            assert "the store: " in served.asked("/readyz")[1]
            gate.is_closed = False
            until("it to be ready", lambda: served.asked("/readyz")[0] == 200)
            monkeypatch.setattr(serve, "LATELY_SECONDS", -1.0)
            assert served.asked("/readyz") == (503, "the store answered last 0 s ago\n")


# Commands beside it


@pytest.fixture
def command(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls `grid` with a small grid and its settings as files; what it says on stdout, parsed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(lab.server.kubeconfig()))
    monkeypatch.setenv("GRID_STORE", lab.store.uri)
    base = "base: {data: {name: pictures}, model: {architecture: resnet18}}"
    Path("small.yaml").write_text(f"grid: small\n{base}\nstages:\n{STAGES}")
    Path("settings.yaml").write_text(f"namespace: {lab.cluster.namespace}\n{SETTINGS}")

    def call(*words: str) -> Any:
        ended = CliRunner().invoke(main, [*words, "--json"])
        assert ended.exit_code == ExitCode.OK, ended.stderr
        return json.loads(ended.stdout)

    return call


def test_commands_hand_a_grid_to_the_serve_that_is_there(lab: Lab, command: Callable[..., Any]) -> None:
    with serving(lab) as served:
        served.says("leads in namespace")
        told = command("submit", "small.yaml", "--settings", "settings.yaml")
        assert told["acts"] in served.told
        assert (told["made"], told["started"]) == (3, 2)
        config_map = lab.cluster.get(CONFIG_MAPS, "grid-small")
        assert config_map["data"]["store"] == lab.store.uri
        assert config_map["data"]["store-in-pods"] == "s3://bucket"
        assert "@" in config_map["data"]["owner"]
        assert command("pause", "small")["acts"] == told["acts"]
        assert _running(lab) == 0
        served.says("small: is paused")
        resumed = command("resume", "small")
        assert (resumed["acts"], resumed["did"]["Resume"]) == (told["acts"], 2)
        assert command("cancel", "small")["acts"] == told["acts"]
        assert not lab.jobs()
        assert "holderIdentity" not in _lease(lab, "grid-small")
        until("the ConfigMap to be gone", lambda: not lab.cluster.list(CONFIG_MAPS, _of_grid).items)
        served.says("small: stands in the namespace no longer")


def test_commands_act_themselves_where_there_is_no_serve(lab: Lab, command: Callable[..., Any]) -> None:
    told = command("submit", "small.yaml", "--settings", "settings.yaml")
    assert (told["acts"], told["made"], told["started"]) == (None, 3, 2)
    assert lab.cluster.list(CONFIG_MAPS, _of_grid).items == ("grid-small",)
    with serving(lab) as served:
        served.says("small: acts on it")
    assert command("cancel", "small")["acts"] is None
    assert lab.cluster.list(CONFIG_MAPS, _of_grid).items == ()


def _of_grid(config_map: dict[str, Any]) -> str | None:
    name: str = config_map["metadata"]["name"]
    return name if name.startswith("grid-") and "deletionTimestamp" not in config_map["metadata"] else None


# Processes and rights


def kubectl(lab: Lab, *words: str) -> str:
    built = sorted(programs()["kube-apiserver"].parent.glob("kubectl"))
    program = str(built[0]) if built else shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl beside kube-apiserver or on the PATH")
    line = [program, "--kubeconfig", str(lab.server.kubeconfig()), "--namespace", lab.cluster.namespace, *words]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def account(lab: Lab, tmp_path: Path) -> Path:
    """A kubeconfig with a token of the controller's service account, which has the Role of k8s/base alone."""
    base = ROOT / "k8s" / "base"
    kubectl(lab, "apply", "-f", str(base / "service-accounts.yaml"), "-f", str(base / "rights.yaml"))
    name = "experiment-grid-controller"
    subject = f"--serviceaccount={lab.cluster.namespace}:{name}"
    kubectl(lab, "create", "rolebinding", "with-its-namespace", f"--role={name}", subject)
    config = json.loads(lab.server.kubeconfig(NOBODY).read_text())
    config["users"][0]["user"] = {"token": kubectl(lab, "create", "token", name).strip()}
    path = tmp_path / "account.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def test_the_rights_of_the_base_are_enough(lab: Lab, account: Path) -> None:
    with Kubelet(lab), serving(lab, kubeconfig=account) as served:
        submit(lab, "small", THREE_STAGES)
        lab.submit("other")
        enter(lab, "other", "s3://elsewhere")
        served.says("small: is over: 5 of 5 pieces of work done")
        until("an event", lambda: _events(lab) >= {("ConfigMap", "LeftAlone")})
    assert "forbidden" not in served.told
    assert {kind for kind, _ in _events(lab)} == {"ConfigMap", "Job", "Pod"} & {kind for kind, _ in _events(lab)}
    with open_cluster(lab.cluster.namespace, kubeconfig=str(account)) as cluster:
        assert not cluster.can("update", "leases", group="coordination.k8s.io", name="grid-small").is_allowed
        assert not cluster.can("delete", "configmaps").is_allowed
        assert not cluster.can("list", "secrets").is_allowed


def _events(lab: Lab) -> set[tuple[str, str]]:
    items = lab.cluster.list(EVENTS, lambda event: (event["involvedObject"]["kind"], event["reason"])).items
    return set(items)


@dataclass
class Process:
    """`grid serve` as a process."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def told(self) -> str:
        return self.log.read_text()

    def says(self, pattern: str) -> re.Match[str]:
        found: re.Match[str] = until(f"{pattern!r} in {self.told}", lambda: re.search(pattern, self.told))
        return found


@pytest.fixture
def start(lab: Lab, account: Path, tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def start(name: str) -> Process:
        line = [sys.executable, "-m", "controller.cli", "serve", "--port", "0", "--namespace", lab.cluster.namespace]
        environment = {**os.environ, "KUBECONFIG": str(account), "GRID_STORE": lab.store.uri, "PYTHONPATH": str(ROOT)}
        log = tmp_path / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(line, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)
        started.append(Process(process, log))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_a_watch_shows_its_grid_to_prometheus_where_it_is_told_to(
    lab: Lab, command: Callable[..., Any], tmp_path: Path
) -> None:
    command("submit", "small.yaml", "--settings", "settings.yaml")
    with HealthServer(0, {}) as other:
        refused = CliRunner().invoke(main, ["watch", "small", "--telemetry-port", str(other.port)])
    assert refused.exit_code == ExitCode.SPEC
    assert f"--telemetry-port: got {other.port}, which is not to be had" in refused.stderr
    line = [sys.executable, "-m", "controller.cli", "watch", "small", "--telemetry-port", "0"]
    log = tmp_path / "watch.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        watch = Process(process, log)
        url = watch.says(r"http://localhost:(\d+)/metrics")[0]
        until("its runs", lambda: 'grid_runs{grid="small",state="pending"} 2.0' in asked(url)[1])
        assert "grid_controller_leading 1.0" in asked(url)[1]
        assert 'grid_store_request_seconds_count{operation="reading"}' in asked(url)[1]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told-to-stop"])
def test_a_process_that_ends_is_followed_by_the_other(
    lab: Lab, start: Callable[[str], Process], number: signal.Signals
) -> None:
    submit(lab, "small", THREE_STAGES)
    first = start("first")
    first.says("leads in namespace")
    port = first.says(r"http://localhost:(\d+)/readyz")[1]
    assert asked(f"http://127.0.0.1:{port}/healthz")[0] == 200
    second = start("second")
    second.says("follows ")
    with Kubelet(lab) as kubelet:
        until("the first runs", lambda: kubelet.starts)
        first.process.send_signal(number)
        code = first.process.wait(30)
        second.says("leads in namespace")
        second.says("small: is over: 5 of 5 pieces of work done")
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert ("told to stop by SIGTERM" in first.told) == (number == signal.SIGTERM)
    assert set(kubelet.starts.values()) == {1}
    settings = stored_settings(lab.store, "small")
    assert settings is not None
    assert kubelet.most_at_once <= settings.parallelism
