"""What pods do with a published volume: subPath, propagation, several of them, and PersistentVolumes made by hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.client import POD, Code, Mode, Volume, capability, refused
from tests.observe import MIB
from tests.rules.kinds import BLOCK, Kind, every_kind, mounted_kinds

if TYPE_CHECKING:
    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

SHARED = Mode.SINGLE_NODE_MULTI_WRITER


def bare(volume: Volume, kind: Kind, **context: str) -> Volume:
    """Return the volume as a PersistentVolume has it that somebody wrote by hand: no attributes but *context*."""
    return Volume(id=volume.id, capability=capability(block=kind.block, mode=SHARED), context=context)


class TestByHand:
    @every_kind
    def test_no_attributes_and_no_filesystem_named(self, driver: Driver, kind: Kind) -> None:
        volume = bare(kind.create(driver, mode=SHARED), kind)
        observe.put(driver.attach(volume), b"data")
        driver.restart()
        assert observe.get(driver.publish(volume), 4) == b"data"
        driver.detach(volume)
        assert observe.get(driver.attach(volume), 4) == b"data"
        assert driver.expand_controller(volume, kind.size + 16 * MIB).capacity_bytes == kind.size + 16 * MIB

    @every_kind
    def test_attributes_of_others(self, driver: Driver, kind: Kind) -> None:
        """With podInfoOnMount the kubelet adds these to every volume's; and people write what they like."""
        said = {"csi.storage.k8s.io/ephemeral": "false", **POD, "colour": "blue"}
        volume = bare(kind.create(driver, mode=SHARED), kind, **said)
        observe.put(driver.attach(volume), b"data")

    def test_ephemeral_is_not_a_matter_of_opinion(self, driver: Driver) -> None:
        volume = Volume(id="any", context={"csi.storage.k8s.io/ephemeral": "yes"})
        with refused(Code.INVALID_ARGUMENT):
            driver.publish(volume)

    def test_a_volume_that_is_not_there(self, driver: Driver) -> None:
        volume = Volume(id="not-there")
        with refused(Code.NOT_FOUND):
            driver.stage(volume)
        with refused(Code.NOT_FOUND):
            driver.publish(volume)


class TestSubPath:
    """The kubelet binds a directory of the target elsewhere, before the container starts, and unbinds it after."""

    @mounted_kinds
    def test_it_is_the_volumes(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=SHARED)
        target = driver.attach(volume)
        (target / "part").mkdir()
        sub = driver.root / "targets" / volume.id / "sub"
        sub.mkdir()
        observe.mount_bind(target / "part", sub)
        observe.put(sub, b"through the part")
        assert observe.get(target / "part", 16) == b"through the part"
        other = driver.publish(volume, "other")
        assert observe.get(other / "part", 16) == b"through the part"
        observe.unmount(sub)
        sub.rmdir()

    @mounted_kinds
    def test_one_that_stays_keeps_the_volume(self, driver: Driver, kind: Kind) -> None:
        """The kubelet forgot it: the target can go, but nothing may be detached or removed under the pod."""
        volume = kind.create(driver, mode=SHARED)
        target = driver.attach(volume)
        (target / "part").mkdir()
        sub = driver.root / "targets" / volume.id / "sub"
        sub.mkdir()
        observe.mount_bind(target / "part", sub)
        driver.unpublish(volume)
        driver.unstage(volume)
        with refused(Code.FAILED_PRECONDITION) as refusal:
            driver.delete(volume)
        assert str(sub) in refusal.message
        observe.put(sub, b"still there")
        observe.unmount(sub)
        sub.rmdir()
        assert observe.get(driver.attach(volume) / "part", 11) == b"still there"

    @mounted_kinds
    def test_of_a_reader(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=SHARED)
        writer = driver.attach(volume)
        (writer / "part").mkdir()
        reader = driver.publish(volume, "reader", readonly=True)
        sub = driver.root / "targets" / volume.id / "sub"
        sub.mkdir()
        observe.mount_bind(reader / "part", sub)
        with pytest.raises(OSError, match="Read-only"):
            (sub / "intruder").write_text("x")
        observe.unmount(sub)
        sub.rmdir()


class TestPropagation:
    """The kubelet's directory is shared with containers: what is mounted there must reach them, and leave them."""

    @every_kind
    def test_what_is_published_reaches_others(self, driver: Driver, kind: Kind) -> None:
        kubelet = driver.root / "shared"
        kubelet.mkdir()
        observe.mount_bind(kubelet, kubelet)
        subprocess.run(["mount", "--make-shared", str(kubelet)], check=True)  # noqa: S607
        with subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "cat"],  # noqa: S607
            stdin=subprocess.PIPE,
        ) as container:
            try:
                observe.until(lambda: Path(f"/proc/{container.pid}/comm").read_text() == "cat\n", "it runs")
                volume = kind.create(driver, mode=SHARED)
                staging = driver.stage(volume, kubelet / "staging")
                target = driver.publish(volume, kubelet / "target", staging=staging)
                assert seen_by(container.pid, target)
                driver.unpublish(volume, target)
                assert not seen_by(container.pid, target)
                driver.unstage(volume, staging)
                assert not seen_by(container.pid, kubelet / "staging")
                driver.delete(volume)
            finally:
                container.communicate()
        observe.unmount(kubelet)
        shutil.rmtree(kubelet)


def seen_by(process: int, path: Path) -> bool:
    """Whether another mount namespace has a mount there."""
    return any(line.split(" ")[4] == str(path) for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines())


class TestOneByOne:
    @every_kind
    def test_a_pod_for_one_is_followed_by_another(self, driver: Driver, kind: Kind) -> None:
        """ReadWriteOncePod: the next pod waits for the last one's end, and then has what it wrote."""
        volume = kind.create(driver, mode=Mode.SINGLE_NODE_SINGLE_WRITER)
        observe.put(driver.attach(volume), b"first")
        with refused(Code.FAILED_PRECONDITION):
            driver.publish(volume, "next")
        driver.unpublish(volume)
        assert observe.get(driver.publish(volume, "next"), 5) == b"first"

    def test_a_block_device_of_several_pods(self, driver: Driver) -> None:
        volume = BLOCK.create(driver, mode=SHARED)
        driver.stage(volume)
        one, two = driver.publish(volume, "one"), driver.publish(volume, "two")
        reader = driver.publish(volume, "reader", readonly=True)
        observe.put(one, b"shared")
        assert observe.get(two, 6) == b"shared"
        assert observe.device_size(one) == observe.device_size(reader) == volume.size
        with pytest.raises(OSError, match=r"Read-only|permitted"):
            observe.put(reader, b"x")
        driver.unpublish(volume, "one")
        observe.put(two, b"two alone")
