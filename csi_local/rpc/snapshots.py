"""Snapshots and content sources between protobuf's messages and the model's values; checked as in ``translate``."""

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from csi_local._proto import csi_pb2
from csi_local.engine.api import SnapshotView
from csi_local.model.errors import FailedPrecondition, InvalidArgument
from csi_local.model.snapshot import ContentSource, SnapshotRequest, SourceKind

_SNAPSHOT_LABELS = "csi.storage.k8s.io/volume"
"""How the names begin of what the snapshotter adds with ``--extra-create-metadata``; kept for people."""


def content_source(message: csi_pb2.VolumeContentSource) -> ContentSource:
    """What a volume is to be made from.

    Raises:
        InvalidArgument: it names neither a snapshot nor a volume.
    """
    kind = message.WhichOneof("type")
    identifier = {"snapshot": message.snapshot.snapshot_id, "volume": message.volume.volume_id}.get(kind or "", "")
    if kind is None or not identifier:
        raise InvalidArgument("volume_content_source names neither a snapshot nor a volume")
    return ContentSource(kind=SourceKind(kind), id=identifier)


def snapshot_request(message: csi_pb2.CreateSnapshotRequest) -> SnapshotRequest:
    """What CreateSnapshot asks for.

    Raises:
        InvalidArgument: something is missing or unknown.
    """
    if not message.name:
        raise InvalidArgument("name is missing")
    if not message.source_volume_id:
        raise InvalidArgument("source_volume_id is missing")
    labels = snapshot_labels(message.parameters)
    return SnapshotRequest(name=message.name, source=message.source_volume_id, labels=labels)


def snapshot_labels(parameters: Mapping[str, str]) -> dict[str, str]:
    """What the snapshotter says of a snapshot; there are no other parameters.

    Raises:
        InvalidArgument: there are.
    """
    unknown = sorted(name for name in parameters if not name.startswith(_SNAPSHOT_LABELS))
    if unknown:
        raise InvalidArgument(f"unknown snapshot class parameter {unknown[0]!r}; there are none")
    return dict(parameters)


def snapshot_id(text: str) -> str:
    """A snapshot id that is there.

    Raises:
        InvalidArgument: it is empty.
    """
    if not text:
        raise InvalidArgument("snapshot_id is missing")
    return text


def snapshot(view: SnapshotView) -> csi_pb2.Snapshot:
    """A snapshot as CSI shows it.

    Raises:
        FailedPrecondition: its record cannot be believed.
    """
    if view.record is None:
        raise FailedPrecondition(view.problem)
    record = view.record
    return csi_pb2.Snapshot(
        snapshot_id=record.id,
        source_volume_id=record.source,
        size_bytes=record.volume.size,
        creation_time=moment(record.created),
        ready_to_use=view.ready,
        group_snapshot_id=record.group,
    )


def moment(nanoseconds: int) -> Timestamp:
    """A time since the epoch."""
    found = Timestamp()
    found.FromNanoseconds(nanoseconds)
    return found
