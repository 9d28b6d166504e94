"""LocalSnapshots, for their node's agent."""

from csi_local.engine.api import SnapshotEngine, SnapshotView
from csi_local.kube import snapshot_resource
from csi_local.kube.api import Object
from csi_local.kube.events import About, about_snapshot
from csi_local.kube.kind import PATIENCE_S
from csi_local.kube.resources import SNAPSHOTS
from csi_local.model.errors import FailedPrecondition, NotFound
from csi_local.model.snapshot import SnapshotId, snapshot_id


class SnapshotKind:
    """What a LocalSnapshot wants is taken or removed by the engine of this node."""

    collection, resource, noun = SNAPSHOTS, "LocalSnapshot", "snapshot"
    goes_with = "its VolumeSnapshotContent is deleted (with deletion policy Delete)"

    def __init__(self, snapshots: SnapshotEngine, node: str) -> None:
        self._snapshots = snapshots
        self._node = node

    def id_of(self, wanted: Object) -> SnapshotId:
        """The snapshot's id."""
        return snapshot_id(wanted["spec"]["snapshotName"])

    def acknowledged(self, wanted: Object) -> bool:
        """Whether anybody was told that it is whole; a copy that was cut short is begun anew."""
        status = wanted.get("status", {})
        return bool(status.get("snapshotId") and status.get("readyToUse"))

    def pending(self, wanted: Object) -> bool:
        """Whether it is being copied."""
        return snapshot_resource.made(wanted) and not snapshot_resource.ready(wanted)

    def made(self, wanted: Object) -> bool:
        """Whether its node has it."""
        return snapshot_resource.made(wanted)

    def about(self, wanted: Object) -> About | None:
        """Its VolumeSnapshot."""
        spec = wanted["spec"]
        return about_snapshot(spec.get("parameters", {}), spec["snapshotName"])

    def ready_status(self, wanted: Object, view: SnapshotView, *, now: str) -> Object:
        """See ``snapshot_resource``; likewise the next two."""
        return snapshot_resource.ready_status(wanted, view, now=now)

    def failed_status(self, wanted: Object, error: Exception, *, now: str) -> Object:
        """Why it is not as wanted."""
        return snapshot_resource.failed_status(wanted, error, now=now)

    def adopted(self, view: SnapshotView) -> Object | None:
        """The resource of a snapshot on the disk."""
        return snapshot_resource.adopted_snapshot(view.record, self._node) if view.record else None

    def operation(self, what: str) -> str:
        """Told apart from what is done to volumes."""
        return f"{what}-snapshot"

    def create(self, wanted: Object) -> SnapshotView:
        """Take a snapshot, or see how far its copy has come."""
        return self._snapshots.create(snapshot_resource.snapshot_request(wanted), PATIENCE_S)

    def keep(self, wanted: Object) -> SnapshotView:
        """See that a snapshot is there; another one would be of another moment."""
        snapshot = self.id_of(wanted)
        try:
            view = self._snapshots.get(snapshot)
        except NotFound:
            raise NotFound(f"the data of snapshot {snapshot} is gone from node {self._node}") from None
        if view.record is None:
            raise FailedPrecondition(view.problem)
        return view

    def get(self, identifier: str) -> SnapshotView:
        """The snapshot as it is."""
        return self._snapshots.get(identifier)

    def delete(self, identifier: str) -> None:
        """Remove a snapshot that nothing is being made from."""
        self._snapshots.delete(identifier, PATIENCE_S)

    def is_empty(self, _view: SnapshotView) -> bool:
        """It holds what was there."""
        return False
