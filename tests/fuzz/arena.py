"""Where requests may point: paths, links planted on the way to them, and what must not be touched behind the links."""

from __future__ import annotations

import hashlib
import os
import posixpath
import socket
import stat
from pathlib import Path

ODD_NAMES = ("a space", "a\ttab=", "a\nline", "\u00e9", "\\040", "quo'te\"", "n" * 255)
NAME_MAX = 255
"""Bytes in a file name (limits.h)."""
WATCHED = ("/etc", "/etc/passwd", "/etc/hostname")
"""Not ours: looked at, and pointed to from inside volumes."""


class Precious:
    """A folder of somebody else's, full of different things, none of which may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder, mode in (("dir", 0o755), ("private", 0o700), ("dir/deep", 0o2775)):
            (root / folder).mkdir(parents=True)
            (root / folder / "content").write_text(f"in {folder}")
            (root / folder / "content").chmod(0o640)
            os.chown(root / folder / "content", 12345, 23456)
            (root / folder).chmod(mode)
        (root / "file").write_text("precious")
        (root / "empty").touch(0o400)
        (root / "link").symlink_to("file")
        os.mkfifo(root / "fifo")
        self._before = self._state()

    def changes(self) -> list[str]:
        """Say what is different from the beginning."""
        now = self._state()
        names = sorted(self._before.keys() | now.keys())
        return [
            f"{name}: {self._before.get(name)} → {now.get(name)}"
            for name in names
            if self._before.get(name) != now.get(name)
        ]

    def _state(self) -> dict[str, tuple[object, ...]]:
        found = {str(path): _facts(path) for path in (self.root, *self.root.rglob("*"))}
        for path in map(Path, WATCHED):
            info = path.lstat()
            found[str(path)] = (info.st_mode, info.st_uid, info.st_gid)
        return found


def _facts(path: Path) -> tuple[object, ...]:
    info = path.lstat()
    content = ""
    if stat.S_ISREG(info.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    elif stat.S_ISLNK(info.st_mode):
        content = str(path.readlink())
    return (
        info.st_mode,
        info.st_uid,
        info.st_gid,
        info.st_nlink,
        info.st_size,
        info.st_mtime_ns,
        info.st_ctime_ns,
        content,
    )


class Arena:
    """The paths that requests may have.

    `given` are those at which something may be made or mounted, as they are written; `refused` are those that no
    driver can do anything at.
    """

    def __init__(self, root: Path, precious: Precious, pool: Path) -> None:
        self.root = root
        self.staging, self.targets = root / "staging", root / "targets"
        self.real, self.links = root / "real", root / "links"
        for folder in (self.staging, self.targets, self.real, self.links, root / "odd"):
            folder.mkdir(parents=True)
            (folder / "keep").write_text("so that nobody takes this folder for an empty target")
        self.stagings = self._make_stagings()
        self.target_paths = [self.targets / f"t{number}" for number in range(8)]
        odd = [*self._plant_things(), *self._plant_links(precious, pool)]
        odd += [root / "odd" / name for name in ODD_NAMES]
        odd += [self.staging / "s1" / "inside", self.targets / "t1" / "inside", root / "nowhere" / "x"]
        odd += [
            root / "odd" / ("n" * 256),
            Path("/proc/not-there"),
            Path("/sys/not-there"),
            Path(f"/proc/self/root{self.real}/x"),
        ]
        self.odd = [str(path) for path in odd]
        plain = [str(path) for path in (*self.stagings, *self.target_paths)]
        self.allowed = frozenset([*plain, *self.odd])
        written = [self.odd_spelling(path, number) for number, path in enumerate(plain)]
        self.given = [*plain, *self.odd, *self.odd, *written]
        self.refused = self._refused()
        self._sendable = self.allowed | frozenset(self.refused)
        self._before = self._names()

    def _make_stagings(self) -> list[Path]:
        made = [self.staging / f"s{number}" for number in range(6)]
        for path in made[:-1]:
            path.mkdir()
        return made

    def _plant_things(self) -> list[Path]:
        """Things at which nothing should be mounted."""
        things = {name: self.root / f"a-{name}" for name in ("fifo", "socket", "device", "file", "full")}
        os.mkfifo(things["fifo"])
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(things["socket"]))
        os.mknod(things["device"], stat.S_IFCHR | 0o600, os.makedev(1, 3))
        things["file"].touch()
        things["full"].mkdir()
        (things["full"] / "content").write_text("content")
        return [*things.values(), self.root / "a-file" / "below"]

    def _plant_links(self, precious: Precious, pool: Path) -> list[Path]:
        """Links as the last part of a path (which nobody may follow), and on the way (which one may)."""
        at = self.links
        last = {
            "to-dir": precious.root / "dir",
            "to-file": precious.root / "file",
            "to-empty": precious.root / "empty",
            "to-pool": pool,
            "to-nothing": at / "nothing",
            "to-itself": at / "to-itself",
        }
        for name, goal in last.items():
            (at / name).symlink_to(goal)
        (at / "way").symlink_to(self.real)
        (at / "precious").symlink_to(precious.root)
        on_the_way = ["way/x", "way/y", "to-nothing/x", "to-itself/x", "to-file/x"]
        # what is there stays where it is: these are not empty, so a driver may cover but not remove them
        on_the_way += ["precious/dir", "precious/file", "precious/link", "precious/fifo"]
        return [at / name for name in (*last, *on_the_way)]

    @staticmethod
    def odd_spelling(path: str, number: int) -> str:
        """Write a path in another way."""
        ways = (f"/{path}", f"//{path}", f"{path}/", f"{path}//", f"{path}/.", path.replace("/", "/./"))
        return ways[number % len(ways)]

    def _refused(self) -> list[str]:
        top = str(self.staging)
        dots = [f"{top}/s0/..", f"{top}/../..", f"{top}/s0/../s1", "../x", "..", "a/../b"]
        bare = ["", "relative", "a/b", "./x", "~", "\0", f"{top}/s0\0", f"{top}\0/s0"]
        long = [f"{top}/{'x' * 256}", f"{top}{'/x' * 2000}"[:4095], "/" + "x" * 4094, "/" + "\x01" * 4094]
        huge = ["/" + "x" * 4095, "/" + "\u00e9" * 2047, "/" + "\u00e9" * 2048, "/" + "x" * (1 << 16)]
        return [*dots, *bare, *long, *huge]

    def is_harmless(self, path: str) -> bool:
        """Say whether a path may be sent.

        The driver runs as root on the machine that the tests run on: a path is not harmless because a driver should
        refuse it, but because nothing of anybody's suffers from one that does not.
        """
        if not path.startswith("/") or max(map(len, path.split("/"))) > NAME_MAX:
            return True
        return path in self._sendable or self.is_given(path)

    def is_given(self, path: str) -> bool:
        """Say whether a path, however it is written, is one at which something may be made or mounted."""
        if not path.startswith("/") or ".." in path.split("/"):
            return False
        return "/" + posixpath.normpath(path).lstrip("/") in self.allowed

    def strangers(self) -> list[str]:
        """Name what has come into the arena though nobody gave such a path, and what has gone."""
        now = self._names()
        given = {str(Path(path).parent.resolve() / Path(path).name) for path in self.allowed if "to-itself" not in path}
        come = [f"new: {name}" for name in now - self._before if name not in given]
        gone = [f"gone: {name}" for name in self._before - now if name not in given]
        return sorted(come + gone)

    def _names(self) -> set[str]:
        return {str(path) for path in self.root.rglob("*")}
