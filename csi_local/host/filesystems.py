"""Filesystems on block devices: what is there, making one, growing one."""

import errno
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from csi_local.host import quota, syscalls
from csi_local.host.run import run
from csi_local.host.syscalls import failing_as, ioctl, opened
from csi_local.model.errors import SHORTAGE, Busy, CommandFailed, FailedPrecondition, SyscallFailed
from csi_local.model.observed import Signature
from csi_local.model.quantity import Bytes
from csi_local.model.volume import Filesystem

_BLKID_FOUND, _BLKID_NOTHING = 0, 2
_E2FSCK_CLEAN, _E2FSCK_CORRECTED = 0, 1
_BLOCK = "4096"
_GROUPS_TOGETHER = "-G256"
"""So many block groups of ext4 have their bitmaps and inode tables side by side (mke2fs(8): -G), 16 by default. What is
written of a new filesystem is then a few extents of its image, and a clone of 1 TiB takes 0.7 ms instead of 9."""
_PREZEROED = "assume_storage_prezeroed=1"
"""New images read as zeros. Otherwise the kernel zeroes inode tables later, which a loop device does by punching holes
into the image, and their blocks are no longer reserved."""
_MKFS_TRIES = 8
_MKFS_PAUSE_S = 0.1
_EXT4_SUPER, _EXT4_MAGIC = 1024, 0xEF53
_EXT4_ERRORS, _EXT4_SPARSE_SUPER2, _EXT4_BIGALLOC = 0x2, 0x200, 0x200
_BTRFS_SUPER, _BTRFS_MAGIC = 65536, b"_BHRfS_M"
_XFS_FSGEOMETRY_V1, _XFS_GEOMETRY_BYTES = 0x80705864, 112
_GROW_TIMEOUT_S = 600.0


def probe(path: str) -> Signature | None:
    """What is on a device or image file, by low-level probing (blkid(8), ``-p``: its cache lies about loop devices).

    Raises:
        CommandFailed: blkid is missing, times out, finds several things at once, or says anything but a plain
            "nothing there".
        SyscallFailed: the beginning of the device cannot be read; that is not "nothing there" either.
    """
    with opened(path, os.O_RDONLY) as fd, failing_as(f"read {path}"):
        os.pread(fd, 4096, 0)
    status, output, complaint = run(
        ["blkid", "-p", "-o", "export", path], ok=(_BLKID_FOUND, _BLKID_NOTHING), timeout_s=30
    )
    found = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    if status == _BLKID_NOTHING:
        if complaint.strip():
            raise CommandFailed(f"blkid {path}: {complaint.strip()}", status)
        return None
    kind = found.get("TYPE") or (f"{found['PTTYPE']} partition table" if "PTTYPE" in found else "something unknown")
    return Signature(type=kind, uuid=found.get("UUID", found.get("PTUUID", "")), label=found.get("LABEL", ""))


def make_filesystem(
    device: str, filesystem: Filesystem, *, uuid: str, label: str, options: Sequence[str], thick: bool, zeroed: bool
) -> None:
    """Format *device* (mke2fs(8), mkfs.xfs(8), mkfs.btrfs(8)); without discarding where blocks are reserved.

    Raises:
        FailedPrecondition: mkfs says no, and the *options* may be why; or they made it make something else.
    """
    keep = ["-K"] if thick else []
    if filesystem is Filesystem.EXT4:
        argv = _ext4(uuid, options, thick=thick, zeroed=zeroed)
    elif filesystem is Filesystem.XFS:
        argv = ["mkfs.xfs", "-q", "-f", "-s", f"size={_BLOCK}", "-m", f"uuid={uuid}", *keep, *options]
    else:
        if probe(device) is not None:  # left by an interrupted run: mkfs.btrfs refuses a UUID that it finds anywhere
            run(["wipefs", "-a", device], on=device)
        argv = ["mkfs.btrfs", "-q", "-f", "-U", uuid, *keep, *options]
    try:
        _run_mkfs([*argv, *(["-L", label] if label else []), device], device)
    except CommandFailed as error:
        if options and error.status is not None and error.status > 0:
            raise FailedPrecondition(f"the class's mkfsOptions may be wrong, make the volume anew: {error}") from error
        raise
    if options:
        _check_made(device, filesystem, uuid, options)


def _check_made(device: str, filesystem: Filesystem, uuid: str, options: Sequence[str]) -> None:
    """Before anything is written to it: what is not found as what it was recorded as is not mounted ever again."""
    found = probe(device)
    if found is None or (found.type, found.uuid) != (filesystem, uuid):
        made = f"{found.type} (UUID {found.uuid or 'none'})" if found else "nothing that blkid knows"
        raise FailedPrecondition(
            f"the class's mkfsOptions {' '.join(options)} let mkfs make {made}, not {filesystem} (UUID {uuid});"
            " correct them, and make the volume anew"
        )


def _run_mkfs(argv: list[str], device: str) -> None:
    """Run a mkfs, again where it says that it has not begun and why need not last."""
    for left in reversed(range(_MKFS_TRIES)):
        try:
            run(argv, on=device)
        except CommandFailed as error:
            another = "non-unique UUID" in str(error)
            if not left and another:
                raise Busy(f"an earlier mkfs, or a device of its, is not gone yet; try again: {error}") from error
            if not left:
                raise
            if another:
                time.sleep(_MKFS_PAUSE_S)
            elif "assume_storage_prezeroed" in str(error):  # e2fsprogs before 1.47
                argv = [word.replace(f",{_PREZEROED}", "") for word in argv]
            elif "Flex_bg feature not enabled" in str(error) and _GROUPS_TOGETHER in argv:  # by the user's -O, or -T
                argv = [word for word in argv if word != _GROUPS_TOGETHER]
            elif "cannot check mount status" not in str(error):
                raise  # mkfs.btrfs says that when a loop device, any, is detached while it looks at all of them
        else:
            return


def _ext4(uuid: str, options: Sequence[str], *, thick: bool, zeroed: bool) -> list[str]:
    """mke2fs takes only the last ``-E``, so what the user says there is joined to ours."""
    extended, others = ["nodiscard" if thick else "discard", *([_PREZEROED] if zeroed else [])], []
    words = iter(options)
    for word in words:
        if word.startswith("-E"):
            extended.append(word[2:] or next(words, ""))
        else:
            others.append(word)
    ours = ["-q", "-F", "-b", _BLOCK, "-m", "0", "-U", uuid, _GROUPS_TOGETHER]
    return ["mkfs.ext4", *ours, "-E", ",".join(extended), *others]


def filesystem_size(device: str, filesystem: Filesystem) -> Bytes:
    """The size in bytes that the superblock states. Current on disk only while it is not mounted; ext4's always is.

    Raises:
        FailedPrecondition: there is no such superblock.
    """
    with opened(device, os.O_RDONLY) as fd, failing_as(f"read the superblock of {device}"):
        if filesystem is Filesystem.EXT4:
            block = os.pread(fd, 1024, _EXT4_SUPER)
            low, shift, high = (*struct.unpack_from("<I", block, 4), *struct.unpack_from("<I", block, 24), 0)
            if int.from_bytes(block[96:100], "little") & 0x80:  # INCOMPAT_64BIT
                high = struct.unpack_from("<I", block, 0x150)[0]
            size, good = (
                (high << 32 | low) * (1024 << shift),
                struct.unpack_from("<H", block, 56)[0] == _EXT4_MAGIC,
            )
        elif filesystem is Filesystem.XFS:
            block = os.pread(fd, 512, 0)
            block_size, blocks = struct.unpack_from(">IQ", block, 4)
            size, good = block_size * blocks, block[:4] == b"XFSB"
        else:
            block = os.pread(fd, 4096, _BTRFS_SUPER)
            size, good = struct.unpack_from("<Q", block, 0x70)[0], block[64:72] == _BTRFS_MAGIC
    if not good:
        raise FailedPrecondition(f"{device} has no {filesystem} superblock")
    return Bytes(size)


def grows_mounted(device: str, filesystem: Filesystem) -> bool:
    """Whether what is on *device* can be grown while it is mounted.

    The kernel grows an ext4 through its journal, resize2fs(8) alone does not: killed, it leaves an inode for growing
    that ``e2fsck -p`` does not correct. The kernel wants CAP_SYS_RESOURCE for that, and an ext4 that has had no errors
    and none of two features (ext4_resize_begin, fs/ext4/resize.c).
    """
    if filesystem is not Filesystem.EXT4:
        return True
    with opened(device, os.O_RDONLY) as fd, failing_as(f"read the superblock of {device}"):
        block = os.pread(fd, 1024, _EXT4_SUPER)
    (state,) = struct.unpack_from("<H", block, 0x3A)
    compatible, _, read_only_compatible = struct.unpack_from("<3I", block, 0x5C)
    refused = state & _EXT4_ERRORS or compatible & _EXT4_SPARSE_SUPER2 or read_only_compatible & _EXT4_BIGALLOC
    return not refused and syscalls.has_capability(syscalls.CAP_SYS_RESOURCE)


def grow_unmounted(device: str) -> None:
    """Check an ext4 and grow it to its device (e2fsck(8), resize2fs(8)).

    Raises:
        FailedPrecondition: errors are left in it that nobody may correct unasked.
    """
    with _damaged(device):
        run(["e2fsck", "-f", "-p", device], ok=(_E2FSCK_CLEAN, _E2FSCK_CORRECTED), timeout_s=_GROW_TIMEOUT_S, on=device)
        run(["resize2fs", device], timeout_s=_GROW_TIMEOUT_S, on=device)


@contextmanager
def _damaged(device: str) -> Iterator[None]:
    """A program that ends by itself, and says no, has found something in the filesystem on *device*."""
    try:
        yield
    except CommandFailed as error:
        if error.status is None or error.status <= 0:
            raise
        raise FailedPrecondition(
            f"the ext4 on {device} does not grow as it is: repair it with e2fsck while nobody uses it ({error})"
        ) from error


def grow_mounted(point: str, filesystem: Filesystem, device: str) -> Bytes:
    """Grow a mounted filesystem to its device, and return the size it then has.

    Raises:
        FailedPrecondition: this kernel, or this process's capabilities, do not let ext4 grow while mounted
            (it takes CAP_SYS_RESOURCE); it will grow when it is mounted next. Or it has errors.
    """
    if filesystem is Filesystem.XFS:
        run(["xfs_growfs", "-d", point], timeout_s=_GROW_TIMEOUT_S)
        return _xfs_size(point)
    if filesystem is Filesystem.BTRFS:
        run(["btrfs", "filesystem", "resize", "max", point], timeout_s=_GROW_TIMEOUT_S)
        with opened(point, os.O_RDONLY | os.O_DIRECTORY) as fd:
            return quota.btrfs_device(fd).size
    try:
        with _damaged(device):
            run(["resize2fs", device], timeout_s=_GROW_TIMEOUT_S)
    except FailedPrecondition as error:
        if "Permission denied" not in str(error) and "Operation not permitted" not in str(error):
            raise
        raise FailedPrecondition(
            "this node does not let a mounted ext4 grow (resize2fs needs CAP_SYS_RESOURCE); the volume has its new"
            " size and the filesystem will be grown when it is staged next: restart the pod"
        ) from error
    return filesystem_size(device, filesystem)


def _xfs_size(point: str) -> Bytes:
    buffer = bytearray(_XFS_GEOMETRY_BYTES)
    with opened(point, os.O_RDONLY | os.O_DIRECTORY) as fd:
        ioctl(fd, _XFS_FSGEOMETRY_V1, buffer, f"read the geometry of {point}")
    (block,) = struct.unpack_from("=I", buffer, 0)
    (blocks,) = struct.unpack_from("=Q", buffer, 32)
    return Bytes(block * blocks)


def device_under(path: str, device: int) -> int:
    """Number of the block device of the filesystem at *path*, whose own number is *device*; 0 where there is none."""
    if os.major(device):
        return device
    try:
        with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
            return os.stat(quota.btrfs_device(fd).path).st_rdev
    except (SyscallFailed, OSError) as error:
        if error.errno == errno.EIO and isinstance(error, SyscallFailed):
            raise
        if error.errno in SHORTAGE:
            raise SyscallFailed(f"look for the device under {path}", error.errno) from error
        return 0
