"""Removing what pods left behind, whatever that is.

However deep a tree is, two directories of it are open: directories in directories are moved up first. What chattr(1)
protects is unprotected where that is in the way, and subvolumes that a pod made are destroyed.
"""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from csi_local.host import quota
from csi_local.host.syscalls import failing_as, opened
from csi_local.model.errors import SyscallFailed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PROTECTED = (errno.EPERM, errno.EACCES, errno.EXDEV)
"""The last is what a rename into a directory says that hands its quota project down, of what is in another."""
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def remove_directory(path: str) -> None:
    """Remove a directory and all that is in it."""
    with failing_as(f"remove {path}"):
        with opened(path, _DIRECTORY) as top:
            numbers = itertools.count()
            while names := _names(top):
                for name in names:
                    _empty_or_unlink(top, name, numbers)
        _forced(partial(os.rmdir, path), (None, path))


def _names(directory: int) -> list[str]:
    """Opened anew each time: an open directory of a btrfs does not list what was put into it since."""
    fd = os.open(".", _DIRECTORY, dir_fd=directory)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _empty_or_unlink(top: int, name: str, numbers: Iterator[int]) -> None:
    try:
        _unlink(top, name)
    except IsADirectoryError:
        inner = os.open(name, _DIRECTORY, dir_fd=top)
        try:
            if subvolume := quota.subvolume_id(inner):
                quota.destroy_subvolume_in(top, name, subvolume)
                return
            for entry in _names(inner):
                _move_up_or_unlink(inner, entry, top, numbers)
        finally:
            os.close(inner)
        _forced(partial(os.rmdir, name, dir_fd=top), (top, "."), (top, name))


def _move_up_or_unlink(inner: int, entry: str, top: int, numbers: Iterator[int]) -> None:
    try:
        _unlink(inner, entry)
    except IsADirectoryError:
        places = (inner, "."), (inner, entry), (top, ".")
        while True:
            up = partial(os.rename, entry, f".up-{next(numbers)}", src_dir_fd=inner, dst_dir_fd=top)
            try:
                _forced(up, *places)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return


def _unlink(directory: int, name: str) -> None:
    _forced(partial(os.unlink, name, dir_fd=directory), (directory, "."), (directory, name))


def _forced(act: Callable[[], None], *places: tuple[int | None, str]) -> None:
    """Do it; where it is forbidden unprotect the *places* (in an open directory, by name), and do it again."""
    try:
        act()
    except OSError as error:
        if error.errno not in _PROTECTED:
            raise
        for directory, name in places:
            _unprotect(directory, name)
        act()


def _unprotect(directory: int | None, name: str) -> None:
    """Only files and directories are opened, and nothing else can be protected."""
    look = os.open(name, _LOOK, dir_fd=directory)
    try:
        if stat.S_IFMT(os.fstat(look).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            with suppress(SyscallFailed), opened(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_NONBLOCK) as fd:
                quota.unprotect(fd)
    finally:
        os.close(look)
