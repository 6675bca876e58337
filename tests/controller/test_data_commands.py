"""What `grid data` says: of data sets that were mended, that cannot be read, and that look odd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from controller.cli import main
from trainer.store import FileStore


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two classes of images, and no store named in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRID_STORE", raising=False)
    for name, shade in (("dark", 30), ("light", 220)):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (9, 8), (shade + number,) * 3).save(tmp_path / "shades" / name / f"{number}.png")
    return tmp_path


def grid(*words: str, expected: int = 0) -> Result:
    """What `grid data WORDS` prints; it must exit as expected."""
    result = CliRunner().invoke(main, ["data", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expected, result.output
    return result


def in_a_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("damage", ["lost", "other bytes"])
def test_mended_shards_are_counted_with_a_hint_at_the_runs_that_failed(folder: Path, damage: str) -> None:
    grid("import", "shades", "shades")
    store = FileStore(folder / "store")
    key = next(entry.key for entry in store.list("datasets/shades/shard-train"))
    whole = store.get(key)
    if damage == "lost":
        store.delete(key)
    else:
        store.put(key, bytes(len(whole)))
    again = grid("import", "shades", "shades", "--replace")
    assert "data set shades: 1 shard mended: 20 images of 2 classes" in again.stdout
    assert "grid retry GRID" in again.stderr
    assert store.get(key) == whole
    assert json.loads(grid("import", "shades", "shades", "--json").stdout)["outcome"] == "unchanged"


def test_grids_over_a_data_set_that_is_replaced_by_another_are_named(folder: Path) -> None:
    grid("import", "shades", "shades")
    store = FileStore(folder / "store")
    for name, data_set in (("dusk", "shades"), ("dawn", "shades"), ("birds", "birds")):
        text = f"base: {{data: {{name: {data_set}}}, model: {{architecture: alexnet}}}}\nstages: [{{name: one}}]\n"
        store.put(f"grids/{name}/grid.yaml", f"grid: {name}\n{text}".encode())
    store.put("grids/torn/grid.yaml", b"grid: [")
    assert "grids name" not in grid("import", "shades", "shades", "--replace").stderr
    (folder / "shades" / "light" / "0.png").unlink()
    again = grid("import", "shades", "shades", "--replace")
    assert "data set shades: replaced: 19 images" in again.stdout
    told = "note: 2 grids name the data set that this replaced: dawn, dusk; their runs are new ones now: "
    assert told in in_a_line(again.stderr)


def test_a_damaged_index_hides_no_other_data_set(folder: Path) -> None:
    grid("import", "shades", "shades")
    FileStore(folder / "store").put("datasets/broken/index.json", b"{}")
    listed = grid("list")
    assert listed.stdout == "shades: 20 images of 2 classes (8 train, 8 validation, 4 test)\n"
    assert "data set 'broken': " in in_a_line(listed.stderr)
    assert "import it again with --replace" in in_a_line(listed.stderr)
    assert [each["name"] for each in json.loads(grid("list", "--json").stdout)] == ["shades"]


def test_what_looks_odd_is_said_when_it_is_imported_and_when_it_is_shown(folder: Path) -> None:
    (folder / "shades" / "light" / "copy.png").write_bytes((folder / "shades" / "dark" / "0.png").read_bytes())
    told = "the same image in more than one class: 1: dark/0.png (dark) and light/copy.png (light)"
    assert told in in_a_line(grid("import", "shades", "shades").stderr)
    assert told in in_a_line(grid("show", "shades").stdout)


def test_one_class_is_said_to_be_too_few_to_tell_apart(folder: Path) -> None:
    done = grid("import", "shades", "shades", "--exclude", "light")
    assert "10 images of 1 class (" in done.stdout
    assert "note: there is one class only, dark: nothing to tell apart" in done.stderr


def test_a_tree_without_part_folders_is_told_which_it_lacks() -> None:
    refused = in_a_line(grid("import", "shades", "shades", "--split", "folders", expected=65).stderr)
    assert "no folders train/ and test/ in shades" in refused
    assert "there is dark, light" in refused
