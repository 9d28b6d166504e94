"""Records as bytes: one JSON document with a layout version and a checksum.

::

    {"layout": 2, "sha256": "<of the canonical volume object>", "volume": {…}}

A record that does not parse, fails its checksum, speaks of another volume, or comes from a newer version is
:class:`DamagedRecord`: that one volume is unavailable, and nothing is overwritten.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from csi_local.model.errors import DamagedRecord
from csi_local.model.quantity import Bytes
from csi_local.model.volume import (
    Allocation,
    BackendKind,
    Filesystem,
    FormatState,
    QuotaMode,
    VolumeId,
    VolumeRecord,
)

LAYOUT = 2
"""The version that this code writes."""

Fields = dict[str, Any]
MIGRATIONS: Mapping[int, Callable[[Fields], Fields]] = {
    1: lambda volume: {"ephemeral": "", "adopted": "", "adopted_inode": 0, "adopted_born": 0, **volume},
}
"""From each older layout version to the next; a change of layout adds one."""


def _whole(number: object) -> Bytes:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(number)
    return Bytes(number)


_READERS: Mapping[str, Callable[[Any], object]] = {
    "id": VolumeId,
    "size": _whole,
    "backend": BackendKind,
    "filesystem": lambda text: Filesystem(text) if text else None,
    "allocation": Allocation,
    "quota": QuotaMode,
    "format": FormatState,
    "mkfs_options": tuple,
}
_FIELDS = {field.name: field.type for field in dataclasses.fields(VolumeRecord)}
_PLAIN: Mapping[object, type] = {bool: bool, int: int, str: str}


def encode(record: VolumeRecord) -> bytes:
    """The bytes of *record*."""
    canonical = _canonical({name: getattr(record, name) for name in _FIELDS})
    checksum = hashlib.sha256(canonical).hexdigest().encode()
    return b'{"layout":%d,"sha256":"%s","volume":%s}\n' % (LAYOUT, checksum, canonical)


def decode(data: bytes, expected: VolumeId) -> VolumeRecord:
    """The record in *data*, which must be of the volume *expected*.

    Raises:
        DamagedRecord: it is not; the message says in what way.
    """
    try:
        document = json.loads(data)
        layout, checksum, volume = document["layout"], document["sha256"], document["volume"]
    except (ValueError, KeyError, TypeError, RecursionError):
        what = "is empty" if not data.strip() else "cannot be parsed"
        raise _damaged(expected, what) from None
    if not isinstance(layout, int) or layout < 1 or not isinstance(volume, dict):
        raise _damaged(expected, "has the wrong shape")
    if layout > LAYOUT:
        raise _damaged(expected, f"has layout {layout}, newer than this version's {LAYOUT}: upgrade the driver")
    if checksum != hashlib.sha256(_canonical(volume)).hexdigest():
        raise _damaged(expected, "does not match its checksum")
    while layout < LAYOUT:
        volume, layout = MIGRATIONS[layout](volume), layout + 1
    record = _record(volume, expected)
    if record.id != expected:
        raise _damaged(expected, f"is that of {record.id!r}")
    return record


def _record(volume: Fields, expected: VolumeId) -> VolumeRecord:
    values: Fields = {}
    try:
        for name in _FIELDS:
            value = volume[name]
            values[name] = _READERS[name](value) if name in _READERS else value
    except (KeyError, ValueError, TypeError):
        raise _damaged(expected, "lacks a field, or has one that makes no sense") from None
    if any(kind in _PLAIN and not isinstance(values[name], _PLAIN[kind]) for name, kind in _FIELDS.items()):
        raise _damaged(expected, "has a field of the wrong kind")
    return VolumeRecord(**values)


def _canonical(volume: Fields) -> bytes:
    return json.dumps(volume, sort_keys=True, separators=(",", ":"), default=dict).encode()


def _damaged(volume: VolumeId, what: str) -> DamagedRecord:
    return DamagedRecord(
        f"volume {volume!r}: its record {what}; the volume is left as it is. Restore volume.json from a"
        " backup, or move the volume's directory out of the pool after saving its data"
    )
