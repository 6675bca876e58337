"""What training leaves behind it as it goes: metrics, log and checkpoints, written beside the steps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

from trainer.checkpoint import CheckpointStore, Progress, Snapshot, size_of
from trainer.events import EventFile, events_key
from trainer.failure import LOG_TAIL_LINES, GridError, StoreAway, StoreError
from trainer.history import Epoch
from trainer.lease import Lease
from trainer.logs import Line, human_lines, json_text, line_of
from trainer.result import EpochMetrics, Record
from trainer.store import Store
from trainer.telemetry import SILENT, Telemetry

LOG_LIMIT = 1 << 20  # bytes of an attempt's log in the store
LOG_SECONDS = 5.0  # until what was logged is in the store, where nothing else is being written

log = logging.getLogger(__name__)


class LogBuffer(logging.Handler):
    """Keeps an attempt's log as JSON lines until it is written to the store; of a long one its beginning and its end.

    Of `limit` bytes a quarter is for the beginning.
    """

    def __init__(self, limit: int = LOG_LIMIT) -> None:
        super().__init__()
        self.num_lines = 0  # logged so far
        self._limit = limit
        self._first: list[bytes] = []
        self._last: deque[bytes] = deque()
        self._first_room, self._last_size = limit // 4, 0
        self._num_left_out = 0
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        try:
            line = line_of(record)
            self._keep(f"{json_text(line)}\n".encode())
            self._tail.extend(human_lines(line))
        except Exception:  # noqa: BLE001 - no log ends a training; what is wrong is told on stderr
            self.handleError(record)

    def _keep(self, line: bytes) -> None:
        self.num_lines += 1
        if not self._last and len(line) <= self._first_room:
            self._first.append(line)
            self._first_room -= len(line)
            return
        self._last.append(line)
        self._last_size += len(line)
        while self._last_size > self._limit - self._limit // 4 and len(self._last) > 1:
            self._last_size -= len(self._last.popleft())
            self._num_left_out += 1

    def content(self) -> bytes:
        """The log so far, as it goes into the store."""
        with self.lock or nullcontext():
            gap = f"{self._num_left_out:,} lines are left out here: a log keeps {self._limit:,} bytes"
            left_out = [f"{json_text(Line(gap))}\n".encode()] if self._num_left_out else []
            return b"".join([*self._first, *left_out, *self._last])

    @property
    def tail(self) -> list[str]:
        """The last lines, for people."""
        with self.lock or nullcontext():
            return list(self._tail)


class Recorder:
    """Writes to the store in the order asked, in one thread; what fails there is raised at the next call here."""

    def __init__(
        self, store: Store, run: str, lease: Lease, log_buffer: LogBuffer, telemetry: Telemetry = SILENT
    ) -> None:
        self.store = store
        self.run = run
        self.lease = lease
        self.checkpoints = CheckpointStore(store, run, lease)
        self._log = log_buffer
        self._telemetry = telemetry
        self._rows: list[str] = []
        self._num_written = 0  # lines of the log that the store has
        self._events: EventFile | None = None
        self._events_end = 0.0  # of the attempt's newest epoch, seconds since 1970
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.is_checkpoint_in_flight = False

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def attempt_key(self, name: str) -> str:
        """Key of one of this attempt's own files."""
        return f"runs/{self.run}/attempts/{self.lease.attempt}/{name}"

    def record(self, row: EpochMetrics) -> None:
        """Add an epoch to this attempt's metrics.jsonl, and write the log so far."""
        self._rows.append(row.model_dump_json())
        text = "".join(f"{line}\n" for line in self._rows).encode()  # stores cannot append: the file is small
        self._submit(lambda: self.store.put(self.attempt_key("metrics.jsonl"), text))
        self._submit(self.write_log)
        self._submit(lambda: self._write_events(row))

    def write_events(self, started: float, begin: Callable[[], EventFile]) -> None:
        """From now on write the run's event file at each epoch's end, for TensorBoard.

        `begin` gives what earlier attempts left of it, and is called beside the training; `started`, in seconds since
        1970, is this attempt's.
        """

        def begin_events() -> None:
            self._events, self._events_end = begin(), started

        self._submit(begin_events)

    def _write_events(self, row: EpochMetrics) -> None:
        if self._events is not None:
            self._events_end += row.seconds
            self._events.add(Epoch(row, self._events_end))
            self.store.put(events_key(self.run), self._events.data)

    def checkpoint(
        self, progress: Progress, state: Snapshot, best: Snapshot | None, best_metrics: EpochMetrics | None
    ) -> None:
        """Write a checkpoint. The caller sees to it that none is in flight, or accepts to hold one more in memory."""
        self.is_checkpoint_in_flight = True

        def write() -> None:
            begun = time.monotonic()
            try:
                self.checkpoints.write(progress, state, best, best_metrics)
            finally:
                self.is_checkpoint_in_flight = False
            self._telemetry.checkpointed(size_of(state, best), time.monotonic() - begun)

        self._submit(write)

    def write_log(self) -> None:
        """Write this attempt's log so far. A store that refuses it ends no training: that is said in the log."""
        self.lease.check()
        num_lines, content = self._log.num_lines, self._log.content()
        try:
            self.store.put(self.attempt_key("log.txt"), content)
        except StoreAway:
            raise  # whatever it is asked for: it was waited for, for as long as an attempt waits
        except StoreError as error:
            log.warning("the attempt's log cannot be written: %s", error)
            num_lines = self._log.num_lines  # not again before there is more to write than this warning
        self._num_written = num_lines

    def write(self, name: str, record: Record) -> None:
        """Write one of this attempt's own files."""
        self.lease.check()
        self.store.put(self.attempt_key(name), record.model_dump_json(indent=2).encode())

    def check(self) -> None:
        """Raise what the writing thread met."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def finish(self) -> None:
        """Wait until all is written, then raise what failed."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """End the writing at an attempt's end, however it ended; what cannot be written any more is said in the log."""
        try:
            self.finish()
        except GridError as error:
            log.warning("the attempt's last files may be missing: %s", error)
        finally:
            try:
                self.write_log()
            except GridError as error:
                log.warning("the end of the attempt's log may be missing: %s", error)

    def _submit(self, write: Callable[[], object]) -> None:
        self.check()
        self._queue.put(write)

    def _next(self) -> Callable[[], object] | None:
        """The next write that was asked for; while there is none, what was logged since the log was written last."""
        while True:
            try:
                return self._queue.get(timeout=LOG_SECONDS)
            except queue.Empty:
                if self._log.num_lines > self._num_written and self._failure is None and not self.lease.lost:
                    return self.write_log

    def _work(self) -> None:
        while (write := self._next()) is not None:
            if self._failure is not None:
                continue  # later writes build on the one that failed
            try:
                self.lease.check()
                write()
            except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
                self._failure = error
