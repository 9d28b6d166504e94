"""CSI Node: each method translates, calls one use case, and translates back."""

from csi_local._proto import csi_pb2
from csi_local.engine.ephemeral import Ephemeral
from csi_local.engine.publish import Publisher
from csi_local.engine.sizes import Sizes
from csi_local.model.errors import FailedPrecondition
from csi_local.model.observed import Usage
from csi_local.rpc import translate
from csi_local.rpc.boundary import Context, patience

_Rpc = csi_pb2.NodeServiceCapability.RPC
CAPABILITIES = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)
"""Without VOLUME_MOUNT_GROUP the kubelet gives a volume to a pod's fsGroup itself, and only it knows the pod's
fsGroupChangePolicy. A CO that asks for a group all the same gets it."""


class Node:
    """Volumes as the kubelet sees them."""

    def __init__(self, publisher: Publisher, ephemeral: Ephemeral, sizes: Sizes, node: str, max_volumes: int) -> None:
        self._publisher = publisher
        self._ephemeral = ephemeral
        self._sizes = sizes
        self._node = node
        self._max_volumes = max_volumes

    def NodeStageVolume(  # noqa: N802 (the protocol's name; likewise below)
        self, request: csi_pb2.NodeStageVolumeRequest, context: Context
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Make a volume ready: attach, format once, mount."""
        shown = translate.volume_id(request.volume_id)
        staging = translate.path(request.staging_target_path, "staging_target_path")
        given = request.HasField("volume_capability")
        capability = translate.required_capability(request.volume_capability, present=given)
        self._publisher.stage(shown, staging, capability, patience(context), translate.keys(request.secrets))
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Undo what NodeStageVolume did."""
        shown = translate.volume_id(request.volume_id)
        staging = translate.path(request.staging_target_path, "staging_target_path")
        self._publisher.unstage(shown, staging, patience(context))
        return csi_pb2.NodeUnstageVolumeResponse()

    def NodePublishVolume(  # noqa: N802
        self, request: csi_pb2.NodePublishVolumeRequest, context: Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Make a volume appear at a pod's path; an inline one is made first."""
        if translate.is_ephemeral(request):
            wanted = translate.ephemeral_request(request)
            self._ephemeral.publish(wanted, patience(context), read_only=request.readonly)
            return csi_pb2.NodePublishVolumeResponse()
        shown = translate.volume_id(request.volume_id)
        target = translate.path(request.target_path, "target_path")
        given = request.HasField("volume_capability")
        capability = translate.required_capability(request.volume_capability, present=given)
        if not request.staging_target_path:
            raise FailedPrecondition("staging_target_path is missing: this driver stages volumes")
        staging = translate.path(request.staging_target_path, "staging_target_path")
        given_keys = translate.keys(request.secrets)
        paths = (staging, target)
        self._publisher.publish(shown, paths, capability, patience(context), given_keys, read_only=request.readonly)
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take a volume from a pod's path, and the path away; with an inline one that is its end."""
        shown = translate.volume_id(request.volume_id)
        target = translate.path(request.target_path, "target_path")
        if not self._ephemeral.unpublish(shown, target, patience(context)):
            self._publisher.unpublish(shown, target, patience(context))
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(  # noqa: N802
        self, request: csi_pb2.NodeGetVolumeStatsRequest, _context: Context
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """How full a volume is, and how well."""
        shown = translate.volume_id(request.volume_id)
        path = translate.volume_path(request.volume_path)
        usage, record, problem = self._publisher.stats(shown, path)
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=_usage(usage, block=record.block), volume_condition=translate.condition(problem)
        )

    def NodeExpandVolume(  # noqa: N802
        self, request: csi_pb2.NodeExpandVolumeRequest, context: Context
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Let device and filesystem have the size that the volume was given."""
        shown = translate.volume_id(request.volume_id)
        path = translate.volume_path(request.volume_path)
        wanted = translate.capacity_range(request.capacity_range)
        given = translate.capability(request.volume_capability) if request.HasField("volume_capability") else None
        given_keys = translate.keys(request.secrets)
        size = self._sizes.expand_on_node(shown, path, wanted, given, patience(context), given_keys)
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=size)

    def NodeGetCapabilities(  # noqa: N802
        self, _request: csi_pb2.NodeGetCapabilitiesRequest, _context: Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """What this version's node can do."""
        capability = csi_pb2.NodeServiceCapability
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[capability(rpc=_Rpc(type=kind)) for kind in CAPABILITIES]
        )

    def NodeGetInfo(  # noqa: N802
        self, _request: csi_pb2.NodeGetInfoRequest, _context: Context
    ) -> csi_pb2.NodeGetInfoResponse:
        """This node's name, topology and limit."""
        return csi_pb2.NodeGetInfoResponse(
            node_id=self._node,
            max_volumes_per_node=self._max_volumes,
            accessible_topology=translate.topology(self._node),
        )


def _usage(usage: Usage, *, block: bool) -> list[csi_pb2.VolumeUsage]:
    """Bytes, and inodes where somebody counts them. Of a raw block device only the size is known."""
    unit = csi_pb2.VolumeUsage.Unit
    if block:
        return [csi_pb2.VolumeUsage(unit=unit.BYTES, total=usage.total)]
    found = [csi_pb2.VolumeUsage(unit=unit.BYTES, total=usage.total, used=usage.used, available=usage.available)]
    if usage.inodes:
        found.append(
            csi_pb2.VolumeUsage(
                unit=unit.INODES, total=usage.inodes, used=usage.used_inodes, available=usage.free_inodes
            )
        )
    return found
