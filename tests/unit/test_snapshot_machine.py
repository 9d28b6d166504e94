"""The state machine of the engine, with snapshots, restores and clones among its requests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, invariant, multiple, rule

from csi_local.model.errors import ResourceExhausted
from csi_local.model.quantity import MIB
from csi_local.model.snapshot import ContentSource, SnapshotRequest, SourceKind
from csi_local.plan import sizes
from csi_local.plan.sizes import Promises
from tests.unit.rig import PATIENCE_S, request
from tests.unit.test_engine_machine import KINDS, EngineMachine, Known, Trouble, troubles

if TYPE_CHECKING:
    from csi_local.model.volume import VolumeRecord

NAMES = ("daily", "data", "a name/with a slash")
COPIES = ("restored", "cloned")


@dataclass(slots=True, kw_only=True)
class Taken:
    """What the CO knows of a snapshot: what its volume was."""

    id: str
    name: str
    of: Known


class SnapshotMachine(EngineMachine):
    """Copies between all other requests."""

    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Taken] = {}

    def _promised(self) -> int:
        return super()._promised() + sum(one.of.size for one in self.taken.values())

    @rule(
        target=snapshots,
        volume=EngineMachine.volumes,
        name=st.sampled_from(NAMES),
        trouble=troubles,
        give_up=st.booleans(),
    )
    def snapshot(self, volume: Known, name: str, trouble: Trouble, *, give_up: bool) -> object:
        if not self._exists(volume) or any(one.name == name for one in self.taken.values()):
            return multiple()
        made: list[Taken] = []

        def act() -> None:
            view = self.rig.snapshots.create(SnapshotRequest(name=name, source=volume.id), PATIENCE_S)
            made[:] = [Taken(id=view.id, name=name, of=dataclasses.replace(volume))]

        try:
            while not self._tried(trouble, act):
                trouble = None
                if give_up:
                    for view in self.rig.snapshots.list("", 0)[0]:
                        if view.id not in self.taken:
                            self.rig.snapshots.delete(view.id, PATIENCE_S)
                    return multiple()
        except ResourceExhausted:
            assert self._promised() > MIB << 10
            return multiple()
        self.taken[made[0].id] = made[0]
        return made[0]

    @rule(snapshot=snapshots, trouble=troubles)
    def delete_snapshot(self, snapshot: Taken, trouble: Trouble) -> None:
        if self.taken.get(snapshot.id) is not snapshot:
            return
        while not self._tried(trouble, lambda: self.rig.snapshots.delete(snapshot.id, PATIENCE_S)):
            trouble = None
        del self.taken[snapshot.id]

    @rule(target=EngineMachine.volumes, snapshot=snapshots, trouble=troubles)
    def restore(self, snapshot: Taken, trouble: Trouble) -> object:
        if self.taken.get(snapshot.id) is not snapshot:
            return multiple()
        return self._made(snapshot.of, ContentSource(kind=SourceKind.SNAPSHOT, id=snapshot.id), "restored", trouble)

    @rule(target=EngineMachine.volumes, volume=EngineMachine.volumes, trouble=troubles)
    def clone(self, volume: Known, trouble: Trouble) -> object:
        if not self._exists(volume):
            return multiple()
        return self._made(volume, ContentSource(kind=SourceKind.VOLUME, id=volume.id), "cloned", trouble)

    def _made(self, of: Known, source: ContentSource, name: str, trouble: Trouble) -> object:
        if name in self.known:
            return multiple()
        asked = dataclasses.replace(request(name, 0, KINDS[of.kind][0], block=of.block), source=source)
        made: list[Known] = []

        def act() -> None:
            record = self.rig.volumes.create(asked, PATIENCE_S).record
            assert record is not None
            copy = Known(id=record.id, kind=of.kind, asked=asked, size=record.size, uuid=of.uuid)
            made[:] = [dataclasses.replace(copy, origin=of.content if of.marked else "", marked=of.marked)]

        try:
            while not self._tried(trouble, act):
                trouble = None
        except ResourceExhausted:
            assert self._promised() > MIB << 10
            return multiple()
        assert made[0].size == of.size
        self.known[made[0].id] = made[0]
        return made[0]

    @invariant()
    def snapshots_are_what_was_taken(self) -> None:
        views = self.rig.snapshots.list("", 0)[0] if hasattr(self, "rig") else []
        assert {view.id for view in views} == set(self.taken)
        for view in views:
            assert view.record is not None
            assert view.record.volume.size == self.taken[view.id].of.size

    @invariant()
    def nothing_is_frozen(self) -> None:
        for volume in self.known.values() if hasattr(self, "known") else ():
            if volume.staged and not volume.block:
                assert not self.rig.host.walk(volume.staging, "test").mount.filesystem.frozen

    def _weights(self, records: list[VolumeRecord], shares: bool) -> list[Promises]:  # noqa: FBT001 (as the engine's)
        return [sizes.weight(record, shares=shares) for record in records]

    @invariant()
    def promises_are_what_the_records_say(self) -> None:
        for pool in self.rig.pools.all():
            records = [pool.store.load(volume) for volume in pool.store.volumes()]
            weights = self._weights(records, shares=True)
            kept = [pool.store.snapshots.load(snapshot) for snapshot in pool.store.snapshots.all()]
            weights += [sizes.snapshot_weight(record, shares=True) for record in kept]
            expected = Promises(
                reserved=sum(weight.reserved for weight in weights),
                directories=sum(weight.directories for weight in weights),
                thin=sum(weight.thin for weight in weights),
                shared=sum(weight.shared for weight in weights),
                written=pool._sum.written,
            )
            assert pool._sum == expected

    def teardown(self) -> None:
        for snapshot in list(self.taken):
            self.rig.snapshots.delete(snapshot, PATIENCE_S)
        super().teardown()


SnapshotMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSnapshots = SnapshotMachine.TestCase
