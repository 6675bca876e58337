"""What a settings' pod template patch may do to a trainer's pod, and the patched template.

A strategic merge, as `kubectl patch` makes it: mappings are merged, null removes a key, and lists whose items have a
key of their own (MERGE_KEYS) are merged item by item; every other list is replaced.
https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controller.jobs import CONTAINER, DOMAIN
from trainer.document import Path, Problem, show_value

MERGE_KEYS = {  # by the list's own key: what tells its items apart, from the API's types (patchMergeKey)
    "containers": "name",
    "env": "name",
    "ephemeralContainers": "name",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
}

SPEC_FOLDER = "/etc/experiment"
CA_FOLDER = "/etc/experiment-ca"
CACHE_FOLDER = "/cache"
SCRATCH_FOLDER = "/tmp"
SHARED_MEMORY_FOLDER = "/dev/shm"
VOLUMES = {"spec": SPEC_FOLDER, "tmp": SCRATCH_FOLDER, "cache": CACHE_FOLDER, "shm": SHARED_MEMORY_FOLDER,
           "ca": CA_FOLDER}  # fmt: skip
"""The trainer's own volumes, and where they are mounted."""

OWN_ENV = {  # variables that the manifest sets itself: what to change instead
    "HOME": None,
    "GRID_CACHE": "`cache` says where decoded images are kept",
    "XDG_CACHE_HOME": "`cache` says where decoded images are kept",
    "GRID_TERMINATION_LOG": None,
    "GRID_LOG": None,
    "GRID_TELEMETRY_PORT": "`telemetry` sets it",
    "GRID_TENSORBOARD": "`tensorboard` sets it",
    "OMP_NUM_THREADS": "`threads` sets it",
    "NVIDIA_VISIBLE_DEVICES": "`gpu` decides it",
    "CUDA_VISIBLE_DEVICES": "`gpu` decides it",
    "AWS_ENDPOINT_URL": "`store.endpoint` sets it",
    "AWS_ENDPOINT_URL_S3": "`store.endpoint` sets it",
    "AWS_REGION": "`store.region` sets it",
    "AWS_DEFAULT_REGION": "`store.region` sets it",
    "AWS_CA_BUNDLE": "`store.ca` sets it",
    "SSL_CERT_FILE": "`store.ca` sets it",
    "AWS_ACCESS_KEY_ID": "`store.secret` names the secret that has it",
    "AWS_SECRET_ACCESS_KEY": "`store.secret` names the secret that has it",
    "AWS_SESSION_TOKEN": "`store.secret` names the secret that has it",
}

_POD = {  # of the pod's spec: what to change instead
    "restartPolicy": "the Job's failure rules need Never",
    "automountServiceAccountToken": "a trainer has no business with the API; workload identity brings its own token",
    "serviceAccountName": "`service_account` sets it",
    "serviceAccount": "`service_account` sets it",
    "terminationGracePeriodSeconds": "`grace_period` sets it",
    "activeDeadlineSeconds": "`active_deadline` sets the Job's",
    "enableServiceLinks": None,
    "hostNetwork": "Pod Security `restricted` admits no such pod",
    "hostPID": "Pod Security `restricted` admits no such pod",
    "hostIPC": "Pod Security `restricted` admits no such pod",
}
_TRAINER = {  # of the trainer's container
    "image": "`image` sets it",
    "imagePullPolicy": "`image_pull_policy` sets it",
    "command": "the image's entrypoint is the trainer",
    "args": "`store`, `resume` and `store_patience` decide them",
    "envFrom": "name the variables one by one under env: a secret read whole could set those of the trainer's own",
    "terminationMessagePath": None,
    "terminationMessagePolicy": None,
    "lifecycle": None,
    "restartPolicy": None,
    "stdin": None,
    "tty": None,
    "livenessProbe": "a trainer says that it is alive by its lease in the store",
    "startupProbe": "a trainer says that it is alive by its lease in the store",
}


def patched(template: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`template`, a PodTemplateSpec, after `patch`; neither is changed."""
    return _merged_mappings(template, patch)


def patch_problems(patch: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """All that `patch`, which stands at `path`, may not do: what it could break is the contract with the trainer."""
    yield from _directives(patch, path)
    for key, value in patch.items():
        here = (*path, key)
        if key not in ("metadata", "spec"):
            yield Problem(here, f"unknown key; got {key!r}, expected metadata or spec, the keys of a pod template")
        elif not isinstance(value, Mapping):
            yield _wrong(here, value, "a mapping")
        else:
            yield from _metadata_problems(value, here) if key == "metadata" else _pod_problems(value, here)


def _directives(value: Any, path: Path) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key.startswith("$"):
                yield Problem((*path, key), f"got the directive {key!r}, which is not understood here",
                              "null removes a key")  # fmt: skip
            yield from _directives(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _directives(item, (*path, index))


def _metadata_problems(metadata: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    for key, value in metadata.items():
        here = (*path, key)
        if key not in ("labels", "annotations"):
            yield Problem(here, f"unknown key; got {key!r}, expected labels or annotations")
        elif not isinstance(value, Mapping):
            yield _wrong(here, value, "a mapping")
        else:
            for name, text in value.items():
                if _is_own(name):
                    yield Problem((*here, name), f"{name} is the controller's own, and not for a patch to change")
                elif not isinstance(text, str):
                    yield _wrong((*here, name), text, "text")


def _is_own(name: str) -> bool:
    domain = name.partition("/")[0]
    return domain in ("app.kubernetes.io", DOMAIN) or domain.endswith(f".{DOMAIN}")


def _pod_problems(pod: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    for key, value in pod.items():
        here = (*path, key)
        if key in _POD:
            yield Problem(here, f"got {show_value(value)}, but this is not for a patch to change", _POD[key])
        elif key == "containers":
            yield from _items(value, "name", here)
            for index, container in _mappings(value):
                if container.get("name") == CONTAINER:
                    yield from _trainer_problems(container, (*here, index))
                elif container.get("name") is not None:
                    yield Problem(
                        (*here, index, "name"),
                        f"got {show_value(container['name'])}, expected {CONTAINER!r}: a Job waits for all to end",
                        "put it under initContainers with `restartPolicy: Always`, which makes it a sidecar",
                    )
        elif key == "volumes":
            yield from _items(value, "name", here)
            for index, volume in _mappings(value):
                if volume.get("name") in VOLUMES:
                    yield Problem((*here, index), f"{volume['name']!r} is a volume of the trainer's own",
                                  "take another name; `cache` and `shared_memory` change those")  # fmt: skip
        elif key in MERGE_KEYS:
            yield from _items(value, MERGE_KEYS[key], here)


def _trainer_problems(container: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    for key, value in container.items():
        here = (*path, key)
        if key in _TRAINER:
            yield Problem(here, f"got {show_value(value)}, but this is not for a patch to change", _TRAINER[key])
        elif key in MERGE_KEYS:
            yield from _items(value, MERGE_KEYS[key], here)
        for index, item in _mappings(value) if key in ("env", "volumeMounts") else ():
            if key == "env" and item.get("name") in OWN_ENV:
                yield own_variable(item["name"], (*here, index))
            elif key == "volumeMounts" and item.get("mountPath") in VOLUMES.values():
                yield Problem((*here, index), f"{item['mountPath']} is a place of the trainer's own", "take another")


def own_variable(name: str, path: Path) -> Problem:
    """What is said of an environment variable that is the manifest's own to set."""
    return Problem(path, f"{name} is set by the manifest itself", OWN_ENV[name])


def _items(value: Any, merge_key: str, path: Path) -> Iterator[Problem]:
    if not isinstance(value, list | tuple):
        yield _wrong(path, value, "a list")
        return
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            yield _wrong((*path, index), item, f"a mapping with {merge_key}")
        elif merge_key not in item:
            yield Problem((*path, index), f"missing key {merge_key}, which tells one item from another")


def _mappings(value: Any) -> list[tuple[int, Mapping[str, Any]]]:
    items = value if isinstance(value, list | tuple) else ()
    return [(index, item) for index, item in enumerate(items) if isinstance(item, Mapping)]


def _wrong(path: Path, value: Any, wanted: str) -> Problem:
    return Problem(path, f"got {show_value(value)}, expected {wanted}")


def _merged_mappings(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            held = base.get(key)
            merged[key] = _merged_mappings(held if isinstance(held, Mapping) else {}, value)
        elif isinstance(value, list | tuple) and key in MERGE_KEYS and _all_mappings(value):
            merged[key] = _merged_lists(base.get(key) or (), value, MERGE_KEYS[key])
        else:
            merged[key] = _plain(value)
    return merged


def _plain(value: Any) -> Any:
    """`value` with lists, as JSON has them, where a document has tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _all_mappings(items: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) for item in items)


def _merged_lists(
    base: Sequence[Mapping[str, Any]], patch: Sequence[Mapping[str, Any]], merge_key: str
) -> list[dict[str, Any]]:
    merged = {item.get(merge_key): dict(item) for item in base}
    for item in patch:
        merged[item.get(merge_key)] = _merged_mappings(merged.get(item.get(merge_key), {}), item)
    return list(merged.values())
