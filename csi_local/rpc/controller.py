"""CSI Controller: each method translates, calls one use case, and translates back."""

from google.protobuf.wrappers_pb2 import Int64Value

from csi_local._proto import csi_pb2
from csi_local.engine.api import SizeEngine, SnapshotEngine, SnapshotView, VolumeEngine
from csi_local.model.errors import InvalidArgument, NotFound
from csi_local.model.parameters import parse_parameters
from csi_local.plan.request import VolumeRequest, unusable
from csi_local.rpc import snapshots, translate
from csi_local.rpc.boundary import Context, patience

_Rpc = csi_pb2.ControllerServiceCapability.RPC
CAPABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_CAPACITY,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)
COPIES = (
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.CLONE_VOLUME,
)
"""What there is only where snapshots are."""


class Controller:
    """Volumes and snapshots as the provisioner, the resizer and the snapshotter see them."""

    def __init__(
        self,
        volumes: VolumeEngine,
        sizes: SizeEngine,
        copies: SnapshotEngine | None = None,
        *,
        get_snapshot: bool = False,
    ) -> None:
        """Without *copies* there are none, and no clones.

        *get_snapshot* offers GetSnapshot, which clients that know an older CSI do not expect.
        """
        self._volumes = volumes
        self._sizes = sizes
        self._able_to_copy = copies
        self._get_snapshot = get_snapshot

    def CreateVolume(  # noqa: N802 (the protocol's name; likewise below)
        self, request: csi_pb2.CreateVolumeRequest, context: Context
    ) -> csi_pb2.CreateVolumeResponse:
        """Make a volume, or answer with the one that is there."""
        wanted = translate.create_request(request)
        if wanted.source and self._able_to_copy is None:
            raise InvalidArgument("volumes from snapshots or other volumes are not in this version")
        where = translate.accessibility(request.accessibility_requirements)
        view = self._volumes.create(wanted, patience(context), where)
        return csi_pb2.CreateVolumeResponse(volume=translate.volume(view))

    def DeleteVolume(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeRequest, context: Context
    ) -> csi_pb2.DeleteVolumeResponse:
        """Remove a volume that is not in use."""
        self._volumes.delete(translate.volume_id(request.volume_id), patience(context))
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(  # noqa: N802
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, _context: Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm what the volume can do, or say what it cannot."""
        shown = translate.volume_id(request.volume_id)
        wanted = translate.capabilities(request.volume_capabilities)
        view = self._volumes.get(shown)
        if view.record is None:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=view.problem)
        reasons = [reason for one in wanted if (reason := unusable(view.record, one))]
        if request.volume_context and dict(request.volume_context) != translate.context(view):
            reasons.append(f"the volume's context is {translate.context(view)}")
        if request.parameters and dict(parse_parameters(dict(request.parameters)).given) != dict(
            view.record.parameters
        ):
            reasons.append(f"the volume's parameters are {dict(view.record.parameters)}")
        if request.mutable_parameters:
            reasons.append("the volume has no mutable parameters")
        if reasons:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message="; ".join(reasons))
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    def ListVolumes(  # noqa: N802
        self, request: csi_pb2.ListVolumesRequest, _context: Context
    ) -> csi_pb2.ListVolumesResponse:
        """The volumes in the order of their ids, paged."""
        if request.max_entries < 0:
            raise InvalidArgument("max_entries cannot be negative")
        views, more = self._volumes.list(translate.after_token(request.starting_token), request.max_entries)
        status = csi_pb2.ListVolumesResponse.VolumeStatus
        entries = [
            csi_pb2.ListVolumesResponse.Entry(
                volume=translate.volume(view),
                status=status(volume_condition=translate.condition(view.problem)),
            )
            for view in views
        ]
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=translate.token(more))

    def ControllerGetVolume(  # noqa: N802
        self, request: csi_pb2.ControllerGetVolumeRequest, _context: Context
    ) -> csi_pb2.ControllerGetVolumeResponse:
        """One volume, and how well it is."""
        view = self._volumes.get(translate.volume_id(request.volume_id))
        status = csi_pb2.ControllerGetVolumeResponse.VolumeStatus
        return csi_pb2.ControllerGetVolumeResponse(
            volume=translate.volume(view),
            status=status(volume_condition=translate.condition(view.problem)),
        )

    def GetCapacity(  # noqa: N802
        self, request: csi_pb2.GetCapacityRequest, _context: Context
    ) -> csi_pb2.GetCapacityResponse:
        """Room for volumes of that class on that node."""
        wanted = VolumeRequest(
            name="",
            capabilities=tuple(translate.capability(one) for one in request.volume_capabilities),
            parameters=parse_parameters(translate.class_parameters(request.parameters)),
        )
        found = self._volumes.capacity(wanted, translate.accessibility_of(request.accessible_topology))
        return csi_pb2.GetCapacityResponse(
            available_capacity=found.available,
            maximum_volume_size=Int64Value(value=found.largest),
            minimum_volume_size=Int64Value(value=found.smallest),
        )

    def ControllerExpandVolume(  # noqa: N802
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: Context
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Give a volume more room; what is mounted follows in NodeExpandVolume."""
        shown = translate.volume_id(request.volume_id)
        wanted = translate.capacity_range(request.capacity_range)
        given = translate.capability(request.volume_capability) if request.HasField("volume_capability") else None
        size, on_node = self._sizes.expand(shown, wanted, given, patience(context))
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=on_node)

    @property
    def _snapshots(self) -> SnapshotEngine:
        if self._able_to_copy is None:
            raise NotImplementedError
        return self._able_to_copy

    def CreateSnapshot(  # noqa: N802
        self, request: csi_pb2.CreateSnapshotRequest, context: Context
    ) -> csi_pb2.CreateSnapshotResponse:
        """Take a snapshot, or answer with the one that is there."""
        view = self._snapshots.create(snapshots.snapshot_request(request), patience(context))
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshots.snapshot(view))

    def DeleteSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteSnapshotRequest, context: Context
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Remove a snapshot."""
        self._snapshots.delete(snapshots.snapshot_id(request.snapshot_id), patience(context))
        return csi_pb2.DeleteSnapshotResponse()

    def ListSnapshots(  # noqa: N802
        self, request: csi_pb2.ListSnapshotsRequest, _context: Context
    ) -> csi_pb2.ListSnapshotsResponse:
        """The snapshots in the order of their ids, paged; those of one volume; or one. None is no error."""
        if request.max_entries < 0:
            raise InvalidArgument("max_entries cannot be negative")
        after = translate.after_token(request.starting_token)
        if request.snapshot_id:
            views, more = self._one(request.snapshot_id, request.source_volume_id), ""
        else:
            views, more = self._snapshots.list(after, request.max_entries, request.source_volume_id)
        entry = csi_pb2.ListSnapshotsResponse.Entry
        entries = [entry(snapshot=snapshots.snapshot(view)) for view in views if view.record is not None]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=translate.token(more))

    def _one(self, shown: str, source: str) -> list[SnapshotView]:
        try:
            view = self._snapshots.get(shown)
        except NotFound:
            return []
        of = view.record.source if view.record else ""
        return [view] if source in ("", of) else []

    def GetSnapshot(  # noqa: N802
        self, request: csi_pb2.GetSnapshotRequest, _context: Context
    ) -> csi_pb2.GetSnapshotResponse:
        """One snapshot, where this is offered."""
        if not self._get_snapshot:
            raise NotImplementedError
        view = self._snapshots.get(snapshots.snapshot_id(request.snapshot_id))
        return csi_pb2.GetSnapshotResponse(snapshot=snapshots.snapshot(view))

    def ControllerGetCapabilities(  # noqa: N802
        self, _request: csi_pb2.ControllerGetCapabilitiesRequest, _context: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """What this version's controller can do."""
        capability = csi_pb2.ControllerServiceCapability
        offered = [*CAPABILITIES, *(COPIES if self._able_to_copy else ())]
        offered += [_Rpc.GET_SNAPSHOT] if self._get_snapshot else []
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[capability(rpc=_Rpc(type=kind)) for kind in offered]
        )
