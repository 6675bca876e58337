"""Where data, weights, checkpoints and results live: one interface over a folder and S3-compatible storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from trainer.failure import SpecError
from trainer.store.folder import FileStore
from trainer.store.interface import STORE_PATIENCE_SECONDS, Conflict, Entry, NotFound, Request, Retry, Store
from trainer.store.s3 import S3Store

__all__ = [
    "STORE_PATIENCE_SECONDS",
    "Conflict",
    "Entry",
    "FileStore",
    "NotFound",
    "Request",
    "Retry",
    "S3Store",
    "Store",
    "open_store",
]


def open_store(
    uri: str,
    *,
    patience_seconds: float = 60,
    on_retry: Callable[[Retry], None] | None = None,
    on_request: Callable[[Request], None] | None = None,
) -> FileStore | S3Store:
    """The store at `file:///folder`, `file://./relative/folder` or `s3://bucket/prefix`; nothing is read yet.

    `patience_seconds` bounds the retrying of one operation. `on_retry` is called before each wait, in whichever thread
    waits; what it raises ends the operation. `on_request` is called after each request, repeated ones each, in
    whichever thread sent it.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "file" and rest.startswith(("/", "./", "../")):
        return FileStore(Path(unquote(rest)), on_request=on_request)
    if separator and scheme == "s3":
        return S3Store(uri, patience_seconds=patience_seconds, on_retry=on_retry, on_request=on_request)
    cures = {
        "file": f"for a folder below this one write file://./{rest}",
        "": f"for a folder write {_as_folder(uri or 'store')}",
    }
    raise SpecError(
        f"store: got {uri!r}, expected file:///folder, file://./folder or s3://bucket/prefix",
        hint=cures.get(scheme if separator else "", "other servers are reached as s3:// with AWS_ENDPOINT_URL"),
    )


def _as_folder(path: str) -> str:
    return f"file://{path if path.startswith(('/', './', '../')) else './' + path}"
