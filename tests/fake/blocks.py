"""Images, loop devices and what is on them, in memory."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csi_local.model.errors import CommandFailed, FailedPrecondition
from csi_local.model.observed import FileKind, LoopDevice, Signature
from csi_local.model.quantity import MIB, Bytes, round_up
from csi_local.model.volume import Filesystem
from tests.fake.calls import call
from tests.fake.files import FakeFiles
from tests.fake.kernel import LOOP_MAJOR, Loop, Place
from tests.fake.tree import FakeFilesystem, Node, failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

SMALLEST = {Filesystem.EXT4: MIB, Filesystem.XFS: 300 * MIB, Filesystem.BTRFS: 109 * MIB}
FIRST_BYTE = {"ext4": 1024, "xfs": 0, "btrfs": 65536}
BTRFS_RESIZES_FROM = 256 * MIB
"""The kernel resizes no btrfs to less (fs/btrfs/ioctl.c, btrfs_ioctl_resize)."""
METADATA = 64 * 1024
_SECTORS = (0, 512, 1024, 2048, 4096)


class FakeBlocks(FakeFiles):
    """Implements `host.api.Blocks`.

    Attributes:
        ext4_grows_mounted: False for a kernel, or a process, that may not do that.
    """

    ext4_grows_mounted: bool = True

    @call
    def make_image(self, path: str, size: Bytes, *, thick: bool) -> None:
        """See `Blocks.make_image`."""
        node = self.new_file(path, f"open {path}")
        self.step("make_image.reserve")
        self._resize(node, path, size, thick=thick)

    @call
    def resize_image(self, path: str, size: Bytes, *, thick: bool) -> None:
        """See `Blocks.resize_image`."""
        place = self.walk(path, f"open {path}")
        self._check_file(place, path, write=True)
        self._resize(place.node, path, size, thick=thick)

    def _check_file(self, place: Place, path: str, *, write: bool) -> None:
        what = f"open {path}"
        if place.node.kind is FileKind.SYMLINK:
            raise failed(what, errno.ELOOP)
        if place.node.kind is FileKind.DIRECTORY:
            raise failed(what, errno.EISDIR)
        if write:
            self.check_writable(place, what)

    @staticmethod
    def _resize(node: Node, path: str, size: Bytes, *, thick: bool) -> None:
        larger = max(size, node.size)
        if thick:
            node.filesystem.allocate(node, larger, f"reserve {size} bytes for {path}")
        node.size = larger

    @call
    def attach(
        self, path: str, *, sector_size: int, keep: bool, read_only: bool = False
    ) -> AbstractContextManager[LoopDevice]:
        """See `Blocks.attach`."""
        place = self.walk(path, f"open {path}")
        self._check_file(place, path, write=not read_only)
        if sector_size not in _SECTORS:
            raise failed(f"attach {path}", errno.EINVAL)
        for loop in self.attached.values():
            if loop.image.node is place.node and loop.read_only == read_only:
                return self._held(loop)
        number = self.free_loop()
        mapped = self.mapped_of(place.node)
        loop = Loop(number, place, read_only, not keep, mapped.size if mapped else place.node.size)
        loop.size -= loop.size % (sector_size or 512)
        return self._held(loop)

    @contextmanager
    def _held(self, loop: Loop) -> Iterator[LoopDevice]:
        epoch = self.epoch
        self.attached[loop.number] = loop
        loop.openers += 1
        try:
            yield loop.shown()
        finally:
            if self.epoch == epoch and not self.frozen:
                loop.openers -= 1
                self.release_loops()

    @call
    def loops(self, path: str) -> Sequence[LoopDevice]:
        """See `Blocks.loops`."""
        if self.look(path) is None:
            return []
        node = self.walk(path, f"stat {path}").node
        found = [loop.shown() for loop in self.attached.values() if loop.image.node is node]
        return sorted(found, key=lambda loop: (loop.read_only, loop.device))

    @call
    def all_loops(self) -> Sequence[LoopDevice]:
        """See `Blocks.all_loops`."""
        return [loop.shown() for loop in self.attached.values()]

    @call
    def detach(self, device: LoopDevice) -> None:
        """See `Blocks.detach`."""
        loop = self.attached.get(os.minor(device.device))
        if loop is None or loop.shown().backing != device.backing:
            return
        loop.autoclear = True  # what LOOP_CLR_FD does to a device in use
        self.release_loops()
        if loop in self.attached.values():
            raise failed(f"detach {device.path}", errno.EBUSY)

    def _attached(self, path: str, what: str) -> Loop:
        loop = self.loop_of(self.walk(path, what, follow=True).node)
        if loop is None:
            raise failed(what, errno.ENXIO)
        return loop

    @call
    def refresh(self, device: LoopDevice) -> None:
        """See `Blocks.refresh`."""
        loop = self._attached(device.path, f"refresh the size of {device.path}")
        mapped = self.mapped_of(loop.image.node)
        loop.size = mapped.size if mapped else loop.image.node.size

    @call
    def device_size(self, path: str) -> Bytes:
        """See `Blocks.device_size`."""
        return self._device_size(path)

    def _device_size(self, path: str) -> Bytes:
        node = self.walk(path, f"open {path}", follow=True).node
        if node.kind is not FileKind.BLOCK:
            raise failed(f"read the size of {path}", errno.ENOTTY)
        carrier = self.carrier_of(node)
        return Bytes(carrier.size if carrier else node.size)

    @call
    def probe(self, path: str) -> Signature | None:
        """See `Blocks.probe`."""
        medium = self.medium(path, f"open {path}")
        held = medium.held
        if medium.luks is not None:
            return Signature(type="crypto_LUKS", uuid=medium.luks.uuid)
        return None if held is None else Signature(type=held.type, uuid=held.uuid, label=held.label)

    @call
    def first_data(self, path: str) -> int | None:
        """See `Blocks.first_data`."""
        self._device_size(path)
        medium = self.medium(path, f"open {path}")
        if medium.held is None:
            return medium.dirty
        return FIRST_BYTE[medium.held.type]

    @call
    def in_use(self, path: str) -> str:
        """See `Blocks.in_use`."""
        info = self.look(self.real_path(path))
        if info is None or info.kind is not FileKind.BLOCK:
            return "it is not a block device"
        held = self.medium(path, f"open {path}").held
        for point in self.points:
            if point.filesystem is held:
                return f"it is mounted on {self.path_of(Place(point, point.root))}"
        return ""

    @call
    def make_filesystem(
        self,
        device: str,
        filesystem: Filesystem,
        *,
        uuid: str,
        label: str,
        options: Sequence[str],
        thick: bool,
        zeroed: bool = True,
    ) -> None:
        """See `Blocks.make_filesystem`."""
        what = f"mkfs.{filesystem} {' '.join(options)} {device}"
        if self.look(device) is None:
            raise CommandFailed(f"{what}: no such file", 1)
        medium = self.medium(device, what)
        assert zeroed == (medium.kind is not FileKind.OTHER), f"what {device} reads as where nothing was written"
        if medium.held is not None and self.is_mounted(medium.held):
            raise CommandFailed(f"{what}: it is mounted", 1)
        size = self._size_of(device)
        if size < SMALLEST[filesystem]:
            raise CommandFailed(f"{what}: too small", 1)
        made = FakeFilesystem(str(filesystem), uuid, label, size, backing=self.ground(medium), whole=False)
        medium.held = made
        self._write_metadata(device, self.ground(medium), thick=thick)
        self.step("make_filesystem.end")
        made.whole = True

    @staticmethod
    def ground(medium: Node) -> Node:
        """The image that what is inside an encrypted one takes its blocks from, or the medium itself."""
        return medium.parent if medium.kind is FileKind.OTHER and medium.parent is not None else medium

    def _size_of(self, path: str) -> Bytes:
        node = self.walk(path, f"open {path}", follow=True).node
        return self._device_size(path) if node.kind is FileKind.BLOCK else Bytes(node.size)

    def _write_metadata(self, device: str, medium: Node, *, thick: bool) -> None:
        if medium.kind is not FileKind.FILE:
            return
        loop = self.loop_of(self.walk(device, device, follow=True).node)
        kept = medium.allocated if thick or loop is None else 0
        medium.filesystem.allocate(medium, max(kept, min(METADATA, medium.size)), f"mkfs {device}")

    @call
    def filesystem_size(self, device: str, filesystem: Filesystem) -> Bytes:
        """See `Blocks.filesystem_size`."""
        held = self.medium(device, f"open {device}").held
        if held is None or held.type != filesystem:
            raise FailedPrecondition(f"{device} has no {filesystem} superblock")
        return Bytes(held.grown)

    @call
    def grows_mounted(self, device: str, filesystem: Filesystem) -> bool:
        """See `Blocks.grows_mounted`."""
        self.medium(device, f"open {device}")
        return filesystem is not Filesystem.EXT4 or self.ext4_grows_mounted

    @call
    def grow_unmounted(self, device: str) -> None:
        """See `Blocks.grow_unmounted`."""
        held = self.medium(device, f"open {device}").held
        if held is None or held.type != Filesystem.EXT4 or self.is_mounted(held):
            raise FailedPrecondition(f"the ext4 on {device} does not grow as it is: e2fsck: status 8")
        self.step("grow_unmounted.resize")
        held.grown = max(held.grown, self._size_of(device))

    @call
    def grow_mounted(self, point: str, filesystem: Filesystem, device: str) -> Bytes:
        """See `Blocks.grow_mounted`."""
        if filesystem is Filesystem.EXT4 and not self.ext4_grows_mounted:
            raise FailedPrecondition("this node does not let a mounted ext4 grow: restart the pod")
        mount = self.walk(point, f"open {point}", follow=True).mount
        held = mount.filesystem
        if held.read_only or "ro" in mount.flags:
            raise CommandFailed(f"growing {point}: Read-only file system", 1)
        if held.type != filesystem:
            raise CommandFailed(f"growing {point}: it is not a mounted {filesystem}", 1)
        loop = self.carriers.get(held)
        size = loop.size if loop is not None else self._size_of(device)
        if filesystem is Filesystem.BTRFS and size < BTRFS_RESIZES_FROM:
            raise CommandFailed(f"btrfs filesystem resize max {point}: ERROR: unable to resize: Invalid argument", 1)
        held.grown = max(held.grown, size)
        return Bytes(held.grown)

    # What only tests do

    def scribble(self, path: str, offset: int) -> None:
        """Write a byte that is not zero on an image or disk, past any filesystem."""
        medium = self.medium(path, f"open {path}")
        medium.dirty = offset if medium.dirty is None else min(offset, medium.dirty)

    def plug_in(self, path: str, size: int) -> None:
        """Add a blank disk."""
        parent, name = self.parent_of(path, "plug in")
        node = self.dev.add(parent.node, name, FileKind.BLOCK, 0o660)
        node.size = round_up(size, 512)
        node.special = os.makedev(LOOP_MAJOR + 1, node.number)
