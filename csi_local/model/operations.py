"""The operations that plans are made of: values that say what is to be done, not how.

``plan`` and ``backends`` return tuples of them, ``engine.execute`` carries them out in order. Each describes
itself in one line for logs and for the name of the crash point before it. Paths are absolute strings.
"""

from dataclasses import dataclass

from csi_local.model.observed import LoopDevice, MappedDevice
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import GroupRecord, SnapshotRecord
from csi_local.model.volume import Encryption, Filesystem, VolumeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step. Its name (the class's) is its crash point's name."""

    def describe(self) -> str:
        """What it does, in a few words."""
        return type(self).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPath(Operation):
    """A step on one path."""

    path: str

    def describe(self) -> str:
        """The name and the path."""
        return f"{type(self).__name__} {self.path}"


# --- files and records in a pool


class MakeDirectory(OnPath):
    """Make a directory, 0700; undone by removing it with all that is in it."""


class MakeSubvolume(OnPath):
    """Make a btrfs subvolume."""


class RemoveTree(OnPath):
    """Remove what is there, if anything: files, subvolumes, and limits set on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeLink(OnPath):
    """Make a symbolic link: that is all that a pool holds of an adopted directory."""

    target: str


class SyncDirectory(OnPath):
    """Make the directory's entries durable (fsync(2))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenToPods(OnPath):
    """Give a volume's own directory the mode that a fresh filesystem's root has, 0755."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitProject(OnPath):
    """Put the directory, while it is empty or already in it, into a quota project and limit that."""

    project: int
    size: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSubvolume(OnPath):
    """Limit a btrfs subvolume."""

    size: Bytes


class CommitSubvolume(OnPath):
    """Make a new subvolume, or its new limit, durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeImage(OnPath):
    """Make a file of that size that reads as zeros; thick reserves its blocks."""

    size: Bytes
    thick: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeImage(OnPath):
    """Make an image file larger, or leave it; thick reserves its blocks."""

    size: Bytes
    thick: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRecord(OnPath):
    """Write the record durably: whole and new, or the old one stays (temporary file, fsync, rename, fsync)."""

    record: VolumeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeRecord(OnPath):
    """Write the record of what is being made, durable as soon as its directory is; where nobody looks for one yet."""

    record: VolumeRecord | SnapshotRecord | GroupRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(Operation):
    """Give a directory its final name, durably: from here on it exists, or has ceased to."""

    source: str
    target: str

    def describe(self) -> str:
        """Both names."""
        return f"Commit {self.source} as {self.target}"


# --- copies


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSubvolume(OnPath):
    """Make a btrfs subvolume with what *source* has at this moment."""

    source: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneImage(OnPath):
    """Make a file that shares its blocks with the image *source*."""

    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyImage(OnPath):
    """Copy the image *source*, its holes as holes."""

    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTree(OnPath):
    """Copy what is in the directory *source* into this empty one; *share* lets files share their blocks."""

    source: str
    share: bool


class SyncFilesystem(OnPath):
    """Write out a mounted filesystem, so that freezing it has little left to write."""


class Freeze(OnPath):
    """Let nobody write to a mounted filesystem; undone by thawing it."""


class Thaw(OnPath):
    """End the freeze of a filesystem."""


class SyncFile(OnPath):
    """Make durable what was written to a file or block device (fsync(2))."""


# --- devices and filesystems; those without a device work on the one attached before


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(OnPath):
    """Attach a loop device to the image, or take the one it has.

    Attributes:
        keep: it stays when nobody has it open (raw block); otherwise it goes with its last user.
        present: the devices it had before, which are not detached again where the plan fails.
    """

    sector_size: int
    keep: bool
    read_only: bool = False
    present: tuple[LoopDevice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach(Operation):
    """Detach a loop device and see that it is gone."""

    loop: LoopDevice

    def describe(self) -> str:
        """The device."""
        return f"Detach {self.loop.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeFilesystem(Operation):
    """Format the attached device. Only ever planned for a volume that was never formatted."""

    filesystem: Filesystem
    uuid: str
    options: tuple[str, ...]
    thick: bool
    zeroed: bool = True
    """Whether what was never written reads as zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowUnmounted(Operation):
    """Check the attached device's ext4 and grow it to the device's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshLoops(OnPath):
    """Let the loop devices of the image see its new size (LOOP_SET_CAPACITY)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowMounted(OnPath):
    """Grow the mounted filesystem to its device's size, and see that it has at least *least*."""

    filesystem: Filesystem
    least: int = 0


# --- encryption; the key is not in the operation, but handed to the executor beside the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatEncrypted(Operation):
    """Make a LUKS2 header on the attached device. Only ever planned for a volume that was never formatted."""

    encryption: Encryption


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEncrypted(Operation):
    """Open the attached device with the key, and work on what that gives from here on; undone by closing it."""

    name: str
    encryption: Encryption

    def describe(self) -> str:
        """The name."""
        return f"OpenEncrypted {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseEncrypted(Operation):
    """Close an open device; the kernel forgets its key."""

    opened: MappedDevice

    def describe(self) -> str:
        """The name."""
        return f"CloseEncrypted {self.opened.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeEncrypted(Operation):
    """Let an open device have the room that the one under it has, with the key, and see that it has *size*."""

    opened: MappedDevice
    size: Bytes

    def describe(self) -> str:
        """The name and the size."""
        return f"ResizeEncrypted {self.opened.name} to {self.size}"


class EraseHeader(OnPath):
    """Overwrite the header and the key slots of an encrypted image: no key opens it from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseDevice(Operation):
    """Work on a device that is open already."""

    device: MappedDevice

    def describe(self) -> str:
        """The device."""
        return f"UseDevice {self.device.path}"


# --- mounts


@dataclass(frozen=True, slots=True, kw_only=True)
class MountDevice(OnPath):
    """Mount the attached device."""

    filesystem: Filesystem
    flags: frozenset[str]
    data: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount(OnPath):
    """Bind-mount *source* here, with mount flags of its own."""

    source: str
    flags: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BindDevice(OnPath):
    """Bind-mount the attached device's node here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetGroup(OnPath):
    """Let a group write: group, setgid and group bits on the tree, unless its root has them already."""

    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeeMounted(OnPath):
    """See that what is mounted here is the directory with that inode and birth: a path can be exchanged meanwhile."""

    inode: int
    born: int


class MakeTargetDirectory(OnPath):
    """Make the directory that a volume is to be mounted on; undone by removing it."""


class MakeTargetFile(OnPath):
    """Make the file that a device is to be bind-mounted on; undone by removing it."""


class Unmount(OnPath):
    """Unmount what is mounted here last, without following symbolic links."""


class RemoveTarget(OnPath):
    """Remove the empty directory or file that a volume was mounted on."""
