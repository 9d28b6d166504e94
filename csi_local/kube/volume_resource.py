"""LocalVolume, pure: between its dictionary and the model's values."""

from collections.abc import Mapping
from typing import Any

from csi_local.engine.api import VolumeView
from csi_local.kube import resources
from csi_local.kube.api import Object
from csi_local.kube.resources import answer, conditions, health, news, node_of, problem_of
from csi_local.model.parameters import LABELS, parse_parameters
from csi_local.model.quantity import Bytes, format_bytes
from csi_local.model.snapshot import ContentSource, SourceKind, parse_source
from csi_local.model.volume import (
    AccessMode,
    Allocation,
    BackendKind,
    BlockAccess,
    Capability,
    CapacityRange,
    Filesystem,
    MountAccess,
    VolumeId,
    VolumeRecord,
)
from csi_local.plan.request import VolumeRequest

_CLAIM, _NAMESPACE, _PERSISTENT = LABELS
_SOURCES = {SourceKind.SNAPSHOT: "snapshotId", SourceKind.VOLUME: "volumeId"}

# --- what is wanted


def new_volume(request: VolumeRequest, volume: VolumeId, node: str) -> Object:
    """The resource of a volume that *node* is to make."""
    labels = request.parameters.labels
    spec: Object = {
        "volumeName": request.name,
        "capacity": capacity_fields(request.capacity),
        "capabilities": [_capability_fields(one) for one in request.capabilities],
        "parameters": dict(request.parameters.given),
    }
    if labels.get(_CLAIM) and labels.get(_NAMESPACE):
        spec["claim"] = {"namespace": labels[_NAMESPACE], "name": labels[_CLAIM]}
    if labels.get(_PERSISTENT):
        spec["persistentVolume"] = labels[_PERSISTENT]
    if request.source is not None:
        spec["contentSource"] = {_SOURCES[request.source.kind]: request.source.id}
    return resources.with_data("LocalVolume", volume, node, spec)


def adopted_volume(record: VolumeRecord, node: str) -> Object:
    """The resource of a volume that is on *node*'s disk and has none."""
    access = BlockAccess() if record.block else MountAccess()
    request = VolumeRequest(
        name=record.name,
        capacity=CapacityRange(required=record.size),
        capabilities=(Capability(access=access, mode=AccessMode.SINGLE_NODE_WRITER),),
        parameters=parse_parameters({**record.parameters, **record.labels}),
        source=parse_source(record.source),
    )
    return new_volume(request, record.id, node)


def capacity_fields(capacity: CapacityRange) -> Object:
    """``spec.capacity``; both fields always, so that a merge patch leaves nothing of the last wish."""
    return {"requiredBytes": capacity.required, "limitBytes": capacity.limit}


def _capability_fields(capability: Capability) -> Object:
    fields: Object = {"accessMode": str(capability.mode)}
    if isinstance(capability.access, BlockAccess):
        return fields | {"block": True}
    if capability.access.fs_type:
        fields["fsType"] = capability.access.fs_type
    if capability.access.flags:
        fields["mountFlags"] = list(capability.access.flags)
    if capability.access.group is not None:
        fields["mountGroup"] = capability.access.group
    return fields


def volume_request(found: Object) -> VolumeRequest:
    """What a volume's ``spec`` asks for.

    Raises:
        InvalidArgument: it asks for something that this version does not know.
    """
    spec = found["spec"]
    return VolumeRequest(
        name=spec["volumeName"],
        capacity=capacity_range(found),
        capabilities=tuple(_capability(one) for one in spec.get("capabilities", ())),
        parameters=parse_parameters({**spec.get("parameters", {}), **_labels(spec)}),
        source=_source(spec),
    )


def _source(spec: Mapping[str, Any]) -> ContentSource | None:
    given = spec.get("contentSource") or {}
    found = (ContentSource(kind=kind, id=given[field]) for kind, field in _SOURCES.items() if given.get(field))
    return next(found, None)


def _labels(spec: Mapping[str, Any]) -> dict[str, str]:
    claim = spec.get("claim") or {}
    labels = {
        _CLAIM: claim.get("name", ""),
        _NAMESPACE: claim.get("namespace", ""),
        _PERSISTENT: spec.get("persistentVolume", ""),
    }
    return {key: value for key, value in labels.items() if value}


def capacity_range(found: Object) -> CapacityRange:
    """``spec.capacity``."""
    capacity = found["spec"].get("capacity", {})
    return CapacityRange(required=capacity.get("requiredBytes", 0), limit=capacity.get("limitBytes", 0))


def _capability(fields: Mapping[str, Any]) -> Capability:
    mode = AccessMode(fields["accessMode"])
    if fields.get("block"):
        return Capability(access=BlockAccess(), mode=mode)
    access = MountAccess(
        fs_type=fields.get("fsType", ""), flags=tuple(fields.get("mountFlags", ())), group=fields.get("mountGroup")
    )
    return Capability(access=access, mode=mode)


# --- what is so


def made(found: Object) -> bool:
    """Whether the node that is to have it has said that it has: there is data to lose."""
    return resources.made(found, "volumeId")


def node_expansion_required(found: Object) -> bool:
    """Whether the node has something to do after a volume has grown."""
    return bool(found.get("status", {}).get("nodeExpansionRequired", False))


def volume_view(found: Object) -> VolumeView:
    """A volume as the services show it; without a record where no node has made it, or none can read it."""
    status = found.get("status", {})
    record = _record(found) if made(found) and status.get("backend") else None
    return VolumeView(
        id=VolumeId(status.get("volumeId", "")),
        node=node_of(found),
        pool=status.get("pool", ""),
        record=record,
        problem=problem_of(found),
    )


def _record(found: Object) -> VolumeRecord:
    spec, status = found["spec"], found["status"]
    return VolumeRecord(
        id=VolumeId(status["volumeId"]),
        name=spec["volumeName"],
        size=Bytes(status["capacityBytes"]),
        backend=BackendKind(status["backend"]),
        block=status.get("block", False),
        filesystem=Filesystem(status["filesystem"]) if status.get("filesystem") else None,
        allocation=Allocation(status.get("allocation", Allocation.THICK)),
        parameters=dict(spec.get("parameters", {})),
        labels=_labels(spec),
        source=str(_source(spec) or ""),
    )


def ready_status(found: Object, view: VolumeView, *, now: str) -> Object:
    """The patch of ``status`` by which a node says that a volume is as wanted; *now* is a ``timestamp``."""
    status: Object = answer(found, "Ready") | {"error": None, "volumeId": view.id, "pool": view.pool}
    if (record := view.record) is not None:
        status |= {
            "capacityBytes": record.size,
            "capacity": format_bytes(record.size),
            "backend": str(record.backend),
            "block": record.block,
            "filesystem": str(record.filesystem or ""),
            "allocation": str(record.allocation),
            "nodeExpansionRequired": record.backend is BackendKind.LOOPFILE,
        }
    fresh = [news("Ready", true=True, reason="Made"), health(view.problem)]
    return {"status": status | {"conditions": conditions(found, fresh, now)}}


def failed_status(found: Object, error: Exception, *, now: str) -> Object:
    """The patch of ``status`` by which a node says why a volume is not as wanted.

    A volume that is there stays Ready when it cannot grow, say. A volumeId stays: nobody may take a volume for new that
    was given out once.
    """
    return resources.failed_status(found, error, there=made(found), now=now)
