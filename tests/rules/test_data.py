"""What is written stays, whatever happens to the driver; what was deleted is never seen again."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.client import Code, Volume, capability, outcome, refused
from tests.driver import Driver, serving
from tests.observe import MIB
from tests.rules.kinds import BLOCK, BTRFS, EVERY, EXT4, XFS, Kind, every_kind, mounted_kinds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Start

pytestmark = pytest.mark.root

DATA = os.urandom(MIB)
UNUSABLE = (Code.FAILED_PRECONDITION, Code.ALREADY_EXISTS, Code.UNAVAILABLE, Code.DATA_LOSS)


@pytest.mark.usefixtures("nothing_left")
class TestPersistence:
    """Data outlives publishing, staging and the process."""

    @pytest.mark.parametrize("kind", [*EVERY, BTRFS], ids=str)
    def test_over_unpublish_and_unstage(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        observe.put(driver.attach(volume), DATA)
        driver.unpublish(volume)
        assert observe.get(driver.publish(volume), MIB) == DATA
        driver.detach(volume)
        assert observe.get(driver.attach(volume), MIB) == DATA

    @every_kind
    def test_over_another_staging_path(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        observe.put(driver.attach(volume), DATA)
        driver.detach(volume)
        staging = driver.root / "staging" / "another"
        driver.stage(volume, staging)
        assert observe.get(driver.publish(volume, staging=staging), MIB) == DATA

    @every_kind
    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_mounts_stand_while_the_driver_is_away(self, driver: Driver, kind: Kind, end: str) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        path = target if kind.block else target / "data"
        observe.put(target, DATA)
        before = driver.standing()
        with path.open("r+b", buffering=0) as open_file:
            getattr(driver, end)()
            assert open_file.write(DATA[::-1]) == MIB
            os.fsync(open_file.fileno())
            driver.start()
            assert driver.standing() == before
            open_file.seek(0)
            assert open_file.write(DATA) == MIB
        driver.stage(volume)
        driver.publish(volume)
        assert driver.standing() == before, "something was made twice"
        assert observe.get(target, MIB) == DATA
        driver.detach(volume)
        assert observe.get(driver.attach(volume), MIB) == DATA

    @every_kind
    def test_stopped_between_stage_and_publish(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        driver.kill()
        driver.start()
        observe.put(driver.publish(volume), DATA)
        driver.detach(volume)
        assert observe.get(driver.attach(volume), MIB) == DATA

    @mounted_kinds
    def test_owner_and_mode_of_the_root(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        os.chown(target, 1234, 5678)
        target.chmod(0o2751)
        driver.detach(volume)
        status = driver.attach(volume).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 5678, 0o2751)


@pytest.mark.usefixtures("nothing_left")
class TestFormatOnce:
    """A volume that was formatted is never formatted again, whatever its bytes look like."""

    @pytest.mark.parametrize("kind", [EXT4, XFS, BTRFS], ids=str)
    @pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
    def test_a_blank_image_is_not_an_invitation(self, driver: Driver, kind: Kind, *, restart: bool) -> None:
        volume = kind.create(driver)
        observe.put(driver.attach(volume), DATA)
        driver.detach(volume)
        image = driver.backing_file(volume)
        start = head(image)
        overwrite(image, bytes(MIB))
        if restart:
            driver.restart()
        for _ in range(2):
            with refused(Code.FAILED_PRECONDITION):
                driver.stage(volume)
        assert head(image) == bytes(MIB), "it was written to"
        assert str(image) not in observe.loops().values()
        overwrite(image, start)
        assert observe.get(driver.attach(volume), MIB) == DATA

    @pytest.mark.parametrize("kind", [EXT4, XFS], ids=str)
    def test_a_foreign_filesystem_is_not_replaced_nor_mounted(self, driver: Driver, kind: Kind) -> None:
        volume, other = kind.create(driver), BTRFS.create(driver, size=kind.size * 3)
        for each in (volume, other):
            observe.put(driver.attach(each), DATA)
            driver.detach(each)
        image = driver.backing_file(volume)
        foreign = head(driver.backing_file(other))
        overwrite(image, foreign)
        with refused(Code.FAILED_PRECONDITION):
            driver.stage(volume)
        assert head(image) == foreign

    def test_a_raw_volume_is_not_formatted_on_request(self, driver: Driver) -> None:
        volume = BLOCK.create(driver)
        observe.put(driver.attach(volume), DATA)
        driver.detach(volume)
        with refused(Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT):
            driver.stage(volume, access=capability(fs="ext4"))
        assert observe.get(driver.attach(volume), MIB) == DATA

    @pytest.mark.parametrize("kind", [EXT4, XFS, BLOCK], ids=str)
    def test_a_missing_image_is_not_made_anew(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        observe.put(driver.attach(volume), DATA)
        driver.detach(volume)
        image = driver.backing_file(volume)
        aside = image.rename(image.parents[2] / "aside")
        with refused(Code.FAILED_PRECONDITION, Code.NOT_FOUND):
            driver.stage(volume)
        assert not image.exists()
        aside.rename(image)
        assert observe.get(driver.attach(volume), MIB) == DATA

    @pytest.mark.parametrize("kind", [EXT4, XFS, BLOCK], ids=str)
    def test_a_short_image_is_not_used(self, driver: Driver, kind: Kind) -> None:
        """A truncated copy, after a restore gone wrong: mounting it would make it worse."""
        volume = kind.create(driver)
        observe.put(driver.attach(volume), DATA)
        driver.detach(volume)
        os.truncate(driver.backing_file(volume), kind.size // 2)
        with refused(Code.FAILED_PRECONDITION):
            driver.stage(volume)
        assert driver.backing_file(volume).stat().st_size == kind.size // 2


@pytest.mark.usefixtures("nothing_left")
class TestSymlinks:
    """What a pod plants in its volume is data, not a way out."""

    @mounted_kinds
    def test_delete_does_not_follow_them(self, driver: Driver, kind: Kind, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_text("not yours")
        volume = kind.create(driver)
        target = driver.attach(volume)
        (target / "folder").symlink_to(outside)
        (target / "file").symlink_to(outside / "file")
        (target / "up").symlink_to("../../../..")
        driver.detach(volume)
        driver.delete(volume)
        observe.until(lambda: not driver.leftovers(), "the volume is gone")
        assert (outside / "file").read_text() == "not yours"

    @mounted_kinds
    def test_a_volume_full_of_odd_things_can_be_deleted(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        dig(target, levels=60)
        os.mkfifo(target / "fifo")
        os.mknod(target / "node", 0o020644, os.makedev(1, 3))
        (target / "locked").mkdir(mode=0)
        (target / b"not\xffutf8".decode(errors="surrogateescape")).touch()
        (target / "new\nline").touch()
        driver.detach(volume)
        driver.delete(volume)
        observe.until(lambda: not driver.leftovers(), "the volume is gone")


class TestZeros:
    """A new raw volume is all zeros, however its blocks were used before."""

    @pytest.mark.parametrize(
        ("fs", "allocation"), [("xfs", "thick"), ("btrfs", "thick"), ("ext4", "thick"), ("xfs", "thin")]
    )
    def test_of_a_pool_that_was_full_of_data(self, start: Start, fs: str, allocation: str) -> None:
        driver = start(f"image:{{root}}/pool.img,size=512Mi,fs={fs}")
        size = 192 * MIB
        params = {"allocation": allocation}
        for _ in range(2):
            volume = BLOCK.create(driver, size=size, params=params)
            target = driver.attach(volume)
            assert observe.nonzero(target) is None
            dirty(target, size)
            driver.detach(volume)
            driver.delete(volume)
            observe.until(partial(has_room, driver, size), "the room is back")

    def test_of_what_it_grows_by(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=512Mi")
        old = BLOCK.create(driver, size=256 * MIB)
        dirty(driver.attach(old), 256 * MIB)
        driver.detach(old)
        driver.delete(old)
        observe.until(partial(has_room, driver, 256 * MIB), "the room is back")
        volume = BLOCK.create(driver, size=32 * MIB)
        target = driver.attach(volume)
        driver.expand(volume, 256 * MIB)
        assert observe.device_size(target) == 256 * MIB
        assert observe.nonzero(target) is None


@pytest.fixture(scope="module")
def path_driver() -> Iterator[Driver]:
    """Run a driver whose pool is a plain folder."""
    with serving("path:{root}/pool") as driver:
        yield driver


@pytest.mark.usefixtures("nothing_left")
class TestDamage:
    """A volume that is broken is one broken volume."""

    @pytest.fixture
    def driver(self, path_driver: Driver) -> Driver:
        """Talk to the driver with the plain pool."""
        return path_driver

    @pytest.mark.parametrize(
        ("record", "restart"),
        [
            (b"", False),
            (b"{", False),
            (b"{", True),
            (b"null", True),
            (b"[]", False),
            (b"\xff\xfe", True),
            (b'{"version": 99999}', True),
        ],
        ids=ascii,
    )
    def test_an_unreadable_record(self, driver: Driver, record: bytes, *, restart: bool) -> None:
        whole, broken = EXT4.create(driver), EXT4.create(driver)
        observe.put(driver.attach(broken), DATA)
        driver.detach(broken)
        path = driver.volume_dir(broken) / "volume.json"
        good = path.read_bytes()
        path.write_bytes(record)
        if restart:
            driver.restart()
        observe.put(driver.attach(whole), DATA)
        with refused(*UNUSABLE) as error:
            driver.stage(broken)
        assert broken.id in error.message
        assert whole.id in {volume.volume_id for volume in driver.volumes()}
        assert path.read_bytes() == record
        path.write_bytes(good)
        assert observe.get(driver.attach(broken), MIB) == DATA, "it is as good as it was"

    def test_an_unreadable_record_is_not_replaced_by_create(self, driver: Driver) -> None:
        volume = EXT4.create(driver, name="broken")
        observe.put(driver.attach(volume), DATA)
        driver.detach(volume)
        path = driver.volume_dir(volume) / "volume.json"
        good = path.read_bytes()
        path.write_bytes(b"{")
        assert outcome(lambda: EXT4.create(driver, name="broken")) in UNUSABLE
        path.write_bytes(good)
        assert observe.get(driver.attach(volume), MIB) == DATA

    def test_a_record_of_another_volume_is_not_believed(self, driver: Driver) -> None:
        one, other = EXT4.create(driver), EXT4.create(driver)
        path = driver.volume_dir(one) / "volume.json"
        good = path.read_bytes()
        path.write_bytes((driver.volume_dir(other) / "volume.json").read_bytes())
        assert outcome(lambda: driver.stage(one)) in UNUSABLE
        path.write_bytes(good)

    def test_a_record_of_another_user_is_not_believed(self, driver: Driver) -> None:
        volume, other = EXT4.create(driver), EXT4.create(driver)
        path = driver.volume_dir(volume) / "volume.json"
        os.chown(path, 1234, -1)
        for call in (driver.stage, driver.delete):
            with refused(*UNUSABLE) as refusal:
                call(volume)
            assert "1234" in refusal.message
        driver.restart()
        driver.attach(other)
        assert outcome(lambda: driver.stage(volume)) in UNUSABLE
        os.chown(path, 0, -1)
        driver.attach(volume)

    def test_strangers_in_the_pool_are_left_alone(self, driver: Driver) -> None:
        pool = driver.pool_roots()[0]
        strangers = [pool / "lost+found", pool / "notes.txt", pool / "volumes" / "README"]
        strangers[0].mkdir()
        for path in strangers[1:]:
            path.write_text("mine")
        driver.restart()
        volume = EXT4.create(driver)
        assert [each.volume_id for each in driver.volumes()] == [volume.id]
        assert all(path.exists() for path in strangers)
        strangers[2].unlink()

    def test_a_symlink_among_the_volumes_is_no_volume(self, driver: Driver) -> None:
        volume = EXT4.create(driver)
        link = driver.volume_dir(volume).with_name("link")
        link.symlink_to(driver.volume_dir(volume))
        assert outcome(lambda: driver.stage(Volume(id="link"))) in (Code.NOT_FOUND, *UNUSABLE)
        outcome(lambda: driver.delete(Volume(id="link")))
        assert driver.volume_dir(volume).is_dir()
        link.unlink(missing_ok=True)


def head(image: Path) -> bytes:
    """Return the first MiB of a file."""
    with image.open("rb") as file:
        return file.read(MIB)


def overwrite(image: Path, data: bytes) -> None:
    """Put `data` at the start of a file, and change nothing else."""
    with image.open("r+b") as file:
        file.write(data)


def has_room(driver: Driver, size: int) -> bool:
    """Whether a raw volume of this size is on offer."""
    return driver.capacity(BLOCK.params).available_capacity >= size


def dig(folder: Path, *, levels: int) -> None:
    """Make a path that is longer than any path may be."""
    name = "d" * 100
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=handle)
        deeper = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    os.close(handle)


def dirty(target: Path, size: int) -> None:
    """Fill a raw volume with something that is not zero."""
    with target.open("wb", buffering=0) as device:
        for _ in range(size // MIB):
            device.write(b"\xab" * MIB)
        os.fsync(device.fileno())
