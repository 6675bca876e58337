"""Networks are known by name without loading torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision

from controller.architectures import check_factory, torchvision_classifiers
from trainer.failure import SpecError
from trainer.identity import factory_source_hash

OWN = """
import os
from functools import partial as bound
from torch import nn

def small(num_classes):
    return nn.Linear(3, num_classes)

wide = bound(small)
try:
    import absent
except ImportError:
    def fallback(num_classes):
        return small(num_classes)
"""


def test_the_names_read_from_the_source_are_those_that_torchvision_lists() -> None:
    assert torchvision_classifiers() == set(torchvision.models.list_models(module=torchvision.models))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path that has the modules `own`, `own_package.inner` and `dynamic`."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("from own_package.inner import tall")
    (tmp_path / "own_package" / "inner.py").write_text("def tall(num_classes): ...")
    (tmp_path / "dynamic.py").write_text("from own import *")
    (tmp_path / "torn.py").write_text("def small(num_classes:\n")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "own:small",
        "own:wide",
        "own:bound",
        "own:fallback",
        "own_package:tall",
        "own_package.inner:tall",
        "dynamic:x",
        "own:small.of",
    ],
)
def test_a_factory_that_its_module_may_have_is_taken(own: Path, name: str) -> None:
    assert check_factory(name) == factory_source_hash(name)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        pytest.param("own:smal", "own.py defines", "did you mean 'own:small'?", id="nearly"),
        pytest.param("own:zzz", "expected a function that", "it has fallback, small, wide", id="nothing-near"),
        pytest.param("own_package.inner:x", "inner.py defines", "it has tall", id="in-a-package"),
        pytest.param("torn:small", "torn.py:1: ", "a module that Python can read", id="no-python"),
        pytest.param("missing:small", "no module 'missing'", "PYTHONPATH", id="no-module"),
    ],
)
def test_a_factory_that_is_not_there_is_told_with_what_is(own: Path, name: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_factory(name)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_shipped_grids_network_is_there() -> None:
    assert check_factory("efficientnet_lite_pytorch.model:EfficientNet.from_name")


def test_a_missing_package_of_a_shipped_grid_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.identity.PathFinder.find_spec", lambda *_: None)
    with pytest.raises(SpecError) as caught:
        check_factory("efficientnet_lite_pytorch.model:EfficientNet.from_name")
    assert "pip install efficientnet-lite-pytorch" in str(caught.value.hint)
    assert "experiment-grid[lite]" in str(caught.value.hint)
