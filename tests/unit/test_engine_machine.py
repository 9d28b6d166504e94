"""The engine under every sequence of requests, crashes, errors and reboots that hypothesis can think of.

A crash is kill -9: from that moment on every call to the machine fails as well, so that no undo code can help. After
each request that was not acknowledged, either the same request is made again and must succeed, or its opposite is.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from csi_local.engine.observe import Observer
from csi_local.model.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from csi_local.model.quantity import MIB
from csi_local.model.volume import CapacityRange, FormatState
from csi_local.plan import sizes
from csi_local.plan.sizes import Promises
from tests.unit.rig import PATIENCE_S, Rig, capability, key, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_local.engine.pool import Pool
    from csi_local.model.volume import VolumeRecord
    from csi_local.plan.request import VolumeRequest
    from tests.fake.tree import FakeFilesystem

FS_TYPE = "csi.storage.k8s.io/fstype"
KINDS: dict[str, tuple[dict[str, str], int]] = {
    "directory": ({"backend": "directory"}, 64 * MIB),
    "advisory": ({"backend": "directory", "quota": "advisory"}, 64 * MIB),
    "ext4": ({FS_TYPE: "ext4"}, 64 * MIB),
    "thin": ({"allocation": "thin", FS_TYPE: "ext4"}, 64 * MIB),
    "xfs": ({FS_TYPE: "xfs"}, 320 * MIB),
    "btrfs": ({FS_TYPE: "btrfs"}, 256 * MIB),
    "block": ({"backend": "loopfile"}, 64 * MIB),
    "luks-ext4": ({"encryption": "luks2", FS_TYPE: "ext4"}, 64 * MIB),
    "luks-xfs": ({"encryption": "luks2", "allocation": "thin", FS_TYPE: "xfs"}, 320 * MIB),
    "luks-block": ({"encryption": "luks2"}, 64 * MIB),
}
EXT4 = ("ext4", "thin", "luks-ext4")
NAMES = ("data", "logs", "pvc with spaces", "../escape")
TARGETS = ("first", "second")

kinds = st.sampled_from(sorted(KINDS))
troubles = st.one_of(
    st.none(),
    st.tuples(st.just("point"), st.integers(min_value=1, max_value=8)),
    st.tuples(st.just("moment"), st.integers(min_value=1, max_value=50)),
    st.tuples(st.just("error"), st.integers(min_value=1, max_value=30)),
)
Trouble = tuple[str, int] | None


@dataclass(slots=True, kw_only=True)
class Known:
    """What the CO knows of a volume."""

    id: str
    kind: str
    asked: VolumeRequest
    size: int
    uuid: str = ""
    luks: str = ""
    origin: str = ""
    marked: bool = False
    staged: bool = False
    targets: dict[str, bool] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)

    @property
    def content(self) -> str:
        """What is written to it, or was written to what it was made from."""
        return self.origin or self.asked.name

    @property
    def block(self) -> bool:
        return self.kind.endswith("block")

    @property
    def encrypted(self) -> bool:
        return self.kind.startswith("luks")

    @property
    def directory(self) -> bool:
        return self.kind in ("directory", "advisory")

    @property
    def staging(self) -> str:
        return f"/kubelet/{self.id}"

    def target(self, name: str) -> str:
        return f"/kubelet/{self.id}.{name}"


class EngineMachine(RuleBasedStateMachine):
    """Requests in any order, with trouble at any point."""

    volumes = Bundle("volumes")

    @initialize(ext4_grows_mounted=st.booleans(), project_quota=st.booleans())
    def begin(self, *, ext4_grows_mounted: bool, project_quota: bool) -> None:
        self.rig = Rig()
        self.rig.host.ext4_grows_mounted = ext4_grows_mounted
        self.rig.host.project_quota = project_quota
        self.rig.start()
        self.known: dict[str, Known] = {}
        self.used = {pool.spec.name: self._filesystem(pool).used for pool in self.rig.pools.all()}
        self.points = len(self.rig.host.points)

    def _filesystem(self, pool: Pool) -> FakeFilesystem:
        return cast("FakeFilesystem", self.rig.filesystem_of(pool))

    def _record(self, volume: Known) -> VolumeRecord:
        record = self.rig.volumes.get(volume.id).record
        assert record is not None
        return record

    def _promised(self) -> int:
        """How much room was promised, in all pools."""
        return sum(volume.size for volume in self.known.values())

    def _exists(self, volume: Known) -> bool:
        """Whether this very volume is there, and not gone, or another of the same name in its place."""
        return self.known.get(volume.id) is volume

    def _tried(self, trouble: Trouble, action: Callable[[], object]) -> bool:
        """Whether the action was acknowledged in spite of the trouble."""
        kind, number = trouble or ("", 0)
        if kind == "point":
            self.rig.die_at_point(number)
        elif kind == "moment":
            self.rig.host.die(number)
        elif kind == "error":
            self.rig.host.fail("", errno.EIO, nth=number)
        return self.rig.acknowledged(action)

    # The controller

    @rule(target=volumes, name=st.sampled_from(NAMES), kind=kinds, trouble=troubles, give_up=st.booleans())
    def create(self, name: str, kind: str, trouble: Trouble, *, give_up: bool) -> object:
        if any(volume.asked.name == name for volume in self.known.values()):
            return multiple()
        parameters, size = KINDS[kind]
        asked = request(name, size, parameters, block=kind.endswith("block"))
        made: list[Known] = []

        def act() -> None:
            view = self.rig.volumes.create(asked, PATIENCE_S)
            assert view.record is not None
            made[:] = [Known(id=view.id, kind=kind, asked=asked, size=view.record.size)]

        try:
            while not self._tried(trouble, act):
                trouble = None
                self._check_whole_or_absent(asked)
                if give_up:
                    self._delete_unknown(asked)
                    return multiple()
        except ResourceExhausted:
            assert self._promised() > MIB << 10
            return multiple()
        self.known[made[0].id] = made[0]
        return made[0]

    def _check_whole_or_absent(self, asked: VolumeRequest) -> None:
        """What nobody acknowledged is all there, or not at all."""
        for view in self.rig.volumes.list("", 0)[0]:
            if view.id not in self.known:
                assert view.record is not None
                assert (view.problem, view.record.name) == ("", asked.name)

    def _delete_unknown(self, asked: VolumeRequest) -> None:
        for view in self.rig.volumes.list("", 0)[0]:
            if view.record is not None and view.record.name == asked.name:
                self.rig.volumes.delete(view.id, PATIENCE_S)

    @rule(volume=volumes)
    def create_again(self, volume: Known) -> None:
        if not self._exists(volume):
            return
        view = self.rig.volumes.create(volume.asked, PATIENCE_S)
        assert (view.id, view.record is not None and view.record.size) == (volume.id, volume.size)

    @rule(volume=volumes, kind=kinds)
    def create_another_of_that_name(self, volume: Known, kind: str) -> None:
        if not self._exists(volume) or kind == volume.kind:
            return
        parameters, size = KINDS[kind]
        with pytest.raises(AlreadyExists):
            self.rig.volumes.create(
                request(volume.asked.name, size, parameters, block=kind.endswith("block")), PATIENCE_S
            )

    @rule(volume=volumes, trouble=troubles)
    def delete(self, volume: Known, trouble: Trouble) -> None:
        if not self._exists(volume):
            return
        if volume.staged or volume.targets:
            with pytest.raises(FailedPrecondition):
                self.rig.volumes.delete(volume.id, PATIENCE_S)
            return
        while not self._tried(trouble, lambda: self.rig.volumes.delete(volume.id, PATIENCE_S)):
            trouble = None
        self._gone(volume)

    def _gone(self, volume: Known) -> None:
        del self.known[volume.id]
        with pytest.raises(NotFound):
            self.rig.volumes.get(volume.id)
        for name in volume.stale:
            self.rig.publisher.unpublish(volume.id, volume.target(name), PATIENCE_S)
            self.rig.host.remove(volume.target(name))  # as the kubelet does

    @rule(volume=volumes, step=st.integers(min_value=1, max_value=5), trouble=troubles, give_up=st.booleans())
    def expand(self, volume: Known, step: int, trouble: Trouble, *, give_up: bool) -> None:
        if not self._exists(volume):
            return
        before, wanted = volume.size, CapacityRange(required=volume.size + step * 16 * MIB)

        def act() -> None:
            size, on_node = self.rig.sizes.expand(volume.id, wanted, capability(block=volume.block), PATIENCE_S)
            assert (size, on_node) == (wanted.required, not volume.directory)
            volume.size = size

        try:
            while not self._tried(trouble, act):
                trouble = None
                volume.size = self._record(volume).size
                assert volume.size in (before, wanted.required)
                if give_up:
                    break
        except ResourceExhausted:
            assert self._promised() > MIB << 10

    @rule(volume=volumes, trouble=troubles)
    def expand_on_node(self, volume: Known, trouble: Trouble) -> None:
        if not self._exists(volume) or not volume.staged or volume.block:
            return

        def act() -> None:
            wanted = CapacityRange(required=volume.size)
            at = volume.staging
            size = self.rig.sizes.expand_on_node(volume.id, at, wanted, capability(), PATIENCE_S, key())
            assert size == volume.size

        if volume.kind in EXT4 and not self.rig.host.ext4_grows_mounted:
            with pytest.raises(FailedPrecondition, match="restart the pod"):
                act()
            return
        while not self._tried(trouble, act):
            trouble = None
        self._check_grown(volume)

    # The node

    def _stage(self, volume: Known) -> None:
        self.rig.host.make_dirs(volume.staging)
        wanted = capability(block=volume.block)
        self.rig.publisher.stage(volume.id, volume.staging, wanted, PATIENCE_S, key())

    @rule(volume=volumes, trouble=troubles, give_up=st.booleans())
    def stage(self, volume: Known, trouble: Trouble, *, give_up: bool) -> None:
        if not self._exists(volume):
            return
        fresh = not volume.staged
        while not self._tried(trouble, lambda: self._stage(volume)):
            trouble = None
            self._learn_uuid(volume)
            if give_up and fresh:
                self._unstage(volume)
                return
        volume.staged = True
        self._learn_uuid(volume)
        if fresh and not volume.directory and not volume.block:
            self._check_grown(volume)
        self._mark(volume)

    def _learn_uuid(self, volume: Known) -> None:
        record = self._record(volume)
        if record.encryption is not None and record.encryption.state is FormatState.FORMATTED:
            assert volume.luks in ("", record.encryption.uuid), "its header was made twice"
            volume.luks = record.encryption.uuid
        if record.format is FormatState.FORMATTED:
            assert volume.uuid in ("", record.fs_uuid), "it was formatted twice"
            volume.uuid = record.fs_uuid

    def _check_grown(self, volume: Known) -> None:
        if not volume.directory:
            slack = 64 * MIB if volume.kind.endswith("xfs") else MIB
            held = self.rig.host.walk(volume.staging, "test").mount.filesystem
            assert held.grown + slack >= volume.size

    def _mark(self, volume: Known) -> None:
        """Write something, or see that what was written is there."""
        marker = f"{volume.staging}/marker"
        if volume.block:
            image = self.rig.pool_of(volume.id).layout.image(self._record(volume).id)
            node = self.rig.host.walk(image, "test").node
            node.dirty = len(volume.content) if not volume.marked else node.dirty
            assert node.dirty == len(volume.content)
        elif volume.marked:
            assert self.rig.host.read_file(marker) == volume.content.encode()
        else:
            self.rig.host.replace_file(marker, volume.content.encode())
        volume.marked = True

    @rule(volume=volumes, name=st.sampled_from(TARGETS), trouble=troubles, give_up=st.booleans())
    def publish(self, volume: Known, name: str, trouble: Trouble, *, give_up: bool) -> None:
        if not self._exists(volume):
            return
        read_only = name == "second"
        paths = (volume.staging, volume.target(name))

        def act() -> None:
            wanted = capability(block=volume.block)
            self.rig.publisher.publish(volume.id, paths, wanted, PATIENCE_S, key(), read_only=read_only)

        healing = not volume.staged
        if healing and not self._can_heal(volume):
            with pytest.raises(FailedPrecondition):
                act()
            return
        while not self._tried(trouble, act):
            trouble = None
            if give_up:
                self._unpublish(volume, name)
                if healing:
                    self._unstage(volume)
                return
        volume.staged = True
        volume.targets[name] = read_only
        volume.stale.discard(name)
        self._mark(volume)

    def _can_heal(self, volume: Known) -> bool:
        formatted = bool(volume.uuid) or volume.directory or (volume.block and bool(volume.luks) == volume.encrypted)
        return formatted and self.rig.host.look(volume.staging) is not None

    def _unpublish(self, volume: Known, name: str) -> None:
        self.rig.publisher.unpublish(volume.id, volume.target(name), PATIENCE_S)
        volume.targets.pop(name, None)
        volume.stale.discard(name)
        assert self.rig.host.look(volume.target(name)) is None

    @rule(volume=volumes, name=st.sampled_from(TARGETS), trouble=troubles)
    def unpublish(self, volume: Known, name: str, trouble: Trouble) -> None:
        if not self._exists(volume):
            return
        while not self._tried(trouble, lambda: self._unpublish(volume, name)):
            trouble = None

    def _unstage(self, volume: Known) -> None:
        self.rig.publisher.unstage(volume.id, volume.staging, PATIENCE_S)
        volume.staged = False

    @rule(volume=volumes, trouble=troubles)
    def unstage(self, volume: Known, trouble: Trouble) -> None:
        if not self._exists(volume):
            return
        if volume.targets:
            self._unstage_published(volume)
            return
        while not self._tried(trouble, lambda: self._unstage(volume)):
            trouble = None

    def _unstage_published(self, volume: Known) -> None:
        """Refused; but a new driver cannot tell a pod's mount from a second staging path's, and leaves it alone."""
        try:
            self._unstage(volume)
        except FailedPrecondition:
            return
        assert not volume.block
        for name in list(volume.targets):
            assert self.rig.host.look(volume.target(name)) is not None
            self._unpublish(volume, name)
        self._unstage(volume)

    # The world

    @rule()
    def kill(self) -> None:
        self.rig.crash()

    @rule()
    def reboot(self) -> None:
        self.rig.reboot()
        for volume in self.known.values():
            volume.staged = False
            volume.stale |= set(volume.targets)
            volume.targets.clear()

    @rule()
    def sweep(self) -> None:
        self.rig.sweeper.drain()
        for pool in self.rig.pools.all():
            assert pool.store.leftovers() == []

    # What must hold at all times

    @invariant()
    def every_volume_is_as_it_was_promised(self) -> None:
        assert [view.id for view in self.rig.volumes.list("", 0)[0]] == sorted(self.known)
        for volume in self.known.values():
            view = self.rig.volumes.get(volume.id)
            assert view.record is not None
            assert (view.problem, view.record.size) == ("", volume.size)
            assert view.record.parameters == volume.asked.parameters.given
            if not volume.directory:
                self._check_image(volume, view.record)

    def _check_image(self, volume: Known, record: VolumeRecord) -> None:
        node = self.rig.host.walk(self.rig.pool_of(volume.id).layout.image(record.id), "test").node
        assert node.size >= record.image_size
        assert node.allocated >= record.image_size or not record.thick
        held = node.luks.inside.held if node.luks is not None else node.held
        if volume.uuid:
            assert held is not None
            assert (held.uuid, record.fs_uuid) == (volume.uuid, volume.uuid)
        assert (node.luks is not None) >= bool(volume.luks)

    @invariant()
    def what_is_used_is_there_and_nothing_else(self) -> None:
        observer = Observer(self.rig.host)
        for volume in self.known.values():
            layout = self.rig.pool_of(volume.id).layout
            record = self._record(volume)
            devices = observer.stack(layout, record.id)
            assert bool(devices.top) == (volume.staged and not volume.directory)
            assert bool(devices.opened) == (volume.staged and volume.encrypted)
            places = [volume.target(name) for name in volume.targets]
            places += [volume.staging] if volume.staged and not volume.block else []
            points = observer.mount_points(layout, record.id, devices)
            assert sorted(points) == sorted(places), f"{volume}: {points}"
            for name, read_only in volume.targets.items():
                if not volume.block:
                    assert ("ro" in self.rig.host.mount_flags(volume.target(name))) == read_only
            for name in set(TARGETS) - set(volume.targets) - volume.stale:
                assert self.rig.host.look(volume.target(name)) is None

    @invariant()
    def promises_are_what_the_records_say(self) -> None:
        for pool in self.rig.pools.all():
            weights = [sizes.weight(pool.store.load(volume)) for volume in pool.store.volumes()]
            expected = Promises(
                reserved=sum(weight.reserved for weight in weights),
                directories=sum(weight.directories for weight in weights),
                thin=sum(weight.thin for weight in weights),
                written=pool._sum.written,
            )
            assert pool._sum == expected

    def teardown(self) -> None:
        if not hasattr(self, "known"):
            return
        for volume in list(self.known.values()):
            for name in TARGETS:
                self._unpublish(volume, name)
            self._unstage(volume)
            self.rig.volumes.delete(volume.id, PATIENCE_S)
        self.sweep()
        for pool in self.rig.pools.all():
            assert self._filesystem(pool).used == self.used[pool.spec.name], "not all room came back"
        assert len(self.rig.host.points) == self.points
        self.rig.pools.close()
        assert not self.rig.host.attached
        assert not self.rig.host.mapped
        assert not self.rig.host.locked


EngineMachine.TestCase.settings = settings(
    max_examples=1000, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngine = EngineMachine.TestCase
