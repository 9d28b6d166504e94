"""A container orchestrator in a few verbs: what kubelet and the sidecars say to a driver."""

from __future__ import annotations

import hashlib
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc

from csi_local._proto import csi_pb2 as csi
from csi_local._proto import csi_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Code = grpc.StatusCode
Mode = csi.VolumeCapability.AccessMode
Capability = csi.VolumeCapability

TOPOLOGY_KEY = "topology.csi-local.io/node"
CALL_SECONDS = 60.0
"""A call without its own deadline fails after this, so that no test can hang."""


def capability(
    *,
    block: bool = False,
    fs: str = "",
    mode: Mode.Mode.ValueType = Mode.SINGLE_NODE_WRITER,
    flags: Sequence[str] = (),
    group: str = "",
) -> Capability:
    """Say how a volume is to be used."""
    access = Mode(mode=mode)
    if block:
        return Capability(block=Capability.BlockVolume(), access_mode=access)
    mount = Capability.MountVolume(fs_type=fs, mount_flags=flags, volume_mount_group=group)
    return Capability(mount=mount, access_mode=access)


def topology(*nodes: str) -> list[csi.Topology]:
    """Return the topologies of these nodes."""
    return [csi.Topology(segments={TOPOLOGY_KEY: node}) for node in nodes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume as CreateVolume answered it, with the capability it was asked for."""

    id: str
    size: int = 0
    capability: Capability = field(default_factory=capability)
    context: Mapping[str, str] = field(default_factory=dict)


POD = {
    "csi.storage.k8s.io/pod.name": "web-0",
    "csi.storage.k8s.io/pod.namespace": "shop",
    "csi.storage.k8s.io/pod.uid": "6b3a",
    "csi.storage.k8s.io/serviceAccount.name": "default",
}


def inline(attributes: Mapping[str, str]) -> Volume:
    """Return an inline ephemeral volume of a new pod, under a handle as the kubelet's are: longer than our ids."""
    handle = f"csi-{hashlib.sha256(uuid.uuid4().bytes).hexdigest()}"
    context = {"csi.storage.k8s.io/ephemeral": "true", **POD, **attributes}
    return Volume(id=handle, capability=capability(mode=Mode.SINGLE_NODE_MULTI_WRITER), context=context)


@dataclass(slots=True)
class Refusal:
    """The error that a `refused` block ended with."""

    code: Code = Code.OK
    message: str = ""


@contextmanager
def refused(*codes: Code) -> Iterator[Refusal]:
    """Demand that the block ends in one of `codes`, with a message and no details (CSI, Error Scheme)."""
    refusal = Refusal()
    expected = " or ".join(code.name for code in codes)
    try:
        yield refusal
    except grpc.RpcError as error:
        call = _call(error)
        refusal.code, refusal.message = call.code(), call.details() or ""
        _demand(refusal.code in codes, f"expected {expected}, got {refusal.code.name}: {refusal.message}")
        _demand(refusal.message.strip() != "", f"{refusal.code.name} says nothing to the user")
        _demand("Traceback" not in refusal.message, f"a stack trace is no message: {refusal.message}")
        trailers = {str(key) for key, _ in call.trailing_metadata() or ()}
        _demand("grpc-status-details-bin" not in trailers, "status.details must stay empty")
        return
    raise AssertionError(f"expected {expected}, but the call succeeded")


def outcome(call: Callable[[], object]) -> Code:
    """Return the code that `call` ends with, OK included, where the specification leaves a choice."""
    try:
        call()
    except grpc.RpcError as error:
        return _call(error).code()
    return Code.OK


def complaint(call: Callable[[], object]) -> str:
    """Return the message that `call` fails with, or nothing if it does not fail."""
    try:
        call()
    except grpc.RpcError as error:
        return _call(error).details() or ""
    return ""


def _call(error: grpc.RpcError) -> grpc.Call:
    return cast("grpc.Call", error)  # the error of a finished call is the call


def _demand(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads like assert
    if not condition:
        raise AssertionError(otherwise)


class Client:
    """The calls of a CO. It remembers what it staged and published, so that `release` can undo it.

    What needs secrets is given `secrets`, unless told otherwise. Paths are made as a CO makes them: the staging folder
    itself, and the target's parent but not the target.
    """

    identity: rpc.IdentityStub
    controller: rpc.ControllerStub
    group: rpc.GroupControllerStub
    node: rpc.NodeStub

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secrets: Mapping[str, str] = {}
        self._channel: grpc.Channel | None = None
        self._targets: dict[tuple[str, Path], None] = {}
        self._stagings: dict[tuple[str, Path], None] = {}
        self._made: set[Path] = set()

    def connect(self, socket: Path) -> None:
        """Make the stubs. Nothing is sent yet; a driver that does not listen yet is tried again quickly."""
        self.disconnect()
        options = [("grpc.initial_reconnect_backoff_ms", 5), ("grpc.max_reconnect_backoff_ms", 20)]
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=options)
        channel = grpc.intercept_channel(self._channel, _Deadline())
        self.identity = rpc.IdentityStub(channel)
        self.controller = rpc.ControllerStub(channel)
        self.group = rpc.GroupControllerStub(channel)
        self.node = rpc.NodeStub(channel)

    def disconnect(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def is_ready(self) -> bool:
        """Ask Probe; no answer means not yet."""
        try:
            answer = self.identity.Probe(csi.ProbeRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return answer.ready.value or not answer.HasField("ready")

    # The controller

    def create(  # noqa: PLR0913 - as many as the request has fields
        self,
        name: str,
        size: int = 0,
        *,
        limit: int = 0,
        params: Mapping[str, str] | None = None,
        block: bool = False,
        fs: str = "",
        mode: Mode.Mode.ValueType = Mode.SINGLE_NODE_WRITER,
        flags: Sequence[str] = (),
        secrets: Mapping[str, str] | None = None,
        nodes: Sequence[str] = (),
        source: Volume | csi.Snapshot | None = None,
    ) -> Volume:
        """CreateVolume. Without `size` and `limit` no capacity range is sent, without `nodes` no topology."""
        wanted = capability(block=block, fs=fs, mode=mode, flags=flags)
        request = csi.CreateVolumeRequest(
            name=name, volume_capabilities=[wanted], parameters=params or {}, secrets=secrets or {}
        )
        if size or limit:
            request.capacity_range.CopyFrom(csi.CapacityRange(required_bytes=size, limit_bytes=limit))
        if nodes:
            request.accessibility_requirements.requisite.extend(topology(*nodes))
        if isinstance(source, Volume):
            request.volume_content_source.volume.volume_id = source.id
        elif source is not None:
            request.volume_content_source.snapshot.snapshot_id = source.snapshot_id
        made = self.controller.CreateVolume(request).volume
        if made.content_source != request.volume_content_source:
            raise AssertionError(f"made from {made.content_source}, not from {request.volume_content_source}")
        return Volume(id=made.volume_id, size=made.capacity_bytes, capability=wanted, context=dict(made.volume_context))

    def delete(self, volume: Volume) -> None:
        """DeleteVolume."""
        self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume.id))

    def expand_controller(self, volume: Volume, size: int, *, limit: int = 0) -> csi.ControllerExpandVolumeResponse:
        """ControllerExpandVolume."""
        return self.controller.ControllerExpandVolume(
            csi.ControllerExpandVolumeRequest(
                volume_id=volume.id,
                capacity_range=csi.CapacityRange(required_bytes=size, limit_bytes=limit),
                volume_capability=volume.capability,
            )
        )

    def volumes(self) -> list[csi.Volume]:
        """ListVolumes, all of them."""
        return [entry.volume for entry in self.controller.ListVolumes(csi.ListVolumesRequest()).entries]

    def snapshot(self, volume: Volume, name: str = "") -> csi.Snapshot:
        """CreateSnapshot."""
        asked = csi.CreateSnapshotRequest(source_volume_id=volume.id, name=name or f"snap-{volume.id}")
        return self.controller.CreateSnapshot(asked).snapshot

    def delete_snapshot(self, snapshot: csi.Snapshot) -> None:
        """DeleteSnapshot."""
        self.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id))

    def snapshots(self, **options: Any) -> list[csi.Snapshot]:  # noqa: ANN401
        """ListSnapshots; the words are the request's."""
        return [entry.snapshot for entry in self.controller.ListSnapshots(csi.ListSnapshotsRequest(**options)).entries]

    def snapshot_group(self, name: str, *volumes: Volume) -> csi.VolumeGroupSnapshot:
        """CreateVolumeGroupSnapshot."""
        sources = [volume.id for volume in volumes]
        asked = csi.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=sources)
        return self.group.CreateVolumeGroupSnapshot(asked).group_snapshot

    def delete_group(self, group: str, *members: csi.Snapshot) -> None:
        """DeleteVolumeGroupSnapshot."""
        ids = [member.snapshot_id for member in members]
        asked = csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group, snapshot_ids=ids)
        self.group.DeleteVolumeGroupSnapshot(asked)

    def capacity(
        self,
        params: Mapping[str, str] | None = None,
        *,
        node: str = "",
        access: Capability | None = None,
    ) -> csi.GetCapacityResponse:
        """GetCapacity."""
        request = csi.GetCapacityRequest(parameters=params or {}, volume_capabilities=[access] if access else [])
        if node:
            request.accessible_topology.CopyFrom(topology(node)[0])
        return self.controller.GetCapacity(request)

    # The node

    def staging_path(self, volume: Volume) -> Path:
        """Return where `stage` puts a volume unless told otherwise."""
        return self.root / "staging" / volume.id

    def target_path(self, volume: Volume, name: str = "target") -> Path:
        """Return where `publish` puts a volume."""
        return self.root / "targets" / volume.id / name

    def stage(
        self,
        volume: Volume,
        staging: Path | None = None,
        *,
        access: Capability | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> Path:
        """NodeStageVolume; return the staging path."""
        path = staging or self.staging_path(volume)
        path.mkdir(parents=True, exist_ok=True)
        self._stagings[volume.id, path] = None
        self.node.NodeStageVolume(
            csi.NodeStageVolumeRequest(
                volume_id=volume.id,
                staging_target_path=str(path),
                volume_capability=access or volume.capability,
                volume_context=volume.context,
                secrets=self.secrets if secrets is None else secrets,
            )
        )
        return path

    def unstage(self, volume: Volume, staging: Path | None = None) -> None:
        """NodeUnstageVolume."""
        path = staging or self.staging_path(volume)
        self.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(volume_id=volume.id, staging_target_path=str(path)))
        self._stagings.pop((volume.id, path), None)

    def publish(
        self,
        volume: Volume,
        target: str | Path = "target",
        *,
        readonly: bool = False,
        access: Capability | None = None,
        staging: Path | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> Path:
        """NodePublishVolume; return the target path. A plain name is put into the volume's own folder."""
        path = target if isinstance(target, Path) else self.target_path(volume, target)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._targets[volume.id, path] = None
        self._made.add(path)
        self._stagings[volume.id, staging or self.staging_path(volume)] = None  # it may be made good
        self.node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume.id,
                staging_target_path=str(staging or self.staging_path(volume)),
                target_path=str(path),
                volume_capability=access or volume.capability,
                readonly=readonly,
                volume_context=volume.context,
                secrets=self.secrets if secrets is None else secrets,
            )
        )
        return path

    def publish_inline(self, volume: Volume, *, readonly: bool = False, group: str = "", target: str = "") -> Path:
        """NodePublishVolume of an inline volume, at a path as the kubelet's are; nothing is staged."""
        pod = self.root / "kubelet" / "pods" / volume.id[-8:]
        path = Path(target) if target else pod / "volumes" / "kubernetes.io~csi" / "scratch" / "mount"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._targets[volume.id, path] = None
        self._made.add(path)
        wanted = Capability()
        wanted.CopyFrom(volume.capability)
        wanted.mount.volume_mount_group = group
        self.node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume.id,
                target_path=str(path),
                volume_capability=wanted,
                readonly=readonly,
                volume_context=volume.context,
            )
        )
        return path

    def unpublish(self, volume: Volume, target: str | Path = "target") -> None:
        """NodeUnpublishVolume."""
        path = target if isinstance(target, Path) else self.target_path(volume, target)
        self.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=volume.id, target_path=str(path)))
        self._targets.pop((volume.id, path), None)

    def attach(self, volume: Volume) -> Path:
        """Stage and publish; return the target path."""
        self.stage(volume)
        return self.publish(volume)

    def detach(self, volume: Volume) -> None:
        """Undo `attach`."""
        self.unpublish(volume)
        self.unstage(volume)

    def expand_node(
        self, volume: Volume, size: int, *, path: Path | None = None, secrets: Mapping[str, str] | None = None
    ) -> csi.NodeExpandVolumeResponse:
        """NodeExpandVolume, by default at the target that `publish` made."""
        return self.node.NodeExpandVolume(
            csi.NodeExpandVolumeRequest(
                volume_id=volume.id,
                volume_path=str(path or self.target_path(volume)),
                staging_target_path=str(self.staging_path(volume)),
                capacity_range=csi.CapacityRange(required_bytes=size),
                volume_capability=volume.capability,
                secrets=self.secrets if secrets is None else secrets,
            )
        )

    def expand(self, volume: Volume, size: int) -> int:
        """Grow a published volume the way a CO does; return the size the controller reported."""
        grown = self.expand_controller(volume, size)
        if grown.node_expansion_required:
            self.expand_node(volume, size)
        return grown.capacity_bytes

    def stats(self, volume: Volume, path: Path) -> csi.NodeGetVolumeStatsResponse:
        """NodeGetVolumeStats."""
        return self.node.NodeGetVolumeStats(
            csi.NodeGetVolumeStatsRequest(
                volume_id=volume.id,
                volume_path=str(path),
                staging_target_path=str(self.staging_path(volume)),
            )
        )

    # All of it

    def release(self) -> None:
        """Unpublish, unstage and delete everything, in the order a CO does."""
        for volume_id, target in list(self._targets):
            self.unpublish(Volume(id=volume_id), target)
        for volume_id, staging in list(self._stagings):
            self.unstage(Volume(id=volume_id), staging)
        for volume in self.volumes():
            self.delete(Volume(id=volume.volume_id))
        for group in {snapshot.group_snapshot_id for snapshot in self.snapshots()} - {""}:
            self.delete_group(group)
        for snapshot in self.snapshots():
            self.delete_snapshot(snapshot)

    def targets_left(self) -> list[Path]:
        """Return the targets that are still there: the driver makes them, so the driver removes them."""
        return [path for path in self._made - {path for _, path in self._targets} if path.exists()]

    def forget(self) -> None:
        """Remember nothing of what was staged and published."""
        self._targets.clear()
        self._stagings.clear()
        self._made.clear()


@dataclass(frozen=True)
class _Details(grpc.ClientCallDetails):
    """Call details that can be made; grpc's own cannot."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Deadline(grpc.UnaryUnaryClientInterceptor):
    """Gives every call a deadline."""

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Any], Any],
        client_call_details: grpc.ClientCallDetails,
        request: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        d = client_call_details
        timeout = CALL_SECONDS if d.timeout is None else d.timeout
        details = _Details(d.method, timeout, d.metadata, d.credentials, d.wait_for_ready, d.compression)
        return continuation(details, request)
