"""The names of torchvision's classifiers, read from its source: to import it would load torch, for seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

REGISTER = "register_model"  # torchvision's decorator: https://docs.pytorch.org/vision/stable/models.html


@cache
def torchvision_classifiers() -> frozenset[str]:
    """Names that a trainer here would find; none known where torchvision is not installed or written otherwise."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return frozenset()
    # the subpackages are other tasks' networks, registered under names of their own
    files = (Path(found.origin).parent / "models").glob("*.py")
    return frozenset(name for file in files for name in _registered(file.read_text(encoding="utf-8")))


def _registered(source: str) -> Iterator[str]:
    """Names under which the module's functions are registered."""
    if f"@{REGISTER}(" not in source:
        return
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == REGISTER:
                names = [argument.value for argument in decorator.args if isinstance(argument, ast.Constant)]
                names += [each.value.value for each in decorator.keywords if isinstance(each.value, ast.Constant)]
                yield str(names[0]) if names else node.name
