"""Snapshots, and volumes made from them and from each other, on a machine in memory."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.copies import Copies
from csi_local.model.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    SyscallFailed,
)
from csi_local.model.quantity import MIB
from csi_local.model.snapshot import ContentSource, SnapshotRequest, SourceKind
from csi_local.model.volume import FormatState
from tests.unit.rig import PATIENCE_S, Rig, capability, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_local.engine.api import SnapshotView, VolumeView
    from csi_local.plan.request import VolumeRequest

XFS = "main=image:/pools/main.img,size=4Gi"
BTRFS = "main=image:/pools/main.img,size=4Gi,fs=btrfs"
EXT4 = "main=image:/pools/main.img,size=4Gi,fs=ext4"
OTHER = "other=image:/pools/other.img,size=4Gi"
LOOP = {"backend": "loopfile"}
DIRECTORY = {"backend": "directory"}
STAGING = "/kubelet/staging"


class Bench:
    """A driver on a machine in memory, with its verbs."""

    def __init__(self, *pools: str) -> None:
        self.rig = Rig(*pools)
        self.rig.start()

    def volume(self, name: str, size: int = 64 * MIB, parameters: dict[str, str] = LOOP, *, block: bool = False) -> str:
        return self.rig.volumes.create(request(name, size, parameters, block=block), PATIENCE_S).id

    def asked(
        self, name: str, source: ContentSource, size: int = 0, parameters: dict[str, str] = LOOP
    ) -> VolumeRequest:
        return dataclasses.replace(request(name, size, parameters), source=source)

    def restore(self, name: str, source: ContentSource, size: int = 0, parameters: dict[str, str] = LOOP) -> VolumeView:
        return self.rig.volumes.create(self.asked(name, source, size, parameters), PATIENCE_S)

    def snapshot(self, name: str, of: str) -> SnapshotView:
        return self.rig.snapshots.create(SnapshotRequest(name=name, source=of), PATIENCE_S)

    def stage(self, volume: str, at: str = STAGING) -> None:
        self.rig.host.make_dirs(at)
        self.rig.publisher.stage(volume, at, capability(), PATIENCE_S)

    def unstage(self, volume: str, at: str = STAGING) -> None:
        self.rig.publisher.unstage(volume, at, PATIENCE_S)

    def ids(self, source: str = "") -> list[str]:
        return [view.id for view in self.rig.snapshots.list("", 0, source)[0]]

    def frozen(self, at: str = STAGING) -> bool:
        return self.rig.host.walk(at, "test").mount.filesystem.frozen


def of_snapshot(snapshot: str) -> ContentSource:
    return ContentSource(kind=SourceKind.SNAPSHOT, id=snapshot)


def of_volume(volume: str) -> ContentSource:
    return ContentSource(kind=SourceKind.VOLUME, id=volume)


@pytest.fixture(params=[XFS, BTRFS], ids=["xfs", "btrfs"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.mark.parametrize("parameters", [LOOP, DIRECTORY], ids=["loopfile", "directory"])
class TestWhatWasThere:
    def test_is_restored_after_the_source_is_gone(self, bench: Bench, parameters: dict[str, str]) -> None:
        volume = bench.volume("data", parameters=parameters)
        bench.stage(volume)
        bench.rig.host.replace_file(f"{STAGING}/marker", b"then")
        view = bench.snapshot("daily", volume)
        assert view.ready
        assert not bench.frozen()
        bench.rig.host.replace_file(f"{STAGING}/marker", b"now")
        bench.unstage(volume)
        bench.rig.volumes.delete(volume, PATIENCE_S)
        restored = bench.restore("again", of_snapshot(view.id), parameters=parameters)
        assert restored.record is not None
        assert restored.record.size == 64 * MIB
        bench.stage(restored.id)
        assert bench.rig.host.read_file(f"{STAGING}/marker") == b"then"

    def test_is_in_a_clone_of_a_volume_in_use(self, bench: Bench, parameters: dict[str, str]) -> None:
        volume = bench.volume("data", parameters=parameters)
        bench.stage(volume)
        bench.rig.host.replace_file(f"{STAGING}/marker", b"then")
        clone = bench.restore("clone", of_volume(volume), parameters=parameters)
        bench.stage(clone.id, "/kubelet/other")
        assert bench.rig.host.read_file("/kubelet/other/marker") == b"then"
        assert not bench.frozen()

    def test_comes_back_in_a_larger_volume(self, bench: Bench, parameters: dict[str, str]) -> None:
        volume = bench.volume("data", parameters=parameters)
        bench.stage(volume)
        snapshot = bench.snapshot("daily", volume).id
        larger = bench.restore("larger", of_snapshot(snapshot), 128 * MIB, parameters)
        bench.stage(larger.id, "/kubelet/other")
        assert larger.record is not None
        assert larger.record.size == 128 * MIB
        if parameters is LOOP:
            assert bench.rig.host.walk("/kubelet/other", "test").mount.filesystem.grown == 128 * MIB

    def test_is_found_by_a_new_driver(self, bench: Bench, parameters: dict[str, str]) -> None:
        volume = bench.volume("data", parameters=parameters)
        snapshot = bench.snapshot("daily", volume)
        promised = bench.rig.pools.all()[0]._sum
        bench.rig.crash()
        assert bench.rig.snapshots.get(snapshot.id).record == snapshot.record
        assert bench.rig.pools.all()[0]._sum == promised

    def test_takes_room_and_gives_it_back(self, bench: Bench, parameters: dict[str, str]) -> None:
        volume = bench.volume("data", parameters=parameters)
        bench.stage(volume)
        bench.rig.host.replace_file(f"{STAGING}/marker", b"x" * MIB)
        bench.rig.pools.sample()
        before = bench.rig.pools.views()[0].room
        snapshot = bench.snapshot("daily", volume)
        assert snapshot.record is not None
        assert snapshot.record.held >= MIB
        assert bench.rig.pools.views()[0].room <= before - MIB + MIB // 16
        bench.rig.snapshots.delete(snapshot.id, PATIENCE_S)
        bench.rig.sweeper.drain()
        assert bench.ids() == []
        assert bench.rig.pools.views()[0].room == before


class TestRequests:
    def test_an_identical_one_finds_it(self, bench: Bench) -> None:
        volume = bench.volume("data")
        assert bench.snapshot("daily", volume) == bench.snapshot("daily", volume)
        assert bench.ids() == ["daily"]

    def test_another_volume_is_refused(self, bench: Bench) -> None:
        bench.snapshot("daily", bench.volume("data"))
        with pytest.raises(AlreadyExists):
            bench.snapshot("daily", bench.volume("other"))

    def test_what_is_not_there(self, bench: Bench) -> None:
        with pytest.raises(NotFound):
            bench.snapshot("daily", "none")
        for source in (of_snapshot("none"), of_volume("none"), of_volume("../x")):
            with pytest.raises(NotFound):
                bench.restore("again", source)
        bench.rig.snapshots.delete("none", PATIENCE_S)
        bench.rig.snapshots.delete("../none", PATIENCE_S)

    def test_a_volume_and_a_snapshot_may_have_one_name(self, bench: Bench) -> None:
        volume = bench.volume("same")
        snapshot = bench.snapshot("same", volume)
        assert (bench.rig.volumes.get("same").id, snapshot.id) == ("same", "same")

    def test_an_identical_retry_of_a_restore_outlives_its_source(self, bench: Bench) -> None:
        snapshot = bench.snapshot("daily", bench.volume("data")).id
        first = bench.restore("again", of_snapshot(snapshot))
        bench.rig.snapshots.delete(snapshot, PATIENCE_S)
        assert bench.restore("again", of_snapshot(snapshot)) == first
        for other in (of_volume("data"), of_snapshot("other")):
            with pytest.raises(AlreadyExists):
                bench.restore("again", other)
        with pytest.raises(AlreadyExists):
            bench.rig.volumes.create(request("again", 0, LOOP), PATIENCE_S)

    def test_too_small_a_limit(self, bench: Bench) -> None:
        snapshot = bench.snapshot("daily", bench.volume("data")).id
        asked = dataclasses.replace(request("again", 0, LOOP, limit=32 * MIB), source=of_snapshot(snapshot))
        with pytest.raises(OutOfRange):
            bench.rig.volumes.create(asked, PATIENCE_S)

    @pytest.mark.parametrize(
        ("parameters", "block"),
        [(DIRECTORY, False), ({"csi.storage.k8s.io/fstype": "xfs"}, False), (LOOP, True)],
        ids=["directory", "xfs", "block"],
    )
    def test_another_kind_is_refused(self, bench: Bench, parameters: dict[str, str], *, block: bool) -> None:
        snapshot = bench.snapshot("daily", bench.volume("data")).id
        asked = dataclasses.replace(request("again", 0, parameters, block=block), source=of_snapshot(snapshot))
        with pytest.raises(InvalidArgument):
            bench.rig.volumes.create(asked, PATIENCE_S)

    def test_no_room(self, bench: Bench) -> None:
        volume = bench.volume("data", 1500 * MIB)
        snapshot = bench.snapshot("daily", volume).id
        with pytest.raises(ResourceExhausted):
            bench.restore("again", of_snapshot(snapshot))

    def test_pages(self, bench: Bench) -> None:
        volume, other = bench.volume("data"), bench.volume("other")
        for number in range(5):
            bench.snapshot(f"s{number}", volume)
        bench.snapshot("s9", other)
        page, more = bench.rig.snapshots.list("", 4, volume)
        rest, end = bench.rig.snapshots.list(more, 4, volume)
        assert [view.id for view in page + rest] == [f"s{number}" for number in range(5)]
        assert end == ""
        assert bench.ids(other) == ["s9"]


class TestFormatOnce:
    def test_what_was_never_formatted_is_formatted_when_it_is_staged(self, bench: Bench) -> None:
        snapshot = bench.snapshot("daily", bench.volume("data")).id
        restored = bench.restore("again", of_snapshot(snapshot))
        assert restored.record is not None
        assert restored.record.format is FormatState.UNFORMATTED
        bench.stage(restored.id)

    def test_what_was_formatted_is_never_formatted_again(self, bench: Bench) -> None:
        volume = bench.volume("data")
        bench.stage(volume)
        bench.unstage(volume)
        restored = bench.restore("again", of_volume(volume))
        assert restored.record is not None
        assert restored.record.format is FormatState.FORMATTED
        image = bench.rig.pool_of(restored.id).layout.image(restored.id)
        bench.rig.host.walk(image, "test").node.held = None
        with pytest.raises(FailedPrecondition, match="left as it is"):
            bench.stage(restored.id)


class TestFailures:
    @pytest.mark.parametrize(
        "call", ["sync_filesystem", "freeze", "clone_image", "sync_file", "write_new_file", "rename"]
    )
    def test_nothing_is_left_and_nothing_is_frozen(self, bench: Bench, call: str) -> None:
        volume = bench.volume("data")
        bench.stage(volume)
        bench.rig.host.fail(call, errno.EIO)
        with pytest.raises(SyscallFailed):
            bench.snapshot("daily", volume)
        assert not bench.frozen()
        assert bench.ids() == []
        bench.snapshot("daily", volume)
        assert bench.ids() == ["daily"]

    def test_a_driver_that_dies_while_it_is_frozen(self, bench: Bench) -> None:
        volume = bench.volume("data")
        bench.stage(volume)
        points = 0
        while True:
            points += 1
            bench.rig.die_at_point(points)
            if bench.rig.acknowledged(lambda: bench.snapshot("daily", volume)):
                break
            assert not bench.frozen()
            assert bench.ids() in ([], ["daily"])
            bench.rig.snapshots.delete("daily", PATIENCE_S)
        assert points > 8


class TestWithoutSharing:
    def test_what_is_in_use_is_not_copied(self) -> None:
        bench = Bench(EXT4)
        volume = bench.volume("data")
        bench.stage(volume)
        for take in (lambda: bench.snapshot("daily", volume), lambda: bench.restore("clone", of_volume(volume))):
            with pytest.raises(FailedPrecondition, match="in use"):
                take()
        bench.unstage(volume)
        assert bench.snapshot("daily", volume).ready

    def test_data_is_copied(self) -> None:
        bench = Bench(EXT4)
        volume = bench.volume("data")
        bench.stage(volume)
        bench.rig.host.replace_file(f"{STAGING}/marker", b"then")
        bench.unstage(volume)
        snapshot = bench.snapshot("daily", volume)
        restored = bench.restore("again", of_snapshot(snapshot.id))
        bench.stage(restored.id)
        assert bench.rig.host.read_file(f"{STAGING}/marker") == b"then"

    def test_staging_ends_a_copy(self) -> None:
        bench = Bench(EXT4)
        volume = bench.volume("data")
        later = Later()
        copies = Copies(spawn=later)
        bench.rig.snapshots._copies = bench.rig.publisher._copies = copies
        view = bench.rig.snapshots.create(SnapshotRequest(name="daily", source=volume), 0.1)
        assert not view.ready
        assert [one.ready for one in bench.rig.snapshots.list("", 0)[0]] == [False]
        bench.stage(volume)
        later()
        with pytest.raises(FailedPrecondition, match=r"in use"):
            bench.snapshot("daily", volume)
        assert bench.ids() == []

    def test_a_copy_is_found_by_the_retry(self) -> None:
        bench = Bench(EXT4)
        volume = bench.volume("data")
        later = Later()
        bench.rig.snapshots._copies = Copies(spawn=later)
        first = bench.rig.snapshots.create(SnapshotRequest(name="daily", source=volume), 0.1)
        with pytest.raises(AlreadyExists):
            bench.rig.snapshots.create(SnapshotRequest(name="daily", source=bench.volume("other")), 0.1)
        later()
        second = bench.rig.snapshots.create(SnapshotRequest(name="daily", source=volume), 0.1)
        assert (first.ready, second.ready) == (False, True)
        assert first.record == second.record

    def test_a_copy_can_be_deleted(self) -> None:
        bench = Bench(EXT4)
        volume = bench.volume("data")
        later = Later()
        bench.rig.snapshots._copies = Copies(spawn=later)
        bench.rig.snapshots.create(SnapshotRequest(name="daily", source=volume), 0.1)
        with pytest.raises(Busy):
            bench.rig.snapshots.delete("daily", 0.1)
        later()
        bench.rig.snapshots.delete("daily", 0.1)
        assert bench.ids() == []


class Later:
    """Keeps the work until it is called."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def __call__(self, work: Callable[[], None] | None = None) -> None:
        if work is not None:
            self.work.append(work)
            return
        for one in self.work:
            one()


class TestOtherPools:
    @pytest.mark.parametrize("parameters", [LOOP, DIRECTORY], ids=["loopfile", "directory"])
    def test_a_volume_in_use_is_cloned_to_another_pool(self, parameters: dict[str, str]) -> None:
        bench = Bench(BTRFS, OTHER)
        volume = bench.volume("data", parameters={**parameters, "pool": "main"})
        bench.stage(volume)
        bench.rig.host.replace_file(f"{STAGING}/marker", b"then")
        clone = bench.restore("clone", of_volume(volume), parameters={**parameters, "pool": "other"})
        assert clone.pool == "other"
        bench.stage(clone.id, "/kubelet/other")
        assert bench.rig.host.read_file("/kubelet/other/marker") == b"then"
        assert bench.rig.pools.get("main").store.leftovers() == []

    def test_a_restore_stays_beside_its_source(self) -> None:
        bench = Bench(BTRFS, OTHER)
        volume = bench.volume("data", 512 * MIB, {**LOOP, "pool": "main"})
        snapshot = bench.snapshot("daily", volume)
        assert bench.rig.pools.get("main").view().room < bench.rig.pools.get("other").view().room
        assert bench.restore("again", of_snapshot(snapshot.id)).pool == "main"

    def test_a_copy_to_another_pool_is_found_by_the_retry(self) -> None:
        """Though its room has been promised meanwhile, and so another pool may now look better, or none."""
        bench = Bench(EXT4, OTHER)
        volume = bench.volume("data", 1500 * MIB, {**LOOP, "pool": "main"})
        later = Later()
        bench.rig.volumes._restorer._copies = Copies(spawn=later)
        bench.volume("filler", 1500 * MIB, {**LOOP, "pool": "other"})
        asked = bench.asked("clone", of_volume(volume))
        for _ in range(2):
            with pytest.raises(Busy, match="being copied"):
                bench.rig.volumes.create(asked, 0.1)
        with pytest.raises(AlreadyExists):
            bench.rig.volumes.create(bench.asked("clone", of_volume("filler")), 0.1)
        later()
        assert bench.rig.volumes.create(asked, 0.1).id == "clone"
