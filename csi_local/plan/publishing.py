"""Publishing: a staged volume appears at a path of a pod."""

from dataclasses import dataclass

from csi_local.backends import loopfile, luks
from csi_local.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from csi_local.model.mount_options import SHOWN, MountOptions
from csi_local.model.observed import FileInfo, FileKind, Stack
from csi_local.model.operations import (
    BindDevice,
    BindMount,
    MakeTargetDirectory,
    MakeTargetFile,
    Operation,
    SetGroup,
)
from csi_local.model.volume import AccessMode, Capability, MountAccess, VolumeRecord
from csi_local.store.layout import Layout

SHARED_MODES = frozenset({AccessMode.SINGLE_NODE_MULTI_WRITER, AccessMode.MULTI_NODE_READER_ONLY})
"""Modes in which several targets on the node may use a volume at once (CSI specification, NodePublishVolume)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """How a volume is, or is to be, published."""

    volume: str
    capability: Capability
    read_only: bool

    @property
    def writable(self) -> bool:
        """Whether the target may be written."""
        return not (self.read_only or self.capability.mode.read_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSeen:
    """What was observed before publishing.

    Attributes:
        path: what is at the target path.
        ours: whether this volume is mounted there.
        devices: the volume's.
        writable: where it is, whether it can be written.
        published_as: how, as far as this process remembers.
        flags, staging_flags: of the mounts at the target and at the staging path.
        others: the volume's other targets on this node.
        exclusive: whether the mode asked for, or that of one of those, allows one target only.
    """

    path: FileInfo | None
    ours: bool = False
    devices: Stack = Stack()  # noqa: RUF009 (frozen)
    writable: bool = True
    published_as: Publication | None = None
    flags: frozenset[str] = frozenset()
    staging_flags: frozenset[str] = frozenset()
    others: tuple[str, ...] = ()
    exclusive: bool = False


def publish(
    record: VolumeRecord,
    wanted: Publication,
    options: MountOptions,
    paths: tuple[str, str],
    layout: Layout,
    seen: PublishSeen,
) -> tuple[Operation, ...]:
    """Make a volume appear at a target; nothing where it is there already. *paths* are staging and target.

    Raises:
        AlreadyExists: it is there in another way.
        FailedPrecondition: something else is there, or the access mode allows no second target.
        InvalidArgument: what is at the target is of the wrong kind.
    """
    staging, target = paths
    if seen.ours:
        _check_same(wanted, options, seen, target)
        return ()
    made = _target(record, target, seen)
    if seen.others and seen.exclusive:
        raise FailedPrecondition(
            f"volume {record.id} is published at {', '.join(seen.others)}; its access mode there, or"
            f" {wanted.capability.mode} here, allows one target"
        )
    if record.block:
        return (*made, _attach(record, layout, seen.devices, read_only=not wanted.writable), BindDevice(path=target))
    access = wanted.capability.access
    group = access.group if isinstance(access, MountAccess) else None
    shared = (
        (SetGroup(path=staging, group=group),)
        if group is not None and wanted.writable and not options.read_only
        else ()
    )
    return (
        *shared,
        *made,
        BindMount(path=target, source=staging, flags=options.per_mount(read_only=not wanted.writable)),
    )


def _attach(record: VolumeRecord, layout: Layout, devices: Stack, *, read_only: bool) -> Operation:
    """What is not open yet is opened before it is published, and this planned again."""
    if record.encryption is None or not devices.opened:
        return loopfile.attach(record, layout.image(record.id), devices.loops, read_only=read_only)
    return luks.attach(devices.opened[0], devices.readers, read_only=read_only)


def _check_same(wanted: Publication, options: MountOptions, seen: PublishSeen, target: str) -> None:
    known = seen.published_as
    asked, has = options.shown - {"ro"}, (seen.flags & SHOWN) - {"ro"}
    alike = seen.writable == wanted.writable and asked <= has <= asked | seen.staging_flags
    if not (known == wanted if known is not None else alike):  # the pool itself may have become read-only since
        raise AlreadyExists(f"volume {wanted.volume} is published at {target} with another capability or readonly")


def _target(record: VolumeRecord, target: str, seen: PublishSeen) -> tuple[Operation, ...]:
    wanted = FileKind.FILE if record.block else FileKind.DIRECTORY
    if seen.path is None:
        return (MakeTargetFile(path=target),) if record.block else (MakeTargetDirectory(path=target),)
    if seen.path.mount_root:
        raise FailedPrecondition(f"something else is mounted on the target {target}; unmount it first")
    if seen.path.kind is FileKind.SYMLINK:
        raise InvalidArgument(f"the target {target} is a symbolic link; it is not followed")
    if seen.path.kind is not wanted:
        raise FailedPrecondition(f"the target {target} is a {seen.path.kind}; a {wanted} is needed")
    return ()
