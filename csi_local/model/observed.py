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
class LoopDevice:
    """An attached loop device.

    Attributes:
        path: for example ``/dev/loop7``.
        device: its device number.
        backing: identity of the file under it.
    """

    path: str
    device: int
    backing: tuple[int, int]
    read_only: bool
    autoclear: bool


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
