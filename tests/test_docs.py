"""What the documents show is true: grids are valid, commands are understood, links and names lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple, get_args

import click
import pytest

from controller.cli import main
from controller.grid import parse_grid
from controller.live import Word
from controller.settings import parse_settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.document}:{self.line}"


def blocks() -> Iterator[Block]:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):  # in lists too
            yield Block(path.name, text.count("\n", 0, found.start()) + 1, found[2], dedent(found[3]))


def shown(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language]


def commands() -> list[list[str]]:
    """The words of each command that a console block shows."""
    found = []
    for block in shown("console"):
        for line in block.text.splitlines():
            if line.startswith("$ "):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                found += list(_parts(words))
    return found


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in [*words, "&&"]:
        if word != "&&":
            part.append(word)
        elif part:
            yield part
            part = []


COMMANDS = commands()


@pytest.mark.parametrize("block", shown("yaml"), ids=lambda block: block.id)
def test_every_grid_and_every_settings_file_that_is_shown_is_valid(block: Block) -> None:
    if block.text.startswith("image:"):
        assert parse_settings(block.text, block.id).image
    else:
        assert parse_grid(block.text, block.id).stages


@pytest.mark.parametrize("block", shown("python"), ids=lambda block: block.id)
def test_every_module_that_is_shown_compiles(block: Block) -> None:
    assert ast.parse(block.text).body


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "grid"], ids=" ".join)
def test_every_command_that_is_shown_is_understood(words: list[str]) -> None:
    context = main.make_context("grid", words[1:])
    command: click.Command = main
    rest = words[1:]
    while isinstance(command, click.Group):
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(words[0], list(rest), parent=context)
    assert context.command is command


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "make"], ids=" ".join)
def test_every_target_that_is_shown_is_in_the_makefile(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        name = word.partition("=")[0]
        pattern = rf"^{name}\s*\?=" if "=" in word else rf"^{name}: .*## "
        assert re.search(pattern, makefile, re.MULTILINE), word


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "kubectl"], ids=" ".join)
def test_every_object_that_kubectl_is_shown_with_is_there(words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words if word.startswith("k8s/"))
    named = [word.partition("/")[2] for word in words if word.startswith(("deployment/", "role/", "clusterrole/"))]
    manifests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "k8s").rglob("*.yaml"))
    assert [name for name in named if f"name: {name}\n" not in manifests] == []


def test_no_other_program_is_shown_than_can_be_checked() -> None:
    assert {words[0] for words in COMMANDS} <= {"grid", "make", "export", "eval", "kubectl"}


def test_a_recipe_has_at_most_ten_lines() -> None:
    recipes = [block for block in blocks() if block.document == "README.md"]
    assert {block.id: block.text.count("\n") for block in recipes if block.text.count("\n") > 10} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_of_the_project(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in local if not (path.parent / link).exists()] == []


def _defined(package: str, module: str) -> set[str]:
    """Names of the functions, classes and methods (`Class.method`) of a module."""
    names = set()
    for node in ast.parse((ROOT / package / f"{module}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


def test_every_function_that_the_life_of_a_run_names_is_there() -> None:
    text = (ROOT / "docs" / "life-of-a-run.md").read_text(encoding="utf-8")
    modules = {path.stem: path.parent.name for each in ("trainer", "controller") for path in (ROOT / each).glob("*.py")}
    methods = {name for module, package in modules.items() for name in _defined(package, module)}
    named = re.findall(r"`(\w+)\.(\w+)`", text)
    assert len(named) > 20
    lost = []
    for owner, name in named:
        is_file = name in ("json", "jsonl", "yaml", "txt", "tar")
        known = name in _defined(modules[owner], owner) if owner in modules else f"{owner}.{name}" in methods
        if not is_file and not known:
            lost.append(f"{owner}.{name}")
    assert lost == []


def _named_modules() -> set[str]:
    """The modules in the architecture's table, from the project's folder on."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Modules")[2].partition("##")[0]
    named = set()
    for row in (line.split("|")[1] for line in table.splitlines() if line.startswith("| `")):
        package = ""
        for name in re.findall(r"`([\w/.]+)`", row):
            if name.startswith(("trainer/", "controller/")):
                package, _, name = name.partition("/")
            named.add(f"{package}/{name}".rstrip("/"))
    return named


def test_the_architecture_names_every_module_and_no_other() -> None:
    modules = {
        f"{package}/{path.name}"
        for package in ("trainer", "controller")
        for path in (ROOT / package).iterdir()
        if (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").is_file()
    }
    assert _named_modules() == modules


KEY_PARTS = r"(?:grids|runs|datasets|attempts|decisions|earlier|set_aside|blobs|test)"


def test_the_architecture_names_every_place_that_the_code_writes_to() -> None:
    layout = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The store")[2]
    layout = layout.partition("## ")[0]
    found = set()
    for path in [*(ROOT / "trainer").glob("*.py"), *(ROOT / "controller").rglob("*.py")]:
        for key in re.findall(rf'f"{KEY_PARTS}/{{[^"]*"', path.read_text(encoding="utf-8")):
            found |= set(re.findall(r"[\w-]+\.(?:json|yaml|md|csv|txt|npz|jsonl|safetensors)\b", key))
            found |= set(re.findall(r"/([a-z_]+)/", key))
    assert {"grid.yaml", "intent.json", "decisions", "numerics.json", "attempts", "predictions.npz"} <= found
    assert [name for name in sorted(found) if name not in layout] == []


def test_every_word_of_a_log_is_explained() -> None:
    text = (ROOT / "docs" / "life-of-a-run.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(get_args(Word))


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [block for block in shown("python") if "num_classes" in block.text], ids=lambda block: block.id
)
def test_every_factory_that_is_shown_builds_a_network(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown_networks.py").write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)
    (name,) = re.findall(r"^def (\w+)", block.text, re.MULTILINE)
    code = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from trainer.model import build_network\nfrom trainer.spec import ModelSpec\n"
        "from trainer.store import FileStore\n"
        f"spec = ModelSpec(architecture='shown_networks:{name}')\n"
        "network = build_network(spec, 5, 0, FileStore(Path(sys.argv[1])))\n"
        "print(tuple(network.module(torch.zeros(2, 3, 32, 32)).shape))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "store"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "(2, 5)\n", done.stderr


@pytest.mark.parametrize(
    ("source", "name"),
    [
        pytest.param("~/birds/", "birds", id="folder"),
        pytest.param("/data/my birds", "my birds", id="space"),
        pytest.param("birds.tar.gz", "birds", id="archive"),
        pytest.param("https://example.org/a/birds.tgz?raw=1", "birds", id="address"),
        pytest.param("birds.v2", "birds.v2", id="dot"),
    ],
)
def test_make_data_names_the_data_set_after_its_source(source: str, name: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "data", f"SRC={source}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"data import '{name}' '{source}' " in done.stdout
