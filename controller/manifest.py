"""The Job of a run as a value, in the API's own words: what `grid render` prints and the controller creates.

A Job is whole in itself. The run's spec travels as an annotation of its pod, which mounts it as a file; so a Job that
`kubectl apply` created is the same as one that the controller did.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from controller.jobs import (
    CONTAINER,
    QUEUE_LABEL,
    QUEUE_PRIORITY_LABEL,
    RUN_LABEL,
    SEED_LABEL,
    SPEC_ANNOTATION,
    WORK_LABEL,
    grid_label,
    job_name,
    standard_labels,
)
from controller.patch import (
    CA_FOLDER,
    CACHE_FOLDER,
    SCRATCH_FOLDER,
    SHARED_MEMORY_FOLDER,
    SPEC_FOLDER,
    patched,
)
from controller.plan import Resources as PlannedResources
from controller.quantities import quantity
from controller.search import Expansion
from controller.settings import DEFAULT_STORE_PATIENCE, MIB, Settings
from controller.standing import Work
from trainer.document import plain_value
from trainer.failure import FINAL_EXITS, ExitCode, SpecError
from trainer.logs import VARIABLE as LOG_VARIABLE

COMPONENT = "trainer"
USER = 65532  # the image's: `nonroot`, as distroless images call it
SPEC_FILE = "spec.yaml"
SPEC_LIMIT = 100_000
"""Bytes of a spec. All annotations of an object may come to 262,144, and client-side `kubectl apply` keeps the whole
Job in one more: https://kubernetes.io/docs/concepts/overview/working-with-objects/annotations/"""
# Kubernetes waits up to 6 minutes between two pods of a Job: the true bound, attempts without a newer checkpoint, is
# the controller's to keep, and this one is not to come before it
BACKOFF_LIMIT = 10_000
TERMINATED = 143  # 128 + SIGTERM: stopped before the trainer could say 75

TELEMETRY_PORT = "telemetry"
"""What a run's container calls the port of its telemetry; the rules of k8s/ go by that name, whatever its number."""

GIB = 1 << 30
ROUNDED_TO = 64 * MIB
LEAST_MEMORY = 1 * GIB
UNKNOWN_MEMORY = 4 * GIB  # where no like run has been measured
UNKNOWN_GPU_MEMORY = 8 * GIB  # CUDA's own libraries take some 3 GiB of the host's
UNKNOWN_SCRATCH = 10 * GIB
BESIDE_SCRATCH = 1 * GIB  # /tmp, logs, what the container writes of its own


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a grid's runs need, as far as its plan knows; none where it does not."""

    memory_bytes: int | None = None  # the largest resident set of like runs on a CPU
    scratch_bytes: int | None = None  # decoded images
    is_partial: bool = False  # some of the runs are like none that was measured

    @staticmethod
    def of(planned: PlannedResources) -> Footprint:
        """What a plan worked out."""
        return Footprint(planned.peak_memory_bytes, planned.cache_bytes, bool(planned.unmeasured))


class JobTemplate:
    """Makes the Jobs of one grid's runs, which differ in run, spec, grids and suspension, and in nothing else.

    `store_uri` is the command's store, which counts where the settings name none. Raises SpecError where pods could
    not reach the store so.
    """

    def __init__(self, settings: Settings, store_uri: str, footprint: Footprint | None = None) -> None:
        self.settings = settings
        self.store_uri = settings.store.uri or store_uri
        self.footprint = footprint or Footprint()
        self._templates = {is_test: self._pod_template(is_test) for is_test in (False, True)}
        if self.store_uri.startswith("file:"):
            self._check_folder(self.store_uri.removeprefix("file://"))

    def job(
        self, work: Work, seed: int, spec_text: str, grids: Mapping[str, str], *, suspended: bool = False
    ) -> dict[str, Any]:
        """The Job, `batch/v1`, of `work`; `grids` says of each that wants it the stage in which it stands first.

        With a queue it is suspended always, since Kueue says when it starts. Parts are shared with other Jobs of this
        template: not to be changed. Raises SpecError on a spec larger than SPEC_LIMIT.
        """
        if (size := len(spec_text.encode())) > SPEC_LIMIT:
            raise SpecError(
                f"{work.run}: got a spec of {size:,} bytes, expected at most {SPEC_LIMIT:,}: a Job carries it",
                hint="model.arguments is the only part of a spec that can be so large; let the factory read a file",
            )
        labels = {
            **self._standard_labels,
            RUN_LABEL: work.run,
            SEED_LABEL: str(seed),
            WORK_LABEL: "test" if work.is_test else "training",
        }
        of_grids = {grid_label(grid): grids[grid] for grid in sorted(grids)}
        template = self._templates[work.is_test]
        metadata = template["metadata"]
        pods = {
            **template,
            "metadata": {
                "labels": {**metadata.get("labels", {}), **labels},
                "annotations": {**metadata.get("annotations", {}), SPEC_ANNOTATION: spec_text},
            },
        }
        queue = self.settings.queue
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": job_name(work),
                "namespace": self.settings.namespace,
                "labels": {**labels, **of_grids, **self._queue_labels},
            },
            "spec": {"suspend": suspended or queue is not None, **self._job_spec, "template": pods},
        }

    @cached_property
    def _standard_labels(self) -> dict[str, str]:
        labels = standard_labels(COMPONENT)
        with suppress(PackageNotFoundError):  # it may run from its source, not installed
            labels["app.kubernetes.io/version"] = version("experiment-grid").replace("+", "_")  # a label may hold no +
        return labels

    @cached_property
    def _queue_labels(self) -> dict[str, str]:
        queue = self.settings.queue
        if queue is None:
            return {}
        priority = {} if queue.priority_class is None else {QUEUE_PRIORITY_LABEL: queue.priority_class}
        return {QUEUE_LABEL: queue.name, **priority}

    @cached_property
    def _job_spec(self) -> dict[str, Any]:
        deadline = self.settings.active_deadline
        return {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": BACKOFF_LIMIT,
            **({} if deadline is None else {"activeDeadlineSeconds": deadline}),
            # with a failure policy nothing else is allowed, and else two pods of one run would overlap
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": FAILURE_RULES},
        }

    def _pod_template(self, is_test: bool) -> dict[str, Any]:
        settings = self.settings
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "serviceAccountName": settings.service_account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # else each Service of the namespace puts variables into the environment
            "terminationGracePeriodSeconds": settings.grace_period,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **self._placing(),
            "containers": [self._container(is_test)],
            "volumes": self._volumes(),
        }
        return patched({"metadata": {}, "spec": pod}, settings.pod_template_patch)

    def _placing(self) -> dict[str, Any]:
        settings = self.settings
        placing: dict[str, Any] = {}
        if settings.image_pull_secrets:
            placing["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
        if settings.priority_class is not None:
            placing["priorityClassName"] = settings.priority_class
        if settings.node_selector:
            placing["nodeSelector"] = dict(settings.node_selector)
        if settings.gpu is not None and settings.gpu.product:
            products = {
                "key": settings.gpu.product_label,
                "operator": "In",
                "values": list(settings.gpu.product),
            }
            wanted = {"nodeSelectorTerms": [{"matchExpressions": [products]}]}
            placing["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": wanted}}
        if settings.tolerations:
            placing["tolerations"] = [
                each.model_dump(by_alias=True, exclude_none=True) for each in settings.tolerations
            ]
        return placing

    def _container(self, is_test: bool) -> dict[str, Any]:
        settings = self.settings
        pull_policy = settings.image_pull_policy
        mounts = [
            {"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": SCRATCH_FOLDER},
            {"name": "cache", "mountPath": CACHE_FOLDER},
            {"name": "shm", "mountPath": SHARED_MEMORY_FOLDER},
        ]
        if settings.store.ca is not None:
            mounts.append({"name": "ca", "mountPath": CA_FOLDER, "readOnly": True})
        return {
            "name": CONTAINER,
            "image": settings.image,
            **({} if pull_policy is None else {"imagePullPolicy": pull_policy}),
            "args": self._arguments(is_test),
            "env": self._environment(is_test),
            **self._ports(is_test),
            "resources": self._resources(),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            # the trainer writes its failure there; of one that could not (killed for memory, no module), Kubernetes
            # takes the log's last 80 lines or 2 KiB
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": mounts,
        }

    def _arguments(self, is_test: bool) -> list[str]:
        settings = self.settings
        arguments = [f"{SPEC_FOLDER}/{SPEC_FILE}", "--store", self.store_uri]
        if is_test:
            arguments.append("--test")
        if settings.resume != "exact":
            arguments += ["--resume", settings.resume]
        if settings.store_patience != DEFAULT_STORE_PATIENCE:
            arguments += ["--store-patience", str(settings.store_patience)]
        return arguments

    def _ports(self, is_test: bool) -> dict[str, Any]:
        """A test is over before anyone would look: nothing listens there."""
        telemetry = self.settings.telemetry
        if is_test or not telemetry.enabled:
            return {}
        return {"ports": [{"name": TELEMETRY_PORT, "containerPort": telemetry.port}]}

    def _environment(self, is_test: bool) -> list[dict[str, Any]]:
        settings, store = self.settings, self.settings.store
        values = {
            "HOME": SCRATCH_FOLDER,
            "GRID_CACHE": CACHE_FOLDER,
            "XDG_CACHE_HOME": CACHE_FOLDER,
            "OMP_NUM_THREADS": str(settings.num_threads),
            LOG_VARIABLE: "json",
        }
        for port in self._ports(is_test).get("ports", ()):
            values["GRID_TELEMETRY_PORT"] = str(port["containerPort"])
        if settings.gpu is None:
            values["NVIDIA_VISIBLE_DEVICES"] = "void"  # a node's runtime may else give every GPU to who asks for none
        if not settings.tensorboard:
            values["GRID_TENSORBOARD"] = "off"
        if store.endpoint is not None:
            values["AWS_ENDPOINT_URL"] = store.endpoint
        if store.region is not None:
            values["AWS_DEFAULT_REGION"] = store.region
        if store.ca is not None:
            values["AWS_CA_BUNDLE"] = values["SSL_CERT_FILE"] = f"{CA_FOLDER}/{store.ca.key}"
        named: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
        if store.secret is not None:
            named += [
                _from_secret("AWS_ACCESS_KEY_ID", store.secret),
                _from_secret("AWS_SECRET_ACCESS_KEY", store.secret),
                _from_secret("AWS_SESSION_TOKEN", store.secret, optional=True),
            ]
        return named + [{"name": name, "value": value} for name, value in settings.env.items()]

    def _resources(self) -> dict[str, Any]:
        asked, limited = self.settings.resources.requests, self.settings.resources.limits
        requests = {
            "cpu": asked.cpu,
            "memory": self._memory() if asked.memory == "auto" else asked.memory,
            "ephemeral-storage": (
                _bytes_text(BESIDE_SCRATCH + (0 if self.settings.cache.claim else self._scratch()))
                if asked.ephemeral_storage == "auto"
                else asked.ephemeral_storage
            ),
        }
        limits = {}
        for name in requests:
            limit = getattr(limited, name.replace("-", "_"))
            if limit is not None:
                limits[name] = requests[name] if limit == "request" else limit
            if name in limits and quantity(limits[name]) < quantity(requests[name]):
                limits[name] = requests[name]  # what `auto` came to
        if (gpu := self.settings.gpu) is not None:
            limits[gpu.resource] = requests[gpu.resource] = str(gpu.count)  # extended resources are never overcommitted
        return {"requests": requests, **({"limits": limits} if limits else {})}

    def _memory(self) -> str:
        if self.settings.gpu is not None:
            return _bytes_text(UNKNOWN_GPU_MEMORY)  # what runs on a GPU report is the GPU's
        if self.footprint.memory_bytes is None:
            return _bytes_text(UNKNOWN_MEMORY)
        least = UNKNOWN_MEMORY if self.footprint.is_partial else LEAST_MEMORY
        return _bytes_text(max(least, self.footprint.memory_bytes * 5 // 4))

    def _scratch(self) -> int:
        """Bytes for decoded images."""
        if self.settings.cache.size != "auto":
            return int(quantity(self.settings.cache.size))
        known = self.footprint.scratch_bytes
        return UNKNOWN_SCRATCH if known is None else known * 9 // 8 + ROUNDED_TO

    def _volumes(self) -> list[dict[str, Any]]:
        spec = {"path": SPEC_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{SPEC_ANNOTATION}']"}}
        claim, ca = self.settings.cache.claim, self.settings.store.ca
        cache: dict[str, Any] = {"emptyDir": {"sizeLimit": _bytes_text(self._scratch())}}
        if claim is not None:
            cache = {"persistentVolumeClaim": {"claimName": claim}}
        volumes: list[dict[str, Any]] = [
            {"name": "spec", "downwardAPI": {"items": [spec]}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "cache", **cache},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": self.settings.shared_memory}},
        ]
        if ca is not None:
            items = [{"key": ca.key, "path": ca.key}]
            source: dict[str, Any] = {"configMap": {"name": ca.config_map, "items": items}}
            if ca.secret is not None:
                source = {"secret": {"secretName": ca.secret, "items": items}}
            volumes.append({"name": "ca", **source})
        return volumes

    def _check_folder(self, folder: str) -> None:
        (trainer,) = (each for each in self._templates[False]["spec"]["containers"] if each["name"] == CONTAINER)
        own = (SPEC_FOLDER, CA_FOLDER, CACHE_FOLDER, SCRATCH_FOLDER, SHARED_MEMORY_FOLDER)
        mounted = [each["mountPath"].rstrip("/") for each in trainer["volumeMounts"] if each["mountPath"] not in own]
        if not any(folder == path or folder.startswith(f"{path}/") for path in mounted):
            raise SpecError(
                f"store: got {self.store_uri}, which no pod has, expected s3://bucket/prefix",
                hint="`store.uri` and `store.endpoint` name an S3 server as pods reach it; to keep a folder, mount a "
                "volume that every node can write by pod_template_patch and give its path as store.uri",
            )


def first_stages(expansion: Expansion) -> dict[Work, str]:
    """The stage in which each known work of a grid stands first: what the grid's label on its Job says."""
    found: dict[Work, str] = {}
    for stage in expansion.stages:
        for experiment in stage.experiments:
            for run in experiment.runs:
                found.setdefault(Work(run.id, stage.is_test), stage.name)
    return found


def _from_secret(name: str, secret: str, *, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": name}
    return {"name": name, "valueFrom": {"secretKeyRef": reference | ({"optional": True} if optional else {})}}


def _bytes_text(num_bytes: int) -> str:
    """The size, rounded up to ROUNDED_TO: 8Gi, 1088Mi."""
    size = -(-num_bytes // ROUNDED_TO) * ROUNDED_TO
    return f"{size // GIB}Gi" if size % GIB == 0 else f"{size // MIB}Mi"


def _on_exit(action: str, codes: Iterable[int]) -> dict[str, Any]:
    values = sorted(map(int, codes))  # the API wants them in order
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": values}}


FAILURE_RULES: list[dict[str, Any]] = [
    # in this order: what failed for good has failed even on a node that is being drained, and the pod of a suspended
    # Job has no condition DisruptionTarget. https://kubernetes.io/docs/concepts/workloads/controllers/job/
    _on_exit("FailJob", FINAL_EXITS),
    _on_exit("Ignore", (ExitCode.STOPPED, TERMINATED)),
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such, and quotes what one reader or another might not take for text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - PyYAML's
        super().increase_indent(flow, False)


_NUMBER_LIKE = re.compile(r"[-+.0-9][-+.0-9_:a-fA-FoxE]*")  # kubectl's reader takes 0o17 and 1_000 for numbers


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if "\n" in text:
        style = "|"
    elif not isinstance(plain_value(text), str) or _NUMBER_LIKE.fullmatch(text):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def to_yaml(objects: Sequence[Mapping[str, Any]]) -> str:
    """The objects as YAML documents for `kubectl apply -f -`."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=True)
