"""A thick volume's blocks stay reserved while nobody looks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.driver import serving
from tests.observe import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.driver import Driver

pytestmark = pytest.mark.root

SIZE = 512 * MIB
LAZY_S = 10
"""The kernel zeroes a new ext4's inode tables within seconds, and a loop device does that by punching holes."""


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with serving("pool=image:{root}/pool.img,size=3Gi") as running:
        yield running


def test_seconds_after_the_first_mount(driver: Driver) -> None:
    volumes = [driver.create(f"thick-{fs}", SIZE, fs=fs) for fs in ("ext4", "xfs", "btrfs")]
    for volume in volumes:
        driver.attach(volume)
    time.sleep(LAZY_S)
    for volume in volumes:
        assert driver.backing_file(volume).stat().st_blocks * 512 >= SIZE, volume.id
        driver.detach(volume)
        driver.delete(volume)
