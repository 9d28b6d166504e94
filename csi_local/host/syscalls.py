"""System calls that Python's standard library lacks, as small functions that raise with the object's name.

Numbers are those of x86-64 and arm64, which agree on every call used here (asm-generic/unistd.h, syscall_64.tbl),
except renameat2, fallocate and statx, which go through libc.
"""

import ctypes
import errno
import os
import struct

from csi_local.model.errors import SyscallFailed
from csi_local.model.observed import FileInfo, FileKind

_LIBC = ctypes.CDLL(None, use_errno=True)

CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800
_STATX_BASIC_STATS, _STATX_BTIME = 0x7FF, 0x800
_STATX_ATTR_MOUNT_ROOT = 0x2000
_STATX = struct.Struct("=IIQIIIHHQQQQ16xqI36xIIII")
_StatxBuffer = ctypes.c_char * 256
_RENAME_NOREPLACE = 1

_SYS_OPEN_TREE = 428
_SYS_OPENAT2 = 437
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_QUOTACTL_FD = 443
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_EMPTY_PATHS = 0x04 | 0x40
_UMOUNT_NOFOLLOW = 8
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08

_KINDS = {
    0o040000: FileKind.DIRECTORY,
    0o100000: FileKind.FILE,
    0o060000: FileKind.BLOCK,
    0o120000: FileKind.SYMLINK,
}


def _check(result: int, what: str) -> int:
    if result < 0:
        raise SyscallFailed(what, ctypes.get_errno())
    return result


def _syscall(number: int, what: str, *arguments: object) -> int:
    return _check(int(_LIBC.syscall(ctypes.c_long(number), *arguments)), what)


class failing_as:  # noqa: N801 (used as a with statement's verb)
    """Turn an OSError inside into SyscallFailed, naming *what*."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Nothing to do yet."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise the other error instead."""
        if isinstance(error, OSError):
            raise SyscallFailed(self._what, error.errno or errno.EIO) from error


class opened:  # noqa: N801 (likewise)
    """A file descriptor for *path*, closed at the end. Close-on-exec always; a file that is made is its owner's."""

    __slots__ = ("_fd", "_flags", "_path")

    def __init__(self, path: str, flags: int) -> None:
        self._path = path
        self._flags = flags
        self._fd = -1

    def __enter__(self) -> int:
        """Open it."""
        try:
            self._fd = os.open(self._path, self._flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SyscallFailed(f"open {self._path}", error.errno or errno.EIO) from error
        return self._fd

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        os.close(self._fd)


def ioctl(fd: int, request: int, argument: bytearray | int, what: str) -> int:
    """ioctl(2); a bytearray is changed in place.

    Not by fcntl.ioctl: with an argument of more than 1,024 bytes, as btrfs has them, that holds Python's lock while
    the kernel waits for a transaction, and so stops the whole driver.
    """
    value = ctypes.c_ulong(argument) if isinstance(argument, int) else _in_place(argument)
    return _check(int(_LIBC.ioctl(fd, ctypes.c_ulong(request), value)), what)


def _in_place(buffer: bytearray) -> "ctypes.Array[ctypes.c_char]":
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)


def statx(path: str) -> FileInfo | None:
    """statx(2) without following a final symbolic link; None where nothing is there."""
    buffer = _StatxBuffer()
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
    if _LIBC.statx(AT_FDCWD, os.fsencode(path), flags, _STATX_BASIC_STATS | _STATX_BTIME, buffer) < 0:
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise SyscallFailed(f"stat {path}", number)
    (mask, _, attributes, _, _, gid, mode, _, inode, size, blocks, _, *rest) = _STATX.unpack_from(buffer)
    seconds, nanoseconds, *devices = rest
    return FileInfo(
        kind=_KINDS.get(mode & 0o170000, FileKind.OTHER),
        size=size,
        allocated=blocks * 512,
        device=os.makedev(devices[2], devices[3]),
        inode=inode,
        special=os.makedev(devices[0], devices[1]),
        mount_root=bool(attributes & _STATX_ATTR_MOUNT_ROOT),
        gid=gid,
        mode=mode & 0o7777,
        born=seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else 0,
    )


def fallocate(fd: int, mode: int, offset: int, length: int, what: str) -> None:
    """fallocate(2); unlike posix_fallocate it never falls back to writing."""
    off_t = ctypes.c_int64
    _check(_LIBC.fallocate64(fd, mode, off_t(offset), off_t(length)), what)


def rename_noreplace(source: str, target: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE: EEXIST where *target* is there."""
    arguments = (AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    _check(_LIBC.renameat2(*arguments), f"rename {source} to {target}")


def mount(source: str, target_fd: int, filesystem: str, flags: int, data: str, what: str) -> None:
    """mount(2) on an open directory, so that nobody can exchange it underway."""
    target = f"/proc/self/fd/{target_fd}".encode()
    arguments = (
        os.fsencode(source),
        target,
        filesystem.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(_LIBC.mount(*arguments), what)


def clone_mount(source_fd: int, what: str) -> int:
    """A detached copy of the mount at an open path (open_tree(2)), as a file descriptor."""
    return _syscall(_SYS_OPEN_TREE, what, source_fd, b"", AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC)


def set_mount_attributes(fd: int, to_set: int, to_clear: int, what: str) -> None:
    """mount_setattr(2) on an open mount: struct mount_attr is attr_set, attr_clr, propagation, userns_fd."""
    attributes = struct.pack("=4Q", to_set, to_clear, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    _syscall(_SYS_MOUNT_SETATTR, what, fd, b"", AT_EMPTY_PATH, attributes, size)


def move_mount(mount_fd: int, target_fd: int, what: str) -> None:
    """Attach a detached mount to an open path (move_mount(2))."""
    _syscall(_SYS_MOVE_MOUNT, what, mount_fd, b"", target_fd, b"", _MOVE_MOUNT_EMPTY_PATHS)


def umount(path: str) -> None:
    """umount2(2), without following a symbolic link."""
    _check(_LIBC.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW), f"unmount {path}")


def quotactl_fd(fd: int, command: int, identifier: int, buffer: bytearray, what: str) -> None:
    """quotactl_fd(2), Linux 5.14: the filesystem is named by any open file on it."""
    _syscall(_SYS_QUOTACTL_FD, what, fd, ctypes.c_uint(command), ctypes.c_uint(identifier), _in_place(buffer))


def filesystem_magic(path: str) -> int:
    """The number that tells what filesystem *path* is on (statfs(2), ``f_type``)."""
    buffer = ctypes.create_string_buffer(256)
    _check(_LIBC.statfs(os.fsencode(path), buffer), f"statfs {path}")
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") & 0xFFFFFFFF


def open_beneath(directory: int, name: str, flags: int) -> int | None:
    """openat2(2), Linux 5.6: open what is in an open directory, through no symbolic link; None where a mount begins.

    Raises:
        OSError: as open(2).
    """
    how = struct.pack("=3Q", flags, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    fd = int(_LIBC.syscall(ctypes.c_long(_SYS_OPENAT2), directory, os.fsencode(name), how, ctypes.c_size_t(len(how))))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number == errno.EXDEV:
        return None
    raise OSError(number, os.strerror(number), name)


def open_by_handle(mount: int, kind: int, handle: bytes, flags: int, what: str) -> int:
    """open_by_handle_at(2): open what a filesystem knows by the *handle*, on the one that *mount* is open on."""
    buffer = struct.pack("=Ii", len(handle), kind) + handle
    return _check(int(_LIBC.open_by_handle_at(mount, buffer, flags)), what)


def syncfs(fd: int, what: str) -> None:
    """syncfs(2): write out all of the filesystem that an open file is on."""
    _check(_LIBC.syncfs(fd), what)


def has_capability(number: int) -> bool:
    """Whether this process has a capability (capabilities(7); CapEff in proc_pid_status(5))."""
    with failing_as("read the capabilities"), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff")), 0)
    return bool(effective >> number & 1)


def limit_arenas(count: int) -> None:
    """Keep malloc from giving every thread an arena of its own (mallopt(3), M_ARENA_MAX)."""
    _LIBC.mallopt(-8, count)
