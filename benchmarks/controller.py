"""The controller over 10,000 runs: a warm pass, a fresh process's first one, its memory, and `grid status`.

The Jobs are on a real API server, nearly all of them complete with their results on a real S3 server; one runs. Both
servers are on loopback, and both sides take their processor time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.bare import BareS3
from benchmarks.figures import Row, Target, divided, in_turn, timed
from benchmarks.grids import in_fresh_process
from benchmarks.place import Place
from benchmarks.wide import NAMESPACE, Jobs, Wide, lacking_store, s3_store, wide_grid
from controller.acted import ActedGrid
from controller.cluster import open_cluster
from controller.live import PlainView
from controller.mirror import Mirror
from controller.passes import Passes
from tests.cluster.apiserver import api_server, missing

LIST_JOBS = "one paged LIST of the Jobs: raw JSON over a kept-alive connection"
LIST_BOTH = "one paged LIST of the Jobs and one of `results/`, raw, each over a kept-alive connection"
SIDE = 100
CHANGES = 3
WARM_UPS = 1


def controller(place: Place, side: int = SIDE) -> list[Row]:
    """All four, on one server with the Jobs of one grid of side x side runs."""
    side = 10 if place.quick else side
    rows = _rows(f"{side * side:,}")
    if reason := missing() or lacking_store():
        return [replace(row, target=None, note="", skipped=reason) for row in rows]
    with ExitStack() as stack:
        store = stack.enter_context(s3_store(place))
        place.say(f"controller: making {side * side:,} results and Jobs")
        wide = wide_grid(place, store, side)
        num_open = place.rounds + WARM_UPS
        wide.put_results(range(1 + num_open, len(wide.runs)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place.folder)))
        server = stack.enter_context(api_server(folder))
        jobs = Jobs(server, wide, num_open)
        kubeconfig = str(server.kubeconfig(namespace=NAMESPACE))
        say = partial(_say, place)
        with _warm_passes(wide, kubeconfig) as passes:
            changed = partial(_changed_pass, passes, jobs)
            warm = in_turn({"list": timed(jobs.read), "pass": changed}, place.rounds, say, WARM_UPS)
        bare, fresh = BareS3(store), Fresh(place, wide, jobs, kubeconfig)
        sides = {
            "list": timed(jobs.read),
            "list of results": timed(lambda: bare.list_pages("results/")),
            "interpreter": timed(lambda: in_fresh_process(place, ["-c", "pass"])),
            "first pass": fresh.first_pass,
            "status": timed(fresh.status),
        }
        cold = in_turn(sides, place.rounds, say, WARM_UPS)
    both = [a + b for a, b in zip(cold["list"], cold["list of results"], strict=True)]
    first, status = (
        [whole - own for whole, own in zip(cold[name], cold["interpreter"], strict=True)]
        for name in ("first pass", "status")
    )
    measured = [(warm["pass"], warm["list"]), (first, both), (status, cold["list"])]
    ratios = [
        replace(
            row,
            ratios=divided(ours, other),
            ours=f"{median(ours):.3f} s",
            other=f"{median(other):.2f} s",
        )
        for row, (ours, other) in zip(rows, measured, strict=False)
    ]
    megabytes = tuple(peak / 1e6 for peak in fresh.peaks[WARM_UPS:])
    return [*ratios, replace(rows[-1], ratios=megabytes, ours=f"{median(megabytes):.0f} MB")]


def _rows(number: str) -> list[Row]:
    return [
        Row(
            "pass-warm",
            f"one warm pass over {number} runs, one of which has ended",
            LIST_JOBS,
            target=Target(0.2, 0.05, more_is_better=False),
            note="from the moment the mirror has the change: the run's result is read, all is decided anew, nothing is "
            "left to do; every 30 s a pass also looks at all that the store has, which this is not",
        ),
        Row(
            "pass-fresh",
            f"a fresh process's first pass over {number} runs",
            LIST_BOTH,
            target=Target(2.0, 1.2, more_is_better=False),
            note="less the start of a bare interpreter; imports, the Jobs and pods listed, every result read, and all "
            "decided",
        ),
        Row(
            "status-10000",
            f"`grid status` of {number} runs, fresh process",
            LIST_JOBS,
            target=Target(2.0, 1.3, more_is_better=False),
            note="less the start of a bare interpreter; output included, and every result read",
        ),
        Row(
            "controller-memory",
            f"the controller's memory at {number} runs",
            "nothing: a figure of its own",
            unit="MB",
            target=Target(400, 250, more_is_better=False),
            note=f"peak resident set of the process of the first pass, after {CHANGES} more for a change each",
        ),
    ]


def _say(place: Place, told: str) -> None:
    place.say(f"controller: {told}")


@contextmanager
def _warm_passes(wide: Wide, kubeconfig: str) -> Iterator[Passes]:
    """Passes over the grid, the first of which is made."""
    with (
        Path(os.devnull).open("w") as nowhere,
        open_cluster(NAMESPACE, kubeconfig=kubeconfig) as cluster,
        Mirror(cluster) as mirror,
    ):
        passes = Passes(cluster, mirror, wide.store, [ActedGrid(wide.grid, wide.store, wide.facts)], PlainView(nowhere))
        assert not passes.one().done
        yield passes


def _changed_pass(passes: Passes, jobs: Jobs) -> float:
    """Seconds of the pass after one run has ended; the one before looked at all that the store has."""
    passes.forget()
    passes.one()
    before = len(passes.grids[jobs.grid].sight.known.results)
    jobs.end_one()
    assert passes.mirror.wait(60)
    seconds = timed(passes.one)()
    assert len(passes.grids[jobs.grid].sight.known.results) == before + 1
    return seconds


class Fresh:
    """Fresh processes over the grid; `peaks` are the bytes that those of `first_pass` had in memory at most."""

    def __init__(self, place: Place, wide: Wide, jobs: Jobs, kubeconfig: str) -> None:
        self.peaks: list[int] = []
        self._uri = wide.store.uri
        self._jobs = jobs
        self._environment = {**place.environment(), "KUBECONFIG": kubeconfig}

    def first_pass(self) -> float:
        """Seconds from the start of a process to the end of its first pass."""
        line = [sys.executable, "-m", "benchmarks.first_pass", self._uri, self._jobs.grid]
        begun = time.perf_counter()
        with subprocess.Popen(
            line, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert not told["did"]
            seconds = float(told["at"]) - begun  # Linux counts perf_counter from the same moment in every process
            for _ in range(CHANGES):
                self._jobs.change_one()
                process.stdin.write("\n")
                process.stdin.flush()
                told = json.loads(process.stdout.readline())
            self.peaks.append(told["peak_bytes"])
        return seconds

    def status(self) -> None:
        """Run `grid status` to its end."""
        line = [sys.executable, "-m", "controller.cli", "--store", self._uri, "status", self._jobs.grid]
        ended = subprocess.run(line, env=self._environment, check=True, capture_output=True)
        assert b"running" in ended.stdout
        assert b"left out" not in ended.stderr, ended.stderr
