"""The other side of rows about a cluster or an S3 server: requests and nothing else, over kept-alive connections."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

from controller.cluster import CONNECTIONS
from tests.cluster.apiserver import ADMIN, ApiServer
from trainer.store import S3Store

Request = tuple[str, str, bytes | None]  # method, path, body
PATCH = "application/merge-patch+json"
PAGE = 500
XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class BareApi:
    """An API server, asked as its administrator."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def send_all(self, requests: Iterable[Request]) -> tuple[float, list[int]]:
        """Seconds that all of them took by CONNECTIONS threads, and the statuses of the answers."""
        todo: SimpleQueue[Request] = SimpleQueue()
        for request in requests:
            todo.put(request)
        statuses: list[int] = []

        def send() -> None:
            with closing(self.connection()) as connection:
                while True:
                    try:
                        method, path, body = todo.get_nowait()
                    except Empty:
                        return
                    connection.request(method, path, body, headers(method))
                    answer = connection.getresponse()
                    answer.read()
                    statuses.append(answer.status)

        return _by_threads(send, CONNECTIONS), statuses

    def send(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The answer to one request. Fails on anything but success."""
        with closing(self.connection()) as connection:
            return _sent(connection, method, path, body)

    def read_pages(self, path: str) -> int:
        """Read every page of a collection over one connection and parse it; the number of objects."""
        number, following = 0, ""
        with closing(self.connection()) as connection:
            while True:
                more = f"&continue={following}" if following else ""
                page = _sent(connection, "GET", f"{path}?limit={PAGE}{more}", None)
                number += len(page["items"])
                following = page["metadata"].get("continue", "")
                if not following:
                    return number

    def connection(self) -> http.client.HTTPSConnection:
        """A new connection; the caller closes it."""
        trusted = ssl.create_default_context(cafile=str(self._server.ca))
        return http.client.HTTPSConnection("127.0.0.1", self._server.port, context=trusted)


def headers(method: str) -> dict[str, str]:
    """What a request says of itself."""
    content_type = PATCH if method == "PATCH" else "application/json"
    return {"Authorization": f"Bearer {ADMIN}-token", "Content-Type": content_type}


class BareS3:
    """The S3 server and bucket of a store, with requests signed before they are timed where that is possible."""

    def __init__(self, store: S3Store) -> None:
        import boto3
        from botocore.auth import S3SigV4Auth

        session = boto3.Session()
        credentials = session.get_credentials()
        assert credentials is not None
        self._endpoint = urlsplit(store.endpoint)
        self._root = f"/{store.bucket}"
        self._prefix = store.uri.removeprefix(f"s3://{store.bucket}").lstrip("/")
        self._signer = S3SigV4Auth(credentials.get_frozen_credentials(), "s3", session.region_name or "us-east-1")

    def list_pages(self, prefix: str) -> list[str]:
        """The keys below the prefix, as they are in the bucket: every page read and parsed."""
        keys: list[str] = []
        query = {"list-type": "2", "max-keys": "1000", "prefix": f"{self._prefix}/{prefix}".lstrip("/")}
        with closing(self._connection()) as connection:
            while True:
                path = f"{self._root}?{urlencode(sorted(query.items()), quote_via=quote)}"
                connection.request("GET", path, headers=self._signed(path))
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 200, content
                page = ElementTree.fromstring(content)
                keys += [each.text or "" for each in page.iter(f"{XML}Key")]
                following = page.findtext(f"{XML}NextContinuationToken")
                if not following:
                    return keys
                query["continuation-token"] = following

    def get_all(self, keys: Sequence[str], connections: int) -> float:
        """Seconds of GETs of these and nothing else."""
        todo: SimpleQueue[tuple[str, dict[str, str]]] = SimpleQueue()
        for key in keys:
            path = f"{self._root}/{quote(key)}"
            todo.put((path, self._signed(path)))
        statuses: list[int] = []

        def get() -> None:
            with closing(self._connection()) as connection:
                while True:
                    try:
                        path, signed = todo.get_nowait()
                    except Empty:
                        return
                    connection.request("GET", path, headers=signed)
                    answer = connection.getresponse()
                    answer.read()
                    statuses.append(answer.status)

        seconds = _by_threads(get, connections)
        assert statuses == [200] * len(keys)
        return seconds

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._endpoint.scheme == "https" else http.client.HTTPConnection
        return kind(self._endpoint.netloc)

    def _signed(self, path: str) -> dict[str, str]:
        from botocore.awsrequest import AWSRequest

        request = AWSRequest("GET", f"{self._endpoint.scheme}://{self._endpoint.netloc}{path}")
        self._signer.add_auth(request)
        return dict(request.headers.items())


def _sent(connection: http.client.HTTPSConnection, method: str, path: str, body: object) -> dict[str, Any]:
    connection.request(method, path, None if body is None else json.dumps(body).encode(), headers(method))
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status < 300, f"{method} {path}: {answer.status} {content[:500]!r}"
    found: dict[str, Any] = json.loads(content)
    return found


def _by_threads(work: Callable[[], None], number: int) -> float:
    threads = [threading.Thread(target=work) for _ in range(number)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun
