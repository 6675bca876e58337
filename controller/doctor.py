"""Checks of everything a grid needs on this machine, each with what was found and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from controller.architectures import check_classifier, check_factory
from controller.archive import read_index, weights_sha256
from controller.origins import other_split
from controller.plan import LackingWeights, lacking_text
from controller.search import Needs
from controller.wording import bytes_text, count_text
from trainer.cache import cache_usage
from trainer.failure import DataError, GridError, SpecError
from trainer.machine import available_memory, available_processors, cache_folder
from trainer.probe import Answer, StoreAnswer, TorchAnswer, try_store
from trainer.result import Numerics
from trainer.store import Store
from trainer.weights import hash_in_name

Severity = Literal["ok", "note", "wrong"]

GIB = 1 << 30
OLDEST_PYTHON, FIRST_UNKNOWN_PYTHON = (3, 11), (3, 14)
MEMORY_WANTED = 4 * GIB  # AlexNet at batch 256 with its images takes about 3 GiB
DISK_WANTED = 5 * GIB  # Caltech-101: 0.1 GiB of shards, 2.6 GiB decoded, weights and checkpoints
SKEW_SECONDS = 5.0  # a lease expires after 30
TORCH_PATIENCE_SECONDS = 120.0
TORCH_CURE = "run `make setup`; it installs torch and torchvision"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: fine, worth knowing, or wrong."""

    name: str
    state: Severity
    found: str
    cure: str | None = None


def check_machine() -> Iterator[Check]:
    """What this machine gives: Python, cores, memory."""
    yield check_python(sys.version_info[:2], platform.python_version())
    yield Check("cores", "ok", f"{available_processors()} of {os.cpu_count()} may be used")
    yield check_memory(available_memory())


def check_python(version: tuple[int, int], text: str) -> Check:
    """Whether this Python is one that the tests are run with."""
    if version < OLDEST_PYTHON:
        return Check("python", "wrong", text, "install Python 3.11 or newer, then run `make setup`")
    if version >= FIRST_UNKNOWN_PYTHON:
        return Check("python", "note", text, "tested with 3.11 to 3.13: use one of them if something fails")
    return Check("python", "ok", text)


def check_memory(available: int) -> Check:
    """Whether so many bytes are enough for the shipped grids."""
    found = f"{bytes_text(available)} may still be taken"
    if available < MEMORY_WANTED:
        return Check("memory", "note", found, "large networks may be killed: lower batch_size or set micro_batch")
    return Check("memory", "ok", found)


def check_torch() -> list[Check]:
    """What torch computes with on this machine, asked of a child process: this one never loads torch."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trainer.probe"],
            capture_output=True,
            text=True,
            timeout=TORCH_PATIENCE_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GRID_TERMINATION_LOG": os.devnull},  # in a pod, that is who asks's own
        )
    except subprocess.TimeoutExpired:
        return [Check("torch", "wrong", f"no answer in {TORCH_PATIENCE_SECONDS:.0f} s", "is the disk very slow?")]
    return judge_torch(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def judge_torch(exit_code: int, out: str, err: str, seconds: float) -> list[Check]:
    """The checks that the probe's answer comes to."""
    if exit_code != 0:
        last = (err.strip().splitlines() or ["no message"])[-1]
        return [Check("torch", "wrong", f"could not be asked: {last}", TORCH_CURE)]
    torch = Answer.model_validate_json(out.splitlines()[-1]).torch
    if torch.version is None:
        return [Check("torch", "wrong", f"does not load: {torch.error}", TORCH_CURE)]
    version = f"{torch.version} with torchvision {torch.torchvision}, loaded in {seconds:.1f} s"
    found = Check("torch", "ok", version)
    if torch.numerics is None:
        cure = "see what `nvidia-smi` says; reinstall torch for its driver"
        return [found, Check("device", "wrong", f"{torch.gpu or 'torch'} cannot compute: {torch.error}", cure)]
    return [found, _check_device(torch, torch.numerics), _check_precision(torch.numerics)]


def _check_device(torch: TorchAnswer, numerics: Numerics) -> Check:
    if numerics.device == "cuda":
        memory = bytes_text(torch.gpu_memory or 0)
        more = f", and {torch.num_gpus - 1} more" if torch.num_gpus > 1 else ""
        capability = numerics.instruction_set
        return Check("device", "ok", f"{numerics.device_model}, {memory}, compute capability {capability}{more}")
    found = f"{numerics.device_model}, {numerics.threads} threads, {numerics.instruction_set}"
    if shutil.which("nvidia-smi") is None:
        return Check("device", "ok", f"{found}; no GPU")
    reason = "this torch is built without CUDA" if torch.cuda is None else "torch finds no usable GPU"
    return Check("device", "note", f"{found}; {reason}", "see what `nvidia-smi` says; reinstall torch for its driver")


def _check_precision(numerics: Numerics) -> Check:
    if numerics.precision == "bf16":
        return Check("precision", "ok", "auto means bf16 here")
    return Check("precision", "ok", "auto means fp32 here: nothing on this machine computes bf16 faster")


def check_store(store: Store) -> Iterator[Check]:
    """Whether the store answers, takes objects, keeps two writers apart, and has this machine's time."""
    try:
        answer = try_store(store)
    except GridError as error:
        yield Check("store", "wrong", error.message, error.hint)
        return
    yield from judge_store(answer)


def judge_store(answer: StoreAnswer, *, place: str = "", own_clock: str = "this machine's") -> Iterator[Check]:
    """Whether the store can be used where it was asked; `place` ends the checks' names, as ` from a pod`."""
    if answer.error is not None:
        yield Check(f"store{place}", "wrong", answer.error, answer.hint)
        return
    yield Check(f"store{place}", "ok", f"{answer.uri} can be written and read")
    if answer.stamp is not None and answer.before is not None and answer.after is not None:
        skew = skew_seconds(answer.stamp, answer.before, answer.after)
        yield judge_clock(f"store's clock{place}", skew, "the store's clock", own_clock, "signatures and leases")
    if answer.is_conditional:
        yield Check(f"conditional writes{place}", "ok", "honoured: no run is ever trained twice at once")
    else:
        found = "not honoured: a run that is started in two places at once is trained twice, with the same numbers"
        cure = "another S3 server, or version of it, spares that; else run a grid from one place at a time"
        yield Check(f"conditional writes{place}", "note", found, cure)


def skew_seconds(stamp: float, before: float, after: float) -> float:
    """How far a clock that said `stamp` is ahead of one that said `before` earlier, and `after` later."""
    return stamp - after if stamp > after else min(0.0, stamp - before)


def judge_clock(name: str, skew: float, clock: str, other: str, goes_by_it: str) -> Check:
    """Whether a clock that is so many seconds ahead of another is near enough to it."""
    if abs(skew) <= SKEW_SECONDS:
        return Check(name, "ok", f"{clock} and {other} agree")
    direction = "ahead of" if skew > 0 else "behind"
    cure = f"let both keep time by NTP: {goes_by_it} go by it"
    return Check(name, "wrong", f"{clock} is {abs(skew):.0f} s {direction} {other}", cure)


def check_cache() -> Iterator[Check]:
    """Whether this machine's cache can be written and its disk has room, and what decoded images take of it."""
    folder, usage = cache_folder(), cache_usage()
    held = f"{bytes_text(usage.num_bytes)} of decoded images, at most {bytes_text(usage.limit)}"
    yield check_space(folder, held)


def check_space(folder: Path, held: str) -> Check:
    """Whether `folder`, which holds what `held` says, can be written and its disk has room."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}: {held}; {bytes_text(free)} free"
    if not os.access(there, os.W_OK):
        cure = "let this user write it, or set GRID_CACHE to another"
        return Check("cache", "wrong", f"{folder}: not writable", cure)
    if free < DISK_WANTED:
        cure = "free some space, as `grid gc --cache --delete` does: images are decoded once, 2.6 GB for Caltech-101"
        return Check("cache", "note", found, cure)
    return Check("cache", "ok", found)


def data_set_names(store: Store) -> list[str]:
    """Names of the data sets in the store."""
    ending = "/index.json"
    keys = [entry.key for entry in store.list("datasets/")]
    return [key.removeprefix("datasets/").removesuffix(ending) for key in keys if key.endswith(ending)]


def check_data_sets(store: Store, wanted: Iterable[str] = (), published: Collection[str] = ()) -> Iterator[Check]:
    """Whether the data sets of the store can be read, and those `wanted` are among them.

    Those `published` are to be the ones that figures were published for.
    """
    wanted = list(dict.fromkeys(wanted))
    names = data_set_names(store)
    if not names and not wanted:
        yield Check("data sets", "note", "none yet", "`make demo` imports one, or `grid data import NAME FOLDER`")
    for name in dict.fromkeys([*names, *wanted]):
        try:
            index = read_index(store, name)
        except GridError as error:
            yield Check(f"data set {name}", "wrong", error.message, error.hint)
            continue
        found = f"{count_text(index.num_images(), 'image')} of {count_text(index.num_classes, 'class')}"
        other = other_split(index) if name in published else None
        if other is not None:
            yield Check(f"data set {name}", "note", f"{found}; {other}")
        else:
            yield Check(f"data set {name}", "ok", found)


def check_architectures(needs: Needs) -> Iterator[Check]:
    """Whether a trainer here will find the networks of a grid; read from source, none is imported."""
    for names, check, found in (
        (needs.classifiers, check_classifier, "torchvision has it"),
        (needs.factories, check_factory, "its source is there"),
    ):
        for name in names:
            try:
                check(name)
            except SpecError as error:
                yield Check(f"network {name}", "wrong", error.message, error.hint)
            else:
                yield Check(f"network {name}", "ok", found)


def check_weights(
    store: Store, names: Iterable[str], homes: Mapping[str, LackingWeights] | None = None
) -> Iterator[Check]:
    """Whether the store has the weights files that a grid starts from, and they are what their names say.

    `homes` says, of those that are missing, which runs start from them.
    """
    for name in dict.fromkeys(names):
        try:
            sha256 = weights_sha256(store, name)
        except DataError as error:
            lacking = (homes or {}).get(name)
            used = f"; {lacking_text(lacking)}" if lacking else ""
            yield Check(f"weights {name}", "wrong", f"{error.message}{used}", error.hint)
            continue
        vouched = hash_in_name(name)
        told = f"SHA-256 begins with {vouched}, as the name says" if vouched else f"SHA-256 {sha256[:12]}…"
        yield Check(f"weights {name}", "ok", f"in the store, {told}")


def guarded(name: str, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of `check`; an error that ends them is a check that went wrong."""
    try:
        yield from check()
    except GridError as error:
        yield Check(name, "wrong", error.message, error.hint)


def as_json(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """The checks as plain values."""
    return [asdict(check) for check in checks]
