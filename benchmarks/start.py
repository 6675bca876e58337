"""From the start of a process to the first optimiser step, with the decoded images in the cache.

Ours is `python -m trainer`'s own main, told to end where its first step would begin, with the first batch made. The
other side imports torch and torchvision, builds the same network and maps the same cache.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from statistics import median

import numpy as np

from benchmarks.figures import Row, Target, divided, in_turn
from benchmarks.place import ROOT, Data, Place
from controller.standing import Work
from controller.workers import Share, Workers
from trainer.cache import Cache
from trainer.identity import factory_source_hash, run_id, with_seed, write_spec
from trainer.machine import available_threads
from trainer.part import open_part
from trainer.spec import ExperimentSpec, RunSpec

WHAT = "process start to first step, AlexNet, cache warm"
FORKED = "the same by the local backend, which forks from a server that holds torch"
BARE = "import torch and torchvision, build the network, map the cache"
TIMEOUT_SECONDS = 300.0


def start(place: Place) -> list[Row]:
    """A fresh process, and one forked by the local backend, against the bare minimum."""
    data = place.data()
    if data is None:
        return [Row("start", WHAT, BARE, skipped="CALTECH101_DIR is not set")]
    place.forget_runs()
    starts = Starts(place, data)
    try:
        sides = {"ours": starts.fresh, "bare": starts.bare, "forked": starts.forked}
        seconds = in_turn(sides, place.rounds, lambda text: place.say(f"start: {text}"))
    finally:
        starts.workers.close()
        place.forget_runs()
    bare = f"{median(seconds['bare']):.2f} s"
    note = f"every start is a run's first; {starts.text}; files in the page cache"
    fresh = Row(
        "start",
        WHAT,
        BARE,
        divided(seconds["ours"], seconds["bare"]),
        f"{median(seconds['ours']):.2f} s",
        bare,
        Target(1.2, 1.05, more_is_better=False),
        note,
    )
    forked = Row(
        "start-forked",
        FORKED,
        BARE,
        divided(seconds["forked"], seconds["bare"]),
        f"{median(seconds['forked']):.2f} s",
        bare,
        note="until the first epoch begins, by the trainer's own events; for comparison",
    )
    return [fresh, forked]


class Starts:
    """Starts of runs that differ in their seed alone."""

    def __init__(self, place: Place, data: Data) -> None:
        self.place = place
        self.experiment = experiment(place, data)
        self._seed = 0
        cache = Cache()
        parts = [
            open_part(data.index, self.experiment.data, name, place.store, cache) for name in ("train", "validation")
        ]
        self.text = f"{len(parts[0])} training and {len(parts[1])} validation images"
        self._maps = [str(part.pixels.filename) for part in parts if isinstance(part.pixels, np.memmap)]
        assert len(self._maps) == len(parts), "the decoded images do not fit the cache: nothing to map"
        self._num_classes = data.index.num_classes
        self._threads = available_threads()
        self.workers = Workers(place.store, place.folder, "exact")
        self.workers.load()

    def next_run(self) -> tuple[str, RunSpec]:
        """A run that never started, its spec in the store."""
        spec = with_seed(self.experiment, self._seed)
        self._seed += 1
        self.place.store.put(f"runs/{run_id(spec)}/spec.yaml", write_spec(spec).encode())
        return run_id(spec), spec

    def fresh(self) -> float:
        """Seconds of a fresh process."""
        run, _ = self.next_run()
        return self._process(["-m", "benchmarks.first_step", run, "--store", self.place.store.uri])

    def bare(self) -> float:
        """Seconds of the bare minimum."""
        script = str(ROOT / "benchmarks" / "bare_start.py")
        return self._process([script, "tiny" if self.place.quick else "alexnet", str(self._num_classes), *self._maps])

    def _process(self, argv: Sequence[str]) -> float:
        environment = {**self.place.environment(), "OMP_NUM_THREADS": str(self._threads)}
        begun = time.perf_counter()
        told = subprocess.run(
            [sys.executable, *argv],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=TIMEOUT_SECONDS,
        )
        return float(told.stdout) - begun  # Linux counts perf_counter from the same moment in every process

    def forked(self) -> float:
        """Seconds of a process that the local backend forks, to the moment from which its first report counts."""
        run, spec = self.next_run()
        work = Work(run, is_test=False)
        begun = time.perf_counter()
        self.workers.start(work, run, spec, Share(self._threads))
        worker = self.workers.active[work]
        if not wait([worker.events], TIMEOUT_SECONDS):
            raise TimeoutError(f"{run}: no report from its process within {TIMEOUT_SECONDS:.0f} s")
        event = worker.events.recv()
        told = time.perf_counter()
        worker.process.kill()
        worker.process.join()
        self.workers.take_ended()
        if event["event"] == "epoch":  # it was over before a step was worth a report
            return float(told - event["seconds"] - begun)
        return float(told - event["step"] * spec.batch_size / event["images_per_second"] - begun)


def experiment(place: Place, data: Data) -> ExperimentSpec:
    """What is started: AlexNet on all images, or the tiny network."""
    named = {"name": data.index.name, "fingerprint": data.index.fingerprint}
    if place.quick:
        tiny = "benchmarks.networks:tiny"
        model = {"architecture": tiny, "source_hash": factory_source_hash(tiny)}
        return ExperimentSpec.model_validate(
            {"data": {**named, "resize": 32, "crop": 28}, "model": model, "batch_size": 10, "epochs": 2}
        )
    return ExperimentSpec.model_validate({"data": named, "model": {"architecture": "alexnet"}})
