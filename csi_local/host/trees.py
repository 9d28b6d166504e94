"""Copies of directory trees that somebody may be changing meanwhile, and who may be hostile.

Everything is opened relative to the directory it was found in, never following a symbolic link and never going into
a mount, so that whatever a pod plants or exchanges while it is copied, nothing outside its volume is ever opened. What
is gone before its turn comes is not in the copy. Owners, modes, times, extended attributes (ACLs and capabilities among
them), hard links, symbolic links, holes and special files are kept; flags of chattr(1) are not.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from csi_local.host import cpus
from csi_local.host.copying import FICLONE, copy_data
from csi_local.host.syscalls import failing_as, open_beneath, opened, syncfs
from csi_local.model.errors import FailedPrecondition

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 200
"""Directories inside each other. Each is held open, twice, and a process has 1,024 files by default."""
_TOGETHER = 15
"""So many names, of 255 bytes at most, are a path that the system takes: 4,096 bytes (limits.h, PATH_MAX)."""
_EXCHANGED = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
_TRIES = 3
_UMASKS = 0o777


def copy_tree(source: str, target: str, *, share: bool, proceed: Callable[[], None]) -> None:
    """See ``host.api.Copying.copy_tree``."""
    what = f"copy the tree {source} to {target}"
    with opened(source, _DIRECTORY) as old, opened(target, _DIRECTORY) as new, failing_as(what), cpus.everywhere():
        copy = _Copy(new, share=share, proceed=proceed)
        copy.directory(old, new, "", 0)
        if share:  # the directory was changed last, so that its fsync makes durable all that was done before
            os.fsync(new)
        else:
            syncfs(new, what)


class _Copy:
    def __init__(self, top: int, *, share: bool, proceed: Callable[[], None]) -> None:
        self._top = top
        self._share = share
        self._proceed = proceed
        self._links: dict[tuple[int, int], str] = {}
        self._us = (os.geteuid(), os.getegid())
        self._umask = _umask()

    def directory(self, old: int, new: int, path: str, depth: int) -> None:
        """Copy what is in an open directory into another, then its own attributes."""
        if depth > _DEEPEST:
            raise FailedPrecondition(f"more than {_DEEPEST} directories lie inside each other, at {path[:80]}…")
        inner = []
        with os.scandir(old) as entries:  # closed before anything further down is opened
            for entry in entries:
                self._proceed()
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.name)
                    continue
                kind = stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
                self._entry(old, new, entry.name, f"{path}{entry.name}", kind, depth)
        for name in inner:
            self._proceed()
            self._entry(old, new, name, f"{path}{name}", stat.S_IFDIR, depth)
        self._keep(old, new, os.fstat(old), made=0o700)

    def _entry(self, old: int, new: int, name: str, path: str, kind: int, depth: int) -> None:
        """Copy one thing, which may have become another one, or nothing, since it was listed."""
        for left in reversed(range(_TRIES)):
            try:
                if kind == stat.S_IFREG:
                    self._file(old, new, name, path)
                elif kind == stat.S_IFDIR:
                    self._inner(old, new, name, path, depth)
                else:
                    self._other(old, new, name)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in _EXCHANGED or not left:
                    raise
                with suppress(FileNotFoundError):
                    kind = stat.S_IFMT(os.stat(name, dir_fd=old, follow_symlinks=False).st_mode)
            else:
                return

    def _inner(self, old: int, new: int, name: str, path: str, depth: int) -> None:
        found = open_beneath(old, name, _DIRECTORY)
        if found is None:  # something is mounted there: it is no part of the volume
            os.mkdir(name, 0o755, dir_fd=new)
            return
        try:
            os.mkdir(name, 0o700, dir_fd=new)
            made = os.open(name, _DIRECTORY, dir_fd=new)
            try:
                self.directory(found, made, f"{path}/", depth + 1)
            finally:
                os.close(made)
        finally:
            os.close(found)

    def _file(self, old: int, new: int, name: str, path: str) -> None:
        found = _open_file(old, name)
        try:
            seen = os.fstat(found)
            if seen.st_nlink > 1:
                first = self._links.setdefault((seen.st_dev, seen.st_ino), path)
                if first is not path:
                    self._link(first, new, name)
                    return
            mode = seen.st_mode & _UMASKS
            made = os.open(name, _MAKE, mode, dir_fd=new)
            try:
                if seen.st_size:
                    self._bytes(found, made, seen.st_size)
                self._keep(found, made, seen, made=mode & ~self._umask)
            finally:
                os.close(made)
        finally:
            os.close(found)

    def _link(self, first: str, new: int, name: str) -> None:
        """Link to a copy that was made before; its path may be longer than the system takes in one piece."""
        *outer, last = first.split("/")
        here = os.dup(self._top)
        try:
            for start in range(0, len(outer), _TOGETHER):
                inner = os.open("/".join(outer[start : start + _TOGETHER]), _LOOK | os.O_DIRECTORY, dir_fd=here)
                os.close(here)
                here = inner
            os.link(last, name, src_dir_fd=here, dst_dir_fd=new, follow_symlinks=False)
        finally:
            os.close(here)

    def _bytes(self, found: int, made: int, size: int) -> None:
        if self._share:
            fcntl.ioctl(made, FICLONE, found)  # an integer: Python's lock is let go
            return
        os.ftruncate(made, size)
        copy_data(found, made, self._proceed)

    def _keep(self, found: int, made_fd: int, seen: os.stat_result, *, made: int) -> None:
        """Owner first, since a new owner ends set-id bits and capabilities; times last."""
        if (seen.st_uid, seen.st_gid) != self._us:
            os.fchown(made_fd, seen.st_uid, seen.st_gid)
            made = -1
        if made != (mode := stat.S_IMODE(seen.st_mode)):
            os.fchmod(made_fd, mode)
        for name in os.listxattr(found):
            try:
                os.setxattr(made_fd, name, os.getxattr(found, name))
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP) and name != "security.selinux":
                    raise
        os.utime(made_fd, ns=(seen.st_atime_ns, seen.st_mtime_ns))

    def _other(self, old: int, new: int, name: str) -> None:
        """A symbolic link, FIFO, socket or device node."""
        found = os.open(name, _LOOK, dir_fd=old)
        try:
            seen = os.fstat(found)
            kind = stat.S_IFMT(seen.st_mode)
            if kind in (stat.S_IFREG, stat.S_IFDIR):
                _exchanged(name)
            leads_to = os.readlink("", dir_fd=found) if kind == stat.S_IFLNK else ""
        finally:
            os.close(found)
        if kind == stat.S_IFLNK:
            os.symlink(leads_to, name, dir_fd=new)
        else:
            os.mknod(name, seen.st_mode, seen.st_rdev, dir_fd=new)
        os.chown(name, seen.st_uid, seen.st_gid, dir_fd=new, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(seen.st_mode), dir_fd=new)  # nobody else can reach the copy yet
        os.utime(name, ns=(seen.st_atime_ns, seen.st_mtime_ns), dir_fd=new, follow_symlinks=False)


def _open_file(directory: int, name: str) -> int:
    """Open a file, and nothing that has taken its place: a FIFO's or a device's driver would be told."""
    look = os.open(name, _LOOK, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(look).st_mode):
            _exchanged(name)
        return os.open(f"/proc/self/fd/{look}", _READ)
    finally:
        os.close(look)


def _exchanged(name: str) -> NoReturn:
    raise OSError(errno.ELOOP, "it has become something else", name)


def _umask() -> int:
    """The process's umask, which os.umask() could only tell by changing it (proc_pid_status(5))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return _UMASKS  # not told: every mode is set again
