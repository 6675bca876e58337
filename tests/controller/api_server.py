"""A server on loopback that answers as the Kubernetes API does, from a script, and breaks on demand."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """What it is told: an object, or lines one by one as a watch or a log sends them; broken off at the end if said."""

    status: int = 200
    body: Object | bytes = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    lines: Iterator[bytes] | list[bytes] | None = None
    breaks: bool = False  # the connection is reset where the answer, or its next chunk, should come
    delay: float = 0.0  # seconds before it answers


def refusal(status: int, reason: str, message: str, **details: Any) -> Reply:
    """The API's Status for a request that is not granted."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return Reply(status, {**body, "message": message, "reason": reason, "details": details, "code": status})


def event(kind: str, changed: Object) -> bytes:
    """A line of a watch."""
    return json.dumps({"type": kind, "object": changed}).encode() + b"\n"


BREAK = Reply(breaks=True)
Answer = Callable[[Request], Reply]


class ScriptedServer:
    """Answers by `answer`; `script` replies are given first, one a request. `requests` are those that came."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer: Answer = answer or (lambda _: refusal(404, "NotFound", "not found"))
        self.script: list[Reply] = []
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reply(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            if self.script:
                return self.script.pop(0)
        return self.answer(request)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[ScriptedServer]:
        scripted = self

        class Handler(_Handler):
            server_script = scripted

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is no news."""

        with Server(("127.0.0.1", port), Handler) as server:
            self._server = server
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.stopping.set()
                server.shutdown()
                thread.join()

    def kubeconfig(self, folder: Path, *, user: Object | None = None, namespace: str = "lab") -> Path:
        """A kubeconfig whose context leads here."""
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [
                        {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}},
                        {"name": "other", "context": {"cluster": "c", "user": "u"}},
                    ],
                    "clusters": [{"name": "c", "cluster": {"server": self.url}}],
                    "users": [{"name": "u", "user": user or {"token": "secret"}}],
                }
            )
        )
        return path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_script: ScriptedServer

    def _answer(self) -> None:
        split = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        request = Request(
            self.command,
            split.path,
            dict(parse_qsl(split.query)),
            {name.lower(): value for name, value in self.headers.items()},
            json.loads(content) if content else None,
        )
        reply = self.server_script.reply(request)
        if reply.delay:
            self.server_script.stopping.wait(reply.delay)
        if reply.lines is not None:
            self._stream(reply)
        elif reply.breaks:
            self._reset()
        else:
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - the names that http.server looks for

    def _stream(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            for line in reply.lines or ():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            if reply.breaks:
                self.wfile.write(b"40\r\n{torn")
                self._reset()
            else:
                self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        """Break the connection as a crash would: by a reset, not by an end."""
        self.wfile.flush()
        time.sleep(0.02)  # what was written before is to arrive
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
