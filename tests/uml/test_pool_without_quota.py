"""A pool whose filesystem could limit directories, mounted so that it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.client import Code, refused
from tests.driver import serving
from tests.observe import MIB
from tests.uml.conftest import MKFS_EXT4, MKFS_XFS, make_filesystem, mounted
from tests.uml.writing import fill, usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.driver import Driver
    from tests.uml.conftest import Disks

pytestmark = [pytest.mark.uml, pytest.mark.usefixtures("nothing_left")]

SIZE = 64 * MIB
REFUSALS = (Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT)


@pytest.fixture(scope="module", params=[MKFS_XFS, MKFS_EXT4], ids=["xfs", "ext4"])
def running(request: pytest.FixtureRequest, disks: Disks) -> Iterator[Driver]:
    """Serve a pool on a filesystem without project quota."""
    disk = disks.take()
    make_filesystem(request.param, disk)
    with mounted(disk) as path, serving(f"disk=path:{path}") as driver:
        yield driver
    disks.give_back(disk)


@pytest.fixture
def driver(running: Driver) -> Driver:
    """Name the driver that `nothing_left` looks after."""
    return running


def test_a_hard_limit_is_refused_and_an_advisory_one_is_not(driver: Driver) -> None:
    with refused(*REFUSALS) as refusal:
        driver.create("hard", SIZE, params={"backend": "directory"})
    assert "prjquota" in refusal.message
    assert "advisory" in refusal.message
    assert not driver.volumes()

    target = driver.attach(driver.create("soft", SIZE, params={"backend": "directory", "quota": "advisory"}))
    assert not fill(target, at_most=SIZE + 8 * MIB)
    assert usage(target) == SIZE + 8 * MIB


def test_no_capacity_is_promised_for_what_would_be_refused(driver: Driver) -> None:
    assert driver.capacity({"backend": "directory"}).available_capacity == 0
    assert driver.capacity({"backend": "directory", "quota": "advisory"}).available_capacity > SIZE
