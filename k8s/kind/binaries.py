"""Programs built from Go modules, each pinned by a go.sum beside it and kept by version."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from k8s.kind.process import Impossible, digest_of, run, step
from k8s.kind.settings import CACHE, HERE, KUBERNETES

VERSION = "k8s.io/component-base/version"
KUBERNETES_STAMP = (  # without it the API server calls itself v0.0.0, and kubeadm refuses that
    f"-X {VERSION}.gitVersion={KUBERNETES}"
    f" -X {VERSION}.gitMajor={KUBERNETES[1:].split('.')[0]} -X {VERSION}.gitMinor={KUBERNETES[1:].split('.')[1]}"
)


@dataclass(frozen=True)
class Program:
    """A Go package, and the folder under build/ whose go.mod says in which version."""

    module: str
    package: str
    stamp: str = ""


PROGRAMS = {
    "kind": Program("kind", "sigs.k8s.io/kind"),
    "kubectl": Program("kubernetes", "k8s.io/kubernetes/cmd/kubectl", KUBERNETES_STAMP),
    "kube-apiserver": Program("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES_STAMP),
    "kube-controller-manager": Program("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", KUBERNETES_STAMP),
    "kube-scheduler": Program("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", KUBERNETES_STAMP),
    "kube-proxy": Program("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", KUBERNETES_STAMP),
    "kubelet": Program("kubernetes", "k8s.io/kubernetes/cmd/kubelet", KUBERNETES_STAMP),
    "kubeadm": Program("kubernetes", "k8s.io/kubernetes/cmd/kubeadm", KUBERNETES_STAMP),
    "etcd": Program("kubernetes", "go.etcd.io/etcd/server/v3"),
    "coredns": Program("coredns", "github.com/coredns/coredns"),
    "pause": Program("pause", "."),
    "minio": Program("minio", "github.com/minio/minio"),
    "kwok": Program("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    "kueue": Program("kueue", "sigs.k8s.io/kueue/cmd/kueue"),
}
FLAGS = ("-trimpath", "-buildvcs=false", "-mod=readonly")


def path_of(name: str) -> Path:
    """Where the program is kept, once it is built: in a folder named by what it is built from."""
    made = PROGRAMS[name]
    return CACHE / "bin" / digest_of(HERE / "build" / made.module, made.stamp, *FLAGS) / name


def program(name: str) -> Path:
    """The program, built if it is not kept already: minutes for most, the first time."""
    made, path = PROGRAMS[name], path_of(name)
    if path.exists():
        return path
    if not shutil.which("go"):
        raise Impossible(f"{name} is built from its Go module, and there is no Go", hint="install Go 1.26 or newer")
    with step(f"building {name} from {made.package}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{name}.*"):
            if not Path(f"/proc/{left.suffix[1:]}").exists():  # of a killed run
                left.unlink()
        new = path.with_name(f".{name}.{os.getpid()}")
        environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        build = ("go", "build", *FLAGS, "-ldflags", f"-s -w {made.stamp}", "-o", new, made.package)
        run("nice", *build, environment=environment, folder=HERE / "build" / made.module)
        new.replace(path)
    return path


def tool(name: str) -> Path:
    """The program, as it was built here; where it was not, the one of that name on the PATH; else built now."""
    found = shutil.which(name)
    return Path(found) if found and not path_of(name).exists() else program(name)


def module_folder(module: str, package: str) -> Path:
    """Where Go keeps the source of a module that build/`module` requires: for manifests that come with it."""
    run("go", "mod", "download", package, folder=HERE / "build" / module)
    return Path(run("go", "list", "-m", "-f", "{{.Dir}}", package, folder=HERE / "build" / module).strip())
