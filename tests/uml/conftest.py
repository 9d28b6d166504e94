"""Disks for the tests under User-Mode Linux."""

from __future__ import annotations

import subprocess
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.uml import linux

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MKFS_XFS = ("mkfs.xfs", "-q", "-K")
MKFS_EXT4 = ("mkfs.ext4", "-q", "-E", "nodiscard")
MKFS_BTRFS = ("mkfs.btrfs", "-q", "-K")
MKFS_EXT4_PRJQUOTA = ("mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota,nodiscard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A filesystem under a pool, that can limit directories."""

    mkfs: tuple[str, ...]
    options: str = ""


GROUNDS = {
    "xfs": Ground(mkfs=MKFS_XFS, options="prjquota"),
    "ext4": Ground(mkfs=MKFS_EXT4_PRJQUOTA, options="prjquota"),
    "btrfs": Ground(mkfs=MKFS_BTRFS),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test of this tier under any other kernel."""
    if item.get_closest_marker("uml") and "User Mode Linux" not in Path("/proc/cpuinfo").read_text():
        pytest.fail("this test runs inside User-Mode Linux: make test-kernel", pytrace=False)


class Disks:
    """The disks after the first: blank when handed out, and to be given back."""

    def __init__(self) -> None:
        paths = sorted(Path("/dev").glob("ubd?"))[1:]
        self._free = deque((path, True) for path in paths)

    def take(self) -> Path:
        """Return a blank disk; those never written to come first, because blanking takes seconds."""
        path, blank = self._free.popleft()
        if not blank:
            subprocess.run(["blkdiscard", str(path)], check=True)  # noqa: S607
        return path

    def take_any(self) -> Path:
        """Return the disk that was given back last, with whatever is on it."""
        path, _ = self._free.pop()
        return path

    def give_back(self, path: Path) -> None:
        """Let others have it, in their turn."""
        self._free.append((path, False))


@pytest.fixture(scope="session")
def disks() -> Disks:
    """Know all disks."""
    return Disks()


@pytest.fixture
def disk(disks: Disks) -> Iterator[Path]:
    """Lend one blank disk."""
    path = disks.take()
    yield path
    disks.give_back(path)


@contextmanager
def mounted(device: Path, options: str = "") -> Iterator[Path]:
    """Mount a device somewhere, and take down what stands on it in the end."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir="/tmp") as name:
        linux.mount(str(device), name, filesystem_of(device), options=options)
        try:
            yield Path(name)
        finally:
            observe.take_down(Path(name))


def make_filesystem(mkfs: Sequence[str], device: Path) -> None:
    """Run mkfs on a device."""
    subprocess.run([*mkfs, str(device)], check=True, capture_output=True)


def filesystem_of(device: Path) -> str:
    """Return what blkid sees on a device, "" for nothing."""
    return _probed(device, "TYPE")


def uuid_of(device: Path) -> str:
    """Return the UUID of the filesystem on a device or in an image."""
    return _probed(device, "UUID")


def _probed(device: Path, tag: str) -> str:
    argv = ["blkid", "--probe", "--match-tag", tag, "--output", "value", str(device)]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout.strip()


def preloaded(folder: Path, code: str) -> dict[str, str]:
    """Return an environment in which every Python runs this code at its start (https://docs.python.org/3/library/site.html)."""
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}
