"""Whether there is room for a run: in the namespace's quotas, within its limits, on nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from controller.cluster import (
    LIMIT_RANGES,
    PODS_EVERYWHERE,
    QUOTAS,
    SYSTEM_CONFIG_MAPS,
    Cluster,
    Forbidden,
    NodeView,
    Object,
    ObjectAbsent,
)
from controller.doctor import Check
from controller.jobs import CONTAINER
from controller.quantities import quantity, quantity_text
from controller.wording import count_text

Amounts = Mapping[str, Decimal]  # by the keys of a quota: requests.cpu, limits.memory, …

COUNTED = {"pods", "count/pods", "count/jobs.batch"}
MUST_BE_SAID = ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
"""What a quota makes every pod say: https://kubernetes.io/docs/concepts/policy/resource-quotas/"""
PLAIN = ("cpu", "memory", "ephemeral-storage")
AUTOSCALER_GROUPS = ("karpenter.sh", "autoscaling.x-k8s.io")
AUTOSCALER_STATUS = "cluster-autoscaler-status"


def asked_of(pod_spec: Mapping[str, Any]) -> dict[str, Decimal]:
    """What a pod asks for, as schedulers and quotas count: all its containers, or the largest that runs before them."""
    total: dict[str, Decimal] = {}
    for container in pod_spec.get("containers") or ():
        _add(total, _of_container(container))
    first: dict[str, Decimal] = {}
    for container in pod_spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":  # it stays beside the others
            _add(total, _of_container(container))
        else:
            for key, value in _of_container(container).items():
                first[key] = max(first.get(key, Decimal(0)), value)
    return {key: max(total.get(key, Decimal(0)), first.get(key, Decimal(0))) for key in {**total, **first}}


def _add(total: dict[str, Decimal], more: Mapping[str, Decimal]) -> None:
    for key, value in more.items():
        total[key] = total.get(key, Decimal(0)) + value


def _of_container(container: Mapping[str, Any]) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    requests = {**limits, **(resources.get("requests") or {})}  # a limit alone is a request too
    found = {f"requests.{name}": quantity(value) for name, value in requests.items()}
    return found | {f"limits.{name}": quantity(value) for name, value in limits.items()}


# Quotas and limits of the namespace


def check_quotas(cluster: Cluster, pod_spec: Mapping[str, Any]) -> Iterator[Check]:
    """Whether quotas and limits of the namespace let a run in, as far as rights see them."""
    asked = asked_of(pod_spec)
    try:
        ranges = cluster.list(LIMIT_RANGES, lambda found: found).items
    except Forbidden:
        ranges = ()
        yield Check("limits", "note", "limit ranges may not be looked at")
    for each in ranges:
        yield judge_limits(each, pod_spec)
    for key, value in defaults_of(ranges).items():
        asked.setdefault(key, value)
    try:
        quotas = cluster.list(QUOTAS, lambda found: found).items
    except Forbidden:
        yield Check("quota", "note", "quotas may not be looked at")
        return
    counting = [each for each in quotas if applies(each, pod_spec)]
    for each in counting:
        yield judge_quota(each, asked)
    if not counting:
        yield Check("quota", "ok", "none bounds runs in this namespace")


def applies(quota: Object, pod_spec: Mapping[str, Any]) -> bool:
    """Whether a quota counts such a pod: https://kubernetes.io/docs/concepts/policy/resource-quotas/#quota-scopes"""
    spec = quota.get("spec") or {}
    terms = [{"scopeName": name, "operator": "Exists"} for name in spec.get("scopes") or ()]
    terms += (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
    return all(_is_in_scope(term, pod_spec) for term in terms)


def _is_in_scope(term: Mapping[str, Any], pod_spec: Mapping[str, Any]) -> bool:
    scope, operator = str(term["scopeName"]), str(term.get("operator", "Exists"))
    if scope == "PriorityClass":
        return _matches(pod_spec.get("priorityClassName"), operator, term.get("values") or ())
    if scope == "Terminating":
        return "activeDeadlineSeconds" in pod_spec
    if scope == "NotTerminating":
        return "activeDeadlineSeconds" not in pod_spec
    if scope in ("BestEffort", "NotBestEffort"):
        return bool(asked_of(pod_spec)) == (scope == "NotBestEffort")
    return False


def _matches(value: str | None, operator: str, values: Sequence[str]) -> bool:
    """As the API's selectors go: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/node-selector-requirement/"""
    if operator in ("Exists", "DoesNotExist"):
        return (value is not None) == (operator == "Exists")
    if operator in ("In", "NotIn"):
        return (value in values) == (operator == "In")
    try:
        number, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return number > bound if operator == "Gt" else number < bound


def judge_quota(quota: Object, asked: Amounts) -> Check:
    """Whether one run fits into the quota at all, and how many more do now."""
    name = f"quota {quota['metadata']['name']}"
    hard = (quota.get("spec") or {}).get("hard") or {}
    used = (quota.get("status") or {}).get("used") or {}
    full, room = [], None
    for key, limit in hard.items():
        wanted = _wanted(key, asked)
        if wanted is None:
            if _full_name(key) in MUST_BE_SAID:
                cure = f"set resources.{_full_name(key)} in the settings: the quota counts it, so every pod must say it"
                return Check(name, "wrong", f"bounds {key}, of which runs say nothing", cure)
            continue
        if wanted > quantity(limit):
            cure = "lower `resources` in the settings, or ask for a larger quota"
            return Check(name, "wrong", f"{key}: one run asks for {quantity_text(wanted)}, all of it is {limit}", cure)
        if wanted:
            fits = int((quantity(limit) - quantity(used.get(key, 0))) // wanted)
            room = fits if room is None else min(room, fits)
            if fits < 1:
                full.append(f"{key}: {used.get(key, 0)} of {limit} used, one run asks for {quantity_text(wanted)}")
    if full:
        return Check(name, "note", f"full now: {'; '.join(full)}", "runs wait until there is room")
    if room is None:
        return Check(name, "ok", "bounds nothing that runs ask for")
    return Check(name, "ok", f"room for {count_text(room, 'run')} more now")


def _full_name(key: str) -> str:
    return f"requests.{key}" if key in PLAIN else key


def _wanted(key: str, asked: Amounts) -> Decimal | None:
    """What one run takes of that line of a quota; none where it says nothing of it."""
    return Decimal(1) if key in COUNTED else asked.get(_full_name(key))


def defaults_of(ranges: Iterable[Object]) -> dict[str, Decimal]:
    """What limit ranges put into containers that say nothing."""
    found: dict[str, Decimal] = {}
    for each in ranges:
        for item in (each.get("spec") or {}).get("limits") or ():
            if item.get("type") == "Container":
                found |= {f"limits.{name}": quantity(value) for name, value in (item.get("default") or {}).items()}
                requests = {**(item.get("default") or {}), **(item.get("defaultRequest") or {})}
                found |= {f"requests.{name}": quantity(value) for name, value in requests.items()}
    return found


def judge_limits(limits: Object, pod_spec: Mapping[str, Any]) -> Check:
    """Whether a limit range refuses such a pod, or changes it."""
    name = f"limits {limits['metadata']['name']}"
    trainer = next(each for each in pod_spec["containers"] if each["name"] == CONTAINER)
    refusals: list[str] = []
    additions: list[str] = []
    for item in (limits.get("spec") or {}).get("limits") or ():
        kind = item.get("type")
        if kind not in ("Container", "Pod"):
            continue
        own = _of_container(trainer) if kind == "Container" else asked_of(pod_spec)
        if kind == "Container":
            added = [each for each in item.get("default") or {} if f"limits.{each}" not in own]
            additions += [f"{each}: {item['default'][each]}" for each in added]
            own = {**{f"limits.{each}": quantity(item["default"][each]) for each in added}, **own}
        refusals += _refusals(item, own)
    if refusals:
        return Check(name, "wrong", "; ".join(refusals), "change `resources` in the settings to what is allowed")
    if additions:
        cure = "set resources.limits in the settings where another limit is wanted"
        return Check(name, "note", f"puts limits on runs that the settings leave without: {', '.join(additions)}", cure)
    return Check(name, "ok", "runs keep within them")


def _refusals(item: Mapping[str, Any], own: Amounts) -> Iterator[str]:
    for resource, most in (item.get("max") or {}).items():
        value = own.get(f"limits.{resource}")
        if value is None:
            yield f"{resource}: a limit of at most {most} must be set"
        elif value > quantity(most):
            yield f"{resource}: the limit is {quantity_text(value)}, at most {most} is allowed"
    for resource, least in (item.get("min") or {}).items():
        value = own.get(f"requests.{resource}", Decimal(0))
        if value < quantity(least):
            yield f"{resource}: {quantity_text(value)} is asked for, at least {least} must be"
    for resource, ratio in (item.get("maxLimitRequestRatio") or {}).items():
        limit, request = own.get(f"limits.{resource}"), own.get(f"requests.{resource}")
        if limit and request and limit / request > quantity(ratio):
            yield f"{resource}: the limit is {limit / request:.1f} times the request, at most {ratio} times is allowed"


# Nodes


def check_nodes(cluster: Cluster, pod_spec: Mapping[str, Any]) -> Iterator[Check]:
    """Which nodes could take a run, and how many they have room for now, as far as rights see them."""
    nodes = cluster.nodes()
    if nodes is None:
        yield Check("nodes", "note", "may not be looked at: whether one fits, a pod of the runs' making has to show")
        return
    pods = None
    with suppress(Forbidden):
        pods = cluster.list(PODS_EVERYWHERE, placed).items
    found = judge_nodes(nodes, pods, pod_spec)
    if found.state == "wrong" and (sign := autoscaler_sign(cluster)):
        found = judge_absent_node(found, sign)
    yield found


def autoscaler_sign(cluster: Cluster) -> str:
    """What says that nodes may be made on demand here; empty where nothing does, or nothing that may be seen.

    Karpenter has an API group, and so has Kubernetes' own autoscaler where nodes may be asked of it by name; that one
    writes how it is into a ConfigMap: https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md
    """
    for group in AUTOSCALER_GROUPS:
        if cluster.preferred_api(group) is not None:
            return f"the API group {group}"
    with suppress(ObjectAbsent, Forbidden):
        cluster.metadata(SYSTEM_CONFIG_MAPS, AUTOSCALER_STATUS)
        return f"the ConfigMap kube-system/{AUTOSCALER_STATUS}"
    return ""


def judge_absent_node(found: Check, sign: str) -> Check:
    """The check of nodes of which none fits, where an autoscaler may make one that does."""
    cure = "whether it makes one that fits, a pod that asks for it shows: that of `grid doctor`, or a first run's"
    return Check(found.name, "note", f"{found.found}; but {sign} says that nodes are made on demand", cure)


def placed(pod: Object) -> tuple[str, dict[str, Decimal]] | None:
    """The node that a pod takes room on, and how much; none of one that has ended or has no node."""
    node = (pod.get("spec") or {}).get("nodeName")
    if not node or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    asked = asked_of(pod["spec"])
    requests = {key.removeprefix("requests."): value for key, value in asked.items() if key.startswith("requests.")}
    return node, requests


def judge_nodes(
    nodes: Sequence[NodeView], pods: Iterable[tuple[str, Mapping[str, Decimal]]] | None, pod_spec: Mapping[str, Any]
) -> Check:
    """How many such pods the nodes hold, and how many more now; without `pods` that is not known."""
    wanted = {
        key.removeprefix("requests."): value for key, value in asked_of(pod_spec).items() if key.startswith("requests.")
    }
    taken: dict[str, dict[str, Decimal]] = {}
    for name, requests in pods or ():
        _add(taken.setdefault(name, {}), requests)
    reasons: Counter[str] = Counter()
    num_fitting = num_held = num_now = 0
    for node in nodes:
        if reason := unfit(node, pod_spec, wanted):
            reasons[reason] += 1
            continue
        num_fitting += 1
        has = {name: quantity(value) for name, value in node.allocatable.items()}
        num_held += _times(has, wanted)
        used = taken.get(node.name, {})
        num_now += _times({name: value - used.get(name, 0) for name, value in has.items()}, wanted)
    total = count_text(len(nodes), "node")
    if not num_fitting:
        why = "; ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        cure = "correct `gpu`, `node_selector`, `tolerations` or `resources` in the settings"
        return Check("nodes", "wrong", f"none of {total} fits{f': {why}' if why else ''}", cure)
    found = (
        f"{num_fitting} of {total} {'fits' if num_fitting == 1 else 'fit'}, for {count_text(num_held, 'run')} at once"
    )
    if pods is None:
        return Check("nodes", "ok", f"{found}; what others take of them may not be looked at")
    if not num_now:
        return Check("nodes", "note", f"{found}, none now", "runs wait until others have ended")
    return Check("nodes", "ok", f"{found}, {num_now} now")


def unfit(node: NodeView, pod_spec: Mapping[str, Any], wanted: Amounts) -> str | None:
    """Why the node never takes such a pod, even when it is empty; none where it does."""
    if not node.is_ready:
        return "not ready"
    if not node.is_schedulable:
        return "cordoned"
    if not _is_selected(node, pod_spec):
        return "without the labels that are asked for"
    for taint in node.taints:
        if not _is_tolerated(taint, pod_spec.get("tolerations") or ()):
            return f"with a taint that is not tolerated ({taint})"
    for name, value in wanted.items():
        has = quantity(node.allocatable.get(name, "0"))
        if has < value:
            return f"with too little {name} ({node.allocatable.get(name, '0')}, {quantity_text(value)} is asked for)"
    return None


def _is_selected(node: NodeView, pod_spec: Mapping[str, Any]) -> bool:
    if any(node.labels.get(key) != value for key, value in (pod_spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(
        all(_holds(node.labels.get(each["key"]), each) for each in term.get("matchExpressions") or ())
        and all(_holds(node.name, each) for each in term.get("matchFields") or ())
        for term in required.get("nodeSelectorTerms") or ()
    )


def _holds(value: str | None, expression: Mapping[str, Any]) -> bool:
    return _matches(value, expression["operator"], expression.get("values") or ())


def _is_tolerated(taint: str, tolerations: Iterable[Mapping[str, Any]]) -> bool:
    """https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/"""
    key, _, rest = taint.partition("=")
    value, _, effect = rest.rpartition(":")
    if effect == "PreferNoSchedule":
        return True
    return any(
        each.get("effect") in (None, effect)
        and each.get("key") in (None, key)
        and (each.get("operator") == "Exists" or each.get("value", "") == value)
        for each in tolerations
    )


def _times(has: Mapping[str, Decimal], wanted: Amounts) -> int:
    return max(0, min(int(has.get(name, Decimal(0)) // value) for name, value in wanted.items() if value))
