"""What administrators do: adopt a directory, change a limit, remove a node for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e import install, leaks
from tests.e2e.own_pods import driver_pods
from tests.e2e.processes import eventually, run
from tests.e2e.workloads import Workloads, pod_spec, resource_of, with_claim

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.cluster import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

FOUND_SECONDS = 90.0
"""An agent looks once a minute what is on its disks."""
GONE_SECONDS = 180.0
SHARED = "photos"


def kubectl(cluster: Cluster, *words: str | Path, text: str | None = None) -> str:
    """Call kubectl as an administrator."""
    return run(cluster.programs / "kubectl", "--kubeconfig", cluster.kubeconfig, *words, input_text=text)


def agent_of(cluster: Cluster, node: str) -> str:
    """Return the name of a node's pod."""
    return next(str(p["metadata"]["name"]) for p in driver_pods(cluster, "node") if p["spec"]["nodeName"] == node)


def no_longer_wanted(cluster: Cluster, volume: str) -> None:
    """Have a volume removed that no PersistentVolume stands for."""
    found = eventually(
        f"volume {volume} has a LocalVolume", FOUND_SECONDS, lambda: resource_of(cluster, "LocalVolume", volume)
    )
    name = found["metadata"]["name"]
    cluster.api.patch("LocalVolume", name, {"spec": {"state": "Absent"}})
    cluster.api.gone("LocalVolume", name)


def test_an_adopted_directory_is_a_volume_and_outlives_it(workloads: Workloads) -> None:
    cluster = workloads.cluster
    photos = cluster.node("node-b").path(f"/mnt/ssd/{SHARED}")
    photos.mkdir()
    (photos / "first").write_text("taken\n")
    command = ("csi-local", "adopt", f"/mnt/ssd/{SHARED}", "--node-id", "node-b", "--claim", SHARED, "--size", "1Gi")
    where = ("--namespace", install.NAMESPACE, agent_of(cluster, "node-b"), "--container", "csi-local")
    printed = kubectl(cluster, "exec", *where, "--", *command)
    volume = next(one for one in yaml.safe_load_all(printed) if one["kind"] == "PersistentVolume")
    kubectl(cluster, "apply", "--filename", "-", text=printed)
    try:
        pod = workloads.pod(with_claim(pod_spec("test $(cat /data/first) = taken; echo too > /data/second"), SHARED))
        workloads.running(pod)
        assert workloads.node_of(pod) == "node-b"
        workloads.end(pod)
    finally:
        kubectl(cluster, "delete", "--filename", "-", text=printed)
    no_longer_wanted(cluster, volume["spec"]["csi"]["volumeHandle"])
    assert (photos / "second").read_text() == "too\n"
    for file in ("first", "second"):
        (photos / file).unlink()
    photos.rmdir()


def test_a_node_takes_no_more_volumes_than_its_limit(workloads: Workloads) -> None:
    cluster = workloads.cluster
    first, second = install.VALUES["nodeGroups"]
    install.install(cluster, nodeGroups=[first, {**second, "maxVolumes": 2}])
    try:
        eventually("the kubelet knows the limit", FOUND_SECONDS, lambda: limit_of(cluster, "node-b") == 2)
        claims = [workloads.claim("only-node-b", "16Mi") for _ in range(3)]
        pods = [workloads.pod(with_claim(pod_spec(), claim)) for claim in claims]
        (waits,) = eventually("one waits", FOUND_SECONDS, lambda: [pod for pod in pods if refused(cluster, pod)])
        others = [pod for pod in pods if pod != waits]
        workloads.running(*others)
        workloads.end(others[0])
        workloads.running(waits, seconds=FOUND_SECONDS)
    finally:
        install.install(cluster)
        eventually("the limit is as before", FOUND_SECONDS, lambda: limit_of(cluster, "node-b") > 2)


def refused(cluster: Cluster, pod: str) -> bool:
    """Whether the scheduler says that no node takes one volume more."""
    return "max volume count" in str((cluster.api.get("Pod", pod) or {}).get("status"))


def limit_of(cluster: Cluster, node: str) -> int:
    """Return how many of our volumes a node takes; 0 where it says nothing."""
    found = cluster.api.get("CSINode", node)
    drivers = (found or {}).get("spec", {}).get("drivers") or []
    return next((d.get("allocatable", {}).get("count", 0) for d in drivers if d["name"] == install.DRIVER), 0)


def test_a_claim_of_a_node_that_is_removed_for_good_can_go(workloads: Workloads) -> None:
    """And a disk that comes back after all shows what is on it, and loses nothing by itself."""
    cluster = workloads.cluster
    claim = workloads.claim("only-node-b")
    found = workloads.bound(claim)
    name, volume = found["metadata"]["name"], found["spec"]["csi"]["volumeHandle"]
    node = cluster.node("node-b")
    node.stop()
    cluster.api.delete("Node", node.name)
    workloads.drop(claim)
    cluster.api.gone("PersistentVolume", name, seconds=GONE_SECONDS)
    node.start()
    cluster.wait_ready(node)
    assert any(leaks.files(node)), "its data is on the disk"
    no_longer_wanted(cluster, volume)
    leaks.demand_none(cluster)
