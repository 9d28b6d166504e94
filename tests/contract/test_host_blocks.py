"""What the driver may rely on, asked of every host: images, loop devices and what is on them."""

from __future__ import annotations

import errno
import uuid
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from csi_local.model.errors import CommandFailed, FailedPrecondition, HostError
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import Filesystem
from tests.contract.asking import NONE, attach, fails, format_it, there, volume

if TYPE_CHECKING:
    from tests.contract.conftest import Machine


class TestImages:
    @pytest.mark.parametrize("thick", [True, False])
    def test_make(self, machine: Machine, *, thick: bool) -> None:
        image = machine.image("image", 8 * MIB, thick=thick)
        info = there(machine, image)
        assert (info.size, info.allocated >= 8 * MIB, info.mode) == (8 * MIB, thick, 0o600)
        with fails(errno.EEXIST):
            machine.image("image", 8 * MIB, thick=thick)

    @pytest.mark.parametrize("thick", [True, False])
    def test_resize(self, machine: Machine, *, thick: bool) -> None:
        image = machine.image("image", 8 * MIB, thick=thick)
        for size in (16 * MIB, 4 * MIB):
            machine.host.resize_image(image, Bytes(size), thick=thick)
            info = there(machine, image)
            assert (info.size, info.allocated >= 16 * MIB) == (16 * MIB, thick)

    def test_a_thin_image_can_become_thick(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        machine.host.resize_image(image, Bytes(8 * MIB), thick=True)
        assert there(machine, image).allocated >= 8 * MIB

    def test_more_than_there_is_room_for(self, machine: Machine) -> None:
        with fails(errno.ENOSPC):
            machine.image("thick", 4 << 30, thick=True)
        machine.image("thin", 4 << 30)
        image = machine.image("image", 8 * MIB, thick=True)
        with fails(errno.ENOSPC):
            machine.host.resize_image(image, Bytes(4 << 30), thick=True)
        assert there(machine, image).size == 8 * MIB

    def test_resize_what_is_no_image(self, machine: Machine) -> None:
        link = machine.link(f"{machine.root}/link", machine.file("file"))
        for wrong, number in (
            (f"{machine.root}/none", errno.ENOENT),
            (machine.root, errno.EISDIR),
            (link, errno.ELOOP),
        ):
            with fails(number):
                machine.host.resize_image(wrong, Bytes(MIB), thick=False)


class TestLoops:
    def test_gone_with_the_context(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        with attach(machine, image) as loop:
            assert loop.backing == there(machine, image).identity
            assert (loop.autoclear, loop.read_only) == (True, False)
            assert there(machine, loop.path).special == loop.device
            assert machine.host.loops(image) == [loop]
            assert loop in machine.host.all_loops()
            assert machine.host.device_size(loop.path) == 8 * MIB
        assert machine.host.loops(image) == []
        assert loop.backing not in [other.backing for other in machine.host.all_loops()]

    def test_the_kernel_may_choose_the_sector_size(self, machine: Machine) -> None:
        with attach(machine, machine.image("image", 8 * MIB), sector_size=0) as loop:
            assert machine.host.device_size(loop.path) == 8 * MIB

    def test_kept(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        with attach(machine, image, keep=True) as loop:
            assert not loop.autoclear
        assert machine.host.loops(image) == [loop]
        machine.host.detach(loop)
        assert machine.host.loops(image) == []
        machine.host.detach(loop)

    def test_the_one_it_has_is_taken(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        with attach(machine, image) as first:
            with attach(machine, image) as second:
                assert second == first
            assert machine.host.loops(image) == [first]

    def test_read_only_beside_writable(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        with attach(machine, image, keep=True, read_only=True) as reading, attach(machine, image, keep=True) as writing:
            assert (reading.read_only, writing.read_only) == (True, False)
            assert reading.device != writing.device
            assert machine.host.loops(image) == [writing, reading]
        for loop in (reading, writing):
            machine.host.detach(loop)

    def test_a_renamed_image_keeps_its_device(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        with attach(machine, image) as loop:
            machine.host.rename(image, f"{image}-2")
            assert machine.host.loops(f"{image}-2") == [loop]
            assert machine.host.loops(image) == []

    def test_mounted_it_stays_until_the_last_mount_goes(self, machine: Machine) -> None:
        with volume(machine) as (image, point, loop):
            other = machine.folder("other", outside=True)
            machine.host.bind(point, other, NONE)
            assert machine.host.loops(image) == [loop]
            machine.host.unmount(point)
            assert machine.host.loops(image) == [loop]
            machine.host.unmount(other)
            assert machine.host.loops(image) == []

    def test_in_use_it_is_busy_and_goes_with_its_user(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        with attach(machine, image, keep=True) as loop:
            with fails(errno.EBUSY):
                machine.host.detach(loop)
            assert [one.device for one in machine.host.loops(image)] == [loop.device]
        assert machine.host.loops(image) == []

    def test_refresh(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        with attach(machine, image) as loop:
            machine.host.resize_image(image, Bytes(16 * MIB), thick=False)
            assert machine.host.device_size(loop.path) == 8 * MIB
            machine.host.refresh(loop)
            assert machine.host.device_size(loop.path) == 16 * MIB

    def test_what_cannot_be_attached(self, machine: Machine) -> None:
        image = machine.image("image", 8 * MIB)
        link = machine.link(f"{machine.root}/link", image)
        for wrong, number in (
            (f"{machine.root}/none", errno.ENOENT),
            (machine.root, errno.EISDIR),
            (link, errno.ELOOP),
        ):
            with fails(number), attach(machine, wrong):
                pass
            assert machine.host.loops(f"{machine.root}/none") == []
        with fails(errno.EINVAL), attach(machine, image, sector_size=1000):
            pass
        assert machine.host.loops(image) == []

    def test_size_of_what_is_no_device(self, machine: Machine) -> None:
        with fails(errno.ENOTTY):
            machine.host.device_size(machine.file("file"))
        with fails(errno.ENOENT):
            machine.host.device_size(f"{machine.root}/none")


class TestProbe:
    def test_nothing(self, machine: Machine) -> None:
        image = machine.image("image", 32 * MIB)
        assert machine.host.probe(image) is None
        with attach(machine, image) as loop:
            assert machine.host.probe(loop.path) is None
            assert machine.host.first_data(loop.path) is None

    @pytest.mark.parametrize(("filesystem", "size"), [("ext4", 32), ("xfs", 320), ("btrfs", 160)])
    def test_what_was_made(self, machine: Machine, filesystem: str, size: int) -> None:
        image, identity = machine.image("image", size * MIB), str(uuid.uuid4())
        with attach(machine, image) as loop:
            format_it(machine, loop.path, Filesystem(filesystem), label="a-label", uuid=identity)
            for path in (loop.path, image):
                signature = machine.host.probe(path)
                assert signature is not None
                assert (signature.type, signature.uuid, signature.label) == (filesystem, identity, "a-label")
                found = machine.host.filesystem_size(path, Filesystem(filesystem))
                assert 0 <= size * MIB - found < MIB
            assert machine.host.first_data(loop.path) is not None

    def test_an_error_is_not_nothing(self, machine: Machine) -> None:
        with fails(errno.ENOENT):
            machine.host.probe(f"{machine.root}/none")
        with fails(errno.EISDIR):
            machine.host.probe(machine.root)

    def test_data_without_a_signature(self, machine: Machine) -> None:
        image = machine.image("image", 32 * MIB)
        machine.scribble(image, 5 * MIB)
        with attach(machine, image) as loop:
            assert machine.host.probe(loop.path) is None
            assert machine.host.first_data(loop.path) == 5 * MIB
        with fails(errno.ENOTTY):
            machine.host.first_data(image)

    def test_size_of_a_filesystem_that_is_not_there(self, machine: Machine) -> None:
        image = machine.image("image", 32 * MIB)
        with pytest.raises(FailedPrecondition):
            machine.host.filesystem_size(image, Filesystem.EXT4)
        with attach(machine, image) as loop:
            format_it(machine, loop.path)
        with pytest.raises(FailedPrecondition):
            machine.host.filesystem_size(image, Filesystem.XFS)
        with fails(errno.ENOENT):
            machine.host.filesystem_size(f"{machine.root}/none", Filesystem.EXT4)

    def test_in_use(self, machine: Machine) -> None:
        assert machine.host.in_use(machine.file("file")) == "it is not a block device"
        assert machine.host.in_use(f"{machine.root}/none") == "it is not a block device"
        with attach(machine, machine.image("image", 32 * MIB)) as loop:
            assert machine.host.in_use(loop.path) == ""
        with volume(machine) as (_, point, mounted):
            assert machine.host.in_use(mounted.path) == f"it is mounted on {point}"


class TestMakeFilesystem:
    def test_thick_keeps_its_blocks(self, machine: Machine) -> None:
        image = machine.image("image", 64 * MIB, thick=True)
        with attach(machine, image) as loop:
            format_it(machine, loop.path, thick=True)
        assert there(machine, image).allocated >= 64 * MIB

    def test_over_an_older_one(self, machine: Machine) -> None:
        image = machine.image("image", 160 * MIB)
        with attach(machine, image) as loop:
            format_it(machine, loop.path, Filesystem.EXT4)
            format_it(machine, loop.path, Filesystem.BTRFS)
            signature = machine.host.probe(loop.path)
            assert signature is not None
            assert signature.type == "btrfs"

    @pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
    def test_again_with_the_same_uuid(self, machine: Machine, filesystem: str) -> None:
        """What a driver does that died after mkfs."""
        identity = str(uuid.uuid4())
        with attach(machine, machine.image("image", 320 * MIB)) as loop:
            for _ in range(2):
                format_it(machine, loop.path, Filesystem(filesystem), uuid=identity)
            signature = machine.host.probe(loop.path)
            assert signature is not None
            assert signature.uuid == identity

    def test_refused(self, machine: Machine) -> None:
        with attach(machine, machine.image("small", 16 * MIB)) as loop, pytest.raises(CommandFailed):
            format_it(machine, loop.path, Filesystem.XFS)
        with pytest.raises(HostError):
            format_it(machine, f"{machine.root}/none")
        with volume(machine) as (_, _, mounted), pytest.raises(CommandFailed):
            format_it(machine, mounted.path)


class TestGrow:
    def test_unmounted(self, machine: Machine) -> None:
        image = machine.image("image", 32 * MIB)
        with attach(machine, image) as loop:
            format_it(machine, loop.path)
            machine.host.grow_unmounted(loop.path)
            machine.host.resize_image(image, Bytes(64 * MIB), thick=False)
            machine.host.refresh(loop)
            machine.host.grow_unmounted(loop.path)
            assert machine.host.filesystem_size(loop.path, Filesystem.EXT4) == 64 * MIB

    def test_unmounted_but_mounted(self, machine: Machine) -> None:
        with volume(machine) as (_, _, loop), pytest.raises(FailedPrecondition):
            machine.host.grow_unmounted(loop.path)

    def test_only_ext4_unmounted(self, machine: Machine) -> None:
        with attach(machine, machine.image("image", 320 * MIB)) as loop:
            format_it(machine, loop.path, Filesystem.XFS)
            with pytest.raises(FailedPrecondition):
                machine.host.grow_unmounted(loop.path)

    @pytest.mark.parametrize(("filesystem", "size"), [("xfs", 320), ("btrfs", 256)])
    def test_mounted(self, machine: Machine, filesystem: str, size: int) -> None:
        kind, point = Filesystem(filesystem), machine.folder("point", outside=True)
        image = machine.image("image", size * MIB)
        with attach(machine, image) as loop:
            format_it(machine, loop.path, kind)
            machine.host.mount(loop.path, point, kind, NONE, ())
            assert machine.host.grow_mounted(point, kind, loop.path) == size * MIB
            before = machine.host.room(point)
            machine.host.resize_image(image, Bytes(2 * size * MIB), thick=False)
            machine.host.refresh(loop)
            assert machine.host.grow_mounted(point, kind, loop.path) == 2 * size * MIB
            assert machine.host.room(point).total > before.total + size * MIB * 0.9
            machine.host.unmount(point)
            assert machine.host.filesystem_size(image, kind) == 2 * size * MIB

    def test_a_btrfs_is_not_resized_to_less_than_256_mib(self, machine: Machine) -> None:
        point, image = machine.folder("point", outside=True), machine.image("image", 160 * MIB)
        with attach(machine, image) as loop:
            format_it(machine, loop.path, Filesystem.BTRFS)
            machine.host.mount(loop.path, point, "btrfs", NONE, ())
            for size in (160, 200):
                machine.host.resize_image(image, Bytes(size * MIB), thick=False)
                machine.host.refresh(loop)
                with pytest.raises(CommandFailed):
                    machine.host.grow_mounted(point, Filesystem.BTRFS, loop.path)

    def test_mounted_ext4_or_a_clear_refusal(self, machine: Machine) -> None:
        with volume(machine) as (image, point, loop):
            machine.host.resize_image(image, Bytes(64 * MIB), thick=False)
            machine.host.refresh(loop)
            said = machine.host.grows_mounted(loop.path, Filesystem.EXT4)
            with nullcontext() if said else pytest.raises(FailedPrecondition):
                assert machine.host.grow_mounted(point, Filesystem.EXT4, loop.path) == 64 * MIB
