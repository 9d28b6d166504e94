"""The agent and its LocalSnapshots: as with volumes, and that one may be copied for a while."""

from __future__ import annotations

import errno
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.api import SnapshotView
from csi_local.engine.sources import snapshot_of
from csi_local.engine.survey import seen
from csi_local.kube import resources
from csi_local.kube.resources import ABSENT, SNAPSHOTS
from csi_local.kube.snapshot_kind import SnapshotKind
from csi_local.kube.snapshot_resource import new_snapshot, snapshot_view
from csi_local.model.errors import NotFound
from csi_local.model.snapshot import SnapshotRequest, snapshot_id
from tests.observe import until
from tests.unit.rig import PATIENCE_S, Rig, request
from tests.unit.stage import NODE, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from csi_local.kube.api import Object
    from tests.fake.kubernetes import Kubernetes

MIB = 1 << 20
UID = "0a1b2c3d-0000-1111-2222-333344445555"
LABELS = {
    "csi.storage.k8s.io/volumesnapshot/name": "daily",
    "csi.storage.k8s.io/volumesnapshot/namespace": "shop",
}


class Scene(Stage[SnapshotView]):
    """A node with a volume and its snapshots."""

    collection = SNAPSHOTS

    def kind(self) -> SnapshotKind:
        """Snapshots of the rig; what is said of copies that end, the agent hears."""
        self.rig.copies.listen(self._copied)
        return SnapshotKind(self.rig.snapshots, NODE)

    def _copied(self, key: str) -> None:
        if (snapshot := snapshot_of(key)) and self.agents:
            self.agents[0].ended(snapshot)

    def look(self) -> None:
        """Have the node look at its snapshots."""
        self.wait_known()
        self.agents[0].surveyed(
            list(seen(self.rig.pools, lambda pool: pool.store.snapshots.all(), self.rig.snapshots.get))
        )

    def want(self, name: str = "daily", source: str = "data", labels: Mapping[str, str] | None = None) -> str:
        """Want a snapshot; return the name of its resource."""
        return self.ask(new_snapshot(SnapshotRequest(name=name, source=source, labels=labels or {}), NODE))

    def taken(self) -> list[str]:
        """The snapshots there are."""
        return [view.id for view in self.rig.snapshots.list("", 0)[0] if view.ready]

    def lose_data(self, name: str) -> None:
        """Take a snapshot away behind the agent's back."""
        layout = self.rig.pools.find_snapshot(name)[0].layout
        self.rig.host.remove_tree(layout.snapshot(snapshot_id(name)))


def _scene(cluster: Kubernetes, rig: Rig) -> Iterator[Scene]:
    made = Scene(cluster, rig)
    rig.volumes.create(request("data", 16 * MIB, {}), PATIENCE_S)
    yield made
    made.stop()


@pytest.fixture
def scene(cluster: Kubernetes, rig: Rig) -> Iterator[Scene]:
    yield from _scene(cluster, rig)


def test_a_snapshot_s_life(scene: Scene) -> None:
    scene.start()
    name = scene.want()
    status = scene.answer(name)
    assert (status["phase"], status["readyToUse"], status["sizeBytes"]) == ("Ready", True, 16 * MIB)
    shown = snapshot_view(scene.cluster.get(SNAPSHOTS, name))
    there = scene.rig.snapshots.get("daily")
    assert shown.record is not None
    assert there.record is not None
    assert (shown.record.source, shown.record.created) == ("data", there.record.created // 1000 * 1000)

    scene.change(name, state=ABSENT)
    scene.wait_gone(name)
    with pytest.raises(NotFound):
        scene.rig.snapshots.get("daily")
    until(lambda: scene.told == [("create-snapshot", "OK"), ("delete-snapshot", "OK")], "all is counted")
    path = f"{SNAPSHOTS}/{name}"
    assert scene.writes() == [f"PATCH {path}/status", f"PATCH {path}", f"DELETE {path}"]


def test_it_outlives_its_source(scene: Scene) -> None:
    scene.start()
    name = scene.want()
    scene.answer(name)
    scene.rig.volumes.delete("data", PATIENCE_S)
    scene.change(name)
    assert scene.answer(name)["readyToUse"]
    scene.look()
    assert scene.answer(scene.want("other"))["error"]["code"] == "NOT_FOUND"
    assert scene.taken() == ["daily"]
    assert _problem(scene.cluster.get(SNAPSHOTS, name)) == ""


def test_a_name_that_is_taken_on_the_disk(scene: Scene) -> None:
    scene.rig.volumes.create(request("other", 16 * MIB, {}), PATIENCE_S)
    scene.rig.snapshots.create(SnapshotRequest(name="daily", source="other"), PATIENCE_S)
    scene.start()
    status = scene.answer(scene.want())
    assert (status["phase"], status["error"]["code"]) == ("Failed", "ALREADY_EXISTS")
    assert "snapshotId" not in status


def test_one_that_was_acknowledged_is_never_taken_again(scene: Scene) -> None:
    scene.start()
    name = scene.want()
    scene.answer(name)
    scene.lose_data(name)
    scene.change(name)
    assert scene.answer(name)["error"]["code"] == "NOT_FOUND"
    assert scene.taken() == []


def test_what_was_taken_is_removed_where_nobody_wants_it_any_more(scene: Scene) -> None:
    scene.at_point = lambda at: scene.cluster.lose(SNAPSHOTS, "daily") if at == "agent-create-snapshot:done" else None
    scene.start()
    scene.want()
    until(lambda: scene.writes() and scene.taken() == [], "it is removed here")


def test_what_was_wanted_while_the_node_was_down(scene: Scene) -> None:
    scene.start()
    scene.answer(scene.want("old"))
    scene.stop()
    scene.want("new")
    scene.change("old", state=ABSENT)
    scene.start()
    scene.answer("new")
    scene.wait_gone("old")
    assert scene.taken() == ["new"]


def test_deleted_by_hand(scene: Scene) -> None:
    scene.start()
    name = scene.want(f"snapshot-{UID}", labels=LABELS)
    scene.answer(name)
    scene.cluster.delete(SNAPSHOTS, name)
    assert scene.answer(name)["readyToUse"]
    until(lambda: scene.events() == [("VolumeSnapshot", "DeletionHeldBack")], "it is told")
    (event,) = scene.cluster.all(resources.events("shop"))
    assert event["involvedObject"]["uid"] == UID
    assert scene.taken() == [name]


class TestLostAndFound:
    def test_one_without_a_resource_gets_one(self, scene: Scene) -> None:
        scene.rig.snapshots.create(SnapshotRequest(name="daily", source="data", labels=LABELS), PATIENCE_S)
        scene.start()
        scene.look()
        assert scene.answer("daily")["readyToUse"]
        found = scene.cluster.get(SNAPSHOTS, "daily")
        assert (found["spec"]["sourceVolume"], found["spec"]["parameters"]) == ("data", LABELS)

    def test_data_that_is_gone_is_told_and_may_come_back(self, scene: Scene) -> None:
        scene.start()
        name = scene.want(labels=LABELS)
        scene.answer(name)
        pool = scene.rig.pools.find_snapshot(name)[0]
        image = f"{pool.layout.snapshot(snapshot_id(name))}/disk.img"
        scene.rig.host.rename(image, f"{image}.away")
        scene.look()
        found = scene.cluster.until(SNAPSHOTS, name, lambda now: _problem(now) != "")
        assert "gone" in _problem(found)
        until(lambda: scene.events() == [("VolumeSnapshot", "SnapshotUnhealthy")], "it is told")
        scene.rig.host.rename(f"{image}.away", image)
        scene.look()
        scene.cluster.until(SNAPSHOTS, name, lambda now: _problem(now) == "")

    def test_all_of_it_gone(self, scene: Scene) -> None:
        scene.start()
        name = scene.want()
        scene.answer(name)
        scene.lose_data(name)
        scene.look()
        scene.cluster.until(SNAPSHOTS, name, lambda now: "gone" in _problem(now))

    def test_a_record_that_nobody_can_read(self, scene: Scene) -> None:
        scene.start()
        scene.answer(scene.want())
        pool = scene.rig.pools.find_snapshot("daily")[0]
        record = f"{pool.layout.snapshot(snapshot_id('daily'))}/snapshot.json"
        scene.rig.host.remove(record)
        scene.rig.host.write_new_file(record, b"{")
        scene.look()
        found = scene.cluster.until(SNAPSHOTS, "daily", lambda now: _problem(now) != "")
        assert snapshot_view(found).record is not None
        scene.change("daily", state=ABSENT)
        assert scene.answer("daily")["error"]["code"] == "FAILED_PRECONDITION"
        assert scene.taken() == ["daily"]


class Background(Scene):
    """A node whose pool cannot share blocks."""

    def copy(self) -> None:
        """Let the copy go on to its end."""
        until(lambda: self.rig.spawned, "there is a copy")
        self.rig.spawned.pop(0)()

    def pending(self, name: str) -> Object:
        """Wait until it is said that a copy is under way."""
        status = self.answer(name)
        assert (status["phase"], status["readyToUse"], status["snapshotId"]) == ("Pending", False, name)
        return status


class TestCopies:
    @pytest.fixture
    def scene(self, cluster: Kubernetes) -> Iterator[Background]:
        rig = Rig("ext4=image:/pools/ext4.img,size=4Gi,fs=ext4,allocation=thin", node_name=NODE)
        rig.in_background = True
        rig.start()
        rig.volumes.create(request("data", 16 * MIB, {}), PATIENCE_S)
        made = Background(cluster, rig)
        made.start()
        yield made
        made.stop()

    def test_is_ready_when_it_is_and_says_so_once(self, scene: Background) -> None:
        name = scene.want()
        begun = scene.pending(name)
        assert scene.rig.snapshots.list("", 0)[0][0].ready is False
        scene.copy()
        status = scene.cluster.until(SNAPSHOTS, name, _ready)["status"]
        assert (status["phase"], status["creationTime"]) == ("Ready", begun["creationTime"])
        assert scene.taken() == [name]
        assert scene.writes() == [f"PATCH {SNAPSHOTS}/{name}/status"] * 2

    def test_whose_end_nobody_heard_of_is_found_by_the_next_look(self, scene: Background) -> None:
        name = scene.want()
        scene.pending(name)
        scene.look()
        scene.wait_known()
        scene.rig.copies._listeners.clear()
        scene.copy()
        scene.look()
        scene.cluster.until(SNAPSHOTS, name, _ready)
        assert scene.writes() == [f"PATCH {SNAPSHOTS}/{name}/status"] * 2

    def test_asked_again_in_the_middle(self, scene: Background) -> None:
        name = scene.want()
        begun = scene.pending(name)
        scene.change(name)
        assert scene.pending(name)["creationTime"] == begun["creationTime"]
        scene.copy()
        scene.cluster.until(SNAPSHOTS, name, _ready)
        assert not scene.rig.spawned

    def test_that_fails(self, scene: Background) -> None:
        name = scene.want()
        scene.pending(name)
        scene.rig.host.fail("copy_image", errno.EIO)
        scene.copy()
        failed = scene.cluster.until(SNAPSHOTS, name, lambda now: now is not None and now["status"].get("error"))
        assert (failed["status"]["phase"], failed["status"]["error"]["code"]) == ("Failed", "UNAVAILABLE")
        assert "snapshotId" not in failed["status"]
        scene.rig.host.calm()
        scene.change(name)
        scene.pending(name)
        scene.copy()
        scene.cluster.until(SNAPSHOTS, name, _ready)

    def test_cut_short_by_a_restart_begins_anew(self, scene: Background) -> None:
        name = scene.want()
        scene.pending(name)
        scene.stop()
        scene.rig.spawned.clear()
        scene.rig.crash()
        scene.start()
        scene.copy()
        scene.cluster.until(SNAPSHOTS, name, _ready)

    def test_cut_short_by_a_restart_and_its_source_is_gone(self, scene: Background) -> None:
        name = scene.want()
        scene.pending(name)
        scene.stop()
        scene.rig.spawned.clear()
        scene.rig.crash()
        scene.rig.volumes.delete("data", PATIENCE_S)
        scene.start()
        failed = scene.cluster.until(SNAPSHOTS, name, lambda now: now is not None and now["status"].get("error"))
        assert failed["status"]["error"]["code"] == "NOT_FOUND"

    def test_is_given_up_where_it_is_wanted_no_more(self, scene: Background) -> None:
        name = scene.want()
        scene.pending(name)
        scene.change(name, state=ABSENT)
        assert scene.answer(name)["error"]["code"] == "ABORTED"
        scene.copy()
        scene.wait_gone(name)  # that it is to go was said
        assert scene.taken() == []
        assert not scene.rig.spawned

    def test_its_source_stays_until_it_is_done(self, scene: Background) -> None:
        name = scene.want()
        scene.pending(name)
        with pytest.raises(Exception, match="is being copied"):
            scene.rig.volumes.delete("data", PATIENCE_S)
        scene.copy()
        scene.cluster.until(SNAPSHOTS, name, _ready)
        scene.rig.volumes.delete("data", PATIENCE_S)


def _ready(found: Object | None) -> bool:
    return found is not None and bool(found.get("status", {}).get("readyToUse"))


def _problem(found: Object | None) -> str:
    return resources.problem_of(found) if found is not None else ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the one that dies
@pytest.mark.parametrize("operation", ["create", "delete"])
def test_every_point_is_survived(scene: Scene, operation: str) -> None:
    """The agent names the points itself; at each it stops as if killed, and another one goes on."""
    points: list[str] = []
    scene.at_point = points.append
    scene.start()
    _live(scene, "traced", lambda _step: None)
    found = [point for point in points if point.startswith(f"agent-{operation}-snapshot:")]
    assert len(found) >= 2
    for number, point in enumerate(found):
        _live(scene, f"snapshot-{number}", partial(_die, scene, point, operation))
        assert scene.taken() == []


def _live(scene: Scene, name: str, before: Callable[[str], None]) -> None:
    """Let a snapshot live; *before* each step something may be arranged."""
    before("create")
    scene.want(name)
    assert scene.answer(name)["readyToUse"]
    before("delete")
    scene.change(name, state=ABSENT)
    scene.wait_gone(name)
    until(lambda: scene.taken() == [], "its data is gone")


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
