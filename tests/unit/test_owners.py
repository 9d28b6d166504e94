"""Giving a volume to a group, on the real machine: what a pod planted in it is never opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from csi_local.host.linux import LinuxHost
from csi_local.model.errors import SyscallFailed
from tests.hostile import make_deep, opens, planted

HOST = LinuxHost()
OURS = os.getegid()


def test_nothing_planted_is_opened(tmp_path: Path) -> None:
    special = planted(tmp_path)
    (tmp_path / "file").touch(0o600)
    with opens(*special, tmp_path / "file") as count:
        HOST.give_to_group(str(tmp_path), OURS)
        assert count() == 0
        os.close(os.open(special[0], os.O_RDONLY | os.O_NONBLOCK))
        assert count() > 0, "the watch sees what is opened"
    for path in (*special, tmp_path / "file"):
        found = path.lstat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (OURS, 0o660)


def test_nothing_planted_is_opened_to_be_taken_over(tmp_path: Path) -> None:
    special = planted(tmp_path)
    with opens(*special) as count:
        for path in special:
            HOST.set_owner(str(path), os.geteuid(), 0o400)
        assert count() == 0
    (tmp_path / "link").symlink_to(special[0])
    with pytest.raises(SyscallFailed) as caught:
        HOST.set_owner(str(tmp_path / "link"), os.geteuid(), 0o400)
    assert caught.value.errno == errno.ELOOP
    assert {stat.S_IMODE(path.lstat().st_mode) for path in special} == {0o400}


def test_links_are_given_and_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.touch(0o600)
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "dangling").symlink_to("/nowhere/at all")
    HOST.give_to_group(str(folder), OURS)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600


def test_a_tree_deeper_than_a_process_may_have_files(tmp_path: Path) -> None:
    """Also deeper than Python recurses, and than a path is long."""
    make_deep(tmp_path, 3000, width=2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    HOST.give_to_group(str(tmp_path), OURS)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    here, depth = os.open(tmp_path, os.O_RDONLY), 0
    while names := os.listdir(here):  # noqa: PTH208 (no path is that long)
        assert {stat.S_IMODE(os.stat(name, dir_fd=here).st_mode) & 0o2070 for name in names} == {0o2070}
        inner = os.open("d0", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, depth = inner, depth + 1
    os.close(here)
    assert depth == 3000
    HOST.remove_tree(str(tmp_path))
