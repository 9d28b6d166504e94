"""Copies of trees on the real kernel: everything is kept, and nothing outside is ever opened."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from pathlib import Path

import pytest

from csi_local.host.linux import LinuxHost
from csi_local.host.trees import _DEEPEST
from csi_local.model.errors import FailedPrecondition
from tests import observe
from tests.observe import MIB

pytestmark = pytest.mark.root
HOST = LinuxHost()
SECRET = b"root:x:0:0"
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (0x01, 7, 2**32 - 1),
        (0x02, 5, 1234),
        (0x04, 4, 2**32 - 1),
        (0x10, 5, 2**32 - 1),
        (0x20, 0, 2**32 - 1),
    )
)
"""user::rwx, user:1234:r-x, group::r--, mask::r-x, other::--- (linux/posix_acl_xattr.h)."""


@pytest.fixture
def trees(place: Path) -> tuple[Path, Path]:
    """Give a source and an empty target."""
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    return source, target


def copy(trees: tuple[Path, Path]) -> None:
    source, target = trees
    share = HOST.abilities(str(source)).reflink
    HOST.copy_tree(str(source), str(target), share=share, proceed=lambda: None)


def seen(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    times = (found.st_mtime_ns, found.st_atime_ns)
    what = (found.st_mode, found.st_uid, found.st_gid, size, found.st_nlink, found.st_rdev)
    extended = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    link = path.readlink() if path.is_symlink() else None
    return (*what, times, extended, link)


def test_everything_is_kept(trees: tuple[Path, Path]) -> None:
    source, target = trees
    for name, mode in (("plain", 0o640), ("suid", 0o4755), ("open", 0o666), ("none", 0o000)):
        (source / name).write_bytes(name.encode() * 5000)
        os.chown(source / name, 1000, 2000)
        (source / name).chmod(mode)
    (source / "empty").touch()
    (source / "capable").write_bytes(b"x")
    os.setxattr(source / "capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(source / "capable", "user.colour", b"red")
    (source / "inner" / "deep").mkdir(parents=True)
    (source / "inner").chmod(0o2775)
    os.chown(source / "inner", 0, 3000)
    os.setxattr(source / "inner", "system.posix_acl_default", ACL)
    (source / "inner" / "guarded").write_bytes(b"x")
    os.setxattr(source / "inner" / "guarded", "system.posix_acl_access", ACL)
    os.link(source / "plain", source / "inner" / "deep" / "again")
    (source / "dangling").symlink_to("/nowhere/at all")
    os.mkfifo(source / "pipe", 0o620)
    os.mknod(source / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    (source / "näme\n with ☃").write_bytes(b"x")
    os.utime(source / "plain", ns=(1_000_000_001, 2_000_000_002))
    os.utime(source / "dangling", ns=(3, 4), follow_symlinks=False)
    os.utime(source / "inner", ns=(5, 6))
    paths = sorted(path.relative_to(source) for path in source.rglob("*"))
    before = {path: seen(source / path) for path in paths}
    copy(trees)
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == paths
    for path in paths:
        after = seen(target / path)
        assert after[:6] == before[path][:6], path
        assert after[6][0] == before[path][6][0], path  # type: ignore[index]
        assert after[7:] == before[path][7:], path
    assert (target / "plain").stat().st_ino == (target / "inner/deep/again").stat().st_ino
    assert (target / "plain").read_bytes() == b"plain" * 5000


@pytest.mark.parametrize("filesystem", ["btrfs"])
def test_files_of_several_names_in_subvolumes(trees: tuple[Path, Path]) -> None:
    """Each subvolume counts its files from the same number."""
    source, target = trees
    for name in ("first", "second"):
        HOST.make_subvolume(str(source / name))
        (source / name / "one").write_text(name)
        os.link(source / name / "one", source / name / "two")
    assert (source / "first/one").stat().st_ino == (source / "second/one").stat().st_ino
    copy(trees)
    for name in ("first", "second"):
        assert (target / name / "one").read_text() == (target / name / "two").read_text() == name
        assert (target / name / "one").stat().st_nlink == 2


def test_holes_stay_holes(trees: tuple[Path, Path]) -> None:
    source, target = trees
    with (source / "sparse").open("wb") as file:
        file.seek(512 * MIB)
        file.write(b"end")
    copy(trees)
    assert (target / "sparse").stat().st_size == 512 * MIB + 3
    assert observe.allocated(target / "sparse") < MIB


def test_links_lead_nowhere(trees: tuple[Path, Path]) -> None:
    source, target = trees
    outside = source.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (source / "to-folder").symlink_to(outside)
    (source / "to-file").symlink_to(outside / "secret")
    copy(trees)
    assert (target / "to-folder").is_symlink()
    assert (target / "to-file").is_symlink()


def test_what_is_mounted_inside_is_not_part_of_it(trees: tuple[Path, Path]) -> None:
    source, target = trees
    outside = source.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (source / "mounted").mkdir()
    observe.mount_bind(outside, source / "mounted")
    copy(trees)
    assert list((target / "mounted").iterdir()) == []


def test_a_pod_that_exchanges_things_meanwhile(trees: tuple[Path, Path]) -> None:
    """Directories become links to the outside, and back, as fast as one can rename them."""
    source, target = trees
    outside = source.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    for number in range(30):
        (source / f"d{number}").mkdir()
        (source / f"d{number}" / "file").write_bytes(b"harmless")
    (source / "file").write_bytes(b"harmless")
    (source / "link").symlink_to(outside)
    (source / "to-file").symlink_to(outside / "file")
    done = threading.Event()

    def exchange() -> None:
        number = 0
        while not done.is_set():
            number = (number + 1) % 30
            for name, trap in ((f"d{number}", "link"), ("file", "to-file")):
                (source / name).rename(source / "aside")
                (source / trap).rename(source / name)
                (source / name).rename(source / trap)
                (source / "aside").rename(source / name)

    pod = threading.Thread(target=exchange)
    pod.start()
    try:
        for number in range(20):
            (target / str(number)).mkdir()
            copy((source, target / str(number)))
    finally:
        done.set()
        pod.join()
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink() and not any(above.is_symlink() for above in path.parents):
            assert path.read_bytes() == b"harmless"


def test_too_deep_a_tree_is_refused(trees: tuple[Path, Path]) -> None:
    source, _ = trees
    before = len(list(Path("/proc/self/fd").iterdir()))
    inner = os.open(source, os.O_RDONLY)
    for _ in range(_DEEPEST + 2):
        os.mkdir("d", dir_fd=inner)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = deeper
    os.close(inner)
    with pytest.raises(FailedPrecondition, match="inside each other"):
        copy(trees)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    HOST.remove_tree(str(source))
