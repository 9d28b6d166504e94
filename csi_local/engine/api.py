"""What the CSI services need of an engine, be it in this process or behind the Kubernetes API."""

from dataclasses import dataclass
from typing import Protocol

from csi_local.model.accessibility import ANYWHERE, Accessibility
from csi_local.model.quantity import Bytes
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
