"""What a store knows of a grid's runs, read into values: results, tests, failures, decisions, and who trains now."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from controller.copies import Copies
from controller.noise import Answers, answers_of
from controller.predicted import parse_predictions
from controller.search import Decision, Expansion
from trainer.failure import DataError, Failure
from trainer.lease import LeaseRecord, lease_key
from trainer.result import Result, ResultNumbers, TestResult, parse_record
from trainer.store import NotFound, Store

RESULTS, TESTS, FAILURES = "results/", "tests/", "failures/"
NUM_CONNECTIONS = 32  # objects of a remote store that are under way at once
FEW = 64  # so many objects are asked for, or missed, one by one before a listing is paged through

MOST_ANSWERS = 64  # tests whose predictions one table reads: a megabyte or so each

OfRun = TypeVar("OfRun", Result, ResultNumbers, TestResult, Failure)


def read_results(
    store: Store, runs: Collection[str] | None = None, known: Mapping[str, Result] | None = None
) -> dict[str, Result]:
    """Results by run id, of `runs` or of all; a run without one is left out.

    A result never changes: what `known` holds is taken from there and not read again. Raises DataError on a corrupt
    one.
    """
    return _read_runs(store, RESULTS, Result, runs, known or {})


def runs_with_results(store: Store) -> list[str]:
    """Ids of all runs that have a result, of whatever grid."""
    return _present(store, RESULTS)


def runs_with_tests(store: Store) -> list[str]:
    """Ids of all runs that have numbers on the test part, of whatever grid."""
    return _present(store, TESTS)


def read_numbers(
    store: Store, runs: Collection[str] | None = None, known: Mapping[str, ResultNumbers] | None = None
) -> dict[str, ResultNumbers]:
    """The part of the results that tables show, as `read_results` reads them whole: a table needs no more."""
    return _read_runs(store, RESULTS, ResultNumbers, runs, known or {})


def read_tests(
    store: Store, runs: Collection[str] | None = None, known: Mapping[str, TestResult] | None = None
) -> dict[str, TestResult]:
    """Numbers on the test part by run id, as `read_results` reads results."""
    return _read_runs(store, TESTS, TestResult, runs, known or {})


def read_test_answers(store: Store, expansion: Expansion, tests: Mapping[str, TestResult]) -> dict[str, Answers]:
    """What runs answered on the test part, by run id, for the test stages that have two tested rows to compare.

    A stage is read whole or not at all: MOST_ANSWERS in all stages together. A run whose predictions are missing, or
    cannot be read, is left out: the numbers of its test stand without them.
    """
    wanted: dict[str, str] = {}  # run by key
    for stage in expansion.stages:
        rows = [[run.id for run in row.runs if run.id in tests] for row in stage.experiments] if stage.is_test else []
        further = {tests[run].predictions: run for runs in rows for run in runs}
        if sum(map(bool, rows)) >= 2 and len(wanted | further) <= MOST_ANSWERS:
            wanted |= further
    read = {}
    for key, data in _tried(store, list(wanted)):
        with suppress(DataError):
            read[wanted[key]] = answers_of(parse_predictions(key, data))
    return read


def read_failures(store: Store, runs: Collection[str] | None = None) -> dict[str, Failure]:
    """Failures by run id, as `read_results` reads results; always read anew, since `grid retry` clears them."""
    return _read_runs(store, FAILURES, Failure, runs, {})


def read_decisions(store: Store, grid: str) -> dict[str, Decision]:
    """What the stages of `grid` have kept so far, by stage. Raises DataError on a corrupt decision."""
    prefix = f"grids/{grid}/decisions/"
    keys = [entry.key for entry in store.list(prefix) if entry.key.endswith(".json")]
    return {_name(key, prefix): parse_record(Decision, key, data) for key, data in _listed(store, keys)}


def read_leases(store: Store, runs: Collection[str]) -> dict[str, LeaseRecord]:
    """The lease of each of `runs` that ever had one, by run id."""
    keys = {lease_key(run): run for run in runs}
    return {keys[key]: parse_record(LeaseRecord, key, data) for key, data in _tried(store, list(keys))}


def _read_runs(
    store: Store, prefix: str, model: type[OfRun], runs: Collection[str] | None, known: Mapping[str, OfRun]
) -> dict[str, OfRun]:
    listing = {} if runs is not None else _versions(store, prefix)
    wanted = list(dict.fromkeys(runs)) if runs is not None else [_name(key, prefix) for key in listing]
    read = {run: known[run] for run in wanted if run in known}
    keys = [f"{prefix}{run}.json" for run in wanted if run not in known]
    for key, data in (
        _those_there(store, prefix, keys) if runs is not None else _copied(store, {key: listing[key] for key in keys})
    ):
        run = _name(key, prefix)
        read[run] = record = parse_record(model, key, data)
        if record.run != run:
            raise DataError(
                f"{key}: holds run {record.run}, expected {run}",
                hint="remove this object and run the grid again: what it should hold is computed anew",
            )
    return {run: read[run] for run in wanted if run in read}


def _present(store: Store, prefix: str) -> list[str]:
    return [_name(key, prefix) for key in _versions(store, prefix)]


def _versions(store: Store, prefix: str) -> dict[str, str]:
    """The records below `prefix`, and of which version each is."""
    return {entry.key: entry.version for entry in store.list(prefix) if entry.key.endswith(".json")}


def _name(key: str, prefix: str) -> str:
    return key.removeprefix(prefix).removesuffix(".json")


def _is_folder(store: Store) -> bool:
    return store.uri.startswith("file:")


def _listed(store: Store, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Key and content of `keys`, which a listing named: what went since then is passed over."""
    start = 0
    while start < len(keys):
        try:
            for key, data in store.get_many(keys[start:], NUM_CONNECTIONS):
                start += 1
                yield key, data
        except NotFound:  # get_many keeps the order, so that the one that is gone is the first not yielded
            start += 1


def _copied(store: Store, listing: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Key and content of what a listing named: of a remote store from this machine's copies as far as they go."""
    if _is_folder(store) or len(listing) < FEW:
        yield from _listed(store, list(listing))
        return
    copies = Copies()
    there = copies.read(listing.values())
    yield from ((key, there[version]) for key, version in listing.items() if version in there)
    read: list[tuple[str, bytes]] = []
    for key, data in _listed(store, [key for key, version in listing.items() if version not in there]):
        read.append((listing[key], data))
        yield key, data
    copies.keep(read)


def _those_there(store: Store, prefix: str, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Key and content of those of `keys`, all below `prefix`, that are there; listed first where that costs less."""
    num_tried = len(keys) if len(keys) <= FEW else 0
    if _is_folder(store):
        num_tried = 0
        num_missing = 0
        while num_tried < len(keys) and num_missing <= FEW:  # a listing looks at every file, whoever's run it is of
            key = keys[num_tried]
            num_tried += 1
            try:
                yield key, store.get(key)
            except NotFound:
                num_missing += 1
    else:
        yield from _tried(store, keys[:num_tried])
    if rest := keys[num_tried:]:
        there = _versions(store, prefix)
        yield from _copied(store, {key: there[key] for key in rest if key in there})


def _tried(store: Store, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Key and content of those of `keys` that are there; from a remote store some at once."""

    def get(key: str) -> tuple[str, bytes] | None:
        try:
            return key, store.get(key)
        except NotFound:
            return None

    if _is_folder(store):
        yield from filter(None, map(get, keys))
        return
    with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="read") as pool:
        for start in range(0, len(keys), FEW):  # an error ends the reading within so many requests
            yield from filter(None, pool.map(get, keys[start : start + FEW]))
