"""`python -m trainer.probe`: what a process finds where a run would find itself, on this machine or in a pod.

The answer is one JSON object on stdout, and the container's termination message: whoever asks need not be allowed to
read logs. `grid doctor` starts one, or a pod of it, and says what the answer means.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainer.failure import TERMINATION_LOG, ExitCode, GridError
from trainer.machine import available_memory, available_threads
from trainer.result import Numerics
from trainer.spec import DataSpec, ExperimentSpec, ModelSpec, Recipe
from trainer.store import Store, open_store

PATIENCE_SECONDS = 20.0  # for a store that does not answer
ANOTHER = "use another server"
LONGEST_TEXT = 800  # characters of an error: a termination message has room for 4,096 bytes


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class StoreAnswer(_Answer):
    """Whether an object could be written, listed, read and deleted, and when the store says that it was written."""

    uri: str
    error: str | None = None
    hint: str | None = None
    stamp: float | None = None  # seconds since the epoch, by the store's clock
    before: float | None = None  # by this machine's clock, before it was written
    after: float | None = None  # and once it was listed
    is_conditional: bool | None = None


class TorchAnswer(_Answer):
    """What torch is, and what it computes on."""

    version: str | None = None
    torchvision: str | None = None
    cuda: str | None = None  # that torch was built with
    num_gpus: int = 0
    gpu: str | None = None
    gpu_memory: int | None = None  # bytes
    numerics: Numerics | None = None  # that a run settles on by itself
    error: str | None = None


class Answer(_Answer):
    """All that was found."""

    recipe: int
    commit: str | None
    python: str
    threads: int
    memory: int  # bytes that may still be taken
    time: float  # seconds since the epoch
    store: StoreAnswer | None  # none: it was not asked for
    torch: TorchAnswer


def main(argv: list[str] | None = None) -> int:
    """Look around, and say what was found; the exit code of what is wrong with the store, if anything is."""
    parser = argparse.ArgumentParser(prog="python -m trainer.probe", description="Say what a run would find here.")
    parser.add_argument("--store", metavar="URI", help="file:///folder or s3://bucket/prefix; default: none is tried")
    given = parser.parse_args(argv)
    store, exit_code = (None, 0) if given.store is None else ask_store(given.store)
    answer = Answer(
        recipe=Recipe().version,
        commit=os.environ.get("GRID_COMMIT"),
        python=platform.python_version(),
        threads=available_threads(),
        memory=available_memory(),
        time=time.time(),
        store=store,
        torch=ask_torch(),
    )
    text = answer.model_dump_json()
    sys.stdout.write(f"{text}\n")
    path = Path(os.environ.get("GRID_TERMINATION_LOG", TERMINATION_LOG))
    if path.exists():
        path.write_text(text)
    return exit_code


def ask_store(uri: str) -> tuple[StoreAnswer, int]:
    """What came of an object that was put into the store, and the exit code that a run would end with."""
    try:
        store = open_store(uri, patience_seconds=PATIENCE_SECONDS)
        return try_store(store), ExitCode.OK
    except GridError as error:
        hint = error.hint and error.hint[:LONGEST_TEXT]
        return StoreAnswer(uri=uri, error=error.message[:LONGEST_TEXT], hint=hint), int(error.exit_code)


def try_store(store: Store) -> StoreAnswer:
    """What came of an object that was written, listed, read and deleted again. Raises StoreError."""
    key = f"doctor/{uuid.uuid4().hex}"
    before = time.time()
    try:
        store.put(key, b"probe")
        entries = list(store.list(key))
        after = time.time()
        content = store.get(key)
    finally:
        with suppress(GridError):  # what is wrong with the store is raised already, and the object is five bytes
            store.delete(key)
    if content != b"probe" or len(entries) != 1:
        return StoreAnswer(uri=store.uri, error=f"{store.uri} does not give back what was put into it", hint=ANOTHER)
    return StoreAnswer(
        uri=store.uri,
        stamp=entries[0].modified,
        before=before,
        after=after,
        is_conditional=store.is_conditional(),
    )


def ask_torch() -> TorchAnswer:
    """What torch says of itself, whether the first GPU that it sees can compute, and how a run would be computed."""
    try:
        import torch
        import torchvision

        from trainer import numerics

        found = TorchAnswer(
            version=torch.__version__,
            torchvision=torchvision.__version__,
            cuda=torch.version.cuda,
            num_gpus=torch.cuda.device_count(),
        )
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the answer
        return TorchAnswer(error=f"{type(error).__name__}: {error}"[:LONGEST_TEXT])
    seen: dict[str, Any] = {}
    try:
        if found.num_gpus:
            properties = torch.cuda.get_device_properties(0)
            seen = {"gpu": properties.name, "gpu_memory": properties.total_memory}
            torch.ones(1, device="cuda").add_(1).cpu()
        spec = ExperimentSpec(data=DataSpec(name="any"), model=ModelSpec(architecture="any"))
        seen["numerics"] = numerics.settle(spec, numerics.pick_device(), available_threads())
    except Exception as error:  # noqa: BLE001 - a driver that does not fit raises what it likes
        return found.model_copy(update={"error": f"{type(error).__name__}: {error}"[:LONGEST_TEXT]})
    return found.model_copy(update=seen)


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit(int(ExitCode.STOPPED))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # which the kernel drops for a container's first process that does not listen
    sys.exit(main())
