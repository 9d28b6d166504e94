"""Requests that say nothing sensible, ask for the unknown, or for what this driver does not do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests.client import TOPOLOGY_KEY, Capability, Code, Mode, capability, outcome, refused, topology
from tests.observe import MIB, Mount, mounts
from tests.rules.kinds import BLOCK, EXT4, XFS, Kind, fresh_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

Can = csi.ControllerServiceCapability.RPC
NodeCan = csi.NodeServiceCapability.RPC

NO_TYPE = Capability(access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER))
NO_MODE = Capability(mount=Capability.MountVolume())
EMPTY_MODE = Capability(mount=Capability.MountVolume(), access_mode=Mode())
FUTURE_MODE = Capability.FromString(bytes.fromhex("12001a020863"))
"""A mount with access mode 99, as a CO from the future might send it."""

malformed = pytest.mark.parametrize(
    "access",
    [
        pytest.param(Capability(), id="empty"),
        pytest.param(NO_TYPE, id="no access type"),
        pytest.param(NO_MODE, id="no access mode"),
        pytest.param(EMPTY_MODE, id="unknown access mode"),
        pytest.param(FUTURE_MODE, id="access mode 99"),
    ],
)


def create(driver: Driver, **fields: object) -> csi.Volume:
    """Create a small raw volume with some fields of the request replaced."""
    request = {
        "name": fresh_name(),
        "volume_capabilities": [capability(block=True)],
        "capacity_range": csi.CapacityRange(required_bytes=MIB),
        **fields,
    }
    return driver.controller.CreateVolume(csi.CreateVolumeRequest(**request)).volume  # type: ignore[arg-type]


class TestCapability:
    """A capability that is none."""

    @malformed
    def test_at_create(self, driver: Driver, access: Capability) -> None:
        with refused(Code.INVALID_ARGUMENT):
            create(driver, volume_capabilities=[access])
        with refused(Code.INVALID_ARGUMENT):
            create(driver, volume_capabilities=[capability(block=True), access])

    @malformed
    def test_at_validate(self, driver: Driver, access: Capability) -> None:
        volume = EXT4.create(driver)
        request = csi.ValidateVolumeCapabilitiesRequest(volume_id=volume.id, volume_capabilities=[access])
        if outcome(lambda: driver.controller.ValidateVolumeCapabilities(request)) is Code.OK:
            answer = driver.controller.ValidateVolumeCapabilities(request)
            assert not answer.HasField("confirmed")
            return
        with refused(Code.INVALID_ARGUMENT):
            driver.controller.ValidateVolumeCapabilities(request)

    @malformed
    def test_at_stage(self, driver: Driver, access: Capability) -> None:
        volume = EXT4.create(driver)
        with refused(Code.INVALID_ARGUMENT):
            driver.stage(volume, access=access)

    @malformed
    def test_at_publish(self, driver: Driver, access: Capability) -> None:
        volume = EXT4.create(driver)
        driver.stage(volume)
        with refused(Code.INVALID_ARGUMENT):
            driver.publish(volume, access=access)

    def test_none_at_all(self, driver: Driver) -> None:
        volume = EXT4.create(driver)
        staging = str(driver.stage(volume))
        with refused(Code.INVALID_ARGUMENT):
            create(driver, volume_capabilities=[])
        with refused(Code.INVALID_ARGUMENT):
            driver.controller.ValidateVolumeCapabilities(csi.ValidateVolumeCapabilitiesRequest(volume_id=volume.id))
        with refused(Code.INVALID_ARGUMENT):
            driver.node.NodeStageVolume(csi.NodeStageVolumeRequest(volume_id=volume.id, staging_target_path=staging))
        with refused(Code.INVALID_ARGUMENT):
            driver.node.NodePublishVolume(
                csi.NodePublishVolumeRequest(
                    volume_id=volume.id, staging_target_path=staging, target_path=str(driver.root / "target")
                )
            )

    def test_a_volume_for_block_and_mount_alike(self, driver: Driver) -> None:
        """Every capability in the list must hold, and one image is either raw or formatted."""
        both = [capability(block=True), capability(fs="ext4")]
        if outcome(lambda: create(driver, name="both", volume_capabilities=both)) is Code.OK:
            request = csi.ValidateVolumeCapabilitiesRequest(volume_id="both", volume_capabilities=both)
            assert driver.controller.ValidateVolumeCapabilities(request).HasField("confirmed")
            return
        with refused(Code.INVALID_ARGUMENT):
            create(driver, volume_capabilities=both)

    def test_two_filesystems_at_once(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            create(driver, volume_capabilities=[capability(fs="ext4"), capability(fs="xfs")])


class TestFields:
    """Fields that are missing, or that this driver has no use for."""

    def test_no_name(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            create(driver, name="")

    def test_a_source_that_is_not_there(self, driver: Driver) -> None:
        able = controller_capabilities(driver)
        snapshot = csi.VolumeContentSource(snapshot=csi.VolumeContentSource.SnapshotSource(snapshot_id="nope"))
        clone = csi.VolumeContentSource(volume=csi.VolumeContentSource.VolumeSource(volume_id="nope"))
        for source, needed in ((snapshot, Can.CREATE_DELETE_SNAPSHOT), (clone, Can.CLONE_VOLUME)):
            with refused(Code.NOT_FOUND if needed in able else Code.INVALID_ARGUMENT):
                create(driver, volume_content_source=source)

    def test_a_source_of_no_kind(self, driver: Driver) -> None:
        """An empty volume instead of a copy is data loss that nobody sees."""
        with refused(Code.INVALID_ARGUMENT):
            create(driver, volume_content_source=csi.VolumeContentSource())

    def test_mutable_parameters_are_not_swallowed(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            create(driver, mutable_parameters={"colour": "red"})

    def test_what_kubernetes_adds_to_the_context_is_accepted(self, driver: Driver) -> None:
        volume = EXT4.create(driver)
        context = {
            **volume.context,
            "storage.kubernetes.io/csiProvisionerIdentity": "1700000000000-8081-csi-local.io",
            "csi.storage.k8s.io/pod.name": "web-0",
            "csi.storage.k8s.io/ephemeral": "false",
        }
        staging = driver.staging_path(volume)
        staging.mkdir(parents=True)
        driver.node.NodeStageVolume(
            csi.NodeStageVolumeRequest(
                volume_id=volume.id,
                staging_target_path=str(staging),
                volume_capability=volume.capability,
                volume_context=context,
            )
        )
        driver.stage(volume)
        answer = driver.controller.ValidateVolumeCapabilities(
            csi.ValidateVolumeCapabilitiesRequest(
                volume_id=volume.id,
                volume_context=volume.context,
                volume_capabilities=[volume.capability],
            )
        )
        assert answer.HasField("confirmed")


class TestParameters:
    """StorageClass parameters: a typing error must not become a default."""

    @pytest.mark.parametrize(
        ("name", "value", "existing"),
        [
            ("colour", "red", "backend"),
            ("Backend", "loopfile", "backend"),
            ("backend ", "loopfile", "backend"),
            ("fsType", "xfs", "fstype"),
            ("", "x", "backend"),
            ("backend", "zfs", "loopfile"),
            ("backend", "Loopfile", "loopfile"),
            ("backend", "", "loopfile"),
            ("media", "tape", "nvme"),
            ("placement", "random", "spread"),
            ("allocation", "fat", "thick"),
            ("quota", "soft", "hard"),
            ("encryption", "rot13", "none"),
            ("csi.storage.k8s.io/fstype", "ntfs", "xfs"),
            ("csi.storage.k8s.io/nonsense", "x", "fstype"),
        ],
    )
    def test_the_unknown_is_refused_and_the_known_is_named(
        self, driver: Driver, name: str, value: str, existing: str
    ) -> None:
        with refused(Code.INVALID_ARGUMENT) as error:
            create(driver, volume_capabilities=[capability()], parameters={name: value})
        assert existing in error.message
        assert not driver.volumes()

    def test_an_unknown_pool_is_refused(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED) as error:
            create(driver, parameters={"pool": "no-such-pool"})
        assert "no-such-pool" in error.message

    @pytest.mark.parametrize(
        "value",
        [
            "; touch /tmp/owned",
            "$(id)",
            "-F /dev/vda",
            "/dev/vda",
            "--help",
            "-E root_owner=0:0 /etc/passwd",
            "-O",
            "unbalanced '",
            "-n",
            "-U clear -L x -d /etc",
        ],
    )
    def test_mkfs_options_are_options_and_no_more(self, driver: Driver, value: str) -> None:
        """A bad option is best refused by CreateVolume; one that only mkfs refuses, at stage."""
        name = fresh_name()
        code = outcome(lambda: EXT4.create(driver, name=name, params={"mkfsOptions": value}))
        assert code in (Code.OK, Code.INVALID_ARGUMENT)
        if code is Code.OK:
            volume = EXT4.create(driver, name=name, params={"mkfsOptions": value})
            with refused(Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION):
                driver.stage(volume)

    @pytest.mark.parametrize(
        ("kind", "options", "words"),
        [
            (EXT4, "-N 99999999999", "too many inodes"),
            (EXT4, "-O no-such-feature", "mkfsOptions"),
            (XFS, "-i maxpct=101", "mkfsOptions"),
            (EXT4, "-b 65536", "the kernel does not mount"),
        ],
    )
    def test_options_that_the_class_should_not_have_are_named(
        self, driver: Driver, kind: Kind, options: str, words: str
    ) -> None:
        """Only mkfs and the kernel know them all, so they are found out when the volume is used first."""
        volume = kind.create(driver, params={**kind.params, "mkfsOptions": options})
        for _ in range(2):
            with refused(Code.FAILED_PRECONDITION) as refusal:
                driver.stage(volume)
            assert words in refusal.message
            assert options in refusal.message
        driver.unstage(volume)
        driver.delete(volume)

    def test_mkfs_options_are_used(self, driver: Driver) -> None:
        volume = EXT4.create(driver, params={"mkfsOptions": "-N 1024 -m 0"})
        usage = driver.stats(volume, driver.attach(volume)).usage
        inodes = next(use.total for use in usage if use.unit == csi.VolumeUsage.INODES)
        assert inodes <= 2048

    @pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
    def test_the_filesystem_may_come_as_a_parameter(self, driver: Driver, fs: str) -> None:
        params: Mapping[str, str] = {"csi.storage.k8s.io/fstype": fs}
        volume = driver.create(fresh_name(), 320 * MIB, params=params)
        target = driver.attach(volume)
        assert [mount.fs for mount in mounts_at(target)] == [fs]

    def test_two_words_for_the_filesystem_that_contradict(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driver.create(fresh_name(), 320 * MIB, fs="ext4", params={"csi.storage.k8s.io/fstype": "xfs"})

    def test_what_the_provisioner_adds_is_accepted_and_means_nothing(self, driver: Driver) -> None:
        """external-provisioner --extra-create-metadata."""
        metadata = {
            "csi.storage.k8s.io/pvc/name": "data",
            "csi.storage.k8s.io/pvc/namespace": "default",
            "csi.storage.k8s.io/pv/name": "pvc-1",
        }
        volume = BLOCK.create(driver, name="pvc-1", params=metadata)
        assert BLOCK.create(driver, name="pvc-1") == volume
        assert driver.capacity(metadata).available_capacity > 0


class TestTopology:
    """A volume is where its pool is."""

    def test_no_topology(self, driver: Driver) -> None:
        assert [dict(one.segments) for one in create(driver).accessible_topology] == [{TOPOLOGY_KEY: driver.node_id}]

    @pytest.mark.parametrize(
        ("requisite", "preferred"),
        [
            (["node-1"], []),
            (["node-1"], ["node-1"]),
            (["node-2", "node-1"], []),
            (["node-2", "node-1"], ["node-2"]),
            ([], ["node-1"]),
            ([], ["node-2"]),
        ],
    )
    def test_this_node_will_do(self, driver: Driver, requisite: list[str], preferred: list[str]) -> None:
        where = csi.TopologyRequirement(requisite=topology(*requisite), preferred=topology(*preferred))
        made = create(driver, accessibility_requirements=where)
        assert [dict(one.segments) for one in made.accessible_topology] == [{TOPOLOGY_KEY: "node-1"}]

    @pytest.mark.parametrize(
        "segments",
        [{TOPOLOGY_KEY: "node-2"}, {TOPOLOGY_KEY: ""}, {TOPOLOGY_KEY: "NODE-1"}, {"zone": "a"}],
        ids=str,
    )
    def test_another_place_is_exhausted(self, driver: Driver, segments: dict[str, str]) -> None:
        where = csi.TopologyRequirement(requisite=[csi.Topology(segments=segments)])
        with refused(Code.RESOURCE_EXHAUSTED):
            create(driver, accessibility_requirements=where)
        assert not driver.volumes()


OPTIONAL: dict[str, tuple[int, Callable[[Driver], object]]] = {
    "ControllerPublishVolume": (
        Can.PUBLISH_UNPUBLISH_VOLUME,
        lambda d: d.controller.ControllerPublishVolume(csi.ControllerPublishVolumeRequest()),
    ),
    "ControllerUnpublishVolume": (
        Can.PUBLISH_UNPUBLISH_VOLUME,
        lambda d: d.controller.ControllerUnpublishVolume(csi.ControllerUnpublishVolumeRequest()),
    ),
    "ListVolumes": (
        Can.LIST_VOLUMES,
        lambda d: d.controller.ListVolumes(csi.ListVolumesRequest()),
    ),
    "GetCapacity": (
        Can.GET_CAPACITY,
        lambda d: d.controller.GetCapacity(csi.GetCapacityRequest()),
    ),
    "CreateSnapshot": (
        Can.CREATE_DELETE_SNAPSHOT,
        lambda d: d.controller.CreateSnapshot(csi.CreateSnapshotRequest()),
    ),
    "DeleteSnapshot": (
        Can.CREATE_DELETE_SNAPSHOT,
        lambda d: d.controller.DeleteSnapshot(csi.DeleteSnapshotRequest()),
    ),
    "ListSnapshots": (
        Can.LIST_SNAPSHOTS,
        lambda d: d.controller.ListSnapshots(csi.ListSnapshotsRequest()),
    ),
    "GetSnapshot": (
        Can.GET_SNAPSHOT,
        lambda d: d.controller.GetSnapshot(csi.GetSnapshotRequest()),
    ),
    "ControllerExpandVolume": (
        Can.EXPAND_VOLUME,
        lambda d: d.controller.ControllerExpandVolume(csi.ControllerExpandVolumeRequest()),
    ),
    "ControllerGetVolume": (
        Can.GET_VOLUME,
        lambda d: d.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest()),
    ),
    "ControllerModifyVolume": (
        Can.MODIFY_VOLUME,
        lambda d: d.controller.ControllerModifyVolume(csi.ControllerModifyVolumeRequest()),
    ),
}


def controller_capabilities(driver: Driver) -> set[int]:
    """Return what the controller says it can."""
    answer = driver.controller.ControllerGetCapabilities(csi.ControllerGetCapabilitiesRequest())
    return {one.rpc.type for one in answer.capabilities}


class TestAdvertised:
    """What is not advertised is UNIMPLEMENTED, and what is advertised is not."""

    @pytest.mark.parametrize("name", OPTIONAL)
    def test_optional_calls(self, driver: Driver, name: str) -> None:
        needed, call = OPTIONAL[name]
        if needed in controller_capabilities(driver):
            assert outcome(lambda: call(driver)) in (Code.OK, Code.INVALID_ARGUMENT)
        else:
            with refused(Code.UNIMPLEMENTED):
                call(driver)

    def test_group_snapshots(self, driver: Driver) -> None:
        services = {one.service.type for one in plugin_capabilities(driver) if one.HasField("service")}
        ask = csi.GroupControllerGetCapabilitiesRequest()
        code = outcome(lambda: driver.group.GroupControllerGetCapabilities(ask))
        offered = csi.PluginCapability.Service.GROUP_CONTROLLER_SERVICE in services
        assert (code is Code.OK) == offered
        assert offered or code is Code.UNIMPLEMENTED

    def test_nothing_is_advertised_twice_or_unknown(self, driver: Driver) -> None:
        controller = driver.controller.ControllerGetCapabilities(csi.ControllerGetCapabilitiesRequest())
        node = driver.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
        for told in ([c.rpc.type for c in controller.capabilities], [c.rpc.type for c in node.capabilities]):
            assert len(told) == len(set(told))
            assert 0 not in told

    def test_the_plugin_says_that_volumes_belong_to_nodes_and_grow_online(self, driver: Driver) -> None:
        told = plugin_capabilities(driver)
        services = {one.service.type for one in told if one.HasField("service")}
        expansion = {one.volume_expansion.type for one in told if one.HasField("volume_expansion")}
        assert csi.PluginCapability.Service.CONTROLLER_SERVICE in services
        assert csi.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS in services
        assert csi.PluginCapability.VolumeExpansion.ONLINE in expansion


def plugin_capabilities(driver: Driver) -> list[csi.PluginCapability]:
    """Return what the plugin says it can."""
    answer = driver.identity.GetPluginCapabilities(csi.GetPluginCapabilitiesRequest())
    return list(answer.capabilities)


def mounts_at(target: Path) -> list[Mount]:
    """Return the mounts at a path."""
    return [mount for mount in mounts(target) if mount.target == target]
