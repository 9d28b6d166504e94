"""Loop devices (loop(4), linux/loop.h).

A device is told by the identity (device, inode) of the file under it; its name says nothing and its file name in
the kernel is cut at 63 bytes. Between LOOP_CTL_GET_FREE and LOOP_CONFIGURE anybody may take the device: EBUSY, and
again. LOOP_CLR_FD on a device in use "succeeds" and does nothing until the last user goes: looked after.
"""

import errno
import fcntl
import os
import signal
import stat
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

from csi_local.host import quota
from csi_local.host.syscalls import failing_as, fallocate, ioctl, opened, statx
from csi_local.model.errors import SHORTAGE, SyscallFailed
from csi_local.model.observed import LoopDevice
from csi_local.model.quantity import Bytes
from csi_local.model.volume import KEY_SLOTS

_CTL_GET_FREE, _CTL_ADD, _ANY = 0x4C82, 0x4C80, 2**64 - 1
_CONFIGURE, _SET_CAPACITY, _GET_STATUS64, _CLR_FD = 0x4C0A, 0x4C07, 0x4C05, 0x4C01
_BLKGETSIZE64 = 0x80081272
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct("=2I232s64x")
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_MAJOR = 7
_TRIES = 50
_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
_GONE_WITHIN_S = 2.0
_PIECE = 16 << 20
_EXTENT_HINT = 1 << 20
"""Without it random writes to a sparse file on XFS leave it in tens of thousands of extents."""
_NO_COW = 0x00800000
_FS_GETFLAGS, _FS_SETFLAGS = 0x80086601, 0x40086602

_F_SETSIG = 10
_taking = threading.Lock()
_being_taken: set[int] = set()
"""Two threads of ours need not race for the same free device."""

_hints: dict[tuple[int, int], set[str]] = {}
"""Where a file's devices were seen last; always verified, and a miss means a look at all devices."""


def make_image(path: str, size: Bytes, *, thick: bool) -> None:
    """Make a file of zeros; on btrfs without copy-on-write, which would undo the reservation at every write."""
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as fd:
        with suppress(SyscallFailed):
            _set_flags(fd, _flags(fd, path) | _NO_COW, path)
        if not thick:
            with suppress(SyscallFailed):
                quota.hint_extent_size(fd, _EXTENT_HINT)
        _resize(fd, path, size, thick=thick)
        with failing_as(f"sync {path}"):
            os.fsync(fd)


def like_image(old: int, new: int, path: str) -> None:
    """Let an empty file be kept in the way that an image is: a btrfs shares blocks only between files alike."""
    with suppress(SyscallFailed):
        if _flags(old, path) & _NO_COW:
            _set_flags(new, _flags(new, path) | _NO_COW, path)


def _flags(fd: int, path: str) -> int:
    flags = bytearray(8)
    ioctl(fd, _FS_GETFLAGS, flags, f"read the flags of {path}")
    return int.from_bytes(flags, "little")


def _set_flags(fd: int, flags: int, path: str) -> None:
    ioctl(fd, _FS_SETFLAGS, bytearray(flags.to_bytes(8, "little")), f"set the flags of {path}")


def resize_image(path: str, size: Bytes, *, thick: bool) -> None:
    """Make a file larger, never smaller, and where thick reserve what it has no blocks for.

    One that is as it should be is synced too: whoever made it so may have been stopped before.
    """
    with opened(path, os.O_RDWR | os.O_NOFOLLOW) as fd:
        if os.fstat(fd).st_size < size or (thick and _lacks_blocks(fd, size)):
            _resize(fd, path, size, thick=thick)
        with failing_as(f"sync {path}"):
            os.fsync(fd)


def _lacks_blocks(fd: int, size: int) -> bool:
    return os.fstat(fd).st_blocks * 512 < size


def _resize(fd: int, path: str, size: Bytes, *, thick: bool) -> None:
    before = os.fstat(fd).st_size
    try:
        if thick:
            _reserve(fd, path, before, size)
        elif before < size:
            with failing_as(f"resize {path}"):
                os.ftruncate(fd, size)
    except SyscallFailed:
        with suppress(OSError):  # what went wrong first is told
            os.ftruncate(fd, before)
        raise


def _reserve(fd: int, path: str, before: int, size: int) -> None:
    """Only what is new is reserved: XFS wants the whole range of a call free, whether it has blocks already or not.

    Where blocks of the old range were given back, that is gone through in pieces. What an encrypted image has its key
    slots in is reserved alone: a btrfs overwrites nothing in its place whose extent is shared in any part.
    """
    what = f"reserve {size} bytes for {path}"
    for start, end in pairwise(sorted({before, max(before, min(KEY_SLOTS, size)), size})):
        fallocate(fd, 0, start, end - start, what)
    if _lacks_blocks(fd, size):
        for offset in range(0, before, _PIECE):
            fallocate(fd, 0, offset, min(_PIECE, before - offset), what)


@contextmanager
def attach(path: str, *, sector_size: int, keep: bool, read_only: bool = False) -> Iterator[LoopDevice]:
    """See ``host.api.Blocks.attach``."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    for loop in loops(path):
        if loop.read_only == read_only and (fd := _open(loop.path, mode)) is not None:
            try:
                if _status(fd, loop.path) == loop:
                    yield loop
                    return
            finally:
                os.close(fd)
    with opened(path, mode | os.O_NOFOLLOW | os.O_DIRECT) as image:
        flags = _DIRECT_IO | (_READ_ONLY if read_only else 0) | (0 if keep else _AUTOCLEAR)
        device, fd = _configure(image, path, sector_size, flags)
    try:
        attached = _status(fd, device)
        if attached is None:
            raise SyscallFailed(f"attach {path}", errno.EAGAIN)
        _hints.setdefault(attached.backing, set()).add(device)
        yield attached
    finally:
        os.close(fd)


def _configure(image: int, path: str, sector_size: int, flags: int) -> tuple[str, int]:
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(path)[-63:], b"", b"", 0, 0)
    config = _CONFIG.pack(image, sector_size, info)
    for _ in range(_TRIES):
        with _reserved() as number:
            device = f"/dev/loop{number}"
            _make_node(device, number)
            fd = _open(device, os.O_RDONLY if flags & _READ_ONLY else os.O_RDWR)
            if fd is None:  # somebody removed it
                continue
            try:
                ioctl(fd, _CONFIGURE, bytearray(config), f"attach {path} to {device}")
            except SyscallFailed as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, fd
    raise SyscallFailed(f"attach {path}", errno.EBUSY)


@contextmanager
def _reserved() -> Iterator[int]:
    """The number of a free device that no other thread of ours is about to take.

    The lock is not held while the device is configured: that syncs the file, which may take long.
    """
    with _taking, opened("/dev/loop-control", os.O_RDWR) as control:
        number = ioctl(control, _CTL_GET_FREE, 0, "find a free loop device")
        if number in _being_taken:
            number = _another_free(control)
        _being_taken.add(number)
    try:
        yield number
    finally:
        with _taking:
            _being_taken.discard(number)


def _another_free(control: int) -> int:
    with failing_as("list the loop devices"):
        names = os.listdir("/sys/block")
    for name in names:
        free = name.startswith("loop") and not os.path.exists(f"/sys/block/{name}/loop")
        if free and int(name[4:]) not in _being_taken:
            return int(name[4:])
    return ioctl(control, _CTL_ADD, _ANY, "make another loop device")


def _make_node(device: str, number: int) -> None:
    if not os.path.exists(device):
        with failing_as(f"make {device}"), suppress(FileExistsError):
            os.mknod(device, stat.S_IFBLK | 0o660, os.makedev(_MAJOR, number))


def _open(device: str, flags: int) -> int | None:
    """Open a loop device; None where there is none any more."""
    try:
        return os.open(device, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise SyscallFailed(f"open {device}", error.errno or errno.EIO) from error


def _status(fd: int, device: str) -> LoopDevice | None:
    buffer = bytearray(_INFO.size)
    try:
        ioctl(fd, _GET_STATUS64, buffer, f"read the state of {device}")
    except SyscallFailed:
        return None
    lo_device, inode, _, _, _, number, _, _, flags, *_ = _INFO.unpack(buffer)
    return LoopDevice(
        path=device,
        device=os.makedev(_MAJOR, number),
        backing=(lo_device, inode),
        read_only=bool(flags & _READ_ONLY),
        autoclear=bool(flags & _AUTOCLEAR),
    )


def _look(device: str) -> LoopDevice | None:
    try:
        fd = _open(device, os.O_RDONLY | os.O_NONBLOCK)
    except SyscallFailed as error:
        if error.errno in SHORTAGE:
            raise
        return None
    if fd is None:
        return None
    try:
        return _status(fd, device)
    finally:
        os.close(fd)


def all_loops() -> Sequence[LoopDevice]:
    """All attached loop devices; sysfs says which are, so that a free one is not opened."""
    with failing_as("list the loop devices"):
        names = [name for name in os.listdir("/sys/block") if name.startswith("loop")]
    attached = (f"/dev/{name}" for name in names if os.path.exists(f"/sys/block/{name}/loop"))
    found = [loop for device in attached if (loop := _look(device)) is not None]
    for loop in found:
        _hints.setdefault(loop.backing, set()).add(loop.path)
    return found


def loops(path: str) -> Sequence[LoopDevice]:
    """The loop devices of an image, the writable one first."""
    info = statx(path)
    if info is None:
        return []
    backing = info.identity
    known = [loop for device in tuple(_hints.get(backing, ())) if (loop := _look(device)) and loop.backing == backing]
    if not known and _nobody_writes(path):
        _hints.pop(backing, None)
        return []
    found = known or [loop for loop in all_loops() if loop.backing == backing]
    if found:
        _hints[backing] = {loop.path for loop in found}
    else:
        _hints.pop(backing, None)
    return sorted(found, key=lambda loop: (loop.read_only, loop.device))


def _nobody_writes(path: str) -> bool:
    """Whether nobody, and so no writable loop device, has the file open for writing: only then is a lease given.

    It saves opening every loop device of the node (fcntl(2), F_SETLEASE). Read-only devices are made by the driver
    alone, which knows them. The signal for whoever wants the file meanwhile is made one that is ignored.
    """
    try:
        with opened(path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
            fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except (OSError, SyscallFailed):
        return False
    return True


def detach(loop: LoopDevice) -> None:
    """Detach, and wait until it is gone.

    Raises:
        SyscallFailed: EBUSY where somebody keeps it open; it will go with them.
    """
    if (fd := _open(loop.path, os.O_RDONLY)) is not None:
        try:
            status = _status(fd, loop.path)
            if status is not None and status.backing == loop.backing:
                with suppress(SyscallFailed):
                    ioctl(fd, _CLR_FD, 0, f"detach {loop.path}")
        finally:
            os.close(fd)
    wait_until_gone(loop)


def wait_until_gone(loop: LoopDevice) -> None:
    """Wait for a device that clears itself; EBUSY where it is still there after two seconds."""
    deadline, pause = time.monotonic() + _GONE_WITHIN_S, 0.0005
    while (seen := _look(loop.path)) is not None and seen.backing == loop.backing:
        if time.monotonic() > deadline:
            raise SyscallFailed(f"detach {loop.path}", errno.EBUSY)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    seen_at = _hints.get(loop.backing, set())
    seen_at.discard(loop.path)
    if not seen_at:
        _hints.pop(loop.backing, None)


def refresh(loop: LoopDevice) -> None:
    """Let the device see its file's size."""
    with opened(loop.path, os.O_RDONLY) as fd:
        ioctl(fd, _SET_CAPACITY, 0, f"refresh the size of {loop.path}")


def device_size(path: str) -> Bytes:
    """The size of a block device in bytes (BLKGETSIZE64)."""
    buffer = bytearray(8)
    with opened(path, os.O_RDONLY) as fd:
        ioctl(fd, _BLKGETSIZE64, buffer, f"read the size of {path}")
    return Bytes(int.from_bytes(buffer, "little"))
