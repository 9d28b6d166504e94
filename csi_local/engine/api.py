"""What the CSI services need of an engine, be it in this process or behind the Kubernetes API."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from csi_local.model.accessibility import ANYWHERE, Accessibility
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import GroupId, GroupRecord, GroupRequest, SnapshotId, SnapshotRecord, SnapshotRequest
from csi_local.model.volume import Capability, CapacityRange, VolumeId, VolumeRecord
from csi_local.plan.placement import Capacity
from csi_local.plan.request import VolumeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """A volume as the services show it.

    Attributes:
        node: the name of the node that has it.
        record: None where it cannot be read; *problem* then says why.
        problem: what is wrong with the volume, or "".
    """

    id: VolumeId
    node: str
    pool: str
    record: VolumeRecord | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotView:
    """A snapshot as the services show it.

    Attributes:
        record: None where it cannot be read; *problem* then says why.
        ready: False while its data is still being copied: it does not exist yet.
        problem: what is wrong with the snapshot, or "".
    """

    id: SnapshotId
    pool: str
    record: SnapshotRecord | None
    ready: bool = True
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """A group as the services show it."""

    record: GroupRecord
    members: tuple[SnapshotView, ...]

    @property
    def id(self) -> GroupId:
        """Its id."""
        return self.record.id

    @property
    def pool(self) -> str:
        """The pool that it is in, which is one."""
        return self.members[0].pool if self.members else ""

    @property
    def problem(self) -> str:
        """What is wrong with one of its members, or ""."""
        return next((one.problem for one in self.members if one.problem), "")


class VolumeEngine(Protocol):
    """Whole volumes. What each method raises is told in :mod:`csi_local.engine.volumes`."""

    def create(self, request: VolumeRequest, patience_s: float, where: Accessibility = ANYWHERE) -> VolumeView:
        """Make a volume, or find the one that an identical request made."""

    def delete(self, shown: str, patience_s: float) -> None:
        """Remove a volume; no error where it is not there."""

    def get(self, shown: str) -> VolumeView:
        """A volume by its id."""

    def list(self, after: str, count: int) -> tuple[list[VolumeView], str]:
        """At most *count* volumes (0: all) in the order of their ids, beginning behind *after*; and where to go on."""

    def capacity(self, request: VolumeRequest, where: Accessibility = ANYWHERE) -> Capacity:
        """Room for volumes of that kind."""


class SizeEngine(Protocol):
    """The sizes of volumes."""

    def expand(
        self, shown: str, capacity: CapacityRange, capability: Capability | None, patience_s: float
    ) -> tuple[Bytes, bool]:
        """Make a volume larger; return its size, and whether its node still has something to do."""


class SnapshotEngine(Protocol):
    """Snapshots. What each method raises is told in :mod:`csi_local.engine.snapshots`."""

    def create(self, request: SnapshotRequest, patience_s: float) -> SnapshotView:
        """Take a snapshot, or find the one that an identical request took."""

    def delete(self, shown: str, patience_s: float) -> None:
        """Remove a snapshot; no error where it is not there."""

    def get(self, shown: str) -> SnapshotView:
        """A snapshot by its id."""

    def list(self, after: str, count: int, source: str = "") -> tuple[list[SnapshotView], str]:
        """At most *count* snapshots (0: all), of one volume or all, by id, beginning behind *after*; where to go on."""


class GroupEngine(Protocol):
    """Groups of snapshots. What each method raises is told in :mod:`csi_local.engine.groups`."""

    def create(self, request: GroupRequest, patience_s: float) -> GroupView:
        """Take snapshots of several volumes at one moment, or find those that an identical request took."""

    def delete(self, shown: str, members: Sequence[str], patience_s: float) -> None:
        """Remove a group with all its snapshots; no error where it is not there."""

    def get(self, shown: str, members: Sequence[str] = ()) -> GroupView:
        """A group by its id."""
