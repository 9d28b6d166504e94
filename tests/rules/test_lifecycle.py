"""Calls in the wrong order: what cannot be done is refused, and the data is there afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.client import Code, Mode, Volume, outcome, refused
from tests.rules.kinds import Kind, every_kind, mounted_kinds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

DATA = b"precious" * 1000


def filled(driver: Driver, kind: Kind) -> Volume:
    """Return a volume with data in it, staged and published nowhere."""
    volume = kind.create(driver, mode=Mode.SINGLE_NODE_MULTI_WRITER)
    observe.put(driver.attach(volume), DATA)
    driver.detach(volume)
    return volume


def holds_its_data(target: Path) -> bool:
    """Whether the data is there."""
    return observe.get(target, len(DATA)) == DATA


def healed_or_refused(driver: Driver, volume: Volume) -> None:
    """Either the data is published, or nothing is and the CO is told to stage."""
    code = outcome(lambda: driver.publish(volume))
    assert code in (Code.OK, Code.FAILED_PRECONDITION)
    target = driver.target_path(volume)
    if code is Code.OK:
        assert holds_its_data(target)
    else:
        assert not observe.mounts(target)
        driver.stage(volume)
        assert holds_its_data(driver.publish(volume))


class TestDelete:
    """A volume in use is not deleted."""

    @every_kind
    def test_while_staged(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        driver.stage(volume)
        with refused(Code.FAILED_PRECONDITION):
            driver.delete(volume)
        assert holds_its_data(driver.publish(volume))

    @every_kind
    def test_while_published(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        target = driver.attach(volume)
        with refused(Code.FAILED_PRECONDITION):
            driver.delete(volume)
        assert holds_its_data(target)
        driver.detach(volume)
        assert holds_its_data(driver.attach(volume))

    @every_kind
    def test_while_in_use_after_a_restart(self, driver: Driver, kind: Kind) -> None:
        """What is in use is known from the kernel, not from memory."""
        volume = filled(driver, kind)
        target = driver.attach(volume)
        driver.kill()
        driver.start()
        with refused(Code.FAILED_PRECONDITION):
            driver.delete(volume)
        assert holds_its_data(target)

    @every_kind
    def test_twice(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        for _ in range(3):
            driver.delete(volume)
        with refused(Code.NOT_FOUND):
            driver.stage(volume)

    @every_kind
    def test_a_new_volume_of_the_same_name_is_empty(self, driver: Driver, kind: Kind) -> None:
        name = "reborn"
        first = kind.create(driver, name=name)
        observe.put(driver.attach(first), DATA)
        driver.detach(first)
        driver.delete(first)
        target = driver.attach(kind.create(driver, name=name))
        if kind.block:
            assert observe.nonzero(target) is None
        else:
            assert {path.name for path in target.iterdir()} <= {"lost+found"}


class TestStage:
    """Publish without its stage."""

    @every_kind
    def test_publish_of_a_volume_never_staged(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        healed_or_refused(driver, volume)

    @every_kind
    def test_publish_after_the_staging_mount_was_taken_away(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        staging = driver.stage(volume)
        for mount in reversed(observe.mounts(staging)):
            observe.unmount(mount.target)
        healed_or_refused(driver, volume)

    @every_kind
    def test_publish_after_everything_was_taken_away(self, driver: Driver, kind: Kind) -> None:
        """A reboot, as the driver sees it: mounts and loop devices gone, folders and records still there."""
        volume = filled(driver, kind)
        driver.attach(volume)
        driver.kill()
        observe.take_down(driver.root)
        driver.start()
        healed_or_refused(driver, volume)
        driver.unpublish(volume)
        driver.unstage(volume)
        assert holds_its_data(driver.attach(volume))

    @mounted_kinds
    def test_stage_after_its_mount_was_taken_away(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        staging = driver.stage(volume)
        for mount in reversed(observe.mounts(staging)):
            observe.unmount(mount.target)
        driver.stage(volume)
        assert holds_its_data(driver.publish(volume))


class TestUnstage:
    """Unstage before its unpublish."""

    @every_kind
    def test_while_published(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        target = driver.attach(volume)
        code = outcome(lambda: driver.unstage(volume))
        assert code in (Code.OK, Code.FAILED_PRECONDITION)
        assert holds_its_data(target), "the pod lost its volume"
        observe.put(target, DATA[::-1])
        driver.unpublish(volume)
        driver.unstage(volume)
        assert observe.get(driver.attach(volume), len(DATA)) == DATA[::-1]

    @every_kind
    def test_while_published_and_then_delete(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        target = driver.attach(volume)
        outcome(lambda: driver.unstage(volume))
        with refused(Code.FAILED_PRECONDITION):
            driver.delete(volume)
        assert holds_its_data(target)

    @every_kind
    def test_while_published_and_staged_again(self, driver: Driver, kind: Kind) -> None:
        volume = filled(driver, kind)
        first = driver.attach(volume)
        outcome(lambda: driver.unstage(volume))
        driver.stage(volume)
        second = driver.publish(volume, "second")
        observe.put(second, DATA[::-1])
        assert observe.get(first, len(DATA)) == DATA[::-1], "two filesystems over one image"
