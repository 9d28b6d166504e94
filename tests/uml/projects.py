"""Project quota as the kernel has it, asked without any of the driver's code."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SYS_QUOTACTL_FD = 443
_PRJQUOTA = 2
_Q_GETNEXTQUOTA = 0x800009
_COMMAND = _Q_GETNEXTQUOTA << 8 | _PRJQUOTA
_IF_NEXTDQBLK = struct.Struct("=8Q2I")
"""struct if_nextdqblk in linux/quota.h; hard and soft limits are in KiB, the space used in bytes."""

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one project may use and uses, in bytes; a limit of 0 is none."""

    limit: int
    used: int


def quotas(filesystem: Path) -> dict[int, Quota]:
    """Return every project with a limit or with something in it; without those in no project (id 0)."""
    found: dict[int, Quota] = {}
    handle = os.open(filesystem, os.O_RDONLY)
    try:
        project = 1
        while answer := _next_quota(handle, project):
            found_id, quota = answer
            if quota.limit or quota.used:
                found[found_id] = quota
            project = found_id + 1
    finally:
        os.close(handle)
    return found


def _next_quota(handle: int, project: int) -> tuple[int, Quota] | None:
    """Return the first project that is not below `project`, or None."""
    buffer = ctypes.create_string_buffer(_IF_NEXTDQBLK.size)
    if _LIBC.syscall(_SYS_QUOTACTL_FD, handle, _COMMAND, project, buffer) < 0:
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ESRCH):
            return None
        raise OSError(number, os.strerror(number), "quotactl_fd")
    fields = _IF_NEXTDQBLK.unpack(buffer.raw)
    return fields[9], Quota(limit=fields[0] * 1024, used=fields[2])
