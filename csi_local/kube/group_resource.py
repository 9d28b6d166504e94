"""LocalGroupSnapshot, pure: between its dictionary and the model's values. Its members have no other resources."""

from collections.abc import Mapping
from typing import Any

from csi_local.engine.api import GroupView, SnapshotView
from csi_local.kube import resources
from csi_local.kube.api import Object
from csi_local.kube.resources import answer, conditions, health, news
from csi_local.kube.snapshot_resource import copy_fields, copy_record
from csi_local.model.snapshot import GroupId, GroupRecord, GroupRequest, group_id

# --- what is wanted


def new_group(request: GroupRequest, node: str) -> Object:
    """The resource of a group of snapshots that *node*, which has all of their volumes, is to take."""
    spec: Object = {
        "groupName": request.name,
        "sourceVolumes": sorted(set(request.sources)),
        "parameters": dict(request.labels),
    }
    return resources.with_data("LocalGroupSnapshot", group_id(request.name), node, spec)


def adopted_group(view: GroupView, node: str) -> Object:
    """The resource of a group that is on *node*'s disk and has none."""
    records = [one.record for one in view.members if one.record is not None]
    labels = records[0].labels if records else {}
    request = GroupRequest(name=view.record.name, sources=tuple(one.source for one in records), labels=labels)
    return new_group(request, node)


def group_request(found: Object) -> GroupRequest:
    """What a group's ``spec`` asks for."""
    spec = found["spec"]
    return GroupRequest(name=spec["groupName"], sources=tuple(spec["sourceVolumes"]), labels=spec.get("parameters", {}))


# --- what is so


def made(found: Object) -> bool:
    """Whether its node has said that it has the group: then it has all of it."""
    return resources.made(found, "groupId")


def group_view(found: Object) -> GroupView:
    """A group as the services show it."""
    spec, status = found["spec"], found["status"]
    record = GroupRecord(
        id=GroupId(status["groupId"]),
        name=spec["groupName"],
        members=tuple(one["snapshotId"] for one in status["members"]),
        created=resources.nanoseconds(status["creationTime"]),
    )
    return GroupView(record=record, members=tuple(_member(found, fields) for fields in status["members"]))


def _member(found: Object, fields: Mapping[str, Any]) -> SnapshotView:
    spec, status = found["spec"], found["status"]
    name = f"{spec['groupName']}/{fields['sourceVolumeId']}"
    record = copy_record(fields, name, spec.get("parameters", {}), status["groupId"])
    return SnapshotView(id=record.id, pool=status["pool"], record=record, problem=resources.problem_of(found))


def ready_status(found: Object, view: GroupView, *, now: str) -> Object:
    """The patch of ``status`` by which a node says that it has a group; *now* is a ``timestamp``."""
    status: Object = answer(found, "Ready") | {
        "error": None,
        "groupId": view.record.id,
        "pool": view.pool,
        "readyToUse": True,
        "creationTime": resources.moment(view.record.created),
        "members": [copy_fields(one) for one in view.members],
    }
    fresh = [news("Ready", true=True, reason="Taken"), health(view.problem)]
    return {"status": status | {"conditions": conditions(found, fresh, now)}}


def failed_status(found: Object, error: Exception, *, now: str) -> Object:
    """The patch of ``status`` by which a node says why a group is not as wanted."""
    return resources.failed_status(found, error, there=made(found), now=now)
