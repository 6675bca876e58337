"""A run that is killed again and again, at any moment, ends with the numbers of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
from pictures import import_pictures, put_run

from controller.grid import read_grid
from trainer.child import PRELOAD, run_attempt
from trainer.failure import ExitCode
from trainer.result import PASSING, Result
from trainer.store import FileStore

NUM_KILLS = int(os.environ.get("GRID_KILLS", "4"))  # of each network
SPEC = {
    "data": {"resize": 32, "crop": 32},
    "augmentation": "report_2",
    "batch_size": 16,
    "epochs": 4 + NUM_KILLS,
    "optimizer": {"lr": 0.02},
    "best": {"patience": 2},
    "checkpoint": {"every": 0.05},  # nearly always one in flight
}


DEMO_GRID = read_grid("demo")
DEMO = [str(row.values["model.architecture"]) for row in DEMO_GRID.candidates(DEMO_GRID.stages[0])]


@pytest.fixture(scope="module")
def forkserver() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    return context


class Attempts:
    """Starts one attempt after another at the same run, in a process each."""

    def __init__(self, context: ForkServerContext, store: FileStore, run: str, folder: Path) -> None:
        self.context = context
        self.store = store
        self.run = run
        self.folder = folder

    def start(self, threads: int) -> ForkServerProcess:
        _, events = self.context.Pipe(duplex=False)
        environment = {"OMP_NUM_THREADS": str(threads), "GRID_CACHE": f"{self.folder}-cache"}
        process = self.context.Process(
            target=run_attempt,
            args=([self.run, "--store", self.store.uri], environment, f"{self.folder}-log.txt", events),
        )
        process.start()
        events.close()
        return process

    def finish(self) -> Result:
        process = self.start(threads=1)
        process.join()
        assert process.exitcode == ExitCode.OK, Path(f"{self.folder}-log.txt").read_text()
        return Result.model_validate_json(self.store.get(f"results/{self.run}.json"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["squeezenet1_1", *DEMO])  # the first for its dropout
def test_kills_at_any_moment_change_no_number(forkserver: ForkServerContext, tmp_path: Path, architecture: str) -> None:
    random_seed = random.randrange(1 << 32)
    print(f"random seed {random_seed}")  # noqa: T201 - shown by pytest should the test fail
    chance = random.Random(random_seed)
    stores = [FileStore(tmp_path / name) for name in ("straight", "killed")]
    index, _ = (import_pictures(store, tmp_path / "images", per_class=36) for store in stores)
    spec = {**SPEC, "data": {**SPEC["data"], "name": index.name, "fingerprint": index.fingerprint}}
    runs = [put_run(store, index, model={"architecture": architecture}, **spec) for store in stores]
    straight, killed = (
        Attempts(forkserver, store, run, tmp_path / store.root.name) for store, run in zip(stores, runs, strict=True)
    )

    expected = straight.finish()
    pause = 0.3 + expected.wall_seconds / NUM_KILLS  # the start of an attempt takes the first part of it
    settled = killed.store.root / "runs" / killed.run / "numerics.json"
    kills = 0
    while kills < NUM_KILLS:
        process = killed.start(threads=1 if not settled.exists() else chance.choice([1, 2]))
        while not settled.exists():  # what the first attempt settles on depends on its threads
            assert process.is_alive()
            time.sleep(0.01)
        process.join(timeout=chance.uniform(0, pause))
        assert process.exitcode is None, "it was faster than the kills"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        kills += 1
    result = killed.finish()
    assert result.attempts > 1
    assert result.model_dump(exclude=set(PASSING)) == expected.model_dump(exclude=set(PASSING))
    weights = str(expected.best_weights)
    assert killed.store.get(weights) == straight.store.get(weights)
    assert [entry.key for entry in killed.store.list(f"runs/{killed.run}/blobs/")] == [weights]
