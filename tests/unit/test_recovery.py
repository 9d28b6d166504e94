"""What the engine does after one crash or error at a given place; the machine beside this does it at random."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from csi_local.engine.pools import Pools
from csi_local.model.errors import DriverError, FailedPrecondition, NotFound, Unavailable
from csi_local.model.pool import parse_pool
from csi_local.model.quantity import MIB
from csi_local.model.volume import CapacityRange, Filesystem, FormatState, VolumeId
from tests.fake.calls import Crash
from tests.fake.host import new_host
from tests.fake.tree import FakeFilesystem
from tests.unit.rig import PATIENCE_S, Rig, capability, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_local.model.observed import FileInfo
    from csi_local.model.volume import VolumeRecord

FS_TYPE = "csi.storage.k8s.io/fstype"
STAGING = "/kubelet/staging"

MOMENTS = range(1, 200)
CALLS = range(1, 40)


def rig(*pools: str) -> Rig:
    """Start a driver."""
    made = Rig(*pools)
    made.start()
    made.host.make_dirs(STAGING)
    return made


def create(driver: Rig, fs: str, size: int = 64 * MIB, name: str = "data") -> str:
    """Create a volume with that filesystem."""
    return driver.volumes.create(request(name, size, {FS_TYPE: fs}), PATIENCE_S).id


def stage(driver: Rig, volume: str) -> None:
    """Stage a volume."""
    driver.publisher.stage(volume, STAGING, capability(), PATIENCE_S)


def record(driver: Rig, volume: str) -> VolumeRecord:
    """Return a volume's record."""
    found = driver.volumes.get(volume).record
    assert found is not None
    return found


def grow(driver: Rig, volume: str, size: int) -> None:
    """Grow a volume that is not staged."""
    driver.sizes.expand(volume, CapacityRange(required=size), None, PATIENCE_S)


class TestPools:
    """A pool whose making was cut short is made by the next start, without help."""

    @pytest.mark.parametrize("fs", ["xfs", "btrfs", "ext4"])
    @pytest.mark.parametrize("project_quota", [True, False])
    def test_image(self, fs: str, *, project_quota: bool) -> None:
        self.every_crash(f"pool=image:/pools/pool.img,size=1Gi,fs={fs}", project_quota=project_quota)

    @pytest.mark.parametrize("fs", ["xfs", "btrfs", "ext4"])
    @pytest.mark.parametrize("project_quota", [True, False])
    def test_device(self, fs: str, *, project_quota: bool) -> None:
        self.every_crash(f"pool=device:/dev/disk1,fs={fs}", project_quota=project_quota)

    def test_path(self) -> None:
        self.every_crash("pool=path:/pools", project_quota=False)

    def test_image_in_a_directory_that_is_a_link(self) -> None:
        driver = Rig("pool=image:/link/pool.img,size=1Gi")
        driver.host.make_link("/link", "/pools")
        driver.start()
        assert driver.pools.ready

    def test_image_is_synced_by_who_finds_it(self) -> None:
        """Whoever gave it its name may have been stopped before that was durable, and under the other it is removed."""
        driver = rig("other=image:/pools/other.img,size=1Gi", "pool=image:/pools/pool.img,size=1Gi")
        driver.calm()
        driver.host.crash()
        driver.host.fail("sync_dir", errno.EIO)
        driver.start()
        assert not driver.pools.ready
        driver.pools.retry()
        assert driver.pools.ready

    def every_crash(self, pool: str, *, project_quota: bool) -> None:
        """Cut the making short at every moment there is; report all that are not survived."""
        broken = []
        for moment in MOMENTS:
            host = new_host()
            host.project_quota = project_quota
            host.plug_in("/dev/disk1", 1 << 30)
            driver = Rig(pool, host=host)
            host.die(moment)
            try:
                driver.start()
            except Crash as crash:
                if "device:" in pool and "make_filesystem" in str(crash):
                    continue  # half a filesystem on a disk is for a person to look at
                try:
                    driver.crash()
                    driver.volumes.create(request("data", MIB, {}, block=True), PATIENCE_S)
                except DriverError as error:
                    broken.append(f"moment {moment} ({crash}): {error}")
            else:
                break
        assert not broken, "\n".join(broken)

    def test_an_error_while_it_is_adopted_again(self) -> None:
        """What fails while a missing pool is opened again is tried once more, and must not be in its own way."""
        driver = rig("other=image:/pools/other.img,size=1Gi", "pool=path:/later")
        assert not driver.pools.ready
        driver.host.make_dirs("/later")
        driver.host.fail("abilities", errno.EIO)
        assert driver.pools.retry() == []
        driver.pools.retry()
        assert driver.pools.ready


class TestGone:
    """A pool whose disk was unmounted."""

    @staticmethod
    def driver_without_its_pool() -> Rig:
        driver = Rig("a=path:/pools/a")
        for path in ("/pools/a", "/empty"):
            driver.host.make_dirs(path)
        driver.start()
        driver.host.bind("/empty", "/pools/a", frozenset())
        return driver

    def test_whoever_is_about_to_use_it_is_told(self) -> None:
        driver = self.driver_without_its_pool()
        driver.pools.retry()
        with pytest.raises(Unavailable, match="pool a: /pools/a is empty"):
            driver.pools.get("a")
        assert [view.unavailable != "" for view in driver.pools.views()] == [True]

    def test_it_comes_back_while_somebody_finds_it_gone(self) -> None:
        """Who looked before lets the pool go that was, not the one that is there now."""
        driver = self.driver_without_its_pool()
        look = driver.host.stat
        back: list[str] = []

        def looked(path: str) -> FileInfo | None:
            found = look(path)
            if path == "/pools/a" and not back:
                back.append(path)
                driver.pools.retry()
                driver.host.unmount("/pools/a")
                driver.pools.retry()
            return found

        driver.host.stat = looked  # type: ignore[method-assign]
        with pytest.raises((NotFound, Unavailable)):
            driver.pools.find("none")
        assert back
        assert driver.pools.ready
        assert driver.pools.get("a").view().unavailable == ""


class TestFormatting:
    """A volume is formatted once, however often that takes."""

    @pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
    def test_cut_short(self, fs: str) -> None:
        for moment in MOMENTS:
            driver = rig()
            volume = create(driver, fs, 320 * MIB)
            driver.host.die(moment)
            if driver.acknowledged(partial(stage, driver, volume)):
                break
            stage(driver, volume)
            assert record(driver, volume).format is FormatState.FORMATTED

    @pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
    def test_its_record_cannot_be_written_afterwards(self, fs: str) -> None:
        driver = rig()
        volume = create(driver, fs, 320 * MIB)
        driver.host.fail("replace_file", errno.EIO, nth=2)
        with pytest.raises(DriverError):
            stage(driver, volume)
        stage(driver, volume)

    def test_what_somebody_put_on_a_new_volume_is_left_alone(self) -> None:
        driver = rig()
        volume = create(driver, "ext4")
        image = driver.pool_of(volume).layout.image(record(driver, volume).id)
        made: dict[str, Any] = {"uuid": str(uuid4()), "label": "", "options": (), "thick": True}
        with driver.host.attach(image, sector_size=0, keep=False) as loop:
            driver.host.make_filesystem(loop.path, Filesystem.EXT4, **made)
        with pytest.raises(FailedPrecondition, match="never formatted"):
            stage(driver, volume)
        signature = driver.host.probe(image)
        assert signature is not None
        assert signature.uuid == made["uuid"]

    @pytest.mark.parametrize("now", ["nothing", "something else"])
    def test_a_formatted_volume_that_looks_blank_is_never_formatted(self, now: str) -> None:
        driver = rig()
        volume = create(driver, "ext4")
        stage(driver, volume)
        driver.publisher.unstage(volume, STAGING, PATIENCE_S)
        image = driver.pool_of(volume).layout.image(record(driver, volume).id)
        node = driver.host.walk(image, "test").node
        node.held = None if now == "nothing" else FakeFilesystem("xfs", "another")
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="left as it is"):
                stage(driver, volume)
            driver.crash()
        assert driver.host.counts["make_filesystem"] == 3, "two pools and one volume"


class TestGrowth:
    """A filesystem has its volume's size once it is staged."""

    @pytest.mark.parametrize(("fs", "size"), [("ext4", 64), ("xfs", 320), ("btrfs", 256)])
    def test_cut_short_while_it_is_staged(self, fs: str, size: int) -> None:
        for moment in MOMENTS:
            driver = rig()
            volume = create(driver, fs, size * MIB)
            stage(driver, volume)
            driver.publisher.unstage(volume, STAGING, PATIENCE_S)
            grow(driver, volume, 2 * size * MIB)
            driver.host.die(moment)
            done = driver.acknowledged(partial(stage, driver, volume))
            if not done:
                stage(driver, volume)
            grown = driver.host.walk(STAGING, "test").mount.filesystem.grown
            assert grown == 2 * size * MIB, f"moment {moment}"
            if done:
                break

    @pytest.mark.parametrize(("fs", "before", "after"), [("ext4", 16, 32), ("xfs", 300, 400), ("btrfs", 128, 200)])
    def test_of_the_smallest(self, fs: str, before: int, after: int) -> None:
        """Growing a volume must not make it unusable: the kernel resizes no btrfs to less than 256 MiB."""
        driver = rig()
        volume = create(driver, fs, before * MIB)
        stage(driver, volume)
        driver.publisher.unstage(volume, STAGING, PATIENCE_S)
        grow(driver, volume, max(after * MIB, record(driver, volume).size))
        stage(driver, volume)


class TestAccounts:
    """Room is counted right even where a call does its work and then fails."""

    def promised(self, driver: Rig) -> int:
        """How much the pools believe to have promised."""
        return sum(pool._sum.total for pool in driver.pools.all())

    def test_create(self) -> None:
        driver = rig()
        driver.host.fail("rename", errno.EIO, late=True)
        with pytest.raises(DriverError):
            create(driver, "ext4")
        create(driver, "ext4")
        assert self.promised(driver) == 64 * MIB

    def test_delete(self) -> None:
        driver = rig()
        volume = create(driver, "ext4")
        driver.host.fail("rename", errno.EIO, late=True)
        with pytest.raises(DriverError):
            driver.volumes.delete(volume, PATIENCE_S)
        driver.volumes.delete(volume, PATIENCE_S)
        driver.sweeper.drain()
        assert self.promised(driver) == 0
        assert [pool.store.leftovers() for pool in driver.pools.all()] == [[], []]

    @pytest.mark.parametrize("what", ["create", "expand", "delete"])
    def test_any_one_error_and_the_same_request_again(self, what: str) -> None:
        for number in CALLS:
            driver = rig()
            volume = create(driver, "ext4") if what != "create" else ""
            acts: dict[str, Callable[[], object]] = {
                "create": partial(create, driver, "ext4"),
                "expand": partial(grow, driver, volume, 128 * MIB),
                "delete": partial(driver.volumes.delete, volume, PATIENCE_S),
            }
            driver.host.fail("", errno.EIO, nth=number)
            if not driver.acknowledged(acts[what]):
                acts[what]()
            expected = {"create": 64, "expand": 128, "delete": 0}[what]
            assert self.promised(driver) == expected * MIB, f"call {number}"

    def test_what_could_not_be_swept_is_tried_again(self) -> None:
        driver = rig()
        driver.volumes.delete(create(driver, "ext4"), PATIENCE_S)
        driver.host.fail("remove_tree", errno.EIO)
        driver.sweeper.drain()
        driver.sweeper._round()
        driver.sweeper.drain()
        assert [pool.store.leftovers() for pool in driver.pools.all()] == [[], []]

    def test_what_is_being_made_is_not_swept(self) -> None:
        """A pool that comes later is looked through while volumes are made in it already."""
        driver = rig()
        pool = driver.pools.all()[0]
        making = f"{pool.root}/.new-pvc-1"
        driver.host.make_dir(making)
        driver.sweeper._round()
        driver.sweeper.add(making)
        driver.sweeper.drain()
        assert pool.store.leftovers() == [making]


def test_a_volume_that_is_in_two_pools_is_used_in_neither() -> None:
    """One was missing when the same request came again: neither may be taken for the other."""
    driver = rig("a=image:/pools/a.img,size=1Gi", "b=image:/pools/b.img,size=1Gi")
    volume = create(driver, "ext4")
    (home,) = (pool for pool in driver.pools.all() if pool.store.exists(VolumeId(volume)))
    (other,) = (pool for pool in driver.pools.all() if pool is not home)
    record_ = home.store.load(VolumeId(volume))
    driver.host.make_dir(other.layout.volume(record_.id))
    other.store.write(other.layout.record(record_.id), record_)
    for act in (partial(create, driver, "ext4"), partial(stage, driver, volume)):
        with pytest.raises(FailedPrecondition, match="a and b"):
            act()
    with pytest.raises(FailedPrecondition, match="a and b"):
        driver.volumes.delete(volume, PATIENCE_S)


def test_a_pool_that_must_be_mounted_is_missing_where_it_is_not() -> None:
    driver = Rig("a=path:/pools/a,mounted=yes", "b=path:/pools/b")
    for pool in "ab":
        driver.host.make_dirs(f"/pools/{pool}")
    driver.start()
    assert [view.unavailable for view in driver.pools.views()] == ["nothing is mounted at /pools/a; mount its disk", ""]
    assert driver.host.list_dir("/pools/a") == []
    driver.host.bind("/kubelet", "/pools/a", frozenset())
    assert [pool.spec.name for pool in driver.pools.retry()] == ["a"]


def test_the_directories_above_the_run_directory_are_made() -> None:
    """As where it is in the kubelet's, before the driver's socket is there."""
    driver = rig("pool=image:/pools/a.img,size=1Gi")
    pools = Pools(driver.host, [parse_pool("other=image:/pools/b.img,size=1Gi")], "/kubelet/plugins/csi-local.io/run")
    pools.open()
    assert pools.all()[0].root.startswith("/kubelet/plugins/csi-local.io/run/pools/")


def test_how_full_a_directory_is_where_the_pool_is_read_only() -> None:
    """An XFS that is read-only answers no question about quota (EROFS); the size of what is there can still be told."""
    driver = rig("pool=image:/pools/pool.img,size=1Gi")
    made = driver.volumes.create(request("data", 64 * MIB, {"backend": "directory"}), PATIENCE_S)
    stage(driver, made.id)
    driver.host.fail("project_usage", errno.EROFS)
    with pytest.raises(DriverError, match="Read-only"):
        driver.publisher.stats(made.id, STAGING)
    driver.host.walk(driver.pool_of(made.id).root, "test").mount.filesystem.read_only = True
    driver.host.fail("project_usage", errno.EROFS)
    usage, _, problem = driver.publisher.stats(made.id, STAGING)
    assert (usage.total > 0, problem) == (True, "the pool's filesystem is read-only")


class TestPoolFile:
    """A pool that cannot say what it is keeps nobody else from working, and is not made anew."""

    @pytest.mark.parametrize("damage", [b"", b"{", b'{"layout":1}', b"[]", b"null", None])
    def test_damaged_or_gone(self, damage: bytes | None) -> None:
        driver = Rig("a=path:/pools/a", "b=path:/pools/b")
        for pool in "ab":
            driver.host.make_dirs(f"/pools/{pool}")
        driver.start()
        volume = driver.volumes.create(request("data", 64 * MIB, {"pool": "a", "backend": "loopfile"}), PATIENCE_S).id
        path = "/pools/a/pool.json"
        before = driver.host.read_file(path)
        if damage is None:
            driver.host.remove(path)
        else:
            driver.host.replace_file(path, damage)
        driver.crash()
        assert not driver.pools.ready
        with pytest.raises(Unavailable, match=r"pool\.json is (damaged|missing)"):
            driver.volumes.get(volume)
        driver.volumes.create(request("other", 64 * MIB, {"pool": "b", "backend": "loopfile"}), PATIENCE_S)
        assert (driver.host.stat(path) is None) == (damage is None)
        driver.host.replace_file(path, before)
        assert [pool.spec.name for pool in driver.pools.retry()] == ["a"]
        assert driver.volumes.get(volume).record is not None


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "half made"])
def test_what_is_swept_after_a_restart_takes_no_limit_along(*, deleted: bool) -> None:
    """The retry makes the volume while what an earlier driver left of it is still there, with its quota project."""
    driver = rig("pool=image:/pools/pool.img,size=4Gi")
    asked = request("data", 64 * MIB, {"backend": "directory"})
    if deleted:
        driver.volumes.create(asked, PATIENCE_S)
        driver.volumes.delete("data", PATIENCE_S)
    else:
        driver.die_at_point(8)
        with pytest.raises(Crash):
            driver.volumes.create(asked, PATIENCE_S)
    driver.crash()
    made = driver.volumes.create(asked, PATIENCE_S).record
    assert made is not None
    driver.sweeper.drain()
    pool = driver.pools.get("pool")
    assert pool.store.leftovers() == []
    assert pool.usage_of(made).total == made.size
