"""What a worker knows of one of its volumes: every fact in it was acknowledged."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from csi_local._proto import csi_pb2 as csi

if TYPE_CHECKING:
    from pathlib import Path

    from tests.soak.kinds import Kind
    from tests.soak.markers import Marker


@dataclass(slots=True, kw_only=True)
class Holding:
    """A volume, absent at first.

    Attributes:
        asked: the size in the request that made it.
        size: what it has now, 0 while it is absent.
        ceiling: the most that was ever asked for: a growth that was refused may have left a larger image.
        targets: where it is published, and whether read-only.
        measured: the size once, and what the filesystem said it had then.
        rest_until: a call for it was given up and may still be worked on.
        broken: what is known of it was shown to be wrong; it is left as it is.
    """

    name: str
    kind: Kind
    root: Path
    asked: int = 0
    size: int = 0
    ceiling: int = 0
    staged: bool = False
    targets: dict[str, bool] = field(default_factory=dict)
    markers: dict[int, Marker] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    measured: tuple[int, int] | None = None
    rest_until: float = 0.0
    broken: bool = False

    def __str__(self) -> str:
        state = "absent" if not self.size else "staged" if self.staged else "created"
        return f"{self.kind.name} volume {self.name} ({state}, {self.size} bytes, at {self.targets})"

    @property
    def resting(self) -> bool:
        """Whether it is to be left alone for a moment."""
        return time.monotonic() < self.rest_until

    @property
    def staging(self) -> Path:
        """Where it is staged."""
        return self.root / "staging" / self.name

    def target(self, name: str) -> Path:
        """Where it is published."""
        return self.root / "targets" / self.name / name

    @property
    def writable(self) -> list[str]:
        """Targets that can be written."""
        return [name for name, read_only in self.targets.items() if not read_only]

    def forget(self) -> None:
        """It was deleted."""
        self.asked = self.size = self.ceiling = 0
        self.markers.clear()
        self.context.clear()
        self.measured = None

    # Requests

    def create(self, size: int) -> csi.CreateVolumeRequest:
        """CreateVolume with a size."""
        return csi.CreateVolumeRequest(
            name=self.name,
            volume_capabilities=[self.kind.capability],
            parameters=self.kind.params,
            capacity_range=csi.CapacityRange(required_bytes=size),
        )

    def delete(self) -> csi.DeleteVolumeRequest:
        """DeleteVolume."""
        return csi.DeleteVolumeRequest(volume_id=self.name)

    def get(self) -> csi.ControllerGetVolumeRequest:
        """ControllerGetVolume."""
        return csi.ControllerGetVolumeRequest(volume_id=self.name)

    def stage(self) -> csi.NodeStageVolumeRequest:
        """NodeStageVolume; the CO makes the folder."""
        self.staging.mkdir(parents=True, exist_ok=True)
        return csi.NodeStageVolumeRequest(
            volume_id=self.name,
            staging_target_path=str(self.staging),
            volume_capability=self.kind.capability,
            volume_context=self.context,
        )

    def unstage(self) -> csi.NodeUnstageVolumeRequest:
        """NodeUnstageVolume."""
        return csi.NodeUnstageVolumeRequest(volume_id=self.name, staging_target_path=str(self.staging))

    def publish(self, name: str, *, read_only: bool) -> csi.NodePublishVolumeRequest:
        """NodePublishVolume; the CO makes the folder above the target."""
        self.target(name).parent.mkdir(parents=True, exist_ok=True)
        return csi.NodePublishVolumeRequest(
            volume_id=self.name,
            staging_target_path=str(self.staging),
            target_path=str(self.target(name)),
            volume_capability=self.kind.capability,
            readonly=read_only,
            volume_context=self.context,
        )

    def unpublish(self, name: str) -> csi.NodeUnpublishVolumeRequest:
        """NodeUnpublishVolume."""
        return csi.NodeUnpublishVolumeRequest(volume_id=self.name, target_path=str(self.target(name)))

    def stats(self, name: str) -> csi.NodeGetVolumeStatsRequest:
        """NodeGetVolumeStats."""
        return csi.NodeGetVolumeStatsRequest(
            volume_id=self.name, volume_path=str(self.target(name)), staging_target_path=str(self.staging)
        )

    def grow(self, size: int) -> csi.ControllerExpandVolumeRequest:
        """ControllerExpandVolume."""
        return csi.ControllerExpandVolumeRequest(
            volume_id=self.name,
            capacity_range=csi.CapacityRange(required_bytes=size),
            volume_capability=self.kind.capability,
        )

    def grow_on_node(self, path: Path) -> csi.NodeExpandVolumeRequest:
        """NodeExpandVolume."""
        return csi.NodeExpandVolumeRequest(
            volume_id=self.name,
            volume_path=str(path),
            staging_target_path=str(self.staging),
            capacity_range=csi.CapacityRange(required_bytes=self.size),
            volume_capability=self.kind.capability,
        )
