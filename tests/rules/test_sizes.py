"""The size asked for, the size reported and the size delivered are one and the same."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Volume, capability, outcome, refused
from tests.observe import GIB, KIB, MIB
from tests.rules.kinds import (
    BLOCK,
    BTRFS,
    DIRECTORY,
    EVERY,
    EXT4,
    LOOPFILES,
    XFS,
    Kind,
    every_kind,
    fresh_name,
    loopfile_kinds,
    mounted_kinds,
)

if TYPE_CHECKING:
    from tests.conftest import Start
    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

FITRIM = 0xC0185879
"""Discard the free space of a mounted filesystem (linux/fs.h)."""
BLKDISCARD = 0x1277
"""Discard a range of a block device (linux/fs.h)."""

SHORTAGE = (Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED)
CONTRADICTION = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE)


def create(driver: Driver, kind: Kind, *, required: int = 0, limit: int = 0) -> Volume:
    """Create with exactly this range, zeros and nonsense included."""
    request = csi.CreateVolumeRequest(
        name=fresh_name(),
        parameters=kind.params,
        volume_capabilities=[capability(block=kind.block, fs=kind.fs)],
        capacity_range=csi.CapacityRange(required_bytes=required, limit_bytes=limit),
    )
    made = driver.controller.CreateVolume(request).volume
    return Volume(id=made.volume_id, size=made.capacity_bytes, capability=request.volume_capabilities[0])


def device(target: Path) -> Path:
    """Return the block device at a target, or under it."""
    if observe.is_block(target):
        return target
    mount = observe.mount_at(target)
    assert mount is not None
    return Path(mount.source)


def fill(target: Path) -> int:
    """Write until the volume is full, and return how many bytes went in durably."""
    chunk, written = os.urandom(MIB), 0
    with (target / "fill").open("wb", buffering=0) as file:
        try:
            while written < GIB:
                written += file.write(chunk)
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
    return written


def trim(target: Path) -> None:
    """Give back unused blocks, as fstrim or blkdiscard in a pod would; it may be unsupported."""
    handle = os.open(target, os.O_RDWR if observe.is_block(target) else os.O_RDONLY)
    try:
        if observe.is_block(target):
            fcntl.ioctl(handle, BLKDISCARD, struct.pack("=2Q", 0, observe.device_size(target)))
        else:
            fcntl.ioctl(handle, FITRIM, struct.pack("=3Q", 0, 2**64 - 1, 0))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise
    finally:
        os.close(handle)


@every_kind
@pytest.mark.parametrize("odd", [1, 511, 4097, MIB + 1])
def test_an_odd_size_is_rounded_up_never_down(driver: Driver, kind: Kind, odd: int) -> None:
    wanted = kind.size + odd
    assert wanted <= kind.create(driver, size=wanted).size <= wanted + MIB


@loopfile_kinds
@pytest.mark.parametrize("odd", [0, 1, 4097])
def test_the_device_has_the_size_reported(driver: Driver, kind: Kind, odd: int) -> None:
    volume = kind.create(driver, size=kind.size + odd)
    assert observe.device_size(device(driver.attach(volume))) == volume.size


@pytest.mark.parametrize("kind", [DIRECTORY, EXT4], ids=str)
def test_a_full_volume_holds_its_size_and_not_more(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    written = fill(driver.attach(volume))
    assert 0.8 * volume.size <= written <= volume.size


@mounted_kinds
def test_the_filesystem_is_as_large_as_its_volume(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    usage = {use.unit: use for use in driver.stats(volume, driver.attach(volume)).usage}
    assert 0.75 * volume.size <= usage[csi.VolumeUsage.BYTES].total <= volume.size


@pytest.mark.parametrize("kind", [*EVERY, BTRFS], ids=str)
def test_without_a_size_there_is_a_volume_that_works(driver: Driver, kind: Kind) -> None:
    volume = driver.create(fresh_name(), params=kind.params, fs=kind.fs, block=kind.block)
    assert volume.size > 0
    target = driver.attach(volume)
    observe.put(target, b"x" * MIB)
    assert observe.get(target, MIB) == b"x" * MIB


@every_kind
def test_exactly_this_size(driver: Driver, kind: Kind) -> None:
    assert create(driver, kind, required=kind.size, limit=kind.size).size == kind.size


@every_kind
def test_at_most_this_size(driver: Driver, kind: Kind) -> None:
    assert 0 < create(driver, kind, limit=kind.size + 1).size <= kind.size + 1


@every_kind
def test_exactly_an_odd_size_is_delivered_or_refused(driver: Driver, kind: Kind) -> None:
    odd = kind.size + 1
    if outcome(lambda: create(driver, kind, required=odd, limit=odd)) is Code.OK:
        assert [volume.capacity_bytes for volume in driver.volumes()] == [odd]
        return
    with refused(Code.OUT_OF_RANGE):
        create(driver, kind, required=odd, limit=odd)
    assert not driver.volumes()


@every_kind
def test_a_limit_below_what_is_required(driver: Driver, kind: Kind) -> None:
    with refused(*CONTRADICTION):
        create(driver, kind, required=kind.size, limit=kind.size - MIB)


@pytest.mark.parametrize(("required", "limit"), [(-1, 0), (0, -1), (-1, -1), (-(2**63), 2**63 - 1)])
def test_a_negative_size(driver: Driver, required: int, limit: int) -> None:
    with refused(Code.INVALID_ARGUMENT):
        create(driver, BLOCK, required=required, limit=limit)


def test_an_empty_range_is_no_range_or_refused(driver: Driver) -> None:
    """At least one of the two fields must be set; a CO that sets neither gets a volume or is told."""
    assert outcome(lambda: create(driver, BLOCK)) in (Code.OK, Code.INVALID_ARGUMENT)


@every_kind
@pytest.mark.parametrize("size", [100 * GIB, 1000**5, 2**63 - 1], ids=["100Gi", "1PB", "max"])
def test_more_than_there_is(driver: Driver, kind: Kind, size: int) -> None:
    with refused(*SHORTAGE):
        create(driver, kind, required=size)
    assert not driver.leftovers()


@pytest.mark.parametrize("kind", [*EVERY, BTRFS], ids=str)
@pytest.mark.parametrize("size", [1, 64 * KIB, MIB, 16 * MIB], ids=["1", "64Ki", "1Mi", "16Mi"])
def test_a_small_volume_works_if_it_is_granted(driver: Driver, kind: Kind, size: int) -> None:
    """Too small for its filesystem is said by CreateVolume, or made good there; staging is too late."""
    if outcome(lambda: create(driver, kind, required=size)) is not Code.OK:
        with refused(Code.OUT_OF_RANGE):
            create(driver, kind, required=size)
        return
    volume = kind.create(driver, size=size)
    assert volume.size >= size
    target = driver.attach(volume)
    observe.put(target, b"tiny")
    assert observe.get(target, 4) == b"tiny"
    if kind is not DIRECTORY:
        assert observe.device_size(device(target)) == volume.size


@pytest.mark.parametrize("kind", [EXT4, XFS, BTRFS], ids=str)
def test_a_limit_too_small_for_the_filesystem(driver: Driver, kind: Kind) -> None:
    with refused(Code.OUT_OF_RANGE):
        create(driver, kind, required=1, limit=4 * KIB)


@loopfile_kinds
def test_a_thick_volume_has_all_its_blocks_and_keeps_them(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    assert observe.allocated(driver.backing_file(volume)) >= volume.size
    target = driver.attach(volume)
    assert observe.allocated(driver.backing_file(volume)) >= volume.size, "mkfs gave blocks away"
    observe.put(target, b"x" * 8 * MIB)
    driver.detach(volume)
    assert observe.allocated(driver.backing_file(volume)) >= volume.size


@loopfile_kinds
def test_a_thick_volume_that_was_trimmed_is_whole_again_when_staged(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver)
    trim(driver.attach(volume))
    driver.detach(volume)
    driver.attach(volume)
    assert observe.allocated(driver.backing_file(volume)) >= volume.size


@pytest.mark.parametrize("fs", ["xfs", "btrfs", "ext4"])
@pytest.mark.parametrize("trimmed", [False, True], ids=["", "trimmed"])
def test_a_thick_volume_in_a_full_pool_can_be_written_again_and_again(start: Start, fs: str, *, trimmed: bool) -> None:
    """A write that finds no room would fail inside a pod, which `thick` promises never happens."""
    pool = start(f"image:{{root}}/pool.img,size=1Gi,fs={fs}")
    volume = BLOCK.create(pool, size=512 * MIB)
    target = pool.attach(volume)
    if trimmed:
        trim(target)
    while (room := pool.capacity(BLOCK.params).maximum_volume_size.value) > MIB:
        BLOCK.create(pool, size=room)
    block = os.urandom(4 * MIB)
    for _ in range(2):
        for offset in range(0, volume.size, len(block)):
            observe.put(target, block, offset=offset)


@pytest.mark.parametrize("kind", LOOPFILES, ids=str)
def test_a_thin_volume_takes_what_is_written(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver, params={"allocation": "thin"}, size=320 * MIB)
    target = driver.attach(volume)
    before = observe.allocated(driver.backing_file(volume))
    assert before < volume.size / 2
    observe.put(target, os.urandom(16 * MIB))
    driver.detach(volume)
    assert before < observe.allocated(driver.backing_file(volume)) < volume.size


def test_a_thin_volume_gives_back_what_is_trimmed(driver: Driver) -> None:
    volume = EXT4.create(driver, params={"allocation": "thin"})
    target = driver.attach(volume)
    observe.put(target, os.urandom(32 * MIB))
    full = observe.allocated(driver.backing_file(volume))
    (target / "data").unlink()
    os.sync()
    trim(target)
    assert observe.allocated(driver.backing_file(volume)) < full - 16 * MIB
