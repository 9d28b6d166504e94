"""Giving what pods made to somebody else, without ever opening it.

An open of a FIFO waits for who writes into it, one of a device does what its driver likes. So everything is opened
relative to the directory it was found in with O_PATH, which opens nothing, and changed through /proc/self/fd
(open(2), proc_pid_fd(5)): whatever a pod exchanges meanwhile, what was looked at is what is changed.
"""

import errno
import os
import stat
from contextlib import suppress

from csi_local.host.syscalls import failing_as, open_beneath, opened
from csi_local.model.errors import Busy, SyscallFailed

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GROUP_BITS = 0o060
_GROUP_BITS_OF_DIRECTORIES = stat.S_ISGID | 0o070


def give_to_group(path: str, group: int) -> None:
    """See ``host.api.Files.give_to_group``. The directory itself comes last: it tells that all is done.

    However deep the tree is, two directories of it are open.

    Raises:
        Busy: directories are moved meanwhile.
    """
    what = f"give {path} to group {group}"
    with opened(path, _DIRECTORY) as top, failing_as(what):
        seen = os.fstat(top)
        if seen.st_gid == group and seen.st_mode & _GROUP_BITS_OF_DIRECTORIES == _GROUP_BITS_OF_DIRECTORIES:
            return
        _give_below(top, group, what)
        _give_open(top, group)


def _give_below(top: int, group: int, what: str) -> None:
    """Each directory that was entered is kept by its identity, with the names in it that are still to be entered."""
    here = os.open(".", _DIRECTORY, dir_fd=top)
    try:
        entered = [(_identity(here), _give_entries(here, group))]
        while entered:
            _, names = entered[-1]
            inner = _directory(here, names.pop()) if names else None
            if inner is not None:
                os.close(here)
                here = inner
                entered.append((_identity(here), _give_entries(here, group)))
            elif not names:
                entered.pop()
                if entered:
                    outer = os.open("..", _DIRECTORY, dir_fd=here)
                    os.close(here)
                    here = outer
                if entered and _identity(here) != entered[-1][0]:
                    raise Busy(f"{what}: directories in it are moved meanwhile; try again")
    finally:
        os.close(here)


def _identity(fd: int) -> tuple[int, int]:
    seen = os.fstat(fd)
    return seen.st_dev, seen.st_ino


def _directory(outer: int, name: str) -> int | None:
    """An inner directory, open; None where it is one no more, or something is mounted there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return open_beneath(outer, name, _DIRECTORY)
    return None


def _give_entries(directory: int, group: int) -> list[str]:
    """Give all that is in an open directory; return the names of the directories in it."""
    return [name for name in os.listdir(directory) if _give(directory, name, group)]


def _give(directory: int, name: str, group: int) -> bool:
    """Give one thing, unless chattr(1) protects it; whether it is a directory."""
    with suppress(FileNotFoundError):
        fd = open_beneath(directory, name, _LOOK)
        if fd is None:  # something is mounted there: it is no part of the volume
            return False
        try:
            with suppress(PermissionError):
                _give_open(fd, group)
            return stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
    return False


def _give_open(fd: int, group: int) -> None:
    seen, itself = os.fstat(fd), f"/proc/self/fd/{fd}"
    link, directory = stat.S_ISLNK(seen.st_mode), stat.S_ISDIR(seen.st_mode)
    os.chown(itself, -1, group)
    if not link:
        bits = _GROUP_BITS_OF_DIRECTORIES if directory else _GROUP_BITS
        os.chmod(itself, stat.S_IMODE(seen.st_mode) | bits)


def set_owner(path: str, owner: int, mode: int) -> None:
    """See ``host.api.Inspection.set_owner``."""
    what = f"take over {path}"
    with opened(path, _LOOK) as fd, failing_as(what):
        found, itself = os.fstat(fd), f"/proc/self/fd/{fd}"
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):  # it may be anybody's file under our name
            raise SyscallFailed(what, errno.EMLINK)
        os.chown(itself, owner, -1)
        os.chmod(itself, stat.S_IMODE(found.st_mode) & mode)
