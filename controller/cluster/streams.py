"""Answers that are read as they come: watches, and logs that are followed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from controller.cluster.answers import error_text
from controller.cluster.errors import ClusterError, Expired, Unreachable
from controller.cluster.resources import Object

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

WatchEvent = tuple[Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"], Object]


class Watch:
    """Changes as they come, until the server ends the stream; to be read by one thread, closed by any.

    Iterating raises Expired where the version is too old, and Unreachable where the connection breaks or falls silent.
    """

    def __init__(self, response: BaseHTTPResponse, place: str) -> None:
        self._response = response
        self._place = place
        self._is_closed = False

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[WatchEvent]:
        for line in lines_of(self._response, self._place, lambda: self._is_closed):
            try:
                event = json.loads(line)
                kind, changed = event["type"], event["object"]
            except (ValueError, KeyError, TypeError) as error:
                raise Unreachable(f"{self._place}: got {line[:80]!r}, expected a watch event") from error
            if kind == "ERROR":
                raise self._refused(changed)
            yield kind, changed

    def _refused(self, status: Object) -> ClusterError:
        told = f"{self._place}: got {status.get('code')} {status.get('message')}, expected changes"
        return Expired(told) if status.get("code") == 410 else Unreachable(told)

    def close(self) -> None:
        """End the stream, also for a thread that waits in it."""
        if not self._is_closed:
            self._is_closed = True
            with suppress(ValueError, RuntimeError, OSError):  # it has ended by itself
                self._response.shutdown()


def lines_of(response: BaseHTTPResponse, place: str, is_closed: Callable[[], bool]) -> Iterator[bytes]:
    """The lines of a stream as they come, without a last one that is torn. Raises Unreachable where it breaks."""
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for chunk in response.stream(1 << 16, decode_content=True):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                if line:
                    yield line
    except (HTTPError, OSError, ValueError, AttributeError) as error:  # the last: closed by another thread
        if not is_closed():
            raise Unreachable(f"{place}: got {error_text(error)}, expected the stream to go on") from error
    else:
        if rest and not is_closed():
            yield rest
    finally:
        response.close()
