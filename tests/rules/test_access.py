"""Who may use a volume at the same time, and read-only that is read-only."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Mode, Volume, capability, outcome, refused
from tests.observe import MIB
from tests.rules.kinds import BLOCK, DIRECTORY, EXT4, MOUNTED, Kind, every_kind, fresh_name, mounted_kinds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

ONE_TARGET = [Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_READER_ONLY]
SINGLE_NODE = [*ONE_TARGET, Mode.SINGLE_NODE_MULTI_WRITER]
READERS = [Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY]
GRANTED = [*SINGLE_NODE, Mode.MULTI_NODE_READER_ONLY]
MANY_NODES = [Mode.MULTI_NODE_SINGLE_WRITER, Mode.MULTI_NODE_MULTI_WRITER]
SHARED = Mode.SINGLE_NODE_MULTI_WRITER


def each(*modes: Mode.Mode.ValueType) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mode", modes, ids=Mode.Mode.Name)


def write_refused(target: Path) -> None:
    """Try every way to write there is, and demand that each is refused for being a write."""
    ways = [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_DIRECT, os.O_RDWR | os.O_SYNC]
    inside = [] if observe.is_block(target) else [path for path in target.iterdir() if path.is_file()]
    paths = [target] if observe.is_block(target) else [target / "intruder", *inside]
    for path in paths:
        for flags in ways:
            with pytest.raises(OSError, match=r"Read-only|permitted|denied"):
                overwrite(path, flags if observe.is_block(target) else flags | os.O_CREAT)


def overwrite(path: Path, flags: int) -> None:
    """Put one aligned page at the start of `path`."""
    with mmap.mmap(-1, 4096) as page:
        page[:] = b"!" * 4096
        handle = os.open(path, flags)
        try:
            os.pwrite(handle, page, 0)
            os.fsync(handle)
        finally:
            os.close(handle)


class TestSecondPublish:
    """The specification's table: T is the target path, P everything else."""

    @every_kind
    @each(*GRANTED)
    def test_same_target_same_arguments(self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType) -> None:
        volume = kind.create(driver, mode=mode)
        readonly = mode in READERS
        driver.stage(volume)
        target = driver.publish(volume, readonly=readonly)
        before = observe.mounts(target)
        driver.publish(volume, readonly=readonly)
        assert observe.mounts(target) == before, "a second mount was put on top of the first"

    @every_kind
    @each(*GRANTED)
    def test_same_target_other_readonly(self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType) -> None:
        volume = kind.create(driver, mode=mode)
        driver.stage(volume)
        target = driver.publish(volume, readonly=True)
        with refused(Code.ALREADY_EXISTS):
            driver.publish(volume, readonly=False)
        write_refused(target)

    @every_kind
    def test_same_target_writable_first(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        with refused(Code.ALREADY_EXISTS):
            driver.publish(volume, readonly=True)
        observe.put(target, b"still writable")

    @mounted_kinds
    @pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
    def test_same_target_other_mount_flags(self, driver: Driver, kind: Kind, *, restart: bool) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        if restart:
            driver.restart()
        with refused(Code.ALREADY_EXISTS):
            driver.publish(volume, access=capability(fs=kind.fs, flags=["noexec"]))
        mount = observe.mount_at(target)
        assert mount is not None
        assert "noexec" not in mount.options

    @every_kind
    def test_same_target_after_a_restart(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        driver.restart()
        before = observe.mounts(target)
        driver.publish(volume)
        assert observe.mounts(target) == before
        with refused(Code.ALREADY_EXISTS):
            driver.publish(volume, readonly=True)

    @every_kind
    @each(*ONE_TARGET)
    @pytest.mark.parametrize("readonly", [False, True], ids=["writable", "readonly"])
    def test_other_target_of_a_volume_for_one(
        self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType, *, readonly: bool
    ) -> None:
        volume = kind.create(driver, mode=mode)
        driver.stage(volume)
        first = mode == Mode.SINGLE_NODE_READER_ONLY
        driver.publish(volume, "one", readonly=first)
        with refused(Code.FAILED_PRECONDITION):
            driver.publish(volume, "two", readonly=readonly)
        assert not driver.target_path(volume, "two").exists()
        driver.unpublish(volume, "one")
        driver.publish(volume, "two", readonly=first)

    @every_kind
    def test_one_target_is_remembered_over_a_restart(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=Mode.SINGLE_NODE_SINGLE_WRITER)
        driver.stage(volume)
        driver.publish(volume, "one")
        driver.kill()
        driver.start()
        with refused(Code.FAILED_PRECONDITION):
            driver.publish(volume, "two")

    @every_kind
    def test_many_targets_share_the_data(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=SHARED)
        driver.stage(volume)
        targets = [driver.publish(volume, name) for name in ("one", "two", "three")]
        observe.put(targets[0], b"written by one")
        assert [observe.get(target, 14) for target in targets] == [b"written by one"] * 3
        driver.unpublish(volume, "one")
        observe.put(targets[1], b"written by two")
        assert observe.get(targets[2], 14) == b"written by two"

    @every_kind
    @each(*ONE_TARGET)
    def test_a_single_writer_does_not_join_others(self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType) -> None:
        volume = kind.create(driver, mode=SHARED)
        driver.stage(volume)
        driver.publish(volume, "one")
        alone = capability(block=kind.block, fs=kind.fs, mode=mode)
        with refused(Code.FAILED_PRECONDITION):
            driver.publish(volume, "two", access=alone)

    @every_kind
    def test_others_do_not_join_a_single_writer(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=SHARED)
        alone = capability(block=kind.block, fs=kind.fs, mode=Mode.SINGLE_NODE_SINGLE_WRITER)
        driver.stage(volume, access=alone)
        driver.publish(volume, "one", access=alone)
        with refused(Code.FAILED_PRECONDITION):
            driver.publish(volume, "two")


class TestReadOnly:
    """Read-only is read-only, whatever else is published."""

    @every_kind
    def test_readonly_from_the_start(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        target = driver.publish(volume, readonly=True)
        write_refused(target)

    @every_kind
    @pytest.mark.parametrize("first", ["writer", "reader"])
    def test_a_reader_beside_a_writer(self, driver: Driver, kind: Kind, first: str) -> None:
        volume = kind.create(driver, mode=SHARED)
        driver.stage(volume)
        second = "reader" if first == "writer" else "writer"
        paths = {name: driver.publish(volume, name, readonly=name == "reader") for name in (first, second)}
        observe.put(paths["writer"], b"fresh")
        write_refused(paths["reader"])
        observe.put(paths["writer"], b"freed")
        driver.unpublish(volume, first)
        if first == "reader":
            observe.put(paths["writer"], b"alone")
        else:
            write_refused(paths["reader"])

    @every_kind
    def test_a_reader_sees_what_a_writer_wrote(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=SHARED)
        observe.put(driver.attach(volume), b"first")
        reader = driver.publish(volume, "reader", readonly=True)
        assert observe.get(reader, 5) == b"first"
        observe.put(driver.target_path(volume), b"later")
        assert observe.get(reader, 5) == b"later"

    @every_kind
    def test_readonly_survives_a_restart(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        target = driver.publish(volume, readonly=True)
        driver.kill()
        driver.start()
        driver.publish(volume, readonly=True)
        write_refused(target)

    @every_kind
    def test_readonly_leaves_the_volume_writable_afterwards(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        driver.publish(volume, readonly=True)
        driver.detach(volume)
        observe.put(driver.attach(volume), b"writable")

    @every_kind
    @each(*READERS)
    def test_a_reader_only_mode_never_gives_a_writer(
        self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType
    ) -> None:
        volume = kind.create(driver, mode=mode)
        driver.stage(volume)
        code = outcome(lambda: driver.publish(volume, readonly=False))
        assert code in (Code.OK, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
        if code is Code.OK:
            write_refused(driver.target_path(volume))

    @every_kind
    def test_many_readers_of_a_copy(self, driver: Driver, kind: Kind) -> None:
        """A claim that is ReadOnlyMany begins as a copy, and each of its pods on the node reads that."""
        source = kind.create(driver)
        observe.put(driver.attach(source), b"then")
        copy = kind.create(driver, mode=Mode.MULTI_NODE_READER_ONLY, source=driver.snapshot(source))
        driver.stage(copy)
        targets = [driver.publish(copy, name) for name in ("one", "two")]
        driver.kill()
        driver.start()
        targets.append(driver.publish(copy, "three", readonly=True))
        for target in targets:
            assert observe.get(target, 4) == b"then"
            write_refused(target)


class TestModes:
    """A local volume is on one node; who only reads need not know."""

    @every_kind
    @each(*GRANTED)
    def test_modes_of_one_node_are_granted_and_confirmed(
        self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType
    ) -> None:
        volume = kind.create(driver, mode=mode)
        answer = validate(driver, volume)
        assert list(answer.confirmed.volume_capabilities) == [volume.capability]

    @pytest.mark.parametrize("kind", [BLOCK, *MOUNTED], ids=str)
    @each(*MANY_NODES)
    def test_modes_of_many_nodes_are_refused_at_create(
        self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType
    ) -> None:
        with refused(Code.INVALID_ARGUMENT):
            kind.create(driver, mode=mode)
        assert not driver.leftovers()

    @each(*MANY_NODES)
    def test_one_mode_of_many_nodes_among_others_is_refused_too(
        self, driver: Driver, mode: Mode.Mode.ValueType
    ) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driver.controller.CreateVolume(
                csi.CreateVolumeRequest(name=fresh_name(), volume_capabilities=[capability(), capability(mode=mode)])
            )

    @every_kind
    @each(*MANY_NODES)
    def test_modes_of_many_nodes_are_not_confirmed(self, driver: Driver, kind: Kind, mode: Mode.Mode.ValueType) -> None:
        volume = kind.create(driver)
        wanted = capability(block=kind.block, fs=kind.fs, mode=mode)
        answer = validate(driver, volume, volume.capability, wanted)
        assert not answer.HasField("confirmed")
        assert answer.message

    @each(*MANY_NODES)
    def test_modes_of_many_nodes_are_refused_by_the_node(self, driver: Driver, mode: Mode.Mode.ValueType) -> None:
        volume = EXT4.create(driver)
        wanted = capability(fs="ext4", mode=mode)
        with refused(Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT):
            driver.stage(volume, access=wanted)
        driver.stage(volume)
        with refused(Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT):
            driver.publish(volume, access=wanted)

    @pytest.mark.parametrize(
        ("kind", "wanted"),
        [
            pytest.param(DIRECTORY, capability(block=True), id="a directory as a block device"),
            pytest.param(BLOCK, capability(fs="ext4"), id="a raw volume as a filesystem"),
            pytest.param(EXT4, capability(block=True), id="a filesystem as a block device"),
            pytest.param(EXT4, capability(fs="xfs"), id="ext4 as xfs"),
            pytest.param(EXT4, capability(fs="ntfs"), id="ext4 as ntfs"),
        ],
    )
    def test_what_a_volume_is_not_is_not_confirmed_and_not_staged(
        self, driver: Driver, kind: Kind, wanted: csi.VolumeCapability
    ) -> None:
        volume = kind.create(driver)
        assert not validate(driver, volume, wanted).HasField("confirmed")
        with refused(Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT):
            driver.stage(volume, access=wanted)
        driver.stage(volume)
        with refused(Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT):
            driver.publish(volume, access=wanted)

    def test_a_directory_as_a_block_device_is_refused_at_create(self, driver: Driver) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driver.create(fresh_name(), 64 * MIB, params={"backend": "directory"}, block=True)

    @pytest.mark.parametrize("fs", ["ntfs", "ext4;id", "../ext4", "EXT4 ", "-f"])
    def test_unknown_filesystems_are_refused_at_create(self, driver: Driver, fs: str) -> None:
        with refused(Code.INVALID_ARGUMENT) as error:
            driver.create(fresh_name(), 64 * MIB, fs=fs)
        assert "xfs" in error.message, "the message must name those that exist"

    def test_the_node_says_that_it_knows_the_single_writer_modes(self, driver: Driver) -> None:
        node = driver.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest()).capabilities
        assert csi.NodeServiceCapability.RPC.SINGLE_NODE_MULTI_WRITER in {one.rpc.type for one in node}
        controller = driver.controller.ControllerGetCapabilities(csi.ControllerGetCapabilitiesRequest()).capabilities
        wanted = csi.ControllerServiceCapability.RPC.SINGLE_NODE_MULTI_WRITER
        assert wanted in {one.rpc.type for one in controller}


def validate(
    driver: Driver, volume: Volume, *capabilities: csi.VolumeCapability
) -> csi.ValidateVolumeCapabilitiesResponse:
    """Ask whether the volume can do all of this; by default what it was made for."""
    return driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.id,
            volume_context=volume.context,
            volume_capabilities=capabilities or [volume.capability],
        )
    )
