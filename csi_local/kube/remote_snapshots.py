"""The controller's snapshots: what is wanted goes into LocalSnapshots, and the nodes of their volumes answer.

A snapshot is on the node of its volume, which alone can take it, and stays there when the volume is gone.
"""

from bisect import bisect_right

from csi_local.engine.api import SnapshotView
from csi_local.kube.api import Object
from csi_local.kube.desired import Desired
from csi_local.kube.group_resource import group_view
from csi_local.kube.group_resource import made as group_made
from csi_local.kube.remote import Origin, node_that_has
from csi_local.kube.resources import node_of, resource_name
from csi_local.kube.snapshot_resource import made, new_snapshot, ready, snapshot_request, snapshot_view
from csi_local.model.errors import AlreadyExists, InvalidArgument, NotFound
from csi_local.model.snapshot import SnapshotRequest, snapshot_id
from csi_local.model.volume import check_name, known_id


class RemoteSnapshots:
    """Snapshots, through the Kubernetes API."""

    def __init__(self, snapshots: Desired, groups: Desired, volumes: Desired) -> None:
        self._snapshots = snapshots
        self._groups = groups
        self._volumes = volumes

    def create(self, request: SnapshotRequest, patience_s: float) -> SnapshotView:
        """Have its volume's node take a snapshot, or find the one that an identical request took.

        Raises:
            NotFound: there is no such volume, or its node has left the cluster.
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
            begin=lambda: new_snapshot(request, node_that_has(self._volumes, request.source)),
            check=check,
            made=made,
        )
        if not ready(found) and self._snapshots.nodes.removed(node_of(found)):
            raise NotFound(f"node {node_of(found)} has left the cluster before snapshot {request.name!r} was whole")
        return snapshot_view(found)

    def delete(self, shown: str, patience_s: float) -> None:
        """Have its node remove a snapshot; no error where it is not there, or its node has left the cluster.

        Raises:
            InvalidArgument: it was taken with a group, and goes with that.
            Unavailable: its node is not there; it will be removed when it is back.
            DriverError: what the node has answered: Busy while a volume is being made from it.
        """
        if (member := self._members().get(shown)) is not None:
            group = member[1].record.group if member[1].record else ""
            raise InvalidArgument(
                f"snapshot {shown} was taken with group {group}: delete the group, with all that is in it"
            )
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
        return found[1]

    def origin(self, shown: str) -> Origin | None:
        """Where a snapshot is, and what a volume that is made from it is like; None where there is none."""
        found = self._find(shown)
        if found is None:
            return None
        node, view = found
        return Origin(node=node, like=view.record.volume if view.record else None)

    def _find(self, shown: str) -> tuple[str, SnapshotView] | None:
        """A snapshot, alone or with a group, and the node that has it."""
        if (member := self._members().get(shown)) is not None:
            return member
        found = self._snapshots.find_made(shown, made)
        return (node_of(found), snapshot_view(found)) if found is not None else None

    def _members(self) -> dict[str, tuple[str, SnapshotView]]:
        """The snapshots that are in groups, likewise; there are few groups."""
        groups = [found for found in self._groups.items() if group_made(found)]
        return {view.id: (node_of(found), view) for found in groups for view in group_view(found).members}

    def list(self, after: str, count: int, source: str = "") -> tuple[list[SnapshotView], str]:
        """At most *count* snapshots (0: all), of one volume or of all, by id, beginning behind *after*.

        The second value is where to go on, "" at the end.
        """
        views = {view.id: view for view in map(snapshot_view, filter(made, self._snapshots.items()))}
        views |= {view.id: view for _, view in self._members().values()}
        ids = sorted(key for key, view in views.items() if not source or _is_of(view, source))
        start = bisect_right(ids, after) if after else 0
        page = ids[start : start + count] if count else ids[start:]
        more = bool(count) and start + count < len(ids)
        return [views[key] for key in page], page[-1] if more else ""


def _is_of(view: SnapshotView, source: str) -> bool:
    return view.record is not None and view.record.source == source
