"""Files and directories on the real machine."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from csi_local.host import owners, quota, syscalls
from csi_local.host.mounts import mounts_below
from csi_local.host.removal import remove_directory
from csi_local.host.syscalls import failing_as, opened
from csi_local.model.errors import Busy, SyscallFailed
from csi_local.model.observed import FileInfo, FileKind, Room
from csi_local.model.quantity import Bytes

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 16


class LinuxFiles:
    """Implements ``host.api.Files``."""

    def stat(self, path: str) -> FileInfo | None:
        """See ``Files.stat``."""
        return syscalls.statx(path)

    def real_path(self, path: str) -> str:
        """See ``Files.real_path``."""
        try:
            with opened(path, os.O_PATH) as fd:
                return os.readlink(f"/proc/self/fd/{fd}")
        except (OSError, SyscallFailed):  # something on the way is not there
            return os.path.realpath(path)

    def read_file(self, path: str) -> bytes:
        """See ``Files.read_file``."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # an open of a FIFO waits for nobody
        with opened(path, flags) as fd, failing_as(f"read {path}"):
            if (owner := os.fstat(fd).st_uid) != os.geteuid():
                raise SyscallFailed(f"read {path}, which belongs to user {owner}", errno.EPERM)
            data = chunk = os.read(fd, _CHUNK)
            while len(chunk) == _CHUNK:
                chunk = os.read(fd, _CHUNK)
                data += chunk
            return data

    def write_new_file(self, path: str, data: bytes) -> None:
        """See ``Files.write_new_file``."""
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as fd, failing_as(f"write {path}"):
            _write_all(fd, data)
            os.fsync(fd)

    def replace_file(self, path: str, data: bytes) -> None:
        """See ``Files.replace_file``."""
        temporary = f"{path}.tmp"
        with failing_as(f"write {path}"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o600)
            try:
                _write_all(fd, data)
                os.fsync(fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(fd)
            os.rename(temporary, path)
        self.sync_dir(os.path.dirname(path))

    def list_dir(self, path: str, *, directories_only: bool = False) -> Sequence[str]:
        """See ``Files.list_dir``."""
        with failing_as(f"list {path}"), os.scandir(path) as entries:
            return [entry.name for entry in entries if not directories_only or entry.is_dir(follow_symlinks=False)]

    def make_dir(self, path: str, *, mode: int = 0o700, exist_ok: bool = False) -> None:
        """See ``Files.make_dir``."""
        with failing_as(f"make directory {path}"):
            try:
                os.mkdir(path, mode)
            except FileExistsError:
                if not exist_ok or not os.path.isdir(path) or os.path.islink(path):
                    raise

    def make_file(self, path: str) -> None:
        """See ``Files.make_file``."""
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as fd:
            os.fchmod(fd, 0o600)

    def make_link(self, path: str, target: str) -> None:
        """See ``Files.make_link``."""
        with failing_as(f"make link {path}"):
            os.symlink(target, path)

    def set_mode(self, path: str, mode: int) -> None:
        """See ``Files.set_mode``."""
        with opened(path, _DIRECTORY) as fd, failing_as(f"change the mode of {path}"):
            os.fchmod(fd, mode)

    def remove(self, path: str) -> None:
        """See ``Files.remove``."""
        with failing_as(f"remove {path}"):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.rmdir(path)
            else:
                os.unlink(path)

    def remove_tree(self, path: str) -> None:
        """See ``Files.remove_tree``."""
        info = self.stat(path)
        if info is None:
            return
        if info.kind is not FileKind.DIRECTORY:
            self.remove(path)
            return
        if info.mount_root or mounts_below(path):
            raise SyscallFailed(f"remove {path}", errno.EBUSY)
        for name in self.list_dir(path, directories_only=True):
            quota.remove_limited_directory(f"{path}/{name}", remove_directory)
        remove_directory(path)

    def rename(self, source: str, target: str) -> None:
        """See ``Files.rename``."""
        syscalls.rename_noreplace(source, target)
        parents = dict.fromkeys((os.path.dirname(source), os.path.dirname(target)))
        for (
            parent
        ) in parents:  # the one it has left first: a btrfs then commits all, and has no more to do for the other
            self.sync_dir(parent)

    def sync_dir(self, path: str) -> None:
        """See ``Files.sync_dir``."""
        with opened(path, _DIRECTORY) as fd, failing_as(f"sync {path}"):
            os.fsync(fd)

    def give_to_group(self, path: str, group: int) -> None:
        """See ``Files.give_to_group``."""
        owners.give_to_group(path, group)

    def room(self, path: str) -> Room:
        """See ``Files.room``."""
        with failing_as(f"statvfs {path}"):
            found = os.statvfs(path)
        return Room(
            total=Bytes(found.f_blocks * found.f_frsize),
            free=Bytes(found.f_bfree * found.f_frsize),
            available=Bytes(found.f_bavail * found.f_frsize),
            inodes=found.f_files,
            free_inodes=found.f_ffree,
            read_only=bool(found.f_flag & os.ST_RDONLY),
        )

    @contextmanager
    def lock(self, path: str) -> Iterator[None]:
        """See ``Files.lock``."""
        with opened(path, os.O_RDONLY) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{path} is in use by another csi-local") from None
            yield


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
