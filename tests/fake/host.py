"""`FakeHost`: `csi_local.host.api.Host` in memory, quick, and able to crash.

    host = FakeHost()
    host.fail("rename", errno.EIO)      # the next rename fails
    host.die(7)                         # at the seventh moment from now the process dies
    host.crash()                        # what a dead process leaves; host.reboot(): what a machine leaves

`tests/contract` holds it to what the real host does.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from csi_local.model.mount_options import FILESYSTEM_KEYS
from csi_local.model.observed import FileKind, Usage
from csi_local.model.pool import Abilities, Media, QuotaSupport
from tests.fake.blocks import FakeBlocks
from tests.fake.calls import call
from tests.fake.kernel import Place, Point
from tests.fake.tree import FakeFilesystem, anonymous_device, failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_local.host.api import Host
    from csi_local.model.observed import Mount
    from csi_local.model.quantity import Bytes

_SUPER = frozenset({"sync", "async", "dirsync", "lazytime", "nolazytime", "defaults"})
_ATIMES = frozenset({"relatime", "noatime", "strictatime"})
_SAME = {"atime": "relatime", "norelatime": "strictatime"}
_NEGATIVE = {"suid": "nosuid", "dev": "nodev", "exec": "noexec", "diratime": "nodiratime", "rw": "ro"}
_STATVFS = frozenset({"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime"})


def _with(flags: frozenset[str], words: frozenset[str]) -> frozenset[str]:
    """*flags* of a mount after *words* are said to it."""
    result = set(flags)
    for word in sorted(words):
        plain = _SAME.get(word, word)
        if plain in _ATIMES:
            result = (result - _ATIMES) | {plain}
        elif plain in _NEGATIVE:
            result.discard(_NEGATIVE[plain])
        else:
            result.add(plain)
    result.discard("strictatime")
    return frozenset((result - {"rw"}) if "ro" in result else (result | {"rw"}))


class FakeMounts(FakeBlocks):
    """Implements `host.api.Mounts`."""

    @call
    def mount(self, source: str, target: str, filesystem: str, flags: frozenset[str], data: Sequence[str]) -> None:
        """See `Mounts.mount`."""
        what = f"mount {source} on {target}"
        over = self.walk(target, f"open {target}")
        if over.node.kind is not FileKind.DIRECTORY:
            raise failed(what, errno.ENOTDIR)
        if filesystem not in FILESYSTEM_KEYS:
            raise failed(what, errno.ENODEV)
        device = self.walk(source, what, follow=True).node
        if device.kind is not FileKind.BLOCK:
            raise failed(what, errno.ENOTBLK)
        held = self.medium(source, what).held
        self._check_mountable(held, filesystem, flags, over, what)
        self._check_data(filesystem, data, what)
        if held is None:
            raise failed(what, errno.EINVAL)
        loop = self.loop_of(device)
        if loop is not None:
            carrier = self.carriers.setdefault(held, loop)
            assert carrier is loop, f"two filesystems over one image: {source} and {carrier.shown().path}"
        self._wake(held, device.special, data)
        point = Point(held, held.root, flags=_with(frozenset({"rw", "relatime"}), flags - _SUPER), source=source)
        self.put_over(point, over)

    def _wake(self, held: FakeFilesystem, device: int, data: Sequence[str]) -> None:
        if not self.is_mounted(held):
            held.device = anonymous_device() if held.type == "btrfs" else device
            held.projects = "prjquota" in data

    def _check_mountable(
        self, held: FakeFilesystem | None, filesystem: str, flags: frozenset[str], over: Place, what: str
    ) -> None:
        if held is not None and self.is_mounted(held):
            others = [point for point in self.points if point.filesystem is held]
            clash = held.type != "btrfs" and any(("ro" in point.flags) != ("ro" in flags) for point in others)
            if held.type != filesystem or clash or (over.mount in others and over.node is held.root):
                raise failed(what, errno.EBUSY)
        if held is None or held.type != filesystem:
            raise failed(what, errno.EINVAL)
        if not held.whole:
            raise failed(what, errno.EUCLEAN)

    def _check_data(self, filesystem: str, data: Sequence[str], what: str) -> None:
        for word in data:
            known = word.partition("=")[0] in FILESYSTEM_KEYS[filesystem]
            if not known and not (word == "prjquota" and self.project_quota and filesystem != "btrfs"):
                raise failed(what, errno.EINVAL)

    project_quota: bool = True
    """Whether this kernel has project quota."""

    @call
    def bind(self, source: str, target: str, flags: frozenset[str]) -> None:
        """See `Mounts.bind`."""
        what = f"bind-mount {source} on {target}"
        old = self.walk(source, f"open {source}")
        over = self.walk(target, f"open {target}")
        if over.node.kind is FileKind.SYMLINK:
            raise failed(what, errno.ELOOP)
        directories = {place.node.kind is FileKind.DIRECTORY for place in (old, over)}
        if len(directories) > 1 or old.node.kind is FileKind.SYMLINK:
            raise failed(what, errno.EINVAL)
        inherited = old.mount.flags
        point = Point(old.mount.filesystem, old.node, flags=_with(inherited, flags), source=old.mount.source)
        self.put_over(point, over)

    @call
    def unmount(self, path: str) -> None:
        """See `Mounts.unmount`."""
        what = f"unmount {path}"
        place = self.walk(path, what)
        if place.node is not place.mount.root:
            raise failed(what, errno.EINVAL)
        self.take_off(place.mount, what)

    @call
    def mounts(self, containing: str = "") -> Sequence[Mount]:
        """See `Mounts.mounts`."""
        lines = [self.line(point) for point in self.points]
        return [line for line in lines if containing in _text(line)]

    @call
    def device_at(self, path: str) -> int:
        """See `Mounts.device_at`."""
        if self.look(path) is None:
            return 0
        place = self.walk(path, path)
        filesystem = place.mount.filesystem
        if filesystem.type != "btrfs":
            return 0 if filesystem is self.dev else filesystem.device
        if place.node.kind is not FileKind.DIRECTORY:
            return 0
        loop = self.carriers.get(filesystem)
        return loop.device if loop is not None else filesystem.backing.special if filesystem.backing else 0

    @call
    def mount_flags(self, path: str) -> frozenset[str]:
        """See `Mounts.mount_flags`."""
        place = self.walk(path, f"statvfs {path}", follow=True)
        more = {"ro"} if place.mount.filesystem.read_only else set[str]()
        return (place.mount.flags | more) & _STATVFS

    @call
    def thaw(self, path: str) -> bool:
        """See `Mounts.thaw`."""
        filesystem = self.directory(path, f"open {path}").mount.filesystem
        was, filesystem.frozen = filesystem.frozen, False
        return was


def _text(line: Mount) -> str:
    major, minor = line.device
    options = ",".join(sorted(line.options))
    return f"1 1 {major}:{minor} {line.root} {line.point} {options} - {line.filesystem} {line.source} rw"


class FakeLimits(FakeMounts):
    """Implements `host.api.Limits`."""

    @call
    def limit_project(self, path: str, project: int, size: Bytes) -> None:
        """See `Limits.limit_project`."""
        place = self.directory(path, f"open {path}")
        filesystem = place.mount.filesystem
        if not filesystem.projects:
            raise failed(f"limit quota project {project} of {path}", errno.EOPNOTSUPP)
        place.node.project = project
        filesystem.limits[project] = size

    @call
    def project_usage(self, path: str, project: int) -> Usage:
        """See `Limits.project_usage`."""
        filesystem = self.directory(path, f"open {path}").mount.filesystem
        if not filesystem.projects:
            raise failed(f"read quota project {project} of {path}", errno.ESRCH)
        inodes = sum(node.project == project for node in filesystem.root.below())
        return filesystem.usage(filesystem.limits.get(project, 0), filesystem.project_used(project), inodes)

    @call
    def make_subvolume(self, path: str) -> None:
        """See `Limits.make_subvolume`."""
        what = f"make subvolume {path}"
        parent, name = self.parent_of(path, what)
        if parent.mount.filesystem.type != "btrfs":
            raise failed(what, errno.ENOTTY)
        if name in parent.node.children:
            raise failed(what, errno.EEXIST)
        self.check_writable(parent, what)
        node = parent.mount.filesystem.add(parent.node, name, FileKind.DIRECTORY, 0o755)
        node.number, node.subvolume = 256, anonymous_device()

    @call
    def limit_subvolume(self, path: str, size: Bytes) -> None:
        """See `Limits.limit_subvolume`."""
        what = f"limit subvolume {path}"
        place = self.directory(path, what)
        if place.mount.filesystem.type != "btrfs":
            raise failed(what, errno.ENOTTY)
        if not place.node.subvolume:
            raise failed(what, errno.EINVAL)
        if not place.mount.filesystem.subvolume_limits:
            raise failed(what, errno.ENOTCONN)
        place.node.limit = size

    @call
    def commit_subvolume(self, path: str) -> None:
        """See `Limits.commit_subvolume`."""
        what = f"commit what was done at {path}"
        if self.directory(path, what).mount.filesystem.type != "btrfs":
            raise failed(what, errno.ENOTTY)

    @call
    def settle(self, path: str) -> None:
        """See `Limits.settle`."""
        self.directory(path, f"open {path}")

    @call
    def subvolume_usage(self, path: str) -> Usage:
        """See `Limits.subvolume_usage`."""
        what = f"read the btrfs at {path}"
        place = self.directory(path, what)
        if place.mount.filesystem.type != "btrfs":
            raise failed(what, errno.ENOTTY)
        used = sum(node.allocated for node in place.node.below())
        return place.mount.filesystem.usage(place.node.limit, used)

    @call
    def abilities(self, path: str) -> Abilities:
        """See `Limits.abilities`."""
        place = self.walk(path, f"statfs {path}", follow=True)
        filesystem = place.mount.filesystem
        if filesystem.read_only or "ro" in place.mount.flags:
            return Abilities(
                filesystem=filesystem.type, quota_reason="the pool cannot be written: Read-only file system"
            )
        btrfs = filesystem.type == "btrfs"
        filesystem.subvolume_limits = filesystem.subvolume_limits or btrfs
        projects = QuotaSupport.PROJECT if filesystem.projects else QuotaSupport.NONE
        return Abilities(
            filesystem=filesystem.type,
            reflink=filesystem.type in ("btrfs", "xfs"),
            quota=QuotaSupport.QGROUP if btrfs else projects,
            subvolumes=btrfs,
            discard=True,
            direct_io=True,
            preallocate=True,
            quota_reason="" if btrfs or filesystem.projects else "mounted without project quota",
        )

    @call
    def media(self, path: str) -> Media:
        """See `Limits.media`."""
        return Media.UNKNOWN if self.look(path) is None else Media.SSD


class FakeInspection(FakeLimits):
    """Implements `host.api.Inspection`."""

    @call
    def owner(self, path: str) -> int:
        """See `Inspection.owner`."""
        return self.walk(path, f"stat {path}").node.uid

    @call
    def set_owner(self, path: str, owner: int, mode: int) -> None:
        """See `Inspection.set_owner`."""
        place = self.walk(path, f"open {path}")
        if place.node.kind is FileKind.SYMLINK:
            raise failed(f"open {path}", errno.ELOOP)
        self.check_writable(place, f"take over {path}")
        place.node.uid, place.node.mode = owner, place.node.mode & mode

    @call
    def project_of(self, path: str) -> int:
        """See `Inspection.project_of`."""
        return self.directory(path, f"open {path}").node.project

    @call
    def backing_path(self, device: int) -> str:
        """See `Inspection.backing_path`: where it is now, or was when it was removed."""
        loop = self.attached.get(os.minor(device))
        if loop is None:
            return ""
        return loop.image.node.last_path or self.path_of(loop.image)

    @call
    def openers(self, path: str) -> Sequence[int]:
        """See `Inspection.openers`."""
        loop = self.loop_of(self.walk(path, f"stat {path}").node)
        return list(range(2, 2 + loop.openers)) if loop is not None else []


class FakeHost(FakeInspection):
    """A machine in memory."""

    def make_dirs(self, path: str) -> None:
        """Make a directory and those above it."""
        parts = [part for part in path.split("/") if part]
        for index in range(len(parts)):
            above = "/" + "/".join(parts[: index + 1])
            if self.look(above) is None:
                self.make_dir(above, mode=0o755)


def new_host() -> FakeHost:
    """Return a machine with the directories that every machine has."""
    host = FakeHost()
    for path in ("/run", "/tmp", "/var/lib"):
        host.make_dirs(path)
    return host


if TYPE_CHECKING:
    _kept: Host = FakeHost()  # the type checker sees that the protocol is kept
