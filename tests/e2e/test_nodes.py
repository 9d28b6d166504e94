"""Where claims go and what becomes of them when nodes are full, cordoned, down or removed."""

from __future__ import annotations

import pytest

from tests.e2e import leaks
from tests.e2e.disks import GIB
from tests.e2e.install import DRIVER, NAMESPACE, TOPOLOGY_KEY
from tests.e2e.processes import eventually
from tests.e2e.workloads import Workloads, pod_spec, with_claim

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

ROOM_SECONDS = 60.0
CLASSES = ("ssd", "hdd", "directory", "thin-xfs", "immediate")


def room(workloads: Workloads, storage_class: str, node: str) -> int:
    """Return the room in bytes that a node offers for a class."""
    for item in workloads.cluster.api.list("CSIStorageCapacity", NAMESPACE):
        labels = item.get("nodeTopology", {}).get("matchLabels", {})
        if item["storageClassName"] == storage_class and labels.get(TOPOLOGY_KEY) == node:
            return to_bytes(item.get("capacity", "0"))
    return -1


def to_bytes(quantity: str) -> int:
    """Return what a quantity of Kubernetes stands for."""
    for factor, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1):
        if quantity.endswith(unit):
            return int(quantity.removesuffix(unit)) << 10 * factor
    return int(quantity)


def test_every_node_offers_its_room_for_every_class(workloads: Workloads) -> None:
    offers = [(storage_class, node) for storage_class in CLASSES for node in ("node-a", "node-b")]
    eventually("all nodes offer room", ROOM_SECONDS, lambda: all(room(workloads, *offer) > GIB for offer in offers))


def test_a_pod_goes_to_the_node_that_has_room_for_its_claim(workloads: Workloads) -> None:
    filling = workloads.claim("ssd", "5Gi")
    workloads.running(workloads.pod(with_claim(pod_spec(node="node-a"), filling)))
    eventually("node-a offers less room", ROOM_SECONDS, lambda: 0 <= room(workloads, "ssd", "node-a") < 2 * GIB)
    pods = [workloads.pod(with_claim(pod_spec(), workloads.claim("ssd", "2Gi"))) for _ in range(2)]
    workloads.running(*pods)
    assert {workloads.node_of(pod) for pod in pods} == {"node-b"}


def test_a_claim_without_room_anywhere_waits_and_is_bound_when_there_is(workloads: Workloads) -> None:
    first = [workloads.claim("ssd", "4Gi") for _ in range(2)]
    pods = [workloads.pod(with_claim(pod_spec(), claim)) for claim in first]
    workloads.running(*pods)
    late = workloads.pod(with_claim(pod_spec(), workloads.claim("ssd", "4Gi")))
    workloads.cluster.api.wait(
        "Pod", late, lambda found: "Unschedulable" in str((found or {}).get("status")), what="nothing fits"
    )
    workloads.end(*pods)
    workloads.drop(*first)
    workloads.running(late, seconds=120.0)


def test_a_node_says_how_many_volumes_it_takes(workloads: Workloads) -> None:
    for node in workloads.cluster.nodes:
        found = workloads.cluster.api.get("CSINode", node.name)
        drivers = found["spec"]["drivers"] if found else []
        ours = [driver for driver in drivers if driver["name"] == DRIVER]
        assert [driver["topologyKeys"] for driver in ours] == [[TOPOLOGY_KEY]]
        assert ours[0]["nodeID"] == node.name
        assert ours[0]["allocatable"]["count"] > 0


def test_no_claim_goes_to_a_cordoned_node(workloads: Workloads) -> None:
    api = workloads.cluster.api
    api.patch("Node", "node-a", {"spec": {"unschedulable": True}})
    try:
        pods = [workloads.pod(with_claim(pod_spec(), workloads.claim("ssd"))) for _ in range(3)]
        workloads.running(*pods)
        assert {workloads.node_of(pod) for pod in pods} == {"node-b"}
    finally:
        api.patch("Node", "node-a", {"spec": {"unschedulable": None}})


def test_a_claim_deleted_while_its_node_is_down_is_gone_when_the_node_is_back(workloads: Workloads) -> None:
    api = workloads.cluster.api
    claim = workloads.claim("only-node-b")
    volume = workloads.bound(claim)["metadata"]["name"]
    node = workloads.cluster.node("node-b")
    node.stop()
    workloads.drop(claim)
    api.wait("PersistentVolume", volume, lambda found: bool(found and found["status"]["phase"] == "Released"))
    node.start()
    workloads.cluster.wait_ready(node)
    api.gone("PersistentVolume", volume, seconds=180.0)
    leaks.demand_none(workloads.cluster)
