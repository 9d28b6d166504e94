"""What a kernel keeps: the tree of mounts, loop devices, and who holds what open."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from csi_local.model.observed import FileKind, LoopDevice, MappedDevice, Mount
from tests.fake.calls import Calls
from tests.fake.tree import FakeFilesystem, FakeLuks, Node, failed

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOP_MAJOR, MAPPER_MAJOR = 7, 253
_LINKS = 40
_FRESH = frozenset({"rw", "relatime"})


@dataclass(slots=True, eq=False)
class Point:
    """A mount: a filesystem, or a part of one, over a directory or file of another mount."""

    filesystem: FakeFilesystem
    root: Node
    parent: Point | None = None
    covers: Node | None = None
    flags: frozenset[str] = _FRESH
    source: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A node, and the mount that one sees it through."""

    mount: Point
    node: Node


@dataclass(slots=True, eq=False)
class Loop:
    """An attached loop device. `openers` are the attach contexts; a mounted filesystem is looked up."""

    number: int
    image: Place
    read_only: bool
    autoclear: bool
    size: int
    openers: int = 0

    @property
    def device(self) -> int:
        """Its device number."""
        return os.makedev(LOOP_MAJOR, self.number)

    def shown(self) -> LoopDevice:
        """Return it as the host's callers see it."""
        node = self.image.node
        return LoopDevice(
            path=f"/dev/loop{self.number}",
            device=self.device,
            backing=(node.device, node.number),
            read_only=self.read_only,
            autoclear=self.autoclear,
        )


@dataclass(slots=True, eq=False)
class Mapped:
    """An open encrypted device, over a loop device."""

    number: int
    name: str
    luks: FakeLuks
    below: Loop
    size: int
    live: bool = True

    @property
    def device(self) -> int:
        """Its device number."""
        return os.makedev(MAPPER_MAJOR, self.number)

    def shown(self) -> MappedDevice:
        """Return it as the host's callers see it."""
        return MappedDevice(
            path=f"/dev/dm-{self.number}",
            device=self.device,
            read_only=False,
            name=self.name,
            uuid=f"CRYPT-LUKS2-{self.luks.uuid.replace('-', '')}-{self.name}",
            below=(self.below.device,),
            live=self.live,
        )


@dataclass(eq=False)
class Kernel(Calls):
    """The state of a machine, and how it ends.

    Attributes:
        epoch: counts the lives of the driver's process; what an earlier one held open is closed.
        pinned: files that are held open, each by the mount it was opened through.
    """

    disk: FakeFilesystem = field(default_factory=lambda: FakeFilesystem("ext4", device=os.makedev(254, 1)))
    dev: FakeFilesystem = field(default_factory=lambda: FakeFilesystem("devtmpfs", device=os.makedev(0, 6)))
    points: list[Point] = field(default_factory=list)
    attached: dict[int, Loop] = field(default_factory=dict)
    locked: list[Place] = field(default_factory=list)
    mapped: dict[int, Mapped] = field(default_factory=dict)
    carriers: dict[FakeFilesystem, Loop | Mapped] = field(default_factory=dict)
    epoch: int = 0
    _covered: dict[tuple[Point, Node], Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Calls.__init__(self)
        self.disk.backing = Node(FileKind.BLOCK, 1, self.dev, 0o600, size=self.disk.grown, special=self.disk.device)
        self.disk.add(self.disk.root, "dev", FileKind.DIRECTORY, 0o755)
        self._boot()

    def _boot(self) -> None:
        top = Point(self.disk, self.disk.root, source="/dev/root")
        self.points, self._covered = [top], {}
        self.put_over(Point(self.dev, self.dev.root, source="devtmpfs"), self.walk("/dev", "boot"))

    # The ends of a process and of a machine

    def crash(self) -> None:
        """The driver's process is gone: what it held open is closed, and the kernel keeps the rest."""
        self.calm()
        self.frozen = False
        self.epoch += 1
        self.locked.clear()
        for loop in self.attached.values():
            loop.openers = 0
        self.release_loops()

    def reboot(self) -> None:
        """The machine is gone: no mount, no loop device; what was in files is there."""
        self.crash()
        self.attached.clear()
        self.mapped.clear()
        self.carriers.clear()
        self._boot()

    # Walking

    def walk(self, path: str, what: str, *, follow: bool = False, depth: int = 0) -> Place:
        """Find what a path names, without following a symbolic link at its end unless told to.

        Raises:
            SyscallFailed: ENOENT, ENOTDIR, ELOOP.
        """
        if depth > _LINKS:
            raise failed(what, errno.ELOOP)
        place = self.on_top(Place(self.points[0], self.points[0].root))
        parts = [part for part in path.split("/") if part]
        for index, part in enumerate(parts):
            if place.node.kind is not FileKind.DIRECTORY:
                raise failed(what, errno.ENOTDIR)
            child = place.node.children.get(part)
            if child is None:
                raise failed(what, errno.ENOENT)
            if child.kind is FileKind.SYMLINK and (follow or index + 1 < len(parts)):
                rest = "/".join([self._target(place, child), *parts[index + 1 :]])
                return self.walk(rest, what, follow=follow, depth=depth + 1)
            place = self.on_top(Place(place.mount, child))
        return place

    def _target(self, place: Place, link: Node) -> str:
        return link.link if link.link.startswith("/") else f"{self.path_of(place)}/{link.link}"

    def on_top(self, place: Place) -> Place:
        """What one sees of a place: the last that was mounted over it."""
        while (over := self._covered.get((place.mount, place.node))) is not None:
            place = Place(over, over.root)
        return place

    def parent_of(self, path: str, what: str) -> tuple[Place, str]:
        """The directory that a path's last part is in, and that part."""
        above, _, name = path.rstrip("/").rpartition("/")
        place = self.walk(above, what, follow=True)
        if place.node.kind is not FileKind.DIRECTORY:
            raise failed(what, errno.ENOTDIR)
        return place, name

    def path_of(self, place: Place) -> str:
        """Return the path at which one sees a place."""
        names = []
        node = place.node
        while node is not place.mount.root and node.parent is not None:
            names.append(node.name)
            node = node.parent
        above = ""
        if place.mount.parent is not None and place.mount.covers is not None:
            above = self.path_of(Place(place.mount.parent, place.mount.covers)).rstrip("/")
        return above + "".join(f"/{name}" for name in reversed(names)) or "/"

    def check_writable(self, place: Place, what: str) -> None:
        """EROFS where mount or filesystem forbid writing."""
        if "ro" in place.mount.flags or place.mount.filesystem.read_only:
            raise failed(what, errno.EROFS)

    # Mounts

    def put_over(self, point: Point, target: Place) -> None:
        """Add a mount over a place."""
        point.parent, point.covers = target.mount, target.node
        self._covered[target.mount, target.node] = point
        self.points.append(point)

    def take_off(self, point: Point, what: str) -> None:
        """Remove a mount; its filesystem goes with its last one.

        Raises:
            SyscallFailed: EBUSY where something is mounted in it, or a file that was opened through it is in use.
        """
        if point.parent is None or point.covers is None or any(other.parent is point for other in self.points):
            raise failed(what, errno.EBUSY)
        if any(place.mount is point for place in self.open_places()):
            raise failed(what, errno.EBUSY)
        del self._covered[point.parent, point.covers]
        self.points.remove(point)
        if not self.is_mounted(point.filesystem):
            self.carriers.pop(point.filesystem, None)
        self.release_loops()

    def open_places(self) -> Iterator[Place]:
        """Yield what is held open."""
        yield from (loop.image for loop in self.attached.values())
        yield from self.locked

    def is_mounted(self, filesystem: FakeFilesystem) -> bool:
        """Whether a filesystem is mounted anywhere."""
        return any(point.filesystem is filesystem for point in self.points)

    def is_mount_point(self, node: Node) -> bool:
        """Whether something is mounted over a node."""
        return any(point.covers is node for point in self.points)

    def line(self, point: Point) -> Mount:
        """Return a mount as mountinfo shows it."""
        number = point.filesystem.device
        inside = "/".join(reversed([node.name for node in point.root.ancestors() if node.parent is not None]))
        place = Place(point, point.root)
        return Mount(
            device=(os.major(number), os.minor(number)),
            root=f"/{inside}",
            point=self.path_of(place),
            options=point.flags,
            filesystem=point.filesystem.type,
            source=point.source,
        )

    # Loop devices

    def release_loops(self) -> None:
        """Let go the loop devices that clear themselves and that nobody uses."""
        below = {mapped.below for mapped in self.mapped.values()}
        carrying = {*self.carriers.values(), *below}
        for loop in list(self.attached.values()):
            if loop.autoclear and not loop.openers and loop not in carrying:
                del self.attached[loop.number]

    def free_loop(self) -> int:
        """Return the number of a free loop device, and see that it has a node."""
        number = next(n for n in range(len(self.attached) + 1) if n not in self.attached)
        self.make_node(f"loop{number}", os.makedev(LOOP_MAJOR, number))
        return number

    def make_node(self, name: str, special: int) -> None:
        """See that a device has a node."""
        if name not in self.dev.root.children:
            self.dev.add(self.dev.root, name, FileKind.BLOCK, 0o660).special = special

    def mapped_of(self, node: Node) -> Mapped | None:
        """Return the open encrypted device that a device node stands for, if it is open."""
        if node.kind is not FileKind.BLOCK or os.major(node.special) != MAPPER_MAJOR:
            return None
        found = self.mapped.get(os.minor(node.special))
        return found if found is not None and found.live else None

    def carrier_of(self, node: Node) -> Loop | Mapped | None:
        """Return what a device node stands for."""
        return self.loop_of(node) or self.mapped_of(node)

    def loop_of(self, node: Node) -> Loop | None:
        """Return the loop device that a device node stands for, if it is attached."""
        if node.kind is not FileKind.BLOCK or os.major(node.special) != LOOP_MAJOR:
            return None
        return self.attached.get(os.minor(node.special))

    def medium(self, path: str, what: str) -> Node:
        """The image or disk that a path names, through a loop device where it is one.

        Raises:
            SyscallFailed: EISDIR, or ENXIO for a device with nothing behind it.
        """
        node = self.walk(path, what, follow=True).node
        if node.kind is FileKind.DIRECTORY:
            raise failed(what, errno.EISDIR)
        loop, mapped = self.loop_of(node), self.mapped_of(node)
        if loop is not None:
            return self.medium(self.path_of(loop.image), what) if loop.image.node.special else loop.image.node
        if mapped is not None:
            return mapped.luks.inside
        if node.kind is FileKind.BLOCK and not node.size:
            raise failed(what, errno.ENXIO)
        return node
