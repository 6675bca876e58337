"""Who trains a run: one attempt at a time, by a file lock on one host and a lease in the store between hosts."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import secrets
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from trainer.failure import GridError, Stopped
from trainer.lock import HostLock
from trainer.machine import cache_folder
from trainer.result import Record, parse_record
from trainer.stop import StopSignal
from trainer.store import Conflict, NotFound, Store

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 30.0  # a lease that nobody renewed for so long has lost its holder

log = logging.getLogger(__name__)


class LeaseRecord(Record):
    """`runs/<id>/lease.json`: the attempt that may write."""

    holder: str = Field(description="host and process, for people: `node-1:4711`")
    host: str = Field(description="the booted machine or pod: equal hosts share their file locks")
    attempt: str
    heartbeat: datetime = Field(description="when the holder last renewed it, by its own clock")
    released: bool = Field(default=False, description="whether the holder is done with it")
    epoch: int = Field(default=0, description="epochs the run has done, for whoever asks how far it is")
    validation_accuracy: float | None = None

    @property
    def node(self) -> str:
        """The host's name, or the pod's."""
        return self.holder.rpartition(":")[0]


def lease_key(run: str) -> str:
    """Where the run's lease lives."""
    return f"runs/{run}/lease.json"


def run_lock(store: Store, run: str) -> HostLock:
    """The host's lock on training `run` in `store`."""
    return HostLock(store.lock_path(f"run-{run}"))


class Lease:
    """This attempt's right to write a run, renewed beside the training until it is released or lost."""

    def __init__(self, store: Store, run: str, stop: StopSignal) -> None:
        self.store = store
        self.run = run
        self.stop = stop
        self.lost = False
        self.epoch = 0
        self.validation_accuracy: float | None = None
        self.attempt = ""
        self._lock = run_lock(store, run)
        self._version: str | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease, name this attempt, and begin to renew it. Raises Stopped while another attempt holds it."""
        if not self._lock.acquire():
            raise Stopped(f"run {self.run} is being trained by another process of this host")
        try:
            self._take()
        except NotFound as error:
            self._lock.release()
            raise Stopped(f"run {self.run}: someone removed its lease while this attempt looked at it") from error
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        key = lease_key(self.run)
        try:
            data, version = self.store.get_versioned(key)
        except NotFound:
            self.attempt = _attempt_name(1)
            with suppress(Conflict):
                self._version = self.store.create(key, self._record().model_dump_json().encode())
                return
            data, version = self.store.get_versioned(key)
        previous = parse_record(LeaseRecord, key, data)
        if not previous.released and previous.host != this_host():
            self._await_expiry(previous, version)
        self.attempt = _attempt_name(attempt_number(previous.attempt) + 1)
        try:
            self._version = self.store.replace(key, self._record().model_dump_json().encode(), version)
        except Conflict as error:
            raise Stopped(f"run {self.run}: another attempt took the lease at the same moment") from error

    def _await_expiry(self, previous: LeaseRecord, version: str) -> None:
        """Return once the lease stood still for EXPIRY_SECONDS by this clock alone: hosts' clocks may differ."""
        log.info("waiting %.0f s for the lease of %s to expire", EXPIRY_SECONDS, previous.holder)
        deadline = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1)
            self.stop.check()
            if self.store.get_versioned(lease_key(self.run))[1] != version:
                raise Stopped(f"run {self.run} is being trained by {previous.holder}, attempt {previous.attempt}")

    def _record(self, *, released: bool = False) -> LeaseRecord:
        return LeaseRecord(
            holder=f"{platform.node()}:{os.getpid()}",
            host=this_host(),
            attempt=self.attempt,
            heartbeat=datetime.now(UTC),
            released=released,
            epoch=self.epoch,
            validation_accuracy=self.validation_accuracy,
        )

    def _renew(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            self._write(released=False)

    def _write(self, *, released: bool) -> None:
        if self.lost or self._version is None:
            return
        data = self._record(released=released).model_dump_json().encode()
        try:
            self._version = self.store.replace(lease_key(self.run), data, self._version)
        except (Conflict, NotFound):
            self.lose()
        except GridError as error:
            log.warning("could not renew the lease: %s", error.message)

    def lose(self) -> None:
        """Stop, and write nothing any more: another attempt has the run."""
        self.lost = True
        self.stop.request(f"run {self.run}: the lease went to another attempt")

    def check(self) -> None:
        """Raise Stopped if the lease is lost: nothing may be written any more."""
        if self.lost:
            raise Stopped(f"run {self.run}: the lease went to another attempt")

    def release(self) -> None:
        """Stop renewing and let the next attempt begin at once."""
        self._done.set()
        try:
            if self._thread is not None:
                self._thread.join()
                self._write(released=True)
        finally:
            self._lock.release()


def this_host() -> str:
    """A name that two processes share only if they share their file locks: host or pod, boot, and cache folder."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "-"
    locks = hashlib.sha256(str(cache_folder().resolve()).encode()).hexdigest()[:8]
    return f"{platform.node()}/{boot}/{locks}"


def attempt_number(attempt: str) -> int:
    """The number of an attempt, from 1, which its name begins with."""
    return int(attempt.partition("-")[0])


def _attempt_name(number: int) -> str:
    # the random part keeps two attempts apart that a store without conditional writes let begin at once
    return f"{number:04d}-{secrets.token_hex(4)}"
