"""What this machine has and lacks, for ``csi-local doctor``."""

import errno
import os
import platform
import re
from dataclasses import dataclass

from csi_local.host import crypt, syscalls
from csi_local.host.run import PACKAGES, find, run
from csi_local.model.errors import CommandFailed, SyscallFailed

_OLDEST = (5, 12)
_QUOTA_BY_FD = (5, 14)
_VERSION_FLAG = {"mkfs.xfs": "-V", "xfs_growfs": "-V", "btrfs": "--version", "mkfs.btrfs": "--version", "blkid": "-V"}
_NUMBER = re.compile(r"\d+\.\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One thing looked for.

    Attributes:
        needed: whether the driver cannot do without it.
        found: what was seen, in words.
        fix: what to do where it is missing.
    """

    name: str
    there: bool
    needed: bool
    found: str
    fix: str = ""


def features() -> list[Feature]:
    """Everything the driver uses of the kernel and of programs."""
    return [*_kernel(), *_encryption(), *_privileges(), *_filesystems(), *_programs()]


def _kernel() -> list[Feature]:
    release = platform.release()
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    loop = os.path.exists("/dev/loop-control")
    return [
        Feature(
            name="kernel",
            there=version >= _OLDEST,
            needed=True,
            found=release,
            fix="Linux 5.12 or newer is needed (mount_setattr)",
        ),
        Feature(
            name="loop devices",
            there=loop,
            needed=True,
            found="/dev/loop-control" if loop else "no /dev/loop-control",
            fix="modprobe loop",
        ),
        Feature(
            name="quota by file descriptor",
            there=version >= _QUOTA_BY_FD and _has_quota_call(),
            needed=False,
            found="quotactl_fd",
            fix="Linux 5.14 or newer, for hard limits of directory volumes on XFS and ext4",
        ),
    ]


def _encryption() -> list[Feature]:
    lacking = crypt.support()
    return [
        Feature(
            name="encryption",
            there=not lacking,
            needed=False,
            found=lacking or "dm-crypt and cryptsetup",
            fix="volumes with encryption: luks2 are refused on this node; others work",
        )
    ]


def _has_quota_call() -> bool:
    try:
        syscalls.quotactl_fd(-1, 0, 0, bytearray(1), "try quotactl_fd")
    except SyscallFailed as error:
        return error.errno != errno.ENOSYS
    return True


def _privileges() -> list[Feature]:
    may_grow_ext4 = syscalls.has_capability(syscalls.CAP_SYS_RESOURCE)
    return [
        Feature(
            name="CAP_SYS_ADMIN",
            there=syscalls.has_capability(syscalls.CAP_SYS_ADMIN),
            needed=True,
            found=f"uid {os.geteuid()}",
            fix="run as root (in a container: privileged); mounting and loop devices take it",
        ),
        Feature(
            name="CAP_SYS_RESOURCE",
            there=may_grow_ext4,
            needed=False,
            found="effective" if may_grow_ext4 else "missing",
            fix="without it ext4 grows when its volume is staged next, not while it is mounted",
        ),
    ]


def _filesystems() -> list[Feature]:
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split()[-1] for line in file}
    found = []
    for name in ("ext4", "xfs", "btrfs"):
        module = os.path.exists(f"/lib/modules/{platform.release()}/kernel/fs/{name}")
        found.append(
            Feature(
                name=f"filesystem {name}",
                there=name in known or module,
                needed=False,
                found="in the kernel" if name in known else "a module" if module else "missing",
                fix=f"a kernel with {name}; volumes and pools with other filesystems work",
            )
        )
    return found


def _programs() -> list[Feature]:
    found = []
    for program, package in PACKAGES.items():
        path = find(program)
        found.append(
            Feature(
                name=program,
                there=path is not None,
                needed=program == "blkid",
                found=_version(program) if path else "not installed",
                fix=f"apt-get install {package}",
            )
        )
    return found


def _version(program: str) -> str:
    try:
        _, output, complaint = run([program, _VERSION_FLAG.get(program, "-V")], ok=range(256), timeout_s=10)
    except CommandFailed as error:
        return str(error)
    number = _NUMBER.search(output + complaint)
    return number.group() if number else "installed"
