"""What the name of a weights file vouches for, and what is said of one that does not fit."""

from __future__ import annotations

import hashlib

import pytest

from trainer.failure import DataError
from trainer.weights import Fit, check_hash_in_name, hash_in_name, refuse_misfit

FIT = Fit(
    architecture="small",
    head="fc",
    num_outputs=10,
    num_loaded=2,
    left_out=(),
    missing=(),
    unexpected=(),
    misshapen=(),
)


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        pytest.param("alexnet-owt-7be5be79.pth", "7be5be79", id="torchvision"),
        pytest.param("shufflenetv2_x0.5-f707e7126e.pth", "f707e7126e", id="ten-digits"),
        pytest.param("mnasnet0.75-7090bc5f..pth", "7090bc5f", id="two-dots"),
        pytest.param("sub/net-0123abcd.safetensors", "0123abcd", id="safetensors-in-a-folder"),
        pytest.param("net.pth", None, id="no-hash"),
        pytest.param("net-7be5be7.pth", None, id="seven-digits"),
        pytest.param("net-classes10.pth", None, id="no-hex"),
        pytest.param("net-7be5be79-more.pth", None, id="not-at-the-end"),
    ],
)
def test_the_hash_is_the_last_part_of_a_name(name: str, digits: str | None) -> None:
    assert hash_in_name(name) == digits


def test_a_name_must_tell_the_truth_of_the_file() -> None:
    sha256 = hashlib.sha256(b"content").hexdigest()
    check_hash_in_name(f"net-{sha256[:8]}.pth", sha256)
    check_hash_in_name("net.pth", sha256)
    with pytest.raises(DataError, match=f"got SHA-256 {sha256}, expected one that begins with 00000000"):
        check_hash_in_name("net-00000000.pth", sha256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"missing": ("a", "b")}, "missing a, b", id="missing"),
        pytest.param({"unexpected": ("a",)}, "unexpected a", id="unexpected"),
        pytest.param({"misshapen": ("a (1,) instead of (2,)",)}, "of another shape a (1,) instead of (2,)", id="shape"),
        pytest.param({"missing": tuple("abcdefg")}, "missing a, b, c, d, e and 2 more", id="many"),
        pytest.param({"unexpected": ("module.a", "module.b")}, "was saved from a DataParallel", id="wrapped"),
        pytest.param({"num_loaded": 0}, "would take nothing from weights/net.pth", id="only-a-head"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, object], message: str) -> None:
    fit = FIT.model_copy(update=change)
    assert not fit.fits
    with pytest.raises(DataError) as caught:
        refuse_misfit(fit, "net.pth")
    assert message in str(caught.value)


def test_what_fits_is_not_refused() -> None:
    assert FIT.fits
    refuse_misfit(FIT, "net.pth")
