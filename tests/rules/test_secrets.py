"""A secret comes in and goes nowhere: not into the log, not into an error, not onto the disk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import capability, complaint, inline, outcome
from tests.observe import MIB
from tests.rules.kinds import DIRECTORY, EXT4, Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Start
    from tests.driver import Driver

pytestmark = pytest.mark.root

MARKER = "hunter2-MARKER"
SECRETS = {"passphrase": MARKER, MARKER: "as a key"}
ADVISORY = Kind(name="directory", params={**DIRECTORY.params, "quota": "advisory"}, size=8 * MIB)


@pytest.fixture
def driver(start: Start) -> Driver:
    """Run a driver that logs as much as it can."""
    return start("path:{root}/pool", args=["--log-level", "debug"])


def marked_files(root: Path) -> list[Path]:
    """Return the files below `root` in which the marker stands."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if MARKER.encode() in path.read_bytes()]


@pytest.mark.parametrize("kind", [ADVISORY, EXT4], ids=str)
def test_secrets_of_a_whole_life_are_nowhere(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver, secrets=SECRETS)
    driver.stage(volume, secrets=SECRETS)
    target = driver.publish(volume, secrets=SECRETS)
    driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.id, volume_capabilities=[volume.capability], secrets=SECRETS
        )
    )
    grow = csi.CapacityRange(required_bytes=kind.size * 2)
    driver.controller.ControllerExpandVolume(
        csi.ControllerExpandVolumeRequest(volume_id=volume.id, capacity_range=grow, secrets=SECRETS)
    )
    expand = csi.NodeExpandVolumeRequest(
        volume_id=volume.id, volume_path=str(target), capacity_range=grow, secrets=SECRETS
    )
    outcome(lambda: driver.node.NodeExpandVolume(expand))
    assert not marked_files(driver.root)
    driver.detach(volume)
    driver.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume.id, secrets=SECRETS))
    observe.until(lambda: not driver.leftovers(), "the volume is gone")
    assert not marked_files(driver.root)
    assert volume.id in driver.output(), "the log says nothing of the volume at all: is it at debug level?"


REFUSED: dict[str, Callable[[Driver], object]] = {
    "CreateVolume": lambda d: d.controller.CreateVolume(
        csi.CreateVolumeRequest(secrets=SECRETS, parameters={"colour": "red"})
    ),
    "CreateVolume too much": lambda d: EXT4.create(d, size=1000**5, secrets=SECRETS),
    "DeleteVolume": lambda d: d.controller.DeleteVolume(csi.DeleteVolumeRequest(secrets=SECRETS)),
    "ValidateVolumeCapabilities": lambda d: d.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(volume_id="nope", volume_capabilities=[capability()], secrets=SECRETS)
    ),
    "ControllerExpandVolume": lambda d: d.controller.ControllerExpandVolume(
        csi.ControllerExpandVolumeRequest(volume_id="nope", secrets=SECRETS)
    ),
    "ControllerPublishVolume": lambda d: d.controller.ControllerPublishVolume(
        csi.ControllerPublishVolumeRequest(volume_id="nope", secrets=SECRETS)
    ),
    "ControllerUnpublishVolume": lambda d: d.controller.ControllerUnpublishVolume(
        csi.ControllerUnpublishVolumeRequest(volume_id="nope", secrets=SECRETS)
    ),
    "ControllerModifyVolume": lambda d: d.controller.ControllerModifyVolume(
        csi.ControllerModifyVolumeRequest(volume_id="nope", mutable_parameters={"colour": "red"}, secrets=SECRETS)
    ),
    "CreateSnapshot": lambda d: d.controller.CreateSnapshot(
        csi.CreateSnapshotRequest(name="s", source_volume_id="nope", secrets=SECRETS)
    ),
    "DeleteSnapshot": lambda d: d.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(secrets=SECRETS)),
    "GetSnapshot": lambda d: d.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id="nope", secrets=SECRETS)),
    "ListSnapshots": lambda d: d.controller.ListSnapshots(csi.ListSnapshotsRequest(max_entries=-1, secrets=SECRETS)),
    "CreateVolumeGroupSnapshot": lambda d: d.group.CreateVolumeGroupSnapshot(
        csi.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=["nope"], secrets=SECRETS)
    ),
    "DeleteVolumeGroupSnapshot": lambda d: d.group.DeleteVolumeGroupSnapshot(
        csi.DeleteVolumeGroupSnapshotRequest(secrets=SECRETS)
    ),
    "GetVolumeGroupSnapshot": lambda d: d.group.GetVolumeGroupSnapshot(
        csi.GetVolumeGroupSnapshotRequest(group_snapshot_id="nope", secrets=SECRETS)
    ),
    "NodeStageVolume": lambda d: d.node.NodeStageVolume(
        csi.NodeStageVolumeRequest(
            volume_id="nope",
            staging_target_path=str(d.root),
            volume_capability=capability(),
            secrets=SECRETS,
        )
    ),
    "NodePublishVolume": lambda d: d.node.NodePublishVolume(
        csi.NodePublishVolumeRequest(
            volume_id="nope",
            staging_target_path=str(d.root),
            target_path=str(d.root / "target"),
            volume_capability=capability(),
            secrets=SECRETS,
        )
    ),
    "NodeExpandVolume": lambda d: d.node.NodeExpandVolume(
        csi.NodeExpandVolumeRequest(volume_id="nope", volume_path=str(d.root), secrets=SECRETS)
    ),
}


def test_secrets_of_refused_requests_are_nowhere(driver: Driver) -> None:
    for name, call in REFUSED.items():
        words = complaint(partial(call, driver))
        assert words, f"{name} was expected to fail"
        assert MARKER not in words, f"{name} told the secret in its error"
    assert not marked_files(driver.root)


def test_every_call_with_secrets_is_tried_here() -> None:
    """The specification marks them; a new one must not be forgotten."""
    messages = csi.DESCRIPTOR.message_types_by_name
    with_secrets = {
        name.removesuffix("Request") for name, message in messages.items() if "secrets" in message.fields_by_name
    }
    streams = {"GetMetadataAllocated", "GetMetadataDelta"}  # a service of its own, and UNIMPLEMENTED by default
    assert with_secrets - streams - {name.partition(" ")[0] for name in REFUSED} == set()


def test_a_pods_tokens_are_nowhere(driver: Driver) -> None:
    """The kubelet puts them among the attributes, which no descriptor marks as secret."""
    volume = inline({"size": "32Mi", "csi.storage.k8s.io/serviceAccount.tokens": MARKER})
    target = driver.publish_inline(volume)
    assert "serviceAccount.tokens" in driver.output()
    assert not marked_files(driver.root)
    driver.unpublish(volume, target)
