"""Reading a CreateVolume request as one whole: what kind of volume it asks for, and whether a retry asks the same."""

import dataclasses
from dataclasses import dataclass, field

from csi_local.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from csi_local.model.mount_options import MountOptions, parse_mount_options
from csi_local.model.parameters import ClassParameters, check_mkfs_options, parse_filesystem
from csi_local.model.quantity import Bytes, format_bytes
from csi_local.model.snapshot import ContentSource
from csi_local.model.volume import (
    Allocation,
    BackendKind,
    Capability,
    CapacityRange,
    Encryption,
    Filesystem,
    FormatState,
    MountAccess,
    VolumeId,
    VolumeRecord,
    ephemeral_id,
    volume_id,
)
from csi_local.plan import sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRequest:
    """What CreateVolume, GetCapacity, ``explain`` and an inline ephemeral volume ask for.

    Attributes:
        name: of an ephemeral volume, its handle.
        ephemeral: the path at which an ephemeral volume is wanted; "" for every other.
    """

    name: str
    capacity: CapacityRange = field(default_factory=CapacityRange)
    capabilities: tuple[Capability, ...] = ()
    parameters: ClassParameters = field(default_factory=ClassParameters)
    source: ContentSource | None = None
    ephemeral: str = ""

    @property
    def id(self) -> VolumeId:
        """The id of the volume asked for."""
        return ephemeral_id(self.name) if self.ephemeral else volume_id(self.name)

    @property
    def source_text(self) -> str:
        """What the volume is to be made from, as records have it; "" for nothing."""
        return str(self.source or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The kind of volume that a request comes down to.

    Attributes:
        filesystem: on the loop device; for a directory, the one that the pool must have, or None for any.
    """

    backend: BackendKind
    block: bool
    filesystem: Filesystem | None


def shape(parameters: ClassParameters, capabilities: tuple[Capability, ...], like: VolumeRecord | None = None) -> Shape:
    """What kind of volume is asked for; one that is made from another is *like* that where nothing is said.

    Raises:
        InvalidArgument: the capabilities contradict each other or the parameters, or no local disk can do it.
    """
    blocks = {capability.block for capability in capabilities} or {False}
    if len(blocks) > 1:
        raise InvalidArgument("one volume cannot be both a raw block device and a filesystem")
    block = blocks.pop()
    for capability in capabilities:
        if capability.mode.multi_node:
            raise InvalidArgument(
                f"access mode {capability.mode} needs several nodes at once; a local volume is on one node"
            )
    backend = parameters.backend or (like.backend if like else BackendKind.LOOPFILE)
    if block and backend is BackendKind.DIRECTORY:
        raise InvalidArgument("a directory cannot be a raw block device; use backend: loopfile")
    if parameters.encryption is not None and backend is BackendKind.DIRECTORY:
        raise InvalidArgument("a directory cannot be encrypted; use backend: loopfile")
    default = (like.filesystem if like else Filesystem.EXT4) if backend is BackendKind.LOOPFILE else None
    filesystem = None if block else _filesystem(parameters, capabilities) or default
    if block and parameters.mkfs_options:
        raise InvalidArgument("mkfsOptions make no sense for a raw block device")
    if parameters.mkfs_options and (backend is BackendKind.DIRECTORY or filesystem is None):
        raise InvalidArgument("mkfsOptions make no sense for a directory volume; use backend: loopfile")
    if filesystem is not None and parameters.mkfs_options:
        check_mkfs_options(filesystem, parameters.mkfs_options)
    on_device = filesystem if backend is BackendKind.LOOPFILE else None
    _check_mount_options(capabilities, on_device, parameters.allocation)
    return Shape(backend=backend, block=block, filesystem=filesystem)


def _filesystem(parameters: ClassParameters, capabilities: tuple[Capability, ...]) -> Filesystem | None:
    """The one that is asked for, if any is."""
    asked = [c.access.fs_type for c in capabilities if isinstance(c.access, MountAccess)]
    wanted = {found for found in (parameters.fs_type, *map(parse_filesystem, asked)) if found}
    if len(wanted) > 1:
        raise InvalidArgument(f"several filesystems are asked for: {', '.join(sorted(map(str, wanted)))}")
    return wanted.pop() if wanted else None


def _check_mount_options(
    capabilities: tuple[Capability, ...], filesystem: Filesystem | None, allocation: Allocation
) -> None:
    for capability in capabilities:
        if isinstance(capability.access, MountAccess):
            mount_options(capability.access, filesystem, allocation)


def mount_options(access: MountAccess, filesystem: Filesystem | None, allocation: Allocation) -> MountOptions:
    """The mount options of a capability, for a filesystem on a loop device, or None for a directory.

    Raises:
        InvalidArgument: one is not allowed, or would undo the reservation of a thick volume's blocks.
    """
    options = parse_mount_options(access.flags, filesystem)
    if allocation is Allocation.THICK and any(word.partition("=")[0] == "discard" for word in options.data):
        raise InvalidArgument("mount option 'discard' would give reserved blocks back; use it with allocation: thin")
    return options


def size_of(request: VolumeRequest, wanted: Shape, like: VolumeRecord | None = None) -> Bytes:
    """The size that a request gets: at least that of what the volume is made from.

    Raises:
        InvalidArgument, OutOfRange: as :func:`sizes.deliverable`.
    """
    asked = request.capacity
    if like is not None and 0 <= asked.required < like.size:
        asked = CapacityRange(required=like.size, limit=asked.limit)
    return sizes.deliverable(asked, sizes.smallest(wanted.backend, wanted.filesystem))


def check_like(wanted: Shape, like: VolumeRecord) -> None:
    """See that a volume of that kind can begin with another's bytes.

    Raises:
        InvalidArgument: it cannot.
    """
    if (wanted.backend, wanted.block) != (like.backend, like.block):
        is_block, asks_block = (("raw block" if one else "filesystem") for one in (like.block, wanted.block))
        raise InvalidArgument(
            f"the source is a {like.backend} volume ({is_block}); a {wanted.backend} volume ({asks_block}) cannot be"
            " made from it"
        )
    if like.backend is BackendKind.LOOPFILE and wanted.filesystem is not like.filesystem:
        raise InvalidArgument(f"the source's filesystem is {like.filesystem}, not {wanted.filesystem}")


def new_record(
    request: VolumeRequest, *, now: int, project: int = 0, sector_size: int = 0, like: VolumeRecord | None = None
) -> VolumeRecord:
    """The record of a volume that does not exist yet, and begins empty, or with the bytes of what it is *like*.

    A volume that is made from one that is formatted is formatted: nothing of it is ever formatted again.

    Raises:
        InvalidArgument, OutOfRange: as :func:`shape`, :func:`check_like` and :func:`size_of`.
        FailedPrecondition: the disk cannot have the sectors of what the volume is to be like.
    """
    wanted = shape(request.parameters, request.capabilities, like)
    loopfile = wanted.backend is BackendKind.LOOPFILE
    parameters = request.parameters
    fresh = FormatState.UNFORMATTED if loopfile and not wanted.block else FormatState.NONE
    encryption = parameters.encryption
    if like is not None:
        check_like(wanted, like)
        encryption = _like_encryption(encryption, like.encryption)
        sector_size = _like_sectors(sector_size, like)
    return VolumeRecord(
        id=request.id,
        name=request.name,
        size=size_of(request, wanted, like),
        backend=wanted.backend,
        block=wanted.block,
        filesystem=wanted.filesystem if loopfile else None,
        allocation=parameters.allocation,
        quota=parameters.quota,
        parameters=dict(parameters.given),
        labels=dict(parameters.labels),
        mkfs_options=parameters.mkfs_options,
        project=0 if loopfile else project,
        sector_size=sector_size if loopfile else 0,
        created=now,
        format=like.format if like else fresh,
        fs_uuid=like.fs_uuid if like else "",
        encryption=encryption,
        source=request.source_text,
        ephemeral=request.ephemeral,
    )


def _like_sectors(sector_size: int, like: VolumeRecord) -> int:
    """The sectors of a volume that begins with another's bytes, on a disk that has none smaller than *sector_size*.

    Raises:
        FailedPrecondition: an XFS is not mounted on larger ones than it was made for, and a partition table lies
            elsewhere on them.
    """
    if 0 < like.sector_size < sector_size and (like.block or like.filesystem is Filesystem.XFS):
        what = "raw block device" if like.block else "XFS"
        raise FailedPrecondition(
            f"the source is a {what} with sectors of {like.sector_size} bytes; a copy of it cannot be on a disk with"
            f" sectors of {sector_size} bytes: choose another pool"
        )
    return max(sector_size, like.sector_size)


def _like_encryption(wanted: Encryption | None, like: Encryption | None) -> Encryption | None:
    """How a volume is encrypted that begins with another's bytes: header and key are that one's.

    Raises:
        InvalidArgument: it would have to be encrypted anew, or the reverse.
    """
    if wanted is None or like is None:
        if wanted is like:
            return None
        is_now, asked = ("is not encrypted", "is") if like is None else ("is encrypted", "is not")
        raise InvalidArgument(f"the source {is_now}; a volume that {asked} cannot be made from it")
    header = ("cipher", "key_bits", "sector_size")
    for name in header:
        if getattr(wanted, name) != getattr(like, name):
            raise InvalidArgument(f"the source is encrypted with {name} {getattr(like, name)}, and so is its copy")
    kept = {name: getattr(like, name) for name in ("kdf_memory", "kdf_passes", "state", "uuid")}
    return dataclasses.replace(wanted, **kept)


def check_same(record: VolumeRecord, request: VolumeRequest) -> None:
    """See that a request for a name that exists asks for the volume that exists.

    Raises:
        AlreadyExists: it asks for another size, kind, source or parameters; the message says which.
    """
    if record.adopted:
        raise _differs(record, "kind", f"adopted from {record.adopted}")
    if record.source != request.source_text:
        raise _differs(record, "source", record.source or "none")
    wanted = shape(request.parameters, request.capabilities, record if record.source else None)
    limit = request.capacity.limit or record.size
    if not request.capacity.required <= record.size <= limit:
        raise _differs(record, "size", format_bytes(record.size))
    if (record.backend, record.block) != (wanted.backend, wanted.block):
        raise _differs(record, "kind", f"{record.backend}, {'raw block' if record.block else 'filesystem'}")
    if record.backend is BackendKind.LOOPFILE and record.filesystem is not wanted.filesystem:
        raise _differs(record, "filesystem", str(record.filesystem))
    if dict(record.parameters) != dict(request.parameters.given):
        raise _differs(record, "parameters", str(dict(record.parameters)))
    if record.ephemeral != request.ephemeral:
        raise _differs(record, "target", record.ephemeral)


def _differs(record: VolumeRecord, what: str, has: str) -> AlreadyExists:
    return AlreadyExists(f"volume {record.name!r} exists with another {what} ({has})")


def unusable(record: VolumeRecord, capability: Capability) -> str:
    """Why a volume cannot be used in that way, or "" where it can."""
    if capability.mode.multi_node:
        return f"access mode {capability.mode} needs several nodes; this volume is on one"
    if capability.block != record.block:
        return f"the volume is a {'raw block device' if record.block else 'filesystem'}"
    if isinstance(capability.access, MountAccess):
        fs_type = capability.access.fs_type
        if record.filesystem is not None and fs_type and fs_type != record.filesystem:
            return f"the volume's filesystem is {record.filesystem}, not {fs_type}"
        try:
            mount_options(capability.access, record.filesystem, record.allocation)
        except InvalidArgument as error:
            return str(error)
    return ""


def check_usable(record: VolumeRecord, capability: Capability) -> None:
    """See that a volume can be used in that way.

    Raises:
        InvalidArgument: it cannot.
    """
    if reason := unusable(record, capability):
        raise InvalidArgument(reason)
