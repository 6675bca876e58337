"""What the commands of a cluster say where there is none, where it refuses, and of a grid that it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from api_server import ScriptedServer, refusal
from click.testing import CliRunner, Result
from grids import TEXT
from pictures import import_pictures

from controller.archive import read_intent, stored_settings, write_settings
from controller.cli import main
from controller.grid import parse_grid
from controller.observe import take_up
from controller.settings import parse_settings
from controller.standing import Choice
from trainer.failure import ExitCode
from trainer.store import FileStore

SETTINGS = 'image: none:1\nnamespace: lab\nstore: {uri: "s3://bucket"}\n'
SUBMIT = ("submit", "small.yaml", "--settings", "settings.yaml")


@pytest.fixture
def store(alone: Path) -> FileStore:
    """A store with pictures, a grid and settings as files in the working directory, and no kubeconfig."""
    Path("small.yaml").write_text(TEXT)
    Path("settings.yaml").write_text(SETTINGS)
    store = FileStore(alone / "store")
    import_pictures(store, alone / "pictures", per_class=3)
    return store


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def submitted(store: FileStore) -> None:
    """The grid as a submission leaves it in the store."""
    take_up(parse_grid(TEXT, "small.yaml"), store, Choice())
    write_settings(store, "small", parse_settings(SETTINGS, "settings.yaml"))


def test_a_submit_without_a_cluster_says_how_to_name_one_and_changes_nothing(store: FileStore) -> None:
    ended = call(*SUBMIT)
    assert ended.exit_code == ExitCode.CLUSTER
    assert "got no kubeconfig" in ended.stderr
    assert "KUBECONFIG" in ended.stderr
    assert not list(store.list("grids/"))


def test_wrong_settings_are_told_before_a_cluster_is_asked(store: FileStore) -> None:
    ended = call(*SUBMIT, "--setting", "image=")
    assert ended.exit_code == ExitCode.SPEC
    assert "image" in ended.stderr
    ended = call(*SUBMIT, "--setting", "store.uri=null")
    assert ended.exit_code == ExitCode.SPEC
    assert "which no pod has" in ended.stderr
    assert not list(store.list("grids/"))


@pytest.mark.server
def test_a_cluster_that_refuses_says_what_right_is_missing(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'jobs.batch is forbidden: User "me" cannot list resource "jobs" in API group "batch" in the namespace "lab"'
    with ScriptedServer(lambda _: refusal(403, "Forbidden", said)).running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(Path())))
        ended = call(*SUBMIT)
    assert ended.exit_code == ExitCode.CLUSTER
    assert "verbs: ['list']" in ended.stderr
    assert not list(store.list("grids/"))


@pytest.mark.parametrize("command", ["watch", "pause", "resume", "cancel"])
def test_a_grid_that_was_never_submitted_is_told_as_such(store: FileStore, command: str) -> None:
    ended = call(command, "small.yaml")
    assert ended.exit_code == ExitCode.SPEC
    assert "`grid submit small` submits it" in ended.stderr
    assert read_intent(store, "small") is None


def test_a_status_without_the_cluster_shows_what_the_store_says(store: FileStore) -> None:
    submitted(store)
    ended = call("status", "small", "--json")
    assert ended.exit_code == ExitCode.OK
    assert "what Kubernetes says is left out" in ended.stderr
    assert json.loads(ended.stdout)["counts"]["waiting"] == 4
    assert call("status", "small", "--settings", "settings.yaml").exit_code == ExitCode.CLUSTER


def test_settings_that_a_command_names_are_kept_with_the_grid(store: FileStore) -> None:
    submitted(store)
    assert call("watch", "small", "--setting", "parallelism=3").exit_code == ExitCode.CLUSTER
    settings = stored_settings(store, "small")
    assert settings is not None
    assert settings.parallelism == 3


def test_a_run_without_a_pod_and_without_a_log_is_told_as_such(store: FileStore) -> None:
    ended = call("logs", "none-000000000000")
    assert ended.exit_code == ExitCode.SPEC
    assert "of which there is no pod and no log" in ended.stderr
