"""What tests of the controller share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, the test's own, in which commands find `store` and no cluster, and wrap no line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.setenv("GRID_STORE", "file://./store")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("GRID_SETTINGS", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path
