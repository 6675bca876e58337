"""Quantities of cores, bytes and devices in the API's spellings: 500m, 4Gi, 2e3.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from decimal import Decimal

SCALES = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": Decimal(1000)}
"""What each ending multiplies by."""
SCALES |= {letter: Decimal(1000) ** power for power, letter in enumerate("MGTPE", start=2)}
SCALES |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)}
_QUANTITY = re.compile(rf"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)({'|'.join(SCALES)})?")


def quantity(text: str | float) -> Decimal:
    """What a quantity in any of the API's spellings comes to: cores of `500m`, bytes of `4Gi`."""
    found = _QUANTITY.fullmatch(str(text))
    assert found is not None, text
    return Decimal(found[1]) * SCALES.get(found[2], Decimal(1))


def quantity_text(value: Decimal) -> str:
    """A quantity as people write it: 500m, 4Gi, 2."""
    for unit in ("Ti", "Gi", "Mi"):
        if value >= SCALES[unit] and not value % (SCALES[unit] / 64):
            return f"{(value / SCALES[unit]).normalize():f}{unit}"
    return f"{value.normalize():f}" if value == value.to_integral() or value > 10 else f"{value * 1000:.0f}m"
