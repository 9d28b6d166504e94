"""Growing: to the byte reported, while in use, and never by half."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Mode, Volume, capability, outcome, refused
from tests.observe import GIB, MIB
from tests.rules.kinds import BLOCK, BTRFS, DIRECTORY, EXT4, XFS, Kind, every_kind, loopfile_kinds, mounted_kinds

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

GROWABLE_IN_USE = (DIRECTORY, XFS, BTRFS, BLOCK)
"""ext4 grows in use too, but only with CAP_SYS_RESOURCE, which not every machine's root has."""
growing = pytest.mark.parametrize("kind", GROWABLE_IN_USE, ids=str)
every_and_btrfs = pytest.mark.parametrize("kind", [*GROWABLE_IN_USE, EXT4], ids=str)

SHORTAGE = (Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED)


def total(driver: Driver, volume: Volume, path: Path) -> int:
    """Return the size that the volume has where it is used."""
    if observe.is_block(path):
        return observe.device_size(path)
    return next(use.total for use in driver.stats(volume, path).usage if use.unit == csi.VolumeUsage.BYTES)


def listed_size(driver: Driver) -> int:
    """Return the size of the one volume there is."""
    [volume] = driver.volumes()
    return volume.capacity_bytes


class TestController:
    """ControllerExpandVolume."""

    @every_kind
    @pytest.mark.parametrize("attached", [False, True], ids=["", "in use"])
    def test_to_a_size_already_reached(self, driver: Driver, kind: Kind, *, attached: bool) -> None:
        volume = kind.create(driver)
        if attached:
            driver.attach(volume)
        for size in (1, volume.size - MIB, volume.size):
            assert driver.expand_controller(volume, size).capacity_bytes == volume.size
        assert listed_size(driver) == volume.size

    @every_kind
    def test_is_remembered(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        grown = driver.expand_controller(volume, kind.size * 2).capacity_bytes
        assert grown == kind.size * 2
        assert listed_size(driver) == grown
        driver.restart()
        assert listed_size(driver) == grown
        assert driver.expand_controller(volume, kind.size * 2).capacity_bytes == grown

    @every_kind
    @pytest.mark.parametrize("odd", [1, 4097])
    def test_to_an_odd_size(self, driver: Driver, kind: Kind, odd: int) -> None:
        volume = kind.create(driver)
        wanted = kind.size * 2 + odd
        grown = driver.expand_controller(volume, wanted).capacity_bytes
        assert wanted <= grown <= wanted + MIB
        target = driver.attach(volume)
        driver.expand_node(volume, wanted)
        if kind.block:
            assert observe.device_size(target) == grown

    @every_kind
    @pytest.mark.parametrize("size", [100 * GIB, 1000**5, 2**63 - 1], ids=["100Gi", "1PB", "max"])
    def test_beyond_the_room_there_is(self, driver: Driver, kind: Kind, size: int) -> None:
        volume = kind.create(driver)
        observe.put(driver.attach(volume), b"precious")
        with refused(*SHORTAGE):
            driver.expand_controller(volume, size)
        assert listed_size(driver) == volume.size
        driver.detach(volume)
        assert observe.get(driver.attach(volume), 8) == b"precious"
        if kind is not DIRECTORY:
            assert driver.backing_file(volume).stat().st_size < 2 * volume.size

    def test_without_a_range(self, driver: Driver) -> None:
        volume = BLOCK.create(driver)
        with refused(Code.INVALID_ARGUMENT):
            driver.controller.ControllerExpandVolume(csi.ControllerExpandVolumeRequest(volume_id=volume.id))

    @pytest.mark.parametrize(("size", "limit"), [(128 * MIB, 96 * MIB), (0, 32 * MIB), (32 * MIB, 48 * MIB)], ids=str)
    def test_to_a_limit_that_cannot_be_kept(self, driver: Driver, size: int, limit: int) -> None:
        volume = BLOCK.create(driver, size=64 * MIB)
        with refused(Code.OUT_OF_RANGE, Code.INVALID_ARGUMENT):
            driver.expand_controller(volume, size, limit=limit)
        assert listed_size(driver) == 64 * MIB

    @pytest.mark.parametrize(("size", "limit"), [(-1, 0), (0, -1)])
    def test_to_a_negative_size(self, driver: Driver, size: int, limit: int) -> None:
        volume = BLOCK.create(driver)
        with refused(Code.INVALID_ARGUMENT):
            driver.expand_controller(volume, size, limit=limit)

    @every_kind
    def test_within_a_limit(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        size = kind.size + 8 * MIB
        assert driver.expand_controller(volume, size, limit=size).capacity_bytes == size

    @pytest.mark.parametrize(
        ("kind", "wrong"), [(EXT4, capability(block=True)), (BLOCK, capability(fs="ext4"))], ids=str
    )
    def test_for_a_use_the_volume_does_not_have(self, driver: Driver, kind: Kind, wrong: csi.VolumeCapability) -> None:
        volume = kind.create(driver)
        with refused(Code.INVALID_ARGUMENT):
            driver.expand_controller(Volume(id=volume.id, capability=wrong), 2 * kind.size)

    @every_kind
    def test_takes_room_and_delete_gives_it_back(self, driver: Driver, kind: Kind) -> None:
        before = driver.capacity(kind.params).available_capacity
        volume = kind.create(driver)
        driver.expand_controller(volume, volume.size + 512 * MIB)
        taken = before - driver.capacity(kind.params).available_capacity
        assert abs(taken - volume.size - 512 * MIB) <= 16 * MIB
        driver.delete(volume)
        observe.until(lambda: driver.capacity(kind.params).available_capacity >= before - 16 * MIB, "the room is back")

    @loopfile_kinds
    def test_a_thick_volume_stays_thick(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        grown = driver.expand_controller(volume, kind.size * 2).capacity_bytes
        assert observe.allocated(driver.backing_file(volume)) >= grown
        driver.attach(volume)
        driver.expand_node(volume, kind.size * 2)
        assert observe.allocated(driver.backing_file(volume)) >= grown

    @every_kind
    def test_the_request_that_made_the_volume_still_finds_it(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, name="grown")
        driver.expand_controller(volume, kind.size * 2)
        again = kind.create(driver, name="grown")
        assert (again.id, again.size) == (volume.id, kind.size * 2)


class TestInUse:
    """Growth under a running pod."""

    @growing
    def test_it_is_seen_at_the_target(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        before = total(driver, volume, target)
        grown = driver.expand(volume, kind.size * 2)
        assert grown == kind.size * 2
        assert total(driver, volume, target) - before >= 0.9 * kind.size

    @growing
    def test_the_new_room_can_be_used(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        driver.expand(volume, kind.size * 2)
        data = os.urandom(MIB)
        blocks = int(1.2 * kind.size / MIB)
        for number in range(blocks):
            observe.put(target, data, offset=number * MIB)
        driver.detach(volume)
        target = driver.attach(volume)
        for number in (0, blocks - 1):
            assert observe.get(target, MIB, offset=number * MIB) == data

    @growing
    def test_while_a_file_is_being_written(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        observe.put(target, bytes(MIB))
        with Writer(target if kind.block else target / "data") as writer:
            for step in (1.25, 1.5, 2):
                driver.expand(volume, int(kind.size * step))
                writer.go_on()
        assert observe.get(target, MIB) == writer.last

    @growing
    def test_every_step_again_is_harmless(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        for _ in range(3):
            assert driver.expand_controller(volume, kind.size * 2).capacity_bytes == kind.size * 2
        for _ in range(3):
            assert driver.expand_node(volume, kind.size * 2).capacity_bytes in (0, kind.size * 2)
        grown = total(driver, volume, target)
        driver.expand(volume, kind.size)
        assert total(driver, volume, target) == grown

    @growing
    def test_at_the_staging_path(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        staging = driver.stage(volume)
        driver.expand_controller(volume, kind.size * 2)
        driver.expand_node(volume, kind.size * 2, path=staging)
        assert total(driver, volume, driver.publish(volume)) >= 1.5 * kind.size

    @growing
    def test_without_saying_how_far(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        driver.expand_controller(volume, kind.size * 2)
        driver.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_id=volume.id, volume_path=str(target)))
        assert total(driver, volume, target) >= 1.5 * kind.size

    @growing
    def test_every_target_grows_the_read_only_one_too(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=Mode.SINGLE_NODE_MULTI_WRITER)
        targets = [driver.attach(volume), driver.publish(volume, "reader", readonly=True)]
        driver.expand(volume, kind.size * 2)
        sizes = [total(driver, volume, target) for target in targets]
        assert sizes[0] == sizes[1] >= 1.5 * kind.size

    @growing
    def test_after_a_restart_in_between(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        driver.expand_controller(volume, kind.size * 2)
        driver.kill()
        driver.start()
        driver.expand_node(volume, kind.size * 2)
        assert total(driver, volume, target) >= 1.5 * kind.size

    @growing
    def test_the_smallest_volume_grows_by_a_little(self, driver: Driver, kind: Kind) -> None:
        """Filesystems have a least size, and some a least step; what the controller grants the node must do."""
        volume = kind.create(driver, size=1)
        target = driver.attach(volume)
        for step in (1, 2, 20):
            size = volume.size + step * MIB
            assert driver.expand_controller(volume, size).capacity_bytes >= size
            driver.expand_node(volume, size)
        observe.put(target, b"works")

    @pytest.mark.parametrize(
        "options",
        [
            "",
            "-O ^flex_bg",
            "-O ^has_journal",
            "-O ^resize_inode",
            "-O ^metadata_csum,^64bit",
            "-O sparse_super2",
            "-T small",
            "-T largefile4 -G 16",
            "-b 1024",
            "-i 65536 -I 512 -m 1 -E stride=2,stripe_width=4",
        ],
    )
    def test_ext4_grows_in_use_or_at_the_next_stage(self, driver: Driver, options: str) -> None:
        volume = EXT4.create(driver, params={**EXT4.params, "mkfsOptions": options})
        target = driver.attach(volume)
        observe.put(target, b"precious")
        driver.expand_controller(volume, EXT4.size * 2)
        code = outcome(lambda: driver.expand_node(volume, EXT4.size * 2))
        if code is Code.OK:
            assert total(driver, volume, target) >= 1.5 * EXT4.size
        assert observe.get(target, 8) == b"precious"
        driver.detach(volume)
        target = driver.attach(volume)
        assert total(driver, volume, target) >= 1.5 * EXT4.size
        assert observe.get(target, 8) == b"precious"
        driver.expand_node(volume, EXT4.size * 2)


class TestOffline:
    """Growth of a volume that nobody uses."""

    @every_and_btrfs
    def test_it_is_there_at_the_next_stage(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        observe.put(driver.attach(volume), b"precious")
        driver.detach(volume)
        driver.expand_controller(volume, kind.size * 2)
        target = driver.attach(volume)
        assert total(driver, volume, target) >= 1.5 * kind.size
        assert observe.get(target, 8) == b"precious"
        driver.expand_node(volume, kind.size * 2)

    @every_and_btrfs
    def test_of_a_volume_never_staged(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.expand_controller(volume, kind.size * 2)
        assert total(driver, volume, driver.attach(volume)) >= 1.5 * kind.size

    @pytest.mark.parametrize("kind", [EXT4, XFS, BTRFS], ids=str)
    def test_the_first_publish_may_be_read_only(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.attach(volume)
        driver.detach(volume)
        driver.expand_controller(volume, kind.size * 2)
        driver.stage(volume)
        assert total(driver, volume, driver.publish(volume, readonly=True)) >= 1.5 * kind.size


class TestNode:
    """NodeExpandVolume at the wrong place."""

    @mounted_kinds
    def test_where_the_volume_is_not(self, driver: Driver, kind: Kind) -> None:
        one, other = kind.create(driver), kind.create(driver)
        driver.attach(one)
        driver.attach(other)
        for path in (driver.target_path(other), driver.root, driver.root / "nowhere"):
            with refused(Code.NOT_FOUND, Code.FAILED_PRECONDITION):
                driver.expand_node(one, kind.size, path=path)

    @every_kind
    def test_before_it_is_staged(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        with refused(Code.NOT_FOUND, Code.FAILED_PRECONDITION):
            driver.expand_node(volume, kind.size)

    @every_kind
    def test_further_than_the_controller_went(self, driver: Driver, kind: Kind) -> None:
        """Whatever is answered must be true."""
        volume = kind.create(driver)
        target = driver.attach(volume)
        code = outcome(lambda: driver.expand_node(volume, kind.size * 2))
        assert code in (Code.OK, Code.OUT_OF_RANGE, Code.FAILED_PRECONDITION)
        assert (code is Code.OK) == (total(driver, volume, target) >= 1.5 * kind.size)

    @every_kind
    def test_without_a_path(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.attach(volume)
        with refused(Code.INVALID_ARGUMENT):
            driver.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_id=volume.id))


class Writer:
    """Writes a MiB over and over in a thread, durably, and stops at the first error."""

    def __init__(self, path: Path) -> None:
        self.path, self.rounds, self.last = path, 0, bytes(MIB)
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self.path.open("r+b", buffering=0) as file:
                while not self._stop.is_set():
                    self.last = bytes([self.rounds % 256]) * MIB
                    file.seek(0)
                    file.write(self.last)
                    os.fsync(file.fileno())
                    self.rounds += 1
        except OSError as error:
            self._error = error

    def go_on(self) -> None:
        """Return when another round has been written."""
        seen = self.rounds
        observe.until(lambda: self.rounds > seen, "the writer goes on")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
