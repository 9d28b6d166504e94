"""Between protobuf's messages and the model's values. What passes here is checked, and never checked again inside."""

import base64
import binascii
import posixpath
import re
from collections.abc import Iterable, Mapping

from csi_local._proto import csi_pb2
from csi_local.engine.api import VolumeView
from csi_local.engine.keys import KEY, PREVIOUS, GivenKeys
from csi_local.model.accessibility import Accessibility
from csi_local.model.errors import Busy, InvalidArgument, NotFound
from csi_local.model.parameters import EPHEMERAL, parse_ephemeral, parse_parameters
from csi_local.model.secret import Secret
from csi_local.model.snapshot import SourceKind, parse_source
from csi_local.model.volume import AccessMode, BlockAccess, Capability, CapacityRange, MountAccess
from csi_local.plan.request import VolumeRequest
from csi_local.rpc import snapshots

TOPOLOGY_KEY = "topology.csi-local.io/node"
_Mode = csi_pb2.VolumeCapability.AccessMode.Mode
_GROUP = re.compile(r"[0-9]{1,10}")
_SECRET_REF = re.compile(r"csi\.storage\.k8s\.io/[a-z-]+-secret-(name|namespace)")
_MAX_GID = 2**32 - 2
_AFTER = "after:"


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
    """A capacity range; zeros where it is not given.

    Raises:
        InvalidArgument: a size is negative.
    """
    if message.required_bytes < 0 or message.limit_bytes < 0:
        raise InvalidArgument("capacity_range: a size cannot be negative")
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
        source=snapshots.content_source(message.volume_content_source)
        if message.HasField("volume_content_source")
        else None,
    )


def class_parameters(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a StorageClass without those that name Secrets.

    csi-provisioner asks for room with all that the class has; to CreateVolume it passes none of these.
    """
    return {name: value for name, value in given.items() if not _SECRET_REF.fullmatch(name)}


def keys(secrets: Mapping[str, str]) -> GivenKeys:
    """The keys of an encrypted volume among a request's secrets; the others are not looked at."""
    key, previous = (Secret(secrets[name].encode()) if name in secrets else None for name in (KEY, PREVIOUS))
    return GivenKeys(key=key, previous=previous)


def is_ephemeral(message: csi_pb2.NodePublishVolumeRequest) -> bool:
    """Whether an inline ephemeral volume is asked for: the kubelet says so, where the CSIDriver object lets it.

    Raises:
        InvalidArgument: it says something else than true or false.
    """
    said = message.volume_context.get(EPHEMERAL, "false")
    if said not in ("true", "false"):
        raise InvalidArgument(f"{EPHEMERAL} {said!r} is neither true nor false")
    return said == "true"


def ephemeral_request(message: csi_pb2.NodePublishVolumeRequest) -> VolumeRequest:
    """What NodePublishVolume asks for, where it is to make the volume.

    Raises:
        InvalidArgument: something is missing, unknown, or not a pod's to choose.
    """
    if message.staging_target_path:
        raise InvalidArgument("an inline volume is never staged: staging_target_path must be empty")
    given = message.HasField("volume_capability")
    size, parameters = parse_ephemeral(dict(message.volume_context))
    return VolumeRequest(
        name=volume_id(message.volume_id),
        capacity=CapacityRange(required=size),
        capabilities=(required_capability(message.volume_capability, present=given),),
        parameters=parameters,
        ephemeral=path(message.target_path, "target_path"),
    )


def accessibility(requirement: csi_pb2.TopologyRequirement) -> Accessibility:
    """Where a volume may be: what is preferred comes first, and only what is requisite binds."""
    named = [_node(topology) for topology in (*requirement.preferred, *requirement.requisite)]
    binding = [_node(topology) for topology in requirement.requisite]
    return Accessibility(
        nodes=tuple(dict.fromkeys(node for node in named if node)),
        anywhere=not binding or "" in binding,
    )


def accessibility_of(topology: csi_pb2.Topology) -> Accessibility:
    """The node that a topology stands for, or anywhere where it says nothing."""
    return accessibility(csi_pb2.TopologyRequirement(requisite=[topology]))


def _node(topology: csi_pb2.Topology) -> str | None:
    """The node that a topology names; "" for any, where it says nothing, and None for none of ours."""
    return (topology.segments.get(TOPOLOGY_KEY) or None) if topology.segments else ""


def topology(node: str) -> csi_pb2.Topology:
    """A node's topology."""
    return csi_pb2.Topology(segments={TOPOLOGY_KEY: node})


def volume(view: VolumeView) -> csi_pb2.Volume:
    """A volume as CSI shows it; a damaged one has no size and no context."""
    message = csi_pb2.Volume(volume_id=view.id, accessible_topology=[topology(view.node)])
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
