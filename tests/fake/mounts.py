"""Mounts, in memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from csi_local.model.mount_options import FILESYSTEM_KEYS
from csi_local.model.observed import FileKind
from tests.fake.calls import call
from tests.fake.crypt import FakeCrypt
from tests.fake.kernel import Place, Point
from tests.fake.tree import FakeFilesystem, anonymous_device, failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_local.model.observed import Mount

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


class FakeMounts(FakeCrypt):
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
        below = self.carrier_of(device)
        if below is not None:
            carrier = self.carriers.setdefault(held, below)
            assert carrier is below, f"two filesystems over one image: {source} and {carrier.shown().path}"
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
