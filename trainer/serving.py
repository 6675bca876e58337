"""A small HTTP server beside a process's own work: what a path is answered with, in daemon threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What a path is answered with."""

    status: int
    text: str
    media_type: str = "text/plain; charset=utf-8"


class PathServer:
    """Answers on `port` by `paths`, which whoever has more to tell adds to, once started. Port 0 is any free one.

    What answers a path of `by_accept` is told the request's Accept header.

    Raises OSError where the port is not to be had.
    """

    def __init__(
        self,
        port: int,
        paths: Mapping[str, Callable[[], Answer]],
        *,
        name: str,
        by_accept: Mapping[str, Callable[[str], Answer]] | None = None,
    ) -> None:
        self.paths = dict(paths)
        self.by_accept = dict(by_accept or {})
        self._server = _server(port, self._answer)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name=name, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more; the port is free again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, path: str, accept: str) -> Answer:
        if path in self.by_accept:
            return self.by_accept[path](accept)
        found = self.paths.get(path)
        return Answer(404, f"there is {', '.join([*self.paths, *self.by_accept])}") if found is None else found()


def _server(port: int, answer: Callable[[str, str], Answer]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds that a client may take for its request

        def do_GET(self) -> None:
            status, text, media_type = answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
            content = (text if text.endswith("\n") else f"{text}\n").encode()
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: probes and scrapes come every few seconds."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:  # and IPv4 as well
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            TCPServer.server_bind(self)  # not HTTPServer's, which asks DNS for a name that nobody needs

        def handle_error(self, *_: object) -> None:
            """Nothing: a client that goes away is no event."""

    return Server(("", port), Handler)
