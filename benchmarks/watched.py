"""Epochs of a run that is watched against epochs of one that is not: what telemetry and TensorBoard cost.

Two runs of the trainer take turns in one process, an epoch each, on the same images and as many threads. One keeps an
event file for TensorBoard and is scraped over HTTP while it has its turn; the other does neither. What is timed is
everything between the ends of two of its epochs, the writing of checkpoint, metrics, log and event file included.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import urllib.request
from dataclasses import replace
from statistics import median

import torch

from benchmarks.epochs import ALEXNET, run_spec
from benchmarks.figures import Row, Target, divided, in_turn, timed
from benchmarks.place import Place
from trainer.events import SWITCH
from trainer.identity import run_id
from trainer.recorder import LogBuffer, Recorder
from trainer.result import EpochMetrics
from trainer.run import Report, open_attempt, run_experiment
from trainer.spec import RunSpec
from trainer.stop import StopSignal
from trainer.store import open_store
from trainer.telemetry import PATH, SILENT, Instruments

CASE = replace(ALEXNET, name="watched", what="AlexNet, batch 256, with telemetry and TensorBoard")
ALONE = "the same without either"
SCRAPE_SECONDS = 5.0  # Prometheus' own default is a minute


def watched(place: Place) -> list[Row]:
    """A watched run against one that nobody watches."""
    data = place.data()
    if data is None:
        return [Row(CASE.name, CASE.what, ALONE, skipped="CALTECH101_DIR is not set")]
    place.forget_runs()
    spec = run_spec(place, data, CASE)
    sides = {
        "watched": Paced(place, spec, is_watched=True),
        "alone": Paced(place, spec.model_copy(update={"seed": 1}), is_watched=False),
    }
    seconds = in_turn({name: timed(side.epoch, gc.collect) for name, side in sides.items()}, place.rounds, place.say)
    for side in sides.values():
        side.finish()
    place.forget_runs()
    images, scrapes = sides["watched"].num_images, sides["watched"].num_scrapes
    ours, other = (f"{images / median(seconds[name]):.1f} images/s" for name in sides)
    note = f"{images} images an epoch of {data.text}; {scrapes} scrapes, one in {SCRAPE_SECONDS:.0f} s; of images/s"
    target = Target(0.99, 0.995, more_is_better=True)
    return [Row(CASE.name, CASE.what, ALONE, divided(seconds["alone"], seconds["watched"]), ours, other, target, note)]


class Paced:
    """A run that trains in a thread of its own, one epoch each time that it is let."""

    def __init__(self, place: Place, spec: RunSpec, *, is_watched: bool) -> None:
        self.num_images = 0  # of one epoch
        self.num_scrapes = 0
        self._place = place
        self._spec = spec
        self._is_watched = is_watched
        self._telemetry = Instruments(0) if is_watched else SILENT
        self._turn, self._over = threading.Semaphore(0), threading.Semaphore(0)
        self._has_turn = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="paced", daemon=True)
        self._thread.start()

    def epoch(self) -> None:
        """Let it do its next epoch, and wait until all that it wrote of the one before is written."""
        os.environ[SWITCH] = "on" if self._is_watched else "off"  # read where the run begins, in its first turn
        self._has_turn.set()
        self._turn.release()
        self._over.acquire()
        self._has_turn.clear()
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Let it come to its result."""
        self._turn.release()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        self._turn.acquire()
        try:
            self._train()
        except BaseException as error:  # noqa: BLE001 - raised where the turn was given
            self._failure = error
        finally:
            self._telemetry.close()
            self._over.release()

    def _train(self) -> None:
        run = run_id(self._spec)
        self._telemetry.begin(run, self._spec.epochs)
        self._telemetry.serve()
        if isinstance(self._telemetry, Instruments):
            threading.Thread(target=self._scrape, args=(self._telemetry,), name="prometheus", daemon=True).start()
        with open_attempt(
            run,
            self._spec,
            open_store(self._place.store.uri, on_request=self._telemetry.on_request),
            StopSignal(),
            LogBuffer(),
            exact=True,
            report=lambda _: None,
            started=time.monotonic(),
            telemetry=self._telemetry,
        ) as attempt:
            attempt.report = lambda what: self._give_over(what, attempt.recorder)
            run_experiment(attempt)

    def _give_over(self, what: Report, recorder: Recorder) -> None:
        if isinstance(what, EpochMetrics):
            while recorder.is_checkpoint_in_flight:
                time.sleep(0.001)
            recorder.check()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.num_images = round(what.images_per_second * what.seconds)
            self._over.release()
            self._turn.acquire()

    def _scrape(self, telemetry: Instruments) -> None:
        while telemetry.port is not None:
            if self._has_turn.wait(SCRAPE_SECONDS):
                with urllib.request.urlopen(f"http://127.0.0.1:{telemetry.port}{PATH}", timeout=10) as answer:
                    answer.read()
                self.num_scrapes += 1
                time.sleep(SCRAPE_SECONDS)
