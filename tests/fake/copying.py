"""Copies in memory: clones take no room of their own, and everything is copied at one moment or step by step."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from csi_local.model.observed import FileKind
from tests.fake.calls import call
from tests.fake.limits import FakeLimits
from tests.fake.tree import FakeFilesystem, FakeLuks, Node, anonymous_device, failed

if TYPE_CHECKING:
    from csi_local.host.api import Proceed
    from tests.fake.kernel import Place

_SHARING = ("btrfs", "xfs")


def _twin(held: FakeFilesystem, backing: Node) -> FakeFilesystem:
    """Return a filesystem like another, on another image."""
    twin = FakeFilesystem(held.type, held.uuid, held.label, held.grown, whole=held.whole, backing=backing)
    twin.used = held.used
    _graft(held.root, twin.root, share=False)
    return twin


def _graft(source: Node, target: Node, *, share: bool) -> None:
    """Put copies of what is in one directory into another; *share* for blocks that stay the source's."""
    target.mode, target.uid, target.gid = source.mode, source.uid, source.gid
    for name, child in source.children.items():
        made = target.filesystem.add(target, name, child.kind, child.mode)
        _fill(child, made)
        if share:
            made.shared = made.allocated
        _graft(child, made, share=share)


def _fill(source: Node, made: Node) -> None:
    made.mode, made.uid, made.gid, made.link = source.mode, source.uid, source.gid, source.link
    made.data, made.size, made.special, made.dirty = source.data, source.size, source.special, source.dirty
    made.allocated = source.allocated


def _copy_content(source: Node, made: Node) -> None:
    """Copy what is on an image, header and what is behind it too."""
    made.held = _twin(source.held, made) if source.held is not None else None
    if source.luks is not None:
        inside = Node(FileKind.OTHER, made.number, made.filesystem, 0o600, parent=made, size=source.luks.inside.size)
        inside.held = _twin(source.luks.inside.held, made) if source.luks.inside.held is not None else None
        made.luks = FakeLuks(source.luks.uuid, list(source.luks.keys), inside, whole=source.luks.whole)


class FakeCopying(FakeLimits):
    """Implements `host.api.Copying`, and copies of subvolumes."""

    def _new_image(self, source: str, target: str) -> tuple[Place, Node]:
        old = self.walk(source, f"open {source}")
        if old.node.kind is FileKind.SYMLINK:
            raise failed(f"open {source}", errno.ELOOP)
        return old, self.new_file(target, f"open {target}")

    @call
    def clone_image(self, source: str, target: str) -> None:
        """See `Copying.clone_image`."""
        old, made = self._new_image(source, target)
        what = f"clone {source} as {target}"
        if made.filesystem is not old.node.filesystem:
            raise failed(what, errno.EXDEV)
        if made.filesystem.type not in _SHARING:
            raise failed(what, errno.EOPNOTSUPP)
        _fill(old.node, made)
        made.shared = made.allocated
        _copy_content(old.node, made)

    @call
    def copy_image(self, source: str, target: str, proceed: Proceed) -> None:
        """See `Copying.copy_image`."""
        old, made = self._new_image(source, target)
        for _ in range(2):
            proceed()
            self.step("copy_image.piece")
        made.filesystem.allocate(made, old.node.allocated, f"copy {source} to {target}")
        _fill(old.node, made)
        _copy_content(old.node, made)

    @call
    def copy_tree(self, source: str, target: str, *, share: bool, proceed: Proceed) -> None:
        """See `Copying.copy_tree`."""
        what = f"copy the tree {source} to {target}"
        old, new = self.directory(source, f"open {source}"), self.directory(target, f"open {target}")
        if share and new.mount.filesystem.type not in _SHARING:
            raise failed(what, errno.EOPNOTSUPP)
        for _ in old.node.children:
            proceed()
            self.step("copy_tree.entry")
        if not share:
            needed = sum(node.allocated for node in old.node.below())
            new.mount.filesystem.allocate(new.node, needed, what)
            new.mount.filesystem.allocate(new.node, 0, what)
            new.mount.filesystem.used += needed
        _graft(old.node, new.node, share=share)

    @call
    def snapshot_subvolume(self, source: str, target: str, *, read_only: bool) -> None:
        """See `Limits.snapshot_subvolume`."""
        what = f"snapshot subvolume {source} as {target}"
        old = self.directory(source, f"open {source}")
        parent, name = self.parent_of(target, what)
        if parent.mount.filesystem.type != "btrfs":
            raise failed(what, errno.ENOTTY)
        if not old.node.subvolume:
            raise failed(what, errno.EINVAL)
        if name in parent.node.children:
            raise failed(what, errno.EEXIST)
        made = parent.mount.filesystem.add(parent.node, name, FileKind.DIRECTORY, 0o755)
        made.number, made.subvolume, made.read_only = 256, anonymous_device(), read_only
        _graft(old.node, made, share=True)

    @call
    def freeze(self, path: str) -> None:
        """See `Mounts.freeze`."""
        filesystem = self.directory(path, f"open {path}").mount.filesystem
        if filesystem.frozen:
            raise failed(f"freeze {path}", errno.EBUSY)
        filesystem.frozen = True

    @call
    def sync_file(self, path: str) -> None:
        """See `Copying.sync_file`."""
        self.walk(path, f"open {path}")

    @call
    def sync_filesystem(self, path: str) -> None:
        """See `Copying.sync_filesystem`."""
        self.directory(path, f"open {path}")
