"""A bare Kubernetes API server for tests: etcd and kube-apiserver as processes on loopback, no node, nothing scheduled.

The real thing for all that is said between a client and the API: paging, watches, preconditions, RBAC, quotas.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = "GRID_KUBERNETES_BIN"
NEEDED = ("etcd", "kube-apiserver")
OTHERS = ("kube-controller-manager", "kube-scheduler", "kwok", "minio")
RATE = ("--kube-api-qps=1000", "--kube-api-burst=2000")  # theirs by default is what a large grid would wait for
ADMIN, NOBODY = "admin", "nobody"  # users; the second may do nothing until a RoleBinding says so
START_SECONDS = 120


def programs() -> dict[str, Path]:
    """Where NEEDED and OTHERS are, as far as they are anywhere.

    In the folder that GRID_KUBERNETES_BIN names, on the PATH, or where `make kind-up` keeps what it has built.
    """
    from k8s.kind.settings import CACHE

    found = {}
    for name in (*NEEDED, *OTHERS):
        built = sorted(CACHE.glob(f"bin/*/{name}"), key=lambda path: path.stat().st_mtime)
        given = [Path(os.environ[PROGRAMS], name)] if PROGRAMS in os.environ else []
        installed = [Path(each)] if (each := shutil.which(name)) else []
        for path in (*built, *installed, *given):  # the last of them counts
            if path.is_file():
                found[name] = path
    return found


def missing(*others: str) -> str:
    """Why there can be no such server here, or not with those beside it; empty where there can."""
    lacking = [name for name in (*NEEDED, *others) if name not in programs()]
    if not lacking:
        return ""
    return f"no {' and no '.join(lacking)}: `make kind-up` builds them, or {PROGRAMS} names their folder"


@dataclass
class ApiServer:
    """A running API server; `restart` ends it and starts it again over the same etcd."""

    folder: Path
    port: int
    etcd_port: int
    flags: tuple[str, ...]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.folder / "certificates" / "apiserver.crt"

    def kubeconfig(self, user: str = ADMIN, namespace: str = "default") -> Path:
        """A kubeconfig for `user`, whose context names `namespace`."""
        path = self.folder / f"{user}-{namespace}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.ca)}}],
            "users": [{"name": user, "user": {"token": f"{user}-token"}}],
        }
        path.write_text(json.dumps(config))
        return path

    def start(self) -> None:
        """Start it and wait until it is ready."""
        key = self.folder / "service-accounts.pem"
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={self.folder / 'certificates'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--disable-admission-plugins=ServiceAccount",  # whose accounts only a controller makes
            *self.flags,
        )
        self._await_ready()

    def stop(self, name: str = "kube-apiserver", *, kill: bool = True) -> None:
        """End one of its processes."""
        process = self.processes.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            process.wait()

    def restart(self) -> None:
        """End the API server as a crash would, and start it again."""
        self.stop()
        self.start()

    def start_controllers(self, *names: str) -> None:
        """Start a kube-controller-manager with these controllers only."""
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig()}",
            f"--controllers={','.join(names)}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            f"--service-account-private-key-file={self.folder / 'service-accounts.pem'}",
            *RATE,
        )

    def start_scheduler(self) -> None:
        """Start a kube-scheduler."""
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig()}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            *RATE,
        )

    def compact(self) -> None:
        """Let etcd forget all versions but the newest."""
        newest = int(self._etcd("kv/range", {"key": "AA=="})["header"]["revision"])  # type: ignore[index]
        self._etcd("kv/compaction", {"revision": str(newest), "physical": True})

    def _etcd(self, path: str, body: dict[str, object]) -> dict[str, object]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.etcd_port}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            found: dict[str, object] = json.load(answer)
            return found

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [str(programs()[name]), *arguments]
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", FOLLOWING_ITS_PARENT, *command], stdout=log, stderr=log
            )

    def _await_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text(errors="replace")
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{log[-2000:]}")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise RuntimeError(f"kube-apiserver was not ready within {START_SECONDS} s: see {self.folder}")

    def _is_ready(self) -> bool:
        try:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=5, context=ssl.create_default_context(cafile=str(self.ca))
            )
        except OSError:  # its certificate is not made yet
            return False
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {ADMIN}-token"})
            return connection.getresponse().status == 200
        return False

    def close(self) -> None:
        """End all its processes."""
        for name in reversed(list(self.processes)):
            self.stop(name)


@contextmanager
def connections_reset() -> Iterator[None]:
    """A part of a test in which a server goes that others connect to.

    `ssl.wrap_socket` of CPython 3.11 leaves a socket open that its peer reset just before; so it is collected here, and
    not in a later test where the warning would be an error.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <ssl.SSLSocket", ResourceWarning)
        yield
        gc.collect()


# So that a killed test run leaves no server behind: the kernel ends it with its parent.
FOLLOWING_ITS_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); os.execv(sys.argv[1], sys.argv[1:])"
)


@contextmanager
def api_server(folder: Path, flags: Sequence[str] = ()) -> Iterator[ApiServer]:
    """A ready API server with an empty etcd, whose files are in `folder`; `flags` are for kube-apiserver."""
    etcd_port, peer_port, port = _free_ports(3)
    server = ApiServer(folder, port, etcd_port, tuple(flags))
    (folder / "tokens.csv").write_text(f'{ADMIN}-token,{ADMIN},1,"system:masters"\n{NOBODY}-token,{NOBODY},2\n')
    subprocess.run(
        ["openssl", "genrsa", "-out", folder / "service-accounts.pem", "2048"], check=True, capture_output=True
    )
    try:
        server._run(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )
        server.start()
        yield server
    finally:
        server.close()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
