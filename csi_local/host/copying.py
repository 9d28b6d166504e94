"""Copies of image files: sharing their blocks where the filesystem can, else of their data, without their holes.

Numbers: linux/fs.h (FICLONE). A file whose blocks are reserved keeps, in a clone on XFS, only those that were written.
"""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress

from csi_local.host import cpus, quota
from csi_local.host.headers import own_header
from csi_local.host.loop import like_image
from csi_local.host.syscalls import failing_as, ioctl, opened, syncfs
from csi_local.model.errors import SyscallFailed

FICLONE = 0x40049409
_PIECE = 8 << 20
"""How much is copied before the caller is asked again whether to go on."""
_ROUNDS, _SHORT_S = 4, 0.02
"""A filesystem is written out again while that takes longer, since others wait while it is frozen."""
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_SOURCE = os.O_RDONLY | os.O_NOFOLLOW
_TARGET = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def clone_image(source: str, target: str) -> None:
    """See ``host.api.Copying.clone_image``."""
    with opened(source, _SOURCE) as old, opened(target, _TARGET) as new:
        like_image(old, new, target)
        if extent := quota.extent_size_hint(old):
            with suppress(SyscallFailed):
                quota.hint_extent_size(new, extent)
        ioctl(new, FICLONE, old, f"clone {source} as {target}")
        own_header(new, target)


def copy_image(source: str, target: str, proceed: Callable[[], None]) -> None:
    """See ``host.api.Copying.copy_image``."""
    what = f"copy {source} to {target}"
    with opened(source, _SOURCE) as old, opened(target, _TARGET) as new, failing_as(what), cpus.everywhere():
        like_image(old, new, target)
        os.ftruncate(new, os.fstat(old).st_size)
        if not copy_data(old, new, proceed):
            raise SyscallFailed(f"{what}, which is cut short meanwhile", errno.EIO)
        own_header(new, target)  # in one filesystem the kernel may have cloned it
        os.fsync(new)


def copy_data(old: int, new: int, proceed: Callable[[], None]) -> bool:
    """Copy what one open file has in it to the same places of another; False where it is cut short meanwhile."""
    offset = 0
    while True:
        try:
            offset = os.lseek(old, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            raise
        end = os.lseek(old, offset, os.SEEK_HOLE)
        while offset < end:
            proceed()
            copied = _copy_piece(old, new, offset, min(_PIECE, end - offset))
            if not copied:
                return False
            offset += copied


def _copy_piece(old: int, new: int, offset: int, size: int) -> int:
    try:
        return os.copy_file_range(old, new, size, offset, offset)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    os.lseek(new, offset, os.SEEK_SET)
    return os.sendfile(new, old, offset, size)


def sync_file(path: str) -> None:
    """See ``host.api.Copying.sync_file``."""
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW) as fd, failing_as(f"sync {path}"):
        os.fsync(fd)


def sync_filesystem(path: str) -> None:
    """See ``host.api.Copying.sync_filesystem``. What was written meanwhile is written out too, if that was much."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
        for _ in range(_ROUNDS):
            began = time.monotonic()
            syncfs(fd, f"sync the filesystem at {path}")
            if time.monotonic() - began < _SHORT_S:
                return
