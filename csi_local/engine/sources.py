"""What a volume or snapshot is to be made from: found, locked and looked at."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi_local.engine.api import SnapshotView
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.host.api import Host
from csi_local.model.errors import FailedPrecondition
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import ContentSource, SnapshotId, SnapshotRecord, SourceKind
from csi_local.model.volume import BackendKind, QuotaMode, VolumeId
from csi_local.plan.copying import Origin, check_whole, damage
from csi_local.store.layout import DATA, IMAGE

_SNAPSHOT = "snapshot "


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An origin, the pool it is in, and the key of its lock."""

    pool: Pool
    origin: Origin
    key: str


def snapshot_key(snapshot: str) -> str:
    """The key of a snapshot's lock, which is no volume's id."""
    return f"{_SNAPSHOT}{snapshot}"


def snapshot_of(key: str) -> SnapshotId | None:
    """The snapshot that a key is of; None where it is a volume's."""
    return SnapshotId(key.removeprefix(_SNAPSHOT)) if key.startswith(_SNAPSHOT) else None


class Sources:
    """Finds what there is to copy."""

    def __init__(self, host: Host, pools: Pools, locks: KeyedLocks) -> None:
        self._host = host
        self._pools = pools
        self._locks = locks
        self._observer = Observer(host)

    def find(self, source: ContentSource) -> Source:
        """What a request names.

        Raises:
            NotFound: there is no such snapshot or volume.
            DamagedRecord: its record cannot be believed.
        """
        if source.kind is SourceKind.VOLUME:
            return self.volume(source.id)
        pool, snapshot = self._pools.find_snapshot(source.id)
        record = pool.store.snapshots.load(snapshot)
        return Source(pool=pool, origin=self._origin(pool, record), key=snapshot_key(record.id))

    @staticmethod
    def _origin(pool: Pool, record: SnapshotRecord) -> Origin:
        name = DATA if record.volume.backend is BackendKind.DIRECTORY else IMAGE
        return Origin(record=record.volume, path=f"{pool.store.snapshots.find(record.id)}/{name}", kept=True)

    def shown(self, pool: Pool, record: SnapshotRecord) -> SnapshotView:
        """A snapshot as it is shown, with what can be seen to be wrong with it."""
        origin = self._origin(pool, record)
        problem = damage(origin, self._host.stat(origin.path))
        return SnapshotView(id=record.id, pool=pool.spec.name, record=record, problem=problem)

    def volume(self, shown: str) -> Source:
        """A volume, which has not been looked at yet.

        Raises:
            NotFound: there is no such volume.
            DamagedRecord: its record cannot be believed.
            FailedPrecondition: it is an adopted directory, or a pod's inline volume.
        """
        pool, volume = self._pools.find(shown)
        record = pool.store.load(volume)
        if record.adopted or record.ephemeral:
            what = f"a directory outside the pool, {record.adopted}" if record.adopted else "a pod's inline volume"
            raise FailedPrecondition(f"volume {shown} is {what}: there are no snapshots and no clones of it")
        path = pool.layout.data(volume) if record.backend is BackendKind.DIRECTORY else pool.layout.image(volume)
        return Source(pool=pool, origin=Origin(record=record, path=path), key=volume)

    @contextmanager
    def held(self, source: Source, patience_s: float) -> Iterator[Source]:
        """Let nobody else change a source, and see how it is being used.

        Raises:
            Busy: another operation on it is under way.
            FailedPrecondition: its filesystem is mounted where it cannot be frozen; or its bytes are not all there.
        """
        with self._locks.hold(source.key, patience_s):
            origin = source.origin
            if origin.kept:
                _, snapshot = self._pools.find_snapshot(source.key.removeprefix(_SNAPSHOT))
                origin = self._origin(source.pool, source.pool.store.snapshots.load(snapshot))
            else:
                origin = dataclasses.replace(origin, record=source.pool.store.load(VolumeId(source.key)))
            check_whole(origin, self._host.stat(origin.path))
            yield dataclasses.replace(source, origin=origin if origin.kept else self._look(source.pool, origin))

    def _look(self, pool: Pool, origin: Origin) -> Origin:
        record = origin.record
        stack = self._observer.stack(pool.layout, record.id)
        if origin.directory:
            points = self._observer.mount_points(pool.layout, record.id, stack)
            return dataclasses.replace(origin, in_use=bool(points))
        writable = stack.writable
        if record.block:
            devices = tuple(device.path for device in writable)
            return dataclasses.replace(origin, devices=devices, in_use=bool(writable))
        mounts = self._host.mounts("/dev/") if writable else ()
        for device in writable:
            points = tuple(self._observer.points_of(device, mounts))
            reached = self._observer.reached_at(device, mounts)
            if points and reached is None:
                raise FailedPrecondition(
                    f"volume {record.id} cannot be frozen for a copy: something else lies over it at {points[0]}"
                )
            if reached is not None:
                return dataclasses.replace(origin, point=reached, in_use=True)
        return dataclasses.replace(origin, in_use=bool(writable))

    def holds(self, pool: Pool, origin: Origin) -> Bytes:
        """How many bytes of blocks a volume has; 0 where nobody counts them."""
        if origin.directory and origin.record.quota is not QuotaMode.HARD:
            return Bytes(0)
        return pool.used_by(origin.record)
