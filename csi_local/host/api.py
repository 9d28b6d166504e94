"""What the driver asks of a machine: one protocol, kept by the real host and by the tests' in-memory one.

Every method may raise ``SyscallFailed`` (with the errno) or ``CommandFailed``, and ``Unavailable`` never: what an
error means is for the caller to say. Paths are absolute strings; sizes are bytes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from csi_local.model.observed import FileInfo, LoopDevice, MappedDevice, Mount, Room, Signature, Usage
from csi_local.model.pool import Abilities, Media
from csi_local.model.quantity import Bytes
from csi_local.model.secret import Secret
from csi_local.model.volume import Encryption, Filesystem

Proceed = Callable[[], None]
"""Called between the pieces of long work; it raises where that is to end."""


class Files(Protocol):
    """Files and directories. Nothing here follows a symbolic link in the last part of a path."""

    def stat(self, path: str) -> FileInfo | None:
        """What is at *path*, or None where nothing is."""

    def real_path(self, path: str) -> str:
        """*path* with every symbolic link followed; for devices, whose by-id names are links."""

    def read_file(self, path: str) -> bytes:
        """The whole of a small file of our own; EPERM where it belongs to another user, who can write what he likes."""

    def replace_file(self, path: str, data: bytes) -> None:
        """Write a file durably, or leave the old one: temporary file, fsync, rename, fsync of the directory."""

    def write_new_file(self, path: str, data: bytes) -> None:
        """Make a file whose content is durable (fsync), its name not yet; EEXIST where something is there."""

    def list_dir(self, path: str, *, directories_only: bool = False) -> Sequence[str]:
        """The names in a directory."""

    def make_dir(self, path: str, *, mode: int = 0o700, exist_ok: bool = False) -> None:
        """Make one directory."""

    def make_file(self, path: str) -> None:
        """Make one empty file, 0600; EEXIST where something is there."""

    def make_link(self, path: str, target: str) -> None:
        """Make a symbolic link to *target*; EEXIST where something is there."""

    def set_mode(self, path: str, mode: int) -> None:
        """Change the mode of a directory."""

    def remove(self, path: str) -> None:
        """Remove a file or an empty directory."""

    def remove_tree(self, path: str) -> None:
        """Remove whatever is there, subvolumes and their limits, project limits and all; nothing is no error.

        Mounts are never crossed: EBUSY.
        """

    def rename(self, source: str, target: str) -> None:
        """Rename without replacing (renameat2(2), RENAME_NOREPLACE), then make both directories durable."""

    def sync_dir(self, path: str) -> None:
        """Make a directory's entries durable."""

    def give_to_group(self, path: str, group: int) -> None:
        """Let a group write a tree: group, setgid on directories, group bits; nothing where the root has them."""

    def room(self, path: str) -> Room:
        """How full the filesystem is that *path* is on."""

    def lock(self, path: str) -> AbstractContextManager[None]:
        """Lock a file, directory or device against every other driver until it is closed (flock(2)).

        Raises:
            Busy: somebody else has it.
        """


class Blocks(Protocol):
    """Image files, loop devices and what is on them."""

    def make_image(self, path: str, size: Bytes, *, thick: bool) -> None:
        """Make a file that reads as zeros; thick has its blocks reserved, as if just resized."""

    def resize_image(self, path: str, size: Bytes, *, thick: bool) -> None:
        """Make a file larger, never smaller; thick reserves blocks wherever it has none."""

    def attach(
        self, path: str, *, sector_size: int, keep: bool, read_only: bool = False
    ) -> AbstractContextManager[LoopDevice]:
        """Attach a loop device to an image with direct I/O, held open until the context is left.

        A *sector_size* of 0 lets the kernel choose.

        With *keep* it stays after that; without, it goes with its last user (LO_FLAGS_AUTOCLEAR).
        """

    def loops(self, path: str) -> Sequence[LoopDevice]:
        """The loop devices attached to an image, the writable one first."""

    def all_loops(self) -> Sequence[LoopDevice]:
        """All attached loop devices."""

    def detach(self, device: LoopDevice) -> None:
        """Detach a loop device, and see that it is gone: EBUSY where somebody keeps it open."""

    def refresh(self, device: LoopDevice) -> None:
        """Let a loop device see its image's new size."""

    def device_size(self, path: str) -> Bytes:
        """The size of a block device."""

    def probe(self, path: str) -> Signature | None:
        """What is on a device or image; None only where low-level probing says that nothing is (blkid -p)."""

    def first_data(self, path: str) -> int | None:
        """Offset of a byte on a device that is not zero, looking at its ends and at samples between; or None."""

    def in_use(self, path: str) -> str:
        """Who uses a block device (mounted, swap, partitioned, held by another device …), or ""."""

    def make_filesystem(
        self,
        device: str,
        filesystem: Filesystem,
        *,
        uuid: str,
        label: str,
        options: Sequence[str],
        thick: bool,
        zeroed: bool = True,
    ) -> None:
        """Format a device. Thick: no block is discarded. Zeroed: what was never written reads as zeros."""

    def filesystem_size(self, device: str, filesystem: Filesystem) -> Bytes:
        """The size of an unmounted filesystem, from its superblock."""

    def grows_mounted(self, device: str, filesystem: Filesystem) -> bool:
        """Whether what is on a device can be grown while it is mounted, which may be cut short at any moment."""

    def grow_unmounted(self, device: str) -> None:
        """Check and grow an ext4 that is not mounted. Cut short, it may leave what a person must mend with e2fsck."""

    def grow_mounted(self, point: str, filesystem: Filesystem, device: str) -> Bytes:
        """Grow a mounted filesystem to its device's size; return its new size."""


class Crypt(Protocol):
    """Encrypted devices (LUKS2, dm-crypt). A wrong key is ``CommandFailed`` with ``host.crypt.WRONG_KEY``."""

    def format_encrypted(self, device: str, encryption: Encryption, key: Secret) -> None:
        """Make a header on a device; its content is then noise."""

    def open_encrypted(self, device: str, name: str, key: Secret, *, discard: bool) -> MappedDevice:
        """Open a device under a name; EBUSY where the name or the device is taken."""

    def close_encrypted(self, device: MappedDevice) -> None:
        """Close it; no error where it is not open, EBUSY where somebody uses it for more than a short while."""

    def resize_encrypted(self, device: MappedDevice, key: Secret) -> Bytes:
        """Let an open device have the size that the one under it has, and return its own."""

    def erase_header(self, path: str, *, encrypted: bool = False) -> None:
        """Overwrite an image's header and key slots durably, so that no key opens it; nothing where it has none.

        Of one that is known to be *encrypted* the key slots too that a damaged header does not tell of any more.
        """

    def copy_header(self, source: str, target: str) -> None:
        """Write an image's header and key slots to a file, durably, or leave the old one; EINVAL without one."""

    def restore_header(self, source: str, target: str) -> None:
        """Write what such a file has to the beginning of an image, durably; EINVAL where it has no header."""

    def opens(self, path: str, key: Secret) -> bool:
        """Whether that is a key of the image at *path*; it is not opened."""

    def add_key(self, path: str, encryption: Encryption, key: Secret, new: Secret) -> None:
        """Let another key open the image at *path* too."""

    def remove_key(self, path: str, key: Secret) -> None:
        """Let a key open the image at *path* no more, even where it is the last."""

    def all_mapped(self) -> Sequence[MappedDevice]:
        """All of device mapper's devices."""

    def mapped_over(self, device: int) -> Sequence[MappedDevice]:
        """Those that are over the device with that number."""

    def ask_for_key(self, program: str, question: bytes) -> tuple[int, Secret, str]:
        """What an administrator's program answers: exit status, the key, and what it complains of."""


class Mounts(Protocol):
    """Mounts of this mount namespace."""

    def mount(self, source: str, target: str, filesystem: str, flags: frozenset[str], data: Sequence[str]) -> None:
        """Mount a device. Flags are ``model.mount_options`` names."""

    def bind(self, source: str, target: str, flags: frozenset[str]) -> None:
        """Bind-mount, then give the new mount its own flags, where there are any."""

    def unmount(self, path: str) -> None:
        """Unmount what was mounted last at *path*; EBUSY is tried again for a short while."""

    def mounts(self, containing: str = "") -> Sequence[Mount]:
        """The mounts whose line in mountinfo holds *containing*."""

    def device_at(self, path: str) -> int:
        """Number of the block device under the filesystem at *path*, for btrfs too; 0 where there is none."""

    def mount_flags(self, path: str) -> frozenset[str]:
        """Those of ro, nosuid, nodev, noexec, noatime, nodiratime, relatime that hold at *path* (statvfs)."""

    def freeze(self, path: str) -> None:
        """Write out the filesystem at *path* and let nobody write to it until it is thawed (FIFREEZE).

        EBUSY where it is frozen already.
        """

    def thaw(self, path: str) -> bool:
        """End a freeze of the filesystem at *path* (FITHAW); whether there was one."""


class Limits(Protocol):
    """Size limits on directories, and finding out what a place can do."""

    def limit_project(self, path: str, project: int, size: Bytes) -> None:
        """Put a directory and all that is made in it into a quota project, and limit that project."""

    def project_usage(self, path: str, project: int) -> Usage:
        """A project's limit and use."""

    def make_subvolume(self, path: str) -> None:
        """Make a btrfs subvolume, 0755."""

    def snapshot_subvolume(self, source: str, target: str, *, read_only: bool) -> None:
        """Make a subvolume with what another has at this moment."""

    def limit_subvolume(self, path: str, size: Bytes) -> None:
        """Limit a btrfs subvolume."""

    def commit_subvolume(self, path: str) -> None:
        """Make everything durable that was done on the btrfs at *path*, new subvolumes and their limits too."""

    def settle(self, path: str) -> None:
        """Let a btrfs give back at once what was removed from it; nothing elsewhere (BTRFS_IOC_SYNC)."""

    def subvolume_usage(self, path: str) -> Usage:
        """A subvolume's limit and use."""

    def abilities(self, path: str) -> Abilities:
        """Find out what the filesystem at *path* can do, by trying in a directory made there for that."""

    def media(self, path: str) -> Media:
        """What disk a path or block device is on."""


class Copying(Protocol):
    """Copies of images and directory trees, and making durable what was written by others."""

    def clone_image(self, source: str, target: str) -> None:
        """Make a file that shares its blocks with an image (FICLONE), not durable yet.

        EOPNOTSUPP or EXDEV where the filesystem, or two of them, cannot. Blocks that are reserved and not written may
        be holes in it. A header has blocks of its own, so that overwriting it in either leaves nothing of it.
        """

    def copy_image(self, source: str, target: str, proceed: Proceed) -> None:
        """Copy an image, its holes as holes, durably."""

    def copy_tree(self, source: str, target: str, *, share: bool, proceed: Proceed) -> None:
        """Copy what is in a directory, and its attributes, to the empty directory *target*, durably.

        *share* lets files share their blocks, which is quick, and needs a filesystem that can.
        """

    def sync_file(self, path: str) -> None:
        """Make durable what was written to a file or block device (fsync)."""

    def sync_filesystem(self, path: str) -> None:
        """Write out all of the filesystem at *path* (syncfs)."""


class Inspection(Protocol):
    """What only a check of the pools asks."""

    def owner(self, path: str) -> int:
        """The user that a file or directory belongs to."""

    def set_owner(self, path: str, owner: int, mode: int) -> None:
        """Give a file or directory to a user, with no more than *mode*; EMLINK where a file has other names."""

    def project_of(self, path: str) -> int:
        """The quota project that a directory is in; 0 for none."""

    def backing_path(self, device: int) -> str:
        """The path that the kernel has of a loop device's file, wherever that is now; "" where it does not tell.

        *device* is its number. The file itself is not asked, so that a failing disk is no matter.
        """

    def openers(self, path: str) -> Sequence[int]:
        """The processes, of those that can be seen, that have a device open."""


class Host(Files, Blocks, Crypt, Mounts, Limits, Copying, Inspection, Protocol):
    """A machine."""
