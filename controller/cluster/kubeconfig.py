"""Where the cluster is and who asks it: the `kubernetes` package's loaders and client, and their errors as ours."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from controller.cluster.answers import error_text
from controller.cluster.errors import ClusterError, Unauthorized
from controller.cluster.resources import Object

if TYPE_CHECKING:
    from urllib3 import PoolManager

KUBECONFIG_HINT = (
    "set KUBECONFIG to the file that kubectl uses, or bring up a cluster on this machine with `make kind-up`"
)
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPALIVE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""Seconds, so that a link that was cut is noticed in half a minute. macOS calls the first by the second's name."""


class Found(NamedTuple):
    """A cluster that a kubeconfig names, or the one of the pod this runs in."""

    name: str  # for people
    namespace: str | None  # the context's, or the pod's
    files: str | None  # none: the pod's service account counts
    context: str | None

    def client(self, connections: int) -> Any:
        """The package's client, with credentials. Raises ClusterError."""
        return _client(self.name, self.files, self.context, connections)


def find(kubeconfig: str | None, context: str | None) -> Found:
    """The cluster that kubectl would use. Raises ClusterError where there is none."""
    given = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [str(Path(each).expanduser()) for each in given.split(os.pathsep) if each]
    found = [each for each in files if Path(each).exists()]
    in_pod = not found and not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ

    if not found and not in_pod:
        raise ClusterError(
            f"cluster: got no kubeconfig at {', '.join(files)} and no service account of a pod, expected one of them",
            hint=KUBECONFIG_HINT,
        )
    if in_pod:
        own = POD_NAMESPACE.read_text().strip() if POD_NAMESPACE.exists() else None
        return Found("cluster of this pod", own, None, context)
    path = os.pathsep.join(found)
    chosen = _context(path, context)
    own = (chosen.get("context") or {}).get("namespace")
    return Found(f"context {chosen['name']} of {path}", own, path, context)


class Link:
    """The package's client, and the way of a request through it."""

    def __init__(self, client: Any) -> None:
        manager: PoolManager = client.rest_client.pool_manager
        self.configuration = client.configuration
        self.host = str(self.configuration.host)
        # Straight to the server's own connections, unless there is a proxy, which may want the whole URL.
        self.sender: Any = manager if manager.proxy else manager.connection_from_url(self.host)
        self.prefix = self.host if manager.proxy else urlsplit(self.host).path
        self._client = client

    def close(self) -> None:
        """Close the connections that are not in use; the others once they are done."""
        if self.sender is not self._client.rest_client.pool_manager:  # which would leave them to the garbage collector
            self.sender.close()
        self._client.close()


def _client(name: str, kubeconfig: str | None, context: str | None, connections: int) -> Any:
    """The package's client, with credentials; of the pod's service account where there is no kubeconfig."""
    import urllib3
    from kubernetes import config
    from kubernetes.client import ApiClient

    loaders: Any = config  # the package's loaders are not typed
    configuration = _configuration(connections)
    with loader_errors(name) as told:
        if kubeconfig is None:
            loaders.load_incluster_config(client_configuration=configuration)
        else:
            loaders.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
    if told and not configuration.api_key and not configuration.cert_file:
        # The package only logs that an exec plugin failed, and would go on as nobody.
        raise Unauthorized(
            f"{name}: got {'; '.join(told)}, expected credentials",
            hint="the command that the kubeconfig names for this user failed: run it by hand, or log in again",
        )
    if not configuration.verify_ssl:  # the kubeconfig says so, and kubectl says nothing either
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return ApiClient(configuration)


def _context(files: str, name: str | None) -> Object:
    """The context that is meant: its name, cluster, user and namespace."""
    from kubernetes import config

    loaders: Any = config
    with loader_errors(files):
        contexts, current = loaders.list_kube_config_contexts(config_file=files)
    if name is None:
        return dict(current)
    for each in contexts:
        if each["name"] == name:
            return dict(each)
    raise ClusterError(
        f"{files}: context: got {name!r}, expected one of {', '.join(each['name'] for each in contexts)}",
        hint="`kubectl config get-contexts` lists them",
    )


def _configuration(connections: int) -> Any:
    from kubernetes.client import Configuration
    from urllib3.connection import HTTPConnection

    made: Any = Configuration()
    made.connection_pool_maxsize = connections + 8  # watches and logs that are followed hold some for long
    made.socket_options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    made.socket_options += [
        (socket.IPPROTO_TCP, getattr(socket, option), value) for option, value in KEEPALIVE if hasattr(socket, option)
    ]
    return made


@contextmanager
def loader_errors(place: str) -> Iterator[list[str]]:
    """Turns what the package raises of a kubeconfig into ClusterErrors; gives what it only logs."""
    import yaml
    from kubernetes.config import ConfigException

    told: list[str] = []
    handler = _Collecting(told)
    logging.getLogger().addHandler(handler)
    try:
        yield told
    except (ConfigException, yaml.YAMLError, KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        raise ClusterError(
            f"{place}: got {error_text(error)}, expected a kubeconfig, or a service account, that can be used",
            hint="`kubectl config view` shows what is read",
        ) from error
    finally:
        logging.getLogger().removeHandler(handler)


class _Collecting(logging.Handler):
    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(record.getMessage())
