"""The cluster's side of a grid: image, resources, queue, store as pods see it. Never part of a run's identity."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from controller.attempts import MAX_TRIES
from controller.patch import OWN_ENV, own_variable, patch_problems
from controller.quantities import SCALES, quantity
from controller.rows import assign
from trainer.document import (
    Document,
    Place,
    Problem,
    dotted_keys,
    nearest,
    read_document,
    read_file,
    spec_error,
    takes_any_key,
    validate,
    write_yaml,
)
from trainer.document import Path as DocumentPath
from trainer.failure import SpecError
from trainer.spec import Frozen

MIB = 1 << 20
PENDING_SECONDS = 600  # a wait for an image or a configuration, before it is a failure
PROGRESS_SECONDS = 60  # at least, between two notes of a run's progress on its Job
DEFAULT_STORE_PATIENCE = 1800  # seconds; the trainer's own, which then needs no saying
# narrower than the API: no sign, no exponent, nothing finer than thousandths
_QUANTITY = re.compile(rf"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:{'|'.join(SCALES.keys() - {'n', 'u'})})?")
_QUANTITY_SCHEMA = WithJsonSchema({"type": ["string", "number"]})


def _written(value: Any) -> Any:
    """A number as the text of a quantity; of anything else, itself."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{Decimal(repr(value)):f}" if is_number else value


def _cores(text: str) -> str:
    if not _QUANTITY.fullmatch(text) or quantity(text) <= 0:
        raise ValueError("expected processors, such as 2, 1.5 or 500m")
    if quantity(text) % Decimal("0.001"):
        raise ValueError("expected thousandths of a processor at the finest: 1m")
    if quantity(text) > 10_000:
        raise ValueError("expected processors: Ki, M and the like are for bytes")
    return text


def _bytes(text: str) -> str:
    if not _QUANTITY.fullmatch(text) or text.endswith("m"):
        raise ValueError("expected a size with its unit, such as 512Mi or 4Gi")
    if quantity(text) < MIB:
        raise ValueError(f"expected a size with its unit, of at least 1Mi: {text} is so many bytes")
    return text


def _bytes_or(word: str) -> AfterValidator:
    def check(text: str) -> str:
        try:
            return text if text == word else _bytes(text)
        except ValueError as error:
            raise ValueError(f"{error}; or {word}") from None

    return AfterValidator(check)


_DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
_QUALIFIED = rf"({_DNS_LABEL}(\.{_DNS_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
Cores = Annotated[str, BeforeValidator(_written), AfterValidator(_cores), _QUANTITY_SCHEMA]
Bytes = Annotated[str, BeforeValidator(_written), AfterValidator(_bytes), _QUANTITY_SCHEMA]
BytesOrAuto = Annotated[str, BeforeValidator(_written), _bytes_or("auto"), _QUANTITY_SCHEMA]
BytesOrRequest = Annotated[str, BeforeValidator(_written), _bytes_or("request"), _QUANTITY_SCHEMA]
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ and …/labels/
Label = Annotated[str, Field(pattern=rf"^{_DNS_LABEL}$")]
Name = Annotated[str, Field(pattern=rf"^{_DNS_LABEL}(\.{_DNS_LABEL})*$", max_length=253)]
LabelKey = Annotated[str, Field(pattern=rf"^{_QUALIFIED}$")]
LabelValue = Annotated[str, Field(pattern=rf"^{_LABEL_VALUE}$")]
Seconds = PositiveInt


class Requests(Frozen):
    """What a pod is promised, and by which it is placed."""

    cpu: Cores = Field(default="1", description="processors: 2, 1.5 or 500m. `threads` follows it")
    memory: BytesOrAuto = Field(
        default="auto",
        description="size such as 4Gi; `auto` takes what like runs needed on a CPU and a quarter more; at least "
        "4Gi where some of the grid's runs are like none before, 8Gi with a GPU",
    )
    ephemeral_storage: BytesOrAuto = Field(
        default="auto",
        description="disk for logs, /tmp and a cache that is no claim; `auto` takes 1Gi beside what the grid's decoded "
        "images need, or beside 10Gi where that is not known",
    )


class Limits(Frozen):
    """Beyond what a pod is slowed down (cpu) or ended (memory, ephemeral_storage)."""

    cpu: Cores | None = Field(default=None, description="null lets it use processors that stand idle")
    memory: BytesOrRequest | None = Field(
        default="request", description="size; `request` is what is requested, null none at all"
    )
    ephemeral_storage: BytesOrRequest | None = Field(
        default="request", description="size; `request` is what is requested, null none at all"
    )


class Resources(Frozen):
    """What a run's container asks for, beside a GPU."""

    requests: Requests = Requests()
    limits: Limits = Limits()


class Gpu(Frozen):
    """The GPUs that each run gets."""

    resource: LabelKey = Field(
        default="nvidia.com/gpu",
        description="what the cluster's device plugin calls it: a whole one (nvidia.com/gpu), a MIG slice "
        "(nvidia.com/mig-1g.5gb), a shared one (nvidia.com/gpu.shared)",
    )
    count: PositiveInt = Field(default=1, description="how many; a run computes on the first")
    product: tuple[LabelValue, ...] = Field(
        default=(), description="models that will do, as `product_label` names them on the nodes; none: any"
    )
    product_label: LabelKey = Field(
        default="nvidia.com/gpu.product",
        description="node label with the model: GPU feature discovery's; cloud.google.com/gke-accelerator on GKE, "
        "karpenter.k8s.aws/instance-gpu-name with Karpenter",
    )


class Toleration(Frozen):
    """A taint that does not keep runs off a node; keys as the API has them."""

    key: LabelKey | None = Field(default=None, description="the taint's key; none: every taint")
    operator: Literal["Equal", "Exists"] = Field(default="Equal", description="Exists asks for no value")
    value: LabelValue | None = Field(default=None, description="the taint's value")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="the taint's effect; none: every effect"
    )
    seconds: NonNegativeInt | None = Field(
        default=None, alias="tolerationSeconds", description="how long, for NoExecute; none: for ever"
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("got a value with operator Exists, expected none")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("got no key with operator Equal, expected a key, or operator Exists")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError("got tolerationSeconds, expected effect NoExecute with it")
        return self


class Queue(Frozen):
    """Kueue's queue: Kueue then says which runs start when, and `parallelism` counts no more."""

    name: Label = Field(description="the LocalQueue in the namespace")
    priority_class: Name | None = Field(default=None, description="a WorkloadPriorityClass")


class CaBundle(Frozen):
    """PEM certificates that the store's certificate is checked against, in place of the image's own."""

    config_map: Name | None = Field(default=None, description="the ConfigMap that has it")
    secret: Name | None = Field(default=None, description="or the Secret that has it")
    key: str = Field(default="ca.crt", pattern=r"^[-._A-Za-z0-9]{1,253}$", description="under which key")

    @model_validator(mode="after")
    def _is_one(self) -> CaBundle:
        if (self.config_map is None) == (self.secret is None):
            raise ValueError("got both or neither of config_map and secret, expected one of them")
        return self


class StoreAccess(Frozen):
    """The store as pods see it."""

    uri: Annotated[str, Field(pattern=r"^(s3|file)://.")] | None = Field(
        default=None, description="s3://bucket/prefix; the command's own store if left out"
    )
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")] | None = Field(
        default=None,
        description="address of an S3 server other than AWS, as pods reach it; a client takes its own from "
        "AWS_ENDPOINT_URL",
    )
    region: Annotated[str, Field(pattern=r"^[-a-z0-9]+$")] | None = Field(
        default=None, description="the bucket's region; the server's default if left out"
    )
    secret: Name | None = Field(
        default=None,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if any, AWS_SESSION_TOKEN; none: "
        "the identity of `service_account`",
    )
    ca: CaBundle | None = Field(default=None, description="certificates of a server with a CA of its own")


class Cache(Frozen):
    """Where a run keeps decoded images, mounted at /cache."""

    claim: Name | None = Field(
        default=None,
        description="PersistentVolumeClaim that runs share, so that images are decoded once; none: a folder of the "
        "pod's own that goes with it",
    )
    size: BytesOrAuto = Field(
        default="auto", description="limit of the pod's own folder; `auto` takes what the grid's decoded images need"
    )


class Progress(Frozen):
    """Annotations of a Job that show how far its run is."""

    annotations: bool = Field(default=True, description="false leaves them out, and spares a request per run and time")
    every: Annotated[int, Field(ge=PROGRESS_SECONDS)] = Field(
        default=PROGRESS_SECONDS, description="seconds between two updates of a run"
    )


class Telemetry(Frozen):
    """Numbers that Prometheus reads from each run's pod while it trains."""

    enabled: bool = Field(default=True, description="false leaves the port out, and nothing listens")
    port: Annotated[int, Field(ge=1024, le=65535)] = Field(
        default=9100, description="where it listens, path /metrics; the container's port is called `telemetry`"
    )


class Settings(Frozen):
    """Settings: where and how a grid's runs are placed on a cluster."""

    image: str = Field(
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9._:/]*(@sha256:[0-9a-f]{64})?$",
        description="the trainer's image: registry/name:tag or registry/name@sha256:…",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="null is Kubernetes' own rule: Always for :latest, else IfNotPresent"
    )
    image_pull_secrets: tuple[Name, ...] = Field(default=(), description="Secrets that the registry asks for")
    namespace: Label = Field(default="experiment-grid", description="where Jobs are created")
    service_account: Name = Field(
        default="experiment-grid-trainer",
        description="pods run as this; workload identity to the store hangs on it. Its API token is not mounted",
    )
    resources: Resources = Resources()
    threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads of every run (OMP_NUM_THREADS); null: whole processors of resources.requests.cpu, at "
        "least 1. Always set: numbers hang on it, and else it would be the node's count of processors",
    )
    shared_memory: Bytes = Field(default="256Mi", description="limit of /dev/shm; what is used counts as memory")
    cache: Cache = Cache()
    gpu: Gpu | None = Field(default=None, description="null trains on CPUs")
    node_selector: dict[LabelKey, LabelValue] = Field(default={}, description="labels that a node must have")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="taints that do not matter")
    priority_class: Name | None = Field(default=None, description="a PriorityClass, for the scheduler")
    queue: Queue | None = Field(default=None, description="null: no Kueue, the window is `parallelism`")
    parallelism: PositiveInt = Field(default=8, description="runs of the grid that may be under way at once")
    store: StoreAccess = StoreAccess()
    store_patience: Seconds = Field(
        default=DEFAULT_STORE_PATIENCE,
        description="seconds that a run asks a store that does not answer before it ends with exit 69",
    )
    resume: Literal["exact", "inexact"] = Field(
        default="exact",
        description="whether a run may go on where it cannot compute as it was begun; the result then says "
        "`exact: false`",
    )
    max_tries: PositiveInt = Field(
        default=MAX_TRIES, description="attempts without a newer checkpoint, after which a run has failed for good"
    )
    max_failed: NonNegativeInt | None = Field(
        default=None, description="with more failed runs than this no other is started; null: what the grid says"
    )
    grace_period: Seconds = Field(
        default=60,
        description="seconds between a stop signal and the end; below 30 a last checkpoint may not get through, and "
        "the one before stands",
    )
    active_deadline: Seconds | None = Field(
        default=None,
        description="seconds that a Job may be active, all its attempts together, before its run has failed for good",
    )
    pending_deadline: Seconds = Field(
        default=PENDING_SECONDS,
        description="seconds that a pod may wait for its image or its configuration before its run has failed for "
        "good; waiting for a node or a quota has no end",
    )
    ttl: NonNegativeInt | None = Field(
        default=None,
        description="seconds after which a Job is removed whose outcome is in the store; null: never, it stays for "
        "`kubectl get jobs`",
    )
    progress: Progress = Progress()
    telemetry: Telemetry = Telemetry()
    tensorboard: bool = Field(
        default=True,
        description="whether each run keeps an event file for TensorBoard in the store, written at its epochs' ends",
    )
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default={}, description="further variables of the trainer; secrets belong in pod_template_patch, by valueFrom"
    )
    pod_template_patch: dict[str, Any] = Field(
        default={},
        description="`metadata` and `spec` of the pods, merged last over all of the above as `kubectl patch` does",
    )

    @property
    def num_threads(self) -> int:
        """CPU threads of every run."""
        return self.threads or max(1, int(quantity(self.resources.requests.cpu)))


_KEYS = dotted_keys(Settings)


def shipped_settings() -> list[str]:
    """Names of the settings that come with this program."""
    folder = files("controller") / "environments"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_settings(name_or_path: str | Path, assignments: Sequence[str] = ()) -> Settings:
    """The settings of that shipped name or path, changed by `assignments` (`key=value` each). Raises SpecError."""
    name = str(name_or_path)
    if not isinstance(name_or_path, Path) and name in shipped_settings():
        text = (files("controller") / "environments" / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_settings(text, f"environments/{name}.yaml", assignments)
    found = read_file(Path(name_or_path), name)
    if found is None:
        near = nearest(name, shipped_settings())
        raise SpecError(
            f"settings: got {name!r}, expected a file, or one of {', '.join(shipped_settings())}",
            hint=f"did you mean {near!r}?" if near else None,
        )
    return parse_settings(found, name, assignments)


def parse_settings(text: str, source: str, assignments: Sequence[str] = ()) -> Settings:
    """The settings that `text` holds, as `read_settings` reads them; `source` names it in errors."""
    document = read_document(text, source)
    if document.value is None:
        document = Document(source, {}, document.places)
    for assignment in assignments:
        document = _with_assignment(document, assignment)
    settings = validate(Settings, document)
    if problems := list(_problems(settings)):
        raise spec_error(problems, document)
    return settings


def settings_text(settings: Settings) -> str:
    """The settings in YAML with every default written out: what a grid was submitted with holds, whatever changes."""
    return write_yaml(settings.model_dump(mode="json", by_alias=True))


def _problems(settings: Settings) -> Iterator[Problem]:
    """What a model cannot check by itself."""
    for name in settings.env:
        if name in OWN_ENV:
            yield own_variable(name, ("env", name))
    yield from patch_problems(settings.pod_template_patch, ("pod_template_patch",))
    requests, limits = settings.resources.requests, settings.resources.limits
    for key in ("cpu", "memory", "ephemeral_storage"):
        least, most = getattr(requests, key), getattr(limits, key)
        is_fixed = most is not None and _QUANTITY.fullmatch(most) and _QUANTITY.fullmatch(least)
        if is_fixed and quantity(most) < quantity(least):
            path: DocumentPath = ("resources", "limits", key)
            yield Problem(path, f"got {most!r}, expected at least what is requested: {least}")


def _with_assignment(document: Document, assignment: str) -> Document:
    source = f"--setting {assignment}"
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise SpecError(f"{source}: expected key=value, as in `--setting parallelism=4`")
    if key not in _KEYS and not takes_any_key(Settings, key):
        ends = [other for other in _KEYS if other.rpartition(".")[2] == key]
        near = ends[0] if ends else nearest(key, _KEYS)
        raise SpecError(
            f"{source}: unknown key; got {key!r}, expected a key of the settings",
            hint=f"did you mean {near!r}?" if near else None,
        )
    path = _path(key)
    if not isinstance(document.value, dict):
        return document  # `validate` says what is wrong with it
    changed = assign(document.value, path, read_document(text, source).value)
    kept = {place: where for place, where in document.places.items() if place[: len(path)] != path}
    return Document(document.source, changed, {**kept, path: Place(source, None)})


def _path(key: str) -> tuple[str, ...]:
    """Where dotted `key` leads; a label or variable after `node_selector.` or `env.` may have dots itself."""
    head, _, rest = key.partition(".")
    annotation = Settings.model_fields[head].annotation if rest else None
    is_flat = get_origin(annotation) is dict and head != "pod_template_patch"
    return (head, rest) if is_flat else tuple(key.split("."))
