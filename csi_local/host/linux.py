"""The real machine: ``host.api.Host`` put together from this room's modules."""

import os
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

from csi_local.host import copying, crypt, devices, filesystems, headers, loop, mounts, owners, quota, trees
from csi_local.host.abilities import abilities
from csi_local.host.api import Proceed
from csi_local.host.files import LinuxFiles
from csi_local.host.run import ask
from csi_local.host.syscalls import failing_as, opened
from csi_local.model.observed import LoopDevice, MappedDevice, Mount, Signature, Usage
from csi_local.model.pool import Abilities, Media
from csi_local.model.quantity import Bytes
from csi_local.model.secret import Secret
from csi_local.model.volume import Encryption, Filesystem

_KEY_WITHIN_S = 20.0
"""How long a program may take that has keys; a kubelet's staging may take two minutes."""


class LinuxBlocks:
    """Implements ``host.api.Blocks``."""

    def make_image(self, path: str, size: Bytes, *, thick: bool) -> None:
        """See ``Blocks.make_image``."""
        loop.make_image(path, size, thick=thick)

    def resize_image(self, path: str, size: Bytes, *, thick: bool) -> None:
        """See ``Blocks.resize_image``."""
        loop.resize_image(path, size, thick=thick)

    def attach(
        self, path: str, *, sector_size: int, keep: bool, read_only: bool = False
    ) -> AbstractContextManager[LoopDevice]:
        """See ``Blocks.attach``."""
        return loop.attach(path, sector_size=sector_size, keep=keep, read_only=read_only)

    def loops(self, path: str) -> Sequence[LoopDevice]:
        """See ``Blocks.loops``."""
        return loop.loops(path)

    def all_loops(self) -> Sequence[LoopDevice]:
        """See ``Blocks.all_loops``."""
        return loop.all_loops()

    def detach(self, device: LoopDevice) -> None:
        """See ``Blocks.detach``."""
        loop.detach(device)

    def refresh(self, device: LoopDevice) -> None:
        """See ``Blocks.refresh``."""
        loop.refresh(device)

    def device_size(self, path: str) -> Bytes:
        """See ``Blocks.device_size``."""
        return loop.device_size(path)

    def probe(self, path: str) -> Signature | None:
        """See ``Blocks.probe``."""
        return filesystems.probe(path)

    def first_data(self, path: str) -> int | None:
        """See ``Blocks.first_data``."""
        return devices.first_data(path)

    def in_use(self, path: str) -> str:
        """See ``Blocks.in_use``."""
        return devices.in_use(path)

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
        """See ``Blocks.make_filesystem``."""
        how = {"thick": thick, "zeroed": zeroed}
        filesystems.make_filesystem(device, filesystem, uuid=uuid, label=label, options=options, **how)

    def filesystem_size(self, device: str, filesystem: Filesystem) -> Bytes:
        """See ``Blocks.filesystem_size``."""
        return filesystems.filesystem_size(device, filesystem)

    def grows_mounted(self, device: str, filesystem: Filesystem) -> bool:
        """See ``Blocks.grows_mounted``."""
        return filesystems.grows_mounted(device, filesystem)

    def grow_unmounted(self, device: str) -> None:
        """See ``Blocks.grow_unmounted``."""
        filesystems.grow_unmounted(device)

    def grow_mounted(self, point: str, filesystem: Filesystem, device: str) -> Bytes:
        """See ``Blocks.grow_mounted``."""
        return filesystems.grow_mounted(point, filesystem, device)


class LinuxCrypt:
    """Implements ``host.api.Crypt``."""

    def format_encrypted(self, device: str, encryption: Encryption, key: Secret) -> None:
        """See ``Crypt.format_encrypted``."""
        crypt.format_encrypted(device, encryption, key)

    def open_encrypted(self, device: str, name: str, key: Secret, *, discard: bool) -> MappedDevice:
        """See ``Crypt.open_encrypted``."""
        return crypt.open_encrypted(device, name, key, discard=discard)

    def close_encrypted(self, device: MappedDevice) -> None:
        """See ``Crypt.close_encrypted``."""
        crypt.close_encrypted(device)

    def resize_encrypted(self, device: MappedDevice, key: Secret) -> Bytes:
        """See ``Crypt.resize_encrypted``."""
        return crypt.resize_encrypted(device, key)

    def erase_header(self, path: str, *, encrypted: bool = False) -> None:
        """See ``Crypt.erase_header``."""
        headers.erase_header(path, encrypted=encrypted)

    def copy_header(self, source: str, target: str) -> None:
        """See ``Crypt.copy_header``."""
        headers.copy_header(source, target)

    def restore_header(self, source: str, target: str) -> None:
        """See ``Crypt.restore_header``."""
        headers.restore_header(source, target)

    def opens(self, path: str, key: Secret) -> bool:
        """See ``Crypt.opens``."""
        return crypt.opens(path, key)

    def add_key(self, path: str, encryption: Encryption, key: Secret, new: Secret) -> None:
        """See ``Crypt.add_key``."""
        crypt.add_key(path, encryption, key, new)

    def remove_key(self, path: str, key: Secret) -> None:
        """See ``Crypt.remove_key``."""
        crypt.remove_key(path, key)

    def all_mapped(self) -> Sequence[MappedDevice]:
        """See ``Crypt.all_mapped``."""
        return crypt.all_mapped()

    def mapped_over(self, device: int) -> Sequence[MappedDevice]:
        """See ``Crypt.mapped_over``."""
        return crypt.mapped_over(device)

    def ask_for_key(self, program: str, question: bytes) -> tuple[int, Secret, str]:
        """See ``Crypt.ask_for_key``."""
        return ask(program, question, timeout_s=_KEY_WITHIN_S)


class LinuxMounts:
    """Implements ``host.api.Mounts``."""

    def mount(self, source: str, target: str, filesystem: str, flags: frozenset[str], data: Sequence[str]) -> None:
        """See ``Mounts.mount``."""
        mounts.mount(source, target, filesystem, flags, data)

    def bind(self, source: str, target: str, flags: frozenset[str]) -> None:
        """See ``Mounts.bind``."""
        mounts.bind(source, target, flags)

    def unmount(self, path: str) -> None:
        """See ``Mounts.unmount``."""
        mounts.unmount(path)

    def mounts(self, containing: str = "") -> Sequence[Mount]:
        """See ``Mounts.mounts``."""
        return mounts.mounts(containing)

    def device_at(self, path: str) -> int:
        """See ``Mounts.device_at``."""
        return mounts.device_at(path)

    def mount_flags(self, path: str) -> frozenset[str]:
        """See ``Mounts.mount_flags``."""
        return mounts.mount_flags(path)

    def freeze(self, path: str) -> None:
        """See ``Mounts.freeze``."""
        mounts.freeze(path)

    def thaw(self, path: str) -> bool:
        """See ``Mounts.thaw``."""
        return mounts.thaw(path)


class LinuxLimits:
    """Implements ``host.api.Limits``."""

    def limit_project(self, path: str, project: int, size: Bytes) -> None:
        """See ``Limits.limit_project``."""
        quota.limit_project(path, project, size)

    def project_usage(self, path: str, project: int) -> Usage:
        """See ``Limits.project_usage``."""
        return quota.project_usage(path, project)

    def make_subvolume(self, path: str) -> None:
        """See ``Limits.make_subvolume``."""
        quota.make_subvolume(path)

    def snapshot_subvolume(self, source: str, target: str, *, read_only: bool) -> None:
        """See ``Limits.snapshot_subvolume``."""
        quota.snapshot_subvolume(source, target, read_only=read_only)

    def limit_subvolume(self, path: str, size: Bytes) -> None:
        """See ``Limits.limit_subvolume``."""
        quota.limit_subvolume(path, size)

    def commit_subvolume(self, path: str) -> None:
        """See ``Limits.commit_subvolume``."""
        quota.commit_subvolume(path)

    def settle(self, path: str) -> None:
        """See ``Limits.settle``."""
        quota.settle(path)

    def subvolume_usage(self, path: str) -> Usage:
        """See ``Limits.subvolume_usage``."""
        return quota.subvolume_usage(path)

    def abilities(self, path: str) -> Abilities:
        """See ``Limits.abilities``."""
        return abilities(path)

    def media(self, path: str) -> Media:
        """See ``Limits.media``."""
        return devices.media(path)


class LinuxCopying:
    """Implements ``host.api.Copying``."""

    def clone_image(self, source: str, target: str) -> None:
        """See ``Copying.clone_image``."""
        copying.clone_image(source, target)

    def copy_image(self, source: str, target: str, proceed: Proceed) -> None:
        """See ``Copying.copy_image``."""
        copying.copy_image(source, target, proceed)

    def copy_tree(self, source: str, target: str, *, share: bool, proceed: Proceed) -> None:
        """See ``Copying.copy_tree``."""
        trees.copy_tree(source, target, share=share, proceed=proceed)

    def sync_file(self, path: str) -> None:
        """See ``Copying.sync_file``."""
        copying.sync_file(path)

    def sync_filesystem(self, path: str) -> None:
        """See ``Copying.sync_filesystem``."""
        copying.sync_filesystem(path)


class LinuxInspection:
    """Implements ``host.api.Inspection``."""

    def owner(self, path: str) -> int:
        """See ``Inspection.owner``."""
        with failing_as(f"stat {path}"):
            return os.lstat(path).st_uid

    def set_owner(self, path: str, owner: int, mode: int) -> None:
        """See ``Inspection.set_owner``."""
        owners.set_owner(path, owner, mode)

    def project_of(self, path: str) -> int:
        """See ``Inspection.project_of``."""
        with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
            return quota.project_of(fd)

    def backing_path(self, device: int) -> str:
        """See ``Inspection.backing_path``."""
        number = f"{os.major(device)}:{os.minor(device)}"
        with suppress(OSError), open(f"/sys/dev/block/{number}/loop/backing_file", "rb") as file:
            return os.fsdecode(file.read().rstrip(b"\n")).removesuffix(" (deleted)")
        return ""

    def openers(self, path: str) -> Sequence[int]:
        """See ``Inspection.openers``: /proc/<pid>/fd, proc(5)."""
        with failing_as(f"look who has {path} open"):
            special = os.stat(path).st_rdev
            processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [process for process in processes if _has_open(process, special)]


def _has_open(process: int, special: int) -> bool:
    with suppress(OSError), os.scandir(f"/proc/{process}/fd") as entries:
        for entry in entries:
            with suppress(OSError):  # closed meanwhile
                found = entry.stat()
                if stat.S_ISBLK(found.st_mode) and found.st_rdev == special:
                    return True
    return False


class LinuxHost(LinuxFiles, LinuxBlocks, LinuxCrypt, LinuxMounts, LinuxLimits, LinuxCopying, LinuxInspection):
    """This machine."""
