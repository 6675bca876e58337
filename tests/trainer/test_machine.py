"""What a machine gives to training, read from what Linux and the driver say of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import machine
from trainer.machine import (
    available_memory,
    available_processors,
    available_threads,
    memory_limit,
    parse_gpu_list,
    peak_memory,
    visible_gpus,
)

LISTED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-66666666-7777-8888-9999-000000000000)
"""
SLICED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111-2222-3333-4444-555555555555)
  MIG 3g.20gb     Device  0: (UUID: MIG-aaaaaaaa-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-bbbbbbbb-0000-0000-0000-000000000000)
"""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    return tmp_path


def test_omp_num_threads_is_obeyed_and_nonsense_in_it_is_not() -> None:
    assert available_threads({"OMP_NUM_THREADS": "3"}) == 3
    for nonsense in ("", "0", "-1", "many"):
        assert available_threads({"OMP_NUM_THREADS": nonsense}) == available_processors()
    assert 1 <= available_processors() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        pytest.param({"cpu.max": "200000 100000\n"}, 2, id="v2"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="v2-half-a-processor"),
        pytest.param({"cpu.max": "max 100000\n"}, machine.NO_QUOTA, id="v2-no-quota"),
        pytest.param({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3, id="v1"),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, machine.NO_QUOTA, id="v1-no-quota"
        ),
        pytest.param({}, machine.NO_QUOTA, id="no-cgroups"),
    ],
)
def test_a_cgroups_quota_bounds_the_processors(tmp_path: Path, files: dict[str, str], processors: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine._cgroup_processors(tmp_path) == processors


GIB = 1 << 30
GROUPS = {
    "version-2": (
        "0::/a/b\n",
        {"a/memory.max": GIB, "a/memory.current": GIB // 2, "a/memory.stat": f"inactive_file {GIB // 4}"},
        GIB * 3 // 4,
    ),
    "version-2-inner-is-tighter": (
        "0::/a/b\n",
        {"a/memory.max": GIB, "a/memory.current": 0, "a/b/memory.max": GIB // 8, "a/b/memory.current": 0},
        GIB // 8,
    ),
    "version-1": (
        "4:memory:/x\n2:cpu:/x\n",
        {"memory/x/memory.limit_in_bytes": GIB // 2, "memory/x/memory.usage_in_bytes": GIB // 8},
        GIB * 3 // 8,
    ),
    "version-1-of-a-container": (
        "4:cpu,memory:/docker/host-path\n",
        {"memory/memory.limit_in_bytes": GIB // 2, "memory/memory.usage_in_bytes": 0},
        GIB // 2,
    ),
}


@pytest.mark.parametrize(("own", "files", "expected"), GROUPS.values(), ids=GROUPS.keys())
def test_available_memory_is_what_the_control_group_leaves(
    tmp_path: Path, own: str, files: dict[str, object], expected: int
) -> None:
    (tmp_path / "own").write_text(own)
    for name, value in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
        (path.parent / "memory.stat").touch()
        (path.parent / "b").mkdir(exist_ok=True)
    assert available_memory(tmp_path / "cgroup", tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((None, "max"), None), ((None, 3 << 20), 3 << 20), ((2 << 20, 3 << 20), 2 << 20), ((1 << 62, "max"), None)],
    ids=["none", "inner", "outer", "beyond-the-machine"],
)
def test_the_memory_limit_is_the_least_of_the_control_groups(
    tmp_path: Path, limits: tuple[object, object], expected: int | None
) -> None:
    (tmp_path / "own").write_text("0::/a/b\n")
    for folder, limit in zip(("a", "a/b"), limits, strict=True):
        group = tmp_path / "cgroup" / folder
        group.mkdir(parents=True)
        for name, value in (("memory.max", limit), ("memory.current", 0), ("memory.stat", "inactive_file 0")):
            if limit is not None:
                (group / name).write_text(f"{value}\n")
    assert memory_limit(tmp_path / "cgroup", tmp_path / "own") == expected


def test_available_memory_without_control_groups_is_the_machines(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path / "none") > 0


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        pytest.param(LISTED, ("0", "1"), id="gpus"),
        pytest.param(
            SLICED,
            ("MIG-aaaaaaaa-0000-0000-0000-000000000000", "MIG-bbbbbbbb-0000-0000-0000-000000000000"),
            id="slices",
        ),
        pytest.param("No devices were found\n", (), id="none"),
        pytest.param("", (), id="no-answer"),
    ],
)
def test_the_drivers_list_is_read(text: str, gpus: tuple[str, ...]) -> None:
    assert parse_gpu_list(text) == gpus


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        pytest.param("1", ("1",), id="one"),
        pytest.param("1, 0", ("1", "0"), id="in-that-order"),
        pytest.param("", (), id="hidden"),
        pytest.param("-1", (), id="hidden-by-number"),
        pytest.param("0,-1,1", ("0",), id="up-to-an-invalid-one"),
        pytest.param("MIG-aaaa", ("MIG-aaaa",), id="a-slice"),
    ],
)
def test_gpus_hidden_from_cuda_are_not_used(devices: Path, asked: str, gpus: tuple[str, ...]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": asked}, devices) == gpus


def test_device_nodes_stand_for_gpus_where_the_driver_lists_none(
    devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(devices))  # no nvidia-smi there
    assert visible_gpus({}, devices) == ("0", "1")


def test_a_machine_without_a_driver_has_no_gpus(tmp_path: Path) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path) == ()


MIB = 1 << 20
LARGE_PARENT = """
import os, subprocess, sys
from trainer.machine import forget_peak_memory, peak_memory
large = b"x" * (200 << 20)
del large
before = peak_memory()
read, write = os.pipe()
if not (child := os.fork()):
    forget_peak_memory()
    forked = peak_memory()
    grown = b"x" * (50 << 20)
    os.write(write, f"{forked} {peak_memory()}".encode())
    os._exit(0)
os.waitpid(child, 0)
code = "from trainer.machine import peak_memory; print(peak_memory())"
started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
print(before, *os.read(read, 100).decode().split(), started)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no Linux")
def test_the_peak_of_memory_is_a_processs_own_and_none_of_its_parents() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_PARENT], capture_output=True, text=True, check=True)
    parent, forked, grown, started = map(int, done.stdout.split())
    assert parent > 200 * MIB
    assert forked < 100 * MIB
    assert grown - forked == pytest.approx(50 * MIB, rel=0.1)
    assert started < 100 * MIB


def test_where_nothing_tells_of_this_process_getrusage_does(tmp_path: Path) -> None:
    held = b"x" * (100 * MIB)
    assert peak_memory(tmp_path / "status") > len(held)
