"""Looking at the node: where a volume is attached, staged and published. Asked of the kernel each time."""

import errno
import os
from collections.abc import Iterator, Sequence

from csi_local.backends import luks
from csi_local.host.api import Host
from csi_local.model.errors import DamagedRecord, SyscallFailed
from csi_local.model.observed import Device, FileInfo, FileKind, LoopDevice, Mount, Stack
from csi_local.model.volume import VolumeId, VolumeRecord
from csi_local.plan.life import pod_directory
from csi_local.store.layout import Layout
from csi_local.store.pool_store import PoolStore

LOOP_MAJOR = 7
"""The number of loop devices among block devices (the kernel's devices.txt)."""

_SPEECHLESS = frozenset({errno.EIO, errno.ESHUTDOWN, errno.ESTALE, errno.EUCLEAN, errno.ENOTCONN})
"""What a filesystem says of its own root when it was shut down after errors, as XFS and btrfs do."""

_MOUNT = FileInfo(
    kind=FileKind.DIRECTORY, size=0, allocated=0, device=0, inode=0, special=0, mount_root=True, gid=0, mode=0
)
"""All that is known of a mount whose filesystem is speechless."""


class Observer:
    """Answers from the kernel; the record is not needed, so that a damaged volume can still be unpublished."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def loops(self, layout: Layout, volume: VolumeId) -> tuple[LoopDevice, ...]:
        """The loop devices of a volume's image."""
        return tuple(self._host.loops(layout.image(volume)))

    def stack(self, layout: Layout, volume: VolumeId) -> Stack:
        """All of a volume's devices. What a pod has opened over its own raw block device is none of them."""
        loops, name = self.loops(layout, volume), luks.mapper_name(volume)
        opened = tuple(one for loop in loops for one in self._host.mapped_over(loop.device) if one.name == name)
        readers = tuple(loop for one in opened for loop in self._host.loops(one.path))
        return Stack(loops=loops, opened=opened, readers=readers)

    def is_mounted_at(self, layout: Layout, volume: VolumeId, path: str) -> bool:
        """Whether what is mounted at *path* is this volume: its directory, its filesystem, or its device's node."""
        return self.is_volume(layout, volume, path, self._host.stat(path))

    def is_volume(self, layout: Layout, volume: VolumeId, path: str, at: FileInfo | None) -> bool:
        """The same, for one who knows what is *at* the path."""
        if at is None or not at.mount_root:
            return False
        devices = self.stack(layout, volume)
        if not devices.loops:
            data = self._host.stat(layout.data(volume))
            if data is not None and data.kind is FileKind.SYMLINK:
                return self._is_adopted(layout, volume, at)
            return data is not None and at.identity == data.identity
        number = at.special if at.kind is FileKind.BLOCK else self._host.device_at(path)
        return any(device.device == number for device in devices.top)

    def look(self, layout: Layout, volume: VolumeId, path: str) -> tuple[FileInfo | None, bool]:
        """What is at *path*, and whether that is this volume; as the mount table has it, where nothing else answers."""
        try:
            at = self._host.stat(path)
            return at, self.is_volume(layout, volume, path, at)
        except SyscallFailed as error:
            mount = self.mounted_at(path)
            if error.errno not in _SPEECHLESS or mount is None:
                raise
            return _MOUNT, self.is_lost(volume, mount)

    def mounted_at(self, path: str) -> Mount | None:
        """What the mount table has at *path*, the uppermost."""
        return next((mount for mount in reversed(self._host.mounts()) if mount.point == path), None)

    def is_dead_loop(self, at: FileInfo) -> bool:
        """Whether the node of a loop device is mounted there that somebody has detached: it is nobody's."""
        loop = at.mount_root and at.kind is FileKind.BLOCK and os.major(at.special) == LOOP_MAJOR
        return loop and not self._host.backing_path(at.special)

    def mount_points(self, layout: Layout, volume: VolumeId, devices: Stack) -> tuple[str, ...]:
        """Every path at which this volume, or something in it, is mounted; *devices* are its own."""
        points: list[str] = []
        data = None if devices.loops else self._host.stat(layout.data(volume))
        if data is not None and data.kind is FileKind.SYMLINK:
            return tuple(self._points_of_adopted(self._host.real_path(layout.data(volume))))
        if data is not None:
            inside = f"/volumes/{volume}/data"
            for mount in self._host.mounts(inside):
                if mount.point.startswith(f"{layout.data(volume)}/"):  # something of a pod's, mounted in it
                    points.append(mount.point)
                elif mount.root.endswith(inside) or f"{inside}/" in mount.root:
                    at = self._host.stat(mount.point)
                    seen = at is not None and at.device == data.device
                    if seen or mount.device == self._superblock(layout.root):  # something may be mounted over it
                        points.append(mount.point)
            return tuple(points)
        for device in devices.top:
            points.extend(self.points_of(device, self._host.mounts(_name(device))))
        return tuple(points)

    def _is_adopted(self, layout: Layout, volume: VolumeId, at: FileInfo) -> bool:
        """As the record knows the directory: it may have been moved since. As the link does, where that is damaged."""
        try:
            return PoolStore(self._host, layout.root).load(volume).adopted_is(at)
        except DamagedRecord:
            there = self._host.stat(self._host.real_path(layout.data(volume)))
            return there is not None and there.identity == at.identity

    def _points_of_adopted(self, path: str) -> Iterator[str]:
        """Where an adopted directory is mounted, or something in it; not the mount that it is in, or is the top of."""
        mounts = self._host.mounts()
        under = mount_under(path, mounts)
        if under is None:
            return
        inside = under.root.rstrip("/") + path[len(under.point.rstrip("/")) :].rstrip("/")
        for mount in mounts:
            same = mount.root.rstrip("/") == inside or mount.root.startswith(f"{inside}/")
            own = f"{path}/".startswith(f"{mount.point.rstrip('/')}/") or mount.point.startswith(f"{path}/")
            if mount.device == under.device and same and not own:
                yield mount.point

    def points_of(self, device: Device, mounts: Sequence[Mount]) -> Iterator[str]:
        """Where a device's filesystem, or its node, is mounted, as *mounts* have it."""
        return (mount.point for mount in mounts if mount.source == device.path or self._is_node(mount, device))

    def nodes_of(self, device: Device) -> Iterator[str]:
        """Where a device's node is mounted, and no filesystem: it gives the device to whoever is there."""
        return (mount.point for mount in self._host.mounts(_name(device)) if self._is_node(mount, device))

    def reached_at(self, device: Device, mounts: Sequence[Mount]) -> str | None:
        """Where a device's filesystem can be reached: nothing else is mounted over it there."""
        points = (mount.point for mount in mounts if mount.source == device.path)
        return next((point for point in points if self._host.device_at(point) == device.device), None)

    def is_lost(self, volume: VolumeId, mount: Mount) -> bool:
        """Whether a mount is that of a volume, as the kernel's tables have it: its pool cannot be asked."""
        if mount.root.endswith(f"/volumes/{volume}/data"):
            return True
        node = self._host.stat(mount.source if mount.source.startswith("/dev/") else mount.point)
        name = luks.mapper_name(volume)
        if node is not None and any((node.special, name) == (one.device, one.name) for one in self._host.all_mapped()):
            return True
        image = self._host.backing_path(node.special) if node is not None and node.kind is FileKind.BLOCK else ""
        return image.endswith(f"/volumes/{volume}/disk.img")

    def pod_is_gone(self, record: VolumeRecord) -> bool:
        """Whether the pod of an ephemeral volume is gone for ever, and only it, not the kubelet's whole directory."""
        pod = pod_directory(record.ephemeral)
        if pod is None:
            return False
        pods = pod.rpartition("/")[0]
        return self._host.stat(pods) is not None and self._host.stat(pod) is None

    def _superblock(self, path: str) -> tuple[int, int] | None:
        """What mountinfo calls the filesystem of *path*; stat(2) calls a btrfs's subvolumes otherwise."""
        under = mount_under(self._host.real_path(path), self._host.mounts())
        return under.device if under else None

    def _is_node(self, mount: Mount, device: Device) -> bool:
        """Whether a mount is of a device's own node, and no filesystem; something may be mounted over it."""
        if not mount.root.endswith(f"/{_name(device)}"):
            return False
        found = self._host.stat(mount.point)
        seen = found is not None and found.kind is FileKind.BLOCK and found.special == device.device
        return seen or mount.device == self._superblock(device.path)


def _name(device: Device) -> str:
    return device.path.rpartition("/")[2]


def mount_under(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that a path without links is in: the one with the longest name, the last of those at the same.

    None where a chroot hides it.
    """
    above = [one for one in mounts if path == one.point or path.startswith(f"{one.point.rstrip('/')}/")]
    return max(reversed(above), key=lambda one: len(one.point), default=None)
