"""The controller's snapshots: what is wanted goes into LocalSnapshots, and the nodes of their volumes answer.

A snapshot is on the node of its volume, which alone can take it, and stays there when the volume is gone.
"""

from bisect import bisect_right

from csi_local.engine.api import SnapshotView
from csi_local.kube.api import Object
from csi_local.kube.desired import Desired
from csi_local.kube.remote import Origin
from csi_local.kube.resources import node_of, resource_name
from csi_local.kube.snapshot_resource import made, new_snapshot, snapshot_request, snapshot_view
from csi_local.kube.volume_resource import made as volume_made
from csi_local.model.errors import AlreadyExists, NotFound
from csi_local.model.snapshot import SnapshotRequest, snapshot_id
from csi_local.model.volume import check_name, known_id


class RemoteSnapshots:
    """Snapshots, through the Kubernetes API."""

    def __init__(self, snapshots: Desired, volumes: Desired) -> None:
        self._snapshots = snapshots
        self._volumes = volumes

    def create(self, request: SnapshotRequest, patience_s: float) -> SnapshotView:
        """Have its volume's node take a snapshot, or find the one that an identical request took.

        Raises:
            NotFound: there is no such volume.
            AlreadyExists: the name is taken by a snapshot of another volume.
            Unavailable: the volume's node is not there.
            Busy: it has not answered within *patience_s*; asked again, this goes on where it was.
            DriverError: what it has answered.
        """
        name = resource_name(snapshot_id(check_name(request.name, "snapshot")))

        def check(found: Object) -> None:
            if (source := snapshot_request(found).source) != request.source:
                raise AlreadyExists(f"snapshot {request.name!r} exists, of volume {source}")

        found = self._snapshots.provide(
            name,
            patience_s,
            begin=lambda: new_snapshot(request, self._node_of(request.source)),
            check=check,
            made=made,
        )
        return snapshot_view(found)

    def _node_of(self, shown: str) -> str:
        volume = known_id(shown)
        found = self._volumes.find(resource_name(volume)) if volume is not None else None
        if found is None or not volume_made(found):
            raise NotFound(f"there is no volume {shown!r}")
        self._volumes.nodes.check_alive(node_of(found), f"volume {shown}")
        return node_of(found)

    def delete(self, shown: str, patience_s: float) -> None:
        """Have its node remove a snapshot; no error where it is not there, or its node has left the cluster.

        Raises:
            Unavailable: its node is not there; it will be removed when it is back.
            DriverError: what the node has answered: Busy while a volume is being made from it.
        """
        if (snapshot := known_id(shown)) is not None:
            self._snapshots.remove(resource_name(snapshot), patience_s)

    def get(self, shown: str) -> SnapshotView:
        """A snapshot by its id, one that is still being copied too.

        Raises:
            NotFound: there is none.
        """
        found = self._find(shown)
        if found is None:
            raise NotFound(f"there is no snapshot {shown!r}")
        return snapshot_view(found)

    def origin(self, shown: str) -> Origin | None:
        """Where a snapshot is, and what a volume that is made from it is like; None where there is none."""
        found = self._find(shown)
        if found is None:
            return None
        record = snapshot_view(found).record
        return Origin(node=node_of(found), like=record.volume if record else None)

    def _find(self, shown: str) -> Object | None:
        snapshot = known_id(shown)
        found = self._snapshots.find(resource_name(snapshot)) if snapshot is not None else None
        return found if found is not None and made(found) else None

    def list(self, after: str, count: int, source: str = "") -> tuple[list[SnapshotView], str]:
        """At most *count* snapshots (0: all), of one volume or of all, by id, beginning behind *after*.

        The second value is where to go on, "" at the end.
        """
        views = {view.id: view for view in map(snapshot_view, filter(made, self._snapshots.items()))}
        ids = sorted(key for key, view in views.items() if not source or _is_of(view, source))
        start = bisect_right(ids, after) if after else 0
        page = ids[start : start + count] if count else ids[start:]
        more = bool(count) and start + count < len(ids)
        return [views[key] for key in page], page[-1] if more else ""


def _is_of(view: SnapshotView, source: str) -> bool:
    return view.record is not None and view.record.source == source
