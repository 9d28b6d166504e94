"""Copying a volume's bytes, into a snapshot or into another volume, as operations.

Within reach, that is on one filesystem that can share blocks, a copy takes no time to speak of. A loopfile volume whose
filesystem is mounted is frozen for it, so that the copy is of one moment and needs no repair. Out of reach the data is
copied, in the background, and only of what nobody is writing to.
"""

from dataclasses import dataclass

from csi_local.backends import directory
from csi_local.model.errors import AlreadyExists, FailedPrecondition
from csi_local.model.observed import FileInfo, FileKind
from csi_local.model.operations import (
    CloneImage,
    Commit,
    CommitSubvolume,
    CopyImage,
    CopyTree,
    Freeze,
    MakeDirectory,
    MakeRecord,
    MakeSubvolume,
    Operation,
    RemoveTree,
    ResizeImage,
    SnapshotSubvolume,
    SyncDirectory,
    SyncFile,
    SyncFilesystem,
    Thaw,
)
from csi_local.model.pool import Abilities
from csi_local.model.snapshot import SnapshotRecord, SnapshotRequest, snapshot_id
from csi_local.model.volume import BackendKind, VolumeRecord
from csi_local.store.layout import DATA, IMAGE, RECORD_FILE, SNAPSHOT_FILE, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is copied.

    Attributes:
        record: of the volume, or of a snapshot's volume as it was then.
        path: its image or directory.
        point: where its filesystem is mounted, and is to be frozen; "" where it is not.
        devices: raw block devices on it.
        in_use: whether somebody may be writing to it now.
        kept: whether it is a snapshot, which nobody writes to.
    """

    record: VolumeRecord
    path: str
    point: str = ""
    devices: tuple[str, ...] = ()
    in_use: bool = False
    kept: bool = False

    @property
    def directory(self) -> bool:
        """Whether it is a tree of files, and not an image."""
        return self.record.backend is BackendKind.DIRECTORY


def within_reach(abilities: Abilities) -> bool:
    """Whether a copy inside such a pool shares blocks."""
    return abilities.reflink or abilities.btrfs


def still(origins: tuple[Origin, ...]) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """What comes before and after the moment of which copies of all *origins* are.

    Everything is written out first, so that the freeze has little left to write: pods wait as long as it lasts.
    """
    points = tuple(origin.point for origin in origins if origin.point)
    devices = tuple(device for origin in origins for device in origin.devices)
    before = (
        *(SyncFilesystem(path=point) for point in points),
        *(SyncFile(path=device) for device in devices),
        *(Freeze(path=point) for point in points),
    )
    return before, tuple(Thaw(path=point) for point in reversed(points))


def damage(origin: Origin, there: FileInfo | None) -> str:
    """What can be seen to be wrong with an origin's bytes, as they are *there*; "" for nothing."""
    kind = FileKind.DIRECTORY if origin.directory else FileKind.FILE
    if there is None or there.kind is not kind:
        return "its data is gone from the pool"
    if not origin.directory and there.size < origin.record.image_size:
        return f"its image has {there.size} bytes instead of {origin.record.image_size}; it was cut short"
    return ""


def check_whole(origin: Origin, there: FileInfo | None) -> None:
    """See that nothing is missing of an origin: a copy has its whole size again, and zeros where that was.

    Raises:
        FailedPrecondition: something is.
    """
    if found := damage(origin, there):
        raise FailedPrecondition(f"no copy is made of {origin.path}: {found}")


def check_can_be_copied(origin: Origin) -> None:
    """See that data can be copied while time passes.

    Raises:
        FailedPrecondition: somebody may be writing to the image meanwhile.
    """
    if origin.in_use and not origin.directory:
        raise FailedPrecondition(
            f"volume {origin.record.id} is in use, and the filesystem of its pool cannot share blocks between files: an"
            " image can only be copied while nothing writes to it. Stop its pod, or use a pool on XFS or btrfs"
        )


# --- snapshots


def new_snapshot(request: SnapshotRequest, volume: VolumeRecord, *, now: int, group: str = "") -> SnapshotRecord:
    """The record of a snapshot that does not exist yet; *now* in nanoseconds since the epoch."""
    return SnapshotRecord(
        id=snapshot_id(request.name),
        name=request.name,
        volume=volume,
        created=now,
        group=group,
        labels=dict(request.labels),
    )


def check_same_snapshot(record: SnapshotRecord, request: SnapshotRequest, group: str = "") -> None:
    """See that a request for a name that exists asks for the snapshot that exists.

    Raises:
        AlreadyExists: it is of another volume, or was taken with a group.
    """
    if record.source != request.source:
        raise AlreadyExists(f"snapshot {request.name!r} exists, of volume {record.source}")
    if record.group != group:
        raise AlreadyExists(f"snapshot {request.name!r} exists, in group {record.group or 'none'}")


def keep(origin: Origin, place: str, abilities: Abilities) -> tuple[Operation, ...]:
    """Copy an origin's bytes to the directory *place* of a snapshot, at this moment if within reach."""
    target = f"{place}/{DATA if origin.directory else IMAGE}"
    if origin.directory and abilities.btrfs:
        return (SnapshotSubvolume(path=target, source=origin.path, read_only=True),)
    if origin.directory:
        return MakeDirectory(path=target), CopyTree(path=target, source=origin.path, share=abilities.reflink)
    if abilities.reflink:
        return (CloneImage(path=target, source=origin.path),)
    return (CopyImage(path=target, source=origin.path),)


def kept(record: SnapshotRecord, place: str, abilities: Abilities) -> tuple[Operation, ...]:
    """Make what was copied there durable, with its record."""
    directory_volume = record.volume.backend is BackendKind.DIRECTORY
    if directory_volume and abilities.btrfs:
        synced: tuple[Operation, ...] = (CommitSubvolume(path=f"{place}/{DATA}"),)
    else:
        synced = () if directory_volume else (SyncFile(path=f"{place}/{IMAGE}"),)
    return (*synced, MakeRecord(path=f"{place}/{SNAPSHOT_FILE}", record=record), SyncDirectory(path=place))


def take(origin: Origin, place: str, abilities: Abilities, *, leftover: bool) -> tuple[Operation, ...]:
    """The first part of a snapshot: its bytes, as they are at one moment."""
    before, after = still((origin,))
    removed = (RemoveTree(path=place),) if leftover else ()
    return (*removed, MakeDirectory(path=place), *before, *keep(origin, place, abilities), *after)


def finish(record: SnapshotRecord, place: str, layout: Layout, abilities: Abilities) -> tuple[Operation, ...]:
    """The second: its record, and its name; from then on it exists."""
    return (*kept(record, place, abilities), Commit(source=place, target=layout.snapshot(record.id)))


# --- volumes made from something


def restore(
    record: VolumeRecord, origin: Origin, layout: Layout, abilities: Abilities, *, near: bool, leftover: bool
) -> tuple[Operation, ...]:
    """Make a volume that begins with an origin's bytes; *near* says that they are within reach.

    The room that it has more than its origin is its device's; the filesystem gets it when it is staged.
    """
    place = layout.new(record.id)
    begun = (
        *((RemoveTree(path=place),) if leftover else ()),
        MakeDirectory(path=place),
        MakeRecord(path=f"{place}/{RECORD_FILE}", record=record),
    )
    bytes_made = _tree if origin.directory else _image
    made = bytes_made(record, origin, place, abilities, near=near)
    return (*begun, *made, Commit(source=place, target=layout.volume(record.id)))


def _image(
    record: VolumeRecord, origin: Origin, place: str, _abilities: Abilities, *, near: bool
) -> tuple[Operation, ...]:
    path = f"{place}/{IMAGE}"
    before, after = still((origin,)) if near else ((), ())
    copied = CloneImage(path=path, source=origin.path) if near else CopyImage(path=path, source=origin.path)
    whole = ResizeImage(path=path, size=record.image_size, thick=record.thick)
    return (*before, copied, *after, whole, SyncFile(path=path), SyncDirectory(path=place))


def _tree(
    record: VolumeRecord, origin: Origin, place: str, abilities: Abilities, *, near: bool
) -> tuple[Operation, ...]:
    path = f"{place}/{DATA}"
    limits = directory.limit(record, path, record.size, abilities)
    if not abilities.btrfs:  # files get the directory's project as they are made in it
        copied = CopyTree(path=path, source=origin.path, share=near)
        return (MakeDirectory(path=path), *limits, copied, SyncDirectory(path=place))
    durable = limits or (CommitSubvolume(path=path),)
    if near:
        return (SnapshotSubvolume(path=path, source=origin.path, read_only=False), *durable)
    return (MakeSubvolume(path=path), CopyTree(path=path, source=origin.path, share=False), *durable)
