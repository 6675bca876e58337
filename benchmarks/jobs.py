"""Creating and listing the Jobs of large grids, against bare requests to the same API server.

The server is a real kube-apiserver over a real etcd on loopback, of which both sides take their processor time; nothing
is scheduled. Every round has a server of its own, so that none pays for the objects of another.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from math import isqrt
from pathlib import Path
from statistics import median

from benchmarks.bare import BareApi
from benchmarks.figures import Row, Target, divided, in_turn, timed
from benchmarks.place import Place
from benchmarks.wide import Wide, wide_grid
from controller.acted import ActedGrid
from controller.archive import write_settings
from controller.cluster import CONNECTIONS, JOBS, NAMESPACES, open_cluster
from controller.jobs import SELECTOR, job_view
from controller.live import PlainView
from controller.loops import settle
from controller.mirror import Mirror
from controller.passes import Passes, Report
from controller.settings import Settings, parse_settings
from tests.cluster.apiserver import ApiServer, api_server, missing
from trainer.store import FileStore

POSTS = f"bare POSTs of the same bodies by {CONNECTIONS} threads over kept-alive connections"
LIST = "the same paged LIST, bare: raw JSON over a kept-alive connection"
CREATE_TARGET = Target(0.7, 0.9, more_is_better=True)
NOTE = (
    "ours is all that `grid submit` does once it has listed: decide, make {:,} bytes of JSON a Job, create, start the "
    "first 64; unknown fields are refused on our side alone; server and client share the machine"
)
SETTINGS = """\
image: none:1
parallelism: 64
store: {uri: "s3://lab/grids", endpoint: "http://s3:9000", secret: s3-credentials}
progress: {annotations: false}
"""


def jobs(place: Place) -> list[Row]:
    """Jobs created a second in 1,000 and 10,000 runs, and all of them listed into views."""
    names = ("create-1000", "create-10000", "list-10000")
    sizes = (49, 196) if place.quick else (1024, 10_000)  # squares
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
                    NOTE.format(len(server.bodies(size)[0])),
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


def _settings(namespace: str) -> Settings:
    return parse_settings(SETTINGS, "settings", [f"namespace={namespace}"])


def _say(place: Place, name: str, told: str) -> None:
    place.say(f"{name}: {told}")


class _Servers:
    """The server of this round, and what both sides ask of it."""

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place.folder)))
        self._server_stack = stack.enter_context(ExitStack())
        self._place = place
        self._num_servers = self._num_namespaces = 0
        self._namespace = ""
        self._server: ApiServer | None = None
        self._wide: Wide | None = None

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
        self.create_bare(size, 200)
        return self.create_bare(size, size)

    def grid(self, size: int) -> Wide:
        """A grid of that many runs, none of which has a result."""
        if self._wide is None or len(self._wide.runs) != size:
            store = FileStore(self._folder / "store")
            self._wide = wide_grid(self._place, store, isqrt(size))
        return self._wide

    def bodies(self, size: int) -> list[bytes]:
        """Its Jobs, as they are sent."""
        made = self.grid(size).bodies(_settings("anywhere"))
        for each in made:
            del each["metadata"]["namespace"]  # whichever is asked
        return [json.dumps(each).encode() for each in made]

    def create_bare(self, size: int, number: int) -> float:
        """Seconds of POSTs and nothing else, of so many of the grid's Jobs, into a new namespace."""
        path = f"/apis/batch/v1/namespaces/{self._new_namespace()}/jobs"
        seconds, statuses = self._bare.send_all([("POST", path, body) for body in self.bodies(size)[:number]])
        assert set(statuses) == {201}
        return seconds

    def create(self, size: int) -> float:
        """Seconds of the passes that `grid submit` makes, into a new namespace: until nothing is left to create."""
        wide, namespace = self.grid(size), self._new_namespace()
        write_settings(wide.store, wide.grid.name, settings := _settings(namespace))
        kubeconfig = str(self.server.kubeconfig())
        with (
            Path(os.devnull).open("w") as nowhere,
            open_cluster(namespace, kubeconfig=kubeconfig) as cluster,
            Mirror(cluster) as mirror,
        ):
            acted = ActedGrid(wide.grid, wide.store, wide.facts, settings=settings)
            passes = Passes(cluster, mirror, wide.store, [acted], PlainView(nowhere))
            reports: list[Report] = []
            seconds = timed(lambda: reports.append(settle(passes)))()
        assert not reports[0].refused
        assert reports[0].done["Create"] == size, reports[0].done
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
