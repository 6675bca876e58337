"""What the cluster on this machine is made of: versions, names, ports and folders."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# what a person may set, by the environment
CLUSTER = os.environ.get("KIND_CLUSTER", "experiment-grid")
WORKERS = int(os.environ.get("KIND_WORKERS", "0"))  # nodes beside the first; each keeps a copy of the image
REGISTRY_PORT = int(os.environ.get("KIND_REGISTRY_PORT", "5001"))  # on 127.0.0.1, as the next
S3_PORT = int(os.environ.get("KIND_S3_PORT", "9900"))
S3_IMAGE = os.environ.get("S3_IMAGE", "")  # any S3 server that listens on 9000; empty: MinIO, built from its source
MAY_PULL = os.environ.get("KIND_PULL", "yes") != "no"  # whether the engine may try to fetch kind's own node image
CA_FILE = os.environ.get("CA_FILE") or os.environ.get("SSL_CERT_FILE") or ""  # a company's CA, for builds alone

# caches outlive the cluster, `make kind-down` leaves them; all that runs is under RUN and goes
CACHE = Path(os.environ.get("KIND_CACHE") or Path.home() / ".cache" / "experiment-grid-kind")
RUN = Path("/run/experiment-grid-kind")
STATE = CACHE / "state"
KUBECONFIG = STATE / f"{CLUSTER}.kubeconfig"  # one for all checkouts: the cluster is one
OVERLAY = ROOT / "k8s" / "overlays" / "kind"

BASE = "debian:trixie-slim"
DEBIAN = "trixie"
DEBIAN_MIRROR = "http://deb.debian.org/debian"
KIND = "v0.33.0"  # as build/kind/go.mod has it; so is each of the next
NODE_IMAGE = "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5"
KUBERNETES = "v1.35.4"  # of the node image made here: the last that stands containerd 1.7 and cgroup v1
ETCD = "v3.6.5"
COREDNS = "v1.15.0"
PAUSE = "3.10.1"
REGISTRY_HOST = f"localhost:{REGISTRY_PORT}"  # what images are called, on this machine and in pods
REGISTRY_CONTAINER = f"{CLUSTER}-registry"
IMAGES = "experiment-grid-kind"  # the name before the slash of every image made here
IMAGE_NAME = f"{REGISTRY_HOST}/experiment-grid"

NAMESPACE = "experiment-grid"  # this and the next as k8s/base and k8s/s3 have them
S3_KEY = "experiment-grid"
S3_SECRET = "experiment-grid-on-kind"  # guards nothing: the server listens on 127.0.0.1 and in the cluster alone
S3_BUCKET = "experiment-grid"
S3_URL = f"http://127.0.0.1:{S3_PORT}"
S3_URL_IN_PODS = f"http://s3.{NAMESPACE}.svc:9000"
