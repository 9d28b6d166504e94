"""Removing what pods leave in their volumes, on the real kernel: nothing that they can make stays for ever."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest

from csi_local.host.linux import LinuxHost
from csi_local.model.errors import SyscallFailed
from tests import observe
from tests.hostile import make_deep

pytestmark = pytest.mark.root
HOST = LinuxHost()
_FSGETXATTR, _FSSETXATTR, _PROJINHERIT = 0x801C581F, 0x401C5820, 0x200
_FSXATTR = struct.Struct("=5I8s")


@pytest.fixture
def volume(filesystem: str, place: Path) -> Path:
    """Give the files of a directory volume in a scratch filesystem: on a btrfs they are a subvolume."""
    (place / "volume").mkdir()
    data = place / "volume" / "data"
    if filesystem == "btrfs":
        HOST.make_subvolume(str(data))
    else:
        data.mkdir()
    return data


def removed(data: Path) -> bool:
    HOST.remove_tree(str(data.parent))
    return not data.parent.exists()


def chattr(flags: str, *paths: Path) -> None:
    subprocess.run(["/usr/bin/chattr", flags, *paths], check=True)


def plain(data: Path) -> Path:
    """Make a directory that is no subvolume, whatever the filesystem."""
    inner = data.parent / "plain"
    inner.mkdir()
    return inner


def test_ten_thousand_levels(volume: Path) -> None:
    make_deep(plain(volume), 10_000)
    assert removed(volume)


@pytest.mark.parametrize("flag", ["+i", "+a"])
def test_what_is_protected(volume: Path, flag: str) -> None:
    for top in (volume, plain(volume)):
        (top / "inner" / "deep" / "deeper").mkdir(parents=True)
        for path in (top, top / "inner", top / "inner" / "deep", top / "inner" / "deep" / "deeper"):
            (path / "file").touch()
            os.mkfifo(path / "pipe")
            (path / "link").symlink_to("/etc")
            chattr(flag, path / "file")
        for path in (top / "inner" / "deep" / "deeper", top / "inner" / "deep", top / "inner", top):
            chattr(flag, path)
    assert removed(volume)


@pytest.mark.parametrize("filesystem", ["xfs"])
def test_what_is_in_other_quota_projects(volume: Path) -> None:
    """A rename into a directory that hands its project down is refused for what is in another."""
    (volume / "inner" / "deep" / "deeper").mkdir(parents=True)
    for number, path in enumerate((volume, volume / "inner", volume / "inner" / "deep"), start=7):
        fd = os.open(path, os.O_RDONLY)
        found = bytearray(_FSXATTR.size)
        fcntl.ioctl(fd, _FSGETXATTR, found)
        flags, extent, extents, _, cow, pad = _FSXATTR.unpack(found)
        fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(flags | _PROJINHERIT, extent, extents, number, cow, pad))
        os.close(fd)
    assert removed(volume)


@pytest.mark.parametrize("filesystem", ["btrfs"])
class TestSubvolumes:
    """Whoever owns a directory of a btrfs may make some in it."""

    def test_inside_each_other(self, volume: Path) -> None:
        for top in (volume, plain(volume)):
            for name in ("one", "one/two", "one/two/three", "other"):
                HOST.make_subvolume(str(top / name))
                (top / name / "file").write_bytes(b"x")
            (top / "other" / "folder" / "deep").mkdir(parents=True)
            HOST.make_subvolume(str(top / "other" / "folder" / "deep" / "inner"))
        assert removed(volume)

    def test_that_are_protected(self, volume: Path) -> None:
        for top in (volume, plain(volume)):
            for name in ("one", "one/two"):
                HOST.make_subvolume(str(top / name))
            for path in (top / "one" / "two", top / "one", top):
                chattr("+i", path)
            if top == volume:
                subprocess.run(["/usr/bin/btrfs", "property", "set", "-f", top / "one", "ro", "true"], check=True)
        assert removed(volume)

    def test_more_than_are_told_at_once(self, volume: Path) -> None:
        for number in range(60):
            HOST.make_subvolume(str(volume / f"{number:02}{'x' * 200}"))
        assert removed(volume)

    def test_deeper_than_a_path_is_long(self, volume: Path) -> None:
        inner = volume / "aside"
        HOST.make_subvolume(str(inner))
        for _ in range(30):
            outer = volume / "outer"
            outer.mkdir()
            inner.rename(outer / ("x" * 200))
            outer.rename(inner)
        assert removed(volume)

    def test_what_is_mounted_in_one_stays(self, volume: Path) -> None:
        HOST.make_subvolume(str(volume / "inner"))
        (volume / "inner" / "point").mkdir()
        observe.mount_bind(Path("/etc"), volume / "inner" / "point")
        with pytest.raises(SyscallFailed):
            HOST.remove_tree(str(volume.parent))
        assert (volume / "inner" / "point" / "passwd").exists()
