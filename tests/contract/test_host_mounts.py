"""What the driver may rely on, asked of every host: mounts and limits."""

from __future__ import annotations

import errno
import os
import uuid
from typing import TYPE_CHECKING

import pytest

from csi_local.host.syscalls import ioctl, opened
from csi_local.model.errors import SyscallFailed
from csi_local.model.observed import FileKind, Usage
from csi_local.model.pool import Abilities, Media, QuotaSupport
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import Filesystem
from tests.contract.asking import NONE, attach, fails, format_it, there, volume
from tests.fake.host import FakeHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Machine


class TestMount:
    def test_data_is_there_again(self, machine: Machine) -> None:
        with volume(machine) as (image, point, _):
            machine.host.replace_file(f"{point}/file", b"data")
            machine.host.unmount(point)
            assert machine.host.stat(f"{point}/file") is None
            with attach(machine, image) as loop:
                machine.host.mount(loop.path, point, "ext4", NONE, ())
            assert machine.host.read_file(f"{point}/file") == b"data"

    def test_as_the_kernel_shows_it(self, machine: Machine) -> None:
        with volume(machine) as (_, point, loop):
            (line,) = machine.host.mounts(point)
            assert (line.point, line.root, line.filesystem, line.source) == (point, "/", "ext4", loop.path)
            assert line.device == (7, int(loop.path.removeprefix("/dev/loop")))
            assert "rw" in line.options
            assert machine.host.device_at(point) == loop.device
            assert line in machine.host.mounts()
            assert machine.host.mounts("no such mount anywhere") == []

    def test_flags(self, machine: Machine) -> None:
        point = machine.folder("point", outside=True)
        with attach(machine, machine.image("image", 32 * MIB)) as loop:
            format_it(machine, loop.path)
            machine.host.mount(loop.path, point, "ext4", frozenset({"ro", "nosuid", "noatime", "sync"}), ("commit=30",))
        assert machine.host.mount_flags(point) == {"ro", "nosuid", "noatime"}
        with fails(errno.EROFS):
            machine.host.replace_file(f"{point}/file", b"")

    def test_refused(self, machine: Machine) -> None:
        point, image = machine.folder("point", outside=True), machine.image("image", 32 * MIB)
        file = machine.file("file")
        link = machine.link(f"{machine.outside}/link", point)
        with attach(machine, image) as loop:
            with fails(errno.EINVAL):
                machine.host.mount(loop.path, point, "ext4", NONE, ())
            format_it(machine, loop.path)
            cases = [
                (loop.path, point, "xfs", (), errno.EINVAL),
                (loop.path, point, "nonesuch", (), errno.ENODEV),
                (loop.path, point, "ext4", ("nonesuch",), errno.EINVAL),
                (file, point, "ext4", (), errno.ENOTBLK),
                (f"{machine.root}/none", point, "ext4", (), errno.ENOENT),
                (loop.path, f"{point}-2", "ext4", (), errno.ENOENT),
                (loop.path, file, "ext4", (), errno.ENOTDIR),
                (loop.path, link, "ext4", (), errno.ENOTDIR),
            ]
            for source, target, filesystem, data, number in cases:
                with fails(number):
                    machine.host.mount(source, target, filesystem, NONE, data)
        assert machine.host.mounts(machine.outside) == []
        assert machine.host.loops(image) == []

    def test_the_same_twice(self, machine: Machine) -> None:
        with volume(machine) as (_, point, loop):
            with fails(errno.EBUSY):
                machine.host.mount(loop.path, point, "ext4", NONE, ())
            other = machine.folder("other", outside=True)
            with fails(errno.EBUSY):
                machine.host.mount(loop.path, other, "xfs", NONE, ())
            machine.host.mount(loop.path, other, "ext4", NONE, ())
            machine.host.replace_file(f"{point}/file", b"data")
            assert machine.host.read_file(f"{other}/file") == b"data"


class TestBind:
    def test_directory(self, machine: Machine) -> None:
        folder, point = machine.folder("folder"), machine.folder("point", outside=True)
        machine.host.bind(folder, point, NONE)
        machine.host.replace_file(f"{point}/file", b"data")
        assert machine.host.read_file(f"{folder}/file") == b"data"
        (line,) = machine.host.mounts(point)
        assert line.root.endswith("/folder")
        assert line.filesystem == machine.filesystem

    def test_flags_are_its_own(self, machine: Machine) -> None:
        folder, point = machine.folder("folder"), machine.folder("point", outside=True)
        machine.host.bind(folder, point, frozenset({"ro", "nosuid", "noexec", "nodev", "noatime"}))
        assert machine.host.mount_flags(point) == {"ro", "nosuid", "noexec", "nodev", "noatime"}
        assert "ro" not in machine.host.mount_flags(folder)
        with fails(errno.EROFS):
            machine.host.make_file(f"{point}/file")
        machine.host.make_file(f"{folder}/file")
        other = machine.folder("other", outside=True)
        machine.host.bind(point, other, frozenset({"rw", "exec"}))
        assert machine.host.mount_flags(other) == {"nosuid", "nodev", "noatime"}

    def test_device_node(self, machine: Machine) -> None:
        image, target = machine.image("image", 8 * MIB), f"{machine.outside}/target"
        machine.host.make_file(target)
        with attach(machine, image, keep=True) as loop:
            machine.host.bind(loop.path, target, NONE)
        info = there(machine, target)
        assert (info.kind, info.special, info.mount_root) == (FileKind.BLOCK, loop.device, True)
        (line,) = machine.host.mounts(target)
        assert line.root.endswith(loop.path.removeprefix("/dev"))
        assert machine.host.device_size(target) == 8 * MIB
        machine.host.detach(loop)
        assert machine.host.loops(image) == [], "a node holds no device open"
        machine.host.unmount(target)
        machine.host.remove(target)

    def test_refused(self, machine: Machine) -> None:
        folder, file, point = machine.folder("folder"), machine.file("file"), machine.folder("point", outside=True)
        to_point = machine.link(f"{machine.outside}/to-point", point)
        to_folder = machine.link(f"{machine.root}/to-folder", folder)
        cases = [
            (folder, file, errno.EINVAL),
            (file, point, errno.EINVAL),
            (f"{machine.root}/none", point, errno.ENOENT),
            (folder, f"{point}-2", errno.ENOENT),
            (folder, to_point, errno.ELOOP),
            (to_folder, point, errno.EINVAL),
        ]
        for source, target, number in cases:
            with fails(number):
                machine.host.bind(source, target, NONE)
        assert machine.host.mounts(machine.outside) == []


class TestUnmount:
    def test_the_last_one_first(self, machine: Machine) -> None:
        point = machine.folder("point", outside=True)
        for name in ("first", "second"):
            folder = machine.folder(name)
            machine.host.make_file(f"{folder}/{name}")
            machine.host.bind(folder, point, NONE)
        assert machine.host.list_dir(point) == ["second"]
        assert len(machine.host.mounts(point)) == 2
        machine.host.unmount(point)
        assert machine.host.list_dir(point) == ["first"]
        machine.host.unmount(point)
        with fails(errno.EINVAL):
            machine.host.unmount(point)

    def test_refused(self, machine: Machine) -> None:
        folder, point = machine.folder("folder"), machine.folder("point", outside=True)
        machine.host.bind(folder, point, NONE)
        link = machine.link(f"{machine.outside}/link", point)
        for wrong, number in ((f"{point}-2", errno.ENOENT), (link, errno.EINVAL), (folder, errno.EINVAL)):
            with fails(number):
                machine.host.unmount(wrong)
        assert machine.host.mounts(point)

    def test_busy_while_an_image_in_it_is_attached(self, machine: Machine) -> None:
        with volume(machine) as (_, point, _):
            machine.host.make_image(f"{point}/inner", Bytes(MIB), thick=False)
            with attach(machine, f"{point}/inner"), fails(errno.EBUSY):
                machine.host.unmount(point)
            machine.host.unmount(point)

    def test_busy_while_something_is_mounted_in_it(self, machine: Machine) -> None:
        with volume(machine) as (_, point, _):
            machine.host.make_dir(f"{point}/inner")
            machine.host.bind(machine.folder("folder"), f"{point}/inner", NONE)
            with fails(errno.EBUSY):
                machine.host.unmount(point)
            machine.host.unmount(f"{point}/inner")
            machine.host.unmount(point)


def freeze(machine: Machine, point: str) -> None:
    """Freeze a filesystem (FIFREEZE)."""
    if isinstance(machine.host, FakeHost):
        machine.host.walk(point, "freeze").mount.filesystem.frozen = True
        return
    with opened(point, os.O_RDONLY) as fd:
        ioctl(fd, 0xC0045877, 0, f"freeze {point}")


class TestThaw:
    def test_what_is_not_frozen(self, machine: Machine) -> None:
        with volume(machine) as (_, point, _):
            assert not machine.host.thaw(point)
        with fails(errno.ENOENT):
            machine.host.thaw(f"{machine.root}/none")
        with fails(errno.ENOTDIR):
            machine.host.thaw(machine.file("file"))

    def test_what_is(self, machine: Machine) -> None:
        with volume(machine) as (_, point, _):
            freeze(machine, point)
            assert machine.host.thaw(point)
            assert not machine.host.thaw(point)
            machine.host.replace_file(f"{point}/file", b"data")


class TestInspection:
    def test_owner(self, machine: Machine) -> None:
        file, folder = machine.file("file"), machine.folder("folder")
        assert {machine.host.owner(path) for path in (file, folder)} == {0}
        machine.host.set_owner(file, 4242, 0o400)
        assert (machine.host.owner(file), there(machine, file).mode) == (4242, 0o400)
        machine.host.set_owner(folder, 4242, 0o777)
        assert (machine.host.owner(folder), there(machine, folder).mode) == (4242, 0o700), "a mode only gets narrower"
        with fails(errno.ELOOP):
            machine.host.set_owner(machine.link(f"{machine.root}/link", file), 0, 0o600)
        for act in (machine.host.owner, lambda path: machine.host.set_owner(path, 0, 0)):
            with fails(errno.ENOENT):
                act(f"{machine.root}/none")

    def test_project(self, machine: Machine) -> None:
        assert machine.host.project_of(machine.folder("folder")) == 0

    def test_loop_device(self, machine: Machine) -> None:
        image = machine.image("image", 32 * MIB)
        with attach(machine, image, keep=True) as loop:
            assert machine.host.backing_path(loop.device) == image
            assert len(machine.host.openers(loop.path)) == 1
            machine.host.rename(image, f"{image}-renamed")
            assert machine.host.backing_path(loop.device) == f"{image}-renamed"
        assert machine.host.openers(loop.path) == []
        machine.host.remove(f"{image}-renamed")
        assert machine.host.backing_path(loop.device).endswith("/image-renamed"), "where it was"
        assert [one.backing for one in machine.host.all_loops() if one.path == loop.path] == [loop.backing]
        machine.host.detach(loop)
        assert machine.host.backing_path(loop.device) == ""


class TestDeviceAt:
    def test_of_the_scratch_filesystem(self, machine: Machine) -> None:
        special = there(machine, machine.device).special
        assert machine.host.device_at(machine.folder("folder")) == special
        assert machine.host.device_at(f"{machine.root}/none") == 0


class TestLimits:
    def test_abilities(self, machine: Machine) -> None:
        found = machine.host.abilities(machine.root)
        wanted = Abilities(
            filesystem=str(machine.filesystem), reflink=True, discard=True, direct_io=True, preallocate=True
        )
        if machine.filesystem is Filesystem.BTRFS:
            assert found.quota is QuotaSupport.QGROUP
            assert (found.subvolumes, found.quota_reason) == (True, "")
        else:
            assert (found.quota, found.subvolumes) == (QuotaSupport.NONE, False)
            assert "project quota" in found.quota_reason
        for name in ("filesystem", "reflink", "discard", "direct_io", "preallocate"):
            assert getattr(found, name) == getattr(wanted, name), name
        assert machine.host.list_dir(machine.root) == []

    def test_abilities_of_what_cannot_be_written(self, machine: Machine) -> None:
        point = machine.folder("point", outside=True)
        machine.host.bind(machine.folder("folder"), point, frozenset({"ro"}))
        found = machine.host.abilities(point)
        assert found.filesystem == machine.filesystem
        assert "cannot be written" in found.quota_reason
        assert not found.reflink

    def test_media(self, machine: Machine) -> None:
        assert machine.host.media(machine.root) in Media
        assert machine.host.media(machine.root) == machine.host.media(machine.device)
        assert machine.host.media(f"{machine.root}/none") is Media.UNKNOWN

    def test_projects_where_there_are_none(self, machine: Machine) -> None:
        with pytest.raises(SyscallFailed):
            machine.host.limit_project(machine.folder("folder"), 4242, Bytes(MIB))
        with pytest.raises(SyscallFailed):
            machine.host.project_usage(machine.root, 4242)

    def test_settle(self, machine: Machine) -> None:
        machine.host.settle(machine.root)
        with fails(errno.ENOENT):
            machine.host.settle(f"{machine.root}/none")


class TestSubvolumes:
    @pytest.fixture(autouse=True)
    def on_btrfs(self, machine: Machine) -> Machine:
        """Turn limits on, which the driver does by asking for abilities. XFS has a test of its own below."""
        machine.host.abilities(machine.root)
        return machine

    def test_elsewhere_there_are_none(self, machine: Machine) -> None:
        if machine.filesystem is Filesystem.BTRFS:
            return
        with fails(errno.ENOTTY):
            machine.host.make_subvolume(f"{machine.root}/sub")
        for act in (machine.host.subvolume_usage, lambda path: machine.host.limit_subvolume(path, Bytes(MIB))):
            with fails(errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
                act(machine.root)

    def test_commit(self, machine: Machine) -> None:
        self.on_subvolume(machine, machine.host.commit_subvolume)
        if machine.filesystem is not Filesystem.BTRFS:
            with fails(errno.ENOTTY, errno.EOPNOTSUPP):
                machine.host.commit_subvolume(machine.root)

    def test_a_directory_in_one_is_not_limited(self, machine: Machine) -> None:
        with fails(errno.EINVAL if machine.filesystem is Filesystem.BTRFS else errno.ENOTTY, errno.EINVAL):
            machine.host.limit_subvolume(machine.folder("folder"), Bytes(MIB))

    def on_subvolume(self, machine: Machine, check: Callable[[str], None]) -> None:
        """Call *check* with a new subvolume, where there are any."""
        if machine.filesystem is Filesystem.BTRFS:
            machine.host.make_subvolume(f"{machine.root}/sub")
            check(f"{machine.root}/sub")

    def test_make(self, machine: Machine) -> None:
        def check(path: str) -> None:
            info = there(machine, path)
            assert (info.kind, info.mode, info.mount_root) == (FileKind.DIRECTORY, 0o755, False)
            assert info.device != there(machine, machine.root).device
            with fails(errno.EEXIST):
                machine.host.make_subvolume(path)

        self.on_subvolume(machine, check)

    def test_limit_and_usage(self, machine: Machine) -> None:
        def check(path: str) -> None:
            machine.host.limit_subvolume(path, Bytes(4 * MIB))
            assert machine.host.subvolume_usage(path) == Usage(
                total=Bytes(4 * MIB), used=Bytes(0), available=Bytes(4 * MIB)
            )
            with fails(errno.EDQUOT):
                machine.host.replace_file(f"{path}/large", b"x" * (8 * MIB))
            machine.host.limit_subvolume(path, Bytes(32 * MIB))
            machine.host.replace_file(f"{path}/large", b"x" * (8 * MIB))
            assert machine.host.subvolume_usage(path).total == 32 * MIB

        self.on_subvolume(machine, check)

    def test_renamed_it_keeps_its_limit(self, machine: Machine) -> None:
        def check(path: str) -> None:
            machine.host.limit_subvolume(path, Bytes(4 * MIB))
            folder = machine.folder(uuid.uuid4().hex)
            machine.host.rename(path, f"{folder}/sub")
            assert machine.host.subvolume_usage(f"{folder}/sub").total == 4 * MIB

        self.on_subvolume(machine, check)

    def test_removed_with_its_tree(self, machine: Machine) -> None:
        def check(path: str) -> None:
            machine.host.limit_subvolume(path, Bytes(4 * MIB))
            machine.host.make_dir(f"{path}/inner")
            machine.host.replace_file(f"{path}/inner/file", b"x")
            folder = machine.folder("folder")
            machine.host.rename(path, f"{folder}/data")
            machine.host.remove_tree(folder)
            assert machine.host.list_dir(machine.root) == []

        self.on_subvolume(machine, check)

    def test_bind(self, machine: Machine) -> None:
        def check(path: str) -> None:
            point = machine.folder("point", outside=True)
            machine.host.bind(path, point, NONE)
            assert there(machine, point).identity == there(machine, path).identity
            assert machine.host.device_at(point) == there(machine, machine.device).special
            (line,) = machine.host.mounts(point)
            assert line.root.endswith("/sub")

        self.on_subvolume(machine, check)
