"""Filesystems in memory: nodes with identities, room that is taken and comes back, limits that hold."""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from csi_local.model.errors import SyscallFailed
from csi_local.model.observed import FileInfo, FileKind, Usage
from csi_local.model.quantity import Bytes, round_up

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4096
ROOT_INODE = {"btrfs": 256, "xfs": 128}
_anonymous = itertools.count(100)


def failed(what: str, number: int) -> SyscallFailed:
    """Return the error of a system call."""
    return SyscallFailed(what, number)


def anonymous_device() -> int:
    """Return a device number such as btrfs gives its subvolumes."""
    return os.makedev(0, next(_anonymous))


@dataclass(slots=True, eq=False)
class Node:
    """A file, directory, symbolic link or device node.

    Attributes:
        subvolume: its own device number, where it is the top of a subvolume.
        shared: of what is allocated, what it has from a clone; the source's is taken to stay.
        read_only: whether it is a snapshot that nobody may write to; nothing looks at that.
        held: the filesystem on it, where it is an image or a disk.
        luks: what is encrypted on it instead, if anything is.
        dirty: offset of a byte that is not zero and no filesystem's, where it is an image or a disk.
        last_path: where it was in its filesystem, if it was removed.
    """

    kind: FileKind
    number: int
    filesystem: FakeFilesystem
    mode: int
    parent: Node | None = None
    name: str = ""
    uid: int = 0
    gid: int = 0
    children: dict[str, Node] = field(default_factory=dict)
    data: bytes = b""
    size: int = 0
    allocated: int = 0
    shared: int = 0
    special: int = 0
    link: str = ""
    project: int = 0
    subvolume: int = 0
    read_only: bool = False
    limit: int = 0
    held: FakeFilesystem | None = None
    luks: FakeLuks | None = None
    dirty: int | None = None
    last_path: str = ""
    born: int = field(default_factory=itertools.count(1).__next__)

    @property
    def device(self) -> int:
        """The number that stat(2) gives as its device."""
        node: Node | None = self
        while node is not None:
            if node.subvolume:
                return node.subvolume
            node = node.parent
        return self.filesystem.device

    def info(self, *, mount_root: bool) -> FileInfo:
        """Return what statx(2) says."""
        return FileInfo(
            kind=self.kind,
            size=self.size,
            allocated=self.allocated,
            device=self.device,
            inode=self.number,
            special=self.special,
            mount_root=mount_root,
            gid=self.gid,
            mode=self.mode,
            born=self.born,
        )

    def below(self) -> Iterator[Node]:
        """Yield the node and all that is in it."""
        yield self
        for child in self.children.values():
            yield from child.below()

    def ancestors(self) -> Iterator[Node]:
        """Yield the node and what it is in, up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass(slots=True, eq=False)
class FakeLuks:
    """A LUKS2 header on an image.

    Attributes:
        keys: those that open it.
        inside: stands for the bytes that it opens to; what is held there is drawn from the image.
        whole: False where formatting was interrupted.
    """

    uuid: str
    keys: list[bytes]
    inside: Node
    discard: bool = False
    whole: bool = True


@dataclass(slots=True, eq=False)
class FakeFilesystem:
    """A filesystem.

    Attributes:
        projects: whether quota projects are enforced.
        subvolume_limits: whether limits on subvolumes have been turned on.
        whole: False where mkfs was interrupted.
        backing: the image or disk it is on.
        grown: how large the filesystem is; *backing* may be larger.
        frozen: whether somebody froze it; only thawing looks at that.
    """

    type: str
    uuid: str = ""
    label: str = ""
    grown: int = 1 << 50
    device: int = 0
    projects: bool = False
    subvolume_limits: bool = False
    read_only: bool = False
    frozen: bool = False
    whole: bool = True
    backing: Node | None = None
    used: int = 0
    limits: dict[int, int] = field(default_factory=dict)
    root: Node = field(init=False)
    _numbers: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        first = ROOT_INODE.get(self.type, 2)
        self._numbers = itertools.count(first + 10)
        self.root = Node(FileKind.DIRECTORY, first, self, 0o755)
        if self.type == "btrfs":
            self.root.subvolume = anonymous_device()

    @property
    def total(self) -> int:
        """What statvfs(3) says it holds: somewhat less than it is large."""
        return self.grown - self.grown // 64

    @property
    def free(self) -> int:
        """What is left."""
        return max(0, self.total - self.used)

    def add(self, parent: Node, name: str, kind: FileKind, mode: int) -> Node:
        """Make a node, as its parent's setgid bit and project want it."""
        node = Node(kind, next(self._numbers), self, mode, parent, name, project=parent.project)
        if parent.mode & 0o2000:
            node.gid = parent.gid
            node.mode |= 0o2000 if kind is FileKind.DIRECTORY else 0
        parent.children[name] = node
        return node

    def drop(self, node: Node) -> None:
        """Take a node out of its directory and give its room back."""
        for one in node.below():
            one.last_path = "/" + "/".join(reversed([above.name for above in one.ancestors() if above.parent]))
            one.subvolume = one.device
            self.used -= one.allocated - one.shared
            one.allocated = one.shared = 0
        if node.parent is not None:
            del node.parent.children[node.name]
            node.parent = None

    def allocate(self, node: Node, amount: int, what: str) -> None:
        """Let a node have *amount* bytes of blocks.

        Raises:
            SyscallFailed: ENOSPC or EDQUOT; nothing has changed.
        """
        more = round_up(amount, BLOCK) - node.allocated
        if more > self.free:
            raise failed(what, errno.ENOSPC)
        if more > 0:
            self._check_limits(node, more, what)
            self._draw(more, what)
        own = node.allocated - node.shared
        node.allocated += more
        node.shared = min(node.shared, node.allocated)
        self.used += node.allocated - node.shared - own

    def _check_limits(self, node: Node, more: int, what: str) -> None:
        limit = self.limits.get(node.project, 0) if self.projects and node.project else 0
        if limit and self.project_used(node.project) + more > limit:
            raise failed(what, errno.ENOSPC if self.type == "xfs" else errno.EDQUOT)
        for top in node.ancestors():
            if top.subvolume:
                if top.limit and sum(one.allocated for one in top.below()) + more > top.limit:
                    raise failed(what, errno.EDQUOT)
                return

    def _draw(self, more: int, what: str) -> None:
        """What is written into a filesystem on a thin image takes room from the filesystem under that."""
        if self.backing is not None and self.backing.kind is FileKind.FILE:
            missing = self.backing.size - self.backing.allocated
            drawn = self.backing.allocated + min(more, missing)
            self.backing.filesystem.allocate(self.backing, drawn, what)

    def project_used(self, project: int) -> int:
        """Return the bytes that a quota project has."""
        return sum(node.allocated for node in self.root.below() if node.project == project)

    def usage(self, total: int, used: int, inodes: int = 0) -> Usage:
        """Return usage under a limit."""
        free = 1 << 20 if inodes else 0
        return Usage(
            total=Bytes(total),
            used=Bytes(used),
            available=Bytes(max(0, total - used)),
            inodes=inodes + free,
            used_inodes=inodes,
            free_inodes=free,
        )
