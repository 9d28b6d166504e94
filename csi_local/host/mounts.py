"""Mounts of this mount namespace (mount(2), mount_setattr(2), proc(5))."""

import errno
import os
import re
import time
from collections.abc import Sequence

from csi_local.host import filesystems, syscalls
from csi_local.host.syscalls import failing_as, opened
from csi_local.model.errors import SyscallFailed
from csi_local.model.observed import FileKind, Mount

_MS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
_ATTR = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "nodiratime": 0x80, "nosymfollow": 0x200000}
_ATTR_OF_NEGATIVE = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "diratime": "nodiratime"}
_ATIME_FIELD = 0x70
_ATIME = {"relatime": 0x00, "atime": 0x00, "noatime": 0x10, "strictatime": 0x20, "norelatime": 0x20}
_STATVFS = {
    os.ST_RDONLY: "ro",
    os.ST_NOSUID: "nosuid",
    4: "nodev",
    8: "noexec",
    1024: "noatime",
    2048: "nodiratime",
    4096: "relatime",
}
_ESCAPED = re.compile(r"[ \t\n\\#]")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_BUSY_FOR_S = 1.0
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


def mount(source: str, target: str, filesystem: str, flags: frozenset[str], data: Sequence[str]) -> None:
    """See ``host.api.Mounts.mount``."""
    bits = 0
    for flag in flags:
        bits |= _MS.get(flag, 0)
    with opened(target, os.O_PATH | os.O_NOFOLLOW) as fd:
        syscalls.mount(source, fd, filesystem, bits, ",".join(data), f"mount {source} on {target}")


def bind(source: str, target: str, flags: frozenset[str]) -> None:
    """See ``host.api.Mounts.bind``. The mount has its flags before anybody can see it."""
    to_set, to_clear = _attributes(flags)
    what = f"bind-mount {source} on {target}"
    with (
        opened(source, os.O_PATH | os.O_NOFOLLOW) as source_fd,
        opened(target, os.O_PATH | os.O_NOFOLLOW) as target_fd,
    ):
        if (found := syscalls.statx(target)) is not None and found.kind is FileKind.SYMLINK:
            raise SyscallFailed(what, errno.ELOOP)
        tree = syscalls.clone_mount(source_fd, what)
        try:
            if to_set or to_clear:
                syscalls.set_mount_attributes(tree, to_set, to_clear, what)
            syscalls.move_mount(tree, target_fd, what)
        finally:
            os.close(tree)


def _attributes(flags: frozenset[str]) -> tuple[int, int]:
    to_set = to_clear = 0
    for flag in flags:
        if flag in _ATIME:
            to_set, to_clear = to_set | _ATIME[flag], to_clear | _ATIME_FIELD
        elif flag in _ATTR_OF_NEGATIVE:
            to_clear |= _ATTR[_ATTR_OF_NEGATIVE[flag]]
        else:
            to_set |= _ATTR[flag]
    return to_set, to_clear


def unmount(path: str) -> None:
    """See ``host.api.Mounts.unmount``."""
    deadline, pause = time.monotonic() + _BUSY_FOR_S, 0.001
    while True:
        try:
            syscalls.umount(path)
        except SyscallFailed as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
        else:
            return


def mounts(containing: str = "") -> Sequence[Mount]:
    """See ``host.api.Mounts.mounts``."""
    with opened("/proc/self/mountinfo", os.O_RDONLY) as fd, failing_as("read mountinfo"):
        text = b""
        while chunk := os.read(fd, 1 << 20):
            text += chunk
    needle = os.fsencode(containing)
    if needle not in text:
        return []
    return [_parse(os.fsdecode(line)) for line in text.splitlines() if needle in line]


def mounts_below(path: str) -> Sequence[Mount]:
    """The mounts on anything inside a directory, by whatever name it is called."""
    real = os.path.realpath(path)
    last = _ESCAPED.sub(lambda match: f"\\{ord(match.group()):03o}", os.path.basename(real))
    return [mount for mount in mounts(last) if mount.point.startswith(f"{real}/")]


def _parse(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    _, _, device, root, point, options, *_ = before.split(" ")
    filesystem, source, *_ = after.split(" ")
    major, minor = device.split(":")
    return Mount(
        device=(int(major), int(minor)),
        root=_unescape(root),
        point=_unescape(point),
        options=frozenset(options.split(",")),
        filesystem=filesystem,
        source=_unescape(source),
    )


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text) if "\\" in text else text


def device_at(path: str) -> int:
    """See ``host.api.Mounts.device_at``."""
    found = syscalls.statx(path)
    if found is None:
        return 0
    return filesystems.device_under(path, found.device)


def mount_flags(path: str) -> frozenset[str]:
    """See ``host.api.Mounts.mount_flags``."""
    with failing_as(f"statvfs {path}"):
        bits = os.statvfs(path).f_flag
    return frozenset(name for bit, name in _STATVFS.items() if bits & bit)


def freeze(path: str) -> None:
    """See ``host.api.Mounts.freeze``."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
        syscalls.ioctl(fd, _FIFREEZE, 0, f"freeze {path}")


def thaw(path: str) -> bool:
    """See ``host.api.Mounts.thaw``. Nothing tells whether it is frozen, but that it cannot be thawed."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
        try:
            syscalls.ioctl(fd, _FITHAW, 0, f"thaw {path}")
        except SyscallFailed as error:
            if error.errno != errno.EINVAL:
                raise
            return False
    return True
