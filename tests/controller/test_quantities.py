"""Quantities mean what Kubernetes takes them for, and are written as people write them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from controller.quantities import quantity, quantity_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        ("2", "2"),
        (".5", "0.5"),
        ("1.", "1"),
        ("1k", "1000"),
        ("1.5M", "1500000"),
        ("4Gi", "4294967296"),
        ("2e3", "2000"),
        ("1E", "1e18"),
        ("100n", "1e-7"),
        ("-1", "-1"),
        (3, "3"),
    ],
)
def test_a_quantity_is_read_in_every_spelling(text: str | int, value: str) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["500m", "4Gi", "512Mi", "1.5Gi", "2", "2.5Ti"])
def test_a_quantity_is_written_as_it_is_read(text: str) -> None:
    assert quantity_text(quantity(text)) == text
