"""The images: base, node, registry, S3 server, and the one that trains. Each is named by what went into it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from k8s.kind.binaries import program
from k8s.kind.engine import Engine, install_packages
from k8s.kind.process import SCRATCH, Failed, attempt, digest_of, run, say, step
from k8s.kind.settings import (
    BASE,
    CA_FILE,
    CACHE,
    COREDNS,
    DEBIAN,
    DEBIAN_MIRROR,
    ETCD,
    HERE,
    IMAGE_NAME,
    IMAGES,
    KUBERNETES,
    MAY_PULL,
    NODE_IMAGE,
    PAUSE,
    REGISTRY_HOST,
    ROOT,
)

ASK_AGAIN_SECONDS = 24 * 3600  # after a registry could not be reached
CONTROL_PLANE = {  # name under registry.k8s.io that kubeadm asks for, program, where it is looked for
    f"kube-apiserver:{KUBERNETES}": ("kube-apiserver", "/usr/local/bin/kube-apiserver"),
    f"kube-controller-manager:{KUBERNETES}": ("kube-controller-manager", "/usr/local/bin/kube-controller-manager"),
    f"kube-scheduler:{KUBERNETES}": ("kube-scheduler", "/usr/local/bin/kube-scheduler"),
    f"kube-proxy:{KUBERNETES}": ("kube-proxy", "/usr/local/bin/kube-proxy"),
    f"etcd:{ETCD}": ("etcd", "/usr/local/bin/etcd"),
    f"coredns/coredns:{COREDNS}": ("coredns", "/coredns"),
    f"pause:{PAUSE}": ("pause", "/pause"),
}


def base_image(engine: Engine) -> str:
    """Debian trixie: pulled where that works, else made with debootstrap."""
    if can_pull(engine):
        return BASE
    name = f"{IMAGES}/base:{DEBIAN}-{digest_of(DEBIAN_MIRROR)}"
    if engine.knows("image", name):
        return name
    install_packages()
    what = f"making a base image of Debian {DEBIAN} with debootstrap"
    with step(what), tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        root = Path(folder) / "root"
        run("debootstrap", "--variant=minbase", DEBIAN, root, DEBIAN_MIRROR)
        for each in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(root / each)
            (root / each).mkdir()
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                [engine.client, "import", "--change", 'CMD ["bash"]', "-", name],
                stdin=tar.stdout,
                stdout=subprocess.DEVNULL,
                env=engine.environment,
                check=True,
            )
        if tar.returncode != 0:
            engine.docker("image", "rm", name)
            raise Failed(f"tar of {root}: exit {tar.returncode}")
    return name


def can_pull(engine: Engine) -> bool:
    """Whether kind's own node image is here, or could be fetched just now."""
    if engine.knows("image", NODE_IMAGE):
        return True
    refused = CACHE / "no-pull"
    if not MAY_PULL or (refused.exists() and time.time() - refused.stat().st_mtime < ASK_AGAIN_SECONDS):
        return False
    with step(f"fetching {NODE_IMAGE.partition('@')[0]}"):
        ended = attempt(engine.client, "pull", "--quiet", NODE_IMAGE, environment=engine.environment, timeout=600)
    if ended.returncode != 0:
        say("it cannot be pulled here, so the images are made on this machine")
        refused.touch()
    return ended.returncode == 0


def node_image(engine: Engine) -> str:
    """kind's own node image, or one made from Debian's packages and Go modules."""
    if can_pull(engine):
        return NODE_IMAGE
    base = base_image(engine)
    source = HERE / "node"
    binaries = {name: program(name) for name in ("kubeadm", "kubectl", "kubelet")}
    name = f"{IMAGES}/node:{KUBERNETES}-{digest_of(base, source, *map(str, binaries.values()), *_parts(base))}"
    if engine.knows("image", name):
        return name
    images = [_control_plane_image(engine, base, *each) for each in CONTROL_PLANE.items()]
    with step("making the node image"), tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        context = Path(folder)
        for each in source.iterdir():
            shutil.copy(each, context)
        for each in binaries.values():
            shutil.copy(each, context)
        settings = (source / "containerd.toml").read_text().replace("PAUSE_VERSION", PAUSE)
        (context / "containerd.toml").write_text(settings)
        (context / "version").write_text(KUBERNETES)
        engine.docker("save", "--output", context / "images.tar", *images)
        engine.docker("image", "rm", *images)  # the names alone: they are not ours to keep
        (context / "images.sum").write_text("\n".join([name, *images]))
        _build(engine, context, name, base)
    words = ("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{IMAGES}/node")
    for other in set(engine.docker(*words).split()) - {name}:
        attempt(engine.client, "image", "rm", other, environment=engine.environment)  # one that is in use stays
    return name


def registry_image(engine: Engine) -> str:
    """Debian's docker-registry."""
    text = """ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends docker-registry && rm -rf /var/lib/apt/lists/*
COPY registry.yml /etc/docker/registry/config.yml
ENTRYPOINT ["docker-registry", "serve", "/etc/docker/registry/config.yml"]
"""
    return _build_text(engine, "registry", text, base_image(engine), HERE / "registry.yml")


def minio_image(engine: Engine) -> str:
    """MinIO, an S3 server that honours conditional writes; its makers publish no images any more."""
    text = """FROM scratch
COPY minio /usr/bin/minio
ENTRYPOINT ["/usr/bin/minio"]
"""
    return _build_text(engine, "minio", text, None, program("minio"))


def build_project(engine: Engine) -> str:
    """The image of this working tree, in the engine; its name there."""
    commit = run("git", "rev-parse", "HEAD", folder=ROOT).strip()
    if run("git", "status", "--porcelain", "--", "trainer", "controller", "uv.lock", "Dockerfile", folder=ROOT).strip():
        commit += "-dirty"
    name = f"{IMAGES}/experiment-grid:latest"
    base = base_image(engine)
    with step("building the image"):
        words = ["--build-arg", f"COMMIT={commit}", "--build-arg", f"VERSION={_version()}", "--build-arg", "COMPILE=no"]
        _build(engine, ROOT, name, base, *words)
        title = "label=org.opencontainers.image.title=experiment-grid"
        engine.docker("image", "prune", "--force", "--filter", title)  # what this build replaced, if it did
    return name


def push(engine: Engine, image: str, name: str) -> str:
    """Put the image into the local registry, which takes only layers that it lacks; its name there, by digest."""
    with step(f"pushing {name}"):
        engine.docker("tag", image, name)
        printed = engine.docker("push", name)
    digest = next(word for word in printed.split() if word.startswith("sha256:") and len(word) == len("sha256:") + 64)
    return f"{name.rpartition(':')[0]}@{digest}"


def push_project(engine: Engine) -> str:
    """Build and push this working tree's image; its name in pods, by digest."""
    return push(engine, build_project(engine), f"{IMAGE_NAME}:latest")


def push_program(engine: Engine, name: str) -> str:
    """An image of one of the programs, as user 65532, in the local registry: for Kueue and kwok; its name in pods."""
    text = f'FROM scratch\nCOPY {name} /{name}\nUSER 65532:65532\nENTRYPOINT ["/{name}"]\n'
    return push(engine, _build_text(engine, name, text, None, program(name)), f"{REGISTRY_HOST}/{name}:latest")


def _version() -> str:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version ="))


def _parts(base: str) -> list[str]:
    return [f"{name} {program(binary)}" for name, (binary, _) in CONTROL_PLANE.items()] + [base]


def _control_plane_image(engine: Engine, base: str, name: str, part: tuple[str, str]) -> str:
    binary, path = part
    if binary == "kube-proxy":
        packages = "conntrack iptables kmod"
        head = (
            f"ARG BASE\nFROM ${{BASE}}\nRUN apt-get update"
            f" && apt-get install --yes --no-install-recommends {packages} && rm -rf /var/lib/apt/lists/*\n"
        )
    else:
        head = "FROM scratch\nENV PATH=/usr/local/bin\n"
    text = f'{head}COPY {binary} {path}\nENTRYPOINT ["{path}"]\n'
    made = _build_text(engine, binary, text, base, program(binary))
    wanted = f"registry.k8s.io/{name}"
    engine.docker("tag", made, wanted)
    return wanted


def _build_text(engine: Engine, kind: str, text: str, base: str | None, *files: Path) -> str:
    parts = [str(file) if file.is_relative_to(CACHE) else file for file in files]  # there the path tells the content
    name = f"{IMAGES}/{kind}:{digest_of(text, base or '', *parts)}"
    if not engine.knows("image", name):
        with step(f"making the image {kind}"), tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
            for file in files:
                shutil.copy(file, folder)
            (Path(folder) / "Dockerfile").write_text(text)
            _build(engine, Path(folder), name, base)
    return name


def _build(engine: Engine, context: Path, name: str, base: str | None, *words: str) -> None:
    if base:
        words = (*words, "--build-arg", f"BASE={base}")
    if CA_FILE:
        if not Path(CA_FILE).is_file():
            raise Failed(f"CA_FILE: got {CA_FILE}, expected a file of certificates")
        words = (*words, "--secret", f"id=ca,src={CA_FILE}")
    engine.docker("build", "--network", "host", "--quiet", "--tag", name, *words, context)
