"""Creating and listing the Jobs of large grids, against bare requests to the same API server.

The server is a real kube-apiserver over a real etcd on loopback, of which both sides take their processor time; nothing
is scheduled. Every round has a server of its own, so that none pays for the objects of another.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bare import BareApi
from benchmarks.figures import Row, Target, divided, in_turn, timed
from benchmarks.place import Place
from controller.cluster import CONNECTIONS, JOBS, NAMESPACES, ClusterError, open_cluster
from controller.jobs import SELECTOR, job_view
from controller.manifest import JobTemplate
from controller.settings import read_settings
from controller.standing import Work
from tests.cluster.apiserver import ApiServer, api_server, missing
from trainer.identity import run_id, with_seed, write_spec
from trainer.spec import ExperimentSpec

POSTS = f"bare POSTs of the same bodies by {CONNECTIONS} threads over kept-alive connections"
LIST = "the same paged LIST, bare: raw JSON over a kept-alive connection"
CREATE_TARGET = Target(0.7, 0.9, more_is_better=True)
STORE = "s3://lab/grids"


def jobs(place: Place) -> list[Row]:
    """Jobs created a second in 1,000 and 10,000 runs, and all of them listed into views."""
    names = ("create-1000", "create-10000", "list-10000")
    sizes = (50, 200) if place.quick else (1000, 10_000)
    what = [f"Jobs created per second, {size:,} runs" for size in sizes]
    what.append(f"LIST of {sizes[-1]:,} Jobs into what the controller keeps of them")
    if reason := missing():
        return [
            Row(name, text, POSTS if "create" in name else LIST, skipped=reason)
            for name, text in zip(names, what, strict=True)
        ]
    rows = []
    with ExitStack() as stack:
        server = _Servers(stack, place)
        for name, text, size in zip(names, what, sizes, strict=False):
            seconds = in_turn(
                {"bare": partial(server.create_bare_anew, size), "ours": partial(server.create, size)},
                place.rounds if size < 10_000 else min(place.rounds, 3),
                partial(_say, place, name),
                warm_ups=0,  # each round warms its own server up
            )
            rows.append(
                Row(
                    name,
                    text,
                    POSTS,
                    divided(seconds["bare"], seconds["ours"]),
                    f"{size / median(seconds['ours']):.0f}/s",
                    f"{size / median(seconds['bare']):.0f}/s",
                    CREATE_TARGET,
                    f"bodies of {len(server.body(0)):,} bytes, made and written as JSON on our side alone, unknown "
                    "fields refused on our side alone; server and client share the machine",
                )
            )
        sides = {"bare": timed(server.list_bare), "ours": timed(server.list_views)}
        seconds = in_turn(sides, place.rounds, partial(_say, place, names[-1]))
        rows.append(
            Row(
                names[-1],
                what[-1],
                LIST,
                divided(seconds["ours"], seconds["bare"]),
                f"{median(seconds['ours']):.2f} s",
                f"{median(seconds['bare']):.2f} s",
                note="our side asks for gzip and for the next page while it reads one",
            )
        )
    return rows


def _say(place: Place, name: str, told: str) -> None:
    place.say(f"{name}: {told}")


class _Servers:
    """The server of this round, and what both sides ask of it."""

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place.folder)))
        self._server_stack = stack.enter_context(ExitStack())
        self._num_servers = self._num_namespaces = 0
        self._namespace = ""
        self._server: ApiServer | None = None
        template = JobTemplate(read_settings("kind"), STORE)
        spec = {"data": {"name": "caltech101", "fingerprint": "0" * 64}, "model": {"architecture": "resnet50"}}
        run = with_seed(ExperimentSpec.model_validate(spec), 0)
        self._parts: tuple[JobTemplate, str, str] = (template, run_id(run).rpartition("-")[0], write_spec(run))

    @property
    def server(self) -> ApiServer:
        assert self._server is not None
        return self._server

    def create_bare_anew(self, size: int) -> float:
        """The same as `create_bare`, on a new server that has answered some requests."""
        self._server_stack.close()
        self._num_servers += 1
        folder = self._folder / str(self._num_servers)
        folder.mkdir()
        self._server = self._server_stack.enter_context(api_server(folder))
        self._bare = BareApi(self._server)
        self.create_bare(200)
        return self.create_bare(size)

    def job(self, number: int) -> dict[str, Any]:
        """One of a grid's Jobs."""
        template, architecture, spec = self._parts
        made = template.job(
            Work(f"{architecture}-{number:012x}", is_test=False), 0, spec, {"wide": "wide"}, suspended=True
        )
        del made["metadata"]["namespace"]  # whichever is asked
        return made

    def body(self, number: int) -> bytes:
        """The same, as it is sent."""
        return json.dumps(self.job(number)).encode()

    def create_bare(self, size: int) -> float:
        """Seconds of POSTs and nothing else, into a new namespace."""
        path = f"/apis/batch/v1/namespaces/{self._new_namespace()}/jobs"
        seconds, statuses = self._bare.send_all([("POST", path, self.body(number)) for number in range(size)])
        assert statuses == [201] * size
        return seconds

    def create(self, size: int) -> float:
        """Seconds of the product's own creations, into a new namespace."""
        namespace = self._new_namespace()
        with open_cluster(namespace, kubeconfig=str(self.server.kubeconfig())) as cluster:
            act: Callable[[int], Any] = lambda number: cluster.create(JOBS, self.job(number))  # noqa: E731 - as it is used
            outcomes: list[Any] = []
            seconds = timed(lambda: outcomes.extend(cluster.perform(act, range(size))))()
        assert len(outcomes) == size
        assert not [outcome for _, outcome in outcomes if isinstance(outcome, ClusterError)]
        self._namespace = namespace
        return seconds

    def list_bare(self) -> None:
        """Read every page and parse it."""
        assert self._bare.read_pages(f"/apis/batch/v1/namespaces/{self._namespace}/jobs")

    def list_views(self) -> None:
        """List them as the mirror does."""
        with open_cluster(self._namespace, kubeconfig=str(self.server.kubeconfig())) as cluster:
            assert cluster.list(JOBS, job_view, selector=SELECTOR).items

    def _new_namespace(self) -> str:
        self._num_namespaces += 1
        name = f"bench-{self._num_namespaces}"
        with open_cluster(kubeconfig=str(self.server.kubeconfig())) as cluster:
            cluster.create(NAMESPACES, {"metadata": {"name": name}})
        return name
