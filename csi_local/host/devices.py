"""What a disk is, who uses it, and whether anything is on it (sysfs, proc(5))."""

import os
from contextlib import suppress

from csi_local.host import filesystems, loop
from csi_local.host.mounts import mounts
from csi_local.host.syscalls import failing_as, opened, statx
from csi_local.model.observed import FileKind
from csi_local.model.pool import Media

_DEPTH = 8
_ENDS = 16 << 20
_SAMPLES = 4096
_CHUNK = 1 << 20
_PAGE = 4096


def media(path: str) -> Media:
    """The disk that a path, or a block device, is on; loops and mapped devices are followed down."""
    info = statx(path)
    if info is None:
        return Media.UNKNOWN
    block = info.kind is FileKind.BLOCK
    return _media(info.special if block else filesystems.device_under(path, info.device), _DEPTH)


def _media(device: int, depth: int) -> Media:
    if not device or not depth:
        return Media.UNKNOWN
    sysfs = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if os.path.exists(f"{sysfs}/partition"):
        sysfs = os.path.dirname(sysfs)
    if backing := _text(f"{sysfs}/loop/backing_file"):
        info = statx(backing)
        below = 0 if info is None else filesystems.device_under(os.path.dirname(backing), info.device)
        return _media(below, depth - 1)
    slaves = _names(f"{sysfs}/slaves")
    if slaves:
        found = [_media(_number(f"{sysfs}/slaves/{name}/dev"), depth - 1) for name in slaves]
        return Media.HDD if Media.HDD in found else found[0]
    if os.path.basename(sysfs).startswith("nvme"):
        return Media.NVME
    return {"1": Media.HDD, "0": Media.SSD}.get(_text(f"{sysfs}/queue/rotational"), Media.UNKNOWN)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""


def _names(path: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(path)
    return []


def _number(path: str) -> int:
    major, _, minor = _text(path).partition(":")
    return os.makedev(int(major), int(minor)) if minor else 0


def in_use(path: str) -> str:
    """Who uses a block device, in words, or ""."""
    info = statx(os.path.realpath(path))
    if info is None or info.kind is not FileKind.BLOCK:
        return "it is not a block device"
    number = (os.major(info.special), os.minor(info.special))
    for mounted in mounts(f" {number[0]}:{number[1]} "):
        return f"it is mounted on {mounted.point}"
    sysfs = os.path.realpath(f"/sys/dev/block/{number[0]}:{number[1]}")
    partitions = [name for name in _names(sysfs) if os.path.exists(f"{sysfs}/{name}/partition")]
    if partitions:
        return f"it has the partitions {', '.join(sorted(partitions))}"
    holders = _names(f"{sysfs}/holders")
    if holders:
        return f"it is held by {', '.join(sorted(holders))}"
    swaps = (line.split()[0] for line in _text("/proc/swaps").splitlines()[1:])
    if any(_same_device(swap, info.special) for swap in swaps):
        return "it is swap space"
    return _exclusive(path)


def _same_device(path: str, number: int) -> bool:
    found = statx(path)
    return found is not None and found.special == number


def _exclusive(path: str) -> str:
    """O_EXCL on a block device fails where anybody in the kernel claims it (open(2))."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return f"it cannot be opened for exclusive use: {error.strerror}"
    return ""


def first_data(path: str) -> int | None:
    """Offset of a byte that is not zero: both ends are read whole (16 MiB each), and 4,096 pages between them."""
    size = loop.device_size(path)
    with opened(path, os.O_RDONLY) as fd, failing_as(f"read {path}"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead of the samples
        spans = [(0, min(size, _ENDS)), (max(0, size - _ENDS), size)]
        step = max(_PAGE, size // _SAMPLES // _PAGE * _PAGE)
        spans += [(offset, min(size, offset + _PAGE)) for offset in range(_ENDS, max(_ENDS, size - _ENDS), step)]
        for start, end in spans:
            for offset in range(start, end, _CHUNK):
                data = os.pread(fd, min(_CHUNK, end - offset), offset)
                if data.strip(b"\0"):
                    return offset + len(data) - len(data.lstrip(b"\0"))
    return None
