"""The kinds of panel that the dashboards are made of, each with what every panel must have: a description, a unit.

Grafana's model of them: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import text as text_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "experiment-grid"
GRID, RUN, FLEET = "experiment-grid-grid", "experiment-grid-run", "experiment-grid-fleet"  # the dashboards' uids
KEPT = "${__url_time_range}&${datasource:queryparam}&${namespace:queryparam}"  # in every link: time and where from

Unit = Literal[
    "none",
    "percentunit",
    "s",
    "dtdurations",
    "h",
    "bytes",
    "dateTimeAsLocal",
    "reqps",
    "ops",
    "img/s",
    "watt",
    "celsius",
]
UNITS: Mapping[str, str] = {"img/s": "suffix: img/s"}  # Grafana's own name of a unit, where it is another
Steps = Sequence[tuple[float | None, str]]  # from this value on this colour; None: from the lowest
PLAIN: Steps = ((None, "blue"),)
NONE_IS_GOOD: Steps = ((None, "green"), (1, "red"))
FULL: Steps = ((None, "green"), (0.85, "orange"), (0.95, "red"))  # a share of what there is
BUSY: Steps = ((None, "red"), (0.1, "orange"), (0.5, "green"))

STATE_COLOURS: Mapping[str, str] = {
    "done": "green",
    "running": "blue",
    "starting": "light-blue",
    "pending": "light-purple",
    "queued": "purple",
    "waiting": "text",
    "cancelled": "super-light-orange",
    "failed": "red",
}

AnyPanel = TypeVar(
    "AnyPanel", stat.Panel, timeseries.Panel, bargauge.Panel, table.Panel, heatmap.Panel
)  # they share no base with these methods


def query(expression: str, legend: str = "", *, ref: str = "A", now: bool = False) -> prometheus.Dataquery:
    """One query of a panel; `now` asks for the last value alone, in a form that tables take."""
    made = prometheus.Dataquery().expr(expression).ref_id(ref).legend_format(legend).datasource(SOURCE)
    made = made.editor_mode(prometheus_models.QueryEditorMode.CODE)
    if now:
        return made.instant().format(prometheus_models.PromQueryFormat.TABLE)
    return made.range().format(prometheus_models.PromQueryFormat.TIME_SERIES)


def number(
    title: str,
    description: str,
    unit: Unit,
    expression: str,
    *,
    steps: Steps = PLAIN,
    width: int = 4,
    legend: str = "",
    decimals: int | None = None,
    absent: str = "–",
    is_trend: bool = False,
    is_now: bool = False,
    is_name: bool = False,
) -> stat.Panel:
    """A number: the last in the time shown, or with `is_now` the one at its end, absent if there is none any more.

    `is_name` shows the name of its series instead: what a label says.
    """
    asked = query(expression, legend)
    panel = _common(stat.Panel(), title, description, unit, steps, width, 4)
    panel = panel.with_target(asked.instant() if is_now else asked)
    panel = panel.no_value(absent).color_mode(common_models.BigValueColorMode.VALUE)
    panel = panel.graph_mode(
        common_models.BigValueGraphMode.AREA if is_trend else common_models.BigValueGraphMode.NONE
    ).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if decimals is not None:
        panel = panel.decimals(decimals)
    if is_name:
        panel = panel.text_mode(common_models.BigValueTextMode.NAME)
    return panel


def lines(
    title: str,
    description: str,
    unit: Unit,
    queries: Sequence[prometheus.Dataquery],
    *,
    width: int = 12,
    height: int = 8,
    steps: Steps | None = None,
    stacked: bool = False,
    low: float | None = None,
    high: float | None = None,
    legend_values: Sequence[str] = (),
    has_legend: bool = True,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Curves over time; `steps` draws the thresholds as lines."""
    panel = _common(timeseries.Panel(), title, description, unit, steps or PLAIN, width, height).targets(list(queries))
    panel = panel.line_width(1).show_points(common_models.VisibilityMode.AUTO).span_nulls(False)
    panel = panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    shown = common.VizLegendOptions().show_legend(has_legend).placement(common_models.LegendPlacement.BOTTOM)
    mode = common_models.LegendDisplayMode.TABLE if legend_values else common_models.LegendDisplayMode.LIST
    panel = panel.legend(shown.display_mode(mode).calcs(list(legend_values)))
    panel = panel.tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL)).fill_opacity(40)
    if steps:
        style = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    if low is not None:
        panel = panel.min(low)
    if high is not None:
        panel = panel.max(high)
    return panel


def bars(
    title: str,
    description: str,
    unit: Unit,
    expression: str,
    legend: str,
    *,
    steps: Steps = PLAIN,
    width: int = 12,
    height: int = 8,
    high: float | None = None,
    absent: str = "–",
) -> bargauge.Panel:
    """A bar for each series, as long as its last value."""
    panel = _common(bargauge.Panel(), title, description, unit, steps, width, height)
    panel = panel.with_target(query(expression, legend)).no_value(absent).min(0)
    panel = panel.orientation(common_models.VizOrientation.HORIZONTAL)
    panel = panel.display_mode(common_models.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel if high is None else panel.max(high)


def buckets(
    title: str, description: str, unit: Unit, expression: str, *, width: int = 12, height: int = 8
) -> heatmap.Panel:
    """A histogram over time, from a query that gives its buckets."""
    panel = _common(heatmap.Panel(), title, description, unit, PLAIN, width, height)
    source = query(expression, "{{le}}").format(prometheus_models.PromQueryFormat.HEATMAP)
    colours = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    axis = heatmap.YAxisConfig().unit(unit)
    return panel.with_target(source).calculate(False).color(colours).y_axis(axis).show_y_histogram()


class Column:
    """A column of a table: one query's value, or a label."""

    def __init__(
        self,
        name: str,
        unit: Unit = "none",
        expression: str | None = None,
        *,
        steps: Steps | None = None,
        link: str | None = None,
        is_gauge: bool = False,
        decimals: int | None = None,
        is_hidden: bool = False,
    ) -> None:
        self.name = name
        self.unit = unit
        self.expression = expression
        self.steps = steps
        self.link = link
        self.is_gauge = is_gauge
        self.decimals = decimals
        self.is_hidden = is_hidden  # its query is there for the labels that it brings


def rows(
    title: str,
    description: str,
    columns: Sequence[Column],
    *,
    sort: str | None = None,
    descending: bool = True,
    width: int = 24,
    height: int = 10,
) -> table.Panel:
    """A table: rows of equal labels, a column for each label that is named and for each query, in the order given."""
    panel = _common(table.Panel(), title, description, "none", PLAIN, width, height)
    order: dict[str, int] = {}
    names: dict[str, str] = {}
    for index, column in enumerate(columns):
        ref = chr(ord("A") + index)
        if column.expression is not None:
            panel = panel.with_target(query(column.expression, now=True, ref=ref))
        if column.is_hidden:
            continue
        field = f"Value #{ref}" if column.expression is not None else column.name
        order[field], names[field] = index, column.name
        panel = panel.override_by_name(column.name, list(_column_properties(column)))
    assert sum(column.expression is not None for column in columns) > 1, "a single query's column has another name"
    wanted = "|".join(order)
    for name, options in (
        ("merge", {}),
        ("filterFieldsByName", {"include": {"pattern": f"^({wanted})$"}}),
        ("organize", {"indexByName": order, "renameByName": names, "excludeByName": {}}),
    ):
        panel = panel.with_transformation(models.DataTransformerConfig(id_val=name, options=options))
    if sort is not None:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(descending)])
    return panel.filterable(True)


def _column_properties(column: Column) -> Sequence[models.DynamicConfigValue]:
    found: list[tuple[str, Any]] = [("unit", UNITS.get(column.unit, column.unit))]
    if column.decimals is not None:
        found.append(("decimals", column.decimals))
    if column.steps is not None:
        found.append(("thresholds", _thresholds(column.steps).build()))
        found.append(("custom.cellOptions", {"type": "color-text"}))
    if column.is_gauge:
        found += [("min", 0), ("max", 1), ("custom.cellOptions", {"type": "gauge", "mode": "basic"})]
    if column.link is not None:
        found.append(("links", [{"title": "open", "url": column.link, "targetBlank": False}]))
    return [models.DynamicConfigValue(id_val=name, value=value) for name, value in found]


def note(title: str, description: str, content: str, *, width: int = 24, height: int = 5) -> text.Panel:
    """Text in Markdown, where variables are replaced."""
    panel = text.Panel().title(title).description(description).span(width).height(height)
    return panel.mode(text_models.TextMode.MARKDOWN).content(content)


def by_query(panel: timeseries.Panel, ref: str, properties: Mapping[str, Any]) -> timeseries.Panel:
    """The same panel, whose series of query `ref` look so."""
    values = [models.DynamicConfigValue(id_val=name, value=value) for name, value in properties.items()]
    return panel.override_by_query(ref, values)


def coloured(panel: timeseries.Panel, colours: Mapping[str, str]) -> timeseries.Panel:
    """The same panel, whose series of those names have those colours wherever they stand."""
    for name, colour in colours.items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_name(name, [fixed])
    return panel


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _common(
    panel: AnyPanel, title: str, description: str, unit: Unit, steps: Steps, width: int, height: int
) -> AnyPanel:
    panel = panel.title(title).description(description).datasource(SOURCE).unit(UNITS.get(unit, unit))
    panel = panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    return panel.thresholds(_thresholds(steps)).span(width).height(height)


ALL = models.VariableOption(selected=True, text="All", value="$__all")


def board(title: str, uid: str, description: str, since: str) -> dashboard.Dashboard:
    """An empty dashboard with links to the others, and with the variables of all: data source and namespace."""
    made = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).timezone("browser")
    made = made.time(since, "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR).readonly()
    others = dashboard.DashboardLink("experiment-grid").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    made = made.link(others.include_vars(True).keep_time(True).as_dropdown(False).icon("external link"))
    source = dashboard.DatasourceVariable("datasource").label("data source").type("prometheus")
    made = made.with_variable(source)
    return made.with_variable(
        variable("namespace", "label_values(grid_runs, namespace)", "namespaces of controllers", is_all=True)
    )


def variable(
    name: str,
    values: str,
    description: str,
    *,
    is_all: bool = False,
    is_several: bool = False,
    label: str | None = None,
) -> dashboard.QueryVariable:
    """A variable whose values are those of a label; `is_all` puts all of them first, so that nothing need be chosen."""
    asked: dict[str, object] = {"qryType": 1, "query": values, "refId": f"variable-{name}"}
    made = dashboard.QueryVariable(name).label(label or name).description(description).datasource(SOURCE).query(asked)
    made = made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    made = made.multi(is_several)
    return made.include_all(True).all_value(".*").current(ALL) if is_all else made
