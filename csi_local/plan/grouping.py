"""Snapshots of several volumes at one moment.

All filesystems are frozen, then all are copied, then all are thawed: what is in one member is in every other that it
was written to before. A group is one directory with its members in it, so that it begins and ends by one rename.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from csi_local.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from csi_local.model.operations import Commit, MakeDirectory, MakeRecord, Operation, RemoveTree, SyncDirectory
from csi_local.model.pool import Abilities
from csi_local.model.snapshot import GroupRecord, GroupRequest, SnapshotRecord, SnapshotRequest
from csi_local.model.volume import VolumeRecord
from csi_local.plan.copying import Origin, keep, kept, new_snapshot, still, within_reach
from csi_local.store.layout import GROUP_FILE, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A snapshot that is being taken with others, in the group's directory *place*."""

    record: SnapshotRecord
    origin: Origin
    place: str

    @property
    def path(self) -> str:
        """Its own directory there."""
        return f"{self.place}/{self.record.id}"


def member(request: GroupRequest, group: GroupRecord, volume: VolumeRecord) -> SnapshotRecord:
    """The record of a volume's snapshot in a group; its name is made from the group's and the volume's."""
    asked = SnapshotRequest(name=f"{group.name}/{volume.id}", source=volume.id, labels=request.labels)
    return new_snapshot(asked, volume, now=group.created, group=group.id)


def check_one_pool(pools: set[str], abilities: Abilities) -> None:
    """See that there can be one moment, and one rename.

    Raises:
        FailedPrecondition: the volumes are in several pools, or their pool cannot share blocks.
    """
    if len(pools) > 1:
        raise FailedPrecondition(
            f"the volumes are in the pools {' and '.join(sorted(pools))}; a group's volumes must be in one"
        )
    if not within_reach(abilities):
        raise FailedPrecondition(
            f"the pool's filesystem {abilities.filesystem} cannot share blocks between files, and volumes cannot be"
            " held still while data is copied; groups need a pool on XFS or btrfs"
        )


def check_can_be_held_still(origins: Sequence[Origin]) -> None:
    """See that nobody can write to one volume while another is copied; a single one has a moment of its own.

    Raises:
        FailedPrecondition: there is one in use that no freeze can stop.
    """
    loose = [origin.record.id for origin in origins if origin.in_use and not origin.point]
    if loose and len(origins) > 1:
        raise FailedPrecondition(
            f"volume {loose[0]} is in use and cannot be frozen, since it has no filesystem of its own: a group of it"
            " and others would not be of one moment. Stop its pod, or use backend: loopfile with a filesystem"
        )


def check_same_group(request: GroupRequest, members: Sequence[SnapshotRecord | None]) -> None:
    """See that a request for a name that exists asks for the group that exists.

    Raises:
        AlreadyExists: it is of other volumes.
    """
    sources = sorted(one.source for one in members if one is not None)
    if sources != sorted(set(request.sources)):
        raise AlreadyExists(f"group {request.name!r} exists, of the volumes {', '.join(sources)}")


def check_members(group: GroupRecord, members: Sequence[str]) -> None:
    """See that a request speaks of the members that the group has, if it speaks of any.

    Raises:
        InvalidArgument: it does not.
    """
    if members and set(members) != set(group.members):
        raise InvalidArgument(f"group {group.id} has the snapshots {', '.join(group.members)}, and not those named")


def take(members: Sequence[Member], place: str, abilities: Abilities, *, leftover: bool) -> tuple[Operation, ...]:
    """The first part of a group: the bytes of all, as they are at one moment."""
    before, after = still(tuple(one.origin for one in members))
    copied = (step for one in members for step in keep(one.origin, one.path, abilities))
    removed = (RemoveTree(path=place),) if leftover else ()
    directories = (MakeDirectory(path=path) for path in (place, *(one.path for one in members)))
    return (*removed, *directories, *before, *copied, *after)


def finish(
    group: GroupRecord, members: Sequence[Member], place: str, layout: Layout, abilities: Abilities
) -> tuple[Operation, ...]:
    """The second: the records, and the name; from then on all of it exists."""
    return (
        *(step for one in members for step in kept(one.record, one.path, abilities)),
        MakeRecord(path=f"{place}/{GROUP_FILE}", record=group),
        SyncDirectory(path=place),
        Commit(source=place, target=layout.group(group.id)),
    )
