"""Weights come into the store whole, as what they say they are, or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from networks import usual
from pictures import import_pictures
from torch import Tensor

from controller import weights
from controller.archive import weights_sha256
from controller.cli import main
from trainer.failure import ExitCode
from trainer.fitting import answer
from trainer.spec import ModelSpec
from trainer.store import FileStore, Store
from trainer.weights import Question

NETWORK = ("--architecture", "networks:usual")
GRID = """\
grid: birds
base:
  data: {name: pictures}
  model: {architecture: "networks:usual", weights: net.pth}
stages:
  - {name: lr, vary: {optimizer.lr: [0.1, 1]}}
"""


def in_this_process(_command: object, *, input: str, **_settings: object) -> subprocess.CompletedProcess[str]:  # noqa: A002 - as subprocess.run names it
    """What the child answers, without the seconds that it takes to load torch."""
    told = answer(Question.model_validate_json(input)).model_dump_json()
    return subprocess.CompletedProcess([], 0, f"a factory prints\n{told}\n", "")


WITHOUT_CHILD = SimpleNamespace(**{**vars(subprocess), "run": in_this_process})  # for `controller.weights` alone


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a state dict, and no store named in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRID_STORE", raising=False)
    monkeypatch.setenv("GRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "subprocess", WITHOUT_CHILD)
    (tmp_path / "net.pth").write_bytes(saved(1))
    return tmp_path


def saved(seed: int, name: str = "net.pth", **more: Tensor) -> bytes:
    torch.manual_seed(seed)
    state = usual(7).state_dict() | more
    if name.endswith(".safetensors"):
        return safetensors.torch.save(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def grid(*words: str, expected: int = 0) -> Result:
    """What `grid weights WORDS` prints; it must exit as expected."""
    result = CliRunner().invoke(main, ["weights", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expected, result.output
    return result


def answered(*words: str) -> Any:
    return json.loads(grid(*words, "--json").stdout)


def in_a_line(text: str) -> str:
    return " ".join(text.split())


def store_of(folder: Path) -> FileStore:
    return FileStore(folder / "store")


def keys(folder: Path) -> list[str]:
    return [entry.key for entry in store_of(folder).list("")]


def temporary(folder: Path) -> list[Path]:
    return [path for path in (folder / "store").rglob("*") if path.name.startswith(".tmp")]


def test_a_file_is_imported_with_its_hash_and_what_it_fits(folder: Path) -> None:
    told = in_a_line(grid("import", "net.pth", *NETWORK).stdout)
    content = (folder / "net.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()
    store = store_of(folder)
    assert store.get("weights/net.pth") == content
    assert keys(folder) == ["hashes/net.pth.json", "weights/net.pth"]
    assert json.loads(store.get("hashes/net.pth.json"))["sha256"] == digits == weights_sha256(store, "net.pth")
    assert f"nothing vouches for it; SHA-256 {digits}" in told
    assert "fits networks:usual: 7 tensors; its last layer 6 is a new one, instead of the file's of 7 outputs" in told


def test_the_same_file_again_changes_nothing(folder: Path) -> None:
    assert answered("import", "net.pth")["outcome"] == "new"
    before = (folder / "store/weights/net.pth").stat().st_mtime_ns
    told = answered("import", "net.pth")
    assert (told["outcome"], told["fit"]) == ("unchanged", None)
    assert (folder / "store/weights/net.pth").stat().st_mtime_ns == before


def test_another_file_under_the_same_name_needs_to_be_asked_for(folder: Path) -> None:
    grid("import", "net.pth")
    store_of(folder).put("grids/birds/grid.yaml", GRID.encode())
    (folder / "net.pth").write_bytes(saved(2))
    refused = in_a_line(grid("import", "net.pth", expected=ExitCode.DATA).stderr)
    assert "has another file of this name" in refused
    assert "birds would start from other weights" in refused
    assert store_of(folder).get("weights/net.pth") == saved(1)
    replaced = grid("import", "net.pth", "--replace", "--json")
    assert json.loads(replaced.stdout)["outcome"] == "replaced"
    assert "birds named the file that this replaced" in in_a_line(replaced.stderr)
    assert weights_sha256(store_of(folder), "net.pth") == hashlib.sha256(saved(2)).hexdigest()
    assert answered("list")[0]["grids"] == ["birds"]


@pytest.mark.parametrize("where", ["source", "name"])
def test_a_hash_in_the_name_must_be_the_files(folder: Path, where: str) -> None:
    content = (folder / "net.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    for name, expected in ((f"net-{digits}.pth", 0), ("net-00000000.pth", ExitCode.DATA)):
        if where == "source":
            (folder / name).write_bytes(content)
            result = grid("import", name, "--name", "any.pth", expected=expected)
        else:
            result = grid("import", "net.pth", "--name", name, expected=expected)
        if expected:
            assert "expected one that begins with 00000000, as the name says" in in_a_line(result.stderr)
        else:
            assert f"SHA-256 begins with {digits}, as the name says" in result.stdout
    assert not (folder / "store/weights/net-00000000.pth").exists()


class Command:
    """What a pickle runs that is loaded with trust."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made",)


def with_code() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": Command()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        pytest.param(saved(1)[:5000], (), "is no state dict", id="truncated"),
        pytest.param(with_code(), (), "it holds Python objects", id="pickle-with-code"),
        pytest.param(b"\x89PNG\r\n\x1a\n and so on", (), "expected what torch.save writes", id="picture"),
        pytest.param(b"", (), "expected what torch.save writes", id="empty"),
        pytest.param(saved(1, more=torch.zeros(1)), NETWORK, "unexpected more", id="does-not-fit"),
        pytest.param(saved(1), ("--architecture", "resnet18"), "does not fit the architecture resnet18", id="other"),
        pytest.param(saved(1), ("--name", "resnet18-mine.pth"), "does not fit the architecture resnet18", id="by-name"),
        pytest.param(saved(1), ("--name", "net.safetensors"), "expected a safetensors file", id="wrong-ending"),
        pytest.param(saved(1), ("--max-bytes", "1000"), "expected at most 1000", id="too-large"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    folder: Path, content: bytes, words: tuple[str, ...], message: str
) -> None:
    (folder / "net.pth").write_bytes(content)
    refused = grid("import", "net.pth", *words, expected=ExitCode.DATA)
    assert message in in_a_line(refused.stderr)
    assert keys(folder) == []
    assert not (folder / "made").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ("net.pth", "--name", "net.bin"), "expected a name that ends in .pth, .pt, .safetensors", id="end"
        ),
        pytest.param(("net.pth", "--name", "../net.pth"), "expected a file below the store's weights/", id="outside"),
        pytest.param(("net.pth", "--architecture", "alexnett"), "did you mean 'alexnet'?", id="architecture"),
        pytest.param(("net.pth", "--architecture", "networks:usal"), "did you mean 'networks:usual'?", id="factory"),
        pytest.param(("net.pth", "--architecture", "a b"), "--architecture: got 'a b'", id="no-architecture"),
        pytest.param(("net.pth", "--argument", "width=4"), "name it with --architecture", id="argument-alone"),
        pytest.param(("net.pth", *NETWORK, "--argument", "wdth=4"), "it takes: num_classes, width", id="argument"),
    ],
)
def test_a_wrong_word_is_told_before_anything_is_written(folder: Path, words: tuple[str, ...], message: str) -> None:
    assert message in in_a_line(grid("import", *words, expected=ExitCode.SPEC).stderr)
    assert keys(folder) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("none.pth", "no such file", id="missing"),
        pytest.param(".", "source .: a folder; expected a state dict", id="folder"),
        pytest.param("ftp://example.org/net.pth", "begins with https://, http:// or file://", id="scheme"),
    ],
)
def test_a_source_that_is_none_is_told(folder: Path, source: str, message: str) -> None:
    result = CliRunner().invoke(main, ["weights", "import", source])
    assert result.exit_code in (ExitCode.SPEC, ExitCode.DATA)
    assert message in in_a_line(result.stderr)


def test_weights_are_removed_that_no_grid_names(folder: Path) -> None:
    grid("import", "net.pth", *NETWORK)
    refused = grid("remove", "nit.pth", expected=ExitCode.DATA).stderr
    assert "which has net.pth" in in_a_line(refused)
    assert "weights net.pth: removed" in grid("remove", "net.pth").stdout
    assert keys(folder) == []


def test_weights_that_a_grid_names_are_removed_by_force_alone(folder: Path) -> None:
    grid("import", "net.pth", *NETWORK)
    store_of(folder).put("grids/birds/grid.yaml", GRID.encode())
    refused = grid("remove", "net.pth", expected=ExitCode.DATA).stderr
    assert "birds names them" in in_a_line(refused)
    assert store_of(folder).get("weights/net.pth") == saved(1)
    told = answered("remove", "net.pth", "--force")
    assert (told["removed"], told["grids"]) == (True, ["birds"])
    assert keys(folder) == ["grids/birds/grid.yaml"]


def test_names_that_a_wrapper_gave_are_told(folder: Path) -> None:
    torch.save({f"module.{name}": value for name, value in usual(7).state_dict().items()}, folder / "wrapped.pth")
    told = in_a_line(grid("import", "wrapped.pth").stderr)
    assert "each of its names begins with `module.`, as nn.DataParallel saves them" in told
    assert "DataParallel" not in grid("import", "net.pth").stderr


def test_arguments_reach_the_network(folder: Path) -> None:
    torch.save(usual(7, width=4).state_dict(), folder / "narrow.pth")
    told = answered("import", "narrow.pth", *NETWORK, "--argument", "width=4")
    assert told["fit"]["fits"]
    refused = grid("import", "narrow.pth", "--name", "again.pth", *NETWORK, expected=ExitCode.DATA)
    assert "0.weight (4, 3, 3, 3) instead of (8, 3, 3, 3)" in in_a_line(refused.stderr)


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_source: io.BufferedReader, target: io.BufferedWriter, _length: int) -> None:
        target.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainer.store.folder.shutil.copyfileobj", full)
    refused = grid("import", "net.pth", expected=ExitCode.STORE)
    assert "the disk is full" in in_a_line(refused.stderr)
    assert keys(folder) == []
    assert temporary(folder) == []


def test_a_file_that_changes_while_it_is_imported_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_file = FileStore.put_file

    def changed(store: FileStore, key: str, path: Path) -> None:
        path.write_bytes(saved(2))
        put_file(store, key, path)

    monkeypatch.setattr(FileStore, "put_file", changed)
    refused = grid("import", "net.pth", expected=ExitCode.DATA)
    assert "changed while it was read" in in_a_line(refused.stderr)
    assert keys(folder) == []


def test_two_imports_of_one_name_do_not_meet(folder: Path) -> None:
    with weights._only_writer(store_of(folder), "net.pth"):
        assert "another process is importing them" in grid("import", "net.pth", expected=ExitCode.DATA).stderr


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.safetensors"])
def test_each_form_can_be_imported_and_shown(folder: Path, name: str) -> None:
    (folder / name).write_bytes(saved(3, name))
    grid("import", f"file://{folder}/{name}")
    shown = answered("show", name, *NETWORK)
    assert shown["fit"]["fits"]
    assert shown["contents"]["num_tensors"] == len(usual(7).state_dict())
    assert "nothing vouches for it" in grid("show", name).stdout


def test_what_is_not_there_cannot_be_shown(folder: Path) -> None:
    refused = in_a_line(grid("show", "resnet50-0676ba61.pth", expected=ExitCode.DATA).stderr)
    assert "`grid weights import https://download.pytorch.org/models/resnet50-0676ba61.pth` puts it there" in refused
    assert "no weights in" in grid("list").stderr


def test_a_list_passes_over_what_is_no_weights_file(folder: Path) -> None:
    grid("import", "net.pth")
    store_of(folder).put("weights/junk.pth", b"<!DOCTYPE html>")
    listed = grid("list")
    assert listed.stdout.startswith("net.pth: ")
    assert "expected what torch.save writes" in in_a_line(listed.stderr)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the base class has it so
        pass


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    (folder / "site").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Quiet(*given, directory=str(folder / "site")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.server
def test_an_address_is_fetched_under_the_name_that_it_ends_with(folder: Path, address: str) -> None:
    content = saved(4)
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / "site" / name).write_bytes(content)
    told = answered("import", f"{address}/{name}?download=1", *NETWORK)
    assert (told["weights"], told["outcome"]) == (name, "new")
    assert list((folder / "cache/downloads").glob("*.part")) == []
    (folder / "site/net-00000000.pth").write_bytes(content)
    refused = grid("import", f"{address}/net-00000000.pth", expected=ExitCode.DATA)
    assert "expected one that begins with 00000000" in in_a_line(refused.stderr)
    assert "404" in grid("import", f"{address}/none.pth", expected=ExitCode.DATA).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected", "message"),
    [
        pytest.param("net.pth", 0, "", id="whole"),
        pytest.param("torn.pth", ExitCode.DATA, "is no state dict", id="torn"),
    ],
)
def test_a_real_child_reads_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: int, message: str
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GRID_STORE", raising=False)
    (folder / "torn.pth").write_bytes(saved(1)[:5000])
    assert message in in_a_line(grid("import", name, expected=expected).stderr)
    assert keys(folder) == ([] if expected else ["hashes/net.pth.json", "weights/net.pth"])


@pytest.mark.slow
def test_a_run_is_not_started_without_the_weights_that_its_grid_names(folder: Path) -> None:
    import_pictures(store_of(folder), folder / "pictures", per_class=6)
    (folder / "birds.yaml").write_text(GRID.replace("net.pth", "resnet50-0676ba61.pth"))
    before = keys(folder)
    for command in ("plan", "run", "submit"):
        result = CliRunner().invoke(main, [command, "birds.yaml"])
        assert result.exit_code == ExitCode.DATA
        told = in_a_line(result.stderr)
        assert "`grid weights import https://download.pytorch.org/models/resnet50-0676ba61.pth` puts it there" in told
    doctor = CliRunner().invoke(main, ["doctor", "birds.yaml"])
    assert doctor.exit_code == 1
    told = in_a_line(doctor.stdout)
    assert "2 runs start from it: lr/lr=0.1, lr/lr=1" in told
    assert "hint: `grid weights import https://download.pytorch.org/models/resnet50-0676ba61.pth` puts it there" in told
    assert [key for key in keys(folder) if key.startswith(("grids/", "runs/"))] == []
    assert set(before) <= set(keys(folder))


def test_weights_are_imported_into_each_kind_of_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "subprocess", WITHOUT_CHILD)
    (tmp_path / "net.pth").write_bytes(saved(1))
    outcomes = [weights.import_weights(str(tmp_path / "net.pth"), store).outcome for _ in range(2)]
    assert outcomes == ["new", "unchanged"]
    assert store.get("weights/net.pth") == saved(1)
    shown = weights.read_weights(store, "net.pth", ModelSpec(architecture="networks:usual"))
    assert shown.fit is not None
    assert shown.fit.fits
