"""Every call that names a volume, with an id that is nobody's: what undoes is done, the rest is NOT_FOUND."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests.client import Code, Volume, outcome, refused
from tests.observe import MIB, tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.driver import Driver

    Ask = Callable[[Driver, Volume], object]

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

UNKNOWN = [
    "nope",
    "pvc-6f1cbf0e-0000-4000-8000-000000000000",
    "..",
    ".",
    "../volumes",
    "../../../../etc",
    "/etc",
    "a/b",
    "volumes",
    "pool.json",
    ".new-x",
    "new\nline",
    "x;id>f;",
    "*",
    "%2e%2e",
    "\u00e9",
]
IMPOSSIBLE = ["x" * 129, "../" * 100, "nul\0"]
"""Ids that break the rules for strings; saying so is as good as saying that there is no such volume."""


def staging(driver: Driver) -> Path:
    path = driver.root / "staging" / "unknown"
    path.mkdir(parents=True, exist_ok=True)
    return path


def validate(driver: Driver, volume: Volume) -> object:
    return driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(volume_id=volume.id, volume_capabilities=[volume.capability])
    )


def get(driver: Driver, volume: Volume) -> object:
    return driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume.id))


def expand(driver: Driver, volume: Volume) -> object:
    return driver.expand_controller(volume, 64 * MIB)


def stage(driver: Driver, volume: Volume) -> object:
    return driver.node.NodeStageVolume(
        csi.NodeStageVolumeRequest(
            volume_id=volume.id,
            staging_target_path=str(staging(driver)),
            volume_capability=volume.capability,
        )
    )


def publish(driver: Driver, volume: Volume) -> object:
    return driver.node.NodePublishVolume(
        csi.NodePublishVolumeRequest(
            volume_id=volume.id,
            staging_target_path=str(staging(driver)),
            target_path=str(driver.root / "target"),
            volume_capability=volume.capability,
        )
    )


def stats(driver: Driver, volume: Volume) -> object:
    return driver.node.NodeGetVolumeStats(
        csi.NodeGetVolumeStatsRequest(volume_id=volume.id, volume_path=str(driver.root))
    )


def expand_node(driver: Driver, volume: Volume) -> object:
    return driver.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_id=volume.id, volume_path=str(driver.root)))


def delete(driver: Driver, volume: Volume) -> object:
    return driver.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume.id))


def unstage(driver: Driver, volume: Volume) -> object:
    return driver.node.NodeUnstageVolume(
        csi.NodeUnstageVolumeRequest(volume_id=volume.id, staging_target_path=str(driver.root / "nowhere"))
    )


def unpublish(driver: Driver, volume: Volume) -> object:
    return driver.node.NodeUnpublishVolume(
        csi.NodeUnpublishVolumeRequest(volume_id=volume.id, target_path=str(driver.root / "nowhere"))
    )


uses = pytest.mark.parametrize(
    "ask", [validate, get, expand, stage, publish, stats, expand_node], ids=lambda ask: ask.__name__
)
undoes = pytest.mark.parametrize("ask", [delete, unstage, unpublish], ids=lambda ask: ask.__name__)
unknown = pytest.mark.parametrize("volume_id", UNKNOWN, ids=ascii)
impossible = pytest.mark.parametrize("volume_id", IMPOSSIBLE, ids=["long", "long and hostile", "nul"])


@uses
@unknown
def test_an_unknown_volume_cannot_be_used(driver: Driver, ask: Ask, volume_id: str) -> None:
    before = tree(driver.pool_roots()[0])
    with refused(Code.NOT_FOUND):
        ask(driver, Volume(id=volume_id))
    assert not (driver.root / "target").exists()
    assert tree(driver.pool_roots()[0]) == before


@undoes
@unknown
def test_an_unknown_volume_is_undone_already(driver: Driver, ask: Ask, volume_id: str) -> None:
    before = tree(driver.root) | tree(driver.pool_roots()[0])
    ask(driver, Volume(id=volume_id))
    assert tree(driver.root) | tree(driver.pool_roots()[0]) == before


@uses
@impossible
def test_an_impossible_id_cannot_be_used(driver: Driver, ask: Ask, volume_id: str) -> None:
    with refused(Code.NOT_FOUND, Code.INVALID_ARGUMENT):
        ask(driver, Volume(id=volume_id))


@undoes
@impossible
def test_an_impossible_id_is_undone_or_refused(driver: Driver, ask: Ask, volume_id: str) -> None:
    assert outcome(lambda: ask(driver, Volume(id=volume_id))) in (Code.OK, Code.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    "ask",
    [validate, get, expand, stage, publish, stats, expand_node, delete, unstage, unpublish],
    ids=lambda ask: ask.__name__,
)
def test_an_empty_id_is_a_missing_field(driver: Driver, ask: Ask) -> None:
    with refused(Code.INVALID_ARGUMENT):
        ask(driver, Volume(id=""))
