"""One attempt as a process of the local backend, forked from a server that holds torch already.

Nothing here loads torch: the controller imports this module to name `run_attempt`. The server loads it once
(`PRELOAD`), so that a run starts in milliseconds where a fresh interpreter would import for seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from trainer.__main__ import Emit, main
from trainer.logs import log_to_stderr
from trainer.machine import forget_peak_memory
from trainer.stop import StopSignal

PRELOAD = "trainer.preload"
"""The module that loads all a run needs; the server imports it."""

BLOCKED_AT_START = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that whoever starts the server blocks, until `run_attempt` has its handlers: none is lost, none kills."""


def report_load(reports: Connection) -> None:
    """Send why the server that this process is forked from could not load torch, none where it did."""
    error = import_module(PRELOAD).load_error
    with suppress(OSError):  # whoever asked has ended meanwhile: stopped, or there was nothing to train after all
        reports.send(error)


def run_attempt(argv: Sequence[str], environment: Mapping[str, str], log_path: str, events: Connection) -> NoReturn:
    """Run one attempt as `python -m trainer ARGV` would, and exit with its code.

    1. A stop is heard from the first moment on; a terminal's SIGINT is left to the parent. The server's peak of memory
       is none of the run's.
    2. Output goes to `log_path`, below Python too, so that a crash leaves its trace.
    3. Progress goes to `events`; when the parent dies, the run saves and stops.
    """
    stop = StopSignal()
    stop.listen(ignore_interrupt=True)
    forget_peak_memory()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_AT_START)
    _redirect_output(log_path)
    os.environ.update(environment)  # before the first operation: torch's threads and CUDA start with it
    _watch_parent(stop)
    sys.exit(main(argv, emit=_sender(events), stop=stop))


def _redirect_output(log_path: str) -> None:
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    log_to_stderr("text")  # whoever started this run shows people its last lines, should it be killed


def _watch_parent(stop: StopSignal) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        stop.request("the process that started this run ended")

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _sender(events: Connection) -> Emit:
    def send(event: dict[str, Any]) -> None:
        with suppress(OSError):  # the parent is gone: `_watch_parent` sees to it
            events.send(event)

    return send
