"""The same life of a volume by the ordinary programs, each spawned: what a script, or a driver made of one, would do.

Nothing is recorded, made durable, checked or undone.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bench.kinds import Kind

MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}


class Gone(RuntimeError):
    """A device is not there any more: somebody else on this machine has detached it."""


def spawn(*argv: str) -> str:
    """Run a program to its end; return what it printed.

    Raises:
        RuntimeError: it failed; the message says how.
    """
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        error = Gone if "No such device" in done.stderr else RuntimeError
        raise error(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Programs:
    """Lifecycles of one kind of volume in *place*, a folder on the pool's filesystem."""

    kind: Kind
    size: int
    place: Path

    def steps(self, name: str) -> list[tuple[str, Callable[[], object]]]:
        """A volume's life, under the names of the calls that do the same."""
        life = _Life(self.kind, self.size, self.place / name)
        life.staging.mkdir(parents=True)
        directory = self.kind.parameters["backend"] == "directory"
        create, delete = (
            (life.make_subvolume, life.remove_subvolume) if directory else (life.make_image, life.remove_image)
        )
        stage, unstage = (life.bind_staging, life.unmount_staging) if directory else (life.attach, life.detach)
        return [
            ("CreateVolume", create),
            ("NodeStageVolume", stage),
            ("NodePublishVolume", life.publish),
            ("NodeUnpublishVolume", life.unpublish),
            ("NodeUnstageVolume", unstage),
            ("DeleteVolume", delete),
            ("", partial(_remove, life)),
        ]


def _remove(life: _Life) -> None:
    life.staging.rmdir()
    life.folder.rmdir()


class _Life:
    """One volume."""

    def __init__(self, kind: Kind, size: int, folder: Path) -> None:
        self._kind = kind
        self._size = str(size)
        self.folder = folder
        self.staging, self._target = folder / "staging", folder / "target"
        self._bytes = folder / "bytes"
        self._device = ""

    def make_subvolume(self) -> None:
        """A directory with a limit."""
        spawn("btrfs", "-q", "subvolume", "create", str(self._bytes))
        spawn("btrfs", "-q", "qgroup", "limit", self._size, str(self._bytes))

    def remove_subvolume(self) -> None:
        """And away."""
        spawn("btrfs", "-q", "subvolume", "delete", str(self._bytes))

    def make_image(self) -> None:
        """A file with its blocks reserved."""
        spawn("fallocate", "-l", self._size, str(self._bytes))

    def remove_image(self) -> None:
        """And away."""
        spawn("rm", str(self._bytes))

    def bind_staging(self) -> None:
        """Stage a directory."""
        spawn("mount", "--bind", str(self._bytes), str(self.staging))

    def unmount_staging(self) -> None:
        """Unstage it."""
        spawn("umount", str(self.staging))

    def attach(self) -> None:
        """Stage a file: a loop device, and on it a new filesystem."""
        options = ("--find", "--show", "--direct-io=on", "--sector-size=4096")
        self._device = spawn("losetup", *options, str(self._bytes))
        if self._kind.fs:
            spawn(*MKFS[self._kind.fs], self._device)
            spawn("mount", self._device, str(self.staging))

    def detach(self) -> None:
        """Unstage it."""
        if self._kind.fs:
            spawn("umount", str(self.staging))
        with suppress(Gone):
            spawn("losetup", "--detach", self._device)

    def publish(self) -> None:
        """Bind what is staged to the target."""
        spawn("touch" if self._kind.block else "mkdir", str(self._target))
        source = self._device if self._kind.block else str(self.staging)
        spawn("mount", "--bind", source, str(self._target))

    def unpublish(self) -> None:
        """Take it from there."""
        spawn("umount", str(self._target))
        spawn("rm" if self._kind.block else "rmdir", str(self._target))
