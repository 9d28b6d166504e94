"""Copies of images, trees and subvolumes, and freezing, on the real machine and in memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from csi_local.model.quantity import MIB
from csi_local.model.volume import Filesystem
from tests.contract.asking import NONE, attach, fails, format_it, there, volume

if TYPE_CHECKING:
    from tests.contract.conftest import Machine


class Stop(Exception):
    """Somebody wants the copy to end."""


def on() -> None:
    """Let the copy go on."""


def stop() -> None:
    """End the copy."""
    raise Stop


class TestImages:
    @pytest.mark.parametrize("share", [True, False])
    @pytest.mark.parametrize("thick", [True, False])
    def test_a_copy_has_the_size_and_the_filesystem(self, machine: Machine, *, share: bool, thick: bool) -> None:
        image, copy = machine.image("disk.img", 32 * MIB, thick=thick), f"{machine.root}/copy.img"
        with attach(machine, image) as loop:
            format_it(machine, loop.path)
        if share:
            machine.host.clone_image(image, copy)
        else:
            machine.host.copy_image(image, copy, on)
        machine.host.sync_file(copy)
        assert there(machine, copy).size == 32 * MIB
        assert machine.host.probe(copy) == machine.host.probe(image)
        assert there(machine, copy).identity != there(machine, image).identity

    def test_a_clone_can_be_mounted_beside_its_source(self, machine: Machine) -> None:
        with volume(machine) as (image, point, _):
            machine.host.replace_file(f"{point}/marker", b"then")
            machine.host.sync_filesystem(point)
            machine.host.freeze(point)
            machine.host.clone_image(image, copy := f"{machine.root}/copy.img")
            assert machine.host.thaw(point)
            machine.host.replace_file(f"{point}/marker", b"now")
            other = machine.folder("other", outside=True)
            with attach(machine, copy) as loop:
                machine.host.mount(loop.path, other, "ext4", NONE, ())
            assert machine.host.read_file(f"{other}/marker") == b"then"
            assert machine.host.read_file(f"{point}/marker") == b"now"

    @pytest.mark.parametrize("share", [True, False])
    def test_what_is_there_is_not_written_over(self, machine: Machine, *, share: bool) -> None:
        image, taken = machine.image("disk.img", MIB), machine.file("taken")
        with fails(errno.EEXIST):
            machine.host.clone_image(image, taken) if share else machine.host.copy_image(image, taken, on)
        assert machine.host.read_file(taken) == b"data"

    def test_no_source(self, machine: Machine) -> None:
        for copy in (machine.host.clone_image, lambda a, b: machine.host.copy_image(a, b, on)):
            with fails(errno.ENOENT):
                copy(f"{machine.root}/none", f"{machine.root}/copy")
            assert machine.host.stat(f"{machine.root}/copy") is None

    def test_a_copy_can_be_ended(self, machine: Machine) -> None:
        image = machine.image("disk.img", 32 * MIB)
        with attach(machine, image) as loop:
            format_it(machine, loop.path)
        with pytest.raises(Stop):
            machine.host.copy_image(image, f"{machine.root}/copy", stop)

    def test_another_filesystem_is_out_of_reach(self, machine: Machine) -> None:
        image = machine.image("disk.img", MIB)
        with fails(errno.EXDEV, errno.EOPNOTSUPP):
            machine.host.clone_image(image, f"{machine.outside}/copy")
        machine.host.copy_image(image, f"{machine.outside}/copied", on)
        assert there(machine, f"{machine.outside}/copied").size == MIB


class TestTrees:
    @pytest.mark.parametrize("share", [True, False])
    def test_a_tree(self, machine: Machine, *, share: bool) -> None:
        source, target = machine.folder("source"), machine.folder("target")
        machine.host.make_dir(f"{source}/inner", mode=0o750)
        machine.host.replace_file(f"{source}/inner/file", b"data")
        machine.link(f"{source}/link", "/etc/passwd")
        machine.host.set_mode(source, 0o1755)
        machine.host.copy_tree(source, target, share=share, proceed=on)
        assert machine.host.read_file(f"{target}/inner/file") == b"data"
        for name in ("", "/inner", "/inner/file", "/link"):
            old, new = there(machine, source + name), there(machine, target + name)
            assert (new.kind, new.mode, new.size if name == "/inner/file" else 0) == (
                old.kind,
                old.mode,
                4 if name == "/inner/file" else 0,
            )

    def test_a_copy_can_be_ended(self, machine: Machine) -> None:
        source, target = machine.folder("source"), machine.folder("target")
        machine.host.replace_file(f"{source}/file", b"data")
        with pytest.raises(Stop):
            machine.host.copy_tree(source, target, share=True, proceed=stop)

    def test_no_tree(self, machine: Machine) -> None:
        folder, file = machine.folder("folder"), machine.file("file")
        for source, target, number in (
            (f"{machine.root}/none", folder, errno.ENOENT),
            (folder, f"{machine.root}/none", errno.ENOENT),
            (file, folder, errno.ENOTDIR),
            (folder, file, errno.ENOTDIR),
        ):
            with fails(number):
                machine.host.copy_tree(source, target, share=True, proceed=on)

    def test_to_another_filesystem(self, machine: Machine) -> None:
        source, target = machine.folder("source"), machine.folder("target", outside=True)
        machine.host.replace_file(f"{source}/file", b"data")
        machine.host.copy_tree(source, target, share=False, proceed=on)
        assert machine.host.read_file(f"{target}/file") == b"data"


class TestSubvolumes:
    def test_a_snapshot_stays_as_it_was(self, machine: Machine) -> None:
        source, target = f"{machine.root}/source", f"{machine.root}/target"
        if machine.filesystem is not Filesystem.BTRFS:
            machine.host.make_dir(source)
            with fails(errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
                machine.host.snapshot_subvolume(source, target, read_only=True)
            return
        machine.host.make_subvolume(source)
        machine.host.replace_file(f"{source}/file", b"then")
        machine.host.snapshot_subvolume(source, target, read_only=True)
        machine.host.replace_file(f"{source}/file", b"now")
        assert machine.host.read_file(f"{target}/file") == b"then"
        assert there(machine, target).device != there(machine, source).device
        machine.host.snapshot_subvolume(target, f"{machine.root}/again", read_only=False)
        machine.host.replace_file(f"{machine.root}/again/file", b"later")
        with fails(errno.EEXIST):
            machine.host.snapshot_subvolume(source, target, read_only=True)

    def test_a_group_of_them_is_removed(self, machine: Machine) -> None:
        if machine.filesystem is not Filesystem.BTRFS:
            return
        group = machine.folder("group")
        machine.host.make_subvolume(f"{machine.root}/source")
        machine.host.replace_file(f"{machine.root}/source/file", b"then")
        for name in ("a", "b"):
            machine.host.make_dir(f"{group}/{name}")
            machine.host.snapshot_subvolume(f"{machine.root}/source", f"{group}/{name}/data", read_only=True)
        machine.host.remove_tree(group)
        assert machine.host.stat(group) is None


class TestFreezing:
    def test_twice(self, machine: Machine) -> None:
        with volume(machine) as (_, point, _loop):
            machine.host.freeze(point)
            with fails(errno.EBUSY):
                machine.host.freeze(point)
            assert machine.host.thaw(point)
            assert not machine.host.thaw(point)

    def test_what_is_not_there(self, machine: Machine) -> None:
        for call in (machine.host.freeze, machine.host.sync_filesystem, machine.host.sync_file):
            with fails(errno.ENOENT):
                call(f"{machine.root}/none")
