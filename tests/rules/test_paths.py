"""Staging and target paths: made, removed, verified, and never trusted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Mode, Volume, outcome, refused
from tests.rules.kinds import BLOCK, EXT4, Kind, every_kind, mounted_kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

REFUSED = (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
ODD_NAME = "a space, a\ttab=\na line #\u00e9 \\040 \\ quo'te\""


@pytest.fixture
def elsewhere(driver: Driver) -> Iterator[Path]:
    """Give a folder of somebody else's; what stands in it is taken down afterwards."""
    path = driver.root / "elsewhere"
    path.mkdir()
    yield path
    for mount in reversed(observe.mounts(path)):
        observe.unmount(mount.target)
    shutil.rmtree(path)


def stage_at(driver: Driver, volume: Volume, staging: str) -> None:
    """Stage at a path as it is written, without making it."""
    driver.node.NodeStageVolume(
        csi.NodeStageVolumeRequest(
            volume_id=volume.id, staging_target_path=staging, volume_capability=volume.capability
        )
    )


def publish_at(driver: Driver, volume: Volume, target: str, *, staging: str | None = None) -> None:
    """Publish at a path as it is written, without making its parent."""
    driver.node.NodePublishVolume(
        csi.NodePublishVolumeRequest(
            volume_id=volume.id,
            staging_target_path=str(driver.staging_path(volume)) if staging is None else staging,
            target_path=target,
            volume_capability=volume.capability,
        )
    )


def make(target: Path, kind: Kind) -> None:
    """Make what a volume of this kind is mounted on."""
    if kind.block:
        target.touch()
    else:
        target.mkdir()


class TestTargets:
    """The driver makes the target and removes it; its parent is the CO's."""

    @every_kind
    def test_a_target_is_made_and_removed(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        assert observe.is_block(target) if kind.block else target.is_mount()
        driver.unpublish(volume)
        assert not os.path.lexists(target)
        assert target.parent.is_dir()

    @every_kind
    def test_a_target_that_is_there_already_is_used(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.target_path(volume)
        target.parent.mkdir(parents=True)
        make(target, kind)
        driver.attach(volume)
        observe.put(target, b"there")
        driver.unpublish(volume)
        assert not os.path.lexists(target)

    @every_kind
    def test_odd_paths_are_recognised_again(self, driver: Driver, kind: Kind) -> None:
        """The kernel writes them with escapes."""
        volume = kind.create(driver)
        staging = driver.root / "staging" / ODD_NAME
        target = driver.root / "targets" / ODD_NAME / ODD_NAME
        for _ in range(2):
            driver.stage(volume, staging)
            driver.publish(volume, target, staging=staging)
        assert len(observe.mounts(target)) == 1
        observe.put(target, b"odd")
        driver.unpublish(volume, target)
        driver.unstage(volume, staging)
        assert not observe.mounts(target.parent)
        assert not observe.mounts(staging)

    @every_kind
    def test_a_symlink_on_the_way_is_followed_every_time(self, driver: Driver, kind: Kind, elsewhere: Path) -> None:
        """The kubelet directory is a symlink on many a machine, and mountinfo knows only the real path."""
        kubelet = driver.root / "targets" / "kubelet"
        kubelet.parent.mkdir(exist_ok=True)
        kubelet.symlink_to(elsewhere)
        volume = kind.create(driver)
        for _ in range(2):
            driver.stage(volume, kubelet / "staging")
            driver.publish(volume, kubelet / "pods" / "target", staging=kubelet / "staging")
        observe.put(kubelet / "pods" / "target", b"reached")
        assert len(observe.mounts(elsewhere / "pods")) == 1
        driver.stats(volume, kubelet / "pods" / "target")
        driver.unpublish(volume, kubelet / "pods" / "target")
        driver.unstage(volume, kubelet / "staging")
        assert not observe.mounts(elsewhere)
        assert not os.path.lexists(elsewhere / "pods" / "target")
        kubelet.unlink()

    @every_kind
    def test_a_target_that_is_a_symlink_is_refused(self, driver: Driver, kind: Kind, elsewhere: Path) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        link = elsewhere / "link"
        real = elsewhere / "real"
        make(real, kind)
        link.symlink_to(real)
        with refused(*REFUSED):
            publish_at(driver, volume, str(link))
        assert not observe.mounts(elsewhere)
        assert outcome(lambda: driver.unpublish(volume, link)) in (Code.OK, *REFUSED)
        assert real.exists()

    @every_kind
    @pytest.mark.parametrize("target", ["target", "./target", "", "../target"])
    def test_a_relative_target_is_refused(self, driver: Driver, kind: Kind, target: str) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        with refused(Code.INVALID_ARGUMENT):
            publish_at(driver, volume, target)
        with refused(Code.INVALID_ARGUMENT):
            driver.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=volume.id, target_path=target))

    @every_kind
    def test_a_target_with_dots_is_refused(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        with refused(Code.INVALID_ARGUMENT):
            publish_at(driver, volume, f"{driver.root}/staging/../dots")
        assert not (driver.root / "dots").exists()

    @mounted_kinds
    @pytest.mark.parametrize("below", ["", "..", "volumes", "volumes/here", "snapshots/here", "groups", ".new-here"])
    def test_a_pool_is_neither_hidden_nor_written_to(self, driver: Driver, kind: Kind, below: str) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        for root in driver.pool_roots():
            place = (root / below).resolve()
            with refused(Code.INVALID_ARGUMENT):
                publish_at(driver, volume, str(place))
            with refused(Code.INVALID_ARGUMENT):
                stage_at(driver, volume, str(place))

    @mounted_kinds
    def test_nothing_is_mounted_inside_a_volume(self, driver: Driver, kind: Kind) -> None:
        """A volume that is staged inside its own target could never be taken from the node again."""
        volume = kind.create(driver, mode=Mode.SINGLE_NODE_MULTI_WRITER)
        target, other = driver.attach(volume), kind.create(driver)
        inside = target / "inside"
        inside.mkdir()
        driver.stage(other)
        for one in (volume, other):
            with refused(Code.INVALID_ARGUMENT):
                publish_at(driver, one, str(inside))
            with refused(Code.INVALID_ARGUMENT):
                stage_at(driver, one, str(inside))

    @pytest.mark.parametrize("target", ["/proc/self/cwd", "/dev/null", "/nul\0"], ids=ascii)
    def test_a_target_that_cannot_be_is_refused(self, driver: Driver, target: str) -> None:
        volume = EXT4.create(driver)
        driver.stage(volume)
        before = driver.standing()
        with refused(*REFUSED, Code.NOT_FOUND):
            publish_at(driver, volume, target)
        assert driver.standing() == before
        assert observe.mount_at(Path(target)) is None

    @every_kind
    def test_a_target_where_nothing_can_be_written_is_refused(
        self, driver: Driver, kind: Kind, elsewhere: Path
    ) -> None:
        """No pool is missing: not UNAVAILABLE."""
        volume, read_only = kind.create(driver), elsewhere / "read-only"
        read_only.mkdir()
        observe.mount_tmpfs(read_only, read_only=True)
        driver.stage(volume)
        with refused(Code.FAILED_PRECONDITION) as refusal:
            publish_at(driver, volume, f"{read_only}/inside")
        assert "read-only" in refusal.message

    def test_a_file_where_a_folder_must_be(self, driver: Driver, elsewhere: Path) -> None:
        volume = EXT4.create(driver)
        driver.stage(volume)
        (elsewhere / "target").write_text("mine")
        with refused(*REFUSED):
            publish_at(driver, volume, str(elsewhere / "target"))
        assert (elsewhere / "target").read_text() == "mine"

    def test_a_folder_where_a_device_must_be(self, driver: Driver, elsewhere: Path) -> None:
        volume = BLOCK.create(driver)
        driver.stage(volume)
        (elsewhere / "target").mkdir()
        with refused(*REFUSED):
            publish_at(driver, volume, str(elsewhere / "target"))
        assert (elsewhere / "target").is_dir()


class TestUnpublish:
    """Undoing is always possible, and undoes only its own."""

    @every_kind
    def test_twice(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.attach(volume)
        for _ in range(2):
            driver.unpublish(volume)
        for _ in range(2):
            driver.unstage(volume)

    @every_kind
    def test_of_a_path_that_never_was(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.unpublish(volume, driver.root / "no" / "such" / "target")
        driver.unstage(volume, driver.root / "no" / "such" / "staging")

    @every_kind
    def test_of_a_target_whose_mount_was_taken_away(self, driver: Driver, kind: Kind) -> None:
        """After a reboot the folder or file is still there, and the mount is not."""
        volume = kind.create(driver)
        target = driver.attach(volume)
        observe.unmount(target)
        assert target.exists()
        driver.unpublish(volume)
        assert not target.exists()

    @every_kind
    def test_of_a_target_mounted_over_twice(self, driver: Driver, kind: Kind) -> None:
        """An older driver, or kubelet, may have stacked a second mount of the same volume."""
        volume = kind.create(driver)
        target = driver.attach(volume)
        observe.mount_bind(target, target)
        observe.until(lambda: outcome(lambda: driver.unpublish(volume)) is Code.OK, "a repeated call succeeds")
        assert not observe.mounts(target)
        assert not target.exists()

    @mounted_kinds
    def test_of_a_target_in_use_says_so_or_detaches_it(self, driver: Driver, kind: Kind) -> None:
        """Busy is an answer; OK with the mount still there is a lie."""
        volume = kind.create(driver)
        target = driver.attach(volume)
        with (target / "open").open("w"):
            code = outcome(lambda: driver.unpublish(volume))
            assert (code is Code.OK) == (not observe.mounts(target))
        driver.unpublish(volume)
        assert not target.exists()

    @every_kind
    def test_leaves_another_volumes_target_alone(self, driver: Driver, kind: Kind) -> None:
        one, other = kind.create(driver), kind.create(driver)
        driver.attach(one)
        target = driver.attach(other)
        observe.put(target, b"other's")
        assert outcome(lambda: driver.unpublish(one, target)) in (Code.OK, *REFUSED)
        assert observe.get(target, 7) == b"other's"
        assert len(observe.mounts(target)) == 1

    @every_kind
    def test_leaves_somebody_elses_mount_alone(self, driver: Driver, kind: Kind, elsewhere: Path) -> None:
        volume = kind.create(driver)
        driver.attach(volume)
        observe.mount_tmpfs(elsewhere)
        (elsewhere / "file").write_text("mine")
        assert outcome(lambda: driver.unpublish(volume, elsewhere)) in (Code.OK, *REFUSED)
        assert (elsewhere / "file").read_text() == "mine"

    @every_kind
    def test_leaves_a_folder_with_files_alone(self, driver: Driver, kind: Kind, elsewhere: Path) -> None:
        volume = kind.create(driver)
        (elsewhere / "file").write_text("mine")
        assert outcome(lambda: driver.unpublish(volume, elsewhere)) in (Code.OK, *REFUSED)
        assert (elsewhere / "file").read_text() == "mine"

    def test_of_an_unknown_volume_leaves_everything_alone(self, driver: Driver, elsewhere: Path) -> None:
        (elsewhere / "file").write_text("mine")
        assert outcome(lambda: driver.unpublish(Volume(id="unknown"), elsewhere)) in (Code.OK, *REFUSED)
        assert outcome(lambda: driver.unstage(Volume(id="unknown"), elsewhere)) in (Code.OK, *REFUSED)
        assert (elsewhere / "file").read_text() == "mine"

    def test_of_a_deleted_volumes_leftover_target_is_done(self, driver: Driver) -> None:
        """Kubelet retries NodeUnpublish for ever until it is OK, even if the volume went meanwhile."""
        volume = EXT4.create(driver)
        driver.delete(volume)
        driver.target_path(volume).mkdir(parents=True)
        driver.unpublish(volume)


def test_a_device_that_something_is_mounted_over_is_still_there(driver: Driver) -> None:
    """Its loop device would be another volume's soon, and the node at the target would give that away."""
    device, other = BLOCK.create(driver), EXT4.create(driver)
    over = driver.staging_path(other)
    over.mkdir(parents=True)
    driver.stage(device)
    target = driver.publish(device, over / "inside")
    driver.stage(other)
    with refused(Code.FAILED_PRECONDITION):
        driver.unstage(device)
    with refused(Code.FAILED_PRECONDITION):
        driver.unpublish(device, target)
    with refused(Code.FAILED_PRECONDITION):
        driver.delete(device)
    driver.unstage(other)
    driver.unpublish(device, target)
    driver.unstage(device)


class TestStaging:
    """The staging path is this volume's mount, or it is nothing."""

    @every_kind
    def test_twice(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        before = driver.standing()
        driver.stage(volume)
        assert driver.standing() == before

    @every_kind
    @pytest.mark.parametrize("staging", ["staging", "./staging", "", "../staging"])
    def test_a_relative_path_is_refused(self, driver: Driver, kind: Kind, staging: str) -> None:
        volume = kind.create(driver)
        with refused(Code.INVALID_ARGUMENT):
            stage_at(driver, volume, staging)
        with refused(Code.INVALID_ARGUMENT):
            driver.node.NodeUnstageVolume(
                csi.NodeUnstageVolumeRequest(volume_id=volume.id, staging_target_path=staging)
            )

    @every_kind
    def test_a_path_that_is_not_there_is_made_or_refused(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        path = driver.staging_path(volume)
        code = outcome(lambda: stage_at(driver, volume, str(path)))
        assert code in (Code.OK, *REFUSED, Code.NOT_FOUND)
        if code is Code.OK:
            driver.publish(volume)
        driver.detach(volume)

    @every_kind
    def test_without_a_path_publish_is_refused(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        with refused(Code.FAILED_PRECONDITION):
            publish_at(driver, volume, str(driver.root / "targets" / "x"), staging="")

    @every_kind
    def test_a_relative_path_is_refused_by_publish_too(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        with refused(*REFUSED):
            publish_at(driver, volume, str(driver.root / "targets" / "x"), staging="staging")

    @every_kind
    def test_a_second_path_is_refused_or_shares(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        observe.put(driver.attach(volume), b"first")
        second = driver.root / "staging" / "second"
        code = outcome(lambda: driver.stage(volume, second))
        assert code in (Code.OK, *REFUSED, Code.ALREADY_EXISTS)
        assert observe.get(driver.target_path(volume), 5) == b"first"

    @mounted_kinds
    def test_the_path_of_another_volume_is_refused(self, driver: Driver, kind: Kind) -> None:
        one, other = kind.create(driver), kind.create(driver)
        staging = driver.stage(one)
        with refused(*REFUSED, Code.ALREADY_EXISTS):
            stage_at(driver, other, str(staging))
        driver.stage(other)
        observe.put(driver.publish(other), b"other's")
        with refused(*REFUSED):
            publish_at(driver, one, str(driver.target_path(one)), staging=str(driver.staging_path(other)))
        assert not driver.target_path(one).exists()

    @mounted_kinds
    def test_somebody_elses_mount_is_refused(self, driver: Driver, kind: Kind, elsewhere: Path) -> None:
        """What is published must be the volume: what is written to a tmpfs is lost."""
        volume = kind.create(driver)
        observe.mount_tmpfs(elsewhere)
        with refused(*REFUSED):
            publish_at(driver, volume, str(driver.root / "target"), staging=str(elsewhere))
        assert not (driver.root / "target").exists()

    @every_kind
    def test_unstage_leaves_another_volume_alone(self, driver: Driver, kind: Kind) -> None:
        one, other = kind.create(driver), kind.create(driver)
        driver.stage(one)
        target = driver.attach(other)
        observe.put(target, b"other's")
        assert outcome(lambda: driver.unstage(one, driver.staging_path(other))) in (Code.OK, *REFUSED)
        assert observe.get(target, 7) == b"other's"
        driver.unpublish(other)
        assert observe.get(driver.publish(other), 7) == b"other's"

    @every_kind
    def test_unstage_leaves_somebody_elses_mount_alone(self, driver: Driver, kind: Kind, elsewhere: Path) -> None:
        volume = kind.create(driver)
        observe.mount_tmpfs(elsewhere)
        assert outcome(lambda: driver.unstage(volume, elsewhere)) in (Code.OK, *REFUSED)
        assert elsewhere.is_mount()

    @every_kind
    def test_unstage_lets_go_of_everything(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.attach(volume)
        driver.detach(volume)
        assert not driver.standing()
        assert driver.staging_path(volume).is_dir(), "the staging folder is the CO's"
