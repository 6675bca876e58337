"""`grid logs`: what a run wrote, from its pod or from the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from controller.commands.reach import Reach, cluster_options, open_namespace, submitted_settings
from controller.commands.surface import READING_SECONDS, json_option, note, print_json, store_option, the_store
from controller.wording import plain

if TYPE_CHECKING:
    from controller.cluster import Cluster
    from controller.jobs import PodView
    from trainer.store import Store

LOG_AGAIN_SECONDS = 1.0  # between two looks for a pod that has not started yet


@click.command()
@click.argument("run", metavar="RUN")
@store_option
@cluster_options
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the pod has ended.")
@json_option
def logs(
    run: str,
    reach: Reach,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the log of RUN, by its id: of its pod, or of its last attempt in the store where the pod is gone.

    \b
    Examples:
      grid logs resnet18-0123456789ab
      grid logs -f resnet18-0123456789ab
    """
    store = the_store(patience_seconds=READING_SECONDS)
    lines = _pod_lines(run, store, reach, follow=follow)
    for line in lines if lines is not None else _stored_lines(run, store):
        if as_json:
            print_json({"run": run, "line": line}, indent=None)
        else:
            click.echo(plain(line))


def _pod_lines(
    run: str,
    store: Store,
    reach: Reach,
    *,
    follow: bool,
) -> Iterator[str] | None:
    """The log of the run's newest pod, in whatever namespace its grids were submitted to; none where there is none."""
    from controller.cluster import ENDING_ERRORS, ClusterError

    for namespace in _namespaces(store, reach):
        opened = open_namespace(namespace, reach.context, patience_seconds=READING_SECONDS)
        try:
            cluster = click.get_current_context().with_resource(opened)
            pods = _pods_of(cluster, run)
        except ClusterError as error:
            if reach.settings_name is not None:
                raise
            note(f"pods of namespace {namespace} are not looked at: {error.message}")
            if isinstance(error, ENDING_ERRORS):
                return None
            continue
        if pods:
            return _lines_of(cluster, pods[-1], run, follow=follow)
    return None


def _namespaces(store: Store, reach: Reach) -> list[str]:
    from controller.archive import stored_grids, stored_settings

    if reach.settings_name is not None:
        return [submitted_settings("", store, reach).namespace]
    found = (stored_settings(store, name, reach.assignments) for name in stored_grids(store))
    return list(dict.fromkeys(each.namespace for each in found if each is not None))


def _pods_of(cluster: Cluster, run: str) -> list[PodView]:
    from controller.cluster import PODS
    from controller.jobs import RUN_LABEL, pod_view

    pods = cluster.list(PODS, pod_view, selector=f"{RUN_LABEL}={run}").items
    return sorted(pods, key=lambda pod: pod.created)


def _lines_of(cluster: Cluster, pod: PodView, run: str, *, follow: bool) -> Iterator[str]:
    """The pod's lines; with `follow` its start is waited for. Raises NotStarted without."""
    from controller.cluster import NotStarted
    from controller.jobs import CONTAINER

    told = ""
    while True:
        try:
            yield from cluster.logs(pod.name, follow=follow, container=CONTAINER)
            return
        except NotStarted as error:
            if not follow:
                raise
            if error.waiting_for != told:
                told = error.waiting_for
                note(f"pod {pod.name} has not started" + (f": {told}" if told else ""))
            time.sleep(LOG_AGAIN_SECONDS)
            pod = (_pods_of(cluster, run) or [pod])[-1]


def _stored_lines(run: str, store: Store) -> list[str]:
    """The log of the run's newest attempt that left one, else its failure. Raises SpecError where it left neither."""
    from controller.knowledge import read_failures
    from controller.standing import failure_text
    from trainer.failure import SpecError

    names = ("/log.txt", "/output.txt")
    keys = [entry.key for entry in store.list(f"runs/{run}/attempts/") if entry.key.endswith(names)]
    if not keys and (failure := read_failures(store, [run]).get(run)) is not None:
        note(f"it left no log: this is what its failure in {store.uri} keeps of its output")
        return failure.log_tail or failure_text(failure, with_hint=True).splitlines()
    if not keys:
        raise SpecError(
            f"run: got {run!r}, of which there is no pod and no log in {store.uri}, expected the id of a run",
            hint="`grid status GRID --json` shows the ids of its runs",
        )
    note(f"no pod of it was seen: this is {max(keys)} in {store.uri}")
    return store.get(max(keys)).decode(errors="replace").splitlines()
