"""Staging: over every state that can be observed, a formatted volume is never formatted."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import pytest

from csi_local.model.errors import AlreadyExists, Busy, DriverError, FailedPrecondition
from csi_local.model.mount_options import MountOptions
from csi_local.model.observed import FileInfo, FileKind, LoopDevice, Signature, Stack
from csi_local.model.operations import (
    Attach,
    BindMount,
    Detach,
    GrowMounted,
    GrowUnmounted,
    MakeFilesystem,
    MakeTargetDirectory,
    MountDevice,
    ResizeImage,
    SyncDirectory,
    Unmount,
    WriteRecord,
)
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import (
    AccessMode,
    Allocation,
    BackendKind,
    Capability,
    Filesystem,
    FormatState,
    MountAccess,
    VolumeId,
    VolumeRecord,
)
from csi_local.plan.staging import StagingSeen, stage, unstage
from csi_local.store.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from csi_local.model.operations import Operation

LAYOUT = Layout("/pool")
PATH = "/staging"
OLD, NEW, OTHER = "old-uuid", "new-uuid", "other-uuid"
SIZE = Bytes(512 * MIB)
ACCESS = Capability(access=MountAccess(), mode=AccessMode.SINGLE_NODE_WRITER)
OTHER_ACCESS = Capability(access=MountAccess(flags=("noatime",)), mode=AccessMode.SINGLE_NODE_WRITER)
LOOP = LoopDevice(path="/dev/loop1", device=1793, backing=(1, 2), read_only=False, autoclear=True)
READ_ONLY_LOOP = LoopDevice(path="/dev/loop2", device=1794, backing=(1, 2), read_only=True, autoclear=False)


def info(kind: FileKind, *, size: int = SIZE, allocated: int = SIZE, mount_root: bool = False) -> FileInfo:
    """Return what stat says of something."""
    return FileInfo(
        kind=kind,
        size=size,
        allocated=allocated,
        device=1,
        inode=2,
        special=0,
        mount_root=mount_root,
        gid=0,
        mode=0o755,
    )


def volume(
    state: FormatState = FormatState.FORMATTED,
    filesystem: Filesystem | None = Filesystem.EXT4,
    backend: BackendKind = BackendKind.LOOPFILE,
    allocation: Allocation = Allocation.THICK,
) -> VolumeRecord:
    """Return a record."""
    return VolumeRecord(
        id=VolumeId("v"),
        name="v",
        size=SIZE,
        backend=backend,
        block=backend is BackendKind.LOOPFILE and filesystem is None,
        filesystem=filesystem,
        allocation=allocation,
        format=state,
        fs_uuid="" if state in (FormatState.NONE, FormatState.UNFORMATTED) else OLD,
    )


PATHS = (
    None,
    info(FileKind.DIRECTORY),
    info(FileKind.DIRECTORY, mount_root=True),
    *map(info, (FileKind.FILE, FileKind.SYMLINK, FileKind.BLOCK)),
)
BYTES = (
    None,
    info(FileKind.FILE, size=1),
    info(FileKind.FILE, allocated=0),
    *map(info, (FileKind.FILE, FileKind.DIRECTORY, FileKind.SYMLINK)),
)
SIGNATURES = (
    None,
    *(Signature(type=kind, uuid=uuid) for kind in (*Filesystem, "LVM2_member") for uuid in (OLD, NEW, OTHER, "")),
)
LOOPS = ((), (LOOP,), (READ_ONLY_LOOP,), (LOOP, READ_ONLY_LOOP))
FS_SIZES = (None, Bytes(0), Bytes(SIZE // 2), SIZE, Bytes(2 * SIZE))
STAGED_AS = (None, ACCESS, OTHER_ACCESS)


def everything_seen() -> Iterator[StagingSeen]:
    """Yield every combination of what can be observed."""
    for path, there, loops, signature, size in itertools.product(PATHS, BYTES, LOOPS, SIGNATURES, FS_SIZES):
        yield StagingSeen(path=path, bytes_there=there, loops=loops, signature=signature, filesystem_size=size)
    for path, staged_as, loops in itertools.product(PATHS, STAGED_AS, LOOPS):
        yield StagingSeen(path=path, ours=True, staged_as=staged_as, loops=loops)


def planned(record: VolumeRecord, seen: StagingSeen, flags: frozenset[str] = frozenset()) -> tuple[Operation, ...]:
    """Plan the staging of a volume."""
    return stage(record, ACCESS, MountOptions(flags=flags), PATH, LAYOUT, seen, NEW)


def kinds(operations: tuple[Operation, ...]) -> list[type[Operation]]:
    """Return what sort of operations they are."""
    return [type(operation) for operation in operations]


@pytest.mark.parametrize("filesystem", [*Filesystem, None])
@pytest.mark.parametrize("state", [FormatState.FORMATTED, FormatState.NONE])
def test_what_is_formatted_is_never_formatted(state: FormatState, filesystem: Filesystem | None) -> None:
    """Whatever is observed: formatted volumes, raw block devices and directories."""
    records = [volume(state, filesystem)]
    if state is FormatState.NONE:
        records = [volume(state, None), volume(state, None, BackendKind.DIRECTORY)]
    for record, seen in itertools.product(records, everything_seen()):
        try:
            operations = planned(record, seen)
        except DriverError:
            continue
        assert not {MakeFilesystem, WriteRecord} & set(kinds(operations)), seen


@pytest.mark.parametrize("filesystem", Filesystem)
def test_what_is_formatted_is_mounted_only_if_it_is_itself(filesystem: Filesystem) -> None:
    for seen in everything_seen():
        try:
            operations = planned(volume(FormatState.FORMATTED, filesystem), seen)
        except DriverError:
            continue
        if MountDevice in kinds(operations):
            assert seen.signature == Signature(type=filesystem, uuid=OLD)


@pytest.mark.parametrize("state", [FormatState.UNFORMATTED, FormatState.FORMATTING])
def test_formatting_is_recorded_before_and_after(state: FormatState) -> None:
    formatted = 0
    for seen in everything_seen():
        try:
            operations = planned(volume(state), seen)
        except DriverError:
            continue
        if MakeFilesystem not in kinds(operations):
            assert seen.ours
            continue
        formatted += 1
        self_made = Signature(type=Filesystem.EXT4, uuid=OLD)
        assert seen.signature is None or (state is FormatState.FORMATTING and seen.signature.uuid == self_made.uuid)
        assert not any(not loop.read_only for loop in seen.loops)
        check_order(operations, state)
    assert formatted


def check_order(operations: tuple[Operation, ...], state: FormatState) -> None:
    """Demand: intent (unless it is there), attach, mkfs with that very uuid, done, mount."""
    order = kinds(operations)
    at = order.index(MakeFilesystem)
    make = operations[at]
    assert isinstance(make, MakeFilesystem)
    assert make.uuid == (OLD if state is FormatState.FORMATTING else NEW)
    assert order.count(MakeFilesystem) == 1
    assert order.index(Attach) < at < order.index(MountDevice)
    before = [one.record for one in operations[:at] if isinstance(one, WriteRecord)]
    after = [one.record for one in operations[at:] if isinstance(one, WriteRecord)]
    assert [record.format for record in after] == [FormatState.FORMATTED]
    expected = [FormatState.FORMATTING] if state is FormatState.UNFORMATTED else []
    assert [record.format for record in before] == expected
    assert {record.fs_uuid for record in (*before, *after)} == {make.uuid}
    assert order.index(WriteRecord, at) < order.index(MountDevice)


def good(**changes: object) -> StagingSeen:
    """Return what is seen of a volume that is well, formatted and nowhere."""
    seen: dict[str, object] = {
        "path": info(FileKind.DIRECTORY),
        "bytes_there": info(FileKind.FILE),
        "signature": Signature(type="ext4", uuid=OLD),
        "filesystem_size": SIZE,
    }
    return StagingSeen(**(seen | changes))  # type: ignore[arg-type]


def test_mounted() -> None:
    assert kinds(planned(volume(), good())) == [SyncDirectory, Attach, MountDevice]
    made = [MakeTargetDirectory, SyncDirectory, Attach, MountDevice]
    assert kinds(planned(volume(), good(path=None))) == made


@pytest.mark.parametrize(
    ("mounted", "expected"),
    [(True, [MountDevice, GrowMounted, ResizeImage]), (False, [GrowUnmounted, MountDevice, ResizeImage])],
)
@pytest.mark.parametrize("filesystem", Filesystem)
def test_grown_where_it_is_smaller(filesystem: Filesystem, expected: list[type[Operation]], *, mounted: bool) -> None:
    """While it is mounted where it can be: the kernel does that so that it can be cut short, resize2fs does not."""
    signature = Signature(type=filesystem, uuid=OLD)
    seen = good(signature=signature, filesystem_size=Bytes(SIZE // 2), grows_mounted=mounted)
    attached: list[type[Operation]] = [SyncDirectory, Attach]
    assert kinds(planned(volume(filesystem=filesystem), seen)) == [*attached, *expected]
    assert kinds(planned(volume(filesystem=filesystem), seen, frozenset({"ro"}))) == [*attached, MountDevice]


def test_an_xfs_may_be_a_copy() -> None:
    seen = good(signature=Signature(type="xfs", uuid=OLD))
    (mount,) = (one for one in planned(volume(filesystem=Filesystem.XFS), seen) if isinstance(one, MountDevice))
    assert mount.data == ("nouuid",)


def test_a_thick_ext4_zeroes_no_inode_tables_unasked() -> None:
    def data(record: VolumeRecord, *said: str) -> tuple[str, ...]:
        operations = stage(record, ACCESS, MountOptions(data=said), PATH, LAYOUT, good(), NEW)
        (mount,) = (one for one in operations if isinstance(one, MountDevice))
        return mount.data

    assert data(volume()) == ("noinit_itable",)
    assert data(volume(), "init_itable=5") == ("init_itable=5",)
    assert data(volume(), "noinit_itable") == ("noinit_itable",)
    assert data(volume(allocation=Allocation.THIN)) == ()


def test_directory() -> None:
    record = volume(FormatState.NONE, None, BackendKind.DIRECTORY)
    seen = good(bytes_there=info(FileKind.DIRECTORY))
    assert kinds(planned(record, seen)) == [BindMount]
    with pytest.raises(FailedPrecondition, match="is gone"):
        planned(record, good(bytes_there=None))


def test_block() -> None:
    record = volume(FormatState.NONE, None)
    (attach,) = planned(record, good())
    assert isinstance(attach, Attach)
    assert (attach.keep, attach.read_only) == (True, False)
    assert planned(record, good(loops=(LOOP,))) == ()
    assert kinds(planned(record, good(loops=(READ_ONLY_LOOP,)))) == [Attach]


@pytest.mark.parametrize("filesystem", Filesystem)
def test_growing_that_was_cut_short_is_finished(filesystem: Filesystem) -> None:
    seen = StagingSeen(path=None, ours=True, grows_mounted=True)
    assert kinds(planned(volume(filesystem=filesystem), seen)) == [GrowMounted, ResizeImage]
    assert kinds(planned(volume(filesystem=filesystem, allocation=Allocation.THIN), seen)) == [GrowMounted]
    assert planned(volume(filesystem=filesystem), StagingSeen(path=None, ours=True)) == ()


def test_reserving_that_was_cut_short_is_finished() -> None:
    seen = StagingSeen(path=None, ours=True, bytes_there=info(FileKind.FILE, allocated=SIZE // 2))
    assert kinds(planned(volume(), seen)) == [ResizeImage]
    assert planned(volume(), dataclasses.replace(seen, flags=frozenset({"ro"})), frozenset({"ro"})) == ()
    assert planned(volume(allocation=Allocation.THIN), seen) == ()
    assert planned(volume(), StagingSeen(path=None, ours=True, bytes_there=info(FileKind.FILE))) == ()


def test_staged_already() -> None:
    assert planned(volume(), StagingSeen(path=None, ours=True, staged_as=ACCESS)) == ()
    assert planned(volume(), StagingSeen(path=None, ours=True)) == ()
    with pytest.raises(AlreadyExists):
        planned(volume(), StagingSeen(path=None, ours=True, staged_as=OTHER_ACCESS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": info(FileKind.DIRECTORY, mount_root=True)}, "something else is mounted"),
        ({"path": info(FileKind.SYMLINK)}, "not a directory"),
        ({"path": info(FileKind.FILE)}, "not a directory"),
        ({"bytes_there": None}, "is gone"),
        ({"bytes_there": info(FileKind.SYMLINK)}, "is gone"),
        ({"bytes_there": info(FileKind.FILE, size=1)}, "cut short"),
        ({"signature": None}, "nothing is found"),
        ({"signature": Signature(type="xfs", uuid=OLD)}, "left as it is"),
        ({"signature": Signature(type="ext4", uuid=OTHER)}, "left as it is"),
    ],
)
def test_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message):
        planned(volume(), good(**changes))


KEPT = LoopDevice(path="/dev/loop1", device=1793, backing=(1, 2), read_only=False, autoclear=False)


@pytest.mark.parametrize(
    ("ours", "loops", "others", "expected"),
    [
        (True, (LOOP,), (), [Unmount, Detach]),
        (True, (), (), [Unmount]),
        (False, (KEPT,), (), [Detach]),
        (False, (KEPT, READ_ONLY_LOOP), (), [Detach, Detach]),
        (False, (), (), []),
        (False, (LOOP,), ("/elsewhere",), []),
        (True, (LOOP,), ("/target",), None),
        (True, (LOOP,), ("/staged-twice",), [Unmount]),
        (False, (KEPT,), ("/target",), None),
    ],
)
def test_unstage(
    *,
    ours: bool,
    loops: tuple[LoopDevice, ...],
    others: tuple[str, ...],
    expected: list[type[Operation]] | None,
) -> None:
    if expected is None:
        with pytest.raises(FailedPrecondition, match="still published"):
            unstage(PATH, ours=ours, devices=Stack(loops=loops), others=others, published=others)
    else:
        assert kinds(unstage(PATH, ours=ours, devices=Stack(loops=loops), others=others, published=())) == expected


@pytest.mark.parametrize("filesystem", Filesystem)
def test_mkfs_of_a_dead_driver_is_waited_for(filesystem: Filesystem) -> None:
    """It still has the device; the same call succeeds once it has ended, so it is no state that anybody must change."""
    seen = StagingSeen(path=info(FileKind.DIRECTORY), bytes_there=info(FileKind.FILE), loops=(LOOP,))
    with pytest.raises(Busy, match=r"/dev/loop1 is still being formatted"):
        planned(volume(FormatState.FORMATTING, filesystem), seen)
    with pytest.raises(FailedPrecondition, match="not formatted yet, but /dev/loop1"):
        planned(volume(FormatState.UNFORMATTED, filesystem), seen)
