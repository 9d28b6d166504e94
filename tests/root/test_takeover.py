"""What a new driver finds and does where the one before it was killed."""

from __future__ import annotations

import fcntl
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.driver import serving
from tests.observe import MIB, put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.driver import Driver

pytestmark = pytest.mark.root

SIZE = 400 * MIB
FIFREEZE = 0xC0045877


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with serving("pool=image:{root}/pool.img,size=3Gi") as running:
        yield running


def freeze(path: Path) -> None:
    """Do what fsfreeze(8) does, and die."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
def test_a_frozen_filesystem_is_thawed(driver: Driver, fs: str) -> None:
    volume = driver.create(f"frozen-{fs}", SIZE, fs=fs)
    target = driver.attach(volume)
    put(target, b"before")
    driver.kill()
    freeze(target)
    with subprocess.Popen(["/usr/bin/touch", f"{target}/of a pod's"]) as pod:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                pod.wait(timeout=1)
            driver.restart()
            assert pod.wait(timeout=10) == 0
        finally:
            subprocess.run(["/usr/sbin/fsfreeze", "--unfreeze", target], capture_output=True, check=False)
    assert "was left frozen; it is thawed" in driver.output()
    driver.detach(volume)
    driver.delete(volume)


def test_what_is_not_frozen_is_not_spoken_of(driver: Driver) -> None:
    volume = driver.create("warm", SIZE, fs="ext4")
    driver.attach(volume)
    driver.kill()
    said = len(driver.output())
    driver.restart()
    assert "frozen" not in driver.output()[said:]
    driver.detach(volume)
    driver.delete(volume)


def test_a_disk_stays_mounted_for_its_directory_volumes(folder: Path) -> None:
    """A driver that stops in good order takes no pool away from the next one, which would see its disk in use."""
    disk = folder / "disk"
    with disk.open("xb") as file:
        file.truncate(SIZE)
    device = subprocess.run(
        ["/usr/sbin/losetup", "--find", "--show", disk], check=True, capture_output=True, text=True
    ).stdout
    try:
        with serving(f"pool=device:{device.strip()},fs=btrfs") as driver:
            volume = driver.create("directory", 16 * MIB, params={"backend": "directory"})
            target = driver.attach(volume)
            driver.restart()
            put(target, b"still there")
            driver.detach(volume)
            driver.delete(volume)
    finally:
        subprocess.run(["/usr/sbin/losetup", "--detach", device.strip()], check=True)
