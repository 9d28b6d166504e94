"""What the driver may rely on, asked of every host: the one in memory must not be kinder than the kernel. Files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from csi_local.model.errors import Busy
from csi_local.model.observed import FileKind
from csi_local.model.quantity import MIB
from csi_local.model.volume import Filesystem
from tests.contract.asking import NONE, fails, there
from tests.observe import until

if TYPE_CHECKING:
    from tests.contract.conftest import Machine


class TestStat:
    def test_nothing(self, machine: Machine) -> None:
        assert machine.host.stat(f"{machine.root}/none") is None
        assert machine.host.stat(f"{machine.file('file')}/below") is None

    def test_kinds(self, machine: Machine) -> None:
        file, folder = machine.file("file"), machine.folder("folder")
        assert there(machine, file).kind is FileKind.FILE
        assert there(machine, folder).kind is FileKind.DIRECTORY
        assert there(machine, machine.link(f"{machine.root}/link", folder)).kind is FileKind.SYMLINK
        assert there(machine, machine.device).kind is FileKind.BLOCK

    def test_identity(self, machine: Machine) -> None:
        first, second = machine.file("first"), machine.file("second")
        assert there(machine, first).identity != there(machine, second).identity
        before = there(machine, first).identity
        machine.host.rename(first, f"{machine.root}/third")
        assert there(machine, f"{machine.root}/third").identity == before

    def test_birth(self, machine: Machine) -> None:
        """It stays with a directory, whatever is done to it, and is another's that takes its place."""
        folder = machine.folder("folder")
        born = there(machine, folder).born
        assert born > 0
        machine.host.make_file(f"{folder}/file")
        machine.host.set_mode(folder, 0o711)
        machine.host.rename(folder, f"{machine.root}/moved")
        assert there(machine, f"{machine.root}/moved").born == born
        assert there(machine, machine.folder("folder")).born != born

    def test_size_and_blocks(self, machine: Machine) -> None:
        assert there(machine, machine.file("file", b"x" * 10_000)).size == 10_000

    def test_through_a_link_above(self, machine: Machine) -> None:
        folder = machine.folder("folder")
        machine.host.make_file(f"{folder}/file")
        link = machine.link(f"{machine.root}/link", folder)
        assert there(machine, f"{link}/file") == there(machine, f"{folder}/file")

    def test_mount_root(self, machine: Machine) -> None:
        folder, point = machine.folder("folder"), machine.folder("point", outside=True)
        assert not there(machine, point).mount_root
        machine.host.bind(folder, point, NONE)
        assert there(machine, point).mount_root
        assert there(machine, point).identity == there(machine, folder).identity
        assert not there(machine, folder).mount_root


class TestLink:
    def test_it_is_made(self, machine: Machine) -> None:
        folder, link = machine.folder("folder"), f"{machine.root}/link"
        machine.host.make_link(link, folder)
        assert there(machine, link).kind is FileKind.SYMLINK
        assert machine.host.real_path(link) == machine.host.real_path(folder)

    def test_to_nothing(self, machine: Machine) -> None:
        link = f"{machine.root}/link"
        machine.host.make_link(link, f"{machine.root}/none")
        assert there(machine, link).kind is FileKind.SYMLINK

    def test_where_something_is(self, machine: Machine) -> None:
        with fails(errno.EEXIST):
            machine.host.make_link(machine.file("file"), "/")

    def test_a_tree_is_removed_without_what_its_links_lead_to(self, machine: Machine) -> None:
        folder, tree = machine.folder("folder"), machine.folder("tree")
        machine.host.make_file(f"{folder}/file")
        machine.host.make_link(f"{tree}/data", folder)
        machine.host.remove_tree(tree)
        assert machine.host.stat(tree) is None
        assert machine.host.stat(f"{folder}/file") is not None


class TestRealPath:
    def test_links_are_followed(self, machine: Machine) -> None:
        folder = machine.folder("folder")
        link = machine.link(f"{machine.root}/link", folder)
        machine.link(f"{folder}/inner", "file")
        machine.host.make_file(f"{folder}/file")
        assert machine.host.real_path(f"{link}/inner") == f"{folder}/file"

    def test_of_nothing(self, machine: Machine) -> None:
        assert machine.host.real_path(f"{machine.root}/none") == f"{machine.root}/none"


class TestFiles:
    def test_replace_and_read(self, machine: Machine) -> None:
        path = machine.file("file", b"one")
        machine.host.replace_file(path, b"two")
        assert machine.host.read_file(path) == b"two"
        assert machine.host.list_dir(machine.root) == ["file"]
        assert there(machine, path).mode == 0o600

    def test_read_what_is_no_file(self, machine: Machine) -> None:
        with fails(errno.ENOENT):
            machine.host.read_file(f"{machine.root}/none")
        with fails(errno.EISDIR):
            machine.host.read_file(machine.folder("folder"))
        with fails(errno.ELOOP):
            machine.host.read_file(machine.link(f"{machine.root}/link", machine.file("file")))

    def test_read_what_is_a_strangers(self, machine: Machine) -> None:
        path = machine.file("file", b"data")
        machine.host.set_owner(path, 1234, 0o600)
        with fails(errno.EPERM):
            machine.host.read_file(path)
        machine.host.set_owner(path, 0, 0o600)
        assert machine.host.read_file(path) == b"data"

    def test_replace_what_is_no_file(self, machine: Machine) -> None:
        with fails(errno.EISDIR):
            machine.host.replace_file(machine.folder("folder"), b"")
        with fails(errno.ENOENT):
            machine.host.replace_file(f"{machine.root}/none/file", b"")

    def test_replace_never_follows_a_link(self, machine: Machine) -> None:
        file = machine.file("file", b"precious")
        link = machine.link(f"{machine.root}/link", file)
        machine.host.replace_file(link, b"new")
        assert machine.host.read_file(file) == b"precious"
        assert there(machine, link).kind is FileKind.FILE
        machine.link(f"{machine.root}/planted.tmp", file)
        with fails(errno.ELOOP):
            machine.host.replace_file(f"{machine.root}/planted", b"new")
        assert machine.host.read_file(file) == b"precious"

    def test_write_new(self, machine: Machine) -> None:
        path = f"{machine.root}/new"
        machine.host.write_new_file(path, b"x" * 70_000)
        assert machine.host.read_file(path) == b"x" * 70_000
        assert there(machine, path).mode == 0o600
        with fails(errno.ENOENT):
            machine.host.write_new_file(f"{machine.root}/none/file", b"")

    def test_write_new_never_replaces(self, machine: Machine) -> None:
        file = machine.file("file", b"precious")
        for path in (file, machine.link(f"{machine.root}/link", file), machine.folder("folder")):
            with fails(errno.EEXIST):
                machine.host.write_new_file(path, b"new")
        assert machine.host.read_file(file) == b"precious"

    def test_list(self, machine: Machine) -> None:
        machine.folder("folder")
        machine.link(f"{machine.root}/link", machine.root)
        file = machine.file("file")
        assert sorted(machine.host.list_dir(machine.root)) == ["file", "folder", "link"]
        assert machine.host.list_dir(machine.root, directories_only=True) == ["folder"]
        with fails(errno.ENOTDIR):
            machine.host.list_dir(file)
        with fails(errno.ENOENT):
            machine.host.list_dir(f"{machine.root}/none")

    def test_make_directory(self, machine: Machine) -> None:
        path = f"{machine.root}/folder"
        machine.host.make_dir(path, mode=0o750)
        assert there(machine, path).mode == 0o750
        machine.host.make_dir(path, exist_ok=True)
        assert there(machine, path).mode == 0o750
        with fails(errno.EEXIST):
            machine.host.make_dir(path)
        with fails(errno.ENOENT):
            machine.host.make_dir(f"{machine.root}/none/folder")
        with fails(errno.ENOTDIR):
            machine.host.make_dir(f"{machine.file('file')}/folder")

    @pytest.mark.parametrize("exist_ok", [True, False])
    def test_make_directory_over_something_else(self, machine: Machine, *, exist_ok: bool) -> None:
        link = machine.link(f"{machine.root}/link", machine.folder("folder"))
        for path in (machine.file("file"), link):
            with fails(errno.EEXIST):
                machine.host.make_dir(path, exist_ok=exist_ok)

    def test_make_file(self, machine: Machine) -> None:
        path = f"{machine.root}/file"
        machine.host.make_file(path)
        assert (there(machine, path).mode, there(machine, path).size) == (0o600, 0)
        for taken in (path, machine.link(f"{machine.root}/dangling", f"{machine.root}/none")):
            with fails(errno.EEXIST):
                machine.host.make_file(taken)
        assert machine.host.stat(f"{machine.root}/none") is None

    def test_set_mode(self, machine: Machine) -> None:
        folder = machine.folder("folder")
        machine.host.set_mode(folder, 0o2775)
        assert there(machine, folder).mode == 0o2775
        for wrong in (machine.file("file"), machine.link(f"{machine.root}/link", folder)):
            with fails(errno.ENOTDIR, errno.ELOOP):
                machine.host.set_mode(wrong, 0o700)

    def test_remove(self, machine: Machine) -> None:
        folder, file = machine.folder("folder"), machine.file("file")
        machine.host.make_file(f"{folder}/inner")
        with fails(errno.ENOTEMPTY):
            machine.host.remove(folder)
        machine.host.remove(f"{folder}/inner")
        link = machine.link(f"{machine.root}/link", file)
        machine.host.remove(link)
        machine.host.remove(folder)
        assert machine.host.list_dir(machine.root) == ["file"]
        with fails(errno.ENOENT):
            machine.host.remove(folder)

    def test_a_mount_point_stays(self, machine: Machine) -> None:
        folder, point = machine.folder("folder"), machine.folder("point", outside=True)
        machine.host.bind(folder, point, NONE)
        for act in (machine.host.remove, machine.host.remove_tree):
            with fails(errno.EBUSY):
                act(point)
        with fails(errno.EBUSY):
            machine.host.rename(point, f"{point}-2")

    def test_sync(self, machine: Machine) -> None:
        machine.host.sync_dir(machine.root)
        with fails(errno.ENOTDIR):
            machine.host.sync_dir(machine.file("file"))
        with fails(errno.ENOENT):
            machine.host.sync_dir(f"{machine.root}/none")


class TestRemoveTree:
    def test_of_nothing_and_of_a_file(self, machine: Machine) -> None:
        machine.host.remove_tree(f"{machine.root}/none")
        machine.host.remove_tree(machine.file("file"))
        assert machine.host.list_dir(machine.root) == []

    def test_whole(self, machine: Machine) -> None:
        folder = machine.folder("folder")
        machine.host.make_dir(f"{folder}/inner")
        machine.host.replace_file(f"{folder}/inner/file", b"x")
        machine.host.remove_tree(folder)
        assert machine.host.stat(folder) is None

    def test_deeper_than_a_path_is_long(self, machine: Machine) -> None:
        inner = machine.folder("inner")
        for _ in range(60):
            machine.host.make_dir(f"{machine.root}/outer")
            machine.host.rename(inner, f"{machine.root}/outer/{'x' * 200}")
            machine.host.rename(f"{machine.root}/outer", inner)
        machine.host.remove_tree(inner)
        assert machine.host.list_dir(machine.root) == []

    def test_links_are_not_followed(self, machine: Machine) -> None:
        outside = machine.folder("outside", outside=True)
        machine.host.replace_file(f"{outside}/precious", b"x")
        folder = machine.folder("folder")
        machine.link(f"{folder}/link", outside)
        machine.host.remove_tree(folder)
        machine.host.remove_tree(machine.link(f"{machine.root}/link", outside))
        assert machine.host.list_dir(outside) == ["precious"]

    @pytest.mark.parametrize("name", ["folder", "a folder"])
    @pytest.mark.parametrize("through_a_link", [True, False])
    @pytest.mark.parametrize("depth", ["inner", "inner/deep"])
    def test_mounts_in_it_are_never_crossed(
        self, machine: Machine, name: str, depth: str, *, through_a_link: bool
    ) -> None:
        """A pod's data must not go with the folder that it was mounted in."""
        precious, folder = machine.folder("precious"), machine.folder(name, outside=True)
        machine.host.replace_file(f"{precious}/file", b"x")
        point = folder
        for part in depth.split("/"):
            point += f"/{part}"
            machine.host.make_dir(point)
        machine.host.bind(precious, point, NONE)
        above = machine.link(f"{machine.root}/link", machine.outside) if through_a_link else machine.outside
        with fails(errno.EBUSY):
            machine.host.remove_tree(f"{above}/{name}")
        assert machine.host.list_dir(precious) == ["file"]
        assert there(machine, point).mount_root


class TestRename:
    def test_moves(self, machine: Machine) -> None:
        folder, other = machine.folder("folder"), machine.folder("other")
        machine.host.make_file(f"{folder}/file")
        machine.host.rename(folder, f"{other}/moved")
        assert machine.host.list_dir(f"{other}/moved") == ["file"]
        assert machine.host.list_dir(machine.root) == ["other"]

    @pytest.mark.parametrize("taken", ["file", "folder", "link"])
    def test_never_replaces(self, machine: Machine, taken: str) -> None:
        machine.file("file"), machine.folder("folder"), machine.link(f"{machine.root}/link", "none")
        source = machine.folder("source")
        with fails(errno.EEXIST):
            machine.host.rename(source, f"{machine.root}/{taken}")
        assert machine.host.stat(source) is not None

    def test_impossible(self, machine: Machine) -> None:
        folder = machine.folder("folder")
        with fails(errno.ENOENT):
            machine.host.rename(f"{machine.root}/none", f"{machine.root}/new")
        with fails(errno.ENOENT):
            machine.host.rename(folder, f"{machine.root}/none/new")
        with fails(errno.EXDEV):
            machine.host.rename(folder, f"{machine.outside}/new")
        with fails(errno.EINVAL):
            machine.host.rename(folder, f"{folder}/inner")


class TestGroup:
    def test_the_whole_tree(self, machine: Machine) -> None:
        folder, elsewhere = machine.folder("folder"), machine.file("elsewhere")
        machine.host.make_dir(f"{folder}/inner", mode=0o700)
        machine.host.make_file(f"{folder}/inner/file")
        machine.link(f"{folder}/link", elsewhere)
        machine.host.give_to_group(folder, 4242)
        found = {name: there(machine, f"{folder}{name}") for name in ("", "/inner", "/inner/file")}
        assert {info.gid for info in found.values()} == {4242}
        assert found[""].mode & 0o2770 == 0o2770
        assert found["/inner"].mode == 0o2770
        assert found["/inner/file"].mode == 0o660
        assert there(machine, elsewhere).gid == 0

    def test_nothing_where_it_was_given_before(self, machine: Machine) -> None:
        folder = machine.folder("folder")
        machine.host.give_to_group(folder, 4242)
        machine.host.make_dir(f"{folder}/made", mode=0o700)
        machine.host.give_to_group(folder, 4242)
        assert there(machine, f"{folder}/made").mode & 0o777 == 0o700
        assert there(machine, f"{folder}/made").gid == 4242, "setgid gives what is made there to the group"

    def test_only_directories(self, machine: Machine) -> None:
        for wrong in (machine.file("file"), machine.link(f"{machine.root}/link", machine.root)):
            with fails(errno.ENOTDIR, errno.ELOOP):
                machine.host.give_to_group(wrong, 4242)


class TestLock:
    def test_one_at_a_time(self, machine: Machine) -> None:
        for path in (machine.folder("folder"), machine.file("file")):
            with machine.host.lock(path):
                with pytest.raises(Busy), machine.host.lock(path):
                    pass
                with machine.host.lock(machine.root):
                    pass
            with machine.host.lock(path):
                pass

    def test_of_nothing(self, machine: Machine) -> None:
        with fails(errno.ENOENT), machine.host.lock(f"{machine.root}/none"):
            pass


class TestRoom:
    def test_thick_images_take_it_and_give_it_back(self, machine: Machine) -> None:
        before = machine.host.room(machine.root)
        assert 0 < before.available <= before.free <= before.total
        assert not before.read_only
        machine.image("thin", 100 * MIB)
        assert machine.host.room(machine.root).free > before.free - 10 * MIB
        thick = machine.image("thick", 100 * MIB, thick=True)
        machine.host.settle(machine.root)  # btrfs counts at its next commit
        assert machine.host.room(machine.root).free <= before.free - 99 * MIB
        machine.host.remove(thick)
        machine.host.settle(machine.root)
        back = before.free - 10 * MIB
        until(lambda: machine.host.room(machine.root).free > back, "the room is back; XFS frees in the background")

    def test_inodes_where_they_are_counted(self, machine: Machine) -> None:
        assert (machine.host.room(machine.root).inodes > 0) == (machine.filesystem is not Filesystem.BTRFS)

    def test_of_nothing(self, machine: Machine) -> None:
        with fails(errno.ENOENT):
            machine.host.room(f"{machine.root}/none")
