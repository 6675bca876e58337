"""`grid gc` and `doctor`: what the store need not keep, and what is wrong with it, this machine or a cluster."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from controller.commands.reach import DEFAULT_SETTINGS, Reach, cluster_options, open_namespace, settings_of
from controller.commands.surface import (
    READING_SECONDS,
    complete_grid,
    grid_facts,
    json_option,
    named_grid,
    note,
    print_json,
    store_option,
    store_uri,
    tell,
    the_store,
    width_of_output,
)
from controller.wording import bytes_text, count_text, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from controller.archive import Wants
    from controller.doctor import Check
    from controller.gc import Removal, Unwanted
    from controller.grid import Grid
    from controller.manifest import JobTemplate
    from controller.plan import LackingWeights
    from controller.search import Needs
    from controller.settings import Settings
    from trainer.store import Store

SHOWN = 40
WORTH_TELLING = 1_000_000_000  # bytes of decoded images that are spoken of unasked
MARK_WIDTH = 6  # characters before what a check found


@click.command()
@store_option
@click.option("--delete", is_flag=True, help="Remove what is shown. Without it nothing is touched.")
@click.option("--datasets", "data_sets", is_flag=True, help="Data sets that no grid names, too, once a day old.")
@click.option(
    "--forget",
    metavar="GRID",
    multiple=True,
    help="Count GRID as gone: its decisions, and runs that no other grid wants, are among what goes. May be repeated.",
)
@click.option("--cache", is_flag=True, help="This machine's decoded images and copies of results, too.")
@json_option
def gc(delete: bool, data_sets: bool, forget: tuple[str, ...], cache: bool, as_json: bool) -> None:
    """Show what no grid in the store wants, and with --delete remove it.

    That is: runs of no grid, blobs that no checkpoint or result names, shards of replaced imports, temporary files
    older than a day. A run that is being trained is never touched. While it cannot be told what a grid wants, no run
    and no data set goes.
    With --cache also what this machine keeps of decoded images, and of results that it read from a server.

    \b
    Examples:
      grid gc
      grid gc --delete
      grid gc --forget old_grid --delete
      grid gc --cache --delete
    """
    from controller.copies import copies_file
    from controller.gc import Removal, find_unwanted, read_contents, remove, sweep_temporary
    from trainer.cache import cache_usage, remove_unused

    store = the_store()
    wants = _wants(store, forget)
    found = find_unwanted(read_contents(store, wants), wants, time.time(), data_sets=data_sets)
    done = remove(store, found, forget) if delete else Removal()
    num_swept = sweep_temporary(store) if delete else 0
    usage = cache_usage()
    num_freed = remove_unused(usage.folder, 0) if delete and cache else 0
    if delete and cache:
        copies_file().unlink(missing_ok=True)
    if as_json:
        shown = {"folder": str(usage.folder), "bytes": usage.num_bytes, "bytes_removed": num_freed}
        untold = {name: each.untold for name, each in wants.items() if each.untold is not None}
        print_json({**_gc_json(found, done, num_swept, delete), "untold_grids": untold, "cache": shown})
        return
    for each in wants.values():
        if each.untold is not None:
            tell(f"warning: {each.untold}; until then all runs and data sets stay", err=True)
    for item in found[:SHOWN]:
        tell(f"{item.kind} {item.name}: {item.why}, {bytes_text(item.size)}")
    if len(found) > SHOWN:
        click.echo(f"and {len(found) - SHOWN:,} more: --json has them all")
    for item in done.held:
        doing = "trained" if item.kind in ("run", "blobs") else "imported"
        note(f"{item.kind} {item.name} is being {doing} and stays")
    for item in done.wanted:
        note(f"{item.kind} {item.name} is wanted by now and stays")
    if not found and not num_swept:
        spared = any(each.untold is not None for each in wants.values())
        click.echo(f"nothing to remove: grids {'may ' if spared else ''}want all there is")
    elif delete:
        swept = f", and {count_text(num_swept, 'temporary file')}" if num_swept else ""
        click.echo(f"removed {_total(done.removed)}{swept}")
    else:
        click.echo(f"{_total(found)} that no grid wants; --delete removes it")
    if num_freed:
        tell(f"removed {bytes_text(num_freed)} of decoded images from {usage.folder}; what runs use stays")
    elif cache or usage.num_bytes > WORTH_TELLING:
        tell(
            f"this machine keeps {bytes_text(usage.num_bytes)} of decoded images in {usage.folder}; "
            "`grid gc --cache --delete` removes them",
            err=not cache,
        )


def _total(items: list[Unwanted]) -> str:
    return f"{count_text(len(items), 'thing')}, {bytes_text(sum(item.size for item in items))}"


def _wants(store: Store, forget: tuple[str, ...]) -> Mapping[str, Wants]:
    """What the grids of the store want, all but those to forget. Raises SpecError where there is none to forget."""
    from controller.archive import stored_grids, wanted_of
    from trainer.failure import SpecError

    names = stored_grids(store)
    for name in forget:
        if name not in names:
            raise SpecError(f"--forget: got {name!r}, expected a grid in {store.uri}: {', '.join(names) or 'none'}")
    return wanted_of(store, frozenset(names) - frozenset(forget))


def _gc_json(found: list[Unwanted], done: Removal, num_swept: int, delete: bool) -> dict[str, object]:
    states = dict.fromkeys(done.removed, "removed") | dict.fromkeys(done.held, "held")
    states |= dict.fromkeys(done.wanted, "wanted")
    return {
        "deleted": delete,
        "unwanted": [
            {
                "kind": item.kind,
                "name": item.name,
                "why": item.why,
                "bytes": item.size,
                "keys": item.keys,
                "state": states.get(item, "shown"),
            }
            for item in found
        ],
        "bytes": sum(item.size for item in found),
        "bytes_removed": done.size,
        "temporary_files_removed": num_swept,
    }


@click.command()
@click.argument("grid", metavar="[GRID]", required=False, shell_complete=complete_grid)
@store_option
@cluster_options
@click.option(
    "--probe/--no-probe",
    "probes",
    default=True,
    help="Whether a pod, made as those of runs are, tries image, store and GPU. Default: it does, where a cluster is "
    "looked at.",
)
@json_option
def doctor(
    grid: str | None,
    reach: Reach,
    probes: bool,
    as_json: bool,
) -> None:
    """Check this machine and the store, and with GRID what that grid needs; say what to do about each.

    With --settings, --setting or --context, or where GRID was submitted, the cluster is checked too: rights, quotas,
    queue, nodes, and in a pod of the runs' own making image, store and clock. Exits 0 if nothing is wrong, 1 otherwise.

    \b
    Examples:
      grid doctor
      grid doctor from_scratch --store s3://bucket/lab
      grid doctor --settings lab.yaml --no-probe
    """
    from controller.doctor import as_json as plain_values

    checks = []
    for check in _checks(grid, reach, probes=probes):
        checks.append(check)
        if not as_json:
            _tell(check)
    num_wrong = sum(check.state == "wrong" for check in checks)
    if as_json:
        print_json({"ok": num_wrong == 0, "checks": plain_values(checks)})
    else:
        click.echo("nothing is wrong" if not num_wrong else f"{count_text(num_wrong, 'thing')} wrong")
    if num_wrong:
        raise SystemExit(1)


def _checks(given: str | None, reach: Reach, *, probes: bool) -> Iterator[Check]:
    from controller import doctor
    from controller.search import wanted
    from trainer.failure import GridError

    grid = needs = settings = None
    if given is not None:
        try:
            grid = named_grid(given)
            needs = wanted(grid)
            yield doctor.Check("grid", "ok", f"{given} can be read")
            yield from doctor.check_architectures(needs)
        except GridError as error:
            yield doctor.Check("grid", "wrong", error.message, error.hint)
    try:
        settings = _cluster_settings(grid.name if grid else given, reach)
    except GridError as error:
        yield doctor.Check("settings", "wrong", error.message, error.hint)
    yield from doctor.check_machine()
    if not reach.is_asked and settings is None:  # else this machine is not where runs are trained
        yield from doctor.check_torch()
        yield from doctor.guarded("cache", doctor.check_cache)
    yield from _store_checks(grid, needs)
    if settings is None:
        return
    try:
        template = _template(grid, settings)
    except GridError as error:
        yield doctor.Check("settings", "wrong", error.message, error.hint)
        return
    yield from doctor.guarded("cluster", lambda: _cluster_checks(template, reach.context, probes=probes))


def _store_checks(grid: Grid | None, needs: Needs | None) -> Iterator[Check]:
    from controller import doctor
    from controller.plan import published_data
    from trainer.failure import GridError

    try:
        store = the_store(patience_seconds=10)
    except GridError as error:
        yield doctor.Check("store", "wrong", error.message, error.hint)
        return
    checks = list(doctor.check_store(store))
    yield from checks
    if checks[0].state == "wrong":
        return
    data, weights = (needs.data, needs.weights) if needs else ((), ())
    published = published_data(grid) if grid is not None else ()
    yield from doctor.guarded("data sets", lambda: doctor.check_data_sets(store, data, published))
    homes = _lacking(grid, store) if grid is not None and weights else {}
    yield from doctor.guarded("weights", lambda: doctor.check_weights(store, weights, homes))


def _lacking(grid: Grid, store: Store) -> Mapping[str, LackingWeights]:
    """Of each weights file that is missing, which runs of the grid start from it; none known where it has no plan."""
    from controller.archive import gather_facts
    from controller.plan import lacking_weights
    from controller.search import expand, wanted
    from trainer.failure import DataError, GridError

    lacking: dict[str, DataError] = {}
    with suppress(GridError):  # what else is wrong is told beside
        facts = gather_facts(store, wanted(grid), lacking=lacking)
        return {each.file: each for each in lacking_weights(expand(grid, {}, facts), lacking)}
    return {}


def _cluster_settings(grid: str | None, reach: Reach) -> Settings | None:
    """The settings of the cluster that is meant; none where no cluster is. Raises SpecError."""
    from controller.settings import read_settings
    from trainer.failure import StoreError

    if reach.settings_name is not None or (grid is None and reach.is_asked):
        return read_settings(reach.settings_name or DEFAULT_SETTINGS, reach.assignments)
    if grid is None:
        return None
    try:
        stored = settings_of(grid, the_store(patience_seconds=READING_SECONDS), reach)
    except StoreError:  # which is told where the store is looked at
        stored = None
    return stored or (read_settings(DEFAULT_SETTINGS, reach.assignments) if reach.is_asked else None)


def _cluster_checks(template: JobTemplate, context: str | None, *, probes: bool) -> Iterator[Check]:
    from controller.readiness import check_cluster

    namespace = template.settings.namespace
    with open_namespace(namespace, context, patience_seconds=READING_SECONDS) as cluster:
        yield from check_cluster(cluster, template, probes=probes, tell=note)


def _template(grid: Grid | None, settings: Settings) -> JobTemplate:
    """What makes the Jobs; of a grid whose plan cannot be made now, with what any would ask for. Raises SpecError."""
    from controller.acted import job_template
    from controller.manifest import JobTemplate
    from controller.search import expand
    from trainer.failure import GridError

    if grid is not None:
        with suppress(GridError):  # what is wrong is told of the grid, or of the store
            store = the_store(patience_seconds=READING_SECONDS)
            facts = grid_facts(grid, store)
            return job_template(grid, expand(grid, {}, facts), facts, store, settings)
    return JobTemplate(settings, store_uri())


def _tell(check: Check) -> None:
    styled = {"ok": click.style("ok   ", fg="green"), "note": click.style("note ", fg="yellow")}
    mark = styled.get(check.state) or click.style("WRONG", fg="red", bold=True)
    room = width_of_output() - MARK_WIDTH
    found = f"{check.name}: {check.found}".splitlines()
    first, *rest = [part for line in found for part in wrapped(line, room, hang=0)]
    click.echo(f"{mark} {first}")
    for line in rest:
        click.echo(" " * MARK_WIDTH + line)
    if check.cure:
        tell(f"hint: {check.cure}", indent=MARK_WIDTH)
