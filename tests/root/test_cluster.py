"""A controller and two nodes as processes: what is killed in the middle of many claims loses and leaks nothing."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
import pytest

from csi_local._proto import csi_pb2 as csi
from csi_local.kube import resources
from tests.client import Code, capability, outcome, topology
from tests.cluster import InCluster, Member
from tests.fake.kubernetes import Kubernetes
from tests.observe import MIB, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

POOL = "pool=image:{root}/pool.img,size=3Gi,allocation=thin"
SIZE = 16 * MIB
CLAIMS = 60
LONG_S = 60.0
T = TypeVar("T")
GOING_ON = (Code.ABORTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED)
"""What a sidecar asks again after; CANCELLED is what gRPC says of a call whose channel was closed beneath it."""


class Cluster:
    """Two nodes and a controller, and the sidecars' habits."""

    def __init__(self, stack: ExitStack) -> None:
        self.api = stack.enter_context(Kubernetes())
        self.node = stack.enter_context(InCluster(_folder(), self.api, POOL, node="node-1"))
        self.other = stack.enter_context(Member(_folder(), self.api, "node", POOL, node="node-2"))
        until(lambda: self.node.capacity(node="node-2").available_capacity, "node-2 is known")

    @property
    def controller(self) -> Member:
        """The controller's process."""
        return self.node.head

    def claim(self, name: str) -> csi.Volume:
        """CreateVolume until it is final, as csi-provisioner does."""
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=SIZE),
            volume_capabilities=[capability()],
            parameters={"allocation": "thin"},
        )
        return _persist(lambda: self.controller.controller.CreateVolume(request, timeout=10)).volume

    def release(self, volume: csi.Volume) -> None:
        """DeleteVolume, likewise."""
        request = csi.DeleteVolumeRequest(volume_id=volume.volume_id)
        _persist(lambda: self.controller.controller.DeleteVolume(request, timeout=10))

    def on_disk(self) -> list[str]:
        """Names of the volumes that the pools hold."""
        roots = [*self.node.pool_roots(), *self.other.pool_roots()]
        return sorted(path.name for root in roots for path in root.glob("volumes/*"))


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="csi-", dir="/tmp"))


def _persist(call: Callable[[], T]) -> T:
    deadline = time.monotonic() + LONG_S
    while True:
        try:
            return call()
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel is being replaced
            code = error.code() if isinstance(error, grpc.Call) else Code.UNAVAILABLE
            if code not in GOING_ON or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


def nothing(_cluster: Cluster) -> None:
    pass


def kill_controller(cluster: Cluster) -> None:
    cluster.controller.kill()
    cluster.controller.start()


def kill_node(cluster: Cluster) -> None:
    cluster.other.kill()
    cluster.other.start()


def kill_api(cluster: Cluster) -> None:
    with cluster.api.outage():
        time.sleep(0.5)


@pytest.mark.parametrize("mischief", [nothing, kill_controller, kill_node, kill_api])
def test_many_claims_at_once(cluster: Cluster, mischief: Callable[[Cluster], None]) -> None:
    with ThreadPoolExecutor(CLAIMS) as pool:
        made = [pool.submit(cluster.claim, f"pvc-{number}") for number in range(CLAIMS)]
        until(lambda: len(cluster.api.all(resources.VOLUMES)) > CLAIMS // 6, "some are under way")
        mischief(cluster)
        volumes = [call.result() for call in made]
        assert cluster.on_disk() == sorted(volume.volume_id for volume in volumes)
        assert {volume.accessible_topology[0].segments["topology.csi-local.io/node"] for volume in volumes} == {
            "node-1",
            "node-2",
        }
        released = [pool.submit(cluster.release, volume) for volume in volumes]
        until(lambda: len(cluster.api.all(resources.VOLUMES)) < CLAIMS * 5 // 6, "some are gone")
        mischief(cluster)
        for call in released:
            call.result()
    assert cluster.api.all(resources.VOLUMES) == []
    for driver in (cluster.node, cluster.other):
        assert driver.leftovers() == []


def test_where_a_volume_may_be(cluster: Cluster) -> None:
    for node in ("node-1", "node-2"):
        volume = cluster.node.create(f"on-{node}", SIZE, nodes=[node])
        shown = cluster.controller.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume.id))
        assert list(shown.volume.accessible_topology) == topology(node)
        cluster.node.delete(volume)
    assert outcome(lambda: cluster.node.create("nowhere", SIZE, nodes=["node-3"])) == Code.RESOURCE_EXHAUSTED


def test_life(cluster: Cluster) -> None:
    volume = cluster.node.create("life", SIZE, nodes=["node-1"])
    cluster.node.attach(volume)
    assert outcome(lambda: cluster.node.delete(volume)) == Code.FAILED_PRECONDITION
    assert cluster.node.expand_controller(volume, 2 * SIZE).capacity_bytes == 2 * SIZE
    assert [one.capacity_bytes for one in cluster.node.volumes()] == [2 * SIZE]
    cluster.node.detach(volume)
    cluster.node.delete(volume)
    assert cluster.node.volumes() == []
