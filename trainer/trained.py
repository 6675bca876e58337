"""A run that is trained, as the store has it; all that it takes to use its network, but the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.dataset import DatasetIndex, load_expected_index
from trainer.failure import DataError, SpecError
from trainer.identity import read_spec
from trainer.result import Result, parse_record
from trainer.spec import RunSpec
from trainer.store import NotFound, Store


@dataclass(frozen=True, slots=True)
class Trained:
    """A run with its result, and the data set that names its classes."""

    run: str
    spec: RunSpec
    result: Result
    index: DatasetIndex
    weights: str  # key of the best epoch's state dict, which is there


def read_trained(store: Store, run: str) -> Trained:
    """The run. Raises SpecError where there is none, DataError where its result, weights or data set are missing."""
    spec = read_run_spec(store, run)
    key = f"results/{run}.json"
    try:
        result = parse_record(Result, key, store.get(key))
    except NotFound as error:
        raise DataError(
            f"run {run} has no result in {store.uri}: it was not trained to its end",
            hint="`grid status GRID` says how the runs of a grid stand; `grid run GRID` goes on with them",
        ) from error
    cure = f"set checkpoint.keep to best, delete {key} and train it again: to the same numbers, on equal numerics"
    weights = result.best_weights
    if weights is None:
        raise DataError(f"run {run} kept no weights: its checkpoint.keep was none", hint=cure)
    if not any(entry.key == weights for entry in store.list(weights)):
        raise DataError(f"run {run} has lost its weights: {store.uri} has no {weights}", hint=cure)
    return Trained(run, spec, result, load_expected_index(spec.data, store), weights)


def read_run_spec(store: Store, run: str) -> RunSpec:
    """The run's spec. Raises SpecError where the store has none."""
    key = f"runs/{run}/spec.yaml"
    try:
        text = store.get(key).decode()
    except (NotFound, UnicodeDecodeError) as error:
        raise SpecError(
            f"run: got {run!r}, of which {store.uri} has no {key}, expected the id of a run that was planned there",
            hint="`grid status GRID --json` shows the ids of its runs",
        ) from error
    return read_spec(text, key)
