"""LUKS2 headers as bytes: copying one, putting one back, overwriting one (LUKS2 On-Disk Format Specification, 2)."""

import errno
import os
import stat
from contextlib import suppress

from csi_local.host.loop import like_image
from csi_local.host.syscalls import failing_as, opened
from csi_local.model.errors import SyscallFailed
from csi_local.model.quantity import KIB
from csi_local.model.volume import HEADER, KEY_SLOTS

METADATA = 32 * KIB
"""Two copies of what the header says; the key slots lie behind."""
_MAGIC = ((0, b"LUKS\xba\xbe"), (METADATA // 2, b"SKUL\xba\xbe"))
_PIECE = 1 << 20


def _has_header(fd: int) -> bool:
    return any(os.pread(fd, len(magic), offset) == magic for offset, magic in _MAGIC)


def _has_whole_header(fd: int) -> bool:
    return _has_header(fd) and os.fstat(fd).st_size >= KEY_SLOTS


def copy_header(source: str, target: str) -> None:
    """See ``host.api.Crypt.copy_header``."""
    temporary = f"{target}.tmp"
    with opened(source, os.O_RDONLY | os.O_NOFOLLOW) as old:
        if not _has_whole_header(old):
            raise SyscallFailed(f"copy the header of {source}", errno.EINVAL)
        _remove_unfinished(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with opened(temporary, flags) as new, failing_as(f"write {temporary}"):
            try:
                like_image(old, new, temporary)  # in its place on a btrfs too, where it can be overwritten
                _copy(old, new, 0, KEY_SLOTS)
                os.fsync(new)
            except OSError:
                _remove_unfinished(temporary)
                raise
    with failing_as(f"write {target}"):
        os.rename(temporary, target)
    with opened(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY) as directory, failing_as(f"sync {target}"):
        os.fsync(directory)


def _remove_unfinished(path: str) -> None:
    """What there is of it may be key slots already."""
    with failing_as(f"remove {path}"), suppress(FileNotFoundError):
        if stat.S_ISREG(os.lstat(path).st_mode):
            erase_header(path)
        os.unlink(path)


def restore_header(source: str, target: str) -> None:
    """See ``host.api.Crypt.restore_header``. What makes it a header comes last."""
    with (
        opened(source, os.O_RDONLY | os.O_NOFOLLOW) as old,
        opened(target, os.O_RDWR | os.O_NOFOLLOW) as new,
        failing_as(f"write the header of {target}"),
    ):
        if not _has_whole_header(old):
            raise SyscallFailed(f"restore the header of {target} from {source}", errno.EINVAL)
        for start, end in ((METADATA, KEY_SLOTS), (0, METADATA)):
            _copy(old, new, start, end)
            os.fsync(new)


def _copy(old: int, new: int, start: int, end: int) -> None:
    for offset in range(start, end, _PIECE):
        _write(new, os.pread(old, min(_PIECE, end - offset), offset), offset)


def _write(fd: int, data: bytes, offset: int) -> None:
    """All of it: a disk that is almost full takes a part, and says so only to who asks for the rest."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def own_header(image: int, path: str) -> None:
    """Let an image that shares its blocks with another have its header in blocks of its own, durably.

    Only those are overwritten in their place, when a key is given up or an image is deleted: of what is shared the new
    bytes are written elsewhere, and the old ones stay.
    """
    with failing_as(f"write the header of {path}"):
        if _has_header(image):
            _copy(image, image, 0, KEY_SLOTS)
            os.fsync(image)


def erase_header(path: str, *, encrypted: bool = False) -> None:
    """See ``host.api.Crypt.erase_header``.

    The key slots first: without them no key opens anything, and while the rest is there, it is seen that this is not
    done yet.
    """
    with opened(path, os.O_RDWR | os.O_NOFOLLOW) as fd, failing_as(f"erase the header of {path}"):
        if not _has_header(fd) and not (encrypted and os.pread(fd, KEY_SLOTS, 0).strip(b"\0")):
            return
        size = min(os.fstat(fd).st_size, HEADER)
        for start, end in ((METADATA, size), (0, METADATA)):
            for offset in range(start, end, _PIECE):
                _write_zeros(fd, offset, min(_PIECE, end - offset))
            os.fsync(fd)


def _write_zeros(fd: int, offset: int, length: int) -> None:
    """Written, not punched: what was in the blocks is to go.

    A full filesystem has no room for an own copy of what is shared with a snapshot; that goes with the snapshot.
    """
    try:
        _write(fd, bytes(length), offset)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
