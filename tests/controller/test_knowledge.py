"""What is read out of a store: everything that is there, nothing that is not, and no crash on what is broken."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import tables
from results import result, result_of_test

from controller import knowledge
from controller.knowledge import (
    FEW,
    read_decisions,
    read_failures,
    read_leases,
    read_numbers,
    read_results,
    read_test_answers,
    read_tests,
)
from controller.noise import Answers
from controller.search import Decision, Expansion, Experiment
from trainer.failure import DataError, Failure
from trainer.lease import LeaseRecord, lease_key
from trainer.result import Result
from trainer.store import FileStore, NotFound, Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def put_results(store: Store, *runs: str) -> dict[str, Result]:
    written = {run: result(run) for run in runs}
    for run, one in written.items():
        store.put(f"results/{run}.json", one.model_dump_json().encode())
    return written


def lease(**values: Any) -> LeaseRecord:
    return LeaseRecord(**{"holder": "node-1:4711", "host": "node-1/b", "attempt": "0001-a", "heartbeat": NOW, **values})


def test_results_are_read_back(store: Store) -> None:
    written = put_results(store, *(f"alexnet-{index:012x}" for index in range(FEW + 6)))
    names = list(written)
    assert read_results(store) == written
    assert read_results(store, [names[1], "alexnet-missing", names[0]]) == {name: written[name] for name in names[:2]}
    assert list(read_results(store, ["alexnet-missing", *reversed(names)])) == names[::-1]
    assert read_results(store, []) == {}


def test_a_store_in_which_nothing_ran_has_nothing(file_store: FileStore) -> None:
    assert read_results(file_store) == {}
    assert read_tests(file_store, ["a"]) == {}
    assert read_failures(file_store) == {}
    assert read_decisions(file_store, "demo") == {}
    assert read_leases(file_store, ["a"]) == {}


def test_a_known_result_is_not_read_again(file_store: FileStore) -> None:
    known = put_results(file_store, "a", "b")
    file_store.put("results/a.json", b"not even JSON")
    assert read_results(file_store, ["a", "b"], known) == known


def test_tests_failures_and_decisions_are_read_back(file_store: FileStore) -> None:
    answered = result_of_test("a")
    failure = Failure(run="b", attempt=None, exit_code=137, reason="crashed", message="killed", final=False, time=NOW)
    decision = Decision(stage="lr", kept=("x",), because="the rule", metric="validation_loss", saw=(), time=NOW)
    file_store.put("tests/a.json", answered.model_dump_json().encode())
    file_store.put("failures/b.json", failure.model_dump_json().encode())
    file_store.put("grids/demo/decisions/lr.json", decision.model_dump_json().encode())
    file_store.put("grids/demo2/decisions/lr.json", b"another grid's")
    assert read_tests(file_store) == {"a": answered}
    assert read_failures(file_store, ["a", "b"]) == {"b": failure}
    assert read_decisions(file_store, "demo") == {"lr": decision}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "results/a.json: got 0 bytes that are no Result: Invalid JSON: EOF"),
        (
            result("a").model_dump_json().encode()[:100],
            "results/a.json: got 100 bytes that are no Result: Invalid JSON",
        ),
        (b"[1]", "results/a.json: got 3 bytes that are no Result: Input should be an object"),
        (b'{"run": "a"}', "results/a.json: got 12 bytes that are no Result: seed: Field required"),
        (b"\xff\xfe", "results/a.json: got 2 bytes that are no Result"),
        (result("b").model_dump_json().encode(), "results/a.json: holds run b, expected a"),
    ],
    ids=["empty", "torn", "a-list", "fields-missing", "not-utf-8", "of-another-run"],
)
def test_a_corrupt_result_is_an_error_that_names_its_key(file_store: FileStore, data: bytes, message: str) -> None:
    file_store.put("results/a.json", data)
    with pytest.raises(DataError) as caught:
        read_results(file_store, ["a"])
    assert caught.value.message.startswith(message)
    assert caught.value.hint is not None


def test_keys_of_a_newer_version_are_passed_over(file_store: FileStore) -> None:
    file_store.put("results/a.json", result("a").model_dump_json().replace("{", '{"future": 1,', 1).encode())
    assert read_results(file_store) == {"a": result("a")}


def test_an_object_that_goes_after_the_listing_is_left_out(
    file_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = put_results(file_store, "a", "b", "c")
    get = FileStore.get

    def get_once_b_is_gone(self: FileStore, key: str) -> bytes:
        if key == "results/b.json":
            raise NotFound(key)
        return get(self, key)

    monkeypatch.setattr(FileStore, "get", get_once_b_is_gone)
    assert read_results(file_store) == {"a": written["a"], "c": written["c"]}


def test_the_numbers_of_a_result_are_read_without_the_rest(file_store: FileStore) -> None:
    written = put_results(file_store, "a")["a"].model_dump()
    del written["spec"], written["versions"]
    assert read_numbers(file_store)["a"].model_dump() == written


def test_leases_are_read_back(file_store: FileStore) -> None:
    file_store.put(lease_key("a"), lease().model_dump_json().encode())
    assert read_leases(file_store, ["a", "b"]) == {"a": lease()}


def test_the_answers_of_tested_rows_are_read_where_there_are_two_to_compare(
    file_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [tables.experiment(name, seeds=(0,)) for name in ("a", "b", "torn", "missing", "untested")]
    ids = [row.runs[0].id for row in rows]
    tests = {
        row.runs[0].id: tables.evaluated(row.runs[0]).model_copy(update={"predictions": f"{row.name}.npz"})
        for row in rows[:-1]
    }
    logits_NK = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    for key in ("a.npz", "b.npz"):
        stream = io.BytesIO()
        np.savez(stream, index=np.arange(2), label=np.array([0, 0]), logits=logits_NK)
        file_store.put(key, stream.getvalue())
    file_store.put("torn.npz", stream.getvalue()[:50])

    def read(*experiments: Experiment, is_test: bool) -> dict[str, Answers]:
        stages = (tables.stage(*experiments, is_test=is_test),)
        return read_test_answers(file_store, Expansion("demo", (0,), stages), tests)

    found = read(*rows, is_test=True)
    assert list(found) == ids[:2]
    assert found[ids[0]].right.tolist() == [True, False]
    assert read(*rows, is_test=False) == {}
    assert read(rows[0], rows[-1], is_test=True) == {}
    monkeypatch.setattr(knowledge, "MOST_ANSWERS", 3)
    assert read(*rows, is_test=True) == {}
