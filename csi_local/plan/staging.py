"""Staging: a volume's bytes become a mount, or a device, of this node.

Format once: ``MakeFilesystem`` is planned only for a record that says ``unformatted`` or ``formatting``, after the
intent with the new UUID has been written, and is followed by writing that it is done. For a formatted volume it is
unreachable: what the probe says then decides between mounting and an error, never between mounting and formatting.
"""

import dataclasses
from dataclasses import dataclass

from csi_local.backends import loopfile
from csi_local.model.errors import AlreadyExists, Busy, FailedPrecondition
from csi_local.model.mount_options import MountOptions
from csi_local.model.observed import FileInfo, FileKind, LoopDevice, Signature
from csi_local.model.operations import (
    BindMount,
    Detach,
    GrowMounted,
    GrowUnmounted,
    MakeFilesystem,
    MakeTargetDirectory,
    MountDevice,
    Operation,
    ResizeImage,
    SeeMounted,
    SyncDirectory,
    Unmount,
    WriteRecord,
)
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import BackendKind, Capability, Filesystem, FormatState, VolumeRecord
from csi_local.store.layout import Layout

_SLACK = MIB
"""How much smaller than its device a whole filesystem may be: an XFS leaves what is too small for a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingSeen:
    """What was observed before staging.

    Attributes:
        path: what is at the staging path.
        ours: whether it is a mount of this volume.
        staged_as: the capability it was staged with, as far as this process remembers.
        flags: those of the mount there.
        loops: devices attached to the image.
        signature: what is on the image; None where nothing is.
        filesystem_size: of the filesystem on the image, where it is formatted and not mounted.
    """

    path: FileInfo | None
    ours: bool = False
    staged_as: Capability | None = None
    flags: frozenset[str] = frozenset()
    bytes_there: FileInfo | None = None
    loops: tuple[LoopDevice, ...] = ()
    signature: Signature | None = None
    filesystem_size: Bytes | None = None


def stage(
    record: VolumeRecord,
    capability: Capability,
    options: MountOptions,
    path: str,
    layout: Layout,
    seen: StagingSeen,
    new_uuid: str,
) -> tuple[Operation, ...]:
    """Make a volume ready on this node; nothing where it is.

    Raises:
        AlreadyExists: it is staged there with other mount options.
        FailedPrecondition: something else is mounted there, or the volume's bytes are not what they should be.
        Busy: mkfs that an earlier driver started is still at work.
    """
    if seen.ours:
        known = seen.staged_as
        if known.access != capability.access if known else not options.shown <= seen.flags:
            raise AlreadyExists(f"volume {record.id} is staged at {path} with other mount options")
        return _finish_growing(record, options, path)
    made = _staging_directory(path, seen)
    _check_bytes(record, layout, seen)
    if record.backend is BackendKind.DIRECTORY:
        source = record.adopted or layout.data(record.id)
        bound = BindMount(path=path, source=source, flags=options.per_mount(read_only=False))
        seen_again = SeeMounted(path=path, inode=record.adopted_inode, born=record.adopted_born)
        return (*made, bound, *((seen_again,) if record.adopted else ()))
    attach = loopfile.attach(record, layout.image(record.id), seen.loops)
    made = (*made, *_reserve(record, layout, seen))
    if record.block:
        return made if any(not loop.read_only for loop in seen.loops) else (*made, attach)
    if record.filesystem is None:
        raise FailedPrecondition(f"volume {record.id}: its record names no filesystem")
    mount = MountDevice(path=path, filesystem=record.filesystem, flags=options.flags, data=_data(record, options))
    if record.format is not FormatState.FORMATTED:
        before, after = _format(record, layout, seen, new_uuid)
        return (*made, *before, attach, *after, mount, *reserve(record, layout))
    _check_filesystem(record, seen)
    # Whoever recorded that it is formatted may have been stopped before that was synced: while a power cut can bring
    # back a record that says `formatting`, nobody may write to the filesystem.
    made = (*made, SyncDirectory(path=layout.volume(record.id)))
    grow = seen.filesystem_size is not None and seen.filesystem_size + _SLACK < record.size
    if not grow or options.read_only:
        return (*made, attach, mount)
    if record.filesystem is Filesystem.EXT4:
        return (*made, attach, GrowUnmounted(), mount, *reserve(record, layout))
    grown = GrowMounted(path=path, filesystem=record.filesystem)
    return (*made, attach, mount, grown, *reserve(record, layout))


def _staging_directory(path: str, seen: StagingSeen) -> tuple[Operation, ...]:
    if seen.path is None:
        return (MakeTargetDirectory(path=path),)
    if seen.path.kind is not FileKind.DIRECTORY:
        raise FailedPrecondition(f"the staging path {path} is a {seen.path.kind}, not a directory")
    if seen.path.mount_root:
        raise FailedPrecondition(f"something else is mounted on the staging path {path}; unmount it first")
    return ()


def _check_bytes(record: VolumeRecord, layout: Layout, seen: StagingSeen) -> None:
    there = seen.bytes_there
    if record.adopted:
        if not record.adopted_is(there):
            raise FailedPrecondition(f"volume {record.id}: {lost(record, there)}")
        return
    if record.backend is BackendKind.DIRECTORY:
        if there is None or there.kind is not FileKind.DIRECTORY:
            raise FailedPrecondition(f"volume {record.id}: its data directory {layout.data(record.id)} is gone")
        return
    if there is None or there.kind is not FileKind.FILE:
        raise FailedPrecondition(f"volume {record.id}: its image {layout.image(record.id)} is gone")
    if there.size < record.size:
        raise FailedPrecondition(
            f"volume {record.id}: its image has {there.size} bytes instead of {record.size}; it was cut short,"
            " nothing has been changed"
        )


def lost(record: VolumeRecord, there: FileInfo | None) -> str:
    """What became of an adopted directory that is not where it was."""
    if there is None:
        return f"the directory {record.adopted}, which was adopted, is gone; mount its disk"
    return f"{record.adopted} is another {there.kind} than the directory that was adopted; put that back"


def _finish_growing(record: VolumeRecord, options: MountOptions, path: str) -> tuple[Operation, ...]:
    """An earlier staging may have been cut short between mounting and growing."""
    if record.filesystem in (Filesystem.XFS, Filesystem.BTRFS) and not options.read_only:
        return (GrowMounted(path=path, filesystem=record.filesystem),)
    return ()


def _reserve(record: VolumeRecord, layout: Layout, seen: StagingSeen) -> tuple[Operation, ...]:
    """Reserve again what somebody discarded (fstrim(8), BLKDISCARD) since the volume was made."""
    if seen.bytes_there is None or seen.bytes_there.allocated >= record.size:
        return ()
    return reserve(record, layout)


def reserve(record: VolumeRecord, layout: Layout) -> tuple[Operation, ...]:
    """Reserve a thick volume's blocks wherever it lacks them: a filesystem that is made or grown may give some back."""
    return (ResizeImage(path=layout.image(record.id), size=record.size, thick=True),) if record.thick else ()


def _data(record: VolumeRecord, options: MountOptions) -> tuple[str, ...]:
    """An XFS may be a copy of another one with the same UUID: that must not keep it from being mounted."""
    more = ("nouuid",) if record.filesystem is Filesystem.XFS and "nouuid" not in options.data else ()
    return (*options.data, *more)


def _format(
    record: VolumeRecord, layout: Layout, seen: StagingSeen, new_uuid: str
) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """What comes before and after the device is attached."""
    assert record.filesystem is not None  # noqa: S101 (checked by the caller; for the type checker)
    interrupted = record.format is FormatState.FORMATTING
    if any(not loop.read_only for loop in seen.loops):
        if interrupted:  # mkfs outlives the driver that started it, and nobody can wait for another's child
            raise Busy(f"volume {record.id}: {seen.loops[0].path} is still being formatted, it seems; try again")
        raise FailedPrecondition(f"volume {record.id} is not formatted yet, but {seen.loops[0].path} is attached to it")
    uuid = record.fs_uuid if interrupted else new_uuid
    if seen.signature is not None and not (interrupted and seen.signature.uuid == uuid):
        raise FailedPrecondition(
            f"volume {record.id} was never formatted, but {layout.image(record.id)} holds {seen.signature.type}"
            f" (UUID {seen.signature.uuid or 'none'}); it is left as it is"
        )
    path = layout.record(record.id)
    intent = dataclasses.replace(record, format=FormatState.FORMATTING, fs_uuid=uuid)
    done = dataclasses.replace(intent, format=FormatState.FORMATTED)
    make = MakeFilesystem(
        filesystem=record.filesystem, uuid=uuid, options=tuple(record.mkfs_options), thick=record.thick
    )
    before = () if interrupted else (WriteRecord(path=path, record=intent),)
    return before, (make, WriteRecord(path=path, record=done))


def _check_filesystem(record: VolumeRecord, seen: StagingSeen) -> None:
    if seen.signature is None:
        raise FailedPrecondition(
            f"volume {record.id} was formatted as {record.filesystem} (UUID {record.fs_uuid}), but nothing is found"
            " on it now; it is left as it is. Check the disk under the pool"
        )
    if (seen.signature.type, seen.signature.uuid) != (record.filesystem, record.fs_uuid):
        raise FailedPrecondition(
            f"volume {record.id} was formatted as {record.filesystem} (UUID {record.fs_uuid}), but"
            f" {seen.signature.type} (UUID {seen.signature.uuid or 'none'}) is found on it; it is left as it is"
        )


def unstage(
    path: str, *, ours: bool, loops: tuple[LoopDevice, ...], others: tuple[str, ...], published: tuple[str, ...]
) -> tuple[Operation, ...]:
    """Take a volume from this node; nothing where it is not there, or is staged elsewhere.

    *ours* says that the volume is mounted at *path*, *others* where else it is, *published* which of those are pods'.

    Raises:
        FailedPrecondition: it is still published.
    """
    if published:
        raise FailedPrecondition(f"the volume is still published at {', '.join(published)}; unpublish it first")
    unmount = (Unmount(path=path),) if ours else ()
    return (*unmount, *(() if others else (Detach(loop=loop) for loop in loops)))
