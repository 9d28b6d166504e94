"""The driver's six calls in a volume's life, with as little around them as can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from csi_local._proto import csi_pb2 as csi
from csi_local._proto import csi_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from tests.bench.kinds import Kind

DEADLINE_S = 60.0
NAMES = (
    "CreateVolume",
    "NodeStageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeUnstageVolume",
    "DeleteVolume",
)


class Calls:
    """A connection to the driver whose folder is *root*; paths are made as a CO makes them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._channel = grpc.insecure_channel(f"unix://{root}/csi/csi.sock")
        self.controller = rpc.ControllerStub(self._channel)
        self.node = rpc.NodeStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def create(self, request: csi.CreateVolumeRequest) -> str:
        """CreateVolume; return the id."""
        return self.controller.CreateVolume(request, timeout=DEADLINE_S).volume.volume_id

    def delete(self, volume: str) -> None:
        """DeleteVolume."""
        self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume), timeout=DEADLINE_S)

    def steps(self, kind: Kind, size: int, name: str) -> list[tuple[str, Callable[[], object]]]:
        """A volume's life. The id is the name, which is a safe one; the paths are there before the first step."""
        request, used = kind.request(name, size), kind.capability
        staging, target = self._paths(name)
        node, d = self.node, DEADLINE_S
        stage = csi.NodeStageVolumeRequest(volume_id=name, staging_target_path=staging, volume_capability=used)
        publish = csi.NodePublishVolumeRequest(
            volume_id=name, staging_target_path=staging, target_path=target, volume_capability=used
        )
        unpublish = csi.NodeUnpublishVolumeRequest(volume_id=name, target_path=target)
        unstage = csi.NodeUnstageVolumeRequest(volume_id=name, staging_target_path=staging)
        return [
            ("CreateVolume", lambda: self.create(request)),
            ("NodeStageVolume", lambda: node.NodeStageVolume(stage, timeout=d)),
            ("NodePublishVolume", lambda: node.NodePublishVolume(publish, timeout=d)),
            ("NodeUnpublishVolume", lambda: node.NodeUnpublishVolume(unpublish, timeout=d)),
            ("NodeUnstageVolume", lambda: node.NodeUnstageVolume(unstage, timeout=d)),
            ("DeleteVolume", lambda: self.delete(name)),
        ]

    def _paths(self, name: str) -> tuple[str, str]:
        staging, target = self._root / "staging" / name, self._root / "targets" / name / "target"
        staging.mkdir(parents=True)
        target.parent.mkdir(parents=True)
        return str(staging), str(target)
