"""NodeGetVolumeStats: the volume's own numbers, at its own paths and nowhere else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, refused
from tests.observe import MIB
from tests.rules.kinds import BLOCK, BTRFS, DIRECTORY, EXT4, MOUNTED, XFS, Kind, every_kind, mounted_kinds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client import Volume
    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]


def usage(driver: Driver, volume: Volume, path: Path) -> dict[int, csi.VolumeUsage]:
    """Return the usage by unit, each at most once and none negative."""
    answer = driver.stats(volume, path).usage
    units = [use.unit for use in answer]
    assert len(set(units)) == len(units)
    assert csi.VolumeUsage.UNKNOWN not in units
    assert all(use.total >= 0 and use.used >= 0 and use.available >= 0 for use in answer)
    return {use.unit: use for use in answer}


def in_bytes(driver: Driver, volume: Volume, path: Path) -> csi.VolumeUsage:
    """Return the usage in bytes."""
    return usage(driver, volume, path)[csi.VolumeUsage.BYTES]


@mounted_kinds
def test_bytes_are_those_of_the_volume(driver: Driver, kind: Kind) -> None:
    """A directory has its own limit, not the room of the pool around it."""
    volume = kind.create(driver)
    target = driver.attach(volume)
    empty = in_bytes(driver, volume, target)
    assert 0.75 * volume.size <= empty.total <= volume.size
    assert empty.used + empty.available <= empty.total
    assert empty.available >= 0.6 * volume.size
    observe.put(target, os.urandom(16 * MIB))
    os.sync()
    full = in_bytes(driver, volume, target)
    assert full.total == empty.total
    assert 15 * MIB <= full.used - empty.used <= 18 * MIB
    assert 15 * MIB <= empty.available - full.available <= 18 * MIB


@mounted_kinds
def test_one_volume_does_not_count_another(driver: Driver, kind: Kind) -> None:
    one, other = kind.create(driver), kind.create(driver)
    before = in_bytes(driver, one, driver.attach(one))
    observe.put(driver.attach(other), os.urandom(16 * MIB))
    os.sync()
    assert abs(in_bytes(driver, one, driver.target_path(one)).used - before.used) < MIB


@pytest.mark.parametrize("kind", [EXT4, XFS], ids=str)
def test_inodes_are_counted(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    target = driver.attach(volume)
    before = usage(driver, volume, target)[csi.VolumeUsage.INODES]
    for number in range(100):
        (target / str(number)).touch()
    after = usage(driver, volume, target)[csi.VolumeUsage.INODES]
    assert after.used - before.used == 100
    assert after.used + after.available <= after.total < 2**40


@pytest.mark.parametrize("kind", [DIRECTORY, BTRFS], ids=str)
def test_inodes_without_a_limit_are_left_out_or_make_sense(driver: Driver, kind: Kind) -> None:
    """Btrfs has no fixed number of inodes and statvfs says 0: "0 of 0" would look full to an alert."""
    volume = kind.create(driver)
    inodes = usage(driver, volume, driver.attach(volume)).get(csi.VolumeUsage.INODES)
    assert inodes is None or (inodes.total > inodes.used and inodes.total < 2**62)


def test_a_raw_volume_has_a_size(driver: Driver) -> None:
    volume = BLOCK.create(driver)
    target = driver.attach(volume)
    assert in_bytes(driver, volume, target).total == volume.size == observe.device_size(target)


@mounted_kinds
def test_every_path_of_the_volume_will_do(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    target = driver.attach(volume)
    at_target = in_bytes(driver, volume, target)
    assert in_bytes(driver, volume, driver.staging_path(volume)).total == at_target.total
    request = csi.NodeGetVolumeStatsRequest(volume_id=volume.id, volume_path=str(target))
    assert driver.node.NodeGetVolumeStats(request).usage, "staging_target_path is optional"


@every_kind
def test_a_path_that_is_not_this_volumes(driver: Driver, kind: Kind) -> None:
    one, other = kind.create(driver), kind.create(driver)
    driver.attach(one)
    driver.attach(other)
    for path in (driver.target_path(other), driver.staging_path(other), driver.root, driver.root / "none"):
        with refused(Code.NOT_FOUND):
            driver.stats(one, path)


@every_kind
def test_a_path_where_the_volume_was(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    target = driver.attach(volume)
    driver.detach(volume)
    for path in (target, driver.staging_path(volume)):
        with refused(Code.NOT_FOUND):
            driver.stats(volume, path)


@every_kind
def test_a_target_whose_mount_was_taken_away(driver: Driver, kind: Kind) -> None:
    """Else the numbers are those of the node's root filesystem."""
    volume = kind.create(driver)
    target = driver.attach(volume)
    observe.unmount(target)
    with refused(Code.NOT_FOUND):
        driver.stats(volume, target)


@mounted_kinds
def test_a_folder_inside_the_volume_is_not_the_volume(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    inside = driver.attach(volume) / "inside"
    inside.mkdir()
    with refused(Code.NOT_FOUND):
        driver.stats(volume, inside)


@every_kind
@pytest.mark.parametrize("path", ["", "relative", "./target"])
def test_a_path_that_is_no_path(driver: Driver, kind: Kind, path: str) -> None:
    volume = kind.create(driver)
    driver.attach(volume)
    with refused(Code.INVALID_ARGUMENT, *([Code.NOT_FOUND] if path else [])):
        driver.node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(volume_id=volume.id, volume_path=path))


@every_kind
def test_a_sound_volume_is_in_normal_condition(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    answer = driver.stats(volume, driver.attach(volume))
    assert answer.HasField("volume_condition")
    assert not answer.volume_condition.abnormal
    assert answer.volume_condition.message


@pytest.mark.parametrize("kind", MOUNTED, ids=str)
def test_a_full_volume_still_has_stats(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    target = driver.attach(volume)
    with pytest.raises(OSError, match=r"No space|quota"):
        observe.put(target, bytes(volume.size + MIB))
    full = in_bytes(driver, volume, target)
    assert full.available < 4 * MIB
    assert full.used <= full.total


@pytest.mark.parametrize("kind", MOUNTED, ids=str)
def test_stats_at_a_read_only_target(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    driver.stage(volume)
    target = driver.publish(volume, readonly=True)
    assert in_bytes(driver, volume, target).total > 0
