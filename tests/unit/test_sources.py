"""What becomes of copies whose source changes while they wait for it, or is not whole."""

from __future__ import annotations

import dataclasses
import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.copies import Copies
from csi_local.engine.execute import Executor
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.sources import snapshot_key
from csi_local.model.errors import AlreadyExists, Busy, FailedPrecondition, ResourceExhausted, SyscallFailed
from csi_local.model.quantity import MIB
from csi_local.model.snapshot import SnapshotRequest
from csi_local.model.volume import CapacityRange, FormatState, VolumeId
from tests.unit.rig import PATIENCE_S, request
from tests.unit.test_snapshots import BTRFS, EXT4, LOOP, OTHER, STAGING, XFS, Bench, Later, of_snapshot, of_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from csi_local.engine.api import VolumeView
    from csi_local.host.api import Proceed

SIZE = 64 * MIB


class Overtaken(KeyedLocks):
    """Locks of which one is had by somebody else first, once."""

    def __init__(self, locks: KeyedLocks, key: str, first: Callable[[], None]) -> None:
        super().__init__()
        self._locks, self._key, self._first = locks, key, [first]

    @contextmanager
    def hold(self, key: str, patience_s: float) -> Iterator[None]:
        if key == self._key and self._first:
            self._first.pop()()
        with self._locks.hold(key, patience_s):
            yield


def overtake(bench: Bench, key: str, first: Callable[[], None]) -> None:
    """Have *first* done before any copy gets hold of its source."""
    for sources in (bench.rig.snapshots._sources, bench.rig.volumes._restorer._sources):
        sources._locks = Overtaken(sources._locks, key, first)


class TestOvertaken:
    """A pod starts, or its claim grows, while a copy of its volume waits for it."""

    def used(self, bench: Bench, volume: str) -> None:
        bench.stage(volume)
        bench.rig.host.replace_file(f"{STAGING}/marker", b"then")
        bench.unstage(volume)

    def grown(self, bench: Bench, volume: str) -> None:
        bench.rig.sizes.expand(volume, CapacityRange(required=2 * SIZE), None, PATIENCE_S)

    def used_and_grown(self, bench: Bench, volume: str) -> None:
        self.used(bench, volume)
        self.grown(bench, volume)

    @pytest.mark.parametrize("pools", [[XFS], [BTRFS], [XFS, OTHER]], ids=["xfs", "btrfs", "far"])
    def test_a_clone_is_what_its_source_has_become(self, pools: list[str]) -> None:
        bench = Bench(*pools)
        volume = bench.volume("data", SIZE, {**LOOP, "pool": "main"})
        overtake(bench, volume, lambda: self.used_and_grown(bench, volume))
        clone = bench.restore("clone", of_volume(volume), parameters={**LOOP, "pool": pools[-1].partition("=")[0]})
        assert clone.record is not None
        assert clone.record.format is FormatState.FORMATTED
        assert clone.record.size == 2 * SIZE
        bench.stage(clone.id, "/kubelet/other")
        assert bench.rig.host.read_file("/kubelet/other/marker") == b"then"

    @pytest.mark.parametrize("pool", [XFS, EXT4], ids=["xfs", "ext4"])
    def test_a_snapshot_is_of_what_its_source_has_become(self, pool: str) -> None:
        bench = Bench(pool)
        volume = bench.volume("data", SIZE)
        overtake(bench, volume, lambda: self.used_and_grown(bench, volume))
        record = bench.snapshot("daily", volume).record
        assert record is not None
        assert (record.volume.format, record.volume.size) == (FormatState.FORMATTED, 2 * SIZE)
        bench.stage(bench.restore("again", of_snapshot("daily")).id)
        assert bench.rig.host.read_file(f"{STAGING}/marker") == b"then"

    def test_a_restore_is_of_the_snapshot_that_has_the_name_by_then(self) -> None:
        bench = Bench(XFS)
        blank, used = bench.volume("blank", SIZE), bench.volume("used", 2 * SIZE)
        self.used(bench, used)
        bench.snapshot("daily", blank)

        def again() -> None:
            bench.rig.snapshots.delete("daily", PATIENCE_S)
            bench.snapshot("daily", used)

        overtake(bench, snapshot_key("daily"), again)
        record = bench.restore("again", of_snapshot("daily")).record
        assert record is not None
        assert (record.format, record.size) == (FormatState.FORMATTED, 2 * SIZE)


class TestCutShort:
    """No copy may make a damaged image look like a whole one."""

    @pytest.mark.parametrize("pool", [XFS, EXT4], ids=["xfs", "ext4"])
    def test_a_volume(self, pool: str) -> None:
        bench = Bench(pool)
        volume = bench.volume("data", SIZE)
        bench.rig.host.walk(bench.rig.pool_of(volume).layout.image(VolumeId(volume)), "test").node.size -= MIB
        with pytest.raises(FailedPrecondition, match="cut short"):
            bench.snapshot("daily", volume)
        with pytest.raises(FailedPrecondition, match="cut short"):
            bench.restore("clone", of_volume(volume))
        assert bench.ids() == []
        assert [view.id for view in bench.rig.volumes.list("", 0)[0]] == [volume]

    @pytest.mark.parametrize("pool", [XFS, EXT4], ids=["xfs", "ext4"])
    def test_a_snapshot(self, pool: str) -> None:
        bench = Bench(pool)
        snapshot = bench.snapshot("daily", bench.volume("data", SIZE)).id
        layout = bench.rig.pools.find_snapshot(snapshot)[0].layout
        bench.rig.host.walk(f"{layout.snapshots}/{snapshot}/disk.img", "test").node.size -= MIB
        assert "cut short" in bench.rig.snapshots.get(snapshot).problem
        with pytest.raises(FailedPrecondition, match="cut short"):
            bench.restore("again", of_snapshot(snapshot))


class TestSectors:
    """A disk may have larger ones than that of the source."""

    def restored(self, filesystem: str, *, block: bool = False) -> VolumeView:
        bench = Bench(XFS, OTHER)
        kind = LOOP if block else {**LOOP, "csi.storage.k8s.io/fstype": filesystem}
        bench.rig.volumes.create(request("data", 512 * MIB, {**kind, "pool": "main"}, block=block), PATIENCE_S)
        other = bench.rig.pools.get("other")
        other.abilities = dataclasses.replace(other.abilities, sector_size=8192)
        asked = request("clone", 0, {**kind, "pool": "other"}, block=block)
        return bench.rig.volumes.create(dataclasses.replace(asked, source=of_volume("data")), PATIENCE_S)

    def test_what_can_be_on_them(self) -> None:
        record = self.restored("ext4").record
        assert record is not None
        assert record.sector_size == 8192

    @pytest.mark.parametrize("filesystem", ["xfs", "block"])
    def test_what_cannot(self, filesystem: str) -> None:
        with pytest.raises(FailedPrecondition, match="another pool"):
            self.restored(filesystem, block=filesystem == "block")


class EndsWhenAsked(Copies):
    """A copy that ends at the very moment at which somebody asks what is under way."""

    def __init__(self) -> None:
        self.later = Later()
        super().__init__(spawn=self.later)
        self.ending = False

    def asked(self) -> dict[str, object]:
        if self.ending:
            self.ending = False
            self.later()
        return super().asked()


class EndsWhenJoined(EndsWhenAsked):
    """One that ends when somebody has been told that it is under way, and is about to wait for it."""

    def asked(self) -> dict[str, object]:
        return Copies.asked(self)

    def run(self, key: str, reads: str, asked: object, work: Callable[[Proceed], None], patience_s: float) -> bool:
        if self.ending:
            self.ending = False
            self.later()
            self._spawn = lambda work: work()
        return super().run(key, reads, asked, work, patience_s)


def test_a_copy_that_ends_before_it_is_waited_for_is_not_made_again() -> None:
    bench = Bench(EXT4)
    copies = bench.rig.snapshots._copies = EndsWhenJoined()
    wanted = SnapshotRequest(name="daily", source=bench.volume("data"))
    assert not bench.rig.snapshots.create(wanted, 0.1).ready
    copies.ending = True
    assert bench.rig.snapshots.create(wanted, 0.1).ready


class TestACopyThatEndsMeanwhile:
    @pytest.fixture
    def bench(self) -> Bench:
        bench = Bench(EXT4)
        self.copies = bench.rig.snapshots._copies = EndsWhenAsked()
        self.volume = bench.volume("data")
        assert not bench.rig.snapshots.create(SnapshotRequest(name="daily", source=self.volume), 0.1).ready
        self.copies.ending = True
        return bench

    def test_is_listed(self, bench: Bench) -> None:
        assert bench.ids() == ["daily"]

    def test_is_found(self, bench: Bench) -> None:
        assert bench.snapshot("daily", self.volume).ready


def test_a_snapshot_that_is_not_ready_is_waited_for() -> None:
    bench = Bench(EXT4)
    bench.rig.in_background = True
    assert not bench.snapshot("daily", bench.volume("data")).ready
    with pytest.raises(Busy, match="still being copied"):
        bench.restore("again", of_snapshot("daily"))
    bench.rig.spawned.pop()()
    bench.rig.in_background = False
    assert bench.restore("again", of_snapshot("daily")).id == "again"


class TestACopyThatFailed:
    """Whoever asks for the same is told why; to everybody else it is as if it had never been."""

    @pytest.fixture
    def bench(self) -> Bench:
        bench = Bench(EXT4)
        bench.rig.in_background = True
        self.data, self.other = bench.volume("data"), bench.volume("other")
        return bench

    def fail(self, bench: Bench) -> None:
        bench.rig.host.fail("copy_image", errno.EIO)
        bench.rig.spawned.pop()()
        bench.rig.in_background = False

    def test_a_snapshot_of_another_volume(self, bench: Bench) -> None:
        assert not bench.snapshot("daily", self.data).ready
        self.fail(bench)
        record = bench.snapshot("daily", self.other).record
        assert record is not None
        assert record.source == self.other

    def test_a_volume_from_something_else(self, bench: Bench) -> None:
        with pytest.raises(Busy):
            bench.restore("clone", of_volume(self.data))
        self.fail(bench)
        assert bench.restore("clone", of_volume(self.other)).id == "clone"

    def test_the_same_again(self, bench: Bench) -> None:
        assert not bench.snapshot("daily", self.data).ready
        self.fail(bench)
        with pytest.raises(SyscallFailed):
            bench.snapshot("daily", self.data)
        assert bench.snapshot("daily", self.data).ready


class TestACopyUnderWay:
    """Whoever asks for something else of that name is refused, though it could be made at once, and elsewhere."""

    @pytest.fixture
    def bench(self) -> Bench:
        bench = Bench(EXT4, OTHER)
        self.far = bench.volume("far", parameters={**LOOP, "pool": "main"})
        self.near = bench.volume("near", parameters={**LOOP, "pool": "other"})
        bench.rig.in_background = True
        return bench

    def end(self, bench: Bench) -> None:
        bench.rig.spawned.pop()()

    def test_a_snapshot_that_takes_no_copy(self, bench: Bench) -> None:
        assert not bench.snapshot("daily", self.far).ready
        with pytest.raises(AlreadyExists):
            bench.snapshot("daily", self.near)
        self.end(bench)
        assert bench.rig.snapshots.get("daily").pool == "main"

    @pytest.mark.parametrize("pool", ["main", "other"])
    def test_an_empty_volume(self, bench: Bench, pool: str) -> None:
        with pytest.raises(Busy):
            bench.restore("clone", of_volume(self.far), parameters={**LOOP, "pool": "main"})
        with pytest.raises(AlreadyExists):
            bench.volume("clone", parameters={**LOOP, "pool": pool})
        self.end(bench)
        assert bench.rig.volumes.get("clone").pool == "main"


class TestACloneBesideTheSource:
    """It shares the blocks of its source until it is copied, and whoever writes to that needs others."""

    def bench(self, filler: int) -> Bench:
        bench = Bench(XFS, OTHER)
        self.volume = bench.volume("data", 1500 * MIB, {**LOOP, "pool": "main"})
        bench.stage(self.volume)
        bench.rig.host.replace_file(f"{STAGING}/marker", b"then")
        bench.volume("filler", filler, {**LOOP, "pool": "main"})
        self.pool = bench.rig.pools.get("main")
        self.before = self.pool.view()
        return bench

    def clone(self, bench: Bench) -> None:
        bench.restore("clone", of_volume(self.volume), parameters={**LOOP, "pool": "other"})

    def left(self) -> tuple[int, int, list[str]]:
        """How it must be in the end."""
        after = self.pool.view()
        return after.promised - self.before.promised, after.room - self.before.room, self.pool.store.leftovers()

    def test_is_promised_its_room(self) -> None:
        bench, promised = self.bench(64 * MIB), []

        def see(point: str) -> None:
            if "CopyImage" in point:
                promised.append(self.pool.view().promised - self.before.promised)

        bench.rig.volumes._restorer._executor = Executor(bench.rig.host, see)
        self.clone(bench)
        assert promised == [1500 * MIB]
        assert self.left() == (0, 0, [])

    def test_is_not_made_without_room_while_it_is_used(self) -> None:
        bench = self.bench(1500 * MIB)
        with pytest.raises(ResourceExhausted):
            self.clone(bench)
        assert self.left() == (0, 0, [])

    def test_is_not_needed_while_nobody_uses_it(self) -> None:
        bench, read = self.bench(1500 * MIB), []
        bench.unstage(self.volume)

        def see(point: str) -> None:
            if "CopyImage" in point:
                read.append(bench.rig.copies.is_read(self.volume))

        bench.rig.volumes._restorer._executor = Executor(bench.rig.host, see)
        self.clone(bench)
        assert read == [True]
        assert self.left() == (0, 0, [])
        bench.stage("clone")
        assert bench.rig.host.read_file(f"{STAGING}/marker") == b"then"

    def test_that_is_not_needed_ends_when_somebody_does(self) -> None:
        bench = self.bench(1500 * MIB)
        bench.unstage(self.volume)

        def use(point: str) -> None:
            if "CopyImage" in point:
                bench.stage(self.volume)

        bench.rig.volumes._restorer._executor = Executor(bench.rig.host, use)
        with pytest.raises(FailedPrecondition, match="staged"):
            self.clone(bench)
        assert bench.rig.pools.get("other").store.leftovers() == []


def test_a_filesystem_that_somebody_else_thaws_meanwhile() -> None:
    """What was copied then is of no one moment."""
    bench = Bench(XFS)
    volume = bench.volume("data")
    bench.stage(volume)

    def thaw(point: str) -> None:
        if point.endswith("CloneImage"):
            bench.rig.host.thaw(STAGING)

    bench.rig.snapshots._executor = Executor(bench.rig.host, thaw)
    with pytest.raises(Busy, match="thawed"):
        bench.snapshot("daily", volume)
    assert bench.ids() == []
    assert bench.rig.pools.all()[0].store.leftovers() == []


def test_what_a_driver_left_frozen_in_a_pool_that_is_opened_later() -> None:
    """Its old driver dies slowly, waiting for the very disk, and holds the pool until then."""
    bench = Bench(XFS, OTHER)
    volume = bench.volume("data", parameters={**LOOP, "pool": "main"})
    bench.stage(volume)
    bench.rig.host.crash()
    bench.rig.host.freeze(STAGING)
    bench.rig.host.fail("probe", errno.EIO)
    bench.rig.start()
    assert [pool.spec.name for pool in bench.rig.pools.all()] == ["other"]
    assert bench.frozen()
    bench.rig.pools.retry()
    assert not bench.frozen()
    assert set(bench.rig.publisher._staged.volumes()) == {volume}
