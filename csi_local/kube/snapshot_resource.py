"""LocalSnapshot, pure: between its dictionary and the model's values."""

from collections.abc import Mapping
from typing import Any

from csi_local.engine.api import SnapshotView
from csi_local.kube import resources
from csi_local.kube.api import Object
from csi_local.kube.resources import answer, conditions, health, news, problem_of
from csi_local.model.quantity import Bytes, format_bytes
from csi_local.model.snapshot import SnapshotId, SnapshotRecord, SnapshotRequest, snapshot_id
from csi_local.model.volume import BackendKind, Filesystem, VolumeId, VolumeRecord

# --- what is wanted


def new_snapshot(request: SnapshotRequest, node: str) -> Object:
    """The resource of a snapshot that *node*, which has its volume, is to take."""
    spec: Object = {
        "snapshotName": request.name,
        "sourceVolume": request.source,
        "parameters": dict(request.labels),
    }
    return resources.with_data("LocalSnapshot", snapshot_id(request.name), node, spec)


def adopted_snapshot(record: SnapshotRecord, node: str) -> Object:
    """The resource of a snapshot that is on *node*'s disk and has none."""
    return new_snapshot(SnapshotRequest(name=record.name, source=record.source, labels=record.labels), node)


def snapshot_request(found: Object) -> SnapshotRequest:
    """What a snapshot's ``spec`` asks for."""
    spec = found["spec"]
    return SnapshotRequest(name=spec["snapshotName"], source=spec["sourceVolume"], labels=spec.get("parameters", {}))


# --- what is so


def made(found: Object) -> bool:
    """Whether its node has said that it has the snapshot, or is copying it."""
    return resources.made(found, "snapshotId")


def ready(found: Object) -> bool:
    """Whether its node has said that the snapshot is whole: from then on it is of that moment, and of no other."""
    return made(found) and bool(found["status"].get("readyToUse"))


def snapshot_view(found: Object) -> SnapshotView:
    """A snapshot as the services show it; without a record where its node cannot read that."""
    spec, status = found["spec"], found["status"]
    record = None
    if status.get("backend"):
        record = copy_record(status, spec["snapshotName"], spec.get("parameters", {}))
    problem = problem_of(found)
    if record is None and not problem:
        problem = f"node {resources.node_of(found)} cannot read the record of snapshot {status['snapshotId']}"
    return SnapshotView(
        id=SnapshotId(status["snapshotId"]),
        pool=status.get("pool", ""),
        record=record,
        ready=bool(status.get("readyToUse")),
        problem=problem,
    )


def ready_status(found: Object, view: SnapshotView, *, now: str) -> Object:
    """The patch of ``status`` by which a node says that it has a snapshot, or that its data is being copied.

    *now* is a ``timestamp``.
    """
    status: Object = answer(found, "Ready" if view.ready else "Pending") | {"error": None, "pool": view.pool}
    status |= copy_fields(view)
    if view.record is not None:
        status["size"] = format_bytes(view.record.volume.size)
    reason = "Taken" if view.ready else "Copying"
    fresh = [news("Ready", true=view.ready, reason=reason), health(view.problem)]
    return {"status": status | {"conditions": conditions(found, fresh, now)}}


def failed_status(found: Object, error: Exception, *, now: str) -> Object:
    """The patch of ``status`` by which a node says why a snapshot is not as wanted; a copy that failed is none."""
    patch = resources.failed_status(found, error, there=ready(found), now=now)
    if not ready(found):
        patch["status"] |= dict.fromkeys(_FIELDS)
    return patch


# --- snapshots in a status, alone or with a group

_FIELDS = ("snapshotId", "readyToUse", "sourceVolumeId", "sizeBytes", "creationTime", "backend", "block", "filesystem")


def copy_fields(view: SnapshotView) -> Object:
    """What is told of a snapshot: enough for the CO, and to make a volume from it."""
    fields: Object = {"snapshotId": view.id, "readyToUse": view.ready}
    if (record := view.record) is not None:
        fields |= {
            "sourceVolumeId": record.source,
            "sizeBytes": record.volume.size,
            "creationTime": resources.moment(record.created),
            "backend": str(record.volume.backend),
            "block": record.volume.block,
            "filesystem": str(record.volume.filesystem or ""),
        }
    return fields


def copy_record(fields: Mapping[str, Any], name: str, labels: Mapping[str, str], group: str = "") -> SnapshotRecord:
    """A snapshot's record as far as it was told."""
    volume = VolumeRecord(
        id=VolumeId(fields["sourceVolumeId"]),
        name=fields["sourceVolumeId"],
        size=Bytes(fields["sizeBytes"]),
        backend=BackendKind(fields["backend"]),
        block=fields.get("block", False),
        filesystem=Filesystem(fields["filesystem"]) if fields.get("filesystem") else None,
    )
    return SnapshotRecord(
        id=SnapshotId(fields["snapshotId"]),
        name=name,
        volume=volume,
        created=resources.nanoseconds(fields["creationTime"]),
        group=group,
        labels=dict(labels),
    )
