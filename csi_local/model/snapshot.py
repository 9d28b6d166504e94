"""What a snapshot is, and what a volume can be made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from csi_local.model.quantity import Bytes
from csi_local.model.volume import VolumeId, VolumeRecord, volume_id

SnapshotId = NewType("SnapshotId", str)
"""A snapshot's id, made from its name as a volume's is; a snapshot and a volume may have the same."""

GroupId = NewType("GroupId", str)
"""A group's id, likewise."""


class SourceKind(StrEnum):
    """What a volume can be made from."""

    SNAPSHOT = "snapshot"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentSource:
    """What a volume is to be made from (CSI ``VolumeContentSource``)."""

    kind: SourceKind
    id: str

    def __str__(self) -> str:
        """As records have it; ids hold no slash."""
        return f"{self.kind}/{self.id}"


def parse_source(text: str) -> ContentSource | None:
    """The source that a record speaks of; None where it is of a volume that began empty."""
    kind, slash, identifier = text.partition("/")
    return ContentSource(kind=SourceKind(kind), id=identifier) if slash else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """What CreateSnapshot asks for: a name, and the id of a volume as it was shown."""

    name: str
    source: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """What CreateVolumeGroupSnapshot asks for: a name, and the ids of volumes as they were shown."""

    name: str
    sources: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """Everything that is remembered about a snapshot.

    Attributes:
        volume: the record of its source as it was then; a volume made from the snapshot begins with that.
        held: bytes of blocks that it had when it was taken, which it is promised; 0 where nobody counted them.
        created: nanoseconds since the epoch.
        group: the id of the group that it was taken with, or "".
        labels: what the snapshotter says of it (names only), for people.
    """

    id: SnapshotId
    name: str
    volume: VolumeRecord
    held: Bytes = Bytes(0)
    created: int = 0
    group: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> VolumeId:
        """The volume it was taken of, which may be gone."""
        return self.volume.id


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """Everything that is remembered about a group: its members have what else there is.

    Attributes:
        members: the snapshots that are in it, all of one moment, in the order of their sources' ids.
        created: nanoseconds since the epoch.
    """

    id: GroupId
    name: str
    members: tuple[SnapshotId, ...]
    created: int = 0


def snapshot_id(name: str) -> SnapshotId:
    """The id of the snapshot called *name*."""
    return SnapshotId(volume_id(name))


def group_id(name: str) -> GroupId:
    """The id of the group called *name*."""
    return GroupId(volume_id(name))
