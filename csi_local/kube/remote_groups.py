"""The controller's groups of snapshots: what is wanted goes into LocalGroupSnapshots, and their nodes answer."""

from collections.abc import Sequence

from csi_local.engine.api import GroupView
from csi_local.kube.api import Object
from csi_local.kube.desired import Desired
from csi_local.kube.group_resource import group_request, group_view, made, new_group
from csi_local.kube.remote import node_that_has
from csi_local.kube.resources import resource_name
from csi_local.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from csi_local.model.snapshot import GroupRequest, group_id
from csi_local.model.volume import check_name, known_id
from csi_local.plan.grouping import check_members


class RemoteGroups:
    """Groups, through the Kubernetes API."""

    def __init__(self, groups: Desired, volumes: Desired) -> None:
        self._groups = groups
        self._volumes = volumes

    def create(self, request: GroupRequest, patience_s: float) -> GroupView:
        """Have a node take snapshots of several volumes at one moment, or find those of an identical request.

        Raises:
            InvalidArgument: no volume is named.
            NotFound: a volume is not there, or its node has left the cluster.
            AlreadyExists: the name is taken by a group of other volumes.
            FailedPrecondition: the volumes are on several nodes.
            Unavailable: their node is not there.
            Busy: it has not answered within *patience_s*; asked again, this goes on where it was.
            DriverError: what it has answered.
        """
        name = resource_name(group_id(check_name(request.name, "group")))
        if not request.sources:
            raise InvalidArgument("source_volume_ids are missing")

        def check(found: Object) -> None:
            sources = group_request(found).sources
            if sorted(sources) != sorted(set(request.sources)):
                raise AlreadyExists(f"group {request.name!r} exists, of the volumes {', '.join(sources)}")

        found = self._groups.provide(
            name, patience_s, begin=lambda: new_group(request, self._node_of(request.sources)), check=check, made=made
        )
        return group_view(found)

    def _node_of(self, sources: Sequence[str]) -> str:
        nodes = {node_that_has(self._volumes, shown) for shown in sources}
        if len(nodes) > 1:
            raise FailedPrecondition(
                f"the volumes are on the nodes {' and '.join(sorted(nodes))}: there is no one moment across nodes; a"
                " group's volumes must be in one pool"
            )
        return nodes.pop()

    def delete(self, shown: str, members: Sequence[str], patience_s: float) -> None:
        """Have its node remove a group with all its snapshots; no error where it is not there, or its node is no more.

        Raises:
            InvalidArgument: *members* are not those that it has.
            Unavailable: its node is not there; it will be removed when it is back.
            DriverError: what the node has answered: Busy while a volume is being made from one.
        """
        found = self._groups.find_made(shown, made)
        if found is not None:
            check_members(group_view(found).record, members)
        if (group := known_id(shown)) is not None:
            self._groups.remove(resource_name(group), patience_s)

    def get(self, shown: str, members: Sequence[str] = ()) -> GroupView:
        """A group by its id.

        Raises:
            NotFound: there is none.
            InvalidArgument: *members* are not those that it has.
        """
        found = self._groups.find_made(shown, made)
        if found is None:
            raise NotFound(f"there is no group {shown!r}")
        view = group_view(found)
        check_members(view.record, members)
        return view
