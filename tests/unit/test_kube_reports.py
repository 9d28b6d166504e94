"""What a node tells the cluster of itself: LocalPools, its Lease, Events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from csi_local.kube import resources
from csi_local.kube.api import Api
from csi_local.kube.events import Events, about_claim, about_node
from csi_local.kube.pool_resource import new_pool, pool_view
from csi_local.kube.pools import Beat, NodeLease, PoolReports, pause
from csi_local.kube.resources import POOLS
from csi_local.model.errors import InvalidArgument, Unavailable
from csi_local.model.pool import parse_pool
from tests.fake.kubernetes import Kubernetes
from tests.observe import until
from tests.unit.rig import PATIENCE_S, Rig, request

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
NODE = "node-1"
LEASES = resources.leases("csi-local")
NODE_EVENTS = resources.events("default")


@pytest.fixture
def server() -> Iterator[Kubernetes]:
    with Kubernetes() as made:
        yield made


@pytest.fixture
def api(server: Kubernetes) -> Iterator[Api]:
    made = Api(server.credentials)
    yield made
    made.close()


@pytest.fixture
def rig() -> Rig:
    made = Rig(node_name=NODE)
    made.start()
    return made


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events(api: Api, clock: Clock) -> Events:
    return Events(api, NODE, clock)


def writes(server: Kubernetes) -> int:
    """Return how many writes there were."""
    return sum(method != "GET" for method, _ in server.requests)


def owners(server: Kubernetes) -> list[str]:
    """Return the uids of the Nodes with which the pools and the Lease go."""
    found = (*server.all(POOLS), *server.all(LEASES))
    return [owner["uid"] for one in found for owner in one["metadata"].get("ownerReferences", [{"uid": ""}])]


class TestPools:
    @pytest.fixture
    def reports(self, api: Api, rig: Rig, events: Events) -> PoolReports:
        return PoolReports(api, NODE, rig.pools, rig.specs, events)

    def test_each_pool_is_told_of_as_it_is(self, server: Kubernetes, rig: Rig, reports: PoolReports) -> None:
        rig.volumes.create(request("a", 32 * MIB, {"pool": "loops"}), PATIENCE_S)
        reports.report()
        told = {one["spec"]["poolName"]: one for one in server.all(POOLS, resources.selector(NODE))}
        assert told.keys() == {"dirs", "loops"}
        assert told["loops"]["metadata"]["name"] == "node-1.loops"
        status = told["loops"]["status"]
        assert (status["volumes"], status["promisedBytes"]) == (1, 32 * MIB)
        assert status["uuid"] == rig.pools.get("loops").uuid
        for view in rig.pools.views():
            shown = pool_view(told[view.name])
            assert (shown.room, shown.abilities, shown.media) == (view.room, view.abilities, view.media)

    def test_nothing_new_is_not_told(self, server: Kubernetes, rig: Rig, reports: PoolReports) -> None:
        reports.report()
        before = writes(server)
        reports.report()
        assert writes(server) == before
        rig.volumes.create(request("a", 32 * MIB, {"pool": "loops"}), PATIENCE_S)
        reports.report()
        assert writes(server) == before + 1

    def test_one_that_is_missing(self, server: Kubernetes, rig: Rig, reports: PoolReports) -> None:
        reports.report()
        rig.host.unmount(rig.pools.get("loops").root)
        reports.report()
        reports.report()
        (ready,) = server.get(POOLS, "node-1.loops")["status"]["conditions"]
        assert (ready["status"], ready["message"]) == ("False", "its filesystem is no longer mounted")
        (event,) = server.all(NODE_EVENTS)
        assert (event["reason"], event["involvedObject"]["uid"]) == ("PoolNotReady", NODE)
        rig.pools.retry()
        reports.report()
        (ready,) = server.get(POOLS, "node-1.loops")["status"]["conditions"]
        assert ready["status"] == "True"

    def test_one_that_somebody_deleted(self, server: Kubernetes, rig: Rig, reports: PoolReports) -> None:
        reports.report()
        server.lose(POOLS, "node-1.loops")
        rig.volumes.create(request("a", 32 * MIB, {"pool": "loops"}), PATIENCE_S)
        with pytest.raises(Exception, match="NotFound"):
            reports.report()
        reports.report()
        assert server.get(POOLS, "node-1.loops")["status"]["volumes"] == 1

    def test_one_that_is_no_longer_configured(self, server: Kubernetes, rig: Rig, api: Api, events: Events) -> None:
        for pool, node in (("old", NODE), ("dirs", NODE), ("old", "node-2")):
            server.create(POOLS, new_pool(parse_pool(f"{pool}=path:/somewhere"), node))
        PoolReports(api, NODE, rig.pools, rig.specs, events).report()
        assert {one["metadata"]["name"] for one in server.all(POOLS)} == {"node-1.dirs", "node-1.loops", "node-2.old"}
        assert server.get(POOLS, "node-1.dirs")["spec"]["kind"] == "image"

    def test_it_goes_with_its_node(
        self, server: Kubernetes, rig: Rig, api: Api, events: Events, reports: PoolReports
    ) -> None:
        reports.report()  # before there is a Node
        uid = server.create(resources.NODES, {"metadata": {"name": NODE}})["metadata"]["uid"]
        PoolReports(api, NODE, rig.pools, rig.specs, events).report()
        NodeLease(api, NODE, "csi-local", lambda: "").renew()
        for made in (*server.all(POOLS), *server.all(LEASES)):
            (owner,) = made["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["name"], owner["uid"]) == ("Node", NODE, uid)

    def test_one_that_cannot_be_told_of_keeps_no_other_from_it(self, server: Kubernetes, reports: PoolReports) -> None:
        server.refuse("PATCH", 422)
        with pytest.raises(InvalidArgument):
            reports.report()
        assert sum("status" in one for one in server.all(POOLS)) == 1
        reports.report()
        assert sum("status" in one for one in server.all(POOLS)) == 2

    def test_a_node_that_is_made_anew(self, server: Kubernetes, api: Api, rig: Rig, events: Events) -> None:
        clock = Clock()
        reports = PoolReports(api, NODE, rig.pools, rig.specs, events, clock)
        renewed: list[str] = []
        lease = NodeLease(api, NODE, "csi-local", lambda: "", lost=lambda: renewed.append("lost"), clock=clock)
        uid = ""
        for collected in ("none", "all", "pools", "leases"):
            if uid:
                server.delete(resources.NODES, NODE)
            uid = server.create(resources.NODES, {"metadata": {"name": NODE}})["metadata"]["uid"]
            for collection, what in ((POOLS, "pools"), (LEASES, "leases")):
                for one in server.all(collection) if collected in ("all", what) else ():
                    server.lose(collection, one["metadata"]["name"])
            renewed.clear()
            clock.now += 61
            lease.renew()
            reports.report()
            assert owners(server) == [uid] * 3
            assert len(server.all(POOLS)) == 2
            assert bool(renewed) == (collected != "pools")

    def test_all_that_was_told_is_told_anew_at_once_when_asked(self, server: Kubernetes, reports: PoolReports) -> None:
        reports.report()
        for one in server.all(POOLS):
            server.lose(POOLS, one["metadata"]["name"])
        reports.report()
        assert server.all(POOLS) == []
        reports.doubt()
        reports.report()
        assert [one["status"]["volumes"] for one in server.all(POOLS)] == [0, 0]

    def test_nothing_is_told_of_a_node_that_was_deleted(
        self, server: Kubernetes, api: Api, rig: Rig, events: Events
    ) -> None:
        clock = Clock()
        reports = PoolReports(api, NODE, rig.pools, rig.specs, events, clock)
        lease = NodeLease(api, NODE, "csi-local", lambda: "", clock=clock)
        server.create(resources.NODES, {"metadata": {"name": NODE}})
        lease.renew()
        reports.report()
        server.delete(resources.NODES, NODE)
        lease.renew()  # not collected yet
        for collection in (POOLS, LEASES):
            for one in server.all(collection):
                server.lose(collection, one["metadata"]["name"])
        clock.now += 61
        for act in (lease.renew, reports.report):
            with pytest.raises(Unavailable, match="has been deleted"):
                act()
        assert server.all(POOLS) == server.all(LEASES) == []

    def test_a_lease_that_cannot_be_given_to_its_node_is_renewed_all_the_same(
        self, server: Kubernetes, api: Api
    ) -> None:
        clock = Clock()
        lease = NodeLease(api, NODE, "csi-local", lambda: "", clock=clock)
        lease.renew()  # before there is a Node
        server.create(resources.NODES, {"metadata": {"name": NODE}})
        clock.now += 61
        server.refuse("GET", 403)
        before = server.all(LEASES)[0]["spec"]["renewTime"]
        lease.renew()
        assert server.all(LEASES)[0]["spec"]["renewTime"] > before
        assert owners(server) == [""]
        clock.now += 61
        lease.renew()
        assert owners(server) != [""]

    def test_an_outage(self, server: Kubernetes, reports: PoolReports) -> None:
        with server.outage(), pytest.raises(Unavailable):
            reports.report()
        reports.report()
        assert len(server.all(POOLS)) == 2


class TestLease:
    def test_it_is_made_and_renewed(self, server: Kubernetes, api: Api) -> None:
        lease = NodeLease(api, NODE, "csi-local", lambda: "")
        lease.renew()
        first = server.get(LEASES, "csi-local-node-1")
        assert first["metadata"]["labels"] == {resources.NODE_LABEL: NODE}
        assert (first["spec"]["holderIdentity"], first["spec"]["leaseDurationSeconds"]) == (NODE, 40)
        lease.renew()
        assert server.get(LEASES, "csi-local-node-1")["spec"]["renewTime"] > first["spec"]["renewTime"]

    def test_not_by_one_that_is_not_at_work(self, server: Kubernetes, api: Api) -> None:
        with pytest.raises(Unavailable, match="a worker has ended"):
            NodeLease(api, NODE, "csi-local", lambda: "a worker has ended").renew()
        assert server.all(LEASES) == []


class TestEvents:
    def test_on_a_claim(self, server: Kubernetes, events: Events) -> None:
        uid = "0a1b2c3d-0000-1111-2222-333344445555"
        events.warn(about_claim("shop", "db", f"pvc-{uid}"), "VolumeUnhealthy", "its data is gone")
        (event,) = server.all(resources.events("shop"))
        assert event["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": "shop",
            "name": "db",
            "uid": uid,
        }
        assert (event["type"], event["message"]) == ("Warning", "its data is gone")

    def test_the_same_is_said_once_an_hour(self, server: Kubernetes, events: Events, clock: Clock) -> None:
        for _ in range(5):
            events.warn(about_node(NODE), "PoolNotReady", "pool x: gone")
        assert writes(server) == 1
        clock.now += 3601
        events.warn(about_node(NODE), "PoolNotReady", "pool x: gone")
        assert writes(server) == 3
        assert len(server.all(NODE_EVENTS)) == 1

    def test_not_too_much_at_once(self, server: Kubernetes, events: Events, clock: Clock) -> None:
        for number in range(100):
            events.warn(about_node(NODE), "PoolNotReady", str(number))
        assert len(server.all(NODE_EVENTS)) == 20
        clock.now += 25
        for number in range(100, 200):
            events.warn(about_node(NODE), "PoolNotReady", str(number))
        assert len(server.all(NODE_EVENTS)) == 22

    def test_an_outage_loses_it_and_nothing_else(
        self, server: Kubernetes, events: Events, caplog: pytest.LogCaptureFixture
    ) -> None:
        with server.outage():
            events.warn(about_node(NODE), "PoolNotReady", "x" * 2000)
        assert server.all(NODE_EVENTS) == []
        assert "PoolNotReady" in caplog.text


class TestBeat:
    def test_it_acts_again_when_asked_and_soon_after_a_failure(self) -> None:
        acted: list[int] = []

        def act() -> None:
            acted.append(len(acted))
            if len(acted) == 2:
                raise Unavailable("away")

        beat = Beat("test", act, every_s=60)
        beat.start()
        until(lambda: len(acted) == 1, "it acts at once")
        beat.ask()
        until(lambda: len(acted) == 3, "it acts when asked, and once more since that failed")
        assert not beat.problem
        beat.stop()

    def test_one_that_goes_on_failing_acts_less_and_less_often(self) -> None:
        pauses = [pause(failures, 10.0) for failures in range(2000)]
        assert pauses[0] == 10.0
        assert pauses[1] <= 1.0
        assert all(5.0 <= one <= 10.0 for one in pauses[5:])
        assert len(set(pauses)) > 1000
