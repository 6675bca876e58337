"""Bytes of answers and what they hold; the queries of requests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from controller.cluster.errors import ClusterError
from controller.cluster.resources import Object
from controller.jobs import MANAGED_BY

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse


def object_of(data: bytes) -> Object:
    """The object of the API that an answer holds. Raises ClusterError where it is none."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ClusterError(
            f"cluster: got {data[:80]!r}, expected JSON", hint="is `server` of the kubeconfig an API server?"
        ) from error
    if not isinstance(found, dict):
        raise ClusterError(f"cluster: got {str(found)[:80]!r}, expected an object of the API")
    return found


def continue_token(data: bytes) -> str:
    """Where the next page begins, read from the first bytes of this one; empty on the last."""
    start = data.find(b'"metadata":', 0, 200)
    if start >= 0 and b'"items":' not in data[:start]:  # as every API server writes it
        head = data[start + len(b'"metadata":') : start + 4096].decode(errors="replace")
        with suppress(ValueError):
            return str(json.JSONDecoder().raw_decode(head.lstrip())[0].get("continue", ""))
    return str(object_of(data)["metadata"].get("continue", ""))


def status_of(data: bytes) -> Object:
    """The API's Status; of a proxy's page, its beginning."""
    try:
        found = json.loads(data)
    except ValueError:
        return {"message": data[:200].decode(errors="replace").strip()}
    return found if isinstance(found, dict) else {}


def finish(response: BaseHTTPResponse) -> bytes:
    """What is left of an answer, so that its connection can be used again."""
    from urllib3.exceptions import HTTPError

    try:
        return response.data or b""
    except HTTPError:
        response.close()
        return b""


def with_query(path: str, query: Mapping[str, str]) -> str:
    """The path with what of the query is not empty."""
    text = urlencode({key: value for key, value in query.items() if value})
    return f"{path}?{text}" if text else path


def writer(method: str) -> dict[str, str]:
    """Whom the server is to remember as the writer of fields."""
    return {"fieldManager": MANAGED_BY} if method in ("POST", "PUT", "PATCH") else {}


def holds(found: Any, wanted: Any) -> bool:
    """Whether `found` has all that `wanted` has: the server adds defaults, and changes nothing."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(key in found and holds(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return (
            isinstance(found, Sequence)
            and len(found) == len(wanted)
            and all(holds(*pair) for pair in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)


def warning_text(header: str) -> str:
    """The text of a Warning header: `299 - "the text"`."""
    found = re.search(r'"((?:[^"\\]|\\.)*)"', header)
    return found[1].replace('\\"', '"') if found else header


def error_text(error: BaseException) -> str:
    """What an error says, without what only its program knows it by."""
    text = str(error) or type(error).__name__
    # urllib3 begins with the connection's own name and address in memory
    return re.sub(r"^<[^>]*>: |^HTTPS?Connection(?:Pool)?\([^)]*\): ", "", text)
