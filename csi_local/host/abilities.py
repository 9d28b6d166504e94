"""What a place can do, found out by trying it in a directory made for that."""

import errno
import mmap
import os
import tempfile
from collections.abc import Callable
from functools import partial

from csi_local.host import crypt, quota, syscalls
from csi_local.host.files import LinuxFiles
from csi_local.host.syscalls import ioctl, opened
from csi_local.model.errors import SyscallFailed
from csi_local.model.pool import Abilities, QuotaSupport
from csi_local.model.quantity import MIB, Bytes

_FICLONE = 0x40049409
_PUNCH_HOLE = 0x02 | 0x01
_PAGE, _SECTOR = 4096, 512
_TRIAL_PROJECT = 0x7FFF0000
_MAGIC = {0xEF53: "ext4", 0x58465342: "xfs", quota.BTRFS_MAGIC: "btrfs", 0x01021994: "tmpfs", 0x794C7630: "overlay"}


def abilities(path: str) -> Abilities:
    """See ``host.api.Limits.abilities``. A pool that is full or read-only simply shows fewer abilities."""
    name, no_encryption = filesystem_name(path), crypt.support()
    try:
        place = tempfile.mkdtemp(prefix=".probe-", dir=path)
    except OSError as error:
        return Abilities(
            filesystem=name,
            quota_reason=f"the pool cannot be written: {error.strerror}",
            encryption=not no_encryption,
            encryption_reason=no_encryption,
        )
    try:
        support, reason, subvolumes = _quota(place, name)
        return Abilities(
            filesystem=name,
            reflink=_tried(_reflink, place),
            discard=_tried(_punch, place),
            direct_io=_tried(partial(_direct, _PAGE), place),
            sector_size=_SECTOR if _tried(partial(_direct, _SECTOR), place) else _PAGE,
            preallocate=_tried(_preallocate, place),
            quota=support,
            subvolumes=subvolumes,
            quota_reason=reason,
            encryption=not no_encryption,
            encryption_reason=no_encryption,
        )
    finally:
        LinuxFiles().remove_tree(place)


def filesystem_name(path: str) -> str:
    """The name of the filesystem at *path*, as mount(8) says it, or its magic number (statfs(2))."""
    magic = syscalls.filesystem_magic(path)
    return _MAGIC.get(magic, f"{magic:#x}")


def _tried(trial: Callable[[str], None], place: str) -> bool:
    try:
        trial(place)
    except (OSError, SyscallFailed):
        return False
    return True


def _reflink(place: str) -> None:
    with (
        opened(f"{place}/a", os.O_RDWR | os.O_CREAT) as source,
        opened(f"{place}/b", os.O_RDWR | os.O_CREAT) as copy,
    ):
        os.write(source, b"x" * _PAGE)
        ioctl(copy, _FICLONE, source, "clone a file")


def _punch(place: str) -> None:
    with opened(f"{place}/c", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * _PAGE)
        syscalls.fallocate(fd, _PUNCH_HOLE, 0, _PAGE, "punch a hole")


def _direct(size: int, place: str) -> None:
    with opened(f"{place}/d{size}", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd, mmap.mmap(-1, _PAGE) as page:
        os.write(fd, memoryview(page)[:size])


def _preallocate(place: str) -> None:
    with opened(f"{place}/e", os.O_RDWR | os.O_CREAT) as fd:
        syscalls.fallocate(fd, 0, 0, _PAGE, "reserve blocks")


def _quota(place: str, name: str) -> tuple[QuotaSupport, str, bool]:
    """What limits directories here, why nothing does, and whether there are subvolumes."""
    if name == "btrfs":
        return _subvolume_quota(place)
    if not quota.projects_enforced(place):
        return (
            QuotaSupport.NONE,
            f"{name} here is mounted without project quota (mount option prjquota)",
            False,
        )
    try:
        os.mkdir(f"{place}/project")
        quota.limit_project(f"{place}/project", _TRIAL_PROJECT, Bytes(MIB))
        limit = quota.project_usage(f"{place}/project", _TRIAL_PROJECT).total
    except (OSError, SyscallFailed) as error:
        return QuotaSupport.NONE, str(error), False
    reason = "" if limit == MIB else "a limit that was set reads back differently"
    return QuotaSupport.NONE if reason else QuotaSupport.PROJECT, reason, False


def _subvolume_quota(place: str) -> tuple[QuotaSupport, str, bool]:
    subvolume = f"{place}/subvolume"
    try:
        quota.make_subvolume(subvolume)
    except SyscallFailed as error:
        return QuotaSupport.NONE, str(error), False
    try:
        quota.enable_subvolume_limits(place)
        quota.limit_subvolume(subvolume, Bytes(MIB))
        with opened(f"{subvolume}/file", os.O_RDWR | os.O_CREAT) as fd:
            syscalls.fallocate(fd, 0, 0, 2 * MIB, "exceed a limit")
    except SyscallFailed as error:
        held = error.errno == errno.EDQUOT
        return QuotaSupport.QGROUP if held else QuotaSupport.NONE, "" if held else str(error), True
    return QuotaSupport.NONE, "a limit was set, but more could be written", True
