"""What the kernel says, asked without the driver's code: mounts, loop devices, files and block devices.

The tests believe these functions and not the driver. They are also what cleans up after a test that failed.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import re
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

T = TypeVar("T")

BLKGETSIZE64 = 0x80081272
"""Size of a block device in bytes (linux/fs.h)."""
MNT_DETACH = 2
"""umount2(2): take the mount out of the tree at once, let go of it when nobody uses it."""
UMOUNT_NOFOLLOW = 8
"""umount2(2): never follow a symlink to some other mount."""

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    device: str
    root: str
    target: Path
    options: frozenset[str]
    fs: str
    source: str
    super_options: frozenset[str]


def mounts(under: Path | str = "/") -> list[Mount]:
    """Return the mounts at `under` and below, in the order in which they were made."""
    table = [_parse(line) for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
    return [mount for mount in table if mount.target.is_relative_to(under)]


def mount_at(path: Path) -> Mount | None:
    """Return the mount one sees at exactly this path, the topmost if they are stacked."""
    at_path = [mount for mount in mounts(path) if mount.target == path]
    return at_path[-1] if at_path else None


def loops() -> dict[str, str]:
    """Return each attached loop device with the file behind it."""
    found: dict[str, str] = {}
    for name in os.listdir("/sys/block"):  # noqa: PTH208 - a hundred devices, asked for after each test
        if name.startswith("loop") and (file := _backing_file(name)):
            found[f"/dev/{name}"] = file
    return found


def _backing_file(name: str) -> str:
    """Return the file behind a loop device, or nothing if it is not attached."""
    try:
        handle = os.open(f"/sys/block/{name}/loop/backing_file", os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.fsdecode(os.read(handle, 4096).rstrip(b"\n"))
    except OSError:  # detached just now
        return ""
    finally:
        os.close(handle)


def mapped() -> dict[str, str]:
    """Return each of device mapper's devices that is over a loop device, with that."""
    found: dict[str, str] = {}
    for top in Path("/sys/block").glob("dm-*"):
        for slave in (top / "slaves").iterdir():
            if slave.name.startswith("loop"):
                found[f"/dev/{top.name}"] = f"/dev/{slave.name}"
    return found


def mapper_name(device: str) -> str:
    """Return the name that one of device mapper's devices was opened as."""
    return Path(f"/sys/block/{Path(device).name}/dm/name").read_text().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """The mounts and devices beneath a folder, or on a device whose file is, and so on."""

    mounts: tuple[Mount, ...]
    loops: dict[str, str]
    mapped: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Name each of them."""
        mounted = [f"mount {mount.source}{mount.root} on {mount.target}" for mount in self.mounts]
        opened = [f"mapped device {device} on {below}" for device, below in self.mapped.items()]
        return [*mounted, *opened, *(f"loop device {device} on {file}" for device, file in self.loops.items())]


def belongings(root: Path) -> Belongings:
    """Find all that stands on `root`: the loop device of an image in it, its mount, the images in that."""
    folders = {root}
    while True:
        attached = {device: file for device, file in loops().items() if _beneath(Path(file), folders)}
        opened = {device: below for device, below in mapped().items() if below in attached}
        devices = {*attached, *opened}
        standing = [m for m in mounts() if m.source in devices or _beneath(m.target, folders)]
        grown = folders | {mount.target for mount in standing} | {Path(device) for device in opened}
        if grown == folders:
            return Belongings(mounts=tuple(standing), loops=attached, mapped=opened)
        folders = grown


def take_down(root: Path, keep: Belongings | None = None) -> None:
    """Unmount and detach what stands on `root`, newest first, whoever made it; but not `keep`."""
    kept_mounts = {(mount.target, mount.source) for mount in keep.mounts} if keep else set()
    kept_loops = keep.loops if keep else {}
    for _ in range(5):
        found = belongings(root)
        standing = [mount for mount in found.mounts if (mount.target, mount.source) not in kept_mounts]
        attached = found.loops.keys() - kept_loops.keys()
        for mount in reversed(standing):
            unmount(mount.target, lazily=True)
        for device in found.mapped:
            subprocess.run(["dmsetup", "remove", mapper_name(device)], check=False, capture_output=True)  # noqa: S607
        for device in attached:
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)  # noqa: S607
        if not (standing or attached):
            return
        time.sleep(0.05)


def unmount(path: Path, *, lazily: bool = False) -> None:
    """Unmount what is at `path`; with `lazily`, even while it is in use, and without complaint."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazily else 0)
    if _LIBC.umount2(os.fsencode(path), flags) != 0 and not lazily:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), str(path))


def mount_tmpfs(path: Path, *, read_only: bool = False) -> None:
    """Mount an empty tmpfs at `path`: somebody else's mount."""
    if _LIBC.mount(b"tmpfs", os.fsencode(path), b"tmpfs", int(read_only), None) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), str(path))


def mount_bind(source: Path, path: Path) -> None:
    """Bind-mount `source` at `path`."""
    bind = 4096
    if _LIBC.mount(os.fsencode(source), os.fsencode(path), None, bind, None) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), str(path))


def is_block(path: Path) -> bool:
    """Say whether `path` is a block device node."""
    return stat.S_ISBLK(path.stat().st_mode)


def device_size(path: Path) -> int:
    """Return the size in bytes of the block device at `path`."""
    size = array.array("Q", [0])
    with path.open("rb") as device:
        fcntl.ioctl(device, BLKGETSIZE64, size, True)  # noqa: FBT003 - the C signature
    return size[0]


def allocated(path: Path) -> int:
    """Return how many bytes of real blocks the file at `path` has."""
    return path.stat().st_blocks * 512


def put(target: Path, data: bytes, *, name: str = "data", offset: int = 0) -> None:
    """Write `data` durably: to the device if `target` is one, else to the file `name` in it."""
    path = target if is_block(target) else target / name
    handle = os.open(path, os.O_WRONLY if is_block(target) else os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], offset + done)
        os.fsync(handle)
    finally:
        os.close(handle)


def get(target: Path, length: int, *, name: str = "data", offset: int = 0) -> bytes:
    """Read `length` bytes back from where `put` wrote them."""
    with (target if is_block(target) else target / name).open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(length)


def nonzero(path: Path) -> int | None:
    """Return the offset of the first MiB of `path` that is not all zeros, or None."""
    zeros = bytes(MIB)
    with path.open("rb", buffering=0) as file:
        offset = 0
        while chunk := file.read(MIB):
            if chunk != zeros[: len(chunk)]:
                return offset
            offset += len(chunk)
    return None


def until(probe: Callable[[], T], what: str, *, seconds: float = 10.0) -> T:
    """Poll `probe` until it is true and return its value; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := probe()):
        assert time.monotonic() < deadline, f"after {seconds:g} s still not so: {what}"
        time.sleep(0.005)
    return value


def tree(root: Path) -> set[str]:
    """Return every path below `root`, without following symlinks or entering other filesystems."""
    return {str(path.relative_to(root)) for path in _walk(root, root.lstat().st_dev)}


def _walk(folder: Path, device: int) -> Iterator[Path]:
    for entry in os.scandir(folder):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_dev == device:
            yield from _walk(Path(entry.path), device)


def _beneath(path: Path, folders: set[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _parse(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    _id, _parent, device, root, target, options, *_ = before.split(b" ")
    fs, source, super_options = after.split(b" ", 2)
    return Mount(
        device=_plain(device),
        root=_plain(root),
        target=Path(_plain(target)),
        options=frozenset(_plain(options).split(",")),
        fs=_plain(fs),
        source=_plain(source),
        super_options=frozenset(_plain(super_options).split(",")),
    )


def _plain(field: bytes) -> str:
    r"""Undo the kernel's escapes: `\040` is a space."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))
