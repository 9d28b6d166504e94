"""Doctor looks at snapshots and groups: everything is found, and nothing but owners and modes is touched."""

from __future__ import annotations

import pytest

from csi_local.model.snapshot import GroupRequest, SnapshotRequest
from tests.unit.rig import PATIENCE_S
from tests.unit.test_doctor import BTRFS_POOL, XFS_POOL, Bench, keep, mended, untouched


@pytest.fixture(params=[XFS_POOL, BTRFS_POOL], ids=["xfs", "btrfs"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Give a pool with a volume in use, and a snapshot and a group of another."""
    made = Bench(request.param)
    keep(made)
    made.create("data")
    made.snapshots.create(SnapshotRequest(name="daily", source="data"), PATIENCE_S)
    made.groups.create(GroupRequest(name="all", sources=("data", "keep")), PATIENCE_S)
    return made


def daily(bench: Bench) -> str:
    return f"{bench.root}/snapshots/daily"


def member(bench: Bench) -> str:
    return f"{bench.root}/groups/all/{bench.groups.get('all').record.members[0]}"


def test_nothing_is_wrong(bench: Bench) -> None:
    bench.create("tree", backend="directory")
    bench.snapshots.create(SnapshotRequest(name="of-a-tree", source="tree"), PATIENCE_S)
    before = bench.digest()
    assert bench.see(driver=True).findings == ()
    assert bench.see(repair=True).findings == ()
    assert bench.digest() == before


@pytest.mark.parametrize("place", [daily, member])
def test_a_damaged_record(bench: Bench, place: object) -> None:
    assert callable(place)
    path = f"{place(bench)}/snapshot.json"
    bench.node(path).data = b"{}"
    untouched(bench, path, "cannot be parsed")


def test_a_damaged_group(bench: Bench) -> None:
    path = f"{bench.root}/groups/all/group.json"
    bench.node(path).data = b""
    untouched(bench, path, "is empty")


def test_a_lost_image(bench: Bench) -> None:
    bench.host.remove(f"{daily(bench)}/disk.img")
    untouched(bench, f"{daily(bench)}/disk.img", "gone")


def test_an_image_cut_short(bench: Bench) -> None:
    bench.node(f"{daily(bench)}/disk.img").size = 4096
    untouched(bench, f"{daily(bench)}/disk.img", "cut short")


def test_a_lost_member(bench: Bench) -> None:
    bench.host.remove_tree(member(bench))
    untouched(bench, f"{bench.root}/groups/all", "lost")


@pytest.mark.parametrize("where", ["snapshots/daily", "groups/all", "snapshots", "groups"])
def test_what_is_not_ours(bench: Bench, where: str) -> None:
    path = f"{bench.root}/{where}/notes.txt"
    bench.host.replace_file(path, b"somebody's")
    untouched(bench, path, "did not make")


@pytest.mark.parametrize("where", ["snapshots", "groups", "snapshots/daily", "snapshots/daily/disk.img", "groups/all"])
def test_another_owner_or_mode(bench: Bench, where: str) -> None:
    path = f"{bench.root}/{where}"
    bench.node(path).mode |= 0o022
    mended(bench, path, "others may read or change")


@pytest.mark.parametrize("name", [".new-snapshot:weekly", ".trash-group:all.7"])
def test_what_was_cut_short(bench: Bench, name: str) -> None:
    bench.host.make_dir(f"{bench.root}/{name}")
    mended(bench, f"{bench.root}/{name}", "snapshot" if "snapshot" in name else "group")
