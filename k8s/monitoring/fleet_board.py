"""The dashboard of all grids of a cluster: what runs, what waits, how the controller is, what the GPUs do."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from k8s.monitoring.panels import (
    BUSY,
    FLEET,
    GRID,
    KEPT,
    NONE_IS_GOOD,
    STATE_COLOURS,
    Column,
    bars,
    board,
    coloured,
    lines,
    number,
    query,
    rows,
    variable,
)
from k8s.monitoring.queries import PLACE, WAITS, count, quantile, rate

OPEN_GRID = f"/d/{GRID}?{KEPT}&var-grid=${{__data.fields.grid}}"
OF_GRIDS = f'{PLACE},grid=~"$grid"'
AT_WORK = "pending|starting|running"
TO_COME = "waiting|queued"


def fleet_board() -> dashboard.Dashboard:
    """The dashboard "Fleet"."""
    made = board(
        "Fleet",
        FLEET,
        "All grids: their states, what waits for a place, how the controller does, what the GPUs do.",
        since="now-6h",
    )
    made = made.with_variable(
        variable("grid", f"label_values(grid_runs{{{PLACE}}}, grid)", "grids shown", is_all=True, is_several=True)
    )
    for part in (_now, _work, _controller, _gpus):
        made = part(made)
    return made


def _now(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Now"))
    made = made.with_panel(
        number(
            "Controllers that act",
            "Controllers that hold their namespace's lease: one in each namespace. GridControllerDown fires at none.",
            "none",
            f"sum (grid_controller_leading{{{PLACE}}})",
            steps=((None, "red"), (1, "green")),
            width=3,
            absent="0",
            is_now=True,
        )
    )
    made = made.with_panel(
        number(
            "Active grids",
            "Grids that are to be trained: neither paused nor cancelled.",
            "none",
            f'sum (grid_grids{{{PLACE},intent="active"}})',
            width=3,
            is_now=True,
        )
    )
    for title, states, description in (
        ("Runs at work", AT_WORK, "Runs that have a pod: pending, starting or running."),
        ("Runs that wait", TO_COME, "Runs that wait for a place, a quota or a decision."),
    ):
        made = made.with_panel(
            number(
                title,
                f"{description} A run that two grids share counts for both.",
                "none",
                f'sum (grid_runs{{{OF_GRIDS},state=~"{states}"}})',
                width=3,
                is_now=True,
            )
        )
    made = made.with_panel(
        number(
            "Failed runs",
            "Runs that are not tried again until `grid retry` clears their failure.",
            "none",
            f'sum (grid_runs{{{OF_GRIDS},state="failed"}})',
            steps=NONE_IS_GOOD,
            width=3,
            is_now=True,
        )
    )
    made = made.with_panel(
        number(
            "Images per second",
            "Training images of all runs together, over the last five minutes.",
            "img/s",
            f"sum (run:grid_run_images:rate5m{{{PLACE}}})",
            width=3,
            decimals=0,
            is_now=True,
        )
    )
    made = made.with_panel(
        number(
            "Since the last pass",
            "Time since the controller last looked at its grids, of the one that did longest ago. At most ten minutes "
            "where nothing is left to do.",
            "dtdurations",
            f"time() - min (grid_reconcile_timestamp_seconds{{{PLACE}}} and on (namespace, pod) "
            f"grid_controller_leading{{{PLACE}}} == 1)",
            steps=((None, "green"), (700, "orange")),
            width=3,
            is_now=True,
        )
    )
    made = made.with_panel(
        number(
            "Pods without metrics",
            "Trainers and controllers that Prometheus finds but cannot scrape. GridMetricsMissing names them.",
            "none",
            f'count (up{{{PLACE},job=~"experiment-grid-(controller|trainer)"}} == 0) or vector(0)',
            steps=NONE_IS_GOOD,
            width=3,
            is_now=True,
        )
    )
    by_grid = "sum by (namespace, grid)"
    return made.with_panel(
        rows(
            "Grids",
            "Every grid that stands on the cluster; a click on its name leads to its own dashboard. To spare: between "
            "the expected end and the deadline that its file sets. GPU-hours: within the time shown.",
            [
                Column("grid", link=OPEN_GRID),
                Column("namespace"),
                Column(
                    "done",
                    "percentunit",
                    f'{by_grid} (grid_runs{{{OF_GRIDS},state="done"}}) / {by_grid} (grid_runs{{{OF_GRIDS}}})',
                    is_gauge=True,
                ),
                Column("runs", expression=f"{by_grid} (grid_runs{{{OF_GRIDS}}})"),
                Column("at work", expression=f'{by_grid} (grid_runs{{{OF_GRIDS},state=~"{AT_WORK}"}})'),
                Column("waiting", expression=f'{by_grid} (grid_runs{{{OF_GRIDS},state=~"{TO_COME}"}})'),
                Column(
                    "failed",
                    expression=f'{by_grid} (grid_runs{{{OF_GRIDS},state="failed"}})',
                    steps=((None, "text"), (1, "red")),
                ),
                Column(
                    "ends",
                    "dateTimeAsLocal",
                    f"max by (namespace, grid) (grid_completion_timestamp_seconds{{{OF_GRIDS}}}) * 1000",
                ),
                Column(
                    "to spare",
                    "dtdurations",
                    f"max by (namespace, grid) (grid_deadline_timestamp_seconds{{{OF_GRIDS}}}) - "
                    f"max by (namespace, grid) (grid_completion_timestamp_seconds{{{OF_GRIDS}}})",
                    steps=((None, "red"), (0, "orange"), (3600, "green")),
                ),
                Column(
                    "GPU-hours",
                    "h",
                    f"sum by (namespace, grid) (increase(grid_gpu_seconds_total{{{OF_GRIDS}}}[$__range])) / 3600",
                    decimals=1,
                ),
            ],
            sort="at work",
            height=9,
        )
    )


def _work(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Work and queue"))
    made = made.with_panel(
        coloured(
            lines(
                "Runs by state",
                "What all runs are doing: waiting for a place or a decision, queued for a quota, pending on a node or "
                "an image, starting until the first step, running, done, failed, cancelled.",
                "none",
                [query(f"sum by (state) (grid_runs{{{OF_GRIDS}}})", "{{state}}")],
                stacked=True,
                low=0,
            ),
            STATE_COLOURS,
        )
    )
    made = made.with_panel(
        lines(
            "Images per second by grid",
            "Training images of each grid's runs, over five minutes. A run that two grids share counts for both.",
            "img/s",
            [query(f"sum by (grid) (grid:grid_run_images:rate5m{{{OF_GRIDS}}})", "{{grid}}")],
            low=0,
        )
    )
    for title, histogram, description in WAITS:
        made = made.with_panel(
            lines(
                title,
                f"{description} Nine of ten of those that began within an hour, by grid.",
                "s",
                [query(quantile(0.9, histogram, OF_GRIDS, "grid", over="1h"), "{{grid}}")],
                width=8,
                low=0,
            )
        )
    return made.with_panel(
        bars(
            "Failed attempts within a day",
            "Attempts that failed in the last 24 hours, by grid and reason, retries included.",
            "none",
            f"{count('grid_failures_total', OF_GRIDS, '1d', 'grid, reason')} > 0",
            "{{grid}}: {{reason}}",
            steps=((None, "orange"), (3, "red")),
            width=8,
            absent="none",
        )
    )


def _controller(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Controller"))
    made = made.with_panel(
        lines(
            "Time of a pass",
            "How long the controller takes to look at all its grids and act, median and nine of ten.",
            "s",
            [
                query(quantile(0.5, "grid_reconcile_seconds", PLACE), "median", ref="A"),
                query(quantile(0.9, "grid_reconcile_seconds", PLACE), "nine of ten", ref="B"),
            ],
            width=8,
            low=0,
        )
    )
    made = made.with_panel(
        lines(
            "API requests",
            "Requests to the Kubernetes API a second, by verb and answer. 409 and 404 are answers; 429 and 5xx are "
            "a server that has too much to do.",
            "reqps",
            [query(rate("grid_api_requests_total", PLACE, "verb, code"), "{{verb}} {{code}}")],
            width=8,
            low=0,
        )
    )
    made = made.with_panel(
        lines(
            "Watches begun again",
            "Watches of Jobs, pods and other objects that ended and were begun again within five minutes.",
            "none",
            [query(count("grid_watch_restarts_total", PLACE, "5m", "resource"), "{{resource}}")],
            width=8,
            low=0,
        )
    )
    made = made.with_panel(
        lines(
            "Actions that wait",
            "What the controller's last pass decided and did not do; the next one decides anew. A line that does not "
            "come down means that the API server refuses or is slow.",
            "none",
            [query(f"max by (namespace) (grid_pending_actions{{{PLACE}}})", "{{namespace}}")],
            width=8,
            low=0,
        )
    )
    made = made.with_panel(
        lines(
            "Store, as the controller sees it",
            "Nine of ten of the controller's requests to the store took less than this, by what they do.",
            "s",
            [query(quantile(0.9, "grid_store_request_seconds", PLACE, "operation"), "{{operation}}")],
            width=8,
            low=0,
        )
    )
    return made.with_panel(
        lines(
            "Store errors",
            "Requests to the store within five minutes that came to nothing, of runs and of controllers, by what was "
            "wrong.",
            "none",
            [
                query(f"{count('grid_run_store_errors_total', PLACE, '5m', 'kind')} > 0", "runs: {{kind}}"),
                query(
                    f"{count('grid_store_errors_total', PLACE, '5m', 'kind')} > 0",
                    "controller: {{kind}}",
                    ref="B",
                ),
            ],
            width=8,
            low=0,
        )
    )


def _gpus(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("GPUs, where DCGM's exporter runs"))
    made = made.with_panel(
        number(
            "GPUs that train",
            "GPUs in pods of runs.",
            "none",
            f"count (run:dcgm_gpu_utilization:ratio{{{PLACE}}})",
            absent="no DCGM",
            is_now=True,
        )
    )
    made = made.with_panel(
        number(
            "Mean utilisation",
            "Share of the time that the GPUs in pods of runs did anything at all.",
            "percentunit",
            f"avg (run:dcgm_gpu_utilization:ratio{{{PLACE}}})",
            steps=BUSY,
            absent="no DCGM",
            is_now=True,
        )
    )
    made = made.with_panel(
        lines(
            "GPU utilisation by run",
            "Share of the time that the GPU of each run did anything at all. GridGPUIdle fires below 10 %.",
            "percentunit",
            [query(f"max by (run, gpu) (run:dcgm_gpu_utilization:ratio{{{PLACE}}})", "{{run}}, GPU {{gpu}}")],
            width=8,
            low=0,
            high=1,
            has_legend=False,
        )
    )
    return made.with_panel(
        lines(
            "GPU memory by run",
            "Memory in use on the GPU of each run.",
            "bytes",
            [query(f"max by (run, gpu) (run:dcgm_fb_used:bytes{{{PLACE}}})", "{{run}}, GPU {{gpu}}")],
            width=8,
            low=0,
            has_legend=False,
        )
    )
