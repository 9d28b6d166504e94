"""What a pod may leave in its volume: directories deeper than a path can name, and what an open does something to."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_IN_OPEN = 0x20
"""inotify(7)."""


def make_deep(top: Path, depth: int, *, width: int = 1) -> None:
    """Make *depth* levels below *top*, each with *width* directories, of which the first has the next level in it."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        for number in range(width):
            os.mkdir(f"d{number}", 0o700, dir_fd=here)
        inner = os.open("d0", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def planted(folder: Path) -> list[Path]:
    """Make one of everything that an open does something to, for nobody but its owner."""
    pipe, door = folder / "pipe", folder / "socket"
    os.mkfifo(pipe, 0o600)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(door))
    door.chmod(0o600)
    made = [pipe, door]
    if os.geteuid() == 0:
        os.mknod(folder / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        made.append(folder / "device")
    return made


@contextmanager
def opens(*paths: Path) -> Iterator[Callable[[], int]]:
    """Tell how much was heard since of opens of *paths*; one with O_PATH is none."""
    watch = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    for path in paths:
        assert _LIBC.inotify_add_watch(watch, os.fsencode(path), _IN_OPEN) >= 0

    def heard() -> int:
        try:
            return len(os.read(watch, 1 << 16))
        except BlockingIOError:
            return 0

    yield heard
    os.close(watch)
