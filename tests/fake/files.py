"""Files and directories of the machine in memory."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csi_local.model.errors import Busy, SyscallFailed
from csi_local.model.observed import FileInfo, FileKind, Room
from csi_local.model.quantity import Bytes
from tests.fake.calls import call
from tests.fake.kernel import Kernel, Place
from tests.fake.tree import BLOCK, Node, failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

INODES = 1 << 20


class FakeFiles(Kernel):
    """Implements `host.api.Files`."""

    @call
    def stat(self, path: str) -> FileInfo | None:
        """See `Files.stat`."""
        return self.look(path)

    def look(self, path: str) -> FileInfo | None:
        """Say what is at *path*, without being counted as a call."""
        try:
            place = self.walk(path, f"stat {path}")
        except SyscallFailed as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        return place.node.info(mount_root=place.node is place.mount.root)

    @call
    def real_path(self, path: str) -> str:
        """See `Files.real_path`."""
        try:
            return self.path_of(self.walk(path, f"resolve {path}", follow=True))
        except SyscallFailed:
            above, _, name = path.rpartition("/")
            return f"{self.real_path(above)}/{name}".replace("//", "/") if name else path

    @call
    def read_file(self, path: str) -> bytes:
        """See `Files.read_file`."""
        node = self.walk(path, f"open {path}").node
        if node.kind is FileKind.SYMLINK:
            raise failed(f"open {path}", errno.ELOOP)
        if node.kind is FileKind.DIRECTORY:
            raise failed(f"read {path}", errno.EISDIR)
        if node.uid:
            raise failed(f"read {path}, which belongs to user {node.uid}", errno.EPERM)
        return node.data

    @call
    def replace_file(self, path: str, data: bytes) -> None:
        """See `Files.replace_file`."""
        what = f"write {path}"
        parent, name = self.parent_of(path, what)
        self.check_writable(parent, what)
        before = parent.node.children.get(name)
        temporary = self._temporary(parent, f"{name}.tmp", what)
        self.step("replace_file.write")
        try:
            parent.mount.filesystem.allocate(temporary, len(data), what)
        except SyscallFailed:
            parent.mount.filesystem.drop(temporary)
            raise
        temporary.data, temporary.size = data, len(data)
        if before is not None and before.kind is FileKind.DIRECTORY:
            raise failed(what, errno.EISDIR)
        self.step("replace_file.rename")
        if before is not None:
            before.filesystem.drop(before)
        self._move(temporary, parent.node, name)

    @call
    def write_new_file(self, path: str, data: bytes) -> None:
        """See `Files.write_new_file`."""
        node = self.new_file(path, f"open {path}")
        self.step("write_new_file.write")
        node.filesystem.allocate(node, len(data), f"write {path}")
        node.data, node.size = data, len(data)

    def _temporary(self, parent: Place, name: str, what: str) -> Node:
        old = parent.node.children.get(name)
        if old is None:
            return parent.mount.filesystem.add(parent.node, name, FileKind.FILE, 0o600)
        if old.kind is not FileKind.FILE:
            raise failed(what, errno.ELOOP)
        old.filesystem.allocate(old, 0, what)
        old.data, old.size = b"", 0
        return old

    @staticmethod
    def _move(node: Node, parent: Node, name: str) -> None:
        if node.parent is not None:
            del node.parent.children[node.name]
        node.parent, node.name = parent, name
        parent.children[name] = node

    @call
    def list_dir(self, path: str, *, directories_only: bool = False) -> Sequence[str]:
        """See `Files.list_dir`."""
        node = self.walk(path, f"list {path}", follow=True).node
        if node.kind is not FileKind.DIRECTORY:
            raise failed(f"list {path}", errno.ENOTDIR)
        children = node.children.items()
        return [name for name, child in children if not directories_only or child.kind is FileKind.DIRECTORY]

    @call
    def make_dir(self, path: str, *, mode: int = 0o700, exist_ok: bool = False) -> None:
        """See `Files.make_dir`."""
        what = f"make directory {path}"
        parent, name = self.parent_of(path, what)
        there = parent.node.children.get(name)
        if there is not None:
            if exist_ok and there.kind is FileKind.DIRECTORY:
                return
            raise failed(what, errno.EEXIST)
        self.check_writable(parent, what)
        parent.mount.filesystem.add(parent.node, name, FileKind.DIRECTORY, mode)

    @call
    def make_file(self, path: str) -> None:
        """See `Files.make_file`."""
        self.new_file(path, f"open {path}")

    @call
    def make_link(self, path: str, target: str) -> None:
        """See `Files.make_link`."""
        what = f"make link {path}"
        parent, name = self.parent_of(path, what)
        if name in parent.node.children:
            raise failed(what, errno.EEXIST)
        self.check_writable(parent, what)
        parent.mount.filesystem.add(parent.node, name, FileKind.SYMLINK, 0o777).link = target

    def new_file(self, path: str, what: str) -> Node:
        """Make an empty file; EEXIST where something is there."""
        parent, name = self.parent_of(path, what)
        if name in parent.node.children:
            raise failed(what, errno.EEXIST)
        self.check_writable(parent, what)
        return parent.mount.filesystem.add(parent.node, name, FileKind.FILE, 0o600)

    def directory(self, path: str, what: str) -> Place:
        """Open a directory as O_DIRECTORY | O_NOFOLLOW does."""
        place = self.walk(path, what)
        if place.node.kind is not FileKind.DIRECTORY:
            raise failed(what, errno.ENOTDIR)
        return place

    @call
    def set_mode(self, path: str, mode: int) -> None:
        """See `Files.set_mode`."""
        place = self.directory(path, f"open {path}")
        self.check_writable(place, f"change the mode of {path}")
        place.node.mode = mode

    @call
    def remove(self, path: str) -> None:
        """See `Files.remove`."""
        what = f"remove {path}"
        place = self.walk(path, what)
        if self._in_the_way(place):
            raise failed(what, errno.EBUSY)
        self.check_writable(place, what)
        if place.node.children:
            raise failed(what, errno.ENOTEMPTY)
        place.node.filesystem.drop(place.node)

    def _in_the_way(self, place: Place) -> bool:
        """Whether a mount begins here, or is over this in another place."""
        return place.node is place.mount.root or self.is_mount_point(place.node)

    @call
    def remove_tree(self, path: str) -> None:
        """See `Files.remove_tree`."""
        what = f"remove {path}"
        if self.look(path) is None:
            return
        place = self.walk(path, what)
        if self._in_the_way(place) or any(self.is_mount_point(node) for node in place.node.below()):
            raise failed(what, errno.EBUSY)
        self.check_writable(place, what)
        for child in list(place.node.children.values()):
            self.step("remove_tree.entry")
            if child.project:
                child.filesystem.limits.pop(child.project, None)
            child.filesystem.drop(child)
        self.step("remove_tree.itself")
        place.node.filesystem.drop(place.node)

    @call
    def rename(self, source: str, target: str) -> None:
        """See `Files.rename`."""
        what = f"rename {source} to {target}"
        old = self.walk(source, what)
        parent, name = self.parent_of(target, what)
        if parent.mount is not old.mount and not self._in_the_way(old):
            raise failed(what, errno.EXDEV)
        if self._in_the_way(old):
            raise failed(what, errno.EBUSY)
        if old.node in parent.node.ancestors():
            raise failed(what, errno.EINVAL)
        if name in parent.node.children:
            raise failed(what, errno.EEXIST)
        self.check_writable(parent, what)
        self._move(old.node, parent.node, name)
        self.step("rename.sync", late=True)
        for path in (source, target):
            self.sync_dir(path.rpartition("/")[0] or "/")

    @call
    def sync_dir(self, path: str) -> None:
        """See `Files.sync_dir`."""
        self.directory(path, f"open {path}")

    @call
    def give_to_group(self, path: str, group: int) -> None:
        """See `Files.give_to_group`."""
        place = self.directory(path, f"open {path}")
        if place.node.gid == group and place.node.mode & 0o2070 == 0o2070:
            return
        self.check_writable(place, f"give {path} to group {group}")
        for node in place.node.below():
            node.gid = group
            if node.kind is not FileKind.SYMLINK:
                node.mode |= 0o2070 if node.kind is FileKind.DIRECTORY else 0o060

    @call
    def room(self, path: str) -> Room:
        """See `Files.room`."""
        place = self.walk(path, f"statvfs {path}", follow=True)
        filesystem = place.mount.filesystem
        total, free = filesystem.total, filesystem.free
        limit = filesystem.limits.get(place.node.project, 0) if filesystem.projects else 0
        if limit:
            total, free = limit, min(free, max(0, limit - filesystem.project_used(place.node.project)))
        counted = 0 if filesystem.type == "btrfs" else INODES
        return Room(
            total=Bytes(total),
            free=Bytes(free - free % BLOCK),
            available=Bytes(free - free % BLOCK),
            inodes=counted,
            free_inodes=counted,
            read_only=filesystem.read_only or "ro" in place.mount.flags,
        )

    @contextmanager
    def _locked(self, path: str) -> Iterator[None]:
        epoch = self.epoch
        place = self.walk(path, f"open {path}", follow=True)
        if any(other.node is place.node for other in self.locked):
            raise Busy(f"{path} is in use by another csi-local")
        self.locked.append(place)
        try:
            yield
        finally:
            if self.epoch == epoch and not self.frozen:
                self.locked.remove(place)

    @call
    def lock(self, path: str) -> AbstractContextManager[None]:
        """See `Files.lock`."""
        return self._locked(path)
