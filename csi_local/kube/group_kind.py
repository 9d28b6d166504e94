"""LocalGroupSnapshots, for their node's agent."""

from csi_local.engine.api import GroupEngine, GroupView
from csi_local.kube import group_resource
from csi_local.kube.api import Object
from csi_local.kube.events import About, about_group
from csi_local.kube.kind import PATIENCE_S
from csi_local.kube.resources import GROUPS
from csi_local.model.errors import NotFound
from csi_local.model.snapshot import GroupId, group_id


class GroupKind:
    """What a LocalGroupSnapshot wants is taken or removed, as a whole, by the engine of this node."""

    collection, resource, noun = GROUPS, "LocalGroupSnapshot", "group"
    goes_with = "its VolumeGroupSnapshotContent is deleted (with deletion policy Delete)"

    def __init__(self, groups: GroupEngine, node: str) -> None:
        self._groups = groups
        self._node = node

    def id_of(self, wanted: Object) -> GroupId:
        """The group's id."""
        return group_id(wanted["spec"]["groupName"])

    def acknowledged(self, wanted: Object) -> bool:
        """Whether anybody was told that it is there."""
        return bool(wanted.get("status", {}).get("groupId"))

    def pending(self, _wanted: Object) -> bool:
        """A group is of volumes that share blocks: there is nothing to copy."""
        return False

    def made(self, wanted: Object) -> bool:
        """Whether its node has it."""
        return group_resource.made(wanted)

    def about(self, wanted: Object) -> About | None:
        """Its VolumeGroupSnapshot."""
        spec = wanted["spec"]
        return about_group(spec.get("parameters", {}), spec["groupName"])

    def ready_status(self, wanted: Object, view: GroupView, *, now: str) -> Object:
        """See ``group_resource``; likewise the next two."""
        return group_resource.ready_status(wanted, view, now=now)

    def failed_status(self, wanted: Object, error: Exception, *, now: str) -> Object:
        """Why it is not as wanted."""
        return group_resource.failed_status(wanted, error, now=now)

    def adopted(self, view: GroupView) -> Object | None:
        """The resource of a group on the disk."""
        return group_resource.adopted_group(view, self._node)

    def operation(self, what: str) -> str:
        """Told apart from what is done to volumes."""
        return f"{what}-group"

    def create(self, wanted: Object) -> GroupView:
        """Take a group."""
        return self._groups.create(group_resource.group_request(wanted), PATIENCE_S)

    def keep(self, wanted: Object) -> GroupView:
        """See that a group is there; another one would be of another moment."""
        group = self.id_of(wanted)
        try:
            return self._groups.get(group)
        except NotFound:
            raise NotFound(f"the data of group {group} is gone from node {self._node}") from None

    def get(self, identifier: str) -> GroupView:
        """The group as it is."""
        return self._groups.get(identifier)

    def delete(self, identifier: str) -> None:
        """Remove a group that nothing is being made from."""
        self._groups.delete(identifier, (), PATIENCE_S)

    def is_empty(self, _view: GroupView) -> bool:
        """It holds what was there."""
        return False
