"""Between protobuf's messages and the model's values. What passes here is checked, and never checked again inside."""

import base64
import binascii
import posixpath
import re
from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from csi_local._proto import csi_pb2
from csi_local.engine.snapshots import SnapshotView
from csi_local.engine.volumes import VolumeView
from csi_local.model.errors import Busy, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from csi_local.model.parameters import parse_parameters
from csi_local.model.snapshot import ContentSource, SnapshotRequest, SourceKind, parse_source
from csi_local.model.volume import AccessMode, BlockAccess, Capability, CapacityRange, MountAccess
from csi_local.plan.request import VolumeRequest

TOPOLOGY_KEY = "topology.csi-local.io/node"
_Mode = csi_pb2.VolumeCapability.AccessMode.Mode
_GROUP = re.compile(r"[0-9]{1,10}")
_MAX_GID = 2**32 - 2
_AFTER = "after:"
_SNAPSHOT_LABELS = "csi.storage.k8s.io/volume"
"""How the names begin of what the snapshotter adds with ``--extra-create-metadata``; kept for people."""


def volume_id(text: str) -> str:
    """A volume id that is there.

    Raises:
        InvalidArgument: it is empty.
    """
    if not text:
        raise InvalidArgument("volume_id is missing")
    return text


def path(text: str, name: str) -> str:
    """An absolute path without ``..``, normalised.

    Raises:
        InvalidArgument: it is missing or not such a path.
    """
    if not text:
        raise InvalidArgument(f"{name} is missing")
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise InvalidArgument(f"{name} {text!r} must be an absolute path without '..'")
    clean = "/" + posixpath.normpath(text).lstrip("/")
    if clean == "/":
        raise InvalidArgument(f"{name} cannot be the root directory")
    return clean


def volume_path(text: str) -> str:
    """A path where a volume may be, for looking only; one that is not absolute is no volume's.

    Raises:
        InvalidArgument: it is missing.
        NotFound: no volume can be there.
    """
    try:
        return path(text, "volume_path")
    except InvalidArgument as error:
        if not text:
            raise
        raise NotFound(f"no volume is at {text!r}: {error}") from None


def capability(message: csi_pb2.VolumeCapability) -> Capability:
    """A volume capability.

    Raises:
        InvalidArgument: access type or mode is missing or unknown, or the mount group is no group id.
    """
    mode = message.access_mode.mode
    if mode == _Mode.UNKNOWN or mode not in _Mode.values():
        raise InvalidArgument("the volume capability has no access mode that is known")
    kind = message.WhichOneof("access_type")
    if kind is None:
        raise InvalidArgument("the volume capability says neither block nor mount")
    access_mode = AccessMode(_Mode.Name(mode))
    if kind == "block":
        return Capability(access=BlockAccess(), mode=access_mode)
    mount = message.mount
    access = MountAccess(fs_type=mount.fs_type, flags=tuple(mount.mount_flags), group=_group(mount.volume_mount_group))
    return Capability(access=access, mode=access_mode)


def _group(text: str) -> int | None:
    if not text:
        return None
    if not _GROUP.fullmatch(text) or int(text) > _MAX_GID:
        raise InvalidArgument(f"volume_mount_group {text!r} is not a group id")
    return int(text)


def required_capability(message: csi_pb2.VolumeCapability, *, present: bool) -> Capability:
    """The one capability that a request must have.

    Raises:
        InvalidArgument: it is missing or wrong.
    """
    if not present:
        raise InvalidArgument("volume_capability is missing")
    return capability(message)


def capabilities(messages: Iterable[csi_pb2.VolumeCapability]) -> tuple[Capability, ...]:
    """Several of them, at least one.

    Raises:
        InvalidArgument: there is none, or one is wrong.
    """
    found = tuple(capability(message) for message in messages)
    if not found:
        raise InvalidArgument("volume_capabilities are missing")
    return found


def capacity_range(message: csi_pb2.CapacityRange) -> CapacityRange:
    """A capacity range; zeros where it is not given."""
    return CapacityRange(required=message.required_bytes, limit=message.limit_bytes)


def create_request(message: csi_pb2.CreateVolumeRequest) -> VolumeRequest:
    """What CreateVolume asks for.

    Raises:
        InvalidArgument: something is missing, unknown, or not in this version.
    """
    if not message.name:
        raise InvalidArgument("name is missing")
    if message.mutable_parameters:
        raise InvalidArgument(f"unknown mutable parameter {min(message.mutable_parameters)!r}; there are none")
    return VolumeRequest(
        name=message.name,
        capacity=capacity_range(message.capacity_range),
        capabilities=capabilities(message.volume_capabilities),
        parameters=parse_parameters(dict(message.parameters)),
        source=content_source(message.volume_content_source) if message.HasField("volume_content_source") else None,
    )


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


def check_accessible(requirement: csi_pb2.TopologyRequirement, node: str) -> None:
    """See that a volume of this node meets the requirement.

    Raises:
        ResourceExhausted: it must be on other nodes.
    """
    if requirement.requisite and not any(is_here(topology, node) for topology in requirement.requisite):
        raise ResourceExhausted(f"the volume must be on another node than {node}")


def is_here(topology: csi_pb2.Topology, node: str) -> bool:
    """Whether a topology is this node, or says nothing."""
    return not topology.segments or topology.segments.get(TOPOLOGY_KEY) == node


def topology(node: str) -> csi_pb2.Topology:
    """This node's topology."""
    return csi_pb2.Topology(segments={TOPOLOGY_KEY: node})


def volume(view: VolumeView, node: str) -> csi_pb2.Volume:
    """A volume as CSI shows it; a damaged one has no size and no context."""
    message = csi_pb2.Volume(volume_id=view.id, accessible_topology=[topology(node)])
    if view.record is not None:
        message.capacity_bytes = view.record.size
        message.volume_context.update(context(view))
        source = parse_source(view.record.source)
        if source is not None and source.kind is SourceKind.SNAPSHOT:
            message.content_source.snapshot.snapshot_id = source.id
        elif source is not None:
            message.content_source.volume.volume_id = source.id
    return message


def context(view: VolumeView) -> dict[str, str]:
    """The volume context: where it is, for people and for a comparison."""
    if view.record is None:
        return {}
    return {"backend": str(view.record.backend), "pool": view.pool}


def condition(problem: str) -> csi_pb2.VolumeCondition:
    """A volume's condition."""
    return csi_pb2.VolumeCondition(abnormal=bool(problem), message=problem or "the volume is healthy")


def token(after: str) -> str:
    """A paging token for what comes behind the id *after*; "" for the end."""
    return base64.urlsafe_b64encode((_AFTER + after).encode()).decode() if after else ""


def after_token(text: str) -> str:
    """Where a paging token goes on.

    Raises:
        Busy: it is none of ours (ABORTED: CSI specification, ListVolumes).
    """
    if not text:
        return ""
    try:
        decoded = base64.b64decode(text.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        decoded = ""
    if not decoded.startswith(_AFTER):
        raise Busy("starting_token is not one that was given out; begin again without one")
    return decoded.removeprefix(_AFTER)
