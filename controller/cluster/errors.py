"""What a request to the cluster can end with, and what is told of one that is sent again."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.failure import ExitCode, GridError


class ClusterError(GridError):
    """The cluster cannot be reached, or refuses what was asked."""

    exit_code = ExitCode.CLUSTER
    reason = "cluster"


class Unreachable(ClusterError):
    """No API server answered, however often it was asked."""


class Unauthorized(ClusterError):
    """The API server does not know who asks: credentials are missing, wrong or expired."""


class Forbidden(ClusterError):
    """The API server knows who asks, and refuses."""


class QuotaExceeded(ClusterError):
    """A ResourceQuota of the namespace has no room left."""


class ObjectAbsent(ClusterError):
    """There is no such object, or no such kind of object."""


class ObjectExists(ClusterError):
    """An object of that name is there already; `is_deleting` if it is on its way out."""

    is_deleting = False


class ObjectChanged(ClusterError):
    """The object is no longer the one that was meant: another version, or another object of its name."""


class ObjectInvalid(ClusterError):
    """The API server does not accept the object; `fields` are those it names."""

    fields: tuple[str, ...] = ()


class Expired(ClusterError):
    """The version is older than what the server still knows: list again."""


class NotStarted(ClusterError):
    """The pod's container has no log yet; `waiting_for` is why."""

    waiting_for = ""


ENDING_ERRORS = (Unreachable, Unauthorized)
"""What meets every further request too."""


@dataclass(frozen=True)
class ApiRetry:
    """A request that failed in a way that can pass, and is sent again after `delay`."""

    server: str
    operation: str  # creating, reading, listing, …
    target: str  # the resource and the object's name
    kind: str  # throttled, server-error, connection, timeout, conflict, starting
    tries: int  # so far
    delay: float  # seconds until the next one
    remaining: float  # seconds after which it is given up
    error: str
