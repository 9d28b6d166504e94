"""Publishing: the specification's table of access modes, and what may be at the target."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from csi_local.model.errors import AlreadyExists, DriverError, FailedPrecondition
from csi_local.model.mount_options import MountOptions
from csi_local.model.observed import FileKind
from csi_local.model.operations import (
    Attach,
    BindDevice,
    BindMount,
    MakeTargetDirectory,
    MakeTargetFile,
    SetGroup,
)
from csi_local.model.volume import AccessMode, BlockAccess, Capability, FormatState, MountAccess
from csi_local.plan.publishing import SHARED_MODES, Publication, PublishSeen, publish
from tests.unit.test_staging import LAYOUT, PATHS, info, kinds, volume

if TYPE_CHECKING:
    from csi_local.model.operations import Operation

STAGING, TARGET = "/staging", "/target"
SHARED = (AccessMode.SINGLE_NODE_MULTI_WRITER, AccessMode.MULTI_NODE_READER_ONLY)
READERS = (AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY)
ONE_NODE = [mode for mode in AccessMode if not mode.multi_node]
BLOCK = volume(FormatState.NONE, None)


def wanted(
    mode: AccessMode = AccessMode.SINGLE_NODE_WRITER,
    *,
    read_only: bool = False,
    block: bool = False,
    group: int | None = None,
) -> Publication:
    """Say how to publish."""
    access = BlockAccess() if block else MountAccess(group=group)
    return Publication(volume="v", capability=Capability(access=access, mode=mode), read_only=read_only)


def planned(
    how: Publication, seen: PublishSeen, flags: frozenset[str] = frozenset(), *, block: bool = False
) -> tuple[Operation, ...]:
    """Plan a publication."""
    record = BLOCK if block else volume()
    return publish(record, how, MountOptions(flags=flags), (STAGING, TARGET), LAYOUT, seen)


def seen_others(mode: AccessMode, *others: str) -> PublishSeen:
    """Return what is seen where the volume is at other targets too."""
    return PublishSeen(path=None, others=others, exclusive=mode not in SHARED_MODES)


@pytest.mark.parametrize("mode", ONE_NODE)
def test_a_second_target(mode: AccessMode) -> None:
    """CSI specification, NodePublishVolume: several targets on a node are for many writers, or for readers anywhere."""
    if mode in SHARED:
        assert BindMount in kinds(planned(wanted(mode), seen_others(mode, "/other")))
    else:
        with pytest.raises(FailedPrecondition, match="/other"):
            planned(wanted(mode), seen_others(mode, "/other"))
    assert BindMount in kinds(planned(wanted(mode), seen_others(mode)))


def test_an_exclusive_first_target_forbids_a_shared_second() -> None:
    seen = PublishSeen(path=None, others=("/other",), exclusive=True)
    with pytest.raises(FailedPrecondition):
        planned(wanted(AccessMode.SINGLE_NODE_MULTI_WRITER), seen)


@pytest.mark.parametrize("mode", ONE_NODE)
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("writable", [True, False])
def test_the_same_target_again(mode: AccessMode, *, read_only: bool, writable: bool) -> None:
    how = wanted(mode, read_only=read_only)
    assert how.writable == (not read_only and mode not in READERS)
    seen = PublishSeen(path=info(FileKind.DIRECTORY, mount_root=True), ours=True, writable=writable)
    if how.writable == writable:
        assert planned(how, seen) == ()
        assert planned(how, dataclasses.replace(seen, published_as=how)) == ()
    else:
        with pytest.raises(AlreadyExists):
            planned(how, seen)


def test_the_same_target_with_another_capability() -> None:
    seen = PublishSeen(path=info(FileKind.DIRECTORY, mount_root=True), ours=True, published_as=wanted())
    for other in (wanted(AccessMode.SINGLE_NODE_MULTI_WRITER), wanted(group=5)):
        with pytest.raises(AlreadyExists):
            planned(other, seen)


@pytest.mark.parametrize("block", [True, False])
def test_what_may_be_at_the_target(*, block: bool) -> None:
    for path in PATHS:
        fits = path is None or (path.kind is (FileKind.FILE if block else FileKind.DIRECTORY) and not path.mount_root)
        seen = PublishSeen(path=path)
        if not fits:
            with pytest.raises(DriverError):
                planned(wanted(block=block), seen, block=block)
            continue
        made = {MakeTargetFile, MakeTargetDirectory} & set(kinds(planned(wanted(block=block), seen, block=block)))
        assert made == ({MakeTargetFile if block else MakeTargetDirectory} if path is None else set())


@pytest.mark.parametrize("mode", ONE_NODE)
@pytest.mark.parametrize("read_only", [True, False])
def test_read_only_is_read_only(mode: AccessMode, *, read_only: bool) -> None:
    how = wanted(mode, read_only=read_only)
    *_, bind = planned(how, PublishSeen(path=None), frozenset({"rw", "noatime"}))
    assert isinstance(bind, BindMount)
    assert ("ro" in bind.flags, "rw" in bind.flags) == (not how.writable, how.writable)
    assert "noatime" in bind.flags
    device = wanted(mode, read_only=read_only, block=True)
    _, attach, bind_device = planned(device, PublishSeen(path=None), block=True)
    assert isinstance(attach, Attach)
    assert isinstance(bind_device, BindDevice)
    assert attach.read_only == (not device.writable)
    assert attach.keep


def test_a_group_is_given_only_what_can_be_written() -> None:
    assert kinds(planned(wanted(group=5), PublishSeen(path=None))) == [SetGroup, MakeTargetDirectory, BindMount]
    assert SetGroup not in kinds(planned(wanted(group=5, read_only=True), PublishSeen(path=None)))
    assert SetGroup not in kinds(planned(wanted(group=5), PublishSeen(path=None), frozenset({"ro"}))), "staged so"
    assert SetGroup not in kinds(planned(wanted(), PublishSeen(path=None)))
