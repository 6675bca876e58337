"""What a failed exchange means, and an answer that is no success: a fault that can pass, or an error with its cure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controller.cluster.answers import error_text, finish, status_of
from controller.cluster.errors import (
    ClusterError,
    Expired,
    Forbidden,
    NotStarted,
    ObjectAbsent,
    ObjectChanged,
    ObjectExists,
    ObjectInvalid,
    QuotaExceeded,
    Unauthorized,
)

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

FIRST_PATIENCE = 10.0  # seconds for a server that was never reached: it may be starting, more likely it is another
NAME_PATIENCE = 5.0  # seconds for a host name that was never found
CONNECT_SECONDS = 10.0
PASSING_STATUSES = {408: "timeout", 429: "throttled", 500: "server-error", 502: "server-error", 503: "server-error"}
PASSING_STATUSES |= {504: "timeout"}
OVER_QUOTA = re.compile(r"exceeded quota|status unknown for quota")
RBAC = re.compile(r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]*)"')
WAITING_CONTAINER = re.compile(r"is waiting to start: (?P<why>.*)|container .* is not available|ContainerNotFound")


class Passing(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, kind: str, told: str, *, after: float = 0, patience: float = float("inf")) -> None:
        super().__init__(told)
        self.kind = kind
        self.after = after  # seconds that the server asked for
        self.patience = patience


def judge(place: str, error: Exception, *, is_reached: bool) -> Passing:
    """What a failed exchange may pass with. Raises ClusterError where it cannot.

    The server `is_reached` once it has ever answered; until then it may be the wrong one.
    """
    from urllib3 import exceptions

    told = error_text(error)
    if isinstance(error, exceptions.ProxyError) and isinstance(error.original_error, Exception):
        error = error.original_error
    if isinstance(error, exceptions.NameResolutionError):
        return Passing("connection", told, patience=float("inf") if is_reached else NAME_PATIENCE)
    if isinstance(error, exceptions.SSLError) and re.search("CERTIFICATE|VERSION|certificate|hostname", told):
        raise ClusterError(
            f"{place}: got {told}, expected a certificate that the kubeconfig's CA has signed",
            hint="is certificate-authority the one of this cluster, and server its address? A cluster that was "
            "made anew has a new CA",
        ) from error
    if isinstance(error, exceptions.NewConnectionError):
        return Passing("connection", told, patience=float("inf") if is_reached else FIRST_PATIENCE)
    if isinstance(error, exceptions.TimeoutError):
        return Passing("timeout", told, patience=float("inf") if is_reached else 3 * CONNECT_SECONDS)
    if isinstance(error, (exceptions.LocationValueError, exceptions.PoolError)):
        raise ClusterError(
            f"{place}: got {told}, expected a server's URL such as https://127.0.0.1:6443",
            hint="correct `server` of the cluster in the kubeconfig",
        ) from error
    return Passing("connection", told)


def refusal(place: str, verb: str, response: BaseHTTPResponse, *, server: str, namespace: str) -> Exception:
    """What an answer that is no success means."""
    code, status = response.status, status_of(finish(response))
    message = str(status.get("message") or response.reason or "nothing more")
    reason, details = status.get("reason"), status.get("details") or {}
    got = f"{place}: got {code} {message}"
    if kind := PASSING_STATUSES.get(code):
        after = str(response.headers.get("Retry-After") or details.get("retryAfterSeconds") or "")
        return Passing(kind, f"{code} {message}", after=float(after) if after.isdecimal() else 0)
    if code == 409 and verb == "create" and reason != "AlreadyExists":
        # Two creations counted against one ResourceQuota at once: https://github.com/kubernetes/kubernetes/issues/67761
        return Passing("conflict", f"{code} {message}")
    if code == 409 and reason == "AlreadyExists":
        exists = ObjectExists(f"{got}, expected no object of that name")
        exists.is_deleting = "is being deleted" in message
        return exists
    if code in (400, 413, 422):
        return _invalid(got, message, details)
    plain: dict[int, tuple[type[ClusterError], str, str | None]] = {
        401: (
            Unauthorized,
            f"credentials that {server} knows",
            "they are missing, wrong or have expired: log in again, as for kubectl",
        ),
        403: (Forbidden, "to be allowed to", _forbidden_hint(message, namespace)),
        404: (ObjectAbsent, "it to be there", _absent_hint(message, details, namespace)),
        409: (ObjectChanged, "the object and version that were read", None),
        410: (Expired, "a version that the server still knows", None),
    }
    if code == 403 and OVER_QUOTA.search(message):
        return QuotaExceeded(f"{got}, expected room in the namespace's ResourceQuota")
    kind_, wanted, hint = plain.get(
        code, (ClusterError, "an answer of the Kubernetes API", f"is {server} an API server?")
    )
    return kind_(f"{got}, expected {wanted}", hint=hint)


def _invalid(got: str, message: str, details: Mapping[str, Any]) -> ClusterError:
    if found := WAITING_CONTAINER.search(message):
        waiting = NotStarted(
            f"{got}, expected a container that has started", hint="`grid status` says what it waits for"
        )
        waiting.waiting_for = found["why"]
        return waiting
    causes = details.get("causes") or ()
    fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
    fields = tuple(dict.fromkeys(fields)) or tuple(re.findall(r'unknown field "([^"]+)"', message))
    if "metadata.uid" in fields:  # a patch that was meant for another object of that name
        return ObjectChanged(f"{got}, expected the object that was read")
    invalid = ObjectInvalid(
        f"{got}, expected an object that the API accepts",
        hint=f"correct {', '.join(fields)}; a pod template patch in the settings may set it" if fields else None,
    )
    invalid.fields = fields
    return invalid


def unreachable_hint(kind: str) -> str:
    """What may help where faults of that kind did not pass."""
    if kind in ("connection", "timeout"):
        return "is the cluster up, and `server` of the kubeconfig its address? `make kind-up` brings up one of kind"
    return "the API server answers, but is overloaded or unwell: try again later, or ask who runs it"


def _forbidden_hint(message: str, namespace: str) -> str | None:
    if found := RBAC.search(message):
        group = re.search(r'in API group "([^"]*)"', message)
        return (
            f"the Role of {found['user']} in {namespace} needs apiGroups: [{group[1] if group else ''!r}], "
            f"resources: [{found['resource']!r}], verbs: [{found['verb']!r}]; `make deploy` brings the project's own"
        )
    if "is being terminated" in message:
        return f"the namespace {namespace} is being deleted: wait until it is gone, and make it anew"
    if "violates PodSecurity" in message:
        return "a pod template patch in the settings asks for more than the namespace's Pod Security level allows"
    return None


def _absent_hint(message: str, details: Mapping[str, Any], namespace: str) -> str | None:
    if details.get("kind") == "namespaces":
        return f"make it (`make deploy`, or kubectl create namespace {namespace}), or name another"
    if "could not find the requested resource" in message:
        return "the cluster does not have this kind of object: is what brings it installed, and new enough?"
    return None
