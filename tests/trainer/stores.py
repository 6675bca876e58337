"""Real servers for tests of the store: rclone's and moto's S3 on loopback, and a proxy that breaks requests."""

from __future__ import annotations

import functools
import http.client
import os
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.loaders import Loader, create_loader

from trainer.store import FileStore, S3Store, Store, open_store

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
BUCKET = "grid-bucket"
SMALL_PARTS: dict[str, Any] = {"threshold_bytes": 5 << 20, "part_bytes": 5 << 20}  # 5 MiB is the least S3 takes


def pattern(size: int) -> bytes:
    """Bytes in which no two stretches are alike, so that a lost or doubled part shows."""
    return b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size]


def keys_of(store: Store, prefix: str = "") -> list[str]:
    """The keys of a listing, in its order."""
    return [entry.key for entry in store.list(prefix)]


@dataclass(frozen=True)
class Server:
    """An S3 server that runs, with a bucket in it."""

    name: str
    endpoint: str
    is_conditional: bool

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to reach the server and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _tool(name: str) -> str:
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert path is not None, f"{name} is not installed: it comes with the dev group"
    return path


@contextmanager
def _process(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, f"{command[0]} ended: {log.read_text()}"
                    assert time.monotonic() < until, f"{command[0]} does not listen: {log.read_text()}"
                    time.sleep(0.05)
            yield
        finally:
            process.kill()


@contextmanager
def rclone_server(folder: Path) -> Iterator[Server]:
    """rclone's `serve s3` over `folder`: checks signatures, ignores conditions on writes."""
    port = free_port()
    (folder / "files" / BUCKET).mkdir(parents=True)
    command = [_tool("rclone"), "serve", "s3", "--config", "/dev/null", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(folder / "files")]
    with _process(command, port, folder / "rclone.log"):
        yield Server("rclone", f"http://127.0.0.1:{port}", is_conditional=False)


@contextmanager
def moto_server(folder: Path) -> Iterator[Server]:
    """moto's server: honours conditions on writes, checks no signature, keeps all in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _process(command, port, folder / "moto.log"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("PUT", f"/{BUCKET}", headers={"Host": f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()
        yield Server("moto", f"http://127.0.0.1:{port}", is_conditional=True)


@dataclass(frozen=True)
class Place:
    """Somewhere to keep objects, empty at first; `connect` opens it once more."""

    name: str
    uri: str
    is_conditional: bool | None  # None where nobody has said

    def connect(self, **settings: Any) -> FileStore | S3Store:
        return open_store(self.uri) if self.uri.startswith("file:") else S3Store(self.uri, **settings)


def use_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the AWS environment of this process point to `server` alone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.session.create_loader", _api_models)


@functools.cache
def _api_models(_: str | None = None) -> Loader:
    """botocore's descriptions of the S3 API, parsed once for all tests: most of what opening a store costs."""
    return create_loader()


def place_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A prefix of its own in the server's bucket."""
    use_server(server, monkeypatch)
    return Place(server.name, f"s3://{BUCKET}/{uuid.uuid4().hex}", server.is_conditional)


SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"


@dataclass
class FlakyServer:
    """A proxy in front of a server that breaks the requests it is told to break.

    `faults` are pairs of a text and a fault: the first pair whose text is in "METHOD path?query" is used up by that
    request. `slow-down` and `denied` answer so, `absent` with 404 and nothing else; `reset` breaks the connection
    before the server hears of it, `lost` after the server has done it, `torn` in the middle of the answer's body;
    `silent` says nothing for a second.
    """

    target: Server
    faults: list[tuple[str, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)

    @property
    def server(self) -> Server:
        return Server("flaky", f"http://127.0.0.1:{self.port}", self.target.is_conditional)

    def take(self, request: str) -> str | None:
        self.requests.append(request)
        for pair in self.faults:
            if pair[0] in request:
                self.faults.remove(pair)
                return pair[1]
        return None

    @contextmanager
    def running(self) -> Iterator[FlakyServer]:
        flaky = self
        target = urlsplit(self.target.endpoint)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the base class has it so
                pass

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = flaky.take(f"{self.command} {self.path}")
                if fault == "slow-down":
                    self._answer(503, SLOW_DOWN)
                elif fault == "denied":
                    self._answer(403, DENIED)
                elif fault == "absent":
                    self._answer(404, b"")
                elif fault == "reset":
                    self._reset()
                else:
                    if fault == "silent":
                        time.sleep(1)
                    self._forward(body, fault)

            def _forward(self, body: bytes, fault: str | None) -> None:
                connection = http.client.HTTPConnection(target.hostname or "", target.port or 0, timeout=30)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in {"expect", "connection"}:
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if fault == "lost":
                    self._reset()
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"connection", "transfer-encoding", "content-length", "server", "date"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if fault == "torn":
                    self.wfile.write(content[: len(content) // 2])
                    self._reset()
                else:
                    self.wfile.write(content)

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _reset(self) -> None:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815 - the base class has it so

        class Listener(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the client gave up waiting for a silent answer

            def shutdown_request(self, request: socket.socket) -> None:
                self.close_request(request)  # without the polite farewell, so that a reset is one

        with Listener(("127.0.0.1", self.port), Handler) as listener:
            thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                listener.shutdown()
                thread.join()
