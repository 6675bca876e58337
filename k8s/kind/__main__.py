"""`python -m k8s.kind up | down | status | env | kueue | image | build | push`: a real Kubernetes on this machine."""

from __future__ import annotations

import argparse
import json
import shlex
import sys

from k8s.kind import cluster
from k8s.kind.addons import install_kueue
from k8s.kind.binaries import PROGRAMS, program
from k8s.kind.engine import get_engine
from k8s.kind.images import build_project, push_program
from k8s.kind.process import Failed, Impossible, alone

UNAVAILABLE = 69  # as trainer.failure.ExitCode has it: what is needed is not there


def answer(text: object) -> None:
    """Print a line on stdout."""
    sys.stdout.write(f"{text}\n")


def main() -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m k8s.kind", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser(
        "up",
        help="cluster, registry, image, S3 server, namespace, controller: each if lacking; exits 69 where none can be",
    )
    verbs.add_parser("down", help="remove all of it but caches").add_argument(
        "--purge", action="store_true", help="the caches too"
    )
    verbs.add_parser("status", help="how to reach it, as JSON")
    verbs.add_parser("env", help="the same as exports for a shell")
    verbs.add_parser("kueue", help="install Kueue into the cluster")
    verbs.add_parser("image", help="build the image, in the engine")
    verbs.add_parser("build", help="build programs and print their paths").add_argument(
        "names", nargs="+", choices=sorted(PROGRAMS), metavar="NAME", help=", ".join(sorted(PROGRAMS))
    )
    verbs.add_parser("push", help="build a program, put its image into the registry and print its name").add_argument(
        "name", choices=("kueue", "kwok")
    )
    given = parser.parse_args()
    try:
        if given.verb == "up":
            answer(json.dumps(cluster.up(), indent=2))
        elif given.verb == "down":
            cluster.down(purge=given.purge)
        elif given.verb == "status":
            answer(json.dumps(cluster.describe(), indent=2))
        elif given.verb == "env":
            for name, value in cluster.environment().items():
                answer(f"export {name}={shlex.quote(value)}")
        elif given.verb == "kueue":
            install_kueue()
        elif given.verb == "image":
            with alone():
                answer(build_project(get_engine()))
        elif given.verb == "build":
            for name in given.names:
                answer(program(name))
        elif given.verb == "push":
            with alone():
                answer(push_program(get_engine(), given.name))
    except Failed as error:
        sys.stderr.write(f"error: {error}\n")
        return UNAVAILABLE if isinstance(error, Impossible) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
