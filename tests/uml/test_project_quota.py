"""Directory volumes with a hard limit, by project quota: the same promises on XFS and on ext4."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from csi_local.host import quota
from csi_local.host.removal import remove_directory
from csi_local.model.quantity import Bytes
from tests.driver import Driver, serving
from tests.observe import MIB, put, until
from tests.uml.conftest import MKFS_EXT4_PRJQUOTA, MKFS_XFS, make_filesystem, mounted
from tests.uml.projects import quotas
from tests.uml.writing import CONTAINER_ROOT, NOBODY, ROOT, fill, usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.uml.conftest import Disks

pytestmark = [pytest.mark.uml, pytest.mark.usefixtures("nothing_left")]

SIZE = 64 * MIB
SLACK = MIB
"""Room for the folder itself and the filesystem's rounding."""
DIRECTORY = {"backend": "directory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A mounted filesystem with project quota."""

    path: Path
    full: str  # what a writer is told at the limit
    binds_root: bool


@pytest.fixture(scope="module", params=["xfs", "ext4"])
def ground(request: pytest.FixtureRequest, disks: Disks) -> Iterator[Ground]:
    """Mount each filesystem in turn, for all tests of this module."""
    xfs = request.param == "xfs"
    disk = disks.take()
    make_filesystem(MKFS_XFS if xfs else MKFS_EXT4_PRJQUOTA, disk)
    with mounted(disk, "prjquota") as path:
        full = os.strerror(errno.ENOSPC if xfs else errno.EDQUOT)
        yield Ground(path=path, full=full, binds_root=xfs)
    disks.give_back(disk)


@pytest.fixture(scope="module")
def running(ground: Ground) -> Iterator[Driver]:
    """Serve a pool on that filesystem."""
    with serving(f"disk=path:{ground.path}") as driver:
        yield driver


@pytest.fixture
def driver(running: Driver) -> Driver:
    """Name the driver that `nothing_left` looks after."""
    return running


@pytest.fixture(autouse=True)
def counted(ground: Ground) -> None:
    """Wait until nothing of an earlier test is counted: XFS does so in the background, after the files are gone."""
    until(lambda: not quotas(ground.path), "no project of an earlier test is left")


@pytest.mark.parametrize("writer", [CONTAINER_ROOT, NOBODY], ids=["container-root", "nobody"])
def test_a_write_past_the_size_fails_and_stays_within(driver: Driver, ground: Ground, writer: Sequence[str]) -> None:
    target = driver.attach(driver.create("limited", SIZE, params=DIRECTORY))
    inner = target / "some" / "folder"
    inner.mkdir(parents=True)
    inner.chmod(0o777)
    assert ground.full in fill(inner, writer=writer)
    assert SIZE - SLACK <= usage(target) <= SIZE


def test_only_xfs_binds_a_writer_with_cap_sys_resource(driver: Driver, ground: Ground) -> None:
    target = driver.attach(driver.create("mighty", SIZE, params=DIRECTORY))
    objection = fill(target, writer=ROOT, at_most=SIZE + 8 * MIB)
    assert (ground.full in objection) == ground.binds_root
    assert (usage(target) <= SIZE) == ground.binds_root


def test_df_shows_the_volume_and_not_the_pool(driver: Driver) -> None:
    target = driver.attach(driver.create("shown", SIZE, params=DIRECTORY))
    put(target, b"x" * (10 * MIB))
    seen = os.statvfs(target)
    assert seen.f_blocks * seen.f_frsize == SIZE
    assert SIZE - 11 * MIB <= seen.f_bavail * seen.f_frsize <= SIZE - 10 * MIB


def test_volume_stats_report_the_volume_and_not_the_pool(driver: Driver) -> None:
    volume = driver.create("reported", SIZE, params=DIRECTORY)
    target = driver.attach(volume)
    put(target, b"x" * (10 * MIB))
    (bytes_,) = [one for one in driver.stats(volume, target).usage if one.unit == one.BYTES]
    assert bytes_.total == SIZE
    assert 10 * MIB <= bytes_.used <= 11 * MIB
    assert bytes_.available == bytes_.total - bytes_.used


def test_growing_raises_the_limit_at_once_under_a_writer(driver: Driver, ground: Ground) -> None:
    volume = driver.create("growing", SIZE, params=DIRECTORY)
    target = driver.attach(volume)
    with (target / "data").open("ab", buffering=0) as held:
        assert ground.full in fill(target)
        assert driver.expand(volume, 2 * SIZE) == 2 * SIZE
        seen = os.statvfs(target)
        assert seen.f_blocks * seen.f_frsize == 2 * SIZE
        assert held.write(b"x" * MIB) == MIB
    assert ground.full in fill(target)
    assert 2 * SIZE - SLACK <= usage(target) <= 2 * SIZE


def test_a_full_volume_is_no_neighbours_business(driver: Driver, ground: Ground) -> None:
    greedy, modest = (driver.attach(driver.create(name, SIZE, params=DIRECTORY)) for name in ("greedy", "modest"))
    assert ground.full in fill(greedy)
    assert not fill(modest, at_most=SIZE - 2 * MIB)


def test_deletion_takes_the_limit_with_it_and_the_next_volume_has_all_of_its_own(
    driver: Driver, ground: Ground
) -> None:
    for turn in range(3):
        volume = driver.create(f"turn-{turn}", SIZE, params=DIRECTORY)
        target = driver.attach(volume)
        assert ground.full in fill(target)
        assert usage(target) >= SIZE - SLACK
        assert [quota.limit for quota in quotas(ground.path).values()] == [SIZE]
        driver.detach(volume)
        driver.delete(volume)
        until(lambda: not quotas(ground.path), "the deleted volume's project is gone")


def test_a_removal_that_is_stopped_leaves_no_limit_without_its_directory(ground: Ground) -> None:
    project = 4711
    data = ground.path / "removed"
    for removes in (False, True):

        def stopped(path: str, *, removes: bool = removes) -> None:
            if removes:
                remove_directory(path)
            raise KeyboardInterrupt

        data.mkdir(exist_ok=True)
        quota.limit_project(str(data), project, Bytes(SIZE))
        with pytest.raises(KeyboardInterrupt):
            quota.remove_limited_directory(str(data), stopped)
        if data.exists():
            quota.remove_limited_directory(str(data), remove_directory)
        until(lambda: not quotas(ground.path), "the project is gone with its directory")


def test_limits_hold_after_a_restart(driver: Driver, ground: Ground) -> None:
    volume = driver.create("kept", SIZE, params=DIRECTORY)
    target = driver.attach(volume)
    put(target, b"x" * (10 * MIB))
    driver.restart()
    other = driver.attach(driver.create("later", SIZE, params=DIRECTORY))
    assert ground.full in fill(target)
    assert SIZE - SLACK <= usage(target) <= SIZE
    assert len({quota.limit for quota in quotas(ground.path).values()}) == 1
    assert not fill(other, at_most=SIZE - 2 * MIB)


def test_a_retry_finds_the_limit_of_the_first_call(driver: Driver, ground: Ground) -> None:
    first = driver.create("again", SIZE, params=DIRECTORY)
    taken = quotas(ground.path)
    assert driver.create("again", SIZE, params=DIRECTORY) == first
    assert quotas(ground.path) == taken
