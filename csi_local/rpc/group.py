"""CSI GroupController: snapshots of several volumes at one moment."""

from csi_local._proto import csi_pb2
from csi_local.engine.api import GroupEngine, GroupView
from csi_local.model.errors import InvalidArgument
from csi_local.model.snapshot import GroupRequest
from csi_local.rpc import snapshots
from csi_local.rpc.boundary import Context, patience

_Capability = csi_pb2.GroupControllerServiceCapability
_Rpc = _Capability.RPC


class GroupController:
    """Groups as the snapshotter sees them."""

    def __init__(self, groups: GroupEngine) -> None:
        self._groups = groups

    def GroupControllerGetCapabilities(  # noqa: N802 (the protocol's name; likewise below)
        self, _request: csi_pb2.GroupControllerGetCapabilitiesRequest, _context: Context
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        """All that the service has."""
        kind = _Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT
        return csi_pb2.GroupControllerGetCapabilitiesResponse(capabilities=[_Capability(rpc=_Rpc(type=kind))])

    def CreateVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, context: Context
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """Take a group, or answer with the one that is there."""
        if not request.name:
            raise InvalidArgument("name is missing")
        wanted = GroupRequest(
            name=request.name,
            sources=tuple(request.source_volume_ids),
            labels=snapshots.snapshot_labels(request.parameters),
        )
        view = self._groups.create(wanted, patience(context))
        return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=_group(view))

    def DeleteVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, context: Context
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """Remove a group with all its snapshots."""
        group = _group_id(request.group_snapshot_id)
        self._groups.delete(group, list(request.snapshot_ids), patience(context))
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, _context: Context
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        """One group."""
        view = self._groups.get(_group_id(request.group_snapshot_id), list(request.snapshot_ids))
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=_group(view))


def _group_id(text: str) -> str:
    if not text:
        raise InvalidArgument("group_snapshot_id is missing")
    return text


def _group(view: GroupView) -> csi_pb2.VolumeGroupSnapshot:
    return csi_pb2.VolumeGroupSnapshot(
        group_snapshot_id=view.record.id,
        snapshots=[snapshots.snapshot(one) for one in view.members],
        creation_time=snapshots.moment(view.record.created),
        ready_to_use=True,
    )
