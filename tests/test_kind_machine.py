"""Where no cluster can be made, `make kind-up` says so before it has installed or started anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOOK = """
from k8s.kind.engine import refuse_where_withheld
from k8s.kind.process import Impossible
try:
    refuse_where_withheld()
except Impossible as error:
    print(error)
else:
    print("nothing is withheld")
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root")


@needs_root
@pytest.mark.parametrize(
    ("capability", "told"),
    [
        ("sys_admin", "a Docker engine needs mounts of its own"),
        ("net_admin", "a Docker engine needs networks of its own"),
    ],
    ids=["mounts", "networks"],
)
def test_a_machine_that_withholds_what_containers_need_is_told_so(capability: str, told: str, tmp_path: Path) -> None:
    line = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}", sys.executable, "-c", LOOK]
    ended = subprocess.run(
        line, cwd=ROOT, env={**os.environ, "KIND_CACHE": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert told in ended.stdout
    assert "hint: run Docker elsewhere" in ended.stdout


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    code = LOOK.replace("try:", "import k8s.kind.engine as e; e.NEEDED.clear(); e.FIRST_ROOM_BYTES = 1 << 62\ntry:", 1)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "KIND_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{tmp_path} has room for" in ended.stdout
    assert "KIND_CACHE" in ended.stdout
