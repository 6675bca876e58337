"""What the dashboards ask: PromQL put together from a few pieces.

A trainer's series carry its run alone, since a run may belong to several grids; `grid_run_info` says to which. So
whatever is asked of a grid's rows is a product of that, which is 1 for each run of the grid, and a value by run.
While an attempt ends and the next begins, or the controller shows a finished run's last values, a run has more than one
series: a maximum by run is one again.
"""

from __future__ import annotations

PLACE = 'namespace=~"$namespace"'
OF_GRID = f'{PLACE},grid="$grid"'
OF_RUN = f'{PLACE},run="$run"'
ROWS = f'max by (namespace, grid, stage, experiment, seed, run) (grid_run_info{{{PLACE},grid="$grid",stage=~"$stage"}})'
ROW = "{{stage}} / {{experiment}}, seed {{seed}}"  # a row's name in a legend

WAITS = (
    (
        "Wait for a place",
        "grid_queue_seconds",
        "From a Job's creation until its container started: parallelism, quota, node, image.",
    ),
    (
        "Start delay",
        "grid_start_delay_seconds",
        "From a pod's creation until its first step: node, image, torch, data.",
    ),
)
"""What a run waits for before it trains: a name, the histogram, and from when to when."""


def newest(metric: str, labels: str = PLACE) -> str:
    """The metric's value now, by run."""
    return f"max by (namespace, run) ({metric}{{{labels}}})"


def last(metric: str, labels: str = PLACE) -> str:
    """The last value that the metric had in the time shown, by run: also of runs that ended long ago."""
    return f"max by (namespace, run) (last_over_time({metric}{{{labels}}}[$__range]))"


def of_rows(value: str) -> str:
    """A value by run, by the grid's rows."""
    return f"{ROWS} * on (namespace, run) group_left () ({value})"


def with_label(label: str, metric: str) -> str:
    """1 for each of the grid's rows whose run the metric tells of, with its label that says what."""
    return f"{ROWS} * on (namespace, run) group_left ({label}) max by (namespace, run, {label}) ({metric}{{{PLACE}}})"


def by_experiment(aggregation: str, value: str) -> str:
    """A value by run, over the seeds of each experiment."""
    return f"{aggregation} by (stage, experiment) ({of_rows(value)})"


def rate(metric: str, labels: str, by: str = "") -> str:
    """Increase of a counter in a second, summed; `by` names what is kept apart."""
    kept = f" by ({by})" if by else ""
    return f"sum{kept} (rate({metric}{{{labels}}}[$__rate_interval]))"


def count(metric: str, labels: str, over: str, by: str = "") -> str:
    """How many more a counter of things has come to, summed; whole, since `increase` makes 2.05 of two."""
    kept = f" by ({by})" if by else ""
    return f"round (sum{kept} (increase({metric}{{{labels}}}[{over}])))"


def quantile(share: float, histogram: str, labels: str, by: str = "", over: str = "$__rate_interval") -> str:
    """The value below which that share of what a histogram counted lies."""
    kept = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({share}, sum by ({kept}) (rate({histogram}_bucket{{{labels}}}[{over}])))"
