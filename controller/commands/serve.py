"""`grid serve`: the controller in the cluster."""

from __future__ import annotations

import gc as garbage
import logging
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

import click

from controller import interrupts
from controller.commands.reach import context_option
from controller.commands.runs import leave_tables, table_of
from controller.commands.surface import store_option, store_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from controller.acted import ActedGrid
    from controller.cluster import ApiRetry, Cluster
    from controller.health import Log
    from trainer.stop import StopSignal

GARBAGE_THRESHOLD = 50_000  # objects; a process that lives for weeks cannot leave its garbage lying, as commands do


@click.command()
@store_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9090,
    show_default=True,
    help="Where /healthz, /readyz and /metrics answer; 0 is any free one.",
)
@click.option(
    "--namespace",
    metavar="NAME",
    help="Whose grids it acts on. Default: the pod's own; outside of a pod experiment-grid.",
)
@context_option
def serve(port: int, namespace: str | None, context: str | None) -> None:
    """Act for ever on every grid that is submitted to a namespace, stage after stage: the controller in the cluster.

    Of several, one acts and the others follow. `grid submit` then only hands a grid over. It acts on grids whose store
    is its own. SIGTERM or Ctrl-C ends it with exit code 0, and another goes on where it was; a second one at once.

    \b
    Examples:
      grid serve                                       in a pod, as k8s/base/controller.yaml has it
      grid serve --namespace lab --store s3://lab      on any machine that reaches cluster and store
    """
    from controller.health import Log
    from trainer.failure import GridError
    from trainer.logs import asked_form, log_to_stderr

    log_to_stderr(level=logging.WARNING)  # of libraries; what happens is told by the Log
    form, _ = asked_form()
    log = Log(sys.stderr, form)
    try:
        _serve(port, namespace, context, log)
    except GridError as error:
        if form == "text":
            raise  # told as every command's
        log.write("error", str(error))
        click.get_current_context().exit(int(error.exit_code))


def _serve(port: int, namespace: str | None, context: str | None, log: Log) -> None:
    from controller.health import HealthServer
    from controller.serve import PATIENCE_SECONDS, Controller
    from controller.telemetry import ControllerTelemetry
    from trainer.stop import StopSignal
    from trainer.store import open_store
    from trainer.telemetry import PATH

    garbage.set_threshold(GARBAGE_THRESHOLD)
    stop = StopSignal()
    _listen(stop)
    telemetry = ControllerTelemetry()
    store = open_store(store_uri(), patience_seconds=PATIENCE_SECONDS, on_request=telemetry.asked)
    controller = Controller(
        _connect(namespace, context), store, log, stop=stop, leave_tables=leave_tables_of, telemetry=telemetry
    )
    paths = {"/healthz": controller.rounds.answer, "/readyz": controller.ready}
    with HealthServer(port, paths, {PATH: telemetry.answer}) as health:
        log.write("info", f"serves the grids of {store.uri}; http://localhost:{health.port}/readyz says how it is")
        controller.run()


def _listen(stop: StopSignal) -> None:
    """From now on SIGTERM and SIGINT ask for a stop; the second one ends the process at once."""

    def hear(number: int, _frame: FrameType | None) -> None:
        if stop.reason is not None:
            interrupts.end(0)
        stop.request(f"told to stop by {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))  # held back by the image's entry point


def _connect(namespace: str | None, context: str | None) -> Callable[..., Cluster]:
    from controller.cluster import open_cluster
    from controller.cluster.kubeconfig import find
    from controller.settings import Settings

    found = find(None, context)  # none at all is no outage
    own = found.namespace if found.files is None else None
    chosen = namespace or own or Settings.model_fields["namespace"].default

    def connect(*, patience_seconds: float, on_retry: Callable[[ApiRetry], None]) -> Cluster:
        return open_cluster(chosen, context=context, patience_seconds=patience_seconds, on_retry=on_retry)

    return connect


def leave_tables_of(acted: ActedGrid) -> None:
    """Put the grid's tables into its store, from what is known of it already."""
    from controller.local import Status
    from controller.selection import told_waiting

    sight = acted.sight
    waiting = {stage: each.reason for stage, each in sight.waiting.items()}
    standing = Status(told_waiting(sight.expansion, waiting), acted.facts, sight.known, {}, waiting, ())
    leave_tables(table_of(acted.grid, standing, acted.store), acted.store)
