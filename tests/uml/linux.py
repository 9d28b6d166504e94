"""The system calls the runner and its guest need; each raises OSError with the path it was about.

They stand apart from csi_local.host on purpose: what tests the driver must not be made of the driver.
"""

import ctypes
import os
import struct

MS_RDONLY = 0x1
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SHARED = 0x100000
MNT_DETACH = 2

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_SYS_PIVOT_ROOT = 155
_SYS_MOUNT_SETATTR = 442
_RB_POWER_OFF = 0x4321FEDC

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a filesystem, bind a path, or change a mount: whichever `flags` say."""
    arguments = source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), options.encode()
    _check(_libc.mount(*arguments), target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount what is at `target`."""
    _check(_libc.umount2(target.encode(), flags), target)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name, for new ones."""
    _check(_libc.unshare(flags), "unshare")


def pivot_root(new_root: str) -> None:
    """Make `new_root` the root and drop the old one, in the way that the NOTES of the man page show."""
    os.chdir(new_root)
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), new_root)
    umount(".", MNT_DETACH)
    os.chdir("/")


def make_tree_private_and_read_only(path: str) -> None:
    """Change every mount at and under `path` with mount_setattr(2), which came with Linux 5.12."""
    _mount_setattr(path, _AT_RECURSIVE, set_=_MOUNT_ATTR_RDONLY, clear=0, propagation=MS_PRIVATE)


def make_mount_writable(path: str) -> None:
    """Change this one mount with mount_setattr(2)."""
    _mount_setattr(path, 0, set_=0, clear=_MOUNT_ATTR_RDONLY, propagation=0)


def _mount_setattr(path: str, flags: int, *, set_: int, clear: int, propagation: int) -> None:
    attributes = struct.pack("=4Q", set_, clear, propagation, 0)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attributes, len(attributes))
    _check(result, path)


def power_off() -> None:
    """Switch the machine off, at once."""
    _check(_libc.reboot(ctypes.c_int(_RB_POWER_OFF & 0xFFFFFFFF)), "reboot")
