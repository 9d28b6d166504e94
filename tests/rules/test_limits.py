"""The size limits that the specification sets to fields, in both directions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import TOPOLOGY_KEY, Code, refused
from tests.driver import Driver
from tests.observe import MIB
from tests.rules.kinds import BLOCK, DIRECTORY, EVERY, EXT4, fresh_name

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Start

pytestmark = pytest.mark.root

MAP_BYTES = 4096
SEGMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)


@pytest.mark.usefixtures("nothing_left")
class TestRequests:
    """What a CO may not send."""

    def test_a_filesystem_name_has_128_bytes(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driver.create(fresh_name(), 64 * MIB, fs="x" * 129)

    def test_mount_flags_have_4_kib_together(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driver.create(fresh_name(), 64 * MIB, fs="ext4", flags=["noatime"] * 600)

    def test_parameters_have_4_kib_together(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            EXT4.create(driver, params={"mkfsOptions": "-q " * 1400})

    def test_secrets_have_4_kib_together(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            EXT4.create(driver, secrets={"key": "s" * (MAP_BYTES + 1)})

    def test_a_starting_token_has_128_bytes(self, driver: Driver) -> None:
        with refused(Code.ABORTED, Code.INVALID_ARGUMENT):
            driver.controller.ListVolumes(csi.ListVolumesRequest(starting_token="x" * 129))

    def test_paths_may_be_as_long_as_the_system_allows(self, driver: Driver) -> None:
        volume = DIRECTORY.create(driver)
        deep = driver.root / "staging" / "/".join(["d" * 250] * 4)
        driver.stage(volume, deep)
        target = driver.publish(volume, driver.root / "targets" / "/".join(["t" * 250] * 4), staging=deep)
        assert target.is_mount()
        driver.unpublish(volume, target)
        driver.unstage(volume, deep)


@pytest.mark.usefixtures("nothing_left")
class TestResponses:
    """What the driver may not send."""

    def test_strings_and_maps_of_a_volume_are_short(self, driver: Driver) -> None:
        for kind in EVERY:
            kind.create(driver, name="n" * 100 + str(kind))
        for volume in driver.volumes():
            assert 0 < len(volume.volume_id.encode()) <= 128
            context = volume.volume_context
            assert sum(len(key.encode()) + len(value.encode()) for key, value in context.items()) <= MAP_BYTES
            assert volume.capacity_bytes > 0

    def test_a_token_is_short(self, driver: Driver) -> None:
        for number in range(3):
            BLOCK.create(driver, name=f"{number}" * 128, size=MIB)
        answer = driver.controller.ListVolumes(csi.ListVolumesRequest(max_entries=1))
        assert 0 < len(answer.next_token.encode()) <= 128

    def test_the_plugin_names_itself(self, driver: Driver) -> None:
        info = driver.identity.GetPluginInfo(csi.GetPluginInfoRequest())
        assert info.name == "csi-local.io"
        assert 0 < len(info.vendor_version) <= 128

    def test_the_node_names_itself_and_its_topology(self, driver: Driver) -> None:
        info = driver.node.NodeGetInfo(csi.NodeGetInfoRequest())
        assert info.node_id == driver.node_id
        assert dict(info.accessible_topology.segments) == {TOPOLOGY_KEY: driver.node_id}
        assert info.max_volumes_per_node >= 0


@pytest.mark.parametrize("node", ["n" * 63, "ip-10-0-0-1.eu-central-1.compute.internal", "UPPER_case.1"])
def test_a_node_may_be_named_as_nodes_are(start: Start, node: str) -> None:
    info = start("path:{root}/pool", node=node).node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert info.node_id == node
    assert info.accessible_topology.segments[TOPOLOGY_KEY] == node


@pytest.mark.parametrize("node", ["a b", "a-", "../x", "n" * 257, "new\nline"], ids=ascii)
def test_a_node_name_that_no_topology_can_hold_is_refused_at_once(folder: Path, node: str) -> None:
    assert "node" in Driver(folder, "path:{root}/pool", node=node).refuse().lower()


def test_a_long_node_name_is_shortened_for_the_topology_or_refused(folder: Path) -> None:
    """A Kubernetes node may have 253 characters, a topology segment only 63."""
    driver = Driver(folder, "path:{root}/pool", node=".".join(["n" * 60] * 4))
    process = driver.launch()
    observe.until(lambda: driver.is_ready() or process.poll() is not None, "ready or gone")
    if not driver.running:
        assert "node" in driver.refuse().lower()
        return
    info = driver.node.NodeGetInfo(csi.NodeGetInfoRequest())
    driver.stop()
    assert info.node_id == driver.node_id
    assert SEGMENT.fullmatch(info.accessible_topology.segments[TOPOLOGY_KEY])
