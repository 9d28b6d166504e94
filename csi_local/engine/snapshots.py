"""Snapshots: take, delete, get, list."""

import bisect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from csi_local.engine.api import SnapshotView
from csi_local.engine.copies import Copies
from csi_local.engine.execute import Executor
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.engine.sources import Source, Sources, snapshot_key
from csi_local.engine.sweeper import Sweeper
from csi_local.host.api import Host, Proceed
from csi_local.model.errors import Busy, DamagedRecord, InvalidArgument, NotFound
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import SnapshotId, SnapshotRecord, SnapshotRequest, snapshot_id
from csi_local.model.volume import check_name, known_id
from csi_local.plan import copying, life
from csi_local.plan.copying import within_reach
from csi_local.store.layout import IMAGE

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The request of a copy that is under way, and what will come of it."""

    request: SnapshotRequest
    pool: str
    record: SnapshotRecord

    def __eq__(self, other: object) -> bool:
        """Another one for the same is not told apart by its time."""
        return isinstance(other, _Asked) and other.request.source == self.request.source

    def __hash__(self) -> int:
        """As it is compared."""
        return hash(self.request.source)


class Snapshots:
    """The use cases around snapshots."""

    def __init__(
        self,
        host: Host,
        pools: Pools,
        executor: Executor,
        locks: KeyedLocks,
        sweeper: Sweeper,
        copies: Copies,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._host = host
        self._pools = pools
        self._executor = executor
        self._locks = locks
        self._sweeper = sweeper
        self._copies = copies
        self._sources = Sources(host, pools, locks)
        self._clock = clock

    def create(self, request: SnapshotRequest, patience_s: float) -> SnapshotView:
        """Take a snapshot, or find the one that an identical request took.

        Raises:
            NotFound: there is no such volume.
            AlreadyExists: the name is taken by a snapshot of another volume.
            ResourceExhausted: its pool has no room for what the snapshot holds.
            FailedPrecondition: the volume is in use, and its pool's filesystem cannot share blocks.
        """
        snapshot = snapshot_id(check_name(request.name, "snapshot"))
        with self._locks.hold(snapshot_key(snapshot), patience_s):
            coming = self._coming(snapshot)  # before the disk is looked at: it may end meanwhile
            pool = self._pools.locate_snapshot(snapshot)
            if pool is not None:
                record = pool.store.snapshots.load(snapshot)
                copying.check_same_snapshot(record, request)
                pool.store.snapshots.sync()
                return SnapshotView(id=snapshot, pool=pool.spec.name, record=record)
            if coming is not None:
                copying.check_same_snapshot(coming.record, request)
            source = self._sources.volume(request.source)
            if within_reach(source.pool.abilities):
                return self._take(request, source, patience_s)
            return self._copy(request, source, coming, patience_s)

    def _take(self, request: SnapshotRequest, source: Source, patience_s: float) -> SnapshotView:
        with self._sources.held(source, patience_s) as seen:
            pool, origin = seen.pool, seen.origin
            record = copying.new_snapshot(request, origin.record, now=self._clock())
            if origin.directory:
                record = replace(record, held=self._sources.holds(pool, origin))
            place = pool.layout.new_snapshot(record.id)
            leftover = self._host.stat(place) is not None
            pool.store.snapshots.prepare()
            self._executor.run("snapshot", copying.take(origin, place, pool.abilities, leftover=leftover))
        record = self._finish(pool, record, place)
        return SnapshotView(id=record.id, pool=pool.spec.name, record=record)

    def _measured(self, record: SnapshotRecord, place: str) -> SnapshotRecord:
        """What was cloned is counted afterwards: blocks that are reserved and were never written are not in it."""
        image = self._host.stat(f"{place}/{IMAGE}")
        return replace(record, held=Bytes(image.allocated)) if image is not None else record

    def _finish(self, pool: Pool, record: SnapshotRecord, place: str) -> SnapshotRecord:
        try:
            record = self._measured(record, place)
            with pool.promising_snapshot(record):
                self._executor.run("snapshot-keep", copying.finish(record, place, pool.layout, pool.abilities))
        except Exception:
            if self._host.stat(place) is not None:
                self._sweep(pool, place, record)
            raise
        _log.debug("snapshot %s of volume %s in pool %s", record.id, record.source, pool.spec.name)
        return record

    def _sweep(self, pool: Pool, path: str, record: SnapshotRecord) -> None:
        trash = pool.store.unused_trash(f"snapshot:{record.id}")
        try:
            gone = life.delete(path, trash, [IMAGE] if record.volume.encryption else [])
            self._executor.run("snapshot-drop", gone)
        finally:
            if self._host.stat(path) is None:  # it may have failed after the commit
                self._sweeper.add(trash)

    # Copies of data

    def _coming(self, snapshot: str) -> _Asked | None:
        """What was asked for, where that snapshot is being copied."""
        coming = self._copies.asked().get(snapshot_key(snapshot))
        return coming if isinstance(coming, _Asked) else None

    def _copy(self, request: SnapshotRequest, source: Source, coming: _Asked | None, patience_s: float) -> SnapshotView:
        pool = source.pool
        if coming is None:
            with self._sources.held(source, patience_s) as seen:
                record = self._copied(copying.new_snapshot(request, seen.origin.record, now=self._clock()), seen)
        else:
            record = coming.record

        def work(proceed: Proceed) -> None:
            if pool.store.snapshots.exists(record.id):  # the copy that was under way ended before it was waited for
                return
            with self._sources.held(source, patience_s) as seen:  # whoever stages it from now on ends the copy
                last = self._copied(record, seen)
            place = pool.layout.new_snapshot(last.id)
            leftover = self._host.stat(place) is not None
            pool.store.snapshots.prepare()
            with pool.promising_snapshot(last):
                operations = (
                    *copying.take(source.origin, place, pool.abilities, leftover=leftover),
                    *copying.finish(last, place, pool.layout, pool.abilities),
                )
                self._executor.run("snapshot-copy", operations, proceed)

        asked = _Asked(request, pool.spec.name, record)
        done = self._copies.run(snapshot_key(record.id), source.key, asked, work, patience_s)
        if done:
            record = pool.store.snapshots.load(record.id)
        return SnapshotView(id=record.id, pool=pool.spec.name, record=record, ready=done)

    def _copied(self, record: SnapshotRecord, seen: Source) -> SnapshotRecord:
        """A snapshot's record with its volume as it is seen now, where that can be copied."""
        copying.check_can_be_copied(seen.origin)
        return replace(record, volume=seen.origin.record, held=self._sources.holds(seen.pool, seen.origin))

    # The end

    def delete(self, shown: str, patience_s: float) -> None:
        """Remove a snapshot; no error where it is not there.

        Raises:
            InvalidArgument: it was taken with a group, and goes with that.
            Busy: a volume is being made from it.
            DamagedRecord: its record cannot be believed.
        """
        if known_id(shown) is None:
            return
        key = snapshot_key(shown)
        with self._locks.hold(key, patience_s):
            self._copies.cancel(key, patience_s)
            try:
                pool, snapshot = self._pools.find_snapshot(shown)
            except NotFound:
                for each in self._pools.all():
                    each.store.snapshots.sync()
                return
            record = pool.store.snapshots.load(snapshot)
            if record.group:
                raise InvalidArgument(
                    f"snapshot {shown} was taken with group {record.group}: delete the group, with all that is in it"
                )
            if self._copies.is_read(key):
                raise Busy(f"a volume is being made from snapshot {shown}; try again when that is done")
            try:
                self._sweep(pool, pool.layout.snapshot(snapshot), record)
            except Exception:
                if not pool.store.snapshots.exists(snapshot):  # it failed after the commit
                    pool.forget_snapshot(snapshot)
                raise
            pool.forget_snapshot(snapshot)

    # Looking

    def get(self, shown: str) -> SnapshotView:
        """A snapshot by its id, one that is still being copied too.

        Raises:
            NotFound: there is none.
            Unavailable: it may be in a pool that is missing.
        """
        if (coming := self._coming(shown)) is not None:
            return SnapshotView(id=coming.record.id, pool=coming.pool, record=coming.record, ready=False)
        pool, snapshot = self._pools.find_snapshot(shown)
        view = self._view(pool, snapshot)
        return view if view.record is None else self._sources.shown(pool, view.record)

    @staticmethod
    def _view(pool: Pool, snapshot: SnapshotId) -> SnapshotView:
        try:
            record = pool.store.snapshots.load(snapshot)
        except DamagedRecord as error:
            return SnapshotView(id=snapshot, pool=pool.spec.name, record=None, problem=str(error))
        return SnapshotView(id=snapshot, pool=pool.spec.name, record=record)

    def list(self, after: str, count: int, source: str = "") -> tuple[list[SnapshotView], str]:
        """At most *count* snapshots (0: all), of one volume or of all, by id, beginning behind *after*.

        The second value is where to go on, "" at the end.
        """
        views: dict[str, SnapshotView] = {}
        under_way = self._copies.asked().values()  # before the disks are looked at: a copy may end meanwhile
        for pool in self._pools.all():
            for snapshot in pool.store.snapshots.all():
                if snapshot > after:
                    try:
                        views[snapshot] = self._view(pool, snapshot)
                    except NotFound:
                        continue  # deleted meanwhile
        for coming in under_way:
            if isinstance(coming, _Asked) and coming.record.id > after:
                record = coming.record
                views.setdefault(record.id, SnapshotView(id=record.id, pool=coming.pool, record=record, ready=False))
        chosen = sorted(key for key, view in views.items() if not source or _is_of(view, source))
        start = bisect.bisect_right(chosen, after)
        page = chosen[start : start + count] if count else chosen[start:]
        more = bool(count) and start + count < len(chosen)
        return [views[key] for key in page], page[-1] if more else ""


def _is_of(view: SnapshotView, source: str) -> bool:
    return view.record is not None and view.record.source == source
