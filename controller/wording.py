"""How sizes, durations, counts and lists are written for people to read, and how text is made fit for a terminal.

Exact numbers are in the JSON and CSV that commands write: here they are rounded to what is read at a glance.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

ELLIPSIS = "…"


def bytes_text(num_bytes: float) -> str:
    """`2.6 GB`, as disks and clusters count: powers of a thousand, three digits."""
    amount = max(0.0, num_bytes)
    if amount < 999.5:
        return f"{amount:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 99.95:
            return f"{amount:.1f} {unit}"
        if amount < 999.5 or unit == "TB":
            break
    return f"{amount:,.0f} {unit}"


def seconds_text(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 3 h 20 min, 2 days 4 h."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{count_text(days, 'day')} {hours} h"


def count_text(count: int, noun: str, plural: str | None = None) -> str:
    """`1 run`, `2 runs`, `10,000 classes`; `plural` where the noun's is not regular."""
    return f"{count:,} {noun if count == 1 else plural or plural_of(noun)}"


def plural_of(noun: str) -> str:
    """The regular plural: runs, classes, entries."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def listed(names: Sequence[str], shown: int = 5) -> str:
    """`a, b, c`; the first `shown` and how many more there are, where that leaves out more than one."""
    if len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown:,} more"


def plain(text: str) -> str:
    """`text` on one line, without what could drive a terminal or turn the direction of writing: names may hold any.

    White space becomes a space, everything else that cannot be printed the replacement character.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def csv_text(text: str) -> str:
    """`text` so that no spreadsheet takes it for a formula: https://owasp.org/www-community/attacks/CSV_Injection"""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def elided(text: str, width: int) -> str:
    """`text` cut to `width` characters, an ellipsis in the place of what is left out."""
    return text if len(text) <= width else text[: max(width, 1) - 1].rstrip() + ELLIPSIS


def wrapped(text: str, width: int, *, indent: int = 0, hang: int = 2) -> list[str]:
    """`text` as lines of at most `width` characters; the first indented, the others by `hang` more.

    Words are not cut, at hyphens or elsewhere: paths and names stay whole, so that they can be copied from a terminal.
    """
    lines = textwrap.wrap(
        plain(text),
        max(width, indent + hang + 20),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return lines or [""]


def columns(rows: Iterable[Sequence[str]], right: Sequence[int] = (), gap: int = 2) -> list[str]:
    """The rows as lines whose cells stand below each other; the columns numbered in `right` end below each other."""
    body = list(rows)
    widths = [max(map(len, cells)) for cells in zip(*body, strict=True)]
    return [
        (" " * gap)
        .join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        .rstrip()
        for row in body
    ]
