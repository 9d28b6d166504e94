"""Data in volumes: what was written and fsynced must be there ever after."""

from __future__ import annotations

import array
import fcntl
import hashlib
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests import observe
from tests.observe import KIB
from tests.soak.tally import Violation

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

SLOT = 64 * KIB
BLKROGET = 0x125E
"""Whether a block device is read-only (linux/fs.h)."""
_SECTOR = 4 * KIB
MOST = 12
"""Markers in one volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """Bytes in a slot: a file of that number, or the place on the device with that number."""

    slot: int
    length: int
    digest: str


def write(target: Path, slot: int, dice: Random) -> Marker:
    """Write new bytes into a slot, durably."""
    length = dice.randrange(1, SLOT // _SECTOR + 1) * _SECTOR
    data = dice.randbytes(length)
    observe.put(target, data, name=f"marker-{slot}", offset=slot * SLOT if observe.is_block(target) else 0)
    return Marker(slot=slot, length=length, digest=hashlib.sha256(data).hexdigest())


def verify(target: Path, marker: Marker) -> None:
    """Read a marker.

    Raises:
        Violation: it is not what was written.
    """
    if observe.is_block(target):
        data = _read_device(target, marker)
    else:
        data = observe.get(target, marker.length, name=f"marker-{marker.slot}")
    if hashlib.sha256(data).hexdigest() != marker.digest:
        zeros = " (all zeros)" if not any(data) else ""
        raise Violation(f"marker {marker.slot} at {target} is not what was written{zeros}; {len(data)} bytes")


def _read_device(target: Path, marker: Marker) -> bytes:
    """Past the page cache: a read-only publication is a device of its own, and has a cache of its own."""
    handle = os.open(target, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, marker.length) as buffer:
            read = os.preadv(handle, [buffer], marker.slot * SLOT)
            return buffer[:read]
    finally:
        os.close(handle)


def can_write(target: Path) -> bool:
    """Whether it can be written, tried with as little as possible; the kernel lets a read-only device be opened."""
    if observe.is_block(target):
        return not _is_read_only(target)
    try:
        handle = os.open(target / "touched", os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError:
        return False
    os.close(handle)
    return True


def _is_read_only(device: Path) -> bool:
    answer = array.array("i", [0])
    with device.open("rb") as file:
        fcntl.ioctl(file, BLKROGET, answer, True)  # noqa: FBT003 - the C signature
    return bool(answer[0])
