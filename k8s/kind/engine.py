"""The Docker engine: the one that runs here, or one made here, with its own folder, socket and processes.

An engine made here runs in a process and a mount namespace of its own. So it ends as a whole, with every container and
mount, when one process ends, and a killed start leaves nothing that cannot be found again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k8s.kind.process import Failed, Impossible, attempt, run, say, step, write_whole
from k8s.kind.settings import CACHE, HERE, RUN

SOCKET = RUN / "docker.sock"
PID_FILE = RUN / "engine.pid"
BEFORE = RUN / "before.json"
DATA = CACHE / "docker"
CGROUP = "experiment-grid-kind"
PACKAGES = {  # by the program for which each is needed
    "dockerd": "docker.io",
    "tini": "tini",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "ip": "iproute2",
}
CAP_SYS_RESOURCE = 24
NEEDED = {  # tried in namespaces that end with the trial: nothing of it stays
    "mounts of its own": "mount -t tmpfs none /mnt && cd /mnt && mkdir a b c d && mount -t overlay none -o "
    "lowerdir=a,upperdir=b,workdir=c d",
    "networks of its own": "ip link add name grid0 type bridge && ip link add grid1 type veth peer name grid2",
    "its own rules for them": "iptables -t nat -A POSTROUTING -j MASQUERADE",
    "control groups": "test -w /sys/fs/cgroup",
}
ELSEWHERE = "run Docker elsewhere and point DOCKER_HOST to it, or use a virtual machine in place of a container"
FIRST_ROOM_BYTES, ROOM_BYTES = 25_000_000_000, 6_000_000_000  # with nothing built yet, and later
DOCKER_BRIDGE = re.compile("br-[0-9a-f]{12}")
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# experiment-grid: no service starts while its packages are installed\nexit 101\n"


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers, and the client for it."""

    client: str
    host: str  # empty: whatever this person's own settings say
    is_ours: bool

    @property
    def environment(self) -> dict[str, str]:
        """What kind and Docker's client have to see to reach this engine."""
        path = f"{Path(self.client).parent}{os.pathsep}{os.environ['PATH']}"
        return {"DOCKER_BUILDKIT": "1", "PATH": path} | ({"DOCKER_HOST": self.host} if self.host else {})

    def docker(self, *words: str | Path, given: str | None = None, hint: str = "") -> str:
        """What the client printed. Raises Failed."""
        return run(self.client, *words, environment=self.environment, given=given, hint=hint)

    def knows(self, kind: str, name: str) -> bool:
        """Whether there is an image, container or network of that name."""
        return attempt(self.client, kind, "inspect", name, environment=self.environment).returncode == 0


def find_engine() -> Engine | None:
    """The engine made here earlier, or the one that this person's settings point to; None where neither answers."""
    if own_pid() is not None and (engine := _answering(f"unix://{SOCKET}", is_ours=True)):
        return engine
    return _answering("", is_ours=False)


def get_engine() -> Engine:
    """An engine that answers, made if need be. Raises Failed where that is impossible, and says why."""
    return find_engine() or _make_engine()


def own_pid() -> int | None:
    """The process whose end is the end of the engine made here, if it runs."""
    try:
        pid, started = PID_FILE.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if _start_time(int(pid)) == started else None


def lacks_sys_resource() -> bool:
    """Whether this machine withholds the capability SYS_RESOURCE, which `docker run --privileged` would hand on."""
    bounding = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    return not int(bounding.split()[1], 16) >> CAP_SYS_RESOURCE & 1


def _answering(host: str, *, is_ours: bool) -> Engine | None:
    for client in _clients():
        engine = Engine(client, host, is_ours)
        environment = engine.environment
        if attempt(client, "info", environment=environment, timeout=20).returncode != 0:
            continue
        # a newer client builds with the plug-in buildx, and refuses to do so without it
        version = run(client, "version", "--format", "{{.Client.Version}}", environment=environment)
        if int(version.split(".")[0]) < 23 or attempt(client, "buildx", "version").returncode == 0:
            return engine
    return None


def _clients() -> Iterator[str]:
    seen = set()
    for folder in [*os.environ["PATH"].split(os.pathsep), "/usr/bin"]:
        client = shutil.which("docker", path=folder)
        if client and client not in seen:
            seen.add(client)
            yield client


def _make_engine() -> Engine:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Impossible(
            "no Docker engine answers, and one can be made only by root on Debian or Ubuntu",
            hint="install and start Docker, or point DOCKER_HOST to an engine",
        )
    install_packages()
    refuse_where_withheld()
    stop_engine()  # what a killed run may have left
    with step("starting a Docker engine of our own"):
        RUN.mkdir(mode=0o711, exist_ok=True)
        forward = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
        before = {"ip_forward": forward, "policy": _forward_policy(), "bridges": _bridges()}
        write_whole(BEFORE, json.dumps(before))
        settings: dict[str, Any] = {"builder": {"gc": {"enabled": True, "defaultKeepStorage": "10GB"}}}
        if lacks_sys_resource():
            settings |= {
                "default-runtime": "without-sys-resource",
                "runtimes": {"without-sys-resource": {"path": str(HERE / "node" / "runc-without-sys-resource")}},
            }
        write_whole(RUN / "daemon.json", json.dumps(settings))
        with (RUN / "engine.log").open("ab") as log:
            subprocess.Popen(
                [HERE / "engine.sh", RUN, DATA, CGROUP],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if engine := SOCKET.exists() and _answering(f"unix://{SOCKET}", is_ours=True):
                return engine
            time.sleep(0.2)
    tail = (RUN / "engine.log").read_text(errors="replace").splitlines()[-20:]
    raise Failed("the engine does not answer within 60 s:\n" + "\n".join(tail))


def refuse_where_withheld() -> None:
    """Raise Impossible where even root may not make what containers are made of, or where the disk has no room."""
    for needed, command in NEEDED.items():
        ended = attempt("unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "sh", "-euc", command)
        if ended.returncode != 0:
            said = " ".join(ended.stderr.split()) or f"exit {ended.returncode}"
            raise Impossible(f"a Docker engine needs {needed}, which this machine withholds: {said}", hint=ELSEWHERE)
    CACHE.mkdir(parents=True, exist_ok=True)
    needed_room = ROOM_BYTES if DATA.exists() else FIRST_ROOM_BYTES
    room = shutil.disk_usage(CACHE).free
    if room < needed_room:
        raise Impossible(
            f"{CACHE} has room for {room / 1e9:.0f} GB, a cluster takes {needed_room / 1e9:.0f} GB",
            hint="free some space, or set KIND_CACHE to a folder of a larger disk",
        )


def install_packages() -> None:
    """Debian's packages of the engine are installed, and none of their services is started."""
    wanted = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    is_ours = not POLICY.exists() or POLICY.read_text() == POLICY_TEXT
    if not wanted:
        if is_ours:
            POLICY.unlink(missing_ok=True)  # of a killed run
        return
    with step(f"installing {' '.join(wanted)}"):
        if is_ours:
            write_whole(POLICY, POLICY_TEXT)
            POLICY.chmod(0o755)
        try:
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            run("dpkg", "--configure", "-a", environment=quiet)  # what a killed run left half installed
            run("apt-get", "update", "-qq", environment=quiet)
            run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted, environment=quiet)
        finally:
            if is_ours:
                POLICY.unlink()


def stop_engine() -> None:
    """Nothing is left of the engine made here: no process, mount, interface, rule or control group. Its folder stays.

    An engine that was not made here is not touched.
    """
    if not RUN.exists():
        return
    if (pid := own_pid()) is not None:
        with step("stopping the engine"):
            _end(pid)
    # nothing lives in its namespaces now; what it did to the machine outside them is undone
    before = json.loads(BEFORE.read_text()) if BEFORE.exists() else {}
    if before and _answering("", is_ours=False) is None:  # else the rules are another engine's too
        for bridge in set(_bridges()) - set(before["bridges"]):
            attempt("ip", "link", "delete", bridge)
        _remove_rules(before["bridges"])
        attempt("iptables", "-P", "FORWARD", before["policy"])
        Path("/proc/sys/net/ipv4/ip_forward").write_text(before["ip_forward"])
    for folder in [*Path("/sys/fs/cgroup").glob(CGROUP), *Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")]:
        for each in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            each.rmdir()
        folder.rmdir()
    shutil.rmtree(RUN)


def _end(pid: int) -> None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    deadline = time.monotonic() + 30
    while own_pid() is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    if own_pid() is not None:
        say("the engine does not end by itself: ending it")
        os.kill(pid, signal.SIGKILL)  # and with it, by unshare's --kill-child, all that runs in its namespace
        while own_pid() is not None:
            time.sleep(0.1)


def _start_time(pid: int) -> str | None:
    """When the process started, in clock ticks: with its number, the name of that process alone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _forward_policy() -> str:
    lines = attempt("iptables", "-S", "FORWARD").stdout.splitlines()
    return next((line.split()[2] for line in lines if line.startswith("-P")), "ACCEPT")


def _bridges() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob("br-*") if DOCKER_BRIDGE.fullmatch(path.name)]


def _remove_rules(foreign: list[str]) -> None:
    for table in ("filter", "nat"):
        lines = attempt("iptables-save", "-t", table).stdout.splitlines()
        chains = [line[1:].split()[0] for line in lines if line.startswith(":DOCKER")]
        for line in lines:
            words = line.split()
            bridges = {word for word in words if DOCKER_BRIDGE.fullmatch(word)} - set(foreign)
            if words[:1] == ["-A"] and words[1] not in chains and (bridges or set(words) & set(chains)):
                attempt("iptables", "-t", table, "-D", *words[1:])
        for action in ("-F", "-X"):
            for chain in chains:
                attempt("iptables", "-t", table, action, chain)
