"""A CSI client for the demo: the calls that a kubelet and the sidecars make, in one class."""

import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from csi_local._proto import csi_pb2, csi_pb2_grpc
from csi_local.model.errors import DriverError

_Mode = csi_pb2.VolumeCapability.AccessMode
_DEADLINE_S = 60.0

Response = TypeVar("Response", bound=Message)


class CallFailed(DriverError):
    """The driver answered with an error.

    Attributes:
        code: the name of the gRPC status.
    """

    def __init__(self, code: str, details: str) -> None:
        """*details* is the driver's message."""
        super().__init__(f"{code}: {details}")
        self.code = code


class Client:
    """Speaks to a driver on *endpoint*."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint)
        self._identity = csi_pb2_grpc.IdentityStub(self._channel)
        self._controller = csi_pb2_grpc.ControllerStub(self._channel)
        self._node = csi_pb2_grpc.NodeStub(self._channel)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Ask Probe until it answers ready."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if self._identity.Probe(csi_pb2.ProbeRequest(), timeout=1).ready.value:
                    return True
            except grpc.RpcError:
                pass
            time.sleep(0.01)
        return False

    def largest(self, parameters: dict[str, str]) -> int:
        """Bytes of the largest volume of that class that could be made."""
        request = csi_pb2.GetCapacityRequest(parameters=parameters)
        return self._controller.GetCapacity(request, timeout=_DEADLINE_S).maximum_volume_size.value

    def create(
        self, name: str, size: int, parameters: dict[str, str], *, block: bool = False, snapshot: str = ""
    ) -> tuple[str, int]:
        """CreateVolume, from a snapshot where one is named; the volume's id and size in bytes."""
        source = csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot)
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            volume_capabilities=[_capability(block=block)],
            parameters=parameters,
            volume_content_source=csi_pb2.VolumeContentSource(snapshot=source) if snapshot else None,
        )
        volume = _answer(self._controller.CreateVolume, request).volume
        return volume.volume_id, volume.capacity_bytes

    def delete(self, volume: str) -> None:
        """DeleteVolume."""
        _answer(self._controller.DeleteVolume, csi_pb2.DeleteVolumeRequest(volume_id=volume))

    def snapshot(self, volume: str, name: str) -> str:
        """CreateSnapshot; its id."""
        request = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name=name)
        return str(_answer(self._controller.CreateSnapshot, request).snapshot.snapshot_id)

    def delete_snapshot(self, snapshot: str) -> None:
        """DeleteSnapshot."""
        _answer(self._controller.DeleteSnapshot, csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot))

    def count(self) -> int:
        """How many volumes ListVolumes has."""
        return len(_answer(self._controller.ListVolumes, csi_pb2.ListVolumesRequest()).entries)

    def stage(self, volume: str, staging: str, *, block: bool) -> None:
        """NodeStageVolume."""
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume, staging_target_path=staging, volume_capability=_capability(block=block)
        )
        _answer(self._node.NodeStageVolume, request)

    def unstage(self, volume: str, staging: str) -> None:
        """NodeUnstageVolume."""
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=staging)
        _answer(self._node.NodeUnstageVolume, request)

    def publish(self, volume: str, staging: str, target: str, *, block: bool, read_only: bool = False) -> None:
        """NodePublishVolume."""
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume,
            staging_target_path=staging,
            target_path=target,
            volume_capability=_capability(block=block),
            readonly=read_only,
        )
        _answer(self._node.NodePublishVolume, request)

    def unpublish(self, volume: str, target: str) -> None:
        """NodeUnpublishVolume."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=target)
        _answer(self._node.NodeUnpublishVolume, request)

    def usage(self, volume: str, path: str) -> tuple[int, int]:
        """NodeGetVolumeStats: bytes in all, and bytes used."""
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=path)
        found = _answer(self._node.NodeGetVolumeStats, request).usage[0]
        return found.total, found.used

    def grow(self, volume: str, size: int) -> int:
        """ControllerExpandVolume; the new size in bytes."""
        wanted = csi_pb2.CapacityRange(required_bytes=size)
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=wanted)
        return int(_answer(self._controller.ControllerExpandVolume, request).capacity_bytes)

    def grow_on_node(self, volume: str, path: str) -> None:
        """NodeExpandVolume."""
        _answer(self._node.NodeExpandVolume, csi_pb2.NodeExpandVolumeRequest(volume_id=volume, volume_path=path))


def _capability(*, block: bool) -> csi_pb2.VolumeCapability:
    mode = _Mode(mode=_Mode.SINGLE_NODE_MULTI_WRITER)
    if block:
        return csi_pb2.VolumeCapability(access_mode=mode, block=csi_pb2.VolumeCapability.BlockVolume())
    return csi_pb2.VolumeCapability(access_mode=mode, mount=csi_pb2.VolumeCapability.MountVolume())


def _answer(call: Callable[..., Response], request: Message) -> Response:
    try:
        return call(request, timeout=_DEADLINE_S)
    except grpc.RpcError as error:
        raise CallFailed(error.code().name, error.details() or "") from None
