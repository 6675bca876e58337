"""What this machine gives to training: processors, memory and GPUs, found without loading torch."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

NO_QUOTA = 1 << 16  # processors that a cgroup without a quota allows


def available_threads(environment: Mapping[str, str] = os.environ) -> int:
    """CPU threads to use: OMP_NUM_THREADS where it is set, else the processors this process may run on."""
    return asked_threads(environment) or available_processors()


def asked_threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """CPU threads that OMP_NUM_THREADS asks for; none where it asks for no number of them."""
    asked = environment.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else None


def available_processors() -> int:
    """Processors that this process may run on, within its cgroup's quota; at least one."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(own, _cgroup_processors(Path("/sys/fs/cgroup")))


def _cgroup_processors(cgroups: Path) -> int:
    """Whole processors that the cgroup's quota gives, at least one."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except OSError:
        try:
            quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return NO_QUOTA
    return NO_QUOTA if quota in ("max", "-1") else max(1, int(quota) // int(period))


def available_memory(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process may still take: the least of what the machine and each cgroup above it leaves.

    Page cache that can be given back counts as free. Control groups of version 1 and 2 are read.
    """
    available = [psutil.virtual_memory().available]
    available += [group.limit - group.usage + group.reclaimable for group in _memory_groups(cgroups, own)]
    return max(0, min(available))


def memory_limit(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes at which this process is killed by a cgroup, the least of those above it; none where no cgroup has any.

    Control groups of version 1 write a limit that there is not as a number beyond any machine's memory.
    """
    most = psutil.virtual_memory().total
    return min((group.limit for group in _memory_groups(cgroups, own) if group.limit <= most), default=None)


class _MemoryGroup(NamedTuple):
    """A cgroup that bounds memory, bytes."""

    limit: int
    usage: int
    reclaimable: int


def _memory_groups(cgroups: Path, own: Path) -> Iterator[_MemoryGroup]:
    """The cgroups that bound this process's memory."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            root = cgroups
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = cgroups / "memory"
        else:
            continue
        inner = root / path.lstrip("/")
        # in a container the path may be the host's, and the container's own group lies at the root
        groups = [inner, *inner.parents] if inner.is_dir() else [root]
        for group in groups:
            if group.is_relative_to(root):
                yield from _bounds(group, *names)


def _bounds(group: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> list[_MemoryGroup]:
    try:
        limit, usage = ((group / name).read_text().strip() for name in (limit_name, usage_name))
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        reclaimable = sum(int(line[1]) for line in lines if line[0] == reclaimable_name)
    except OSError:
        return []
    return [] if limit == "max" else [_MemoryGroup(int(limit), int(usage), reclaimable)]


def resident_memory() -> int:
    """Memory this process holds now, resident, bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """Most memory this process has held, resident, since it began or since `forget_peak_memory`, bytes.

    Linux counts it with the process's own memory. What getrusage says is never below the peak of the process that
    this one was started from (https://man7.org/linux/man-pages/man2/getrusage.2.html), and serves where no /proc is.
    """
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def forget_peak_memory(switch: Path = Path("/proc/self/clear_refs")) -> None:
    """From now on `peak_memory` starts from what is held now, where the kernel lets a process ask for that.

    For a forked process, which begins with its parent's peak: https://man7.org/linux/man-pages/man5/proc.5.html
    """
    with suppress(OSError):
        switch.write_text("5")


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this machine keeps what it can make anew, decoded images above all: GRID_CACHE, or the user's cache."""
    if environment.get("GRID_CACHE"):
        return Path(environment["GRID_CACHE"])
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "experiment-grid"


def visible_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs this process may use, each as CUDA_VISIBLE_DEVICES names it alone; none where there is no driver."""
    nodes = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    if not nodes:
        return ()
    asked = environment.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return parse_gpu_list(_listed_gpus()) or tuple(str(number) for number in range(len(nodes)))
    names = []
    for name in (part.strip() for part in asked.split(",")):
        if not name or name.startswith("-"):
            break  # CUDA ignores what follows an invalid entry: https://docs.nvidia.com/cuda/cuda-programming-guide/
        names.append(name)
    return tuple(names)


def parse_gpu_list(text: str) -> tuple[str, ...]:
    """What `nvidia-smi -L` lists: numbers of GPUs, or UUIDs of MIG slices, which a process must be given one of."""
    lines = [line.strip() for line in text.splitlines()]
    slices = [line.rpartition("UUID: ")[2].rstrip(")") for line in lines if line.startswith("MIG ")]
    gpus = [line.partition(":")[0].removeprefix("GPU ") for line in lines if line.startswith("GPU ")]
    return tuple(slices or gpus)


def _listed_gpus() -> str:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""  # the device nodes stand for themselves
