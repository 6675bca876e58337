"""The dashboard of one grid: how far it is, what it has found, what fails, when it ends."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from k8s.monitoring.panels import (
    GRID,
    KEPT,
    NONE_IS_GOOD,
    RUN,
    STATE_COLOURS,
    Column,
    bars,
    board,
    by_query,
    coloured,
    lines,
    number,
    query,
    rows,
    variable,
)
from k8s.monitoring.queries import (
    OF_GRID,
    PLACE,
    ROW,
    WAITS,
    by_experiment,
    count,
    last,
    newest,
    of_rows,
    quantile,
    with_label,
)

OPEN_RUN = f"/d/{RUN}?{KEPT}&var-grid=$grid&var-run=${{__data.fields.run}}"


def grid_board() -> dashboard.Dashboard:
    """The dashboard "Grid"."""
    made = board(
        "Grid",
        GRID,
        "One grid: how far each stage is, the numbers so far, what failed and why, and when it will be done.",
        since="now-6h",
    )
    made = made.with_variable(variable("grid", f"label_values(grid_runs{{{PLACE}}}, grid)", "the grid shown"))
    made = made.with_variable(
        variable(
            "stage",
            f"label_values(grid_run_info{{{OF_GRID}}}, stage)",
            "stages shown in curves and tables",
            is_all=True,
            is_several=True,
        )
    )
    made = made.with_variable(
        variable(
            "run",
            f'label_values(grid_run_info{{{OF_GRID},stage=~"$stage"}}, run)',
            "runs that the curves show in colour",
            is_several=True,
            label="highlighted run",
        )
    )
    for part in (_progress, _results, _failures, _times):
        made = part(made)
    return made


def _progress(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("How far"))
    made = made.with_panel(
        number(
            "Done",
            "Share of the grid's runs, as far as its decisions name them, that have their result. Later stages are "
            "counted once the stage before has decided.",
            "percentunit",
            f'sum (grid_runs{{{OF_GRID},state="done"}}) / sum (grid_runs{{{OF_GRID}}})',
            steps=((None, "blue"), (1, "green")),
        )
    )
    made = made.with_panel(
        number(
            "Ends",
            "When the controller expects the grid's last run to end, by the speed of its runs so far. Empty while no "
            "epoch has ended, or while the grid is paused.",
            "dateTimeAsLocal",
            f"max (grid_completion_timestamp_seconds{{{OF_GRID}}}) * 1000",
            absent="unknown yet",
            width=5,
        )
    )
    made = made.with_panel(
        number(
            "To spare before the deadline",
            "Time between the expected end and the `deadline` that the grid's file sets: below zero it will be missed.",
            "dtdurations",
            f"max (grid_deadline_timestamp_seconds{{{OF_GRID}}}) - max "
            f"(grid_completion_timestamp_seconds{{{OF_GRID}}})",
            steps=((None, "red"), (0, "orange"), (3600, "green")),
            absent="no deadline",
        )
    )
    made = made.with_panel(
        number(
            "Failed runs",
            "Runs that are not tried again until `grid retry` clears their failure. The table of failures below says "
            "why.",
            "none",
            f'sum (grid_runs{{{OF_GRID},state="failed"}})',
            steps=NONE_IS_GOOD,
            width=3,
        )
    )
    made = made.with_panel(
        number(
            "GPU-hours",
            "Time for which the grid's pods held GPUs, each GPU counted, within the time shown. 0 on CPUs.",
            "h",
            f"sum (increase(grid_gpu_seconds_total{{{OF_GRID}}}[$__range])) / 3600",
            decimals=1,
            is_now=True,
        )
    )
    made = made.with_panel(
        number(
            "Images per second",
            "Training images of all runs of the grid together, over the last five minutes.",
            "img/s",
            f"sum (grid:grid_run_images:rate5m{{{OF_GRID}}})",
            is_trend=True,
            decimals=0,
        )
    )
    made = made.with_panel(
        bars(
            "Stages",
            "Share of each stage's work that is done, unfinished runs counted by their epochs. A stage stands at 0 "
            "until the one it starts from has decided.",
            "percentunit",
            f"max by (stage) (grid_stage_progress_ratio{{{OF_GRID}}})",
            "{{stage}}",
            steps=((None, "blue"), (1, "green")),
            high=1,
        )
    )
    return made.with_panel(
        coloured(
            lines(
                "Runs by state",
                "What the grid's runs are doing: waiting for a place or a decision, queued for a quota, pending on a "
                "node or an image, starting until the first step, running, done, failed, cancelled.",
                "none",
                [query(f"sum by (state) (grid_runs{{{OF_GRID}}})", "{{state}}")],
                stacked=True,
                low=0,
                legend_values=("lastNotNull",),
            ),
            STATE_COLOURS,
        )
    )


def _results(made: dashboard.Dashboard) -> dashboard.Dashboard:
    best = "run:grid_run_best_validation_accuracy:ratio"
    loss = "run:grid_run_best_validation_loss:nats"
    made = made.with_row(dashboard.Row("Results so far"))
    made = made.with_panel(
        rows(
            "Table so far",
            "Each experiment over its seeds, every run at its best epoch within the time shown: what `grid table` "
            "shows, before all of it has ended. Numbers of unfinished runs still move, so that rows may change places.",
            [
                Column("stage"),
                Column("experiment"),
                Column("seeds", expression=by_experiment("count", last(best))),
                Column(
                    "validation accuracy",
                    "percentunit",
                    by_experiment("avg", last(best)),
                    is_gauge=True,
                    decimals=1,
                ),
                Column("± std", "percentunit", by_experiment("stddev", last(best)), decimals=1),
                Column("validation loss", "none", by_experiment("avg", last(loss)), decimals=3),
                Column(
                    "epochs done", "percentunit", by_experiment("avg", last("run:grid_run_progress:ratio")), decimals=0
                ),
            ],
            sort="validation accuracy",
        )
    )
    for title, metric, unit, high in (
        ("Validation accuracy", "grid_run_accuracy_ratio", "percentunit", 1.0),
        ("Validation loss", "grid_run_loss_nats", "none", None),
    ):
        value = newest(metric, f'{PLACE},part="validation"')
        panel = lines(
            title,
            f"{title} of the last whole epoch of every run of the chosen stages in grey, the highlighted runs in "
            f"colour." + (" In nats per image." if unit == "none" else ""),
            "percentunit" if unit == "percentunit" else "none",
            [
                query(of_rows(value), ROW, ref="A"),
                query(f'{of_rows(value)} and on (run) grid_run_info{{run=~"$run"}}', ROW, ref="B"),
            ],
            high=high,
            low=0,
            has_legend=False,
            height=10,
        )
        panel = by_query(panel, "A", {"color": {"mode": "fixed", "fixedColor": "rgba(140, 140, 140, 0.45)"}})
        made = made.with_panel(by_query(panel, "B", {"custom.lineWidth": 3}))
    return made


def _failures(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("What lags, and what fails"))
    done = of_rows(newest("run:grid_run_progress:ratio"))
    made = made.with_panel(
        bars(
            "Runs that are least far",
            "The ten runs at work with the smallest share of their epochs done.",
            "percentunit",
            f"bottomk (10, max by (experiment, seed) ({done} < 1))",
            "{{experiment}}, seed {{seed}}",
            high=1,
        )
    )
    made = made.with_panel(
        lines(
            "Failed attempts by reason",
            "Attempts that failed within the last hour, those that were tried again too: for the spec, the data, the "
            "store, the training, the device, want of memory (oom), the image and so on. A stop is no failure.",
            "none",
            [query(f"{count('grid_failures_total', OF_GRID, '1h', 'reason')} > 0", "{{reason}}")],
            low=0,
            stacked=True,
            legend_values=("lastNotNull",),
        )
    )
    progress, best = "run:grid_run_progress:ratio", "run:grid_run_best_validation_accuracy:ratio"
    failed = f"and on (namespace, run) grid_run_failure{{{PLACE}}}"
    made = made.with_panel(
        rows(
            "Failures",
            "Runs of the chosen stages that failed for good, and why. `grid logs RUN` shows their last words, `grid "
            "retry` clears the failure so that they are tried again. Empty is good.",
            [
                Column("run", link=OPEN_RUN),
                Column("stage"),
                Column("experiment"),
                Column("seed"),
                Column("reason"),
                Column("failed", expression=with_label("reason", "grid_run_failure"), is_hidden=True),
                Column("epochs done", "percentunit", f"{of_rows(last(progress))} {failed}", decimals=0),
            ],
            sort="experiment",
            descending=False,
            height=7,
        )
    )
    return made.with_panel(
        rows(
            "Runs",
            "Every run of the chosen stages: how it stands, and what it last said of itself in the time shown; a "
            "click on its id leads to its own dashboard. An attempt above 1 means that it was interrupted or failed "
            "before.",
            [
                Column("run", link=OPEN_RUN),
                Column("stage"),
                Column("experiment"),
                Column("seed"),
                Column("state"),
                Column("standing", expression=with_label("state", "grid_run_state"), is_hidden=True),
                Column("epochs done", "percentunit", of_rows(last(progress)), is_gauge=True),
                Column("best accuracy", "percentunit", of_rows(last(best)), decimals=1),
                Column("attempt", "none", of_rows(last("grid_run_attempt")), steps=((None, "text"), (2, "orange"))),
            ],
            sort="epochs done",
            descending=False,
        )
    )


def _times(made: dashboard.Dashboard) -> dashboard.Dashboard:
    made = made.with_row(dashboard.Row("What it waits for, and what it takes"))
    for title, histogram, description in WAITS:
        made = made.with_panel(
            lines(
                title,
                f"{description} Median and nine of ten, of the runs that began within an hour.",
                "s",
                [
                    query(quantile(0.5, histogram, OF_GRID, over="1h"), "median", ref="A"),
                    query(quantile(0.9, histogram, OF_GRID, over="1h"), "nine of ten", ref="B"),
                ],
                width=8,
                low=0,
            )
        )
    return made.with_panel(
        lines(
            "Attempts and GPUs",
            "Attempts begun within an hour, and GPUs that the grid's pods hold on average over five minutes.",
            "none",
            [
                query(count("grid_attempts_total", OF_GRID, "1h"), "attempts begun", ref="A"),
                query(f"sum (rate(grid_gpu_seconds_total{{{OF_GRID}}}[5m]))", "GPUs held", ref="B"),
            ],
            width=8,
            low=0,
        )
    )
