"""Which run a command line means, and what the store says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from controller.knowledge import RESULTS, read_results, read_tests
from controller.wording import listed
from trainer.document import show_value
from trainer.failure import SpecError
from trainer.history import PROVENANCE, read_metrics
from trainer.result import EpochMetrics, Numerics, Provenance, Result, TestResult, parse_record
from trainer.spec import RunSpec
from trainer.store import NotFound, Store
from trainer.trained import read_run_spec

BEGINNING = re.compile(r"[a-z0-9][-a-z0-9]*")
RUNS = "runs/"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All that the store says of one run, as far as the run has come."""

    run: str
    spec: RunSpec
    result: Result | None
    test: TestResult | None
    numerics: Numerics | None
    versions: dict[str, str]  # of Python and packages, and the code's commit; none known before the first attempt
    epochs: tuple[EpochMetrics, ...]


def find_run(store: Store, given: str) -> str:
    """The id of the run that `given` names whole or begins. Raises SpecError where that is no run, or several."""
    found = list(dict.fromkeys(_beginning(store, given))) if BEGINNING.fullmatch(given) else []
    if given in found:
        return given
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(
            f"run: got {show_value(given)}, which {len(found)} runs begin with: {listed(sorted(found))}",
            hint="give more of the id",
        )
    raise SpecError(
        f"run: got {show_value(given)}, of which {store.uri} knows nothing, expected the id of a run or its beginning",
        hint="`grid status GRID --json` shows the ids of its runs",
    )


def run_names(store: Store, beginning: str = "") -> list[str]:
    """Ids of the runs that have a result and begin so."""
    return [entry.key.removeprefix(RESULTS).removesuffix(".json") for entry in store.list(RESULTS + beginning)]


def _beginning(store: Store, beginning: str) -> Iterator[str]:
    """Ids of runs that begin so, with a result or without; some more than once."""
    yield from run_names(store, beginning)
    for entry in store.list(RUNS + beginning):
        yield entry.key.removeprefix(RUNS).partition("/")[0]


def read_run(store: Store, run: str) -> RunRecord:
    """What the store says of the run. Raises SpecError where it has no spec, DataError where a record is corrupt."""
    spec = read_run_spec(store, run)
    result = read_results(store, [run]).get(run)
    return RunRecord(
        run=run,
        spec=spec,
        result=result,
        test=read_tests(store, [run]).get(run),
        numerics=result.numerics if result else _settled(store, run),
        versions=_versions(result or _newest_attempt(store, run)),
        epochs=tuple(read_metrics(store, run)),
    )


def _settled(store: Store, run: str) -> Numerics | None:
    key = f"runs/{run}/numerics.json"
    try:
        return parse_record(Numerics, key, store.get(key))
    except NotFound:
        return None


def _newest_attempt(store: Store, run: str) -> Provenance | None:
    keys = [entry.key for entry in store.list(f"runs/{run}/attempts/") if entry.key.endswith(PROVENANCE)]
    return parse_record(Provenance, max(keys), store.get(max(keys))) if keys else None


def _versions(known: Result | Provenance | None) -> dict[str, str]:
    if known is None:
        return {}
    return {**known.versions, "commit": known.commit or "unknown"}
