"""Growing a volume on its node: where it is mounted, and how."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from csi_local.model.errors import FailedPrecondition, OutOfRange, SyscallFailed
from csi_local.model.quantity import GIB
from csi_local.model.volume import CapacityRange, MountAccess
from tests.unit.rig import PATIENCE_S, Rig, capability
from tests.unit.rig import request as asked

STAGING, TARGET = "/kubelet/staging", "/kubelet/target"
LARGER = CapacityRange(required=2 * GIB)


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Give a driver whose only volume is of each filesystem."""
    made = Rig("loops=image:/pools/loops.img,size=8Gi")
    made.host.ext4_grows_mounted = True
    made.start()
    made.volumes.create(asked("data", GIB, {"csi.storage.k8s.io/fstype": request.param}), PATIENCE_S)
    return made


def grow(rig: Rig, path: str) -> None:
    rig.sizes.expand("data", LARGER, None, PATIENCE_S)
    rig.sizes.expand_on_node("data", path, LARGER, None, PATIENCE_S)


def size_at(rig: Rig, path: str) -> int:
    return rig.host.walk(path, "test").mount.filesystem.grown


@pytest.mark.parametrize("wanted", [CapacityRange(limit=GIB), CapacityRange(required=4 * GIB, limit=3 * GIB)], ids=str)
def test_a_range_that_does_not_allow_the_size(rig: Rig, wanted: CapacityRange) -> None:
    rig.publisher.stage("data", STAGING, capability(), PATIENCE_S)
    rig.sizes.expand("data", LARGER, None, PATIENCE_S)
    with pytest.raises(OutOfRange):
        rig.sizes.expand_on_node("data", STAGING, wanted, None, PATIENCE_S)
    assert size_at(rig, STAGING) == GIB
    allowed = CapacityRange(required=GIB, limit=2 * GIB)
    assert rig.sizes.expand_on_node("data", STAGING, allowed, None, PATIENCE_S) == 2 * GIB


def test_a_reader_s_path_is_as_good_as_any(rig: Rig) -> None:
    """The filesystem is grown where it can be written."""
    rig.publisher.stage("data", STAGING, capability(), PATIENCE_S)
    rig.publisher.publish("data", (STAGING, TARGET), capability(), PATIENCE_S, read_only=True)
    grow(rig, TARGET)
    assert size_at(rig, TARGET) == 2 * GIB


def test_staged_read_only_it_grows_later(rig: Rig) -> None:
    only_read = dataclasses.replace(capability(), access=MountAccess(flags=("ro",)))
    rig.publisher.stage("data", STAGING, capability(), PATIENCE_S)  # which formats it
    rig.publisher.unstage("data", STAGING, PATIENCE_S)
    rig.publisher.stage("data", STAGING, only_read, PATIENCE_S)
    with pytest.raises(FailedPrecondition, match="read-only"):
        grow(rig, STAGING)
    rig.publisher.unstage("data", STAGING, PATIENCE_S)
    rig.publisher.stage("data", STAGING, capability(), PATIENCE_S)
    assert size_at(rig, STAGING) == 2 * GIB


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_what_is_promised_is_what_the_record_says(rig: Rig, *, late: bool) -> None:
    """A disk may fail when the new record has its name, before that is durable: the retry has no more to promise."""
    rig.host.fail("replace_file", errno.EIO, late=late)
    with pytest.raises(SyscallFailed):
        rig.sizes.expand("data", LARGER, None, PATIENCE_S)
    rig.sizes.expand("data", LARGER, None, PATIENCE_S)
    assert rig.pools.get("loops").view().promised == 2 * GIB
