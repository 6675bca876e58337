"""Loads, by being imported, all that a run needs: the server that runs are forked from imports this module once.

It starts no thread and touches no GPU, so that forks are safe. That torch cannot be loaded is kept here: a server hides
an ImportError of its preload, and a second import in the same process says something else of it.
"""

from __future__ import annotations

from importlib import import_module


def _load() -> str | None:
    try:
        import_module("trainer.run")
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever started the server says it
        return f"{type(error).__name__}: {error}"
    return None


load_error = _load()
"""Why it could not be loaded; none where it was."""
