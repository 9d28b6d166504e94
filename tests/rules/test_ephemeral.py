"""Inline ephemeral volumes, as the kubelet asks for them: NodePublishVolume makes, NodeUnpublishVolume removes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Volume, capability, inline, refused
from tests.observe import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

FS_TYPE = "csi.storage.k8s.io/fstype"
DIRECTORY = {"size": "64Mi", "backend": "directory"}
EXT4 = {"size": "64Mi"}
XFS = {"size": "320Mi", FS_TYPE: "xfs"}
every = pytest.mark.parametrize("attributes", [DIRECTORY, EXT4, XFS], ids=["directory", "ext4", "xfs"])


@every
def test_a_whole_life(driver: Driver, attributes: Mapping[str, str]) -> None:
    volume = inline(attributes)
    target = driver.publish_inline(volume)
    assert (target / "lost+found").exists() or not list(target.iterdir())
    observe.put(target, b"scratch")
    mounts = observe.mounts(target)
    assert len(mounts) == 1
    driver.publish_inline(volume)
    assert observe.mounts(target) == mounts, "a second mount was put on top of the first"
    assert observe.get(target, 7) == b"scratch"
    driver.unpublish(volume, target)
    assert not target.exists()
    driver.unpublish(volume, target)
    assert not driver._remains()


@every
def test_a_new_pod_finds_nothing_of_the_old_one(driver: Driver, attributes: Mapping[str, str]) -> None:
    first, second = inline(attributes), inline(attributes)
    observe.put(driver.publish_inline(first), b"secret")
    observe.put(driver.publish_inline(second), b"public")
    assert observe.get(driver.publish_inline(first), 6) == b"secret"


@every
def test_its_size_is_a_limit(driver: Driver, attributes: Mapping[str, str]) -> None:
    volume = inline(attributes)
    target = driver.publish_inline(volume)
    stats = driver.stats(volume, target)
    (used,) = (usage for usage in stats.usage if usage.unit == csi.VolumeUsage.BYTES)
    size = int(attributes["size"].removesuffix("Mi")) * MIB
    assert size * 0.7 < used.total <= size
    assert not stats.volume_condition.abnormal
    with pytest.raises(OSError, match=r"space|quota"):
        observe.put(target, b"x" * (size + MIB))


@every
def test_read_only(driver: Driver, attributes: Mapping[str, str]) -> None:
    volume = inline(attributes)
    target = driver.publish_inline(volume, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_bytes(b"x")
    driver.publish_inline(volume, readonly=True)
    with refused(Code.ALREADY_EXISTS):
        driver.publish_inline(volume)


@every
def test_a_group(driver: Driver, attributes: Mapping[str, str]) -> None:
    target = driver.publish_inline(inline(attributes), group="4711")
    found = target.stat()
    assert (found.st_gid, found.st_mode & 0o2070) == (4711, 0o2070)


@every
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_new_driver(driver: Driver, attributes: Mapping[str, str], how: str) -> None:
    volume = inline(attributes)
    target = driver.publish_inline(volume)
    observe.put(target, b"scratch")
    for again in (True, False):
        if how == "stop":
            driver.stop()
        else:
            driver.kill()
        driver.start()
        if again:
            driver.publish_inline(volume)
            assert observe.get(target, 7) == b"scratch"
            assert len(observe.mounts(target)) == 1
    driver.unpublish(volume, target)
    assert not target.exists()


@every
def test_after_a_reboot(driver: Driver, attributes: Mapping[str, str]) -> None:
    """Nothing is mounted any more. The kubelet starts the pod again, or takes it down."""
    volume, other = inline(attributes), inline(attributes)
    target, unmounted = driver.publish_inline(volume), driver.publish_inline(other)
    observe.put(target, b"scratch")
    driver.stop()
    for path in (target, unmounted):
        observe.unmount(path)
    driver.start()
    driver.publish_inline(volume)
    assert observe.get(target, 7) == b"scratch"
    driver.unpublish(other, unmounted)
    assert not unmounted.exists()


@every
def test_no_other_way_leads_to_it(driver: Driver, attributes: Mapping[str, str]) -> None:
    """Who may make a PersistentVolume must not reach into another's pod."""
    volume = inline(attributes)
    target = driver.publish_inline(volume)
    (place,) = (path for root in driver.pool_roots() for path in root.glob("volumes/ephemeral-*"))
    for shown in (volume.id, place.name):
        stranger = Volume(id=shown, capability=volume.capability)
        with refused(Code.NOT_FOUND):
            driver.stage(stranger)
        with refused(Code.NOT_FOUND):
            driver.publish(stranger)
        with refused(Code.NOT_FOUND):
            driver.expand_controller(stranger, 1024 * MIB)
        driver.unstage(stranger)
        driver.unpublish(stranger)
        driver.delete(stranger)
    assert place.exists()
    observe.unmount(target)  # as after a reboot: nothing but its record says whose it is
    driver.unpublish(Volume(id=volume.id), "target")
    assert place.exists()
    assert driver.volumes() == []


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"size": "0"},
        {"size": "huge"},
        {"size": "1Gi", "path": "/etc"},
        {"size": "1Gi", "mkfsOptions": "-N 1000000"},
        {"size": "64Mi", "backend": "directory", "quota": "advisory"},
        {"size": "64Mi", "backend": "../../etc"},
        {"size": "64Mi", "encryption": "luks2"},
        {"size": "64Mi", FS_TYPE: "ntfs"},
        {"size": "64Mi", "csi.storage.k8s.io/pvc/name": "x"},
    ],
    ids=str,
)
def test_what_is_refused(driver: Driver, attributes: Mapping[str, str]) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.publish_inline(inline(attributes))


def test_an_unknown_attribute_hears_of_those_there_are(driver: Driver) -> None:
    with refused(Code.INVALID_ARGUMENT) as refusal:
        driver.publish_inline(inline({"size": "64Mi", "colour": "blue"}))
    assert "'colour'" in refusal.message
    for name in ("size", "backend", "pool", "media", "allocation", FS_TYPE):
        assert name in refusal.message


@pytest.mark.parametrize("pool", ["../../etc", "/", "no-such-pool", "pool-0/../pool-1", "\x00", "volumes"], ids=repr)
def test_a_pool_that_is_none(driver: Driver, pool: str) -> None:
    with refused(Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT):
        driver.publish_inline(inline({"size": "64Mi", "pool": pool}))


@pytest.mark.parametrize("handle", ["../../../etc", "/etc/passwd", "a b", "..", "é", "x" * 128])
def test_any_handle(driver: Driver, handle: str) -> None:
    volume = Volume(id=handle, capability=inline({}).capability, context=inline(EXT4).context)
    target = driver.root / "kubelet" / "any" / "mount"
    driver.publish_inline(volume, target=str(target))
    driver.unpublish(volume, target)
    assert not target.exists()


def test_a_link_at_the_target_is_not_followed(driver: Driver, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = driver.root / "kubelet" / "link" / "mount"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(outside)
    volume = inline(EXT4)
    with refused(Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT):
        driver.publish_inline(volume, target=str(target))
    assert not observe.mounts(outside)
    assert not driver._remains()
    driver.forget()
    shutil.rmtree(target.parent)


def test_what_fails_leaves_nothing(driver: Driver) -> None:
    """The kubelet takes such an answer for the end, and never unpublishes."""
    target = driver.root / "kubelet" / "taken" / "mount"
    target.mkdir(parents=True)
    observe.mount_tmpfs(target)
    volume = inline(EXT4)
    with refused(Code.FAILED_PRECONDITION):
        driver.publish_inline(volume, target=str(target))
    observe.unmount(target)
    assert not driver._remains()
    driver.forget()
    shutil.rmtree(target.parent)


def test_a_staging_path_makes_no_sense(driver: Driver) -> None:
    volume = inline(EXT4)
    with refused(Code.INVALID_ARGUMENT):
        driver.publish(volume)


def test_a_raw_block_device_is_refused(driver: Driver) -> None:
    volume = inline(EXT4)
    with refused(Code.INVALID_ARGUMENT):
        driver.node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume.id,
                target_path=str(driver.root / "targets" / "block"),
                volume_capability=capability(block=True),
                volume_context=volume.context,
            )
        )


def test_the_pods_directory_may_be_gone(driver: Driver) -> None:
    volume = inline(EXT4)
    target = driver.publish_inline(volume)
    observe.unmount(target)
    shutil.rmtree(target.parents[3])
    driver.unpublish(volume, target)
