"""Dashboards, rules and scrape configs ask for what is there, say what they show, and lead to one another.

What needs Prometheus' own parser wants promtool: monitoring/prometheus.py says where one is looked for.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from kubernetes_objects import check_schema
from monitoring.prometheus import discovered, program, quickened
from test_kustomize import kubectl, rendered

import k8s.monitoring.__main__ as monitoring_main
from controller.manifest import JobTemplate
from controller.settings import read_settings
from controller.standing import Work
from controller.telemetry import DESCRIPTIONS as OF_CONTROLLER
from controller.telemetry import ENDED_DESCRIPTIONS, STATES
from k8s.monitoring.generated import BOARDS, RULES, files, metric_table
from k8s.monitoring.panels import STATE_COLOURS
from trainer.telemetry import DESCRIPTIONS as OF_TRAINER
from trainer.telemetry import Metric

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "k8s" / "monitoring"
PAGE = ROOT / "docs" / "monitoring.md"
RULE_TESTS = ROOT / "tests" / "monitoring" / "rules.yaml"

TARGET_LABELS = {"namespace", "pod", "container", "job", "instance"}  # of PodMonitors and of the plain scrape config
# https://docs.nvidia.com/datacenter/dcgm/latest/gpu-telemetry/dcgm-exporter.html, with its Kubernetes mapping on
OF_DCGM = {
    name: {"gpu", "exported_pod", "exported_namespace"}
    for name in ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE")
}
OF_PROMETHEUS: dict[str, set[str]] = {"up": set()}
VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "6h",
    "$namespace": "lab",
    "$grid": "birds",
    "$stage": "rate",
    "$run": "alexnet-0123456789ab",
}
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool"}


needs_promtool = pytest.mark.skipif(
    program("promtool") is None,
    reason="no promtool on PATH, in PROMTOOL or in the cache, where `make test-cluster` puts Debian's",
)


def run_promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    promtool = program("promtool")
    assert promtool is not None
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)


@functools.cache
def model(name: str) -> dict[str, Any]:
    """The committed dashboard."""
    found: dict[str, Any] = json.loads((FOLDER / "dashboards" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def panels(name: str) -> list[dict[str, Any]]:
    return [each for each in model(name)["panels"] if each["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


class Asked(NamedTuple):
    """A query and where it stands."""

    where: str
    expression: str


def asked(values: Mapping[str, str] = VARIABLES) -> Iterator[Asked]:
    """Every query of dashboards, their annotations and variables, and of rules; variables have these values."""
    for name in BOARDS:
        for panel in panels(name):
            for target in panel.get("targets", ()):
                yield Asked(f"{name}: {panel['title']} {target['refId']}", valued(target["expr"], values))
        for each in model(name).get("annotations", {}).get("list", ()):
            if "expr" in each:
                yield Asked(f"{name}: annotation {each['name']}", valued(each["expr"], values))
        for variable in model(name)["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
                assert found is not None, variable
                yield Asked(
                    f"{name}: variable {variable['name']}", f"count by ({found[2]}) ({valued(found[1], values)})"
                )
    for rule in rules():
        yield Asked(f"rule {rule.get('alert') or rule['record']}", rule["expr"])


def valued(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    assert "$" not in text, text
    return text


def known() -> dict[str, set[str]]:
    """The labels of every series that may be asked for, by its name."""
    found: dict[str, set[str]] = {**OF_DCGM, **OF_PROMETHEUS}
    for metric in (*OF_TRAINER, *OF_CONTROLLER):
        if metric.type == "histogram":
            found[f"{metric.name}_bucket"] = {*metric.labels, "le"}
            found[f"{metric.name}_count"] = found[f"{metric.name}_sum"] = set(metric.labels)
        else:
            found[metric.name] = set(metric.labels)
    for name in RECORDED:  # by which level it is: its name begins with that
        found[name] = {"run", "gpu"} if name.startswith("run:") else {"grid"}
    return found


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Each name of a series in a query, with what stands in braces after it."""
    quiet = re.sub(r'"[^"]*"', lambda found: '"' + "·" * (len(found[0]) - 2) + '"', expression)
    quiet = re.sub(r"\[[^]]*\]", lambda found: " " * len(found[0]), quiet)
    quiet = re.sub(
        r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", lambda found: " " * len(found[0]), quiet
    )
    braces = re.compile(r"\s*\{([^}]*)\}")
    inside = [range(found.start(), found.end()) for found in re.finditer(r"\{[^}]*\}", quiet)]
    for found in re.finditer(r"[a-zA-Z_:][a-zA-Z0-9_:]*", quiet):
        is_call = quiet[found.end() :].lstrip().startswith("(")
        is_quoted = "·" in quiet[max(0, found.start() - 1) : found.end() + 1]
        is_inside = any(found.start() in each for each in inside)
        is_number = found.start() > 0 and quiet[found.start() - 1].isdigit()  # offset 2m
        if found[0] not in WORDS and not (is_call or is_quoted or is_inside or is_number):
            after = braces.match(quiet, found.end())
            yield found[0], expression[after.start(1) : after.end(1)] if after else ""


def matchers(text: str) -> Iterator[tuple[str, str]]:
    """Label and value of each matcher within braces."""
    yield from re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', text)


# Drift


@pytest.mark.parametrize("path", list(files()), ids=lambda path: path.name)
def test_the_committed_file_is_what_the_code_comes_to(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run python -m k8s.monitoring"


def test_a_file_that_drifted_is_told_and_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drifted = tmp_path / "drifted.json"
    drifted.write_text("{}")
    monkeypatch.setattr(monitoring_main, "files", lambda: {drifted: "{1}"})
    assert monitoring_main.main(["--check"]) == 1
    assert "drifted.json" in capsys.readouterr().err
    assert drifted.read_text() == "{}"
    assert monitoring_main.main([]) == 0
    assert drifted.read_text() == "{1}"
    assert monitoring_main.main(["--check"]) == 0


# Panels


@pytest.mark.parametrize("name", list(BOARDS))
def test_every_panel_says_what_it_shows_and_in_which_unit(name: str) -> None:
    assert len(panels(name)) > 10
    for panel in panels(name):
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        if panel["type"] != "text":
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["unit"], panel["title"]
            assert defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"], panel["title"]
            assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@pytest.mark.parametrize("name", list(BOARDS))
def test_every_column_that_a_table_names_has_a_query_or_a_label(name: str) -> None:
    labels = set().union(*known().values()) | TARGET_LABELS
    tables = [panel for panel in panels(name) if panel["type"] == "table"]
    for panel in tables:
        (organize,) = (each["options"] for each in panel["transformations"] if each["id"] == "organize")
        refs = {f"Value #{target['refId']}" for target in panel["targets"]}
        assert set(organize["renameByName"]) <= refs | labels
        assert {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]} >= set(
            organize["renameByName"].values()
        )


@pytest.mark.parametrize("name", list(BOARDS))
def test_numbers_of_panels_and_letters_of_queries_are_told_apart(name: str) -> None:
    ids = [panel["id"] for panel in model(name)["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(name):
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs), panel["title"]


@pytest.mark.parametrize("name", list(BOARDS))
def test_no_panel_lies_upon_another_or_beyond_the_edge(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in model(name)["panels"]:
        place = panel["gridPos"]
        assert place.get("x", 0) + place["w"] <= 24, panel["title"]
        for x in range(place.get("x", 0), place.get("x", 0) + place["w"]):
            for y in range(place.get("y", 0), place.get("y", 0) + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]


def test_every_state_has_a_colour() -> None:
    assert set(STATE_COLOURS) == set(STATES)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        pytest.param("grid", ["datasource", "namespace", "grid", "stage", "run"], id="grid"),
        pytest.param("run", ["datasource", "namespace", "grid", "run"], id="run"),
        pytest.param("fleet", ["datasource", "namespace", "grid"], id="fleet"),
    ],
)
def test_a_dashboard_has_these_variables_and_uses_each(name: str, variables: list[str]) -> None:
    assert [each["name"] for each in model(name)["templating"]["list"]] == variables
    text = json.dumps(model(name))
    assert [each for each in variables if f"${each}" not in text and f"${{{each}" not in text] == []


@pytest.mark.parametrize("name", list(BOARDS))
def test_every_link_leads_to_a_dashboard_with_the_variables_that_it_sets(name: str) -> None:
    boards = {model(each)["uid"]: model(each) for each in BOARDS}
    links = re.findall(r"/d/([\w-]+)\?([^\")\s]*)", json.dumps(model(name)))
    assert links
    for uid, query in links:
        assert uid in boards
        sets = {first or second for first, second in re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", query)}
        assert sets
        assert sets <= {each["name"] for each in boards[uid]["templating"]["list"]}
    (others,) = model(name)["links"]
    assert others["type"] == "dashboards"
    assert others["tags"] == model(name)["tags"] == ["experiment-grid"]


# Queries


@pytest.mark.parametrize("each", list(asked()), ids=lambda each: each.where)
def test_every_query_asks_for_series_that_are_there_by_labels_that_they_have(each: Asked) -> None:
    metrics: Mapping[str, Metric] = {metric.name: metric for metric in (*OF_TRAINER, *OF_CONTROLLER)}
    there = known()
    found = list(selectors(each.expression))
    assert found or each.expression.strip() == "vector(0)"
    labels = set(TARGET_LABELS)
    for name, inside in found:
        assert name in there, f"{name} is no metric"
        labels |= there[name]
        for label, value in matchers(inside):
            assert label in there[name] | TARGET_LABELS, f"{name} has no label {label}"
            metric = metrics.get(name)
            if metric is not None and metric.values and label == metric.labels[-1]:
                assert set(value.split("|")) <= set(metric.values), f"{name}: {value}"
    kept = re.findall(r"\b(?:by|on|group_left|without)\s*\(([^)]*)\)", each.expression)
    named = {label.strip() for text in kept for label in text.split(",") if label.strip()}
    assert named <= labels, f"none of the series has {named - labels}"


@pytest.mark.parametrize("name", list(BOARDS))
def test_every_legend_names_labels_that_its_query_keeps(name: str) -> None:
    for panel in panels(name):
        for target in panel.get("targets", ()):
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|group_left)\s*\(([^)]*)\)", target["expr"]))))
            named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            assert named <= kept, (panel["title"], target["legendFormat"])


def test_every_metric_is_shown_by_a_panel_or_watched_by_a_rule() -> None:
    used = {name for each in asked() for name, _ in selectors(each.expression)}
    unseen = []
    for metric in (*OF_TRAINER, *OF_CONTROLLER):
        names = {metric.name, *(f"{metric.name}_{end}" for end in ("bucket", "sum", "count"))}
        if not names & used:
            unseen.append(metric.name)
    assert unseen == []


@needs_promtool
def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    queries = list(asked())
    recording = [{"record": f"query:{index}", "expr": each.expression} for index, each in enumerate(queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recording}]}))
    done = run_promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


TRAINS, FAILED = VARIABLES["$run"], "vgg16-0123456789ab"


def world() -> Iterator[dict[str, str]]:
    """Series of every metric for an hour: a run in its second attempt, one that failed, their controller."""
    for metric in OF_TRAINER:
        for pod in ("first", "second"):
            # the second attempt is a minute old: while both pods are there a run has two of each series
            values = "_x276 2x20" if metric.name == "grid_run_attempt" and pod == "second" else None
            yield from series(metric, {"pod": pod, "job": "experiment-grid-trainer", "run": TRAINS}, values)
    for metric in ENDED_DESCRIPTIONS:
        yield from series(metric, {"pod": "controller", "job": "experiment-grid-controller", "run": FAILED})
    for metric in OF_CONTROLLER:
        own = {"pod": "controller", "job": "experiment-grid-controller"}
        own |= {"grid": "birds", "stage": "rate", "experiment": "lr=0.1", "seed": "0", "verb": "list", "code": "200"}
        runs = {"grid_run_failure": (FAILED,)}.get(metric.name, (TRAINS, FAILED))
        for run in runs if "run" in metric.labels else ("",):
            one = {
                "grid_run_state": {TRAINS: ("running",), FAILED: ("failed",)},
                "grid_run_failure": {FAILED: ("oom",)},
            }
            told = replace(metric, values=one[metric.name][run]) if metric.name in one else metric
            yield from series(told, {**own, "run": run})
    for name in OF_DCGM:
        place = 'namespace="gpu-operator",pod="dcgm",exported_namespace="lab",exported_pod="first",gpu="0"'
        yield {"series": f"{name}{{{place}}}", "values": "40x300"}
    for pod, value in (("first", 0), ("second", 1)):
        yield {"series": f'up{{namespace="lab",job="experiment-grid-trainer",pod="{pod}"}}', "values": f"{value}x300"}


def series(metric: Metric, labels: Mapping[str, str], values: str | None = None) -> Iterator[dict[str, str]]:
    """The metric's series with these labels, of which it takes its own; what counts grows."""
    own = {name: labels[name] for name in metric.labels if name in labels}
    place = {"namespace": "lab", "pod": labels["pod"], "job": labels["job"]}
    for last in metric.values or (None,):
        told = {**place, **own, **({} if last is None else {metric.labels[-1]: last})}
        ends = ("_count", "_sum", *(f"_bucket {bound}" for bound in (*metric.buckets, "+Inf")))
        for end in ends if metric.type == "histogram" else ("",):
            name, _, bound = end.partition(" ")
            shown = {**told, "le": bound} if bound else told
            text = ",".join(f'{label}="{value}"' for label, value in shown.items())
            grows = metric.type != "gauge"
            value = {"grid_run_epochs": "12", "grid_run_attempt": "1"}.get(metric.name, "1")
            yield {
                "series": f"{metric.name}{name}{{{text}}}",
                "values": values or ("0+1x300" if grows else f"{value}x300"),
            }


@needs_promtool
def test_every_query_finds_something_in_a_grid_that_trains(tmp_path: Path) -> None:
    # a count of what it finds, at most 1: that no two series meet where one is wanted shows when a query is evaluated
    queries = [
        each.expression.replace(TRAINS, FAILED) if each.where == "run: Failed A" else each.expression
        for each in asked()
        if not each.where.startswith("rule Grid")
    ]
    expected = [{"labels": "{}", "value": 1}]
    tests = [{"expr": f"clamp_max(count({each}), 1)", "eval_time": "70m", "exp_samples": expected} for each in queries]
    case = {"interval": "15s", "input_series": list(world()), "promql_expr_test": tests}
    path = tmp_path / "world.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": [case]}))
    done = run_promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


# Rules


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    done = run_promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


@needs_promtool
def test_every_alert_fires_when_it_should_and_only_then() -> None:
    done = run_promtool("test", "rules", RULE_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_made_quicker_differ_by_their_durations_alone() -> None:
    text = RULES.read_text(encoding="utf-8")
    quick = yaml.safe_load(quickened(text, 20))["groups"]
    (stalled,) = (rule for group in quick for rule in group["rules"] if rule.get("alert") == "GridRunStalled")
    assert "> 45" in stalled["expr"]
    assert stalled["for"] == "15000ms"
    (missing,) = (rule for group in quick for rule in group["rules"] if rule.get("alert") == "GridRunMemoryNearLimit")
    assert missing["expr"] == ALERTS["GridRunMemoryNearLimit"]["expr"]
    assert yaml.safe_load(quickened(text, 1)) != yaml.safe_load(text)  # 5m is 300000ms
    without = [re.sub(r"\[\w+\]|900|\d+ms|interval.*|for: .*", "", each) for each in (quickened(text, 1), text)]
    assert len({yaml.safe_dump(yaml.safe_load(each)) for each in without}) == 1


@pytest.mark.parametrize("alert", list(ALERTS))
def test_an_alert_is_tried_where_it_fires_and_where_it_does_not(alert: str) -> None:
    tried = [
        bool(test["exp_alerts"])
        for case in yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]
        for test in case.get("alert_rule_test", ())
        if test["alertname"] == alert
    ]
    assert set(tried) == {True, False}


@pytest.mark.parametrize("alert", list(ALERTS))
def test_an_alert_says_how_grave_it_is_and_leads_to_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor == alert.lower()
    assert alert in headings


def test_the_operators_rule_is_the_plain_one() -> None:
    operators = yaml.safe_load((FOLDER / "operator" / "prometheus-rule.yaml").read_text(encoding="utf-8"))
    assert operators["spec"]["groups"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]


# Where to scrape


def plain(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "plain" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


@needs_promtool
@pytest.mark.parametrize("name", ["prometheus", "local"])
def test_prometheus_takes_the_scrape_config(name: str, tmp_path: Path) -> None:
    config = plain(name)
    (job,) = config["scrape_configs"]
    (discovery,) = job.pop("kubernetes_sd_configs")  # Debian's build has no Kubernetes in it, so that is looked at here
    assert discovery["role"] == "pod"
    assert discovery["namespaces"] == {"names": ["experiment-grid"]}
    job["static_configs"] = [{"targets": ["127.0.0.1:9090"]}]
    shutil.copy(RULES, tmp_path / "rules.yaml")
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run_promtool("check", "config", path)
    assert done.returncode == 0, done.stdout + done.stderr


def pod_metadata(pod: Mapping[str, Any], component: str) -> list[dict[str, str]]:
    """What Prometheus' discovery says of each port that the pod's containers name."""
    found = list(
        discovered(
            {
                "metadata": {"namespace": "experiment-grid", "name": "pod", "labels": pod["labels"]},
                "spec": {"containers": pod["containers"]},
                "status": {"phase": "Running", "podIP": "10.0.0.1"},
            }
        )
    )
    assert {each["__meta_kubernetes_pod_label_app_kubernetes_io_component"] for each in found} == {component}
    return found


def trainer_pod() -> dict[str, Any]:
    job = JobTemplate(read_settings("kind"), "s3://lab").job(Work("alexnet-0123456789ab", False), 0, "", {})
    template = job["spec"]["template"]
    return {"labels": template["metadata"]["labels"], "containers": template["spec"]["containers"]}


def controller_pod() -> dict[str, Any]:
    base = yaml.safe_load((ROOT / "k8s" / "base" / "controller.yaml").read_text(encoding="utf-8"))
    template = base["spec"]["template"]
    labels = {**template["metadata"]["labels"], "app.kubernetes.io/part-of": "experiment-grid"}  # kustomize adds it
    return {"labels": labels, "containers": template["spec"]["containers"]}


PODS = {"trainer": trainer_pod, "controller": controller_pod}


def relabelled(labels: dict[str, str], steps: list[dict[str, Any]]) -> dict[str, str] | None:
    """What Prometheus makes of a target, by the few actions that the configs use; none where it is dropped."""
    for step in steps:
        text = step.get("separator", ";").join(labels.get(name, "") for name in step.get("source_labels", ()))
        found = re.fullmatch(step.get("regex", "(.*)"), text)
        action = step.get("action", "replace")
        if action in ("keep", "drop"):
            if (found is None) == (action == "keep"):
                return None
        elif found is not None:
            value = re.sub(r"\$(\d)", r"\\\1", step.get("replacement", "$1"))
            labels = {**labels, step["target_label"]: found.expand(value)}
    return labels


@pytest.mark.parametrize("component", list(PODS))
@pytest.mark.parametrize("name", ["prometheus", "local"])
def test_the_scrape_config_finds_a_pod_once_and_names_it_as_rules_do(name: str, component: str) -> None:
    (job,) = plain(name)["scrape_configs"]
    found = [relabelled(each, job["relabel_configs"]) for each in pod_metadata(PODS[component](), component)]
    (target,) = (each for each in found if each is not None)
    assert target["job"] == f"experiment-grid-{component}"
    assert (target["namespace"], target["pod"]) == ("experiment-grid", "pod")
    if name == "local":
        number = target["__meta_kubernetes_pod_container_port_number"]
        assert target["__metrics_path__"] == f"/api/v1/namespaces/experiment-grid/pods/pod:{number}/proxy/metrics"
        assert target["__address__"] == "127.0.0.1:8001"
    ended = {**pod_metadata(PODS[component](), component)[0], "__meta_kubernetes_pod_phase": "Succeeded"}
    assert relabelled(ended, job["relabel_configs"]) is None


@pytest.mark.parametrize("component", list(PODS))
def test_a_pod_monitor_selects_the_pods_and_a_port_that_they_name(component: str) -> None:
    text = (FOLDER / "operator" / "pod-monitors.yaml").read_text(encoding="utf-8")
    monitors = {each["metadata"]["name"]: each["spec"] for each in yaml.safe_load_all(text)}
    monitor = monitors[f"experiment-grid-{component}"]
    pod = PODS[component]()
    assert monitor["selector"]["matchLabels"].items() <= pod["labels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in [port["name"] for each in pod["containers"] for port in each.get("ports", ())]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": f"experiment-grid-{component}"}]


@pytest.mark.skipif(kubectl() is None, reason="no kubectl on PATH, in KUBECTL or built by make kind-up")
@pytest.mark.parametrize("name", ["plain", "operator"])
def test_kustomize_makes_dashboards_that_a_sidecar_finds_and_kubectl_can_apply(name: str) -> None:
    things = rendered(FOLDER / name)
    boards = [each for each in things if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    assert {uid for each in boards for uid in each["data"]} == {f"{model(each)['uid']}.json" for each in BOARDS}
    for each in things:
        assert each["metadata"]["namespace"] == "experiment-grid"
        assert len(json.dumps(each)) < 256 * 1024
        if each["kind"] == "ConfigMap":
            check_schema(each)
    kinds = sorted(each["kind"] for each in things if each not in boards)
    assert kinds == (["ConfigMap"] if name == "plain" else ["PodMonitor", "PodMonitor", "PrometheusRule"])


def test_grafana_is_told_of_a_data_source_and_of_the_folder_of_dashboards() -> None:
    (source,) = yaml.safe_load((FOLDER / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((FOLDER / "grafana/dashboards/experiment-grid.yaml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["type"] == "file"
    told = PAGE.read_text(encoding="utf-8")
    for value in (source["url"], provider["options"]["path"]):
        assert value.removeprefix("$") in told


# The page


def test_every_metric_is_in_the_page_with_its_labels() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for metric in (*OF_TRAINER, *OF_CONTROLLER):
        (row,) = re.findall(rf"^\| `{metric.name}` \|.*$", text, re.MULTILINE)
        assert all(f"`{label}`" in row for label in metric.labels)
    assert {metric.name for metric in ENDED_DESCRIPTIONS} <= {metric.name for metric in OF_TRAINER}


def test_a_bar_within_a_meaning_does_not_end_its_cell() -> None:
    row = metric_table([Metric("grid_x", "gauge", "", ("run",), "either | or")]).splitlines()[-1]
    assert row == r"| `grid_x` | gauge |  | `run` | 1 | either \| or |"


def test_the_dashboards_are_made_without_torch() -> None:
    code = "import sys, k8s.monitoring.generated; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
