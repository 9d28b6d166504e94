"""A disk that fails, hangs, recovers, goes and comes back at a word: a device-mapper device whose table changes."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.observe import device_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_SECTOR = 512
_NAME = "faulty"


class FaultyDisk:
    """A disk under another name, there while the block is entered (dmsetup(8); targets linear and error)."""

    def __init__(self, disk: Path) -> None:
        self.device = Path("/dev/mapper", _NAME)
        self._sectors = device_size(disk) // _SECTOR
        self._good = f"0 {self._sectors} linear {disk} 0"

    def __enter__(self) -> Self:
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        self.go()

    def fail(self) -> None:
        """Answer every read and write with an I/O error from now on."""
        self._exchange(f"0 {self._sectors} error")

    def mend(self) -> None:
        """Read and write again."""
        self._exchange(self._good)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Answer nothing, until the block is left."""
        _dmsetup("suspend", "--noflush", "--nolockfs", _NAME)
        try:
            yield
        finally:
            _dmsetup("resume", _NAME)

    def go(self) -> None:
        """Be pulled out; nobody may have it open."""
        _dmsetup("remove", "--retry", _NAME)

    def come_back(self) -> None:
        """Be plugged in again."""
        _dmsetup("create", _NAME, "--table", self._good)

    def _exchange(self, table: str) -> None:
        with self.hanging():
            _dmsetup("load", _NAME, "--table", table)


def in_use(device: Path) -> bool:
    """Say whether anybody has a device-mapper device open or mounted."""
    argv = ["dmsetup", "info", "--columns", "--noheadings", "--options", "open", str(device)]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout) > 0


def _dmsetup(*arguments: str) -> None:
    subprocess.run(["dmsetup", *arguments], check=True)  # noqa: S607
