"""API requests of a whole grid of 1,000 runs, from `grid submit` to its end, as the API server's audit log has them.

The Job controller is the real one; a thread plays kubelet and trainers (tests/cluster/crowd.py). The commands go by a
user of their own, so that the log tells theirs from all others, and it counts what was sent again as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.bare import BareApi
from benchmarks.figures import Row, Target
from benchmarks.place import Place, write_photographs
from controller.cluster import open_cluster
from controller.standing import Work
from tests.cluster.apiserver import NOBODY, api_server, missing
from tests.cluster.crowd import Trainers, wide_text
from tests.results import result
from trainer.importing import import_dataset
from trainer.store import FileStore

NAMESPACE = "requests"
PARALLELISM = 64
AGAINST = "the number of runs"
SETTINGS = {
    "image": "none:1",
    "namespace": NAMESPACE,
    "service_account": "default",
    "parallelism": PARALLELISM,
    "store": {"uri": "s3://bucket"},  # which no pod asks
    "progress": {"annotations": False},
}
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [NOBODY]}, {"level": "None"}],
}
RIGHTS = {
    "metadata": {"name": "nobody-may-do-all"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": NOBODY}],
}


def requests(place: Place, num_runs: int = 1000) -> list[Row]:
    """How many there are for each run."""
    num_runs = 50 if place.quick else num_runs
    row = Row(
        f"requests-{num_runs}",
        f"API requests of a grid of {num_runs:,} runs, submit and watch",
        AGAINST,
        target=Target(3.0, 2.0, more_is_better=False),
    )
    if reason := missing("kube-controller-manager"):
        return [replace(row, target=None, skipped=reason)]
    counted = count_requests(place, num_runs)
    number = counted.total()
    most = ", ".join(f"{count:,} {verb} {kind}" for (verb, kind, _), count in counted.most_common(5))
    refused = sum(count for (_, _, code), count in counted.items() if code >= 400)
    note = (
        f"counted by the API server, once: {most}, and others; {refused} of all were answered with an error; progress "
        f"off, {PARALLELISM} runs at once, which end as soon as they have begun"
    )
    ours, other = f"{number:,} requests", f"{num_runs:,} runs"
    return [replace(row, ratios=(number / num_runs,), ours=ours, other=other, note=note)]


def count_requests(place: Place, num_runs: int) -> Counter[tuple[str, str, int]]:
    """The commands' requests by verb, kind of object and status."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place.folder)))
        (folder / "policy.json").write_text(json.dumps(POLICY))
        flags = [f"--audit-policy-file={folder / 'policy.json'}", f"--audit-log-path={folder / 'audit.log'}"]
        server = stack.enter_context(api_server(folder, flags))
        server.start_controllers("job-controller")
        api = BareApi(server)
        api.send("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        api.send("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", RIGHTS)
        store = FileStore(folder / "store")
        write_photographs(folder / "pictures")
        import_dataset(folder / "pictures", "pictures", store, split="every-third")
        (folder / "wide.yaml").write_text(wide_text("wide", num_runs))
        (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))

        def leave(work: Work) -> None:
            store.put(f"results/{work.run}.json", result(work.run).model_dump_json().encode())

        def grid(*words: str) -> None:
            environment = {**place.environment(), "KUBECONFIG": str(server.kubeconfig(NOBODY, NAMESPACE))}
            line = [sys.executable, "-m", "controller.cli", "--store", store.uri, *words]
            subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        with (
            open_cluster(NAMESPACE, kubeconfig=str(server.kubeconfig())) as there,
            Trainers(there, leave, is_kubelet=True) as trainers,
        ):
            place.say(f"requests: submitting {num_runs:,} runs")
            grid("submit", str(folder / "wide.yaml"), "--settings", str(folder / "settings.yaml"))
            place.say("requests: watching them")
            trainers.may_end.set()
            grid("watch", "wide")
        assert len(trainers.pods) == num_runs
        return Counter(_requests((folder / "audit.log").read_text().splitlines()))


def _requests(lines: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Each request once, whatever the number of its stages."""
    seen: dict[str, Any] = {}
    for line in lines:
        event = json.loads(line)
        seen[event["auditID"]] = event
    for event in seen.values():
        about = event.get("objectRef") or {}
        kind = "/".join(filter(None, (about.get("resource", event["requestURI"]), about.get("subresource"))))
        yield event["verb"], kind, event["responseStatus"]["code"]
