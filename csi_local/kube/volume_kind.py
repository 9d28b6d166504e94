"""LocalVolumes, for their node's agent."""

from csi_local.engine.api import SizeEngine, VolumeEngine, VolumeView
from csi_local.kube import volume_resource
from csi_local.kube.api import Object
from csi_local.kube.events import About, about_claim
from csi_local.kube.kind import PATIENCE_S
from csi_local.kube.resources import VOLUMES
from csi_local.model.errors import FailedPrecondition, NotFound
from csi_local.model.volume import CapacityRange, FormatState, VolumeId, volume_id


class VolumeKind:
    """What a LocalVolume wants is made, grown or removed by the engine of this node."""

    collection, resource, noun = VOLUMES, "LocalVolume", "volume"
    goes_with = "its PersistentVolume is deleted (with reclaim policy Delete)"

    def __init__(self, volumes: VolumeEngine, sizes: SizeEngine, node: str) -> None:
        self._volumes = volumes
        self._sizes = sizes
        self._node = node

    def id_of(self, wanted: Object) -> VolumeId:
        """The volume's id."""
        return volume_id(wanted["spec"]["volumeName"])

    def acknowledged(self, wanted: Object) -> bool:
        """Whether anybody was told of the volume, by this node or another."""
        return bool(wanted.get("status", {}).get("volumeId"))

    def pending(self, _wanted: Object) -> bool:
        """A volume is made, or it is asked for again."""
        return False

    def made(self, wanted: Object) -> bool:
        """Whether its node has it."""
        return volume_resource.made(wanted)

    def about(self, wanted: Object) -> About | None:
        """Its claim."""
        spec = wanted["spec"]
        claim = spec.get("claim")
        return about_claim(claim["namespace"], claim["name"], spec["volumeName"]) if claim else None

    def ready_status(self, wanted: Object, view: VolumeView, *, now: str) -> Object:
        """See ``volume_resource``; likewise the next two."""
        return volume_resource.ready_status(wanted, view, now=now)

    def failed_status(self, wanted: Object, error: Exception, *, now: str) -> Object:
        """Why it is not as wanted."""
        return volume_resource.failed_status(wanted, error, now=now)

    def adopted(self, view: VolumeView) -> Object | None:
        """The resource of a volume on the disk."""
        return volume_resource.adopted_volume(view.record, self._node) if view.record else None

    def operation(self, what: str) -> str:
        """To keep a volume as wanted is to let it grow."""
        return "expand" if what == "keep" else what

    def create(self, wanted: Object) -> VolumeView:
        """Make a volume."""
        return self._volumes.create(volume_resource.volume_request(wanted), PATIENCE_S)

    def keep(self, wanted: Object) -> VolumeView:
        """See that a volume is as large as wanted; to make it again would give out an empty one in its place."""
        volume = self.id_of(wanted)
        capacity = volume_resource.capacity_range(wanted)
        try:
            if capacity != CapacityRange():
                self._sizes.expand(volume, capacity, None, PATIENCE_S)
            view = self._volumes.get(volume)
        except NotFound:
            raise NotFound(f"the data of volume {volume} is gone from node {self._node}") from None
        if view.record is None:
            raise FailedPrecondition(view.problem)
        return view

    def get(self, identifier: str) -> VolumeView:
        """The volume as it is."""
        return self._volumes.get(identifier)

    def delete(self, identifier: str) -> None:
        """Remove a volume that is not in use."""
        self._volumes.delete(identifier, PATIENCE_S)

    def is_empty(self, view: VolumeView) -> bool:
        """Whether it was never even formatted."""
        return view.record is not None and view.record.format is FormatState.UNFORMATTED
