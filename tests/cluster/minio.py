"""MinIO as a process on loopback, from the program that `make kind-up` builds for its image."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from k8s.kind.cluster import make_bucket
from k8s.kind.settings import S3_BUCKET, S3_KEY, S3_SECRET

from .apiserver import FOLLOWING_ITS_PARENT, programs
from .real import S3


@contextmanager
def minio_server(folder: Path) -> Iterator[S3]:
    """A server over `folder`, which keeps what is in it, with a bucket."""
    folder.mkdir(parents=True, exist_ok=True)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    words = ["server", "--quiet", "--address", address, "--console-address", "127.0.0.1:0", str(folder)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MINIO_")},
        "MINIO_ROOT_USER": S3_KEY,
        "MINIO_ROOT_PASSWORD": S3_SECRET,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
    }
    line = [sys.executable, "-c", FOLLOWING_ITS_PARENT, str(programs()["minio"]), *words]
    with (
        (folder.parent / f"{folder.name}.log").open("wb") as log,
        subprocess.Popen(line, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            endpoint = f"http://{address}"
            make_bucket(endpoint, S3_BUCKET)
            yield S3(endpoint, endpoint, S3_BUCKET, S3_KEY, S3_SECRET)
        finally:
            process.kill()
