"""Prometheus for tests: where its programs come from, one that scrapes the pods of a cluster, the rules at speed.

PROMTOOL and PROMETHEUS name programs, else those on PATH count, else those in the cache folder. `fetched` puts them
there from Debian's package `prometheus`, without root: the tests on a cluster ask for that, and from then on all do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster.apiserver import FOLLOWING_ITS_PARENT

CACHE = Path(os.environ.get("MONITORING_CACHE") or Path.home() / ".cache" / "experiment-grid-monitoring")
PROGRAMS = ("prometheus", "promtool")
PLAIN = Path(__file__).parent.parent.parent / "k8s" / "monitoring" / "plain"
SCRAPE_SECONDS = 2
START_SECONDS = 60
_AGE = "> 900\n"  # in rules.yaml: a duration that PromQL has no unit for
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Unavailable(Exception):
    """There is no such program here, and none can be had: why."""


def program(name: str) -> Path | None:
    """The program, if it is here."""
    found = os.environ.get(name.upper()) or shutil.which(name)
    cached = next((path for path in sorted(CACHE.rglob(name)) if path.is_file()), None)
    return Path(found) if found else cached


def fetched(name: str) -> Path:
    """The program; where it is not here, the one of Debian's package, which stays in the cache. Raises Unavailable."""
    return program(name) or _fetch()[name]


def _fetch() -> dict[str, Path]:
    lacking = [each for each in ("apt-get", "dpkg-deb") if shutil.which(each) is None]
    if lacking:
        raise Unavailable(
            f"no {' and no '.join(lacking)}: install Prometheus, or name its programs by PROMETHEUS and PROMTOOL"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt gives up root's rights for a download
        download = ["apt-get", "--quiet=2", "download", "prometheus"]
        ended = _run(download, folder)
        if ended.returncode != 0 and os.geteuid() == 0:
            _run(["apt-get", "--quiet=2", "update"], folder)
            ended = _run(download, folder)
        packages = list(folder.glob("*.deb"))
        if ended.returncode != 0 or not packages:
            raise Unavailable(f"`apt-get download prometheus` has none: {ended.stderr.strip()[-300:]}")
        _run(["dpkg-deb", "--extract", str(packages[0]), "."], folder)
        for each in PROGRAMS:
            if not (folder / "usr" / "bin" / each).is_file():
                raise Unavailable(f"{packages[0].name} has no {each}")
            (folder / "usr" / "bin" / each).replace(CACHE / each)
    return {each: CACHE / each for each in PROGRAMS}


def _run(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


# Rules at speed


def quickened(rules: str, factor: int) -> str:
    """The rules with all durations divided by `factor`, and no other number changed.

    So what takes a quarter of an hour fires within a minute where `factor` is 20.
    """
    found = yaml.safe_load(rules)
    for group in found["groups"]:
        if "interval" in group:
            group["interval"] = _shorter(group["interval"], factor)
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = _shorter(rule["for"], factor)
            windows = re.sub(r"\[(\w+)\]", lambda window: f"[{_shorter(window[1], factor)}]", rule["expr"])
            rule["expr"] = re.sub(rf"{_AGE.strip()}\b", f"> {900 / factor:g}", windows)
    return yaml.safe_dump(found, sort_keys=False)


def _shorter(duration: str, factor: int) -> str:
    number, unit = int(duration[:-1]), duration[-1]
    return f"{number * _SECONDS[unit] * 1000 // factor}ms"


# What Kubernetes' discovery would say, for a Prometheus that has none


def discovered(pod: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The labels of Kubernetes' discovery, role pod, of each port that the pod's containers name.

    https://prometheus.io/docs/prometheus/latest/configuration/configuration/#pod
    """
    metadata, status = pod["metadata"], pod["status"]
    if not status.get("podIP"):
        return
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            yield {
                "__address__": f"{status['podIP']}:{port['containerPort']}",
                "__meta_kubernetes_namespace": metadata["namespace"],
                "__meta_kubernetes_pod_name": metadata["name"],
                "__meta_kubernetes_pod_phase": status["phase"],
                "__meta_kubernetes_pod_container_name": container["name"],
                "__meta_kubernetes_pod_container_port_name": port.get("name", ""),
                "__meta_kubernetes_pod_container_port_number": str(port["containerPort"]),
                **{
                    f"__meta_kubernetes_pod_label_{re.sub(r'[^a-zA-Z0-9_]', '_', key)}": value
                    for key, value in metadata.get("labels", {}).items()
                },
            }


def scrape_config(proxy: str, namespace: str, targets: Path, rules: Path) -> dict[str, Any]:
    """plain/local.yaml for that namespace and that `kubectl proxy`, its targets read from a file, scraped often."""
    text = (PLAIN / "local.yaml").read_text(encoding="utf-8").replace("127.0.0.1:8001", proxy)
    config: dict[str, Any] = yaml.safe_load(text)
    config["global"] = {
        "scrape_interval": f"{SCRAPE_SECONDS}s",
        "scrape_timeout": f"{SCRAPE_SECONDS}s",
        "evaluation_interval": "1s",
    }
    config["rule_files"] = [str(rules)]
    (job,) = config["scrape_configs"]
    (discovery,) = job.pop("kubernetes_sd_configs")
    assert discovery["namespaces"] == {"names": ["experiment-grid"]}, namespace
    job["file_sd_configs"] = [{"files": [str(targets)], "refresh_interval": "5s"}]
    return config


def selector() -> str:
    """Which pods plain/local.yaml has the API asked for."""
    config = yaml.safe_load((PLAIN / "local.yaml").read_text(encoding="utf-8"))
    (each,) = config["scrape_configs"][0]["kubernetes_sd_configs"][0]["selectors"]
    return str(each["label"])


# The process


@dataclass(frozen=True)
class Sample:
    """A series and its value at one moment."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A Prometheus that runs, as the API answers for it."""

    def __init__(self, address: str) -> None:
        self.url = f"http://{address}"

    def get(self, path: str, **words: str) -> Any:
        """What its API answers. Raises OSError where it does not, AssertionError where it refuses."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{address}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[Sample]:
        """What the query finds now."""
        found = self.get("query", query=expression)
        if found["resultType"] == "scalar":
            return [Sample({}, float(found["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in found["result"]]

    def series(self, matching: str) -> list[dict[str, str]]:
        """The labels of all series that matched at any time."""
        found: list[dict[str, str]] = self.get("series", **{"match[]": matching})
        return found

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """The labels of the alerts that fire now, by their names."""
        found: dict[str, list[dict[str, str]]] = {}
        for each in self.get("alerts")["alerts"]:
            if each["state"] == "firing":
                found.setdefault(each["labels"]["alertname"], []).append(each["labels"])
        return found

    def fired(self) -> set[str]:
        """The names of the alerts that have fired since it began."""
        return {each["alertname"] for each in self.series('ALERTS{alertstate="firing"}')}


@contextmanager
def prometheus_of(proxy: str, namespace: str, folder: Path, *, factor: int, prometheus: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the namespace's pods by `kubectl proxy` on `proxy`; its rules `factor` times faster.

    It is that of plain/local.yaml, but for its discovery: Debian's package is built without that of Kubernetes.
    """
    folder.mkdir()
    targets, rules, config = folder / "targets.json", folder / "rules.yaml", folder / "prometheus.yaml"
    rules.write_text(quickened((PLAIN / "rules.yaml").read_text(encoding="utf-8"), factor))
    config.write_text(yaml.safe_dump(scrape_config(proxy, namespace, targets, rules)))
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    words = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    line = [sys.executable, "-c", FOLLOWING_ITS_PARENT, str(prometheus), *words]
    stop = threading.Event()
    finder = threading.Thread(target=_discover, args=(proxy, namespace, targets, stop))
    finder.start()
    try:
        with (folder / "log").open("wb") as log, subprocess.Popen(line, stdout=log, stderr=log) as process:
            try:
                _await_ready(address, process, folder / "log")
                yield Prometheus(address)
            finally:
                process.kill()
    finally:
        stop.set()
        finder.join()


def _await_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"Prometheus is not ready:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.1)


def _discover(proxy: str, namespace: str, targets: Path, stop: threading.Event) -> None:
    """Write what discovery finds to the file, each second until told to stop."""
    query = urllib.parse.urlencode({"labelSelector": selector()})
    address = f"http://{proxy}/api/v1/namespaces/{namespace}/pods?{query}"
    told = ""
    while not stop.is_set():
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                pods = json.load(answer)["items"]
        except OSError:  # what was found stays, as with Prometheus' own discovery
            pods = None
        if pods is not None:
            found = [labels for pod in pods for labels in discovered(pod)]
            groups = [{"targets": [labels.pop("__address__")], "labels": labels} for labels in found]
            if (text := json.dumps(groups)) != told:
                new = targets.with_suffix(".new")
                new.write_text(text)
                new.replace(targets)
                told = text
        stop.wait(1)
