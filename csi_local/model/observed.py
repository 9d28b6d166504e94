"""What the kernel was seen to say: always fresh, never stored."""

from dataclasses import dataclass
from enum import StrEnum

from csi_local.model.quantity import Bytes


class FileKind(StrEnum):
    """What a path is, without following a symbolic link."""

    DIRECTORY = "directory"
    FILE = "file"
    BLOCK = "block device"
    SYMLINK = "symbolic link"
    OTHER = "special file"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """What statx(2) says of a path.

    Attributes:
        allocated: bytes of blocks it holds.
        device: number of the device its filesystem is on.
        special: for a block device node, the device it stands for.
        mount_root: whether a mount begins here (STATX_ATTR_MOUNT_ROOT).
        born: when it was made, in nanoseconds since the epoch; 0 where the filesystem does not say.
    """

    kind: FileKind
    size: int
    allocated: int
    device: int
    inode: int
    special: int
    mount_root: bool
    gid: int
    mode: int
    born: int = 0

    @property
    def identity(self) -> tuple[int, int]:
        """What makes it the same file under whatever name."""
        return (self.device, self.inode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A block device that a volume's content may be on.

    Attributes:
        path: for example ``/dev/loop7``.
        device: its device number.
    """

    path: str
    device: int
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice(Device):
    """An attached loop device.

    Attributes:
        backing: identity of the file under it.
    """

    backing: tuple[int, int]
    autoclear: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedDevice(Device):
    """A device-mapper device, such as dm-crypt makes of an encrypted one.

    Attributes:
        path: always ``/dev/dm-<n>``: that node is there without udev too.
        name: what it was opened as.
        uuid: what the program that opened it called it: ``CRYPT-LUKS2-<uuid of the header>-<name>``.
        below: numbers of the devices under it; none where the device under it is gone.
        live: whether it leads anywhere; not, where whoever was opening it was killed amid that.
    """

    name: str
    uuid: str
    below: tuple[int, ...]
    live: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A volume's devices, from the image upwards.

    Attributes:
        loops: those attached to its image.
        opened: what is open over these, where it is encrypted.
        readers: read-only loop devices over that.
    """

    loops: tuple[LoopDevice, ...] = ()
    opened: tuple[MappedDevice, ...] = ()
    readers: tuple[LoopDevice, ...] = ()

    @property
    def top(self) -> tuple[Device, ...]:
        """Those that its content is seen on."""
        return (*self.opened, *self.readers) if self.opened else self.loops

    @property
    def writable(self) -> tuple[Device, ...]:
        """Of these, those that can be written."""
        return tuple(device for device in self.top if not device.read_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of /proc/self/mountinfo (proc(5)), with its escapes undone."""

    device: tuple[int, int]
    root: str
    point: str
    options: frozenset[str]
    filesystem: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What is on a block device: the name blkid(8) gives it, its UUID and its label."""

    type: str
    uuid: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What statvfs(3) says of a filesystem, in bytes and inodes; inodes are 0 where it does not count them."""

    total: Bytes
    free: Bytes
    available: Bytes
    inodes: int
    free_inodes: int
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How full a volume is; inodes are 0 where nobody counts them."""

    total: Bytes
    used: Bytes
    available: Bytes
    inodes: int = 0
    used_inodes: int = 0
    free_inodes: int = 0
