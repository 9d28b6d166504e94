"""Records as bytes: one JSON document with a layout version and a checksum.

::

    {"layout": 3, "sha256": "<of the canonical volume object>", "volume": {…}}
    {"layout": 3, "sha256": "<of the canonical snapshot object>", "snapshot": {…, "volume": {…}}}

A record that does not parse, fails its checksum, speaks of another volume, or comes from a newer version is
:class:`DamagedRecord`: that one volume is unavailable, and nothing is overwritten.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from csi_local.model.errors import DamagedRecord
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import GroupId, GroupRecord, SnapshotId, SnapshotRecord
from csi_local.model.volume import (
    Allocation,
    BackendKind,
    Cipher,
    Encryption,
    Filesystem,
    FormatState,
    KeyProvider,
    QuotaMode,
    VolumeId,
    VolumeRecord,
)

LAYOUT = 3
"""The version that this code writes."""

Fields = dict[str, Any]
MIGRATIONS: Mapping[int, Callable[[Fields], Fields]] = {
    1: lambda volume: {"ephemeral": "", "adopted": "", "adopted_inode": 0, "adopted_born": 0, "source": "", **volume},
    2: lambda volume: {"encryption": None, **volume},
}
"""From each older layout version of a volume's record to the next; a change of layout adds one."""


_PLAIN: Mapping[object, type] = {bool: bool, int: int, str: str}
_V = TypeVar("_V", bound="VolumeRecord | SnapshotRecord | GroupRecord | Encryption")


def _whole(number: object) -> Bytes:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(number)
    return Bytes(number)


def _members(value: object) -> tuple[SnapshotId, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(value)
    return tuple(SnapshotId(one) for one in value)


_ENCRYPTION_READERS: Mapping[str, Callable[[Any], object]] = {
    "cipher": Cipher,
    "key_bits": _whole,
    "sector_size": _whole,
    "kdf_memory": _whole,
    "kdf_passes": _whole,
    "provider": KeyProvider,
    "state": FormatState,
}


def _encryption(value: Fields | None) -> Encryption | None:
    return None if value is None else _read(value, Encryption, _ENCRYPTION_READERS)


_READERS: Mapping[str, Callable[[Any], object]] = {
    "id": VolumeId,
    "size": _whole,
    "backend": BackendKind,
    "filesystem": lambda text: Filesystem(text) if text else None,
    "allocation": Allocation,
    "quota": QuotaMode,
    "format": FormatState,
    "encryption": _encryption,
    "mkfs_options": tuple,
}
_SNAPSHOT_READERS: Mapping[str, Callable[[Any], object]] = {"id": SnapshotId, "held": _whole, "created": _whole}
_GROUP_READERS: Mapping[str, Callable[[Any], object]] = {"id": GroupId, "created": _whole, "members": _members}
_Kind = VolumeRecord | SnapshotRecord | GroupRecord
_T = TypeVar("_T", bound=_Kind)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Format(Generic[_T]):
    """How one kind of record is written: under which word, and how its fields are read."""

    word: str
    kind: type[_T]
    readers: Mapping[str, Callable[[Any], object]]

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.word}.json"


_VOLUME = _Format(word="volume", kind=VolumeRecord, readers=_READERS)
_SNAPSHOT = _Format(word="snapshot", kind=SnapshotRecord, readers=_SNAPSHOT_READERS)
_GROUP = _Format(word="group", kind=GroupRecord, readers=_GROUP_READERS)
_WORDS: Mapping[type, str] = {one.kind: one.word for one in (_VOLUME, _SNAPSHOT, _GROUP)}


def encode(record: _Kind) -> bytes:
    """The bytes of *record*."""
    canonical = _canonical(_fields(record))
    checksum = hashlib.sha256(canonical).hexdigest().encode()
    word = _WORDS[type(record)].encode()
    return b'{"layout":%d,"sha256":"%s","%s":%s}\n' % (LAYOUT, checksum, word, canonical)


def _fields(record: _Kind | Encryption) -> Fields:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    nested = (VolumeRecord, Encryption)
    return {name: _fields(value) if isinstance(value, nested) else value for name, value in values.items()}


def decode(data: bytes, expected: VolumeId) -> VolumeRecord:
    """The record in *data*, which must be of the volume *expected*.

    Raises:
        DamagedRecord: it is not; the message says in what way.
    """
    return _decode(data, expected, _VOLUME)


def decode_snapshot(data: bytes, expected: SnapshotId) -> SnapshotRecord:
    """The record in *data*, which must be of the snapshot *expected*.

    Raises:
        DamagedRecord: it is not; the message says in what way.
    """
    return _decode(data, expected, _SNAPSHOT)


def decode_group(data: bytes, expected: GroupId) -> GroupRecord:
    """The record in *data*, which must be of the group *expected*.

    Raises:
        DamagedRecord: it is not; the message says in what way.
    """
    return _decode(data, expected, _GROUP)


def _decode(data: bytes, expected: str, form: _Format[_T]) -> _T:
    try:
        document = json.loads(data)
        layout, checksum, fields = document["layout"], document["sha256"], document[form.word]
    except (ValueError, KeyError, TypeError, RecursionError):
        what = "is empty" if not data.strip() else "cannot be parsed"
        raise _damaged(expected, what, form) from None
    if not isinstance(layout, int) or layout < 1 or not isinstance(fields, dict):
        raise _damaged(expected, "has the wrong shape", form)
    if layout > LAYOUT:
        newer = f"has layout {layout}, newer than this version's {LAYOUT}: upgrade the driver"
        raise _damaged(expected, newer, form)
    if checksum != hashlib.sha256(_canonical(fields)).hexdigest():
        raise _damaged(expected, "does not match its checksum", form)
    try:
        record = _record(fields, layout, form)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise _damaged(expected, "lacks a field, or has one that makes no sense", form) from None
    if record.id != expected:
        raise _damaged(expected, f"is that of {record.id!r}", form)
    return record


def _record(fields: Fields, layout: int, form: _Format[_T]) -> _T:
    """A record from its fields; its volume's, or those in its volume, may be of an older layout."""
    for version in range(layout, LAYOUT) if form.kind is VolumeRecord else ():
        fields = MIGRATIONS[version](fields)
    readers = {"volume": lambda inner: _record(inner, layout, _VOLUME), **form.readers}
    return _read(fields, form.kind, readers)


def _read(fields: Fields, kind: type[_V], readers: Mapping[str, Callable[[Any], object]]) -> _V:
    values: Fields = {}
    for field in dataclasses.fields(kind):
        value = fields[field.name]
        values[field.name] = readers[field.name](value) if field.name in readers else value
        if field.type in _PLAIN and not isinstance(values[field.name], _PLAIN[field.type]):
            raise TypeError(field.name)
    return kind(**values)


def _canonical(fields: Fields) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), default=dict).encode()


def _damaged(identifier: str, what: str, form: _Format[_T]) -> DamagedRecord:
    word = form.word
    return DamagedRecord(
        f"{word} {identifier!r}: its record {what}; the {word} is left as it is. Restore {form.file} from a"
        f" backup, or move the {word}'s directory out of the pool after saving its data"
    )
