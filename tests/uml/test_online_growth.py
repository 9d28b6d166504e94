"""Loopfile volumes grow while they are mounted and written to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.driver import serving
from tests.observe import MIB, allocated, device_size, get, loops, put
from tests.uml.conftest import MKFS_XFS, make_filesystem, mounted
from tests.uml.writing import fill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.driver import Driver
    from tests.uml.conftest import Disks

pytestmark = [pytest.mark.uml, pytest.mark.usefixtures("nothing_left")]

SMALL, LARGE = 320 * MIB, 448 * MIB
LAZY_S = 3
"""The kernel zeroes the new inode tables of an ext4 that it has grown within that, if it does."""
LOOPFILE = {"backend": "loopfile"}


@pytest.fixture(scope="module")
def running(disks: Disks) -> Iterator[Driver]:
    """Serve a pool on a disk of its own."""
    disk = disks.take()
    make_filesystem(MKFS_XFS, disk)
    with mounted(disk) as path, serving(f"disk=path:{path}") as driver:
        yield driver
    disks.give_back(disk)


@pytest.fixture
def driver(running: Driver) -> Driver:
    """Name the driver that `nothing_left` looks after."""
    return running


@pytest.mark.parametrize(
    ("fs", "options"),
    [("ext4", ""), ("ext4", "-O ^flex_bg"), ("ext4", "-O ^resize_inode"), ("xfs", ""), ("btrfs", "")],
)
@pytest.mark.parametrize("allocation", ["thick", "thin"])
def test_a_mounted_volume_grows_under_its_writer(driver: Driver, fs: str, options: str, allocation: str) -> None:
    params = {**LOOPFILE, "allocation": allocation, "mkfsOptions": options}
    volume = driver.create("growing", SMALL, params=params, fs=fs)
    target = driver.attach(volume)
    data = os.urandom(8 * MIB)
    put(target, data, name="old")
    before = total(target)

    with (target / "held").open("wb", buffering=0) as held:
        held.write(b"before")
        assert driver.expand(volume, LARGE) == LARGE
        held.write(b"after")

    assert device_size(loop_of(driver.backing_file(volume))) == LARGE
    assert total(target) - before >= (LARGE - SMALL) * 0.9
    assert get(target, 8 * MIB, name="old") == data
    assert (target / "held").read_bytes() == b"beforeafter"
    assert not fill(target, name="new", at_most=SMALL + 16 * MIB)

    driver.detach(volume)
    target = driver.attach(volume)
    assert get(target, 8 * MIB, name="old") == data
    assert (target / "new").stat().st_size == SMALL + 16 * MIB


def test_a_thick_volume_grows_where_only_the_difference_is_left(driver: Driver) -> None:
    """XFS wants the whole range of a fallocate(2) free, and not only those blocks that the file lacks."""
    volume = driver.create("growing", SMALL, params=LOOPFILE, fs="ext4")
    target = driver.attach(volume)
    assert driver.expand(volume, 2 * SMALL) == 2 * SMALL
    assert allocated(driver.backing_file(volume)) >= 2 * SMALL
    assert total(target) > 1.8 * SMALL
    time.sleep(LAZY_S)
    assert allocated(driver.backing_file(volume)) >= 2 * SMALL


def test_what_grows_when_it_is_staged_is_mounted_by_then(driver: Driver, folder: Path) -> None:
    """resize2fs alone must not be killed in the middle of its work; the kernel may."""
    program = folder / "resize2fs"
    program.write_text('#!/bin/sh\ngrep -q "^$1 " /proc/mounts || exit 1\nexec /usr/sbin/resize2fs "$@"\n')
    program.chmod(0o755)
    driver.stop()
    driver.env = {**driver.env, "PATH": f"{folder}:{driver.env['PATH']}"}
    driver.start()
    volume = driver.create("growing", SMALL, params=LOOPFILE, fs="ext4")
    target = driver.attach(volume)
    data = os.urandom(MIB)
    put(target, data)
    before = total(target)
    driver.detach(volume)
    driver.expand_controller(volume, LARGE)
    target = driver.attach(volume)
    assert total(target) - before >= (LARGE - SMALL) * 0.9
    assert get(target, MIB) == data


def total(path: Path) -> int:
    """Return what df calls the size."""
    seen = os.statvfs(path)
    return seen.f_blocks * seen.f_frsize


def loop_of(image: Path) -> Path:
    """Return the loop device that an image is attached to."""
    (device,) = [device for device, file in loops().items() if file == str(image)]
    return Path(device)
