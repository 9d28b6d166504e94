"""Sizes: which can be delivered, and what room a pool has left."""

from dataclasses import dataclass

from csi_local.model.errors import InvalidArgument, OutOfRange
from csi_local.model.observed import Room
from csi_local.model.pool import PoolKind, PoolSpec
from csi_local.model.quantity import GIB, MIB, Bytes, format_bytes, round_up
from csi_local.model.snapshot import SnapshotRecord
from csi_local.model.volume import Allocation, BackendKind, CapacityRange, Filesystem, VolumeRecord

GRANULE = 4096
"""Every size is a multiple of it: the block of the filesystems and of the loop devices."""

DEFAULT_SIZE = Bytes(GIB)
"""Where a request names none."""

LARGEST = Bytes(1 << 60)
"""What no volume exceeds, 1 EiB: offsets in files, and sizes in CSI, have 63 bits."""

_SMALLEST = {Filesystem.EXT4: 16 * MIB, Filesystem.XFS: 300 * MIB, Filesystem.BTRFS: 256 * MIB}
_SMALLEST_OTHER = MIB


def smallest(backend: BackendKind, filesystem: Filesystem | None) -> Bytes:
    """The smallest volume of that kind: what mkfs.xfs(8) makes (300 MiB), what btrfs can be resized to (256 MiB)."""
    if backend is BackendKind.LOOPFILE and filesystem is not None:
        return Bytes(_SMALLEST[filesystem])
    return Bytes(_SMALLEST_OTHER)


def deliverable(capacity: CapacityRange, least: Bytes) -> Bytes:
    """The size that a request gets: what is required, rounded up, and at least *least*.

    Raises:
        InvalidArgument: a size is negative.
        OutOfRange: no deliverable size lies within the range.
    """
    if capacity.required < 0 or capacity.limit < 0:
        raise InvalidArgument("a size cannot be negative")
    if capacity.limit and capacity.limit < capacity.required:
        raise OutOfRange(f"the limit of {capacity.limit} bytes is below the {capacity.required} bytes required")
    if capacity.required > LARGEST:
        raise OutOfRange(f"{capacity.required} bytes are asked for; no volume has more than {format_bytes(LARGEST)}")
    wanted = capacity.required or min(DEFAULT_SIZE, capacity.limit or DEFAULT_SIZE)
    if not capacity.required:
        wanted -= wanted % GRANULE
    size = round_up(max(wanted, least), GRANULE)
    if capacity.limit and size > capacity.limit:
        raise OutOfRange(
            f"volumes of this kind have at least {format_bytes(least)} in steps of {GRANULE} bytes; none of them"
            f" lies between {capacity.required} and {capacity.limit} bytes"
        )
    return size


def grown(record: VolumeRecord, capacity: CapacityRange) -> Bytes:
    """The size after an expansion: at least what it is.

    Raises:
        InvalidArgument: no size is asked for.
        OutOfRange: the range allows nothing, or only less than there is.
    """
    if not capacity.required and not capacity.limit:
        raise InvalidArgument("capacity_range says no size")
    if capacity.required < 0 or capacity.limit < 0:
        raise InvalidArgument("a size cannot be negative")
    if capacity.limit and capacity.limit < record.size:
        raise OutOfRange(f"the volume has {record.size} bytes, more than the limit of {capacity.limit}")
    least = CapacityRange(required=max(capacity.required, record.size), limit=capacity.limit)
    return deliverable(least, Bytes(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """What a pool has promised to its volumes, in bytes.

    Attributes:
        reserved: to volumes whose blocks are reserved: they are gone from the free room already.
        pending: of those, what is being reserved at this moment and may not be gone yet.
        directories: to directory volumes, whose blocks are taken as they are written.
        written: of those, what has been written.
        thin: to thin volumes.
        shared: to snapshots, and to volumes made from something, whose blocks are still others' too: they are gone from
            the free room only when either is written to.
    """

    reserved: int = 0
    pending: int = 0
    directories: int = 0
    written: int = 0
    thin: int = 0
    shared: int = 0

    @property
    def total(self) -> int:
        """All that was promised."""
        return self.reserved + self.directories + self.thin + self.shared


def rooms(spec: PoolSpec, seen: Room, promised: Promises, overhead: int = 0) -> tuple[Bytes, Bytes]:
    """Room for another thick or directory volume, and for another thin one.

    A thin volume weighs its size divided by ``overcommit``. What others put on a shared filesystem (``path``) shows
    in the free room; what directory volumes have been promised and not yet written does not, and is subtracted.
    Nor must blocks that a pod has discarded from a thick volume be promised again: so the sum of all promises and the
    filesystem's own *overhead* is held against the whole as well.
    """
    thin_weight = promised.thin / spec.overcommit
    unwritten = max(0, promised.directories - promised.written)
    unpromised = seen.total - overhead - promised.reserved - promised.directories - promised.shared - int(thin_weight)
    unshared = promised.shared if spec.kind is PoolKind.PATH else 0  # elsewhere the sum of all promises says it exactly
    free = seen.available - unwritten - promised.pending - unshared
    room = min(unpromised, free) - spec.reserve.of(seen.total)
    room -= room // 256 + MIB  # the filesystem's own bookkeeping of that much more
    whole = max(0, room - room % GRANULE)
    thin = int(whole * spec.overcommit)
    return Bytes(whole), Bytes(thin - thin % GRANULE)


def weight(record: VolumeRecord, *, shares: bool = False) -> Promises:
    """What one volume was promised; *shares* where one that is made from something shares blocks with that.

    An adopted directory's bytes are none of the pool's.
    """
    if record.adopted:
        return Promises()
    if record.backend is BackendKind.DIRECTORY:
        return Promises(directories=record.size)
    if record.allocation is Allocation.THIN:
        return Promises(thin=record.promised)
    size = record.promised
    return Promises(shared=size) if shares and record.source else Promises(reserved=size)


def snapshot_weight(record: SnapshotRecord, *, shares: bool) -> Promises:
    """What one snapshot was promised: that what it held does not have to be given up."""
    return Promises(shared=record.held) if shares else Promises(reserved=record.held)
