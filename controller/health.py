"""How a process that runs for ever is: what it is asked over HTTP, and a log that says when a server is away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Literal, NamedTuple, Self, TextIO

from controller.live import GridProgress, Word
from controller.wording import plain, seconds_text
from trainer.failure import SpecError

ROUND_SECONDS = 300.0  # since a round began, after which it hangs: servers are asked for seconds, and then later again

Level = Literal["info", "warning", "error"]
_LEVELS: dict[Word, Level] = {"failed": "error", "waits": "warning", "again": "warning"}


class Log:
    """A line for each event: its time, its level, what happened. A view for what runs without anyone looking."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def write(self, level: Level, text: str) -> None:
        """Tell of one event, on one line whatever its text."""
        line = "; ".join(plain(each.strip()) for each in text.splitlines() if each.strip())
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        with self._lock:
            print(f"{stamp}Z {level:<7} {line}", file=self._stream, flush=True)

    def say(self, word: Word, text: str) -> None:
        """Tell of one thing that happened to a grid."""
        self.write(_LEVELS.get(word, "info"), text if word == "note" else f"{word} {text}")

    def show(self, progress: GridProgress) -> None:
        """Nothing: nobody looks."""


class Link:
    """Whether a server answers; its silence is told once, and so is its end."""

    def __init__(self, server: str, log: Log) -> None:
        self._server = server
        self._log = log
        self._silent_since: float | None = None
        self.why: str | None = None  # it does not answer, or refuses

    def failed(self, why: str) -> None:
        """It did not answer, or refused."""
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            self._log.write("warning", f"{self._server} does not answer as it should, asking again: {why}")
        self.why = why

    def answered(self) -> None:
        """It did."""
        if self._silent_since is not None:
            silent = seconds_text(time.monotonic() - self._silent_since)
            self._log.write("info", f"{self._server} answers again, after {silent}")
        self._silent_since = self.why = None


class Answer(NamedTuple):
    """What a path is answered with."""

    status: int
    text: str
    media_type: str = "text/plain; charset=utf-8"


class Rounds:
    """Whether a loop goes round."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def begin(self) -> None:
        """Note that a round, or a part of it that may take as long, begins."""
        self._began = time.monotonic()

    def answer(self) -> Answer:
        """What the path /healthz is answered with."""
        seconds = time.monotonic() - self._began
        told = f"the last round began {seconds:.0f} s ago"
        return Answer(200 if seconds < ROUND_SECONDS else 503, told)


class HealthServer:
    """Answers on `port` by `paths`, which whoever has more to tell adds to; in a `with` block. Port 0 is any free one.

    Raises SpecError where the port is not to be had.
    """

    def __init__(self, port: int, paths: Mapping[str, Callable[[], Answer]]) -> None:
        self.paths = dict(paths)
        try:
            self._server = _server(port, self._answer)
        except OSError as error:
            raise SpecError(
                f"--port: got {port}, which is not to be had: {error.strerror}, expected a free port",
                hint="--port 0 takes any free one",
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, path: str) -> Answer:
        found = self.paths.get(path)
        return Answer(404, f"there is {', '.join(self.paths)}") if found is None else found()


def _server(port: int, answer: Callable[[str], Answer]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds that a client may take for its request

        def do_GET(self) -> None:
            status, text, media_type = answer(self.path.partition("?")[0])
            content = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: probes come every few seconds."""

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
