"""The dashboard of one run: its curves, its speed, where its time and memory go, and where its log is."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard, prometheus

from k8s.monitoring.panels import (
    BUSY,
    FULL,
    GRID,
    KEPT,
    NONE_IS_GOOD,
    RUN,
    SOURCE,
    board,
    buckets,
    by_query,
    lines,
    note,
    number,
    query,
    variable,
)
from k8s.monitoring.queries import OF_RUN, PLACE, count, quantile, rate

LOGS = """\
```sh
grid logs $run -f                                    # the newest attempt; from the store when its pod is gone
kubectl logs job/$run --follow                       # of the pod, in the namespace of the run
kubectl describe job $run                            # what the controller and Kubernetes said of it
```

The dashboard of its grid: [$grid](/d/{grid}?{kept}&var-grid=${{grid:percentencode}}&var-run=$run).
"""


def run_board() -> dashboard.Dashboard:
    """The dashboard "Run"."""
    made = board(
        "Run",
        RUN,
        "One run: curves, speed, where its time goes, memory, checkpoints, its requests to the store, its GPU, its "
        "log.",
        since="now-3h",
    )
    made = made.with_variable(
        variable("grid", f"label_values(grid_run_info{{{PLACE}}}, grid)", "the grid whose runs are offered")
    )
    offered = f'grid_run_info{{{PLACE},grid="$grid"}}'
    made = made.with_variable(variable("run", f"label_values({offered}, run)", "the run shown"))
    for name, expression, colour in (
        ("attempt", f"grid_run_attempt{{{OF_RUN}}} unless on (run, pod) "
                    f"grid_run_attempt{{{OF_RUN}}} offset 2m", "blue"),
        ("return to best", f"increase(grid_run_returns_to_best_total{{{OF_RUN}}}[2m]) > 0", "orange"),
        ("restart", f"increase(grid_run_restarts_total{{{OF_RUN}}}[2m]) > 0", "red"),
    ):  # fmt: skip
        mark = dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour)
        made = made.annotation(mark.expr(expression))
    for part in (_now, _curves, _speed, _memory, _store, _gpu, _log):
        made = part(made)
    return made


def _now(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Now"))
    for title, metric, label, absent, description in (
        ("State", "grid_run_state", "state", "no grid", "How the run stands, as its controller sees it."),
        ("Failed", "grid_run_failure", "reason", "no", "Why it failed for good; `grid retry` clears that."),
    ):
        asked = f"max by ({label}) ({metric}{{{OF_RUN}}})"
        legend = f"{{{{{label}}}}}"
        made = made.with_panel(
            number(title, description, "none", asked, legend=legend, absent=absent, width=3, is_name=True, is_now=True)
        )
    epochs = f"max (grid_run_epoch{{{OF_RUN}}})"
    made = made.with_panel(
        number(
            "Epochs done",
            "Whole epochs that the run has behind it, earlier attempts included.",
            "none",
            epochs,
            width=2,
        )
    )
    made = made.with_panel(
        number(
            "of its epochs",
            "Share of the epochs that the run is to have.",
            "percentunit",
            f"max (run:grid_run_progress:ratio{{{OF_RUN}}})",
            steps=((None, "blue"), (1, "green")),
            width=2,
        )
    )
    made = made.with_panel(
        number(
            "Best validation accuracy",
            "Of the best epoch so far, by the run's own rule of what is best.",
            "percentunit",
            f"max (grid_run_best_validation_accuracy_ratio{{{OF_RUN}}})",
            decimals=1,
            width=3,
        )
    )
    made = made.with_panel(
        number(
            "in epoch",
            "Number of the best epoch so far, from 1.",
            "none",
            f"max (grid_run_best_epoch{{{OF_RUN}}})",
            width=2,
        )
    )
    made = made.with_panel(
        number(
            "Images per second",
            "Training images, over the last five minutes, validation and checkpoints in between included.",
            "img/s",
            f"sum (run:grid_run_images:rate5m{{{OF_RUN}}})",
            width=3,
            is_trend=True,
            decimals=0,
        )
    )
    made = made.with_panel(
        number(
            "Since the last step",
            "Time since the last optimiser step or validation batch. GridRunStalled fires after a quarter of an hour.",
            "dtdurations",
            f"time() - max (grid_run_last_step_timestamp_seconds{{{OF_RUN}}})",
            steps=((None, "green"), (120, "orange"), (900, "red")),
            width=2,
            is_now=True,
        )
    )
    made = made.with_panel(
        number(
            "Attempt",
            "Number of the attempt that runs, or ran last. Above 1 the run was interrupted, or an attempt failed.",
            "none",
            f"max (grid_run_attempt{{{OF_RUN}}})",
            steps=((None, "green"), (2, "orange")),
            width=2,
        )
    )
    return made.with_panel(
        number(
            "Restarts",
            "Epochs that this attempt began again because the loss was not finite, each with a lower learning rate.",
            "none",
            f"max (grid_run_restarts_total{{{OF_RUN}}})",
            steps=NONE_IS_GOOD,
            width=2,
        )
    )


def _curves(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Curves"))
    made = made.with_panel(
        lines(
            "Loss",
            "Mean loss per image of the last whole epoch, in nats; training's is the running mean in training mode. "
            "Marked: attempts, returns to the best epoch, restarts.",
            "none",
            [
                query(f"max by (part) (grid_run_loss_nats{{{OF_RUN}}})", "{{part}}", ref="A"),
                query(f"min (grid_run_best_validation_loss_nats{{{OF_RUN}}})", "best validation", ref="B"),
            ],
            low=0,
            width=9,
        )
    )
    made = made.with_panel(
        lines(
            "Accuracy",
            "Share of right answers in the last whole epoch, and at the best epoch so far.",
            "percentunit",
            [
                query(f"max by (part) (grid_run_accuracy_ratio{{{OF_RUN}}})", "{{part}}", ref="A"),
                query(f"max (grid_run_best_validation_accuracy_ratio{{{OF_RUN}}})", "best validation", ref="B"),
            ],
            low=0,
            high=1,
            width=9,
        )
    )
    return made.with_panel(
        lines(
            "Learning rate",
            "Learning rate of the last optimiser step, on a logarithmic axis.",
            "none",
            [query(f"max (grid_run_learning_rate{{{OF_RUN}}})", "learning rate")],
            width=6,
            logarithmic=True,
        )
    )


def _speed(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Speed"))
    made = made.with_panel(
        lines(
            "Images per second",
            "Images that were trained on, and that were looked at in validation.",
            "img/s",
            [query(rate("grid_run_images_total", OF_RUN, "part"), "{{part}}")],
            width=8,
            low=0,
        )
    )
    made = made.with_panel(
        buckets(
            "Step time",
            "How long optimiser steps take, waiting for their images included: the darker, the more steps. A second "
            "band above the first means that some steps wait.",
            "s",
            f"sum by (le) (increase(grid_run_step_seconds_bucket{{{OF_RUN}}}[$__rate_interval]))",
            width=8,
        )
    )
    return made.with_panel(
        lines(
            "Where the time goes",
            "Shares of the training thread's time, which come to 100 %. On a GPU forward, backward and optimizer are "
            "the host's time to ask for them, and device is the wait until the GPU has done them. Much data: the "
            "images come too slowly. Much store: the store does.",
            "percentunit",
            [query(rate("grid_run_phase_seconds_total", OF_RUN, "phase"), "{{phase}}")],
            width=8,
            stacked=True,
            low=0,
            legend_values=("mean",),
        )
    )


def _memory(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Memory and checkpoints"))
    for place, used, title, limit in (
        ("of the host", "resident", "Memory", "grid_run_memory_limit_bytes"),
        ("of the GPU", "device", "GPU memory", "grid_run_device_memory_limit_bytes"),
    ):
        panel = lines(
            title,
            f"Memory {place} that the run uses, the most it has used, and the limit"
            + (" at which it is killed." if used == "resident" else ". Empty on a CPU."),
            "bytes",
            [
                query(f"max (grid_run_{used}_memory_bytes{{{OF_RUN}}})", "used", ref="A"),
                query(f"max (grid_run_{used}_memory_peak_bytes{{{OF_RUN}}})", "peak", ref="B"),
                query(f"max ({limit}{{{OF_RUN}}})", "limit", ref="C"),
            ],
            width=8,
            low=0,
        )
        made = made.with_panel(by_query(panel, "C", {"color": {"mode": "fixed", "fixedColor": "red"}}))
    made = made.with_panel(
        number(
            "Memory used",
            "Share of the host's memory limit that the run holds now; at 100 % it is killed.",
            "percentunit",
            f"max (run:grid_run_memory:ratio{{{OF_RUN}}})",
            steps=FULL,
            absent="no limit",
        )
    )
    made = made.with_panel(
        number(
            "Newest checkpoint",
            "Size of the newest checkpoint.",
            "bytes",
            f"max (grid_run_checkpoint_bytes{{{OF_RUN}}})",
            absent="none yet",
        )
    )
    made = made.with_panel(
        lines(
            "Checkpoint's age",
            "Time since the newest checkpoint was whole in the store: what a kill at this moment would cost. One is "
            "due every `checkpoint.every` seconds, 60 by default.",
            "s",
            [query(f"time() - max (grid_run_checkpoint_timestamp_seconds{{{OF_RUN}}})", "age")],
            steps=((None, "green"), (300, "orange"), (1800, "red")),
            low=0,
        )
    )
    panel = lines(
        "Checkpoints",
        "How long the newest checkpoint took to write, beside the training, and how many were written in five minutes.",
        "s",
        [
            query(f"max (grid_run_checkpoint_seconds{{{OF_RUN}}})", "time to write the newest", ref="A"),
            query(count("grid_run_checkpoints_total", OF_RUN, "5m"), "written in five minutes", ref="B"),
        ],
        low=0,
    )
    return made.with_panel(by_query(panel, "B", {"unit": "none", "custom.axisPlacement": "right"}))


def _store(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Store, and what went wrong"))
    made = made.with_panel(
        lines(
            "Requests to the store",
            "Requests a second by what they do, repeated ones each.",
            "reqps",
            [query(rate("grid_run_store_requests_total", OF_RUN, "operation"), "{{operation}}")],
            width=6,
            low=0,
        )
    )
    made = made.with_panel(
        lines(
            "Time of a request",
            "Nine of ten requests to the store took less than this, by what they do.",
            "s",
            [query(quantile(0.9, "grid_run_store_request_seconds", OF_RUN, "operation"), "{{operation}}")],
            width=6,
            low=0,
        )
    )
    made = made.with_panel(
        lines(
            "Store errors",
            "Requests within five minutes that came to nothing, and those that were sent again, by what was wrong.",
            "none",
            [
                query(count("grid_run_store_errors_total", OF_RUN, "5m", "kind"), "{{kind}}", ref="A"),
                query(
                    count("grid_run_store_retries_total", OF_RUN, "5m", "kind"),
                    "{{kind}}, again",
                    ref="B",
                ),
            ],
            width=6,
            low=0,
        )
    )
    return made.with_panel(
        lines(
            "Returns and restarts",
            "Of the attempt that runs: returns to the best epoch after patience ran out, and epochs begun again "
            "because the loss was not finite. And the attempt's number.",
            "none",
            [
                query(f"max (grid_run_returns_to_best_total{{{OF_RUN}}})", "returns to best", ref="A"),
                query(f"max (grid_run_restarts_total{{{OF_RUN}}})", "restarts", ref="B"),
                query(f"max (grid_run_attempt{{{OF_RUN}}})", "attempt", ref="C"),
            ],
            width=6,
            low=0,
        )
    )


def _gpu(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("GPU, where DCGM's exporter runs"))
    made = made.with_panel(
        lines(
            "GPU utilisation",
            "Share of the time that the GPU did anything at all.",
            "percentunit",
            _by_gpu("run:dcgm_gpu_utilization:ratio"),
            width=8,
            low=0,
            high=1,
            steps=BUSY,
        )
    )
    made = made.with_panel(
        lines(
            "GPU memory in use",
            "Memory of the GPU in use, by whatever process.",
            "bytes",
            _by_gpu("run:dcgm_fb_used:bytes"),
            width=8,
            low=0,
        )
    )
    return made.with_panel(
        lines(
            "GPU power",
            "Power that the GPU draws: low at a high utilisation means small kernels.",
            "watt",
            _by_gpu("run:dcgm_power_usage:watts"),
            width=8,
            low=0,
        )
    )


def _by_gpu(metric: str) -> list[prometheus.Dataquery]:
    return [query(f"max by (gpu) ({metric}{{{OF_RUN}}})", "GPU {{gpu}}")]


def _log(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("Log"))
    return made.with_panel(
        note("Its log", "Where the run's log is, and the way back to its grid.", LOGS.format(grid=GRID, kept=KEPT))
    )
