"""Staging: a volume's bytes become a mount, or a device, of this node.

Format once: ``MakeFilesystem`` is planned only for a record that says ``unformatted`` or ``formatting``, after the
intent with the new UUID has been written, and is followed by writing that it is done. For a formatted volume it is
unreachable: what the probe says then decides between mounting and an error, never between mounting and formatting.
"""

import dataclasses
from dataclasses import dataclass

from csi_local.backends import loopfile, luks
from csi_local.model.errors import AlreadyExists, Busy, FailedPrecondition
from csi_local.model.mount_options import SHOWN, MountOptions
from csi_local.model.observed import FileInfo, FileKind, LoopDevice, MappedDevice, Signature, Stack
from csi_local.model.operations import (
    BindMount,
    CloseEncrypted,
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

SLACK = MIB
"""How much smaller than its device a whole filesystem may be: an XFS leaves what is too small for a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingSeen:
    """What was observed before staging.

    Attributes:
        path: what is at the staging path.
        ours: whether it is a mount of this volume.
        staged_as: the capability it was staged with, as far as this process remembers.
        flags: those of the mount there.
        inherited: those that it has without having been asked for, from what it is a bind mount of.
        loops: devices attached to the image.
        opened: the device that an encrypted image was opened as.
        signature: what is on the image, or on the opened device; None where nothing is.
        filesystem_size: of the filesystem there, where it is formatted and not mounted.
        grows_mounted: whether that can be grown while it is mounted.
    """

    path: FileInfo | None
    ours: bool = False
    staged_as: Capability | None = None
    flags: frozenset[str] = frozenset()
    inherited: frozenset[str] = frozenset()
    bytes_there: FileInfo | None = None
    loops: tuple[LoopDevice, ...] = ()
    opened: MappedDevice | None = None
    signature: Signature | None = None
    filesystem_size: Bytes | None = None
    grows_mounted: bool = False


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
        known, has = seen.staged_as, seen.flags & SHOWN
        alike = options.shown <= has <= options.shown | seen.inherited
        if not (known.access == capability.access if known else alike):
            raise AlreadyExists(f"volume {record.id} is staged at {path} with other mount options")
        return _finish(record, options, path, layout, seen)
    made = check_place(path, seen.path)
    check_bytes(record, layout, seen.bytes_there)
    if record.backend is BackendKind.DIRECTORY:
        source = record.adopted or layout.data(record.id)
        bound = BindMount(path=path, source=source, flags=options.per_mount(read_only=False))
        seen_again = SeeMounted(path=path, inode=record.adopted_inode, born=record.adopted_born)
        return (*made, bound, *((seen_again,) if record.adopted else ()))
    attach = _attach(record, layout, seen)
    made = (*made, *reserve_again(record, layout, seen.bytes_there))
    if record.block:
        return made if seen.opened or any(not loop.read_only for loop in seen.loops) else (*made, attach)
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
    grow = seen.filesystem_size is not None and seen.filesystem_size + SLACK < record.size
    if not grow or options.read_only:
        return (*made, attach, mount)
    if not seen.grows_mounted:
        return (*made, attach, GrowUnmounted(), mount, *reserve(record, layout))
    grown = GrowMounted(path=path, filesystem=record.filesystem)
    return (*made, attach, mount, grown, *reserve(record, layout))


def _attach(record: VolumeRecord, layout: Layout, seen: StagingSeen) -> Operation:
    if record.encryption is None:
        return loopfile.attach(record, layout.image(record.id), seen.loops)
    if seen.opened is None:
        raise FailedPrecondition(f"volume {record.id} is encrypted, and not open")
    return luks.attach(seen.opened, (), read_only=False)


def check_place(path: str, there: FileInfo | None) -> tuple[Operation, ...]:
    """See that a filesystem can be mounted at *path*; what makes the directory where nothing is *there*.

    Raises:
        FailedPrecondition: something else is there.
    """
    if there is None:
        return (MakeTargetDirectory(path=path),)
    if there.kind is not FileKind.DIRECTORY:
        raise FailedPrecondition(f"the staging path {path} is a {there.kind}, not a directory")
    if there.mount_root:
        raise FailedPrecondition(f"something else is mounted on the staging path {path}; unmount it first")
    return ()


def check_bytes(record: VolumeRecord, layout: Layout, there: FileInfo | None) -> None:
    """See that a volume's bytes are *there* and whole.

    Raises:
        FailedPrecondition: they are not.
    """
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
    if there.size < record.image_size:
        raise FailedPrecondition(
            f"volume {record.id}: its image has {there.size} bytes instead of {record.image_size}; it was cut short,"
            " nothing has been changed"
        )


def lost(record: VolumeRecord, there: FileInfo | None) -> str:
    """What became of an adopted directory that is not where it was."""
    if there is None:
        return f"the directory {record.adopted}, which was adopted, is gone; mount its disk"
    return f"{record.adopted} is another {there.kind} than the directory that was adopted; put that back"


def _finish(
    record: VolumeRecord, options: MountOptions, path: str, layout: Layout, seen: StagingSeen
) -> tuple[Operation, ...]:
    """An earlier staging may have been cut short between mounting, growing and reserving."""
    if options.read_only:
        return ()
    if record.filesystem is not None and seen.grows_mounted:
        return (GrowMounted(path=path, filesystem=record.filesystem), *reserve(record, layout))
    return reserve_again(record, layout, seen.bytes_there)


def reserve_again(record: VolumeRecord, layout: Layout, there: FileInfo | None) -> tuple[Operation, ...]:
    """Reserve again what somebody discarded (fstrim(8), BLKDISCARD) since the volume was made."""
    if there is None or there.allocated >= record.image_size:
        return ()
    return reserve(record, layout)


def reserve(record: VolumeRecord, layout: Layout) -> tuple[Operation, ...]:
    """Reserve a thick volume's blocks wherever it lacks them: a filesystem that is made or grown may give some back."""
    whole = ResizeImage(path=layout.image(record.id), size=record.image_size, thick=True)
    return (whole,) if record.thick else ()


def _data(record: VolumeRecord, options: MountOptions) -> tuple[str, ...]:
    """An XFS may be a copy of another one with the same UUID: that must not keep it from being mounted.

    An ext4 that has grown zeroes its new inode tables when it has time to (ext4(5), ``init_itable``), and a loop device
    does that by punching holes. What was reserved reads as zeros already.
    """
    said = {word.partition("=")[0] for word in options.data}
    if record.filesystem is Filesystem.XFS and "nouuid" not in said:
        return (*options.data, "nouuid")
    zeros = record.filesystem is Filesystem.EXT4 and record.thick and record.encryption is None
    if zeros and not said & {"init_itable", "noinit_itable"}:
        return (*options.data, "noinit_itable")
    return options.data


def _format(
    record: VolumeRecord, layout: Layout, seen: StagingSeen, new_uuid: str
) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """What comes before and after the device is attached."""
    assert record.filesystem is not None  # noqa: S101 (checked by the caller; for the type checker)
    interrupted = record.format is FormatState.FORMATTING
    if record.encryption is None and any(not loop.read_only for loop in seen.loops):
        if interrupted:  # mkfs outlives the driver that started it, and nobody can wait for another's child
            raise Busy(f"volume {record.id}: {seen.loops[0].path} is still being formatted, it seems; try again")
        raise FailedPrecondition(f"volume {record.id} is not formatted yet, but {seen.loops[0].path} is attached to it")
    uuid = record.fs_uuid if interrupted else new_uuid
    if _holds_something(record, seen) and not (interrupted and seen.signature and seen.signature.uuid == uuid):
        raise FailedPrecondition(
            f"volume {record.id} was never formatted, but {layout.image(record.id)} holds {_named(seen.signature)};"
            " it is left as it is"
        )
    path = layout.record(record.id)
    intent = dataclasses.replace(record, format=FormatState.FORMATTING, fs_uuid=uuid)
    done = dataclasses.replace(intent, format=FormatState.FORMATTED)
    make = MakeFilesystem(
        filesystem=record.filesystem,
        uuid=uuid,
        options=tuple(record.mkfs_options),
        thick=record.thick,
        zeroed=record.encryption is None,
    )
    before = () if interrupted else (WriteRecord(path=path, record=intent),)
    return before, (make, WriteRecord(path=path, record=done))


def _holds_something(record: VolumeRecord, seen: StagingSeen) -> bool:
    """Whether a filesystem may be there; an encrypted device begins as noise, in which blkid may see weaker marks."""
    if seen.signature is None:
        return False
    return record.encryption is None or seen.signature.type in tuple(Filesystem)


def _named(signature: Signature | None) -> str:
    return f"{signature.type} (UUID {signature.uuid or 'none'})" if signature else "nothing"


def _check_filesystem(record: VolumeRecord, seen: StagingSeen) -> None:
    if seen.signature is None:
        raise FailedPrecondition(
            f"volume {record.id} was formatted as {record.filesystem} (UUID {record.fs_uuid}), but nothing is found"
            " on it now; it is left as it is. Check the disk under the pool"
        )
    if (seen.signature.type, seen.signature.uuid) != (record.filesystem, record.fs_uuid):
        raise FailedPrecondition(
            f"volume {record.id} was formatted as {record.filesystem} (UUID {record.fs_uuid}), but"
            f" {_named(seen.signature)} is found on it; it is left as it is"
        )


def unstage(
    path: str, *, ours: bool, devices: Stack, others: tuple[str, ...], published: tuple[str, ...], covered: bool = False
) -> tuple[Operation, ...]:
    """Take a volume from this node; nothing where it is not there, or is staged elsewhere.

    *ours* says that the volume is mounted at *path*, *covered* that it is and something else over that, *others* where
    else it is, *published* which of those are pods'.

    Raises:
        FailedPrecondition: it is still published, or cannot be reached.
    """
    if covered:
        raise FailedPrecondition(f"the volume is mounted on {path}, and something else over that; unmount that first")
    if published:
        raise FailedPrecondition(f"the volume is still published at {', '.join(published)}; unpublish it first")
    unmount = (Unmount(path=path),) if ours else ()
    return (*unmount, *(() if others else let_go(devices)))


def let_go(devices: Stack) -> tuple[Operation, ...]:
    """Take a volume's devices down, the uppermost first."""
    return (
        *(Detach(loop=loop) for loop in devices.readers),
        *(CloseEncrypted(opened=opened) for opened in devices.opened),
        *(Detach(loop=loop) for loop in devices.loops),
    )
