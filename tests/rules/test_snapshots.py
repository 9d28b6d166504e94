"""Snapshots, restored volumes, clones and groups, as a CO sees them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Volume, refused
from tests.observe import MIB
from tests.rules.kinds import BLOCK, BTRFS, DIRECTORY, EVERY, EXT4, XFS, Kind, every_kind, fresh_name

if TYPE_CHECKING:
    from tests.conftest import Start
    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

THEN, NOW = os.urandom(MIB), os.urandom(MIB)


def in_use(driver: Driver, kind: Kind) -> Volume:
    """Return a published volume with something in it."""
    volume = kind.create(driver)
    observe.put(driver.attach(volume), THEN)
    return volume


class TestContent:
    @pytest.mark.parametrize("kind", [*EVERY, BTRFS], ids=str)
    def test_a_restore_has_what_was_there_then(self, driver: Driver, kind: Kind) -> None:
        volume = in_use(driver, kind)
        snapshot = driver.snapshot(volume)
        assert snapshot.ready_to_use
        assert (snapshot.source_volume_id, snapshot.size_bytes) == (volume.id, volume.size)
        observe.put(driver.target_path(volume), NOW)
        restored = kind.create(driver, source=snapshot)
        assert observe.get(driver.attach(restored), MIB) == THEN
        assert observe.get(driver.target_path(volume), MIB) == NOW

    @pytest.mark.parametrize("kind", [*EVERY, BTRFS], ids=str)
    def test_a_clone_and_its_source_go_their_ways(self, driver: Driver, kind: Kind) -> None:
        volume = in_use(driver, kind)
        clone = kind.create(driver, source=volume)
        target = driver.attach(clone)
        assert observe.get(target, MIB) == THEN
        observe.put(target, NOW)
        assert observe.get(driver.target_path(volume), MIB) == THEN
        driver.detach(clone)
        driver.detach(volume)
        driver.delete(volume)
        assert observe.get(driver.attach(clone), MIB) == NOW

    @every_kind
    def test_a_snapshot_outlives_its_source_and_its_own_restores(self, driver: Driver, kind: Kind) -> None:
        volume = in_use(driver, kind)
        snapshot = driver.snapshot(volume)
        driver.detach(volume)
        driver.delete(volume)
        for _ in range(2):
            restored = kind.create(driver, source=snapshot)
            target = driver.attach(restored)
            assert observe.get(target, MIB) == THEN
            observe.put(target, NOW)
            driver.detach(restored)
            driver.delete(restored)

    @every_kind
    def test_a_larger_restore_has_its_size_when_it_is_published(self, driver: Driver, kind: Kind) -> None:
        volume = in_use(driver, kind)
        larger = kind.create(driver, size=volume.size + 128 * MIB, source=driver.snapshot(volume))
        assert larger.size == volume.size + 128 * MIB
        target = driver.attach(larger)
        assert observe.get(target, MIB) == THEN
        total = driver.stats(larger, target).usage[0].total
        assert total > volume.size + 32 * MIB  # an XFS has a log

    @pytest.mark.parametrize("kind", [EXT4, XFS, BLOCK], ids=str)
    def test_a_restore_of_a_thick_volume_is_thick(self, driver: Driver, kind: Kind) -> None:
        restored = kind.create(driver, source=driver.snapshot(in_use(driver, kind)))
        assert observe.allocated(driver.backing_file(restored)) >= restored.size

    @every_kind
    def test_what_nobody_uses(self, driver: Driver, kind: Kind) -> None:
        volume = in_use(driver, kind)
        driver.detach(volume)
        restored = kind.create(driver, source=driver.snapshot(volume))
        assert observe.get(driver.attach(restored), MIB) == THEN

    @every_kind
    def test_after_a_restart(self, driver: Driver, kind: Kind) -> None:
        volume = in_use(driver, kind)
        snapshot = driver.snapshot(volume)
        driver.kill()
        driver.restart()
        assert driver.snapshots() == [snapshot]
        restored = kind.create(driver, source=driver.snapshot(volume))
        assert observe.get(driver.attach(restored), MIB) == THEN


class TestRequests:
    def test_again(self, driver: Driver) -> None:
        volume = EXT4.create(driver)
        first = driver.snapshot(volume, "daily")
        assert driver.snapshot(volume, "daily") == first
        with refused(Code.ALREADY_EXISTS):
            driver.snapshot(EXT4.create(driver), "daily")

    def test_a_restore_again_when_its_source_is_gone(self, driver: Driver) -> None:
        snapshot = driver.snapshot(EXT4.create(driver))
        name = fresh_name()
        first = EXT4.create(driver, name=name, source=snapshot)
        driver.delete_snapshot(snapshot)
        assert EXT4.create(driver, name=name, source=snapshot) == first
        with refused(Code.ALREADY_EXISTS):
            EXT4.create(driver, name=name)

    def test_lists(self, driver: Driver) -> None:
        volume, other = EXT4.create(driver), EXT4.create(driver)
        made = [driver.snapshot(volume, f"s{number}") for number in range(3)]
        assert driver.snapshots(source_volume_id=volume.id) == made
        assert driver.snapshots(source_volume_id=other.id) == []
        assert driver.snapshots(snapshot_id="s1") == [made[1]]
        for unknown in ("none", "../s1", "x" * 100):
            assert driver.snapshots(snapshot_id=unknown) == []
        with refused(Code.ABORTED):
            driver.snapshots(starting_token="nonsense")  # noqa: S106 (no secret)
        with refused(Code.INVALID_ARGUMENT):
            driver.snapshots(max_entries=-1)

    def test_unknown_parameters(self, driver: Driver) -> None:
        volume = EXT4.create(driver)
        asked = csi.CreateSnapshotRequest(source_volume_id=volume.id, name="s", parameters={"colour": "red"})
        with refused(Code.INVALID_ARGUMENT) as refusal:
            driver.controller.CreateSnapshot(asked)
        assert "colour" in refusal.message

    @pytest.mark.parametrize(("kind", "other"), [(EXT4, XFS), (EXT4, BLOCK), (EXT4, DIRECTORY), (DIRECTORY, EXT4)])
    def test_another_kind(self, driver: Driver, kind: Kind, other: Kind) -> None:
        snapshot = driver.snapshot(kind.create(driver))
        with refused(Code.INVALID_ARGUMENT):
            other.create(driver, source=snapshot)

    def test_get_snapshot_behind_its_flag(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=1Gi,allocation=thin", args=["--get-snapshot", "yes"])
        snapshot = driver.snapshot(EXT4.create(driver))
        asked = csi.GetSnapshotRequest(snapshot_id=snapshot.snapshot_id)
        assert driver.controller.GetSnapshot(asked).snapshot == snapshot
        with refused(Code.NOT_FOUND):
            driver.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id="none"))


class TestRoom:
    @every_kind
    def test_comes_back(self, driver: Driver, kind: Kind) -> None:
        volume = in_use(driver, kind)
        room = driver.capacity(kind.params).maximum_volume_size.value
        snapshot = driver.snapshot(volume)
        assert driver.capacity(kind.params).maximum_volume_size.value <= room
        driver.delete_snapshot(snapshot)
        observe.until(lambda: driver.capacity(kind.params).maximum_volume_size.value >= room - MIB, "the room is back")


class TestGroups:
    def test_a_group_lives_and_dies_whole(self, driver: Driver) -> None:
        volumes = [in_use(driver, kind) for kind in (EXT4, XFS)]
        group = driver.snapshot_group("group", *volumes)
        assert group.ready_to_use
        assert {one.source_volume_id for one in group.snapshots} == {volume.id for volume in volumes}
        assert {one.group_snapshot_id for one in group.snapshots} == {group.group_snapshot_id}
        assert driver.snapshot_group("group", *reversed(volumes)) == group
        with refused(Code.INVALID_ARGUMENT):
            driver.delete_snapshot(group.snapshots[0])
        driver.delete_group(group.group_snapshot_id, *group.snapshots)
        assert driver.snapshots() == []

    def test_members_are_restored(self, driver: Driver) -> None:
        volume = in_use(driver, EXT4)
        group = driver.snapshot_group("group", volume, in_use(driver, EXT4))
        of_it = next(one for one in group.snapshots if one.source_volume_id == volume.id)
        restored = EXT4.create(driver, source=of_it)
        assert observe.get(driver.attach(restored), MIB) == THEN

    def test_directories_that_nobody_uses(self, driver: Driver) -> None:
        volumes = [in_use(driver, DIRECTORY) for _ in range(2)]
        with refused(Code.FAILED_PRECONDITION):
            driver.snapshot_group("group", *volumes)
        for volume in volumes:
            driver.detach(volume)
        assert len(driver.snapshot_group("group", *volumes).snapshots) == 2

    def test_nothing_to_take(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driver.snapshot_group("group")
        with refused(Code.NOT_FOUND):
            driver.snapshot_group("group", EXT4.create(driver), Volume(id="none"))
        assert driver.snapshots() == []


class TestFarAway:
    """What cannot share blocks is copied."""

    POOLS = (
        "one=image:{root}/one.img,size=1Gi,fs=ext4,allocation=thin",
        "two=image:{root}/two.img,size=1Gi,fs=xfs,allocation=thin",
    )

    @pytest.mark.parametrize("kind", [EXT4, BLOCK], ids=str)
    def test_without_reflink(self, start: Start, kind: Kind) -> None:
        driver = start(self.POOLS[0])
        volume = in_use(driver, kind)
        with refused(Code.FAILED_PRECONDITION) as refusal:
            driver.snapshot(volume)
        assert "in use" in refusal.message
        driver.detach(volume)
        restored = kind.create(driver, source=driver.snapshot(volume))
        assert observe.get(driver.attach(restored), MIB) == THEN

    @pytest.mark.parametrize("kind", [EXT4, BLOCK, DIRECTORY], ids=str)
    @pytest.mark.parametrize("pool", ["one", "two"])
    def test_to_another_pool(self, start: Start, kind: Kind, pool: str) -> None:
        driver = start(*self.POOLS)
        quota = {"quota": "advisory"} if kind is DIRECTORY else {}
        source = {"one": "two", "two": "one"}[pool]
        volume = kind.create(driver, params={**quota, "pool": source})
        observe.put(driver.attach(volume), THEN)
        if source == "one":
            driver.detach(volume)
        snapshot = driver.snapshot(volume)
        for origin in (snapshot, volume):
            there = kind.create(driver, params={**quota, "pool": pool}, source=origin)
            assert there.context["pool"] == pool
            assert observe.get(driver.attach(there), MIB) == THEN
