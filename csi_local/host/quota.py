"""Size limits on directories: quota projects (XFS, ext4) and subvolumes (btrfs).

Structures and numbers: linux/fs.h (FS_IOC_FS*XATTR), linux/quota.h and linux/dqblk_xfs.h, linux/btrfs.h.
"""

import errno
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from csi_local.host.syscalls import failing_as, ioctl, open_by_handle, opened, quotactl_fd
from csi_local.model.errors import SyscallFailed
from csi_local.model.observed import Usage
from csi_local.model.quantity import KIB, Bytes

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

# quota projects
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=5I8s")
_PROJINHERIT, _EXTSIZE = 0x200, 0x800
_PROTECTING = 0x8 | 0x10 | _PROJINHERIT  # FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND
_PRJQUOTA = 2
_Q_GETQUOTA, _Q_SETQUOTA, _Q_XGETQSTAT = 0x800007, 0x800008, 0x5805
_DQBLK = struct.Struct("=8QI4x")
_QIF_LIMITS = 5
_QSTAT_BYTES = 80
_PROJECT_ENFORCED = 1 << 5

# btrfs
_SUBVOL_CREATE_V2, _SNAP_CREATE_V2, _SNAP_DESTROY_V2 = 0x50009418, 0x50009417, 0x5000943F
_SUBVOL_SETFLAGS, _TREE_SEARCH = 0x4008941A, 0xD0009411
_SUBVOL_RDONLY = 2
_SEARCH_KEY, _SEARCH_HEADER, _ROOT_REF_ITEM = struct.Struct("=7Q3I36x"), struct.Struct("=3Q2I"), struct.Struct("=2QH")
_SEARCH_BYTES, _SEARCH_COUNT, _SEARCH_ITEMS = 4096, 64, 104
_ROOT_TREE, _ROOT_REF, _MANY = 1, 156, 4096
_QUOTA_CTL, _QGROUP_LIMIT, _QGROUP_CREATE = 0xC0109428, 0x8030942B, 0x4010942A
_SYNC, _START_SYNC, _WAIT_SYNC = 0x9408, 0x80089418, 0x40089416
_INO_LOOKUP, _FS_INFO, _DEV_INFO = 0xD0009412, 0x8400941F, 0xD000941E
_VOL_ARGS_V2 = struct.Struct("=qQQ32s4040s")
_QUOTA_ENABLE_FULL, _QUOTA_ENABLE_SIMPLE = 1, 4
_LIMIT_REFERENCED = 1
_SUBVOLUME_ROOT = 256
_UNLIMITED = 2**64 - 1
BTRFS_MAGIC = 0x9123683E
"""What statfs(2) calls a btrfs (linux/magic.h)."""


# --- quota projects


def project_of(fd: int) -> int:
    """The quota project of an open file or directory; 0 for none, and where there is no such thing."""
    buffer = bytearray(_FSXATTR.size)
    try:
        ioctl(fd, _FSGETXATTR, buffer, "read the quota project")
    except SyscallFailed:
        return 0
    return int(_FSXATTR.unpack(buffer)[3])


def hint_extent_size(fd: int, size: int) -> None:
    """Let an empty file be allocated in pieces of *size* bytes (xfs only; FS_XFLAG_EXTSIZE)."""
    buffer = bytearray(_FSXATTR.size)
    ioctl(fd, _FSGETXATTR, buffer, "read the extent size hint")
    flags, _, extents, project, cow_extent, pad = _FSXATTR.unpack(buffer)
    buffer = bytearray(_FSXATTR.pack(flags | _EXTSIZE, size, extents, project, cow_extent, pad))
    ioctl(fd, _FSSETXATTR, buffer, "set the extent size hint")


def extent_size_hint(fd: int) -> int:
    """In pieces of how many bytes a file is to be allocated; 0 where nobody said."""
    buffer = bytearray(_FSXATTR.size)
    with suppress(SyscallFailed):
        ioctl(fd, _FSGETXATTR, buffer, "read the extent size hint")
    flags, extent, *_ = _FSXATTR.unpack(buffer)
    return int(extent) if flags & _EXTSIZE else 0


def unprotect(fd: int) -> None:
    """Let an open file or directory be removed, and anything be moved into it: chattr(1), +i, +a and +P."""
    buffer = bytearray(_FSXATTR.size)
    with suppress(SyscallFailed):
        ioctl(fd, _FSGETXATTR, buffer, "read the flags")
        flags, *others = _FSXATTR.unpack(buffer)
        if flags & _PROTECTING:
            ioctl(fd, _FSSETXATTR, bytearray(_FSXATTR.pack(flags & ~_PROTECTING, *others)), "change the flags")


def limit_project(path: str, project: int, size: Bytes) -> None:
    """Put the directory *path* into *project*, with all that is made in it from now on, and limit it."""
    with opened(path, _DIRECTORY) as fd:
        if project_of(fd) != project:
            buffer = bytearray(_FSXATTR.size)
            ioctl(fd, _FSGETXATTR, buffer, f"read the quota project of {path}")
            flags, extent, extents, _, cow_extent, pad = _FSXATTR.unpack(buffer)
            buffer = bytearray(_FSXATTR.pack(flags | _PROJINHERIT, extent, extents, project, cow_extent, pad))
            ioctl(fd, _FSSETXATTR, buffer, f"put {path} into quota project {project}")
        _set_limit(fd, project, size, path)


def _set_limit(fd: int, project: int, size: int, path: str) -> None:
    buffer = bytearray(_DQBLK.pack(size // KIB, 0, 0, 0, 0, 0, 0, 0, _QIF_LIMITS))
    quotactl_fd(fd, _Q_SETQUOTA << 8 | _PRJQUOTA, project, buffer, f"limit quota project {project} of {path}")


def project_usage(path: str, project: int) -> Usage:
    """A project's limit and use."""
    buffer = bytearray(_DQBLK.size)
    with opened(path, _DIRECTORY) as fd:
        quotactl_fd(fd, _Q_GETQUOTA << 8 | _PRJQUOTA, project, buffer, f"read quota project {project} of {path}")
    limit, _, used, _, _, inodes, *_ = _DQBLK.unpack(buffer)
    total = limit * KIB
    free = os.statvfs(path).f_ffree
    return Usage(
        total=Bytes(total),
        used=Bytes(used),
        available=Bytes(max(0, total - used)),
        inodes=inodes + free,
        used_inodes=inodes,
        free_inodes=free,
    )


def projects_enforced(path: str) -> bool:
    """Whether limits of quota projects hold on the filesystem at *path* (Q_XGETQSTAT)."""
    buffer = bytearray(_QSTAT_BYTES)
    with opened(path, _DIRECTORY) as fd:
        try:
            quotactl_fd(fd, _Q_XGETQSTAT << 8 | _PRJQUOTA, 0, buffer, f"read the quota state of {path}")
        except SyscallFailed:
            return False
    return bool(int.from_bytes(buffer[2:4], "little") & _PROJECT_ENFORCED)


def remove_limited_directory(path: str, remove: Callable[[str], None]) -> None:
    """Remove a directory that may be a subvolume or in a quota project, and its limit with it.

    The limit goes first: what is stopped amid this has left a directory, which says whose limit it was.
    """
    with opened(path, _DIRECTORY) as fd:
        subvolume = subvolume_id(fd)
        if not subvolume and (project := project_of(fd)):
            with suppress(SyscallFailed):
                _set_limit(fd, project, 0, path)
    if subvolume:
        destroy_subvolume(path, subvolume)
    else:
        remove(path)


# --- btrfs


@dataclass(frozen=True, slots=True, kw_only=True)
class BtrfsDevice:
    """The first device of a btrfs: its node and its size in bytes."""

    path: str
    size: Bytes


def btrfs_device(fd: int) -> BtrfsDevice:
    """The device under the btrfs that *fd* is open on."""
    for number in range(1, 64):
        buffer = bytearray(4096)
        buffer[0:8] = number.to_bytes(8, "little")
        with suppress(SyscallFailed):
            ioctl(fd, _DEV_INFO, buffer, "read the device of a btrfs")
            path = os.fsdecode(bytes(buffer[4096 - 1024 :]).split(b"\0", 1)[0])
            return BtrfsDevice(path=path, size=Bytes(int.from_bytes(buffer[32:40], "little")))
    raise SyscallFailed("read the device of a btrfs", 19)


def subvolume_id(fd: int) -> int:
    """The id of the subvolume whose top an open directory is, or 0."""
    if os.fstat(fd).st_ino != _SUBVOLUME_ROOT:
        return 0
    buffer = bytearray(4096)
    buffer[8:16] = _SUBVOLUME_ROOT.to_bytes(8, "little")
    try:
        ioctl(fd, _INO_LOOKUP, buffer, "read the id of a subvolume")
    except SyscallFailed:
        return 0
    return int.from_bytes(buffer[0:8], "little")


def _named(name: str) -> bytearray:
    return bytearray(_VOL_ARGS_V2.pack(0, 0, 0, b"", os.fsencode(name)))


def make_subvolume(path: str) -> None:
    """Make a subvolume, mode 0755."""
    parent, name = os.path.split(path)
    with opened(parent, _DIRECTORY) as fd:
        ioctl(fd, _SUBVOL_CREATE_V2, _named(name), f"make subvolume {path}")
    with opened(path, _DIRECTORY) as fd:
        os.fchmod(fd, 0o755)


def snapshot_subvolume(source: str, target: str, *, read_only: bool) -> None:
    """Make a subvolume that has what another has at this moment; subvolumes inside that are empty directories in it."""
    parent, name = os.path.split(target)
    with opened(source, _DIRECTORY) as old, opened(parent, _DIRECTORY) as fd:
        flags = _SUBVOL_RDONLY if read_only else 0
        arguments = bytearray(_VOL_ARGS_V2.pack(old, 0, flags, b"", os.fsencode(name)))
        ioctl(fd, _SNAP_CREATE_V2, arguments, f"snapshot subvolume {source} as {target}")


def destroy_subvolume(path: str, identifier: int) -> None:
    """Destroy a subvolume with all that is in it, and its limit; the space comes back in the background."""
    parent, name = os.path.split(path)
    with opened(parent, _DIRECTORY) as fd:
        destroy_subvolume_in(fd, name, identifier)


def destroy_subvolume_in(directory: int, name: str, identifier: int) -> None:
    """As :func:`destroy_subvolume`, of one in an open directory; first go those that a pod made in it."""
    try:
        _destroy(directory, name, identifier)
    except SyscallFailed as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EPERM):
            raise
        _loosen(directory, identifier)
        for inner in reversed(_subvolumes_below(directory, identifier)):
            with _numbered(directory, inner.outer, inner.directory) as fd:
                unprotect(fd)
                _destroy(fd, inner.name, inner.identifier)
        _destroy(directory, name, identifier)


def _destroy(directory: int, name: str, identifier: int) -> None:
    ioctl(directory, _SNAP_DESTROY_V2, _named(name), f"destroy subvolume {name}")
    with suppress(SyscallFailed):  # the kernel removes it with the subvolume where it can
        ioctl(directory, _QGROUP_CREATE, bytearray(struct.pack("=2Q", 0, identifier)), "remove a limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inner:
    """A subvolume in another: the numbers of that one and of the directory in it, and the name there."""

    outer: int
    directory: int
    name: str
    identifier: int


def _subvolumes_below(fd: int, identifier: int) -> list[_Inner]:
    """All subvolumes inside one, outer ones before those in them, and nothing that keeps them from being destroyed."""
    found = _subvolumes_in(fd, identifier)
    for inner in found:  # it grows meanwhile
        _loosen(fd, inner.identifier)
        found += _subvolumes_in(fd, inner.identifier)
    return found


def _subvolumes_in(fd: int, outer: int) -> list[_Inner]:
    """The subvolumes right inside one: its references in the tree of roots (btrfs_root_ref, linux/btrfs_tree.h)."""
    found: list[_Inner] = []
    first = 0
    while True:
        key = _SEARCH_KEY.pack(_ROOT_TREE, outer, outer, first, _UNLIMITED, 0, _UNLIMITED, _ROOT_REF, _ROOT_REF, _MANY)
        buffer = bytearray(key.ljust(_SEARCH_BYTES, b"\0"))
        ioctl(fd, _TREE_SEARCH, buffer, f"look for subvolumes in subvolume {outer}")
        (count,) = struct.unpack_from("=I", buffer, _SEARCH_COUNT)
        if not count:
            return found
        at = _SEARCH_ITEMS
        for _ in range(count):
            _, _, inner, _, size = _SEARCH_HEADER.unpack_from(buffer, at)
            at += _SEARCH_HEADER.size
            directory, _, length = _ROOT_REF_ITEM.unpack_from(buffer, at)
            name = bytes(buffer[at + _ROOT_REF_ITEM.size :][:length])
            found.append(_Inner(outer=outer, directory=directory, name=os.fsdecode(name), identifier=inner))
            at, first = at + size, inner + 1


def _loosen(fd: int, subvolume: int) -> None:
    """Make a subvolume writable, and let it be destroyed."""
    with _numbered(fd, subvolume, _SUBVOLUME_ROOT) as top:
        ioctl(top, _SUBVOL_SETFLAGS, bytearray(8), f"make subvolume {subvolume} writable")
        unprotect(top)


@contextmanager
def _numbered(fd: int, subvolume: int, directory: int) -> Iterator[int]:
    """A directory by its numbers, however long its path is (FILEID_BTRFS_WITHOUT_PARENT, linux/exportfs.h)."""
    handle = struct.pack("=2QI", directory, subvolume, 0)
    inner = open_by_handle(fd, 0x4D, handle, _DIRECTORY | os.O_CLOEXEC, f"open {directory} in subvolume {subvolume}")
    try:
        yield inner
    finally:
        os.close(inner)


def limit_subvolume(path: str, size: Bytes) -> None:
    """Limit a subvolume; *size* 0 lifts the limit."""
    limit = struct.pack("=6Q", 0, _LIMIT_REFERENCED, size or _UNLIMITED, 0, 0, 0)
    with opened(path, _DIRECTORY) as fd:
        if not subvolume_id(fd):  # the kernel would limit the one it is in: the pool's
            raise SyscallFailed(f"limit subvolume {path}", errno.EINVAL)
        ioctl(fd, _QGROUP_LIMIT, bytearray(limit), f"limit subvolume {path}")


def enable_subvolume_limits(path: str) -> None:
    """Turn quota on for the btrfs at *path*: simple quota (Linux 6.7), else full accounting. No error if it is on."""
    with opened(path, _DIRECTORY) as fd:
        for command in (_QUOTA_ENABLE_SIMPLE, _QUOTA_ENABLE_FULL):
            try:
                ioctl(fd, _QUOTA_CTL, bytearray(struct.pack("=2Q", command, 0)), f"enable quota on {path}")
            except SyscallFailed:
                if command == _QUOTA_ENABLE_FULL:
                    raise
            else:
                return


def commit_subvolume(path: str) -> None:
    """Commit the running transaction: neither subvolumes nor limits are in what an fsync writes (btrfs(5), log tree).

    Unlike syncfs(2) it writes nobody's data.
    """
    with opened(path, _DIRECTORY) as fd:
        transaction = bytearray(8)
        ioctl(fd, _START_SYNC, transaction, f"commit what was done at {path}")
        ioctl(fd, _WAIT_SYNC, transaction, f"wait until what was done at {path} is on the disk")


def settle(path: str) -> None:
    """Commit what was removed and wake the kernel's cleaner, which frees destroyed subvolumes."""
    with opened(path, _DIRECTORY) as fd, suppress(SyscallFailed):
        ioctl(fd, _SYNC, 0, f"settle {path}")


def subvolume_usage(path: str) -> Usage:
    """A subvolume's limit and use, from /sys/fs/btrfs, where they are current."""
    buffer = bytearray(1024)
    with opened(path, _DIRECTORY) as fd:
        ioctl(fd, _FS_INFO, buffer, f"read the btrfs at {path}")
        identifier = subvolume_id(fd)
    filesystem = uuid.UUID(bytes=bytes(buffer[16:32]))
    group = f"/sys/fs/btrfs/{filesystem}/qgroups/0_{identifier}"
    used, total = _read_number(f"{group}/referenced"), _read_number(f"{group}/max_referenced")
    return Usage(total=Bytes(total), used=Bytes(used), available=Bytes(max(0, total - used)))


def _read_number(path: str) -> int:
    with failing_as(f"read {path}"), open(path, encoding="ascii") as file:
        return int(file.read())
