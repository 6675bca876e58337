"""The cluster: kind's nodes, the local registry, the S3 server and the namespace; up, down, and how it stands."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from k8s.kind import engine as engines
from k8s.kind.binaries import program, tool
from k8s.kind.engine import Engine, find_engine, get_engine
from k8s.kind.images import can_pull, minio_image, node_image, push, push_project, registry_image
from k8s.kind.process import Failed, alone, attempt, run, say, step, write_whole
from k8s.kind.settings import (
    CACHE,
    CLUSTER,
    COREDNS,
    ETCD,
    HERE,
    KUBECONFIG,
    NAMESPACE,
    OVERLAY,
    REGISTRY_CONTAINER,
    REGISTRY_HOST,
    REGISTRY_PORT,
    ROOT,
    S3_BUCKET,
    S3_IMAGE,
    S3_KEY,
    S3_PORT,
    S3_SECRET,
    S3_URL,
    S3_URL_IN_PODS,
    STATE,
    WORKERS,
)

NODE = f"{CLUSTER}-control-plane"
S3_NODE_PORT = 30900  # as s3/kustomization.yaml has it
MADE = STATE / f"{CLUSTER}.json"  # there from before the first node is made until after the last is gone
READY = STATE / f"{CLUSTER}-ready.json"
# By default the first sends 20 requests a second and the other 50, which a grid of a thousand runs would wait for. As
# kubeadm had flags before v1beta4: where no version is named, kind writes them as the node image's kubeadm wants them.
_RATE = {"kube-api-qps": "500", "kube-api-burst": "1000"}
UNHURRIED = {
    "kind": "ClusterConfiguration",
    "controllerManager": {"extraArgs": _RATE},
    "scheduler": {"extraArgs": _RATE},
}
NETWORK_PLUGIN = {
    "cniVersion": "0.4.0",
    "name": "node",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def up() -> dict[str, Any]:
    """Cluster, registry, image, S3 server, namespace and controller, each made only where it is not there already.

    The answer says how to reach them; `describe` gives it again.
    """
    started = time.monotonic()
    with alone():
        engine = get_engine()
        make_network(engine)
        make_registry(engine)
        make_nodes(engine)
        kubectl("wait", "node", "--all", "--for=condition=Ready", "--timeout=180s")
        tell_registry(engine)
        make_namespace()
        make_s3(engine)
        write_whole(READY, json.dumps(describe_base(engine)))
        image = push_project(engine)
        answer = describe_base(engine) | {"image": image}
        write_whole(READY, json.dumps(answer, indent=2))
        start_image(engine, image)
        start_controller(image)
        say(f'ready in {time.monotonic() - started:.0f} s: eval "$(make kind-env)"')
        return answer


def down(*, purge: bool = False) -> None:
    """Nothing that `up` started is left: no container, mount, interface, rule or process. Caches go with `purge`."""
    with alone():
        engine = find_engine()
        if engine is not None:
            if nodes(engine) and MADE.exists():
                delete_nodes(engine)
            attempt(engine.client, "rm", "--force", "--volumes", REGISTRY_CONTAINER, environment=engine.environment)
            attempt(engine.client, "network", "rm", CLUSTER, environment=engine.environment)
        if engine is None or not engine.is_ours or not engine.docker("ps", "--all", "--quiet").strip():
            engines.stop_engine()  # unless it has another cluster's containers
        for path in (READY, MADE, KUBECONFIG):
            path.unlink(missing_ok=True)
        if purge:
            shutil.rmtree(CACHE)
        say("nothing of it runs any more" + ("" if purge else f"; {CACHE} keeps what was built"))


def describe() -> dict[str, Any]:
    """How to reach what `up` made. Raises Failed where it has not come to its end."""
    answer: dict[str, Any] = json.loads(READY.read_text()) if READY.exists() else {}
    if "image" not in answer:
        raise Failed("no cluster of ours is ready here", hint="make kind-up")
    return answer


def environment() -> dict[str, str]:
    """What `kubectl` and `grid` read to reach the cluster and its store. Raises Failed."""
    found = describe()
    s3 = found["s3"]
    return {
        "KUBECONFIG": found["kubeconfig"],
        "GRID_STORE": f"s3://{s3['bucket']}",
        "AWS_ENDPOINT_URL": s3["endpoint"],
        "AWS_ACCESS_KEY_ID": s3["access_key"],
        "AWS_SECRET_ACCESS_KEY": s3["secret_key"],
    }


def describe_base(engine: Engine) -> dict[str, Any]:
    """The same without the image, which comes last."""
    return {
        "cluster": CLUSTER,
        "kubeconfig": str(KUBECONFIG),
        "kubectl": str(tool("kubectl")),
        "namespace": NAMESPACE,
        "nodes": sorted(nodes(engine)),
        "registry": REGISTRY_HOST,
        "docker": {"client": engine.client, "host": engine.host, "is_ours": engine.is_ours},
        "s3": {
            "endpoint": S3_URL,
            "endpoint_in_pods": S3_URL_IN_PODS,
            "bucket": S3_BUCKET,
            "access_key": S3_KEY,
            "secret_key": S3_SECRET,
        },
    }


def kubectl(*words: str | Path, given: str | None = None) -> str:
    """What kubectl printed, asked with this cluster's kubeconfig alone. Raises Failed."""
    return run(tool("kubectl"), *words, environment={"KUBECONFIG": str(KUBECONFIG)}, given=given)


# the nodes


def nodes(engine: Engine) -> dict[str, str]:
    """This cluster's node containers, each with its id; stopped ones too."""
    label = f"label=io.x-k8s.kind.cluster={CLUSTER}"
    lines = engine.docker("ps", "--all", "--no-trunc", "--filter", label, "--format", "{{.Names}} {{.ID}}").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def make_nodes(engine: Engine) -> None:
    """kind's nodes run; they are made anew where they do not answer."""
    present = nodes(engine)
    if present and not MADE.exists():
        raise Failed(
            f"a kind cluster {CLUSTER} is here that was not made by this command",
            hint="KIND_CLUSTER=other chooses another name",
        )
    if present:
        made = json.loads(MADE.read_text())
        wanted = {"nodes": present, "workers": WORKERS}
        if made == wanted and not KUBECONFIG.exists():
            kind(engine, "export", "kubeconfig", "--name", CLUSTER, "--kubeconfig", KUBECONFIG)
        if made == wanted and is_answering():
            return
        say("the cluster that is here does not answer, or is not the one asked for: making it anew")
        delete_nodes(engine)
    image = node_image(engine)
    with step(f"creating the cluster {CLUSTER}"):
        write_whole(MADE, json.dumps({}))
        KUBECONFIG.parent.mkdir(parents=True, exist_ok=True)
        KUBECONFIG.unlink(missing_ok=True)
        words = ("--name", CLUSTER, "--image", image, "--kubeconfig", KUBECONFIG, "--config", "-")
        kind(engine, "create", "cluster", *words, given=json.dumps(kind_settings(engine, image)))
        if not can_pull(engine):
            connect_pods(engine)
        write_whole(MADE, json.dumps({"nodes": nodes(engine), "workers": WORKERS}))


def delete_nodes(engine: Engine) -> None:
    """The cluster is gone, however far it had come."""
    with step(f"deleting the cluster {CLUSTER}"):
        READY.unlink(missing_ok=True)
        kind(engine, "delete", "cluster", "--name", CLUSTER, "--kubeconfig", KUBECONFIG)


def is_answering() -> bool:
    """Whether the API server says that it is ready."""
    environment = {"KUBECONFIG": str(KUBECONFIG)}
    words = ("get", "--raw", "/readyz", "--request-timeout=10s")
    return attempt(tool("kubectl"), *words, environment=environment, timeout=20).returncode == 0


def kind(engine: Engine, *words: str | Path, given: str | None = None) -> str:
    """What kind printed. Raises Failed."""
    chosen = {"KIND_EXPERIMENTAL_DOCKER_NETWORK": CLUSTER, "KIND_EXPERIMENTAL_PROVIDER": "docker"}
    KUBECONFIG.with_name(f"{KUBECONFIG.name}.lock").unlink(missing_ok=True)  # of a killed run: ours is held
    return run(program("kind"), *words, environment=engine.environment | chosen, given=given)


def kind_settings(engine: Engine, image: str) -> dict[str, Any]:
    """The file that `kind create cluster` reads."""
    ports = [{"containerPort": S3_NODE_PORT, "hostPort": S3_PORT, "listenAddress": "127.0.0.1"}]
    roles: list[dict[str, Any]] = [
        {"role": "control-plane", "extraPortMappings": ports},
        *({"role": "worker"} for _ in range(WORKERS)),
    ]
    settings = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": roles,
        "kubeadmConfigPatches": [json.dumps(UNHURRIED)],
    }
    if can_pull(engine):
        return settings
    if engine.is_ours:  # the images that nodes have unpacked outlive them, which saves most of a second start
        mine = CACHE / "containerd" / CLUSTER
        kept = mine / image.rpartition(":")[2]
        for each in mine.glob("*"):
            if each != kept:
                shutil.rmtree(each)
        for index, node in enumerate(roles):
            folder = kept / str(index)
            folder.mkdir(parents=True, exist_ok=True)
            node["extraMounts"] = [{"hostPath": str(folder), "containerPath": "/var/lib/containerd"}]
    kubelet = {
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",  # the node has no systemd
        "failCgroupV1": False,
        "resolvConf": "/kind/resolv.conf",
    }
    versions = {
        "kind": "ClusterConfiguration",
        "dns": {"imageTag": COREDNS},
        "etcd": {"local": {"imageTag": ETCD}},
    }
    return settings | {
        "networking": {"disableDefaultCNI": True, "podSubnet": "10.244.0.0/16"},
        "kubeadmConfigPatches": [json.dumps(each) for each in (UNHURRIED, kubelet, versions)],
    }


def connect_pods(engine: Engine) -> None:
    """Each node has a bridge for its pods, and a route to the pods of every other."""
    kubectl("wait", "node", "--all", "--for=jsonpath={.spec.podCIDR}", "--timeout=120s")
    found = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    ranges = {node["metadata"]["name"]: node["spec"]["podCIDR"] for node in found}
    addresses = {
        node["metadata"]["name"]: address["address"]
        for node in found
        for address in node["status"]["addresses"]
        if address["type"] == "InternalIP"
    }
    for node, pods in ranges.items():
        plugin = json.loads(json.dumps(NETWORK_PLUGIN))
        plugin["plugins"][0]["ipam"]["ranges"] = [[{"subnet": pods}]]
        lines = [f"cat > /etc/cni/net.d/10-node.conflist <<'END'\n{json.dumps(plugin)}\nEND"]
        for other in sorted(set(ranges) - {node}):
            lines.append(f"ip route replace {ranges[other]} via {addresses[other]}")
            lines.append(f"echo {addresses[other]} {other} >> /etc/hosts")  # pods on the node's network ask no DNS
        in_node(engine, node, "\n".join(lines))
    if len(ranges) > 1:
        kubectl("--namespace=kube-system", "delete", "pod", "--selector=k8s-app=kube-proxy")


def in_node(engine: Engine, node: str, script: str) -> str:
    """What the script printed, run by a shell in the node. Raises Failed."""
    return engine.docker("exec", "--interactive", node, "sh", "-eu", given=script)


# the registry, as kind's own recipe has it: https://kind.sigs.k8s.io/docs/user/local-registry/


def make_network(engine: Engine) -> None:
    """A network of this cluster's own, apart from that of a person's other clusters."""
    if not engine.knows("network", CLUSTER):
        engine.docker("network", "create", "--driver", "bridge", CLUSTER)


def make_registry(engine: Engine) -> None:
    """The local registry runs; what was pushed to it earlier is still there."""
    image = registry_image(engine)
    template = "{{.State.Running}} {{.Config.Image}}"
    found = attempt(
        engine.client, "container", "inspect", "--format", template, REGISTRY_CONTAINER, environment=engine.environment
    )
    if found.stdout.strip() == f"true {image}":
        return
    with step("starting the local registry"):
        if found.returncode == 0:
            engine.docker("rm", "--force", REGISTRY_CONTAINER)
        storage = (
            f"{CACHE / 'registry' / CLUSTER}" if engine.is_ours else f"{REGISTRY_CONTAINER}"
        )  # a folder, or a volume
        words = ["--name", REGISTRY_CONTAINER, "--network", CLUSTER, "--volume", f"{storage}:/registry"]
        engine.docker("run", "--detach", *words, "--publish", f"127.0.0.1:{REGISTRY_PORT}:5000", image)


def tell_registry(engine: Engine) -> None:
    """Nodes know where `localhost:PORT/…` is; and so do people's tools, by the ConfigMap that KEP-1755 names."""
    folder = f"/etc/containerd/certs.d/{REGISTRY_HOST}"
    host = f'[host."http://{REGISTRY_CONTAINER}:5000"]'
    for node in nodes(engine):
        in_node(engine, node, f"mkdir -p {folder}\necho '{host}' > {folder}/hosts.toml\n")
    hosting = f'host: "{REGISTRY_HOST}"\nhelp: "https://kind.sigs.k8s.io/docs/user/local-registry/"\n'
    told = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "local-registry-hosting", "namespace": "kube-public"},
        "data": {"localRegistryHosting.v1": hosting},
    }
    kubectl("apply", "-f", "-", given=json.dumps(told))


# what is in the cluster


def make_namespace() -> None:
    """The namespace is there, admits only pods that pass Pod Security `restricted`, and has its service account."""
    if not kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name"):
        kubectl("create", "-f", ROOT / "k8s" / "base" / "namespace.yaml")  # later k8s/overlays/kind adds to it
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the account is made a moment later, and a pod without one is refused
        if kubectl("--namespace", NAMESPACE, "get", "serviceaccount", "--output=name").strip():
            return
        time.sleep(0.2)
    raise Failed(f"namespace {NAMESPACE}: no service account within 60 s")


def make_s3(engine: Engine) -> None:
    """The S3 server answers and has its bucket."""
    image = S3_IMAGE or push(engine, minio_image(engine), f"{REGISTRY_HOST}/minio:latest")
    with step("starting the S3 server"):
        in_node(engine, NODE, "mkdir -p /var/local/s3\nchown 65532:65532 /var/local/s3\n")
        manifests = kubectl("kustomize", HERE / "s3").replace("localhost:5001/minio:latest", image)
        kubectl("apply", "-f", "-", given=manifests.replace("- NODE\n", f"- {NODE}\n"))
        kubectl("--namespace", NAMESPACE, "rollout", "status", "deployment/s3", "--timeout=180s")
        make_bucket(S3_URL, S3_BUCKET)


def make_bucket(endpoint: str, bucket: str) -> None:
    """The bucket is there. Raises Failed when the server does not answer within a minute."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=S3_KEY,
        aws_secret_access_key=S3_SECRET,
        config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 0}),
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=bucket)
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise Failed(f"{endpoint}: the S3 server made no bucket within 60 s: {error}") from error
            time.sleep(0.5)


def start_image(engine: Engine, image: str) -> None:
    """Every node has pulled the image, and it starts there: what comes next need not wait for gigabytes."""
    kubectl("--namespace", NAMESPACE, "delete", "pod", "--selector=app.kubernetes.io/component=pull")  # of a killed run
    for node in nodes(engine):
        if image in in_node(engine, node, "ctr --namespace=k8s.io images ls --quiet").split():
            continue
        with step(f"pulling the image on {node}"):
            name = f"pull-{node}"
            kubectl("apply", "-f", "-", given=json.dumps(_first_pod(name, node, image)))
            words = ("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=600s")
            kubectl("--namespace", NAMESPACE, *words)
            kubectl("--namespace", NAMESPACE, "delete", "pod", name)


def start_controller(image: str) -> None:
    """The controller runs, from this very image, where its manifests are there."""
    if not OVERLAY.is_dir():
        return
    with step("starting the controller"):
        manifests = kubectl("kustomize", OVERLAY).replace("localhost:5001/experiment-grid:latest", image)
        kubectl("apply", "-f", "-", given=manifests)
        environment = {"KUBECONFIG": str(KUBECONFIG)}
        words = ("--namespace", NAMESPACE, "rollout", "status", "deployment/controller", "--timeout=120s")
        if attempt(tool("kubectl"), *words, environment=environment).returncode != 0:
            say(f"the controller does not get ready; kubectl -n {NAMESPACE} logs deployment/controller says why")


def _first_pod(name: str, node: str, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/component": "pull"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "nodeName": node,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "pull",
                    "image": image,
                    "command": ["true"],
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
