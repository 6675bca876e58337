"""A fresh process's first pass over a grid on a cluster, as `grid watch` makes it, and one more for each line of stdin.

After each it prints a line of JSON: `at`, the clock, `peak_bytes`, the largest resident set so far, and `did`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from controller.acted import ActedGrid, submitted
from controller.archive import gather_facts, stored_grid
from controller.cluster import open_cluster
from controller.live import PlainView
from controller.mirror import Mirror
from controller.passes import Passes
from controller.search import wanted
from trainer.store import open_store


def main(uri: str, name: str) -> None:
    """Make passes over the grid of that name."""
    store = open_store(uri)
    grid = stored_grid(store, name)
    assert grid is not None
    settings = submitted(store, name)
    facts = gather_facts(store, wanted(grid))
    with open_cluster(settings.namespace) as cluster, Mirror(cluster) as mirror:
        acted = ActedGrid(grid, store, facts, settings=settings)
        passes = Passes(cluster, mirror, store, [acted], PlainView(sys.stderr))
        _tell(passes)
        for _ in sys.stdin:
            assert mirror.wait(60)
            _tell(passes)


def _tell(passes: Passes) -> None:
    report = passes.one()
    at = time.perf_counter()
    told = {"at": at, "peak_bytes": peak_bytes(), "did": dict(report.done)}
    print(json.dumps(told), flush=True)


def peak_bytes() -> int:
    """The largest resident set that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
