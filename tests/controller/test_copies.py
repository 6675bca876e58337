"""What this machine keeps of a remote store's results: given again, bound to its content, and lost without harm."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from results import result
from stores import Server, place_on

from controller import copies, knowledge
from controller.copies import Copies
from controller.knowledge import FEW, read_results


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def kept(tmp_path: Path) -> Copies:
    return Copies(tmp_path / "below" / "copies.sqlite")


def test_what_is_kept_is_given_by_its_content(kept: Copies) -> None:
    contents = {md5(content): content for content in (b"one", b"two", bytes(copies.AT_ONCE))}
    kept.keep(contents.items())
    assert kept.read([*contents, md5(b"three"), "no digest"]) == contents
    assert kept.read([md5(str(number).encode()) for number in range(3 * copies.AT_ONCE)] + [md5(b"two")]) == {
        md5(b"two"): b"two"
    }


def test_what_has_another_version_than_its_md5_is_not_kept(kept: Copies) -> None:
    kept.keep([(md5(b"one"), b"other"), ("0123-2", b"several parts")])
    assert kept.read([md5(b"one"), "0123-2"]) == {}


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 100], ids=["empty", "text"])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "copies.sqlite"
    file.write_bytes(damage)
    kept = Copies(file)
    assert kept.read([md5(b"one")]) == {}
    for _ in range(2):  # the first finds the damage
        kept.keep([(md5(b"one"), b"one")])
    assert kept.read([md5(b"one")]) == {md5(b"one"): b"one"}


def test_a_file_that_grew_too_large_is_begun_anew(kept: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.keep([(md5(b"one"), b"one")])
    monkeypatch.setattr(copies, "MAX_BYTES", 1)
    kept.keep([(md5(b"two"), b"two")])
    assert kept.read([md5(b"one"), md5(b"two")]) == {md5(b"two"): b"two"}


def test_a_place_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Copies(tmp_path / "file" / "copies.sqlite")
    kept.keep([(md5(b"one"), b"one")])
    assert kept.read([md5(b"one")]) == {}


@pytest.mark.server
def test_results_of_a_server_are_read_once(moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_store = place_on(moto, monkeypatch).connect()
    monkeypatch.setenv("GRID_CACHE", str(tmp_path))
    written = {f"alexnet-{number:012x}": result(f"alexnet-{number:012x}") for number in range(FEW + 2)}
    for run, one in written.items():
        s3_store.put(f"results/{run}.json", one.model_dump_json().encode())
    assert read_results(s3_store) == written
    asked: list[str] = []
    listed = knowledge._listed
    monkeypatch.setattr(knowledge, "_listed", lambda store, keys: asked.extend(keys) or listed(store, keys))
    assert read_results(s3_store) == read_results(s3_store, list(written)) == written
    assert asked == []
    changed = next(iter(written))
    anew = written[changed].model_copy(update={"best_epoch": 7})
    s3_store.put(f"results/{changed}.json", anew.model_dump_json().encode())
    assert read_results(s3_store)[changed].best_epoch == 7
    assert asked == [f"results/{changed}.json"]
