"""Limits on directories, in memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from csi_local.model.observed import FileKind, Usage
from csi_local.model.pool import Abilities, Media, QuotaSupport
from tests.fake.calls import call
from tests.fake.mounts import FakeMounts
from tests.fake.tree import anonymous_device, failed

if TYPE_CHECKING:
    from csi_local.model.quantity import Bytes


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
                filesystem=filesystem.type,
                quota_reason="the pool cannot be written: Read-only file system",
                **self._encryption(),
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
            **self._encryption(),
        )

    def _encryption(self) -> dict[str, Any]:
        return {"encryption": not self.no_encryption, "encryption_reason": self.no_encryption}

    @call
    def media(self, path: str) -> Media:
        """See `Limits.media`."""
        return Media.UNKNOWN if self.look(path) is None else Media.SSD
