"""Groups of snapshots, on a machine in memory: one moment, all or none."""

from __future__ import annotations

import errno

import pytest

from csi_local.model.errors import (
    AlreadyExists,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SyscallFailed,
)
from csi_local.model.quantity import MIB
from csi_local.model.snapshot import GroupRequest
from tests.unit.rig import PATIENCE_S, capability
from tests.unit.test_snapshots import BTRFS, DIRECTORY, EXT4, LOOP, OTHER, XFS, Bench, of_snapshot


@pytest.fixture(params=[XFS, BTRFS], ids=["xfs", "btrfs"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def take(bench: Bench, *volumes: str, name: str = "group") -> list[str]:
    view = bench.rig.groups.create(GroupRequest(name=name, sources=volumes), PATIENCE_S)
    return [member.id for member in view.members]


def two_staged(bench: Bench) -> tuple[str, str]:
    volumes = bench.volume("a"), bench.volume("b")
    for volume in volumes:
        bench.stage(volume, f"/kubelet/{volume}")
        bench.rig.host.replace_file(f"/kubelet/{volume}/marker", volume.encode())
    return volumes


def frozen(bench: Bench) -> list[bool]:
    return [bench.frozen(f"/kubelet/{volume}") for volume in "ab"]


def test_all_are_frozen_before_any_is_copied_and_none_stays_so(bench: Bench) -> None:
    take(bench, *two_staged(bench))
    steps = [point.rpartition(":")[2] for point in bench.rig.points if point.startswith("group:")]
    assert max(index for index, step in enumerate(steps) if step == "Freeze") < steps.index("CloneImage")
    assert steps.index("Thaw") > max(index for index, step in enumerate(steps) if step == "CloneImage")
    assert frozen(bench) == [False, False]


def test_members_are_restored(bench: Bench) -> None:
    snapshots = take(bench, *two_staged(bench))
    assert sorted(bench.ids()) == sorted(snapshots)
    for snapshot in snapshots:
        record = bench.rig.snapshots.get(snapshot).record
        assert record is not None
        assert record.group == "group"
        restored = bench.restore(f"from-{record.source}", of_snapshot(snapshot))
        bench.stage(restored.id, f"/kubelet/{restored.id}")
        assert bench.rig.host.read_file(f"/kubelet/{restored.id}/marker") == record.source.encode()


def test_a_member_goes_with_its_group_only(bench: Bench) -> None:
    volumes = two_staged(bench)
    snapshots = take(bench, *volumes)
    with pytest.raises(InvalidArgument, match="group"):
        bench.rig.snapshots.delete(snapshots[0], PATIENCE_S)
    for wrong in (snapshots[:1], ["other"]):
        with pytest.raises(InvalidArgument):
            bench.rig.groups.delete("group", wrong, PATIENCE_S)
        with pytest.raises(InvalidArgument):
            bench.rig.groups.get("group", wrong)
    bench.rig.groups.delete("group", snapshots, PATIENCE_S)
    bench.rig.groups.delete("group", snapshots, PATIENCE_S)
    assert bench.ids() == []
    with pytest.raises(NotFound):
        bench.rig.groups.get("group")
    bench.rig.sweeper.drain()
    assert bench.rig.pools.all()[0].store.leftovers() == []
    assert bench.rig.pools.all()[0]._sum.shared == 0


def test_requests_again(bench: Bench) -> None:
    a, b = two_staged(bench)
    assert take(bench, a, b) == take(bench, b, a, a)
    for sources, error in (((a,), AlreadyExists), ((), InvalidArgument)):
        with pytest.raises(error):
            take(bench, *sources)
    with pytest.raises(NotFound):
        take(bench, a, "none", name="another")


@pytest.mark.parametrize("call", ["freeze", "clone_image", "sync_file", "write_new_file", "rename"])
@pytest.mark.parametrize("nth", [1, 2])
def test_one_that_fails_leaves_no_member(bench: Bench, call: str, nth: int) -> None:
    if (call, nth) == ("rename", 2):
        return  # there is one rename
    volumes = two_staged(bench)
    bench.rig.host.fail(call, errno.EIO, nth=nth)
    with pytest.raises(SyscallFailed):
        take(bench, *volumes)
    assert frozen(bench) == [False, False]
    assert bench.ids() == []
    assert bench.rig.pools.all()[0]._sum.shared == 0
    take(bench, *volumes)


def test_a_driver_that_dies_leaves_all_or_nothing(bench: Bench) -> None:
    volumes = two_staged(bench)
    points = 0
    while True:
        points += 1
        bench.rig.die_at_point(points)
        if bench.rig.acknowledged(lambda: take(bench, *volumes)):
            break
        assert frozen(bench) == [False, False]
        assert len(bench.ids()) in (0, 2)
        bench.rig.groups.delete("group", (), PATIENCE_S)
    assert points > 15


@pytest.mark.parametrize("kind", ["directory", "block"])
def test_what_cannot_be_frozen_must_not_be_in_use(bench: Bench, kind: str) -> None:
    block = kind == "block"
    loose = bench.volume("loose", parameters=LOOP if block else DIRECTORY, block=block)
    other = bench.volume("other")
    take(bench, loose, other, name="unused")
    bench.rig.host.make_dirs("/kubelet/loose")
    bench.rig.publisher.stage(loose, "/kubelet/loose", capability(block=block), PATIENCE_S)
    with pytest.raises(FailedPrecondition, match="cannot be frozen"):
        take(bench, loose, other)
    take(bench, loose, name="alone")


def test_no_room(bench: Bench) -> None:
    volumes = bench.volume("a", 1000 * MIB), bench.volume("b", 1000 * MIB)
    with pytest.raises(ResourceExhausted):
        take(bench, *volumes)
    assert bench.ids() == []


def test_one_pool_that_shares_blocks() -> None:
    several = Bench(XFS, OTHER)
    volumes = [several.volume(pool, parameters={**LOOP, "pool": pool}) for pool in ("main", "other")]
    without = Bench(EXT4)
    asked: list[tuple[Bench, list[str]]] = [(several, volumes), (without, [without.volume("data")])]
    for one, of in asked:
        with pytest.raises(DriverError, match="pool"):
            take(one, *of)


def test_a_name_that_a_member_would_have(bench: Bench) -> None:
    a, b = two_staged(bench)
    single = bench.snapshot("group/b", a)
    with pytest.raises(AlreadyExists, match=single.id):
        take(bench, a, b)
    assert bench.ids() == [single.id]
    bench.rig.snapshots.delete(single.id, PATIENCE_S)
    members = take(bench, a, b)
    with pytest.raises(AlreadyExists, match="in group"):
        bench.snapshot("group/b", b)
    assert sorted(bench.ids()) == sorted(members)


def test_data_that_is_gone_is_told(bench: Bench) -> None:
    snapshots = take(bench, *two_staged(bench))
    assert bench.rig.groups.get("group").problem == ""
    layout = bench.rig.pools.find_snapshot(snapshots[1])[0].layout
    bench.rig.host.remove(f"{layout.groups}/group/{snapshots[1]}/disk.img")
    assert "gone" in bench.rig.groups.get("group").problem


def test_one_that_has_lost_a_member_can_be_deleted(bench: Bench) -> None:
    snapshots = take(bench, *two_staged(bench))
    layout = bench.rig.pools.find_snapshot(snapshots[1])[0].layout
    bench.rig.host.remove_tree(f"{layout.groups}/group/{snapshots[1]}")
    bench.rig.groups.delete("group", snapshots, PATIENCE_S)
    assert bench.ids() == []
    assert bench.rig.pools.all()[0]._sum.shared == 0


@pytest.mark.parametrize("grouped", [False, True], ids=["snapshot", "group"])
def test_a_disk_that_fails_at_any_look_leaves_nothing(bench: Bench, *, grouped: bool) -> None:
    volumes = two_staged(bench)
    for nth in range(1, 100):
        bench.rig.host.fail("stat", errno.EIO, nth=nth)
        taken = bench.rig.acknowledged(lambda: take(bench, *volumes) if grouped else bench.snapshot("daily", "a"))
        bench.rig.sweeper.drain()
        assert bench.rig.pools.all()[0].store.leftovers() == []
        assert frozen(bench) == [False, False]
        if taken and nth > 20:
            return
        bench.rig.groups.delete("group", (), PATIENCE_S)
        bench.rig.snapshots.delete("daily", PATIENCE_S)
        bench.rig.sweeper.drain()
