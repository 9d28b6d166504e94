"""Power cuts: every write to a disk is recorded, and the disk as it was after any of them is made again.

dm-log-writes keeps each write, with its flushes, on a second disk (Documentation/admin-guide/device-mapper/
log-writes.rst; drivers/md/dm-log-writes.c draws its format). A write comes into the log with the flush after
it, so that a prefix which ends at a flush is what a disk with a lost cache would hold.
The rebuilt disk is looked at through a dm-snapshot: what a check writes to it is forgotten.
"""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.observe import device_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

_SECTOR = 512
_MAGIC, _VERSION = 0x6A736677736872, 1
_SUPER = struct.Struct("<3QI")
_ENTRY = struct.Struct("<4Q")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_RECORDED, _CUT = "recorded", "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record of the log: a write, a discard, a flush, or a mark.

    Attributes:
        offset: where on the disk, in bytes.
        length: of the data, in bytes.
        source: where in the log the data is.
        settles: whether it and everything before it had reached the disk for good.
    """

    offset: int
    length: int
    source: int
    discard: bool
    settles: bool
    mark: str


class Recording:
    """A disk whose writes are recorded while the block is entered."""

    def __init__(self, disk: Path, log: Path) -> None:
        self.device = Path("/dev/mapper", _RECORDED)
        self._table = f"0 {device_size(disk) // _SECTOR} log-writes {disk} {log}"

    def __enter__(self) -> Self:
        _dmsetup("create", _RECORDED, "--table", self._table)
        return self

    def __exit__(self, *_: object) -> None:
        _dmsetup("remove", "--retry", _RECORDED)

    def mark(self, word: str) -> None:
        """Note in the log that this point was reached; a word has no spaces."""
        _dmsetup("message", _RECORDED, "0", "mark", word)


def entries(log: Path) -> list[Entry]:
    """Read the log."""
    with log.open("rb") as file:
        magic, version, count, sector = _SUPER.unpack(file.read(_SUPER.size))
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError(f"{log} holds no log of dm-log-writes")
        found = []
        place = sector
        for _ in range(count):
            file.seek(place)
            found.append(_entry(file.read(sector), place + sector, sector))
            place += sector + found[-1].length * (not found[-1].discard)
        return found


def _entry(block: bytes, source: int, sector: int) -> Entry:
    start, sectors, flags, text_length = _ENTRY.unpack_from(block)
    text = block[_ENTRY.size : _ENTRY.size + text_length] if flags & _MARK else b""
    return Entry(
        offset=start * sector,
        length=sectors * sector,
        source=source,
        discard=bool(flags & _DISCARD),
        settles=bool(flags & (_FLUSH | _FUA)),
        mark=text.decode(),
    )


def replay(log: Path, these: Iterable[Entry], disk: Path) -> None:
    """Write these entries, in their order, to a disk."""
    with log.open("rb") as source, disk.open("r+b", buffering=0) as target:
        for entry in these:
            target.seek(entry.offset)
            if entry.discard:
                target.write(bytes(entry.length))
            elif entry.length:
                source.seek(entry.source)
                target.write(source.read(entry.length))
        os.fsync(target.fileno())


@contextmanager
def cut(disk: Path, changes: Path) -> Iterator[Path]:
    """Show a disk as it is; what is written goes to `changes` and is forgotten."""
    table = f"0 {device_size(disk) // _SECTOR} snapshot {disk} {changes} N 8"
    _dmsetup("create", _CUT, "--table", table)
    try:
        yield Path("/dev/mapper", _CUT)
    finally:
        _dmsetup("remove", "--retry", _CUT)


def _dmsetup(*arguments: str) -> None:
    subprocess.run(["dmsetup", *arguments], check=True)  # noqa: S607
