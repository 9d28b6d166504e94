"""The controller's engine, over an API server and nodes that have bad days."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from csi_local.cluster import ClusterView
from csi_local.config import Role, load
from csi_local.kube import resources
from csi_local.kube.api import Api
from csi_local.kube.cache import Cache
from csi_local.kube.desired import Desired, gone_or_refused
from csi_local.kube.nodes import Nodes, in_cluster
from csi_local.kube.remote import Remote, node_that_has
from csi_local.kube.volume_resource import adopted_volume, capacity_range, new_volume
from csi_local.kube.waiting import SELECTED_NODE, awaited
from csi_local.model.accessibility import ANYWHERE, Accessibility
from csi_local.model.errors import (
    AlreadyExists,
    Busy,
    DriverError,
    FailedPrecondition,
    HostError,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)
from csi_local.model.parameters import PVC_NAME, PVC_NAMESPACE, parse_parameters
from csi_local.model.quantity import GIB, MIB
from csi_local.model.volume import AccessMode, Capability, CapacityRange, MountAccess, VolumeId
from csi_local.plan.request import VolumeRequest, new_record
from tests.fake.kubernetes import Kubernetes
from tests.fake.node import NAMESPACE, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE_S = 10.0
SHORT_S = 0.3
LATER_S = 60.0


class Cluster:
    """An API server, nodes, and controllers."""

    def __init__(self, stack: ExitStack) -> None:
        self.server = stack.enter_context(Kubernetes())
        self._stack = stack
        self.ahead = 0.0

    def node(self, name: str, room: int = 10 * GIB, *, shown: int | None = None) -> Node:
        """Add a node."""
        node = Node(self.server, name, room, shown=shown).start()
        self._stack.callback(node.stop)
        return node

    def controller(self, api: Api | None = None) -> Remote:
        """Add a controller, with its caches filled."""
        api = api or Api(self.server.credentials)
        volumes, pools = Cache(api, resources.VOLUMES), Cache(api, resources.POOLS)
        leases = Cache(api, resources.leases(NAMESPACE))
        nodes = Nodes(leases, pools, partial(in_cluster, api), monotonic=lambda: time.monotonic() + self.ahead)
        self._stack.callback(api.close)
        for cache in (volumes, pools, leases):
            cache.start()
            self._stack.callback(cache.stop)
            assert cache.wait_synced(5)
        desired = Desired(api, resources.VOLUMES, volumes, nodes, noun="volume")
        return Remote(desired, awaited=partial(awaited, api))

    def lose(self, node: Node) -> None:
        """Have a node say nothing any more, and its Node deleted; nobody has collected what it left in the API."""
        node.awake.clear()
        self.server.delete(resources.NODES, node.name)
        self.ahead = LATER_S

    def usable(self, controller: Remote, node: str) -> None:
        """Demand that a controller comes to know a node, and the room that it has."""
        self.soon(lambda: controller.nodes.alive(node) and any(one.total for one in controller.nodes.views(node)))

    def volumes(self) -> list[dict[str, Any]]:
        """The LocalVolumes there are."""
        return self.server.all(resources.VOLUMES)

    def soon(self, condition: Callable[[], object]) -> None:
        """Demand that something becomes true."""
        until = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.005)


class NoNodes(Api):
    """What an account gets that may not ask for Nodes."""

    def get(self, collection: str, name: str) -> dict[str, Any]:
        """Refuse these."""
        if collection == resources.NODES:
            raise Unavailable("the Kubernetes API answers 403: nodes is forbidden")
        return super().get(collection, name)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


def request(name: str = "pvc-1", size: int = GIB, **parameters: str) -> VolumeRequest:
    return VolumeRequest(
        name=name,
        capacity=CapacityRange(required=size),
        capabilities=(Capability(access=MountAccess(fs_type="ext4"), mode=AccessMode.SINGLE_NODE_WRITER),),
        parameters=parse_parameters(parameters),
    )


def on(*nodes: str) -> Accessibility:
    return Accessibility(nodes=nodes)


class TestCreate:
    def test_one_write_of_each(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        cluster.server.requests.clear()
        view = controller.create(request(), PATIENCE_S)
        assert (view.id, view.node, view.pool) == ("pvc-1", "a", "fast")
        assert view.record is not None
        assert view.record.size == GIB
        assert [method for method, path in cluster.server.requests if "watch=1" not in path] == ["POST", "PATCH"]
        assert list(node.volumes) == ["pvc-1"]

    def test_again(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        first = controller.create(request(), PATIENCE_S)
        assert controller.create(request(), PATIENCE_S) == first
        assert cluster.controller().create(request(), PATIENCE_S) == first
        for other in (request(size=2 * GIB), request(allocation="thin"), request(media="ssd")):
            with pytest.raises(AlreadyExists):
                controller.create(other, PATIENCE_S)
        with pytest.raises(ResourceExhausted, match="on node a already"):
            controller.create(request(), PATIENCE_S, on("b"))

    def test_names_that_are_no_resource_names(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        ids = [controller.create(request(name), PATIENCE_S).id for name in ("A_b", "a b", "ä" * 40, "a_b")]
        assert len(set(ids)) == 4
        assert [view.id for view in controller.list("", 0)[0]] == sorted(ids)
        for volume in ids:
            assert controller.get(volume).id == volume
            controller.delete(volume, PATIENCE_S)
        assert cluster.volumes() == []

    def test_impossible(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        with pytest.raises(InvalidArgument):
            controller.create(request(name=""), PATIENCE_S)
        with pytest.raises(InvalidArgument):
            controller.create(request(backend="directory", mkfsOptions="-m 0"), PATIENCE_S)
        small = VolumeRequest(name="v", capacity=CapacityRange(required=1, limit=2))
        with pytest.raises(OutOfRange):
            controller.create(small, PATIENCE_S)
        assert cluster.volumes() == []

    def test_nodes_in_the_order_wished(self, cluster: Cluster) -> None:
        for name in ("a", "b", "c"):
            cluster.node(name)
        controller = cluster.controller()
        assert controller.create(request("v1"), PATIENCE_S, on("b", "a", "c")).node == "b"
        assert controller.create(request("v2"), PATIENCE_S, on("c")).node == "c"
        with pytest.raises(ResourceExhausted, match="node x: it has no pools"):
            controller.create(request("v3"), PATIENCE_S, on("x"))

    def test_most_or_least_room(self, cluster: Cluster) -> None:
        cluster.node("large", 20 * GIB)
        cluster.node("small", 5 * GIB)
        controller = cluster.controller()
        assert controller.create(request("v1"), PATIENCE_S).node == "large"
        assert controller.create(request("v2", placement="pack"), PATIENCE_S).node == "small"

    def test_a_node_without_room_is_passed_over(self, cluster: Cluster) -> None:
        full = cluster.node("full", GIB, shown=5 * GIB)
        cluster.node("free")
        controller = cluster.controller()
        assert controller.create(request(size=2 * GIB), PATIENCE_S, on("full", "free")).node == "free"
        assert not full.volumes
        assert cluster.volumes()[0]["metadata"]["labels"] == {resources.NODE_LABEL: "free"}

    @pytest.mark.parametrize("shown", [GIB, 5 * GIB], ids=["known", "found out"])
    def test_where_a_pod_waits_or_nowhere(self, cluster: Cluster, shown: int) -> None:
        """A volume on another node than a pod that may need that one would keep the pod from both."""
        cluster.node("full", GIB, shown=shown)
        cluster.node("free")
        controller, labelled = (
            cluster.controller(),
            request(size=2 * GIB, **{PVC_NAME: "data", PVC_NAMESPACE: "default"}),
        )
        claim = {"metadata": {"namespace": "default", "name": "data", "annotations": {SELECTED_NODE: "full"}}}
        cluster.server.create(resources.claims("default"), claim)
        with pytest.raises(ResourceExhausted, match="node full: "):
            controller.create(labelled, PATIENCE_S, on("full", "free"))
        cluster.soon(lambda: not cluster.volumes())
        assert controller.create(labelled, PATIENCE_S, on("free", "full")).node == "free"

    def test_a_claim_that_no_pod_waits_for_takes_the_next_node(self, cluster: Cluster) -> None:
        cluster.node("full", GIB)
        cluster.node("free")
        controller, labelled = (
            cluster.controller(),
            request(size=2 * GIB, **{PVC_NAME: "data", PVC_NAMESPACE: "default"}),
        )
        assert controller.create(labelled, PATIENCE_S, on("full", "free")).node == "free"
        claim = {"metadata": {"namespace": "default", "name": "data"}}
        cluster.server.create(resources.claims("default"), claim)
        controller.delete("pvc-1", PATIENCE_S)
        assert controller.create(labelled, PATIENCE_S, on("full", "free")).node == "free"

    def test_what_has_just_been_removed_is_room_before_its_pool_says_so(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a", GIB), cluster.controller()
        controller.create(request(), PATIENCE_S)
        node.show_room()
        cluster.soon(lambda: not controller.nodes._promises)
        with pytest.raises(ResourceExhausted, match="does not fit"):
            controller.create(request("pvc-2"), PATIENCE_S)
        controller.delete("pvc-1", PATIENCE_S)
        assert controller.create(request("pvc-2"), PATIENCE_S).node == "a"

    def test_what_was_removed_long_ago_is_shown_or_nobodys(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a", GIB), cluster.controller()
        controller.create(request(), PATIENCE_S)
        node.show_room()
        cluster.soon(lambda: not controller.nodes._promises)
        controller.delete("pvc-1", PATIENCE_S)
        cluster.ahead = 20.0
        with pytest.raises(ResourceExhausted, match="does not fit"):
            controller.create(request("pvc-2"), PATIENCE_S)

    def test_what_was_never_made_gives_no_hope(self, cluster: Cluster) -> None:
        """Else a full cluster would be asked anew for ever."""
        cluster.node("a", GIB, shown=5 * GIB)
        controller = cluster.controller()
        with pytest.raises(ResourceExhausted, match="no room"):
            controller.create(request(size=2 * GIB), PATIENCE_S)
        cluster.soon(lambda: not cluster.volumes())
        assert not controller.nodes._gave_back

    def test_no_room_anywhere_leaves_nothing(self, cluster: Cluster) -> None:
        cluster.node("a", GIB, shown=5 * GIB)
        cluster.node("b", GIB, shown=5 * GIB)
        controller = cluster.controller()
        for _ in range(2):
            with pytest.raises(ResourceExhausted, match=r"node a: no room.*node b: no room"):
                controller.create(request(size=2 * GIB), PATIENCE_S, on("a", "b"))
        cluster.soon(lambda: not cluster.volumes())
        with pytest.raises(ResourceExhausted, match="does not fit"):
            controller.create(request(size=20 * GIB), PATIENCE_S)

    def test_what_fails_for_good_leaves_nothing(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        node.fails = HostError("mkfs is missing")
        with pytest.raises(HostError, match="mkfs is missing"):
            controller.create(request(), PATIENCE_S)
        node.fails = None
        cluster.soon(lambda: not cluster.volumes())
        assert controller.create(request(), PATIENCE_S).node == "a"

    def test_what_cannot_be_taken_away_again_is_no_hindrance(self, cluster: Cluster) -> None:
        """A node with a disk missing cannot say that it has nothing; nobody was told of anything."""
        node, controller = cluster.node("a"), cluster.controller()
        node.fails = HostError("mkfs is missing")
        node.in_use.add("pvc-1")
        with pytest.raises(HostError, match="mkfs is missing"):
            controller.create(request(), PATIENCE_S)
        cluster.soon(lambda: any(map(gone_or_refused, filter(resources.wanted_absent, controller.volumes.items()))))
        node.fails = None
        with pytest.raises(AlreadyExists):
            controller.create(request(size=2 * GIB), PATIENCE_S)
        assert controller.create(request(), PATIENCE_S).node == "a"

    def test_what_a_lost_node_was_to_have_is_not_made_elsewhere_for_another_request(self, cluster: Cluster) -> None:
        lost, controller = cluster.node("lost"), cluster.controller()
        lost.awake.clear()
        with pytest.raises(Busy):
            controller.create(request(), SHORT_S)
        cluster.ahead = LATER_S
        with pytest.raises(ResourceExhausted):
            controller.create(request(), SHORT_S)
        cluster.node("other")
        cluster.usable(controller, "other")
        with pytest.raises(AlreadyExists):
            controller.create(request(size=2 * GIB), PATIENCE_S)
        assert cluster.volumes()[0]["spec"]["nodeName"] == "lost"
        assert controller.create(request(), PATIENCE_S).node == "other"

    @pytest.mark.parametrize("error", [AlreadyExists("another size"), FailedPrecondition("its record is torn")])
    def test_what_is_on_the_disk_already_is_not_removed(self, cluster: Cluster, error: DriverError) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        node.fails = error
        for _ in range(2):
            with pytest.raises(type(error)):
                controller.create(request(), PATIENCE_S)
            cluster.soon(lambda: not cluster.volumes())  # the disk tells of what it has
        assert node.removed == []

    def test_what_fails_for_now_is_asked_again(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        node.fails = Busy("it is under way")
        with pytest.raises(Busy, match="it is under way"):
            controller.create(request(), PATIENCE_S)
        assert len(cluster.volumes()) == 1
        node.fails = None
        assert controller.create(request(), PATIENCE_S).node == "a"
        assert cluster.volumes()[0]["spec"]["attempt"] == 1

    def test_a_node_whose_disk_fails_is_passed_over(self, cluster: Cluster) -> None:
        """It may fail for ever, and to be told that this goes on keeps the scheduler from looking elsewhere."""
        ill, controller = cluster.node("ill"), cluster.controller()
        ill.fails = Unavailable("the disk is away")
        with pytest.raises(ResourceExhausted, match="node ill: the disk is away"):
            controller.create(request(), PATIENCE_S)
        cluster.soon(lambda: not cluster.volumes())
        cluster.node("well")
        cluster.usable(controller, "well")
        assert controller.create(request(), PATIENCE_S, on("ill", "well")).node == "well"
        ill.fails = None
        assert controller.create(request("pvc-2"), PATIENCE_S, on("ill")).node == "ill"

    def test_silence_is_in_progress(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        node.awake.clear()
        with pytest.raises(Busy, match="still at work"):
            controller.create(request(), SHORT_S)
        node.awake.set()
        assert controller.create(request(), PATIENCE_S).node == "a"
        assert cluster.volumes()[0]["metadata"]["generation"] == 1

    def test_a_node_that_is_gone(self, cluster: Cluster) -> None:
        gone, other = cluster.node("gone"), cluster.node("other")
        controller = cluster.controller()
        gone.awake.clear()
        with pytest.raises(Busy):
            controller.create(request(), SHORT_S, on("gone", "other"))
        cluster.ahead = LATER_S
        other.renew()
        cluster.usable(controller, "other")
        assert not controller.nodes.alive("gone")
        assert controller.create(request(), PATIENCE_S, on("gone", "other")).node == "other"
        gone.awake.set()
        assert other.volumes

    def test_a_node_that_is_gone_and_no_other(self, cluster: Cluster) -> None:
        gone, controller = cluster.node("gone"), cluster.controller()
        gone.awake.clear()
        with pytest.raises(Busy):
            controller.create(request(), SHORT_S)
        cluster.ahead = LATER_S
        with pytest.raises(ResourceExhausted, match="lease is old"):
            controller.create(request(), SHORT_S)
        gone.renew()
        gone.awake.set()
        cluster.soon(lambda: not cluster.volumes())
        cluster.soon(lambda: controller.nodes.alive("gone"))
        assert controller.create(request(), PATIENCE_S).node == "gone"

    def test_a_node_that_has_left_the_cluster(self, cluster: Cluster) -> None:
        gone, controller = cluster.node("gone"), cluster.controller()
        gone.awake.clear()
        with pytest.raises(Busy):
            controller.create(request(), SHORT_S)
        cluster.lose(gone)
        with pytest.raises(ResourceExhausted):
            controller.create(request(), SHORT_S, on("gone"))
        controller.volumes.forget_orphans()
        assert cluster.volumes() == []

    def test_a_node_that_is_gone_whether_it_has_left_or_not(self, cluster: Cluster) -> None:
        """What it has not made may be made elsewhere: that takes no question to the API, which may refuse it."""
        gone, controller = cluster.node("gone"), cluster.controller(NoNodes(cluster.server.credentials))
        gone.awake.clear()
        with pytest.raises(Busy):
            controller.create(request(), SHORT_S)
        cluster.lose(gone)
        cluster.node("other")
        cluster.usable(controller, "other")
        assert controller.create(request(), PATIENCE_S).node == "other"

    def test_a_volume_that_left_the_cluster_before_its_claim_had_it(self, cluster: Cluster) -> None:
        gone, other = cluster.node("gone"), cluster.node("other")
        controller = cluster.controller()
        assert controller.create(request(), PATIENCE_S, on("gone")).node == "gone"
        cluster.lose(gone)
        other.renew()
        cluster.usable(controller, "other")
        assert controller.create(request(), PATIENCE_S, on("gone", "other")).node == "other"

    def test_a_name_that_was_deleted_on_a_node_that_has_left(self, cluster: Cluster) -> None:
        gone, other = cluster.node("gone"), cluster.node("other")
        controller = cluster.controller()
        controller.create(request(), PATIENCE_S, on("gone"))
        gone.awake.clear()
        with pytest.raises(Busy):
            controller.delete("pvc-1", SHORT_S)
        cluster.lose(gone)
        other.renew()
        cluster.usable(controller, "other")
        assert controller.create(request(size=2 * GIB), PATIENCE_S, on("other")).node == "other"

    def test_a_lease_that_was_old_before(self, cluster: Cluster) -> None:
        node = cluster.node("a")
        node.renew(time.time() - LATER_S)
        controller = cluster.controller()
        with pytest.raises(ResourceExhausted, match="lease is old"):
            controller.create(request(), SHORT_S)
        node.renew(time.time() - LATER_S + 1)  # its clock is slow, and it is there
        cluster.soon(lambda: controller.nodes.alive("a"))

    def test_a_lease_of_a_clock_that_is_fast(self, cluster: Cluster) -> None:
        """Else a node that is gone would be asked until that time has come."""
        node = cluster.node("a")
        node.awake.clear()
        node.renew(time.time() + 3600)
        controller = cluster.controller()
        assert controller.nodes.alive("a")
        cluster.ahead = LATER_S
        with pytest.raises(ResourceExhausted, match="lease is old"):
            controller.create(request(), SHORT_S)

    def test_two_controllers(self, cluster: Cluster) -> None:
        cluster.node("a")
        cluster.node("b")
        controllers = [cluster.controller(), cluster.controller()]
        with ThreadPoolExecutor(20) as pool:
            names = [f"v{number}" for number in range(20)]
            views = list(
                pool.map(lambda work: work[0].create(request(work[1], MIB * 16), PATIENCE_S),
                         [(one, name) for name in names for one in controllers])
            )  # fmt: skip
        assert len({(view.id, view.node) for view in views}) == 20
        assert len(cluster.volumes()) == 20

    def test_many_at_once_are_spread(self, cluster: Cluster) -> None:
        nodes = [cluster.node(name, 60 * GIB) for name in ("a", "b")]
        controller = cluster.controller()
        with ThreadPoolExecutor(100) as pool:
            views = list(pool.map(lambda number: controller.create(request(f"v{number}"), 30), range(100)))
        assert all(count >= 45 for count in Counter(view.node for view in views).values())
        assert sum(len(node.volumes) for node in nodes) == 100

    def test_lost_answers(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        cluster.server.lose_answer("POST")
        assert controller.create(request(), PATIENCE_S).node == "a"
        cluster.server.lose_answer("PATCH")
        controller.delete("pvc-1", PATIENCE_S)
        assert cluster.volumes() == []

    def test_an_outage_in_the_middle(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        node.awake.clear()
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(controller.create, request(), PATIENCE_S)
            cluster.soon(cluster.volumes)
            with cluster.server.outage():
                time.sleep(0.1)
                with pytest.raises(Unavailable):
                    controller.create(request("other"), SHORT_S)
            node.awake.set()
            assert call.result().node == "a"

    def test_a_controller_that_died(self, cluster: Cluster) -> None:
        node, first = cluster.node("a"), cluster.controller()
        node.awake.clear()
        with pytest.raises(Busy):
            first.create(request(), SHORT_S)
        second = cluster.controller()
        node.awake.set()
        assert second.create(request(), PATIENCE_S).node == "a"

    def test_deletion_by_hand_takes_nothing(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        view = controller.create(request(), PATIENCE_S)
        cluster.server.delete(resources.VOLUMES, "pvc-1")
        time.sleep(0.1)
        assert controller.create(request(), PATIENCE_S) == view
        assert node.volumes
        controller.delete("pvc-1", PATIENCE_S)
        assert not node.volumes
        assert not cluster.volumes()


class TestDelete:
    def test_and_again(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.create(request(), PATIENCE_S)
        controller.delete("pvc-1", PATIENCE_S)
        assert not node.volumes
        assert not cluster.volumes()
        controller.delete("pvc-1", PATIENCE_S)
        controller.delete("../x", PATIENCE_S)
        with pytest.raises(NotFound):
            controller.get("pvc-1")
        assert controller.create(request(size=2 * GIB), PATIENCE_S).node == "a"

    def test_in_use(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.create(request(), PATIENCE_S)
        node.in_use.add("pvc-1")
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="in use"):
                controller.delete("pvc-1", PATIENCE_S)
        assert controller.get("pvc-1").record is not None
        assert controller.expand("pvc-1", CapacityRange(required=2 * GIB), None, PATIENCE_S)[0] == 2 * GIB
        node.in_use.clear()
        controller.delete("pvc-1", PATIENCE_S)
        assert not node.volumes

    def test_node_down(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.create(request(), PATIENCE_S)
        node.awake.clear()
        with pytest.raises(Busy):
            controller.delete("pvc-1", SHORT_S)
        cluster.ahead = LATER_S
        with pytest.raises(Unavailable, match="not there"):
            controller.delete("pvc-1", SHORT_S)
        with pytest.raises(Unavailable):
            controller.create(request(), SHORT_S)
        node.awake.set()
        cluster.soon(lambda: not node.volumes and controller.volumes.known("pvc-1") is None)
        controller.delete("pvc-1", SHORT_S)

    def test_node_that_has_left(self, cluster: Cluster) -> None:
        """Whatever else of it is still in the API: an agent that outlives its Node makes its pools anew."""
        node, controller = cluster.node("a"), cluster.controller()
        controller.create(request(), PATIENCE_S)
        cluster.lose(node)
        with pytest.raises(NotFound, match="left the cluster"):
            controller.expand("pvc-1", CapacityRange(required=2 * GIB), None, SHORT_S)
        assert controller.capacity(request()).available == 0
        controller.delete("pvc-1", SHORT_S)
        assert cluster.volumes() == []
        assert node.volumes

    def test_node_that_has_left_nothing_but_its_name(self, cluster: Cluster) -> None:
        """Leases and pools go by hand, too, and when a node is registered anew; its volumes are there."""
        node, controller = cluster.node("a"), cluster.controller()
        controller.create(request(), PATIENCE_S)
        node.awake.clear()
        cluster.server.delete(resources.leases(NAMESPACE), resources.lease_name("a"))
        cluster.server.delete(resources.POOLS, resources.pool_resource_name("a", "fast"))
        cluster.soon(lambda: not controller.nodes.alive("a") and not controller.nodes.views("a"))
        with pytest.raises(Unavailable):
            controller.delete("pvc-1", SHORT_S)
        assert len(cluster.volumes()) == 1
        node.awake.set()
        cluster.soon(lambda: not node.volumes and not cluster.volumes())

    def test_what_nobody_asks_for_again_goes_with_its_node(self, cluster: Cluster) -> None:
        """Creations and deletions that were given up, on that node alone; what a claim may have stays."""
        gone, down = cluster.node("gone"), cluster.node("down")
        controller = cluster.controller()
        for name, node in (("kept", "gone"), ("deleted", "gone"), ("down", "down")):
            controller.create(request(name), PATIENCE_S, on(node))
        gone.awake.clear()
        down.awake.clear()
        for volume in ("deleted", "down"):
            with pytest.raises(Busy):
                controller.delete(volume, SHORT_S)
        for name, node in (("given-up", "gone"), ("waits", "down")):
            with pytest.raises(Busy):
                controller.create(request(name), SHORT_S, on(node))
        controller.volumes.forget_orphans()
        assert len(cluster.volumes()) == 5
        cluster.lose(gone)
        controller.volumes.forget_orphans()
        assert sorted(one["metadata"]["name"] for one in cluster.volumes()) == ["down", "kept", "waits"]

    def test_the_controller_looks_for_that_by_itself(self, cluster: Cluster, tmp_path: Path) -> None:
        (tmp_path / "kubeconfig").write_text(cluster.server.kubeconfig)
        cluster.server.create(resources.VOLUMES, new_volume(request(), VolumeId("pvc-1"), "gone"))
        view = ClusterView(load({"kubeconfig": str(tmp_path / "kubeconfig")}, Role.CONTROLLER))
        view.start()
        try:
            view.wait()
            cluster.server.until(resources.VOLUMES, "pvc-1", lambda now: now is None)
        finally:
            view.stop()

    def test_what_another_controller_moves_meanwhile_is_not_forgotten(self, cluster: Cluster) -> None:
        """It is another node's by then, which may have made and acknowledged it."""
        gone, other = cluster.node("gone"), cluster.node("other")
        gone.awake.clear()

        class Late(Api):
            def delete(self, collection: str, name: str, *, uid: str = "", version: str = "") -> None:
                freed = another.volumes.read(name)
                if freed is not None and freed["spec"]["nodeName"] == "gone":
                    another.volumes.write(freed, {"nodeName": "other", "state": resources.PRESENT})
                    cluster.server.until(
                        resources.VOLUMES, name, lambda now: now is not None and resources.answered(now)
                    )
                super().delete(collection, name, uid=uid, version=version)

        controller, another = cluster.controller(Late(cluster.server.credentials)), cluster.controller()
        with pytest.raises(Busy):
            controller.create(request(), SHORT_S, on("gone"))
        cluster.lose(gone)
        other.renew()
        cluster.usable(controller, "other")
        controller.volumes.forget_orphans()
        assert list(other.volumes) == ["pvc-1"]
        (metadata,) = (one["metadata"] for one in cluster.volumes())
        assert metadata["finalizers"] == [resources.FINALIZER]
        assert "deletionTimestamp" not in metadata

    @pytest.mark.parametrize("asked_before", [False, True])
    def test_a_resource_whose_label_was_taken_off(self, cluster: Cluster, *, asked_before: bool) -> None:
        """Its node watches those with its label alone."""
        node, controller = cluster.node("a"), cluster.controller()
        cluster.usable(controller, "a")
        controller.create(request("data"), PATIENCE_S)
        node.awake.clear()
        if asked_before:
            with pytest.raises(Busy):
                controller.delete("data", 0)
        cluster.server.patch(resources.VOLUMES, "data", {"metadata": {"labels": {resources.NODE_LABEL: None}}})
        cluster.soon(lambda: not node._cache.items() and not controller.volumes.items()[0]["metadata"]["labels"])
        node.awake.set()
        controller.delete("data", PATIENCE_S)
        assert not node.volumes
        assert not cluster.volumes()

    def test_an_api_that_does_not_know_volumes_has_removed_none(self, cluster: Cluster) -> None:
        """Their CustomResourceDefinition is deleted and made anew, say; the data would stay on the disk for ever."""
        node, controller = cluster.node("a"), cluster.controller()
        cluster.usable(controller, "a")
        controller.create(request("data"), PATIENCE_S)
        cluster.server.refuse("PATCH", 404)
        with pytest.raises(Unavailable, match="does not know"):
            controller.delete("data", PATIENCE_S)
        assert list(node.volumes) == ["data"]
        controller.delete("data", PATIENCE_S)
        assert not node.volumes

    def test_whether_it_has_left_is_not_said(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller(NoNodes(cluster.server.credentials))
        controller.create(request(), PATIENCE_S)
        cluster.lose(node)
        with pytest.raises(Unavailable, match="403"):
            controller.delete("pvc-1", SHORT_S)
        assert len(cluster.volumes()) == 1

    def test_made_by_another_controller_a_moment_ago(self, cluster: Cluster) -> None:
        node = cluster.node("a")
        one, other = cluster.controller(), cluster.controller()
        for number in range(10):
            one.create(request(f"v{number}"), PATIENCE_S)
            other.delete(f"v{number}", PATIENCE_S)
        assert not node.volumes

    def test_made_since_another_controller_heard_of_it(self, cluster: Cluster) -> None:
        """Each sidecar has a leader of its own, and so asks the controller beside that."""
        node, one, other = cluster.node("a"), cluster.controller(), cluster.controller()
        node.awake.clear()
        with pytest.raises(Busy):
            one.create(request("data"), SHORT_S)
        cluster.soon(lambda: other.volumes.known("data"))
        cache = other.volumes._cache
        cache.stop()
        cache._thread.join()
        node.awake.set()
        one.create(request("data"), PATIENCE_S)
        assert other.get("data").node == "a"
        assert node_that_has(other.volumes, "data") == "a"


class TestExpand:
    def test_grows(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.create(request(), PATIENCE_S)
        assert controller.expand("pvc-1", CapacityRange(required=2 * GIB), None, PATIENCE_S) == (2 * GIB, True)
        assert node.volumes["pvc-1"].size == 2 * GIB
        cluster.server.requests.clear()
        assert controller.expand("pvc-1", CapacityRange(required=2 * GIB), None, PATIENCE_S) == (2 * GIB, True)
        assert not [path for _, path in cluster.server.requests if "watch=1" not in path]
        with pytest.raises(AlreadyExists):
            controller.create(request(size=3 * GIB), PATIENCE_S)

    def test_refused_and_taken_back(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.create(request(), PATIENCE_S)
        for _ in range(2):
            with pytest.raises(ResourceExhausted):
                controller.expand("pvc-1", CapacityRange(required=20 * GIB), None, PATIENCE_S)
        assert controller.get("pvc-1").record is not None
        assert controller.expand("pvc-1", CapacityRange(required=GIB), None, PATIENCE_S)[0] == GIB
        assert capacity_range(cluster.volumes()[0]).required == GIB
        assert controller.expand("pvc-1", CapacityRange(required=3 * GIB), None, PATIENCE_S)[0] == 3 * GIB
        assert node.volumes["pvc-1"].size == 3 * GIB

    def test_impossible(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        controller.create(request(), PATIENCE_S)
        with pytest.raises(NotFound):
            controller.expand("other", CapacityRange(required=GIB), None, PATIENCE_S)
        with pytest.raises(OutOfRange):
            controller.expand("pvc-1", CapacityRange(required=MIB, limit=2 * MIB), None, PATIENCE_S)
        block = Capability(access=MountAccess(fs_type="xfs"), mode=AccessMode.SINGLE_NODE_WRITER)
        with pytest.raises(InvalidArgument):
            controller.expand("pvc-1", CapacityRange(required=2 * GIB), block, PATIENCE_S)


class TestLook:
    def test_pages(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        for number in range(5):
            controller.create(request(f"v{number}", 16 * MIB), PATIENCE_S)
        first, more = controller.list("", 2)
        assert ([view.id for view in first], more) == (["v0", "v1"], "v1")
        rest, more = controller.list(more, 3)
        assert ([view.id for view in rest], more) == (["v2", "v3", "v4"], "")

    def test_capacity_of_each_node(self, cluster: Cluster) -> None:
        cluster.node("a", 10 * GIB)
        down = cluster.node("b", 20 * GIB)
        controller = cluster.controller()
        wanted = request()
        assert controller.capacity(wanted).available == 30 * GIB
        assert controller.capacity(wanted).largest == 20 * GIB
        assert controller.capacity(wanted, on("a")).available == 10 * GIB
        assert controller.capacity(wanted, on("x")).available == 0
        assert controller.capacity(request(media="hdd")).available == 0
        down.renew(0)
        cluster.ahead = LATER_S
        assert controller.capacity(wanted).available == 0

    def test_nodes_that_were_are_not_remembered(self, cluster: Cluster) -> None:
        controller = cluster.controller()
        for name in ("a", "b"):
            cluster.node(name)
            cluster.soon(lambda: controller.nodes.all_views(ANYWHERE))
            cluster.server.delete(resources.leases(NAMESPACE), resources.lease_name(name))
            cluster.server.delete(resources.POOLS, resources.pool_resource_name(name, "fast"))
            cluster.soon(lambda: not controller.nodes._views and not controller.nodes._renewed)
        with pytest.raises(ResourceExhausted, match="no node has a pool"):
            controller.create(request(), SHORT_S)

    def test_what_is_being_made_is_no_room(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a", 10 * GIB), cluster.controller()
        controller.create(request(), PATIENCE_S)
        assert controller.capacity(request()).available == 9 * GIB
        node.show_room()
        cluster.soon(lambda: not controller.nodes._promises)
        assert controller.capacity(request()).available == 9 * GIB

    def test_ill(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        controller.create(request(), PATIENCE_S)
        patch = resources.health_status(cluster.volumes()[0], "its data is gone", now=resources.timestamp(time.time()))
        assert patch is not None
        cluster.server.patch(resources.VOLUMES, "pvc-1", patch, status=True)
        cluster.soon(lambda: controller.get("pvc-1").problem == "its data is gone")

    def test_adopted(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        record = new_record(request("restored"), now=1)
        cluster.server.create(resources.VOLUMES, adopted_volume(record, "a"))
        cluster.soon(lambda: controller.list("", 0)[0])
        assert controller.create(request("restored"), PATIENCE_S).node == "a"
