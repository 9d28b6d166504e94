"""Snapshots, restores and clones through the controller: its engine, nodes with theirs, and the API between them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.cluster import ClusterPart
from csi_local.config import Config
from csi_local.kube import resources
from csi_local.kube.api import Api
from csi_local.kube.cache import Cache
from csi_local.kube.desired import Desired
from csi_local.kube.nodes import Nodes, in_cluster
from csi_local.kube.remote import Remote
from csi_local.kube.remote_groups import RemoteGroups
from csi_local.kube.remote_snapshots import RemoteSnapshots
from csi_local.kube.snapshot_resource import failed_status, new_snapshot
from csi_local.kube.volume_resource import adopted_volume, made
from csi_local.model.accessibility import ANYWHERE, Accessibility
from csi_local.model.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from csi_local.model.quantity import MIB
from csi_local.model.snapshot import ContentSource, GroupRequest, SnapshotRequest, SourceKind
from csi_local.model.volume import CapacityRange
from tests.fake.kubernetes import Kubernetes
from tests.fake.node import NAMESPACE
from tests.observe import until
from tests.unit import rig
from tests.unit.rig import RUN_DIR, Rig, capability

if TYPE_CHECKING:
    from collections.abc import Iterator

    from csi_local.engine.api import GroupView, SnapshotView, VolumeView
    from csi_local.plan.request import VolumeRequest

PATIENCE_S = 20.0
LATER_S = 60.0
SIZE = 16 * MIB
NEAR = ("loops=image:/pools/loops.img,size=4Gi,allocation=thin",)
FAR = ("loops=image:/pools/loops.img,size=4Gi,allocation=thin,fs=ext4",)


class Member:
    """A node."""

    def __init__(self, server: Kubernetes, name: str, pools: tuple[str, ...]) -> None:
        self.rig = Rig(*pools, node_name=name)
        self.rig.start()
        self._server = server
        self._name = name

    def start(self) -> None:
        """Be there."""
        config = Config(
            endpoint="",
            node_id=self._name,
            pools=tuple(self.rig.specs),
            run_dir=RUN_DIR,
            max_volumes=0,
            log_level="info",
            log_format="text",
            namespace=NAMESPACE,
            credentials=self._server.credentials,
        )
        self._part = ClusterPart(config, self.rig, lambda *_: None, lambda _: None)
        self._part.start()

    def stop(self) -> None:
        """Be there no more."""
        self._part.stop()


class Controller:
    """One program's view of the cluster."""

    def __init__(self, stack: ExitStack, server: Kubernetes) -> None:
        self._ahead = 0.0
        api = Api(server.credentials)
        stack.callback(api.close)
        collections = {
            "volume": resources.VOLUMES,
            "snapshot": resources.SNAPSHOTS,
            "group": resources.GROUPS,
            "pool": resources.POOLS,
            "lease": resources.leases(NAMESPACE),
        }
        caches = {noun: Cache(api, collection) for noun, collection in collections.items()}
        self.nodes = Nodes(
            caches["lease"],
            caches["pool"],
            partial(in_cluster, api),
            monotonic=lambda: time.monotonic() + self._ahead,
        )
        for cache in caches.values():
            cache.start()
            stack.callback(cache.stop)
            assert cache.wait_synced(5)
        volumes, snapshots, groups = (
            Desired(api, collections[noun], caches[noun], self.nodes, noun=noun)
            for noun in ("volume", "snapshot", "group")
        )
        self.known_snapshots = snapshots.items
        self.known_volume = volumes.known
        self.groups = RemoteGroups(groups, volumes)
        self.snapshots = RemoteSnapshots(snapshots, groups, volumes)
        self.volumes = Remote(volumes, self.snapshots.origin)

    def later(self) -> None:
        """Let so much time pass that who does not renew its lease counts as gone."""
        self._ahead += LATER_S

    # --- the sidecars' part

    def volume(self, name: str = "data", *nodes: str) -> VolumeView:
        """Have a volume."""
        return self.create(rig.request(name, SIZE, {}), *nodes)

    def create(self, request: VolumeRequest, *nodes: str) -> VolumeView:
        """Have a volume made as that says."""
        return self.volumes.create(request, PATIENCE_S, Accessibility(nodes=nodes) if nodes else ANYWHERE)

    def made(self, name: str) -> bool:
        """Whether it knows a volume, and that its node has said so."""
        found = self.known_volume(name)
        return found is not None and made(found)

    def snapshot(self, name: str = "daily", source: str = "data", patience_s: float = PATIENCE_S) -> SnapshotView:
        """Have a snapshot."""
        return self.snapshots.create(SnapshotRequest(name=name, source=source), patience_s)

    def group(self, *sources: str, name: str = "both") -> GroupView:
        """Have a group."""
        return self.groups.create(GroupRequest(name=name, sources=sources), PATIENCE_S)


class Cluster:
    """Nodes, and controllers."""

    def __init__(self, stack: ExitStack) -> None:
        self.server = stack.enter_context(Kubernetes())
        self._stack = stack

    def node(self, name: str, pools: tuple[str, ...] = NEAR) -> Member:
        """Add a node."""
        self.server.create(resources.NODES, {"metadata": {"name": name}})
        member = Member(self.server, name, pools)
        member.start()
        self._stack.callback(member.stop)
        pool = resources.pool_resource_name(name, "loops")
        self.server.until(resources.POOLS, pool, lambda now: now is not None and now.get("status", {}).get("roomBytes"))
        self.server.until(resources.leases(NAMESPACE), resources.lease_name(name), lambda now: now is not None)
        return member

    def controller(self) -> Controller:
        """Add a controller."""
        return Controller(self._stack, self.server)

    def lose(self, name: str, node: Member, controller: Controller) -> None:
        """Have a node leave the cluster; nobody has collected what it left in the API."""
        node.stop()
        self.server.delete(resources.NODES, name)
        controller.later()

    def there(self, collection: str = resources.SNAPSHOTS) -> list[str]:
        """The resources there are."""
        return sorted(resources.name_of(one) for one in self.server.all(collection))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


def copy_of(kind: SourceKind, source: str, name: str = "copy", size: int = SIZE) -> VolumeRequest:
    return replace(rig.request(name, size, {}), source=ContentSource(kind=kind, id=source))


class TestSnapshots:
    def test_one_write_of_each(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        cluster.server.requests.clear()
        view = controller.snapshot()
        assert (view.id, view.pool, view.ready, view.problem) == ("daily", "loops", True, "")
        assert view.record is not None
        assert (view.record.source, view.record.volume.size) == ("data", SIZE)
        written = [f"{method} {path}" for method, path in cluster.server.requests if "/localsnapshots" in path]
        assert [one for one in written if not one.startswith("GET")] == [
            f"POST {resources.SNAPSHOTS}",
            f"PATCH {resources.SNAPSHOTS}/daily/status",
        ]
        assert [one.id for one in node.rig.snapshots.list("", 0)[0]] == ["daily"]
        assert controller.snapshot() == view == controller.snapshots.get("daily")
        controller.snapshots.delete("daily", PATIENCE_S)
        assert node.rig.snapshots.list("", 0)[0] == []
        assert cluster.there() == []
        controller.snapshots.delete("daily", PATIENCE_S)
        controller.snapshots.delete("../x", PATIENCE_S)

    def test_names_that_are_taken_or_none(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        controller.volume()
        controller.volume("other")
        controller.snapshot()
        with pytest.raises(AlreadyExists, match="of volume data"):
            controller.snapshot(source="other")
        with pytest.raises(InvalidArgument):
            controller.snapshot("")
        for unknown in ("none", "../data"):
            with pytest.raises(NotFound, match="no volume"):
                controller.snapshot("other", unknown)
        assert cluster.there() == ["daily"]

    def test_names_that_are_no_resource_names(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        controller.volume("A_b")
        ids = [controller.snapshot(name, "A_b").id for name in ("A_b", "a b", "ä" * 40)]
        assert [view.id for view in controller.snapshots.list("", 0)[0]] == sorted(ids)
        for snapshot in ids:
            assert controller.snapshots.get(snapshot).id == snapshot
            controller.snapshots.delete(snapshot, PATIENCE_S)
        assert cluster.there() == []

    def test_lists(self, cluster: Cluster) -> None:
        cluster.node("a")
        cluster.node("b")
        controller = cluster.controller()
        controller.volume("one", "a")
        controller.volume("two", "b")
        for number in range(3):
            controller.snapshot(f"s{number}", "one")
        controller.snapshot("s9", "two")
        first, more = controller.snapshots.list("", 2)
        assert ([view.id for view in first], more) == (["s0", "s1"], "s1")
        assert [view.id for view in controller.snapshots.list(more, 0)[0]] == ["s2", "s9"]
        assert [view.id for view in controller.snapshots.list("", 0, "two")[0]] == ["s9"]
        assert controller.snapshots.list("", 0, "three") == ([], "")
        with pytest.raises(NotFound):
            controller.snapshots.get("s3")

    def test_it_is_where_its_volume_is_and_outlives_it(self, cluster: Cluster) -> None:
        cluster.node("a")
        node, controller = cluster.node("b"), cluster.controller()
        controller.volume("data", "b")
        view = controller.snapshot()
        controller.volumes.delete("data", PATIENCE_S)
        assert controller.snapshot() == view
        assert [one.id for one in node.rig.snapshots.list("", 0)[0]] == ["daily"]
        with pytest.raises(NotFound):
            controller.snapshot("another")

    def test_a_refusal_leaves_nothing(self, cluster: Cluster) -> None:
        """On ext4 what is in use cannot be copied."""
        node, controller = cluster.node("a", FAR), cluster.controller()
        controller.volume()
        node.rig.host.make_dirs("/kubelet/data")
        node.rig.publisher.stage("data", "/kubelet/data", capability(), PATIENCE_S)
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="in use"):
                controller.snapshot()
            until(lambda: cluster.there() == [], "nothing is left")
        node.rig.publisher.unstage("data", "/kubelet/data", PATIENCE_S)
        assert controller.snapshot().ready

    def test_a_node_that_is_gone(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        view = controller.snapshot()
        node.stop()
        controller.later()
        with pytest.raises(Unavailable, match="node a"):
            controller.snapshot("other")
        assert cluster.there() == ["daily"]
        assert controller.snapshot() == view  # what is known is told
        with pytest.raises(Unavailable, match="node a"):
            controller.snapshots.delete("daily", PATIENCE_S)
        node.start()
        until(lambda: cluster.there() == [], "it is removed when the node is back")

    def test_a_node_that_has_left_the_cluster(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        controller.snapshot()
        cluster.lose("a", node, controller)
        with pytest.raises(NotFound, match="left the cluster"):
            controller.snapshot("other")
        for kind, source in ((SourceKind.SNAPSHOT, "daily"), (SourceKind.VOLUME, "data")):
            with pytest.raises(NotFound, match="left the cluster"):
                controller.create(copy_of(kind, source))
        controller.snapshots.delete("daily", PATIENCE_S)
        assert cluster.there() == []
        assert [one.id for one in node.rig.snapshots.list("", 0)[0]] == ["daily"]

    def test_one_that_cannot_be_taken_away_again_is_no_hindrance(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        node.stop()
        cluster.server.create(resources.SNAPSHOTS, new_snapshot(SnapshotRequest(name="daily", source="data"), "a"))
        refused = cluster.server.patch(resources.SNAPSHOTS, "daily", {"spec": {"state": resources.ABSENT}})
        patch = failed_status(refused, Unavailable("a disk is missing"), now=resources.timestamp(0))
        refused = cluster.server.patch(resources.SNAPSHOTS, "daily", patch, status=True)
        until(lambda: refused in controller.known_snapshots(), "it is known")
        with pytest.raises(AlreadyExists):
            controller.snapshot(source="other")
        with pytest.raises(Busy):
            controller.snapshot(patience_s=0.1)
        node.start()
        assert controller.snapshot().ready

    def test_one_that_was_not_taken_before_its_node_left_the_cluster(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        node.stop()
        with pytest.raises(Busy):
            controller.snapshot(patience_s=0.1)
        assert cluster.there() == ["daily"]
        cluster.lose("a", node, controller)
        with pytest.raises(NotFound, match="left the cluster"):
            controller.snapshot()
        assert cluster.there() == []

    def test_one_that_was_not_whole_before_its_node_left_the_cluster(self, cluster: Cluster) -> None:
        controller = cluster.controller()
        copying = new_snapshot(SnapshotRequest(name="daily", source="data"), "a")
        cluster.server.create(resources.SNAPSHOTS, copying)
        status = {"nodeName": "a", "phase": "Pending", "snapshotId": "daily", "readyToUse": False}
        found = cluster.server.patch(resources.SNAPSHOTS, "daily", {"status": status}, status=True)
        until(lambda: found in controller.known_snapshots(), "it is known")
        with pytest.raises(NotFound, match="left the cluster"):
            controller.snapshot()
        controller.snapshots.delete("daily", PATIENCE_S)
        assert cluster.there() == []

    def test_two_controllers_and_lost_answers(self, cluster: Cluster) -> None:
        cluster.node("a")
        one, other = cluster.controller(), cluster.controller()
        one.volume()
        cluster.server.lose_answer("POST")
        assert one.snapshot() == other.snapshot()
        cluster.server.lose_answer("PATCH")
        other.snapshots.delete("daily", PATIENCE_S)
        assert cluster.there() == []
        until(lambda: one.snapshots.list("", 0) == ([], ""), "the other hears of it")

    def test_a_restored_etcd(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        before = cluster.server.backup()
        view = controller.snapshot()
        node.stop()
        cluster.server.restore(before)
        node.start()
        until(lambda: cluster.there() == ["daily"], "it has a resource again")
        until(lambda: controller.snapshot() == view, "it is what it was")


class TestCopies:
    @pytest.mark.parametrize("kind", SourceKind)
    def test_is_made_where_its_source_is(self, cluster: Cluster, kind: SourceKind) -> None:
        cluster.node("a")
        node, controller = cluster.node("b"), cluster.controller()
        controller.volume("data", "b")
        controller.snapshot("data")
        view = controller.create(copy_of(kind, "data"), "a", "b")
        assert view.node == "b"
        assert view.record is not None
        assert (view.record.source, view.record.size) == (f"{kind}/data", SIZE)
        assert node.rig.volumes.get("copy").record is not None
        controller.snapshots.delete("data", PATIENCE_S)
        controller.volumes.delete("data", PATIENCE_S)
        assert controller.create(copy_of(kind, "data"), "a", "b") == view
        with pytest.raises(AlreadyExists):
            controller.create(rig.request("copy", SIZE, {}))
        assert controller.create(copy_of(kind, "data", size=0)) == view

    @pytest.mark.parametrize("kind", SourceKind)
    def test_where_it_cannot_be(self, cluster: Cluster, kind: SourceKind) -> None:
        cluster.node("a")
        cluster.node("b")
        controller = cluster.controller()
        controller.volume("data", "b")
        controller.snapshot("data")
        with pytest.raises(ResourceExhausted, match="is on node b"):
            controller.create(copy_of(kind, "data"), "a")
        with pytest.raises(ResourceExhausted, match="node b"):
            controller.create(copy_of(kind, "data", size=SIZE << 20))
        with pytest.raises(NotFound, match=f"no {kind} 'none'"):
            controller.create(copy_of(kind, "none"))
        with pytest.raises(NotFound):
            controller.create(copy_of(kind, "../data"))
        block = replace(copy_of(kind, "data"), capabilities=(capability(block=True),))
        with pytest.raises(InvalidArgument, match="raw block"):
            controller.create(block)
        small = replace(copy_of(kind, "data"), capacity=CapacityRange(limit=SIZE - 1))
        with pytest.raises(Exception, match="limit"):
            controller.create(small)
        until(lambda: cluster.there(resources.VOLUMES) == ["data"], "nothing is left")

    @pytest.mark.parametrize("kind", SourceKind)
    def test_an_encrypted_one(self, cluster: Cluster, kind: SourceKind) -> None:
        """What a source is encrypted with is known to its node alone."""
        cluster.node("a")
        controller = cluster.controller()
        encrypted = {"encryption": "luks2"}
        controller.create(rig.request("data", SIZE, encrypted))
        controller.snapshot("data")
        source = ContentSource(kind=kind, id="data")
        view = controller.create(replace(rig.request("copy", SIZE, encrypted), source=source))
        assert view.record is not None
        assert view.record.size == SIZE
        with pytest.raises(InvalidArgument, match="is encrypted"):
            controller.create(replace(rig.request("plain", SIZE, {}), source=source))
        until(lambda: cluster.there(resources.VOLUMES) == ["copy", "data"], "nothing is left")

    def test_a_larger_one(self, cluster: Cluster) -> None:
        cluster.node("a")
        controller = cluster.controller()
        controller.volume()
        view = controller.create(copy_of(SourceKind.VOLUME, "data", size=2 * SIZE))
        assert view.record is not None
        assert view.record.size == 2 * SIZE

    def test_a_node_that_is_gone(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        cluster.node("b")
        controller.volume("data", "a")
        node.stop()
        controller.later()
        with pytest.raises(Unavailable, match="node a"):
            controller.create(copy_of(SourceKind.VOLUME, "data"))
        assert cluster.there(resources.VOLUMES) == ["data"]

    def test_in_the_background(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a", FAR), cluster.controller()
        controller.volume()
        node.rig.in_background = True
        for _ in range(2):
            with pytest.raises(Busy, match="being copied"):
                controller.create(copy_of(SourceKind.VOLUME, "data"))
        with pytest.raises(AlreadyExists):
            controller.create(rig.request("copy", SIZE, {}))
        with pytest.raises(Busy, match="is being copied"):
            controller.volumes.delete("data", PATIENCE_S)
        (work,) = node.rig.spawned
        work()
        assert controller.create(copy_of(SourceKind.VOLUME, "data")).node == "a"
        controller.volumes.delete("data", PATIENCE_S)
        assert cluster.there(resources.VOLUMES) == ["copy"]

    def test_given_up_in_the_middle(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a", FAR), cluster.controller()
        controller.volume()
        node.rig.in_background = True
        with pytest.raises(Busy, match="being copied"):
            controller.create(copy_of(SourceKind.VOLUME, "data"))
        with pytest.raises(Busy, match="still being made"):
            controller.volumes.delete("copy", PATIENCE_S)
        node.rig.spawned.pop()()
        controller.volumes.delete("copy", PATIENCE_S)
        assert cluster.there(resources.VOLUMES) == ["data"]
        assert [view.id for view in node.rig.volumes.list("", 0)[0]] == ["data"]

    def test_a_restored_etcd(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        before = cluster.server.backup()
        view = controller.create(copy_of(SourceKind.VOLUME, "data"))
        node.stop()
        cluster.server.restore(before)
        node.start()
        until(lambda: len(cluster.there(resources.VOLUMES)) == 2, "it has a resource again")
        until(lambda: controller.create(copy_of(SourceKind.VOLUME, "data")) == view, "it is what it was")

    def test_a_restored_etcd_before_its_node_has_said_what_it_is(self, cluster: Cluster) -> None:
        """Between the two writes that give it a resource again."""
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume()
        wanted = copy_of(SourceKind.VOLUME, "data")
        before = cluster.server.backup()
        view = controller.create(wanted)
        assert view.record is not None
        node.stop()
        cluster.server.restore(before)
        cluster.server.create(resources.VOLUMES, adopted_volume(view.record, "a"))
        until(lambda: not controller.made("copy"), "the controller has seen it")
        with pytest.raises(Busy):
            controller.volumes.create(wanted, 0.0)
        node.start()
        until(lambda: controller.made("copy"), "its node says what it is")
        assert controller.create(wanted) == view
        with pytest.raises(AlreadyExists, match="size"):
            controller.create(replace(wanted, capacity=CapacityRange(required=2 * SIZE)))


class TestGroups:
    def test_a_group_lives_and_dies_whole(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        for name in ("one", "two"):
            controller.volume(name)
        cluster.server.requests.clear()
        view = controller.group("one", "two")
        assert [method for method, path in cluster.server.requests if path.startswith(resources.GROUPS + "/both")] == [
            "PATCH"
        ]
        assert view == controller.group("two", "one", "one") == controller.groups.get("both", view.record.members)
        records = [one.record for one in view.members if one.record is not None]
        assert [(one.source, one.group) for one in records] == [("one", "both"), ("two", "both")]
        assert {one.created for one in records} == {view.record.created}
        assert [one.id for one in controller.snapshots.list("", 0)[0]] == sorted(view.record.members)
        assert cluster.there() == []
        member = view.record.members[0]
        assert controller.snapshots.get(member) in view.members
        with pytest.raises(InvalidArgument, match="group both"):
            controller.snapshots.delete(member, PATIENCE_S)
        with pytest.raises(InvalidArgument):
            controller.groups.delete("both", ["other"], PATIENCE_S)
        assert controller.create(copy_of(SourceKind.SNAPSHOT, member)).node == "a"
        controller.groups.delete("both", view.record.members, PATIENCE_S)
        assert node.rig.snapshots.list("", 0)[0] == []
        assert cluster.there(resources.GROUPS) == []
        controller.groups.delete("both", (), PATIENCE_S)
        with pytest.raises(NotFound):
            controller.groups.get("both")

    def test_volumes_on_several_nodes(self, cluster: Cluster) -> None:
        cluster.node("a")
        cluster.node("b")
        controller = cluster.controller()
        controller.volume("one", "a")
        controller.volume("two", "b")
        with pytest.raises(FailedPrecondition, match="on the nodes a and b"):
            controller.group("one", "two")
        with pytest.raises(NotFound):
            controller.group("one", "three")
        with pytest.raises(InvalidArgument):
            controller.group()
        controller.group("one")
        with pytest.raises(AlreadyExists, match="of the volumes one"):
            controller.group("two")
        assert cluster.there(resources.GROUPS) == ["both"]

    def test_a_refusal_leaves_nothing(self, cluster: Cluster) -> None:
        cluster.node("a", FAR)
        controller = cluster.controller()
        controller.volume("one")
        with pytest.raises(FailedPrecondition, match="cannot share blocks"):
            controller.group("one")
        until(lambda: cluster.there(resources.GROUPS) == [], "nothing is left")

    def test_a_node_that_is_gone(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume("one")
        view = controller.group("one")
        node.stop()
        controller.later()
        with pytest.raises(Unavailable, match="node a"):
            controller.group("one", name="other")
        assert controller.group("one") == view
        with pytest.raises(Unavailable, match="node a"):
            controller.groups.delete("both", (), PATIENCE_S)
        node.start()
        until(lambda: cluster.there(resources.GROUPS) == [], "it is removed when the node is back")
        assert node.rig.snapshots.list("", 0)[0] == []

    def test_a_restored_etcd(self, cluster: Cluster) -> None:
        """Its members get no resources of their own."""
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume("one")
        before = cluster.server.backup()
        view = controller.group("one")
        node.stop()
        cluster.server.restore(before)
        node.start()
        until(lambda: cluster.there(resources.GROUPS) == ["both"], "it has a resource again")
        until(lambda: controller.group("one") == view, "it is what it was")
        assert cluster.there() == []

    def test_data_that_is_gone(self, cluster: Cluster) -> None:
        node, controller = cluster.node("a"), cluster.controller()
        controller.volume("one")
        view = controller.group("one")
        node.stop()
        pool = node.rig.pools.get("loops")
        node.rig.host.remove_tree(pool.layout.group(view.record.id))
        node.start()
        found = cluster.server.until(
            resources.GROUPS, "both", lambda now: now is not None and resources.problem_of(now) != ""
        )
        assert "gone" in resources.problem_of(found)
        until(lambda: controller.groups.get("both").problem == resources.problem_of(found), "the controller says so")
        with pytest.raises(NotFound):
            controller.create(copy_of(SourceKind.SNAPSHOT, view.record.members[0]))
