"""What others did to a volume's mounts and devices must not keep it, or its pod, on the node."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.client import Code, Mode, Volume, capability, refused
from tests.rules.kinds import BLOCK, DIRECTORY, EXT4, MOUNTED, XFS, Kind, every_kind, mounted_kinds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Start
    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

SHARED = Mode.SINGLE_NODE_MULTI_WRITER


@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_a_filesystem_that_was_shut_down_is_left(driver: Driver, *, restart: bool) -> None:
    """An XFS that met an error answers EIO to everything, stat(2) of its root too."""
    volume = XFS.create(driver)
    target = driver.attach(volume)
    _run("xfs_io", "-x", "-c", "shutdown", str(target))
    with pytest.raises(OSError, match="Input/output error"):
        target.stat()
    if restart:
        driver.restart()
    driver.detach(volume)
    assert not target.exists()
    observe.put(driver.attach(volume), b"as good as new")


@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_a_raw_block_device_that_was_detached_is_left(driver: Driver, *, restart: bool) -> None:
    volume = BLOCK.create(driver)
    target = driver.attach(volume)
    _detach(driver, volume)
    if restart:
        driver.restart()
    driver.detach(volume)
    assert not target.exists()


def test_a_raw_block_device_that_became_another_volumes_is_left(driver: Driver) -> None:
    volume, other = BLOCK.create(driver), BLOCK.create(driver)
    target = driver.attach(volume)
    _detach(driver, volume)
    driver.stage(other)
    with refused(Code.FAILED_PRECONDITION):  # a pod has its device
        driver.publish(other)
    driver.detach(volume)
    assert not target.exists()
    observe.put(driver.publish(other), b"its own")


@mounted_kinds
def test_a_covered_staging_path_is_told_of(driver: Driver, kind: Kind) -> None:
    """Its device must not be taken from beneath it, nor the volume be said to have left."""
    volume = kind.create(driver)
    staging = driver.stage(volume)
    observe.mount_tmpfs(staging)
    with refused(Code.FAILED_PRECONDITION) as refusal:
        driver.unstage(volume)
    assert "something else over that" in refusal.message
    observe.unmount(staging)
    driver.unstage(volume)
    assert observe.mount_at(staging) is None


class TestTheLimitOfVolumes:
    """It counts what is on the node, not what once was."""

    @every_kind
    def test_what_others_took_away_does_not_count(self, start: Start, kind: Kind) -> None:
        driver = start("image:{root}/btrfs.img,size=2Gi,fs=btrfs", args=["--max-volumes", "1"])
        first, second = kind.create(driver), kind.create(driver)
        staging = driver.stage(first)
        with refused(Code.RESOURCE_EXHAUSTED):
            driver.stage(second)
        if kind.block:
            _detach(driver, first)
        else:
            observe.unmount(staging)  # its loop device goes with it
        driver.stage(second)
        with refused(Code.RESOURCE_EXHAUSTED):
            driver.stage(first)

    def test_what_an_administrator_removed_does_not_count(self, start: Start) -> None:
        driver = start("image:{root}/btrfs.img,size=2Gi,fs=btrfs", args=["--max-volumes", "1"])
        first, second = DIRECTORY.create(driver), DIRECTORY.create(driver)
        observe.unmount(driver.stage(first))
        shutil.rmtree(driver.volume_dir(first))
        driver.stage(second)

    def test_two_staging_paths_are_one_volume(self, start: Start) -> None:
        driver = start("image:{root}/btrfs.img,size=2Gi,fs=btrfs", args=["--max-volumes", "1"])
        first, second = EXT4.create(driver), EXT4.create(driver)
        twice = driver.root / "twice"
        driver.stage(first)
        driver.stage(first, twice)
        driver.unstage(first)
        with refused(Code.RESOURCE_EXHAUSTED):
            driver.stage(second)
        driver.unstage(first, twice)
        driver.stage(second)


@pytest.mark.parametrize("kind", MOUNTED, ids=str)
@pytest.mark.parametrize("flags", [("ro",), ("noexec", "nosuid"), ()], ids=["ro", "noexec", "none"])
def test_how_a_volume_is_staged_is_seen_after_a_restart(driver: Driver, kind: Kind, flags: tuple[str, ...]) -> None:
    volume = kind.create(driver)
    asked, other = (capability(fs=kind.fs, flags=one) for one in (flags, () if flags else ("ro",)))
    driver.stage(volume, access=asked)
    driver.kill()
    driver.start()
    with refused(Code.ALREADY_EXISTS):
        driver.stage(volume, access=other)
    driver.stage(volume, access=asked)


def test_a_filesystem_that_became_read_only_is_staged_as_before(driver: Driver) -> None:
    """Errors make it so, and its mount is as it was asked for."""
    volume = EXT4.create(driver)
    staging = driver.stage(volume)
    _run("mount", "-o", "remount,ro", str(staging))
    _run("mount", "-o", "remount,bind,rw", str(staging))
    driver.restart()
    driver.stage(volume)


@mounted_kinds
def test_a_target_is_no_staging_path(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver, mode=SHARED)
    target = driver.attach(volume)
    with refused(Code.INVALID_ARGUMENT):
        driver.publish(volume, "another", staging=target)
    with refused(Code.INVALID_ARGUMENT):
        driver.stage(volume, target)
    _forget(driver, volume, target)


def _detach(driver: Driver, volume: Volume) -> None:
    (device,) = (name for name, file in observe.loops().items() if file == str(driver.backing_file(volume)))
    _run("losetup", "-d", device)
    assert device not in observe.loops()


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


def _forget(driver: Driver, volume: Volume, staging: Path) -> None:
    """It was refused, and so is not to be unstaged there."""
    driver._stagings.pop((volume.id, staging))
