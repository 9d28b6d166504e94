"""A whole disk as a pool: formatted once, and never if it holds anything."""

from __future__ import annotations

import hashlib
import re
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.driver import Driver, serving
from tests.observe import MIB, device_size, get, put, take_down, until
from tests.uml.conftest import MKFS_EXT4, filesystem_of, make_filesystem, uuid_of
from tests.uml.writing import fill, usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.uml

SIZE = 64 * MIB
MBR = bytes(446) + bytes([0, 0, 2, 0, 0x83, 0, 3, 0]) + (2048).to_bytes(4, "little") * 2 + bytes(48) + b"\x55\xaa"
"""A partition table with one Linux partition (UEFI specification, 5.2.1)."""
LUKS2 = b"LUKS\xba\xbe\x00\x02" + (16384).to_bytes(8, "big")
"""The start of a LUKS2 header (LUKS2 On-Disk Format Specification, 2.1)."""


def write(data: bytes, offset: int, disk: Path) -> None:
    """Write to a disk; a negative offset counts from its end."""
    put(disk, data, offset=offset % device_size(disk))


def test_a_blank_disk_is_formatted_once_and_keeps_its_volumes(disk: Path) -> None:
    with serving(f"disk=device:{disk}") as driver:
        assert filesystem_of(disk) == "xfs"
        made = uuid_of(disk)
        directory = driver.create("directory", SIZE, params={"backend": "directory"})
        loopfile = driver.create("loopfile", SIZE, params={"backend": "loopfile"}, fs="ext4")
        for volume in (directory, loopfile):
            put(driver.attach(volume), volume.id.encode())

        driver.restart()
        for volume in (directory, loopfile):
            driver.detach(volume)
            assert get(driver.attach(volume), 64) == volume.id.encode()

        reboot(driver)
        driver.start()
        assert uuid_of(disk) == made
        assert {volume.volume_id for volume in driver.volumes()} == {directory.id, loopfile.id}
        for volume in (directory, loopfile):
            assert get(driver.attach(volume), 64) == volume.id.encode()
        driver.release()


def test_its_directory_volumes_have_hard_limits(disk: Path) -> None:
    with serving(f"disk=device:{disk}") as driver:
        target = driver.attach(driver.create("limited", SIZE, params={"backend": "directory"}))
        assert "No space left" in fill(target)
        assert usage(target) <= SIZE
        driver.release()


@pytest.mark.parametrize(
    ("hold", "named"),
    [
        (partial(make_filesystem, MKFS_EXT4), "ext4"),
        (partial(make_filesystem, ("mkswap",)), "swap"),
        (partial(write, MBR, 0), "partition|dos"),
        (partial(write, LUKS2, 0), "LUKS"),
        (partial(write, b"somebody's", 0), "byte|data|blank|zero"),
        (partial(write, b"somebody's", -4096), "byte|data|blank|zero"),
    ],
    ids=["ext4", "swap", "partitions", "luks", "bytes-at-the-start", "bytes-at-the-end"],
)
def test_a_disk_that_holds_anything_is_refused_untouched(hold: Callable[[Path], None], named: str, disk: Path) -> None:
    hold(disk)
    before, written = fingerprint(disk), sectors_written(disk)
    with refusing(f"disk=device:{disk}") as driver:
        complaint = re.compile(named, re.IGNORECASE)
        until(lambda: complaint.search(driver.output()) or not driver.running, f"the driver names the {named}")
        assert not driver.is_ready()
        assert complaint.search(driver.output())
        assert str(disk) in driver.output()
    assert sectors_written(disk) == written
    assert fingerprint(disk) == before


@contextmanager
def refusing(*pools: str) -> Iterator[Driver]:
    """Run a driver that is not expected to become ready."""
    driver = Driver(Path(tempfile.mkdtemp(prefix="csi-", dir="/tmp")), *pools)
    try:
        driver.launch()
        yield driver
    finally:
        print(driver.output())
        driver.destroy()


def reboot(driver: Driver) -> None:
    """Kill the driver and take down all its mounts and loop devices: a reboot leaves the disk alone."""
    roots = driver.pool_roots()
    driver.kill()
    for root in (driver.root, *roots):
        take_down(root)


def fingerprint(disk: Path) -> str:
    """Digest both ends of a disk, where everything that says what it is lives."""
    size = device_size(disk)
    with disk.open("rb") as file:
        head = file.read(16 * MIB)
        file.seek(size - MIB)
        return hashlib.sha256(head + file.read()).hexdigest()


def sectors_written(disk: Path) -> int:
    """Return how much was written to a disk since boot (Documentation/block/stat.rst)."""
    return int(Path("/sys/block", disk.name, "stat").read_text().split()[6])
