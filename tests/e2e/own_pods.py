"""The driver's own pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.install import NAMESPACE
from tests.e2e.processes import eventually

if TYPE_CHECKING:
    from tests.e2e.api import Object
    from tests.e2e.cluster import Cluster

COMPONENT = "app.kubernetes.io/component"
READY_SECONDS = 180.0
"""A pod that has just been started reads its disks, fills its caches and waits for the kubelet's call."""


def driver_pods(cluster: Cluster, component: str = "") -> list[Object]:
    """Return the driver's pods; a component is controller or node."""
    labels = "app.kubernetes.io/name=csi-local" + (f",{COMPONENT}={component}" if component else "")
    return cluster.api.list("Pod", NAMESPACE, labels)


def ready_pods(cluster: Cluster) -> list[Object]:
    """Return the driver's pods as soon as every node has its own and the kubelets find all of them ready."""

    def look() -> list[Object] | None:
        pods = driver_pods(cluster)
        have = {pod["spec"].get("nodeName") for pod in pods if pod["metadata"]["labels"][COMPONENT] == "node"}
        everywhere = have == {node.name for node in cluster.nodes} and len(have) < len(pods)
        return pods if everywhere and all(_is_ready(pod) for pod in pods) else None

    return eventually("every node has its pod, and all pods are ready", READY_SECONDS, look)


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", ())
    ended = "deletionTimestamp" in pod["metadata"]
    return not ended and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
