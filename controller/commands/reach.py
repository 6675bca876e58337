"""How a command reaches the cluster that a grid was submitted to: its settings, its namespace, who acts on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from controller.commands.surface import READING_SECONDS, WORKING_SECONDS, Waits, note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller.cluster import ApiRetry, Cluster, ClusterError
    from controller.grid import Grid
    from controller.local import Status
    from controller.registry import Submission
    from controller.settings import Settings
    from trainer.store import Store

DEFAULT_SETTINGS = "kind"


def _complete_settings(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from controller.settings import shipped_settings

    names = [CompletionItem(name) for name in shipped_settings() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


context_option = click.option(
    "--context", metavar="NAME", help="The kubeconfig's context to use. Default: its current one."
)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a command line says of a cluster: --settings, --setting and --context."""

    settings_name: str | None
    assignments: tuple[str, ...]
    context: str | None = None

    @property
    def is_asked(self) -> bool:
        """Whether it says anything: then there must be a cluster."""
        return bool(self.settings_name or self.assignments or self.context)


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --settings and --setting, how pods are made, handed on as `reach`."""
    return _settings_options(_with_reach(function))


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --settings, --setting and --context, which cluster a command is about, handed on as `reach`."""
    return _settings_options(context_option(_with_reach(function)))


def _with_reach(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def gathered(
        settings_name: str | None, assignments: tuple[str, ...], context: str | None = None, **others: Any
    ) -> Any:
        return function(reach=Reach(settings_name, assignments, context), **others)

    return gathered


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--setting",
        "assignments",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change one of the settings, such as parallelism=4 or resources.requests.cpu=2. May be repeated.",
    )(function)
    return click.option(
        "--settings",
        "settings_name",
        metavar="FILE",
        envvar="GRID_SETTINGS",
        shell_complete=_complete_settings,
        help="The cluster's side: a file, or `kind` or `gpu`, which come with the program (gpu needs --setting "
        "image=…). Default: GRID_SETTINGS, else what the grid was submitted with last, else kind.",
    )(function)


def settings_of(grid: str, store: Store, reach: Reach) -> Settings | None:
    """The settings that a command line means: those it names, else those of the grid's submission, if there was one."""
    from controller.archive import stored_settings
    from controller.settings import read_settings

    if reach.settings_name is not None:
        return read_settings(reach.settings_name, reach.assignments)
    return stored_settings(store, grid, reach.assignments)


def submitted_settings(grid: str, store: Store, reach: Reach) -> Settings:
    """The settings that a command line means, the default ones where a grid was not submitted yet."""
    from controller.settings import read_settings

    return settings_of(grid, store, reach) or read_settings(DEFAULT_SETTINGS, reach.assignments)


def submission_of(grid: Grid, store: Store, settings: Settings) -> Submission:
    """The grid as its ConfigMap has it."""
    from controller.registry import Submission

    return Submission(grid.name, grid.digest, store.uri, settings.store.uri or store.uri)


def touch(cluster: Cluster, submission: Submission, *, enter: bool = True) -> ClusterError | None:
    """Let a `grid serve` know that the store has something new of the grid; what refused that, if anything did.

    With `enter` it takes the grid up from now on, if it has not yet. Raises what no request would get past.
    """
    from controller.cluster import Forbidden, QuotaExceeded
    from controller.registry import enter_grid, touch_grid

    try:
        if enter:
            enter_grid(cluster, submission)
        else:
            touch_grid(cluster, submission)
    except (Forbidden, QuotaExceeded) as error:
        return error
    return None


@contextmanager
def open_namespace(
    namespace: str, context: str | None, *, patience_seconds: float = WORKING_SECONDS
) -> Iterator[Cluster]:
    """The namespace of the cluster that kubectl would use; waits for a server that does not answer are told."""
    from controller.cluster import open_cluster
    from trainer.store import Retry

    waits = Waits("the cluster", patience_seconds)

    def tell(retry: ApiRetry) -> None:
        waits.server = retry.server
        waits(
            Retry(
                operation=retry.operation,
                key=retry.target,
                kind=retry.kind,
                tries=retry.tries,
                delay=retry.delay,
                error=retry.error,
            )
        )

    with open_cluster(namespace, context=context, patience_seconds=patience_seconds, on_retry=tell) as cluster:
        yield cluster


def seen_on_cluster(
    grid: Grid, store: Store, standing: Status, settings: Settings, context: str | None, *, is_asked: bool
) -> Status:
    """How the grid stands, with Kubernetes' words; without them, which is told, where no cluster is to be had.

    Raises ClusterError where the cluster `is_asked` for.
    """
    from controller.cluster import ClusterError

    try:
        with open_namespace(settings.namespace, context, patience_seconds=READING_SECONDS) as cluster:
            return replace(standing, active=told_by_cluster(grid, store, standing, settings, cluster))
    except ClusterError as error:
        if is_asked:
            raise
        note(f"what Kubernetes says is left out: {error.message}")
        return standing


def told_by_cluster(
    grid: Grid, store: Store, standing: Status, settings: Settings, cluster: Cluster
) -> Mapping[str, str]:
    """How each unfinished run stands in Kubernetes' words, beside what the store says of who trains it elsewhere."""
    from controller.acted import grid_view, observation
    from controller.archive import read_intent
    from controller.mirror import Mirror
    from controller.reconcile import told
    from controller.standing import Work

    said = read_intent(store, grid.name)
    intent = "active" if said is None else said.intent
    view = grid_view(grid, standing.expansion, intent, settings, standing.known.held)
    with Mirror(cluster, queues=settings.queue is not None) as mirror:
        snapshot = mirror.snapshot()
    seen = observation(snapshot, {grid.name: view}, [standing.known])
    texts = told(seen)
    for run, text in standing.active.items():
        has_job = any(Work(run, is_test) in snapshot.jobs for is_test in (False, True))
        if text.startswith("running") and not has_job:  # on somebody's machine
            texts[run] = text
    return texts
