"""What training leaves behind it as it goes: metrics, log and checkpoints, written beside the steps."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from trainer.checkpoint import CheckpointStore, Progress, Snapshot
from trainer.failure import LOG_TAIL_LINES, GridError, encodable
from trainer.lease import Lease
from trainer.result import EpochMetrics, Record
from trainer.store import Store

log = logging.getLogger(__name__)


class LogBuffer(logging.Handler):
    """Keeps an attempt's log lines until they are written to the store."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.lines.append(encodable(self.format(record)))

    @property
    def tail(self) -> list[str]:
        """The last lines."""
        return self.lines[-LOG_TAIL_LINES:]


class Recorder:
    """Writes to the store in the order asked, in one thread; what fails there is raised at the next call here."""

    def __init__(self, store: Store, run: str, lease: Lease, log_buffer: LogBuffer) -> None:
        self.store = store
        self.run = run
        self.lease = lease
        self.checkpoints = CheckpointStore(store, run, lease)
        self._log = log_buffer
        self._rows: list[str] = []
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

    def checkpoint(
        self, progress: Progress, state: Snapshot, best: Snapshot | None, best_metrics: EpochMetrics | None
    ) -> None:
        """Write a checkpoint. The caller sees to it that none is in flight, or accepts to hold one more in memory."""
        self.is_checkpoint_in_flight = True

        def write() -> None:
            try:
                self.checkpoints.write(progress, state, best, best_metrics)
            finally:
                self.is_checkpoint_in_flight = False

        self._submit(write)

    def write_log(self) -> None:
        """Write this attempt's log so far."""
        self.lease.check()
        self.store.put(self.attempt_key("log.txt"), "".join(f"{line}\n" for line in self._log.lines).encode())

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
            self.write_log()
        except GridError as error:
            log.warning("the attempt's last files may be missing: %s", error)

    def _submit(self, write: Callable[[], object]) -> None:
        self.check()
        self._queue.put(write)

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # later writes build on the one that failed
            try:
                self.lease.check()
                write()
            except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
                self._failure = error
