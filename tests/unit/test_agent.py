"""The agent over a machine in memory and an API server in memory: what is wanted, is done and answered, once."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.api import VolumeView
from csi_local.engine.keys import NONE_GIVEN
from csi_local.engine.survey import Survey
from csi_local.kube import resources
from csi_local.kube.pool_resource import new_pool
from csi_local.kube.resources import VOLUMES, answered
from csi_local.kube.volume_kind import VolumeKind
from csi_local.kube.volume_resource import new_volume, ready_status, volume_view
from csi_local.model.errors import NotFound
from csi_local.model.parameters import parse_parameters
from csi_local.model.pool import parse_pool
from csi_local.model.volume import CapacityRange, volume_id
from csi_local.plan.request import VolumeRequest
from tests.observe import until
from tests.unit.rig import PATIENCE_S, Rig, capability
from tests.unit.stage import NODE, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from csi_local.engine.keys import GivenKeys
    from csi_local.kube.api import Object
    from csi_local.model.quantity import Bytes
    from tests.fake.kubernetes import Kubernetes

MIB = 1 << 20
NOW = "2026-01-01T00:00:00Z"
CLAIM = {"csi.storage.k8s.io/pvc/namespace": "shop", "csi.storage.k8s.io/pvc/name": "db"}
UID = "0a1b2c3d-0000-1111-2222-333344445555"
_STAGING = "/kubelet/staging"


class Scene(Stage[VolumeView]):
    """A node with its volumes."""

    collection = VOLUMES

    def kind(self) -> VolumeKind:
        """Volumes of the rig."""
        return VolumeKind(self.rig.volumes, self.rig.sizes, NODE)

    def look(self) -> None:
        """Have the node look at its volumes."""
        self.wait_known()
        self.survey().look()

    def survey(self) -> Survey:
        """What looks at them."""
        agent = self.agents[0]
        return Survey(self.rig.volumes, self.rig.pools, lambda found: agent.surveyed([one.view for one in found]))

    def want(self, name: str, size: int, parameters: Mapping[str, str] | None = None, node: str = NODE) -> str:
        """Want a volume; return the name of its resource."""
        return self.ask(new_volume(_request(name, size, parameters or {}), volume_id(name), node))

    def stage(self, volume: str, given: GivenKeys = NONE_GIVEN) -> None:
        """Have the kubelet use a volume."""
        self.rig.host.make_dirs(_STAGING)
        self.rig.publisher.stage(volume, _STAGING, capability(), PATIENCE_S, given)

    def unstage(self, volume: str) -> None:
        """Have it use that no more."""
        self.rig.publisher.unstage(volume, _STAGING, PATIENCE_S)


def _request(name: str, size: int, parameters: Mapping[str, str]) -> VolumeRequest:
    return VolumeRequest(
        name=name,
        capacity=CapacityRange(required=size),
        capabilities=(capability(),),
        parameters=parse_parameters({"pool": "loops", **parameters}),
    )


@pytest.fixture
def scene(cluster: Kubernetes, rig: Rig) -> Iterator[Scene]:
    made = Scene(cluster, rig)
    yield made
    made.stop()


def test_a_volume_s_life(scene: Scene) -> None:
    scene.start()
    name = scene.want("data", 32 * MIB, CLAIM)
    status = scene.answer(name)
    assert (status["phase"], status["capacityBytes"], status["pool"]) == ("Ready", 32 * MIB, "loops")
    found = scene.cluster.get(VOLUMES, name)
    view = volume_view(found)
    assert view.record is not None
    assert view.record.labels == CLAIM

    scene.change(name, capacity={"requiredBytes": 64 * MIB, "limitBytes": 0})
    status = scene.answer(name)
    assert (status["capacityBytes"], status["nodeExpansionRequired"]) == (64 * MIB, True)

    scene.change(name, state="Absent")
    scene.wait_gone(name)
    with pytest.raises(NotFound):
        scene.rig.volumes.get("data")
    until(lambda: scene.told == [("create", "OK"), ("expand", "OK"), ("delete", "OK")], "all is counted")
    path = f"{VOLUMES}/{name}"
    assert scene.writes() == [
        f"PATCH {path}/status",
        f"PATCH {path}/status",
        f"PATCH {path}",
        f"DELETE {path}",
    ]


def test_a_name_that_is_no_resource_s(scene: Scene) -> None:
    scene.start()
    name = scene.want("Data_1", 16 * MIB)
    assert name != "Data_1"
    assert scene.answer(name)["volumeId"] == "Data_1"


def test_a_refusal_is_answered_once_and_again_when_asked_again(scene: Scene) -> None:
    scene.start()
    name = scene.want("big", 1 << 50)
    status = scene.answer(name)
    assert (status["phase"], status["error"]["code"]) == ("Failed", "RESOURCE_EXHAUSTED")
    assert "pool loops" in status["error"]["message"]
    assert "volumeId" not in status
    scene.change(name, capacity={"requiredBytes": 16 * MIB, "limitBytes": 0})
    status = scene.answer(name)
    assert status["phase"] == "Ready"
    assert "error" not in status
    until(lambda: scene.told == [("create", "RESOURCE_EXHAUSTED"), ("create", "OK")], "all is counted")


def test_a_spec_that_nobody_understands(scene: Scene) -> None:
    scene.start()
    wanted = new_volume(_request("odd", 16 * MIB, {}), volume_id("odd"), NODE)
    wanted["spec"]["parameters"]["frobnicate"] = "yes"
    scene.cluster.create(VOLUMES, wanted)
    assert scene.answer("odd")["error"]["code"] == "INVALID_ARGUMENT"


def test_a_volume_in_use_stays(scene: Scene) -> None:
    scene.start()
    name = scene.want("data", 16 * MIB)
    scene.answer(name)
    scene.stage("data")
    scene.change(name, state="Absent")
    status = scene.answer(name)
    assert status["error"]["code"] == "FAILED_PRECONDITION"
    scene.look()
    scene.unstage("data")
    scene.look()  # that it is to go was said
    scene.wait_gone(name)


def test_a_volume_that_is_to_stay_after_all_stays_though_the_watch_is_late(scene: Scene) -> None:
    scene.start()
    name = scene.want("data", 16 * MIB)
    scene.answer(name)
    scene.stage("data")
    scene.change(name, state="Absent")
    assert scene.answer(name)["error"]["code"] == "FAILED_PRECONDITION"
    scene.wait_known()
    cache = scene.agents[0].cache
    cache.stop()
    cache._thread.join()
    scene.change(name, state="Present")
    scene.unstage("data")
    scene.survey().look()
    assert scene.answer(name)["phase"] == "Ready"
    assert scene.rig.volumes.get("data").record


def test_a_look_whose_work_the_api_did_not_take_is_followed_up(scene: Scene) -> None:
    scene.start()
    for name in ("used", "hurt"):
        scene.answer(scene.want(name, 16 * MIB))
    scene.stage("used")
    scene.change("used", state="Absent")
    assert scene.answer("used")["error"]["code"] == "FAILED_PRECONDITION"
    scene.unstage("used")
    scene.rig.host.remove_tree(scene.rig.pool_of("hurt").layout.image(volume_id("hurt")))
    scene.rig.volumes.create(_request("lost", 16 * MIB, {}), PATIENCE_S)
    scene.wait_known()
    for method in ("PATCH", "PATCH", "GET"):
        scene.cluster.refuse(method, 503)
    scene.survey().look()  # once
    scene.wait_gone("used")
    scene.cluster.until(VOLUMES, "hurt", lambda now: _unhealthy(now) != "")
    assert scene.answer("lost")["phase"] == "Ready"


def test_what_was_not_heard_of_is_found_by_the_next_look(scene: Scene) -> None:
    scene.start()
    cache = scene.agents[0].cache
    listeners, cache._listeners = cache._listeners, []
    name = scene.want("data", 16 * MIB)
    scene.wait_known()
    cache._listeners = listeners
    assert "status" not in scene.cluster.get(VOLUMES, name)
    scene.look()
    assert scene.answer(name)["phase"] == "Ready"


def test_nothing_is_remembered_of_what_is_gone(scene: Scene) -> None:
    scene.start()
    agent = scene.agents[0]
    name = scene.want("data", 16 * MIB)
    scene.answer(name)
    scene.wait_known()
    agent.surveyed([])  # as if its data were gone
    agent.ended("data")
    agent.ended("a copy that nobody wants any more")
    scene.change(name, state="Absent")
    scene.wait_gone(name)
    until(lambda: agent.cache.get(name) is None, "it is gone here too")
    scene.look()
    scene.answer(scene.want("other", 16 * MIB))
    until(lambda: not agent._queue._under_way, "all is done")
    kept = [agent._fresh, *(marks._marked for marks in (agent._strays, agent._again, agent._suspects))]
    assert kept == [{}, {}, {}, {}]


def test_what_was_wanted_while_the_node_was_down(scene: Scene) -> None:
    scene.start()
    for one in ("old", "grown"):
        scene.answer(scene.want(one, 16 * MIB))
    scene.stop()
    scene.want("new", 16 * MIB)
    scene.change("old", state="Absent")
    scene.change("grown", capacity={"requiredBytes": 32 * MIB, "limitBytes": 0})
    scene.start()
    scene.answer("new")
    scene.wait_gone("old")
    assert scene.answer("grown")["capacityBytes"] == 32 * MIB


def test_another_node_s_volumes_are_not_touched(scene: Scene) -> None:
    scene.start()
    scene.want("theirs", 16 * MIB, node="node-2")
    scene.answer(scene.want("ours", 16 * MIB))
    assert [view.id for view in scene.rig.volumes.list("", 0)[0]] == ["ours"]


def test_what_was_made_is_removed_where_it_was_moved_meanwhile(scene: Scene) -> None:
    made, moved = threading.Event(), threading.Event()

    def pause(point: str) -> None:
        if point == "agent-create:done":
            made.set()
            assert moved.wait(20)

    scene.at_point = pause
    scene.start()
    name = scene.want("data", 16 * MIB)
    assert made.wait(20)
    scene.change(name, nodeName="node-2")
    moved.set()
    until(lambda: scene.rig.volumes.list("", 0)[0] == [], "it is removed here")
    found = scene.cluster.get(VOLUMES, name)
    assert "status" not in found


def test_what_was_made_is_removed_where_nobody_wants_it_any_more(scene: Scene) -> None:
    scene.at_point = lambda point: scene.cluster.lose(VOLUMES, "data") if point == "agent-create:done" else None
    scene.start()
    scene.want("data", 16 * MIB)
    until(lambda: scene.writes() and scene.rig.volumes.list("", 0)[0] == [], "it is removed here")


def test_a_volume_that_was_acknowledged_is_never_made_again(scene: Scene) -> None:
    scene.start()
    name = scene.want("data", 16 * MIB, {**CLAIM})
    scene.answer(name)
    scene.rig.host.remove_tree(scene.rig.pool_of("data").layout.volume(volume_id("data")))
    scene.change(name)
    status = scene.answer(name)
    assert status["error"]["code"] == "NOT_FOUND"
    assert scene.rig.volumes.list("", 0)[0] == []


def test_a_lost_answer_is_given_again(scene: Scene) -> None:
    scene.start()
    scene.cluster.lose_answer("PATCH")
    name = scene.want("data", 16 * MIB)
    assert scene.answer(name)["phase"] == "Ready"
    for method in ("PATCH", "DELETE"):
        scene.cluster.lose_answer(method)
    scene.change(name, state="Absent")
    scene.wait_gone(name)
    until(lambda: not scene.rig.volumes.list("", 0)[0], "it is gone")


def test_what_was_acknowledged_though_that_was_lost_on_the_way_back_is_never_withdrawn(scene: Scene) -> None:
    scene.start()
    scene.cluster.lose_answer("PATCH")
    name = scene.want("data", 16 * MIB)
    scene.answer(name)
    until(
        lambda: answered(scene.agents[0].cache.get(name) or {"metadata": {"generation": 1}}), "the agent has heard it"
    )
    scene.cluster.lose(VOLUMES, name)
    until(lambda: scene.agents[0].cache.get(name) is None, "it is forgotten")
    scene.look()
    assert scene.answer(name)["volumeId"] == "data"
    assert [one for one, _ in _volumes(scene.rig)] == ["data"]


def test_an_outage(scene: Scene) -> None:
    scene.at_point = lambda point: scene.cluster.down() if point == "agent-create:done" else None
    scene.start()
    name = scene.want("data", 16 * MIB)
    until(lambda: scene.rig.volumes.list("", 0)[0] != [], "it is made")
    scene.want("later", 16 * MIB)
    scene.at_point = lambda _point: None
    until(lambda: scene.agents[0].unconnected != "", "it has noticed")
    assert not scene.agents[0].problem
    scene.cluster.up()
    assert scene.answer(name)["phase"] == "Ready"
    assert scene.answer("later")["phase"] == "Ready"
    assert not scene.agents[0].unconnected


def test_without_an_api_it_waits(scene: Scene) -> None:
    scene.want("data", 16 * MIB)
    scene.cluster.down()
    scene.rig.volumes.create(_request("lost", 16 * MIB, {}), PATIENCE_S)
    scene.start()
    scene.survey().look()
    assert not scene.agents[0].problem
    scene.cluster.up()
    scene.answer("data")
    scene.agents[0].catch_up()
    scene.answer("lost")


def test_all_data_is_gone_when_the_api_comes_back(scene: Scene) -> None:
    scene.start()
    scene.answer(scene.want("data", 16 * MIB))
    scene.stop()
    scene.rig.host.remove_tree(scene.rig.pool_of("data").layout.volume(volume_id("data")))
    scene.cluster.down()
    scene.start()
    scene.survey().look()  # and sees nothing
    scene.cluster.up()
    scene.wait_known()
    scene.agents[0].catch_up()
    scene.cluster.until(VOLUMES, "data", lambda now: now is not None and "gone" in resources.problem_of(now))


def test_an_agent_that_hears_of_nothing_any_more_says_so(scene: Scene) -> None:
    scene.start()
    scene.wait_known()
    assert not scene.agents[0].problem
    scene.agents[0].cache.stop()
    scene.cluster.cut()
    until(lambda: scene.agents[0].problem == "its thread has died", "it is told")


def test_deleted_by_hand(scene: Scene) -> None:
    scene.start()
    name = scene.want(f"pvc-{UID}", 16 * MIB, CLAIM)
    scene.answer(name)
    scene.cluster.delete(VOLUMES, name)
    assert scene.answer(name)["phase"] == "Ready"
    assert [view.id for view in scene.rig.volumes.list("", 0)[0]] == [f"pvc-{UID}"]
    until(lambda: scene.events() == [("PersistentVolumeClaim", "DeletionHeldBack")], "it is told")
    (event,) = scene.cluster.all(resources.events("shop"))
    assert event["involvedObject"]["uid"] == UID
    scene.change(name, state="Absent")
    scene.wait_gone(name)
    until(lambda: not scene.rig.volumes.list("", 0)[0], "it is gone")


class TestAdoption:
    def test_a_volume_without_a_resource_gets_one(self, scene: Scene) -> None:
        made = scene.rig.volumes.create(_request("data", 16 * MIB, {"mkfsOptions": "-i 8192", **CLAIM}), PATIENCE_S)
        scene.start()
        scene.look()
        status = scene.answer("data")
        assert (status["phase"], status["capacityBytes"]) == ("Ready", 16 * MIB)
        found = scene.cluster.get(VOLUMES, "data")
        assert found["spec"]["claim"] == {"namespace": "shop", "name": "db"}
        assert made.record is not None
        assert found["spec"]["parameters"] == dict(made.record.parameters)

    def test_one_that_the_api_lost(self, scene: Scene) -> None:
        scene.start()
        name = scene.want("data", 16 * MIB)
        scene.answer(name)
        scene.cluster.lose(VOLUMES, name)
        until(lambda: scene.agents[0].cache.get(name) is None, "it is forgotten")
        scene.look()
        assert scene.answer(name)["volumeId"] == "data"

    def test_not_on_a_node_that_has_left_the_cluster(self, scene: Scene) -> None:
        scene.cluster.create(resources.NODES, {"metadata": {"name": NODE}})
        scene.rig.volumes.create(_request("first", 16 * MIB, {}), PATIENCE_S)
        scene.start()
        scene.look()
        scene.answer("first")
        scene.wait_known()
        scene.cluster.delete(resources.NODES, NODE)
        scene.cluster.lose(VOLUMES, "first")  # the controller forgets it
        until(lambda: scene.agents[0].cache.get("first") is None, "it is forgotten")
        scene.look()
        until(lambda: scene.agents[0]._queue._failures, "that was tried")
        assert scene.cluster.all(VOLUMES) == []
        scene.cluster.create(resources.NODES, {"metadata": {"name": NODE}})
        scene.answer("first")  # it came back

    def test_one_that_is_being_removed_is_not_brought_back(self, scene: Scene) -> None:
        scene.start()
        name = scene.want("data", 16 * MIB)
        scene.answer(name)
        scene.wait_known()
        survey = scene.survey()
        survey.look()
        seen = survey.found
        scene.change(name, state="Absent")
        scene.wait_gone(name)
        until(lambda: scene.agents[0].cache.get(name) is None, "it is gone here too")
        scene.agents[0].surveyed([one.view for one in seen])  # a look that began before
        scene.answer(scene.want("other", 16 * MIB))
        assert [one["metadata"]["name"] for one in scene.cluster.all(VOLUMES)] == ["other"]

    def test_another_node_s_is_reported_and_left(self, scene: Scene) -> None:
        scene.rig.volumes.create(_request("data", 16 * MIB, {}), PATIENCE_S)
        scene.want("data", 16 * MIB, node="node-2")
        scene.start()
        scene.look()
        until(lambda: scene.events() == [("Node", "VolumeOfAnotherNode")], "it is reported")
        assert [view.id for view in scene.rig.volumes.list("", 0)[0]] == ["data"]
        scene.change("data", nodeName=NODE)  # as the Event says
        assert scene.answer("data")["phase"] == "Ready"

    @pytest.mark.parametrize("same_disk", [True, False])
    def test_what_a_dead_agent_made_and_another_node_made_since_is_removed(
        self, scene: Scene, *, same_disk: bool
    ) -> None:
        scene.rig.volumes.create(_request("data", 16 * MIB, {}), PATIENCE_S)
        for node, uuid in ((NODE, "one"), ("node-2", "one" if same_disk else "another")):
            pool = new_pool(parse_pool("loops=path:/x"), node)
            scene.cluster.create(resources.POOLS, pool)
            scene.cluster.patch(resources.POOLS, pool["metadata"]["name"], {"status": {"uuid": uuid}}, status=True)
        scene.want("data", 16 * MIB, node="node-2")
        theirs = ready_status(scene.cluster.get(VOLUMES, "data"), scene.rig.volumes.get("data"), now=NOW)
        scene.cluster.patch(VOLUMES, "data", theirs, status=True)
        scene.start()
        scene.look()
        if same_disk:
            until(lambda: scene.events() == [("Node", "VolumeOfAnotherNode")], "it is reported")
        else:
            until(lambda: _volumes(scene.rig) == [], "it is removed")
            assert scene.events() == []

    def test_one_given_to_a_node_that_does_not_have_it_is_not_made_there(self, scene: Scene) -> None:
        scene.start()
        name = scene.want("data", 16 * MIB, node="node-2")
        view = replace(scene.rig.volumes.create(_request("other", 16 * MIB, {}), PATIENCE_S), id=volume_id("data"))
        scene.cluster.patch(VOLUMES, name, ready_status(scene.cluster.get(VOLUMES, name), view, now=NOW), status=True)
        for _ in range(2):
            scene.change(name, nodeName=NODE)
            assert scene.answer(name)["error"]["code"] == "NOT_FOUND"
        assert [one for one, _ in _volumes(scene.rig)] == ["other"]


class TestHealth:
    def test_data_that_is_gone_is_told_once(self, scene: Scene) -> None:
        scene.start()
        name = scene.want(f"pvc-{UID}", 16 * MIB, CLAIM)
        scene.answer(name)
        layout = scene.rig.pool_of(name).layout
        scene.rig.host.remove_tree(layout.image(volume_id(name)))
        scene.look()
        found = scene.cluster.until(VOLUMES, name, lambda now: _unhealthy(now) != "")
        assert "gone" in _unhealthy(found)
        until(lambda: scene.events() == [("PersistentVolumeClaim", "VolumeUnhealthy")], "it is told")
        writes = scene.writes()
        scene.look()
        scene.answer(scene.want("other", 16 * MIB))
        assert len(scene.writes()) == len(writes) + 1

    def test_it_recovers(self, scene: Scene) -> None:
        scene.start()
        name = scene.want("data", 16 * MIB)
        scene.answer(name)
        image = scene.rig.pool_of(name).layout.image(volume_id(name))
        scene.rig.host.rename(image, f"{image}.away")
        scene.look()
        scene.cluster.until(VOLUMES, name, lambda now: _unhealthy(now) != "")
        scene.rig.host.rename(f"{image}.away", image)
        scene.look()
        scene.cluster.until(VOLUMES, name, lambda now: _unhealthy(now) == "")

    def test_a_pool_that_is_missing(self, scene: Scene) -> None:
        scene.start()
        name = scene.want("data", 16 * MIB)
        scene.answer(name)
        scene.rig.host.unmount(scene.rig.pools.get("loops").root)
        scene.look()
        found = scene.cluster.until(VOLUMES, name, lambda now: _unhealthy(now) != "")
        assert found["status"]["phase"] == "Ready"


def _unhealthy(found: Object | None) -> str:
    """Return what is said to be wrong with a volume."""
    return volume_view(found).problem if found is not None else ""


def _volumes(rig: Rig) -> list[tuple[str, Bytes]]:
    """Return the volumes there are, with their sizes."""
    return [(view.id, view.record.size) for view in rig.volumes.list("", 0)[0] if view.record is not None]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the one that dies
@pytest.mark.parametrize("operation", ["create", "expand", "delete"])
def test_every_point_is_survived(scene: Scene, operation: str) -> None:
    """The agent names the points itself; at each it stops as if killed, and another one goes on."""
    points: list[str] = []
    scene.at_point = points.append
    scene.start()
    _live(scene, "traced", lambda _step: None)
    found = [point for point in points if point.startswith(f"agent-{operation}:")]
    assert len(found) >= 2
    for number, point in enumerate(found):
        name = f"volume-{number}"
        _live(scene, name, partial(_die, scene, point, operation))
        assert _volumes(scene.rig) == []


def _live(scene: Scene, name: str, before: Callable[[str], None]) -> None:
    """Let a volume live; *before* each step something may be arranged."""
    before("create")
    scene.want(name, 16 * MIB)
    assert scene.answer(name)["capacityBytes"] == 16 * MIB
    before("expand")
    scene.change(name, capacity={"requiredBytes": 32 * MIB, "limitBytes": 0})
    assert scene.answer(name)["capacityBytes"] == 32 * MIB
    before("delete")
    scene.change(name, state="Absent")
    scene.wait_gone(name)
    until(lambda: _volumes(scene.rig) == [], "its data is gone")


def _die(scene: Scene, point: str, operation: str, step: str) -> None:
    """Let the agent of now come to its end at a point, and another one start."""
    if step != operation:
        return

    def stop_here(name: str) -> None:
        if name == point:
            scene.at_point = lambda _name: None
            threading.Thread(target=scene.start).start()
            raise SystemExit  # ends this worker's thread, and nothing more is done

    scene.at_point = stop_here
