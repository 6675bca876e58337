"""What a file of weights fits is found without computing with the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from trainer.failure import ExitCode
from trainer.fitting import answer
from trainer.spec import ModelSpec
from trainer.weights import Answer, Question


def computing(num_classes: int) -> nn.Module:
    """Cannot be built without numbers."""
    assert torch.ones(1).item() == 1
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes))


def broken(num_classes: int) -> nn.Module:
    raise RuntimeError(f"not for {num_classes} classes")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def asked(file: Path, model: ModelSpec | None) -> Answer:
    return answer(Question(path=file, name=file.name, model=model))


def test_a_file_is_told_by_its_numbers_where_its_network_is_not_known(file: Path) -> None:
    found = asked(file, None)
    assert found.contents is not None
    assert (found.contents.num_tensors, found.contents.dtypes) == (52, ("float32",))
    assert (found.fit, found.trouble) == (None, None)


def test_a_network_that_fits_takes_all_but_its_last_layer(file: Path) -> None:
    fit = asked(file, ModelSpec(architecture="squeezenet1_1")).fit
    assert fit is not None
    assert fit.fits
    assert (fit.head, fit.num_outputs, fit.num_loaded) == ("classifier.1", 7, 50)


def test_another_network_is_told_with_all_that_does_not_fit(file: Path) -> None:
    fit = asked(file, ModelSpec(architecture="squeezenet1_0")).fit
    assert fit is not None
    assert not fit.fits
    assert "features.0.weight (64, 3, 3, 3) instead of (96, 3, 7, 7)" in fit.misshapen


def test_a_network_that_computes_while_it_is_built_is_tried_with_numbers(tmp_path: Path) -> None:
    safetensors.torch.save_file(computing(4).state_dict(), tmp_path / "net.safetensors")
    fit = asked(tmp_path / "net.safetensors", ModelSpec(architecture=f"{__name__}:computing")).fit
    assert fit is not None
    assert fit.fits


@pytest.mark.parametrize(
    ("architecture", "exit_code", "message"),
    [
        pytest.param("alexnett", ExitCode.SPEC, "expected a classifier of torchvision", id="unknown"),
        pytest.param(f"{__name__}:broken", ExitCode.SPEC, "RuntimeError: not for 1009 classes", id="cannot-be-built"),
    ],
)
def test_a_network_that_cannot_be_built_is_the_specs_trouble(
    file: Path, architecture: str, exit_code: int, message: str
) -> None:
    found = asked(file, ModelSpec(architecture=architecture))
    assert found.trouble is not None
    assert found.trouble.exit_code == exit_code
    assert message in found.trouble.message
    assert found.contents is not None


def test_a_file_that_is_no_state_dict_is_the_datas_trouble(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04 torn")
    found = asked(tmp_path / "net.pth", None)
    assert found.trouble is not None
    assert found.trouble.exit_code == ExitCode.DATA
    assert "is no state dict" in found.trouble.message


@pytest.mark.slow
def test_the_program_answers_in_json(file: Path) -> None:
    question = Question(path=file, name=file.name, model=ModelSpec(architecture="squeezenet1_1"))
    done = subprocess.run(
        [sys.executable, "-m", "trainer.fitting"],
        input=question.model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Answer.model_validate_json(done.stdout) == answer(question)
