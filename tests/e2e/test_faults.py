"""kill -9 in the middle of a hundred claims: each ends bound, or can be deleted, and nothing is left."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.e2e.own_pods import driver_pods, ready_pods
from tests.e2e.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.cluster import Cluster
    from tests.e2e.workloads import Workloads

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

CLAIMS = 100
SIZE = "16Mi"
BOUND_BEFORE = 20
"""So many of them are bound when the process is killed."""
SETTLED_SECONDS = 180.0
CALLERS = 16


def kill_containers(cluster: Cluster, component: str) -> None:
    """SIGKILL the driver's own process in every pod of a component."""
    for pod in driver_pods(cluster, component):
        status = next(s for s in pod["status"]["containerStatuses"] if s["name"] == "csi-local")
        container = status["containerID"].removeprefix("containerd://")
        node = cluster.node(pod["spec"]["nodeName"])
        node.ctr("task", "kill", "--signal", "SIGKILL", container)


def kill_agents(cluster: Cluster) -> None:
    kill_containers(cluster, "node")


def kill_controllers(cluster: Cluster) -> None:
    kill_containers(cluster, "controller")


def kill_kubelets(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.kubelet.kill(signal.SIGKILL)
        node.kubelet.start()


def kill_api_server(cluster: Cluster) -> None:
    cluster.control_plane.api.kill(signal.SIGKILL)
    cluster.control_plane.api.start()
    cluster.control_plane.wait_ready()


@pytest.mark.parametrize("kill", [kill_agents, kill_controllers, kill_kubelets, kill_api_server])
def test_a_hundred_claims_survive_a_kill(workloads: Workloads, kill: Callable[[Cluster], None]) -> None:
    cluster = workloads.cluster
    with ThreadPoolExecutor(CALLERS) as callers:
        claims = list(callers.map(lambda _: workloads.claim("immediate", SIZE), range(CLAIMS)))
        eventually("some claims are bound", SETTLED_SECONDS, lambda: count_bound(cluster, claims) >= BOUND_BEFORE)
        kill(cluster)
        list(callers.map(lambda claim: workloads.bound(claim, seconds=SETTLED_SECONDS), claims))
        volumes = {workloads.bound(claim)["metadata"]["name"] for claim in claims}
    assert len(volumes) == CLAIMS
    ready_pods(cluster)


@pytest.mark.parametrize("kill", [kill_agents, kill_controllers])
def test_a_hundred_deletions_survive_a_kill(workloads: Workloads, kill: Callable[[Cluster], None]) -> None:
    cluster = workloads.cluster
    with ThreadPoolExecutor(CALLERS) as callers:
        claims = list(callers.map(lambda _: workloads.claim("immediate", SIZE), range(CLAIMS)))
        list(callers.map(lambda claim: workloads.bound(claim, seconds=SETTLED_SECONDS), claims))
        for claim in claims:
            cluster.api.delete("PersistentVolumeClaim", claim)
        kill(cluster)
    eventually("every volume is gone", SETTLED_SECONDS, lambda: not cluster.api.list("PersistentVolume"))
    ready_pods(cluster)


def count_bound(cluster: Cluster, claims: list[str]) -> int:
    """Count how many of these claims are bound."""
    listed = cluster.api.list("PersistentVolumeClaim", "default")
    return sum(c["status"].get("phase") == "Bound" for c in listed if c["metadata"]["name"] in set(claims))
