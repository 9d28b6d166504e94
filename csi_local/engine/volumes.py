"""Volumes: create, delete, get, list, and how much room there is for more."""

import bisect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from csi_local.engine.copies import Copies
from csi_local.engine.execute import Executor
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.observe import Observer
from csi_local.engine.pools import Pool, Pools
from csi_local.engine.restoring import Restorer
from csi_local.engine.sources import Source
from csi_local.engine.sweeper import Sweeper
from csi_local.host.api import Host
from csi_local.model.errors import (
    Busy,
    DamagedRecord,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    SyscallFailed,
)
from csi_local.model.observed import FileKind
from csi_local.model.quantity import Bytes
from csi_local.model.volume import VolumeId, VolumeRecord, check_name, known_id, volume_id
from csi_local.plan import life, sizes
from csi_local.plan.placement import Placement, available, place, unfit
from csi_local.plan.request import VolumeRequest, check_same, new_record, shape

_log = logging.getLogger(__name__)
_SWEEP_WAIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """A volume as the services show it.

    Attributes:
        record: None where it cannot be read; *problem* then says why.
        problem: what is wrong with the volume, or "".
    """

    id: VolumeId
    pool: str
    record: VolumeRecord | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Room for new volumes of one kind, in bytes: in all, the largest possible, and the smallest possible."""

    available: Bytes
    largest: Bytes
    smallest: Bytes


class Volumes:
    """The use cases around whole volumes."""

    def __init__(
        self,
        host: Host,
        pools: Pools,
        executor: Executor,
        locks: KeyedLocks,
        sweeper: Sweeper,
        copies: Copies,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._pools = pools
        self._executor = executor
        self._locks = locks
        self._sweeper = sweeper
        self._clock = clock
        self._observer = Observer(host)
        self._copies = copies
        self._restorer = Restorer(host, pools, executor, locks, copies)

    def create(self, request: VolumeRequest, patience_s: float) -> VolumeView:
        """Make a volume, or find the one that an identical request made.

        Raises:
            InvalidArgument, OutOfRange: the request cannot be met anywhere.
            AlreadyExists: the name is taken by a different volume.
            NotFound: what it is to be made from is not there.
            Busy: the data is still being copied; the same request again finds it.
            ResourceExhausted: no pool here fits; the message goes through all of them.
        """
        volume = volume_id(check_name(request.name))
        with self._locks.hold(volume, patience_s):
            pool = self._pools.locate(volume)
            if pool is None:
                return self._make(request, volume, patience_s)
            record = pool.store.load(volume)
            check_same(record, request)
            pool.store.sync(volume)
            return VolumeView(id=volume, pool=pool.spec.name, record=record)

    def _make(self, request: VolumeRequest, volume: VolumeId, patience_s: float) -> VolumeView:
        source = self._restorer.find(request.source) if request.source else None
        like = source.origin.record if source else None
        record = new_record(request, now=int(self._clock()), like=like)
        placement = self._place(request, record.size, source)
        if placement.pool is None and any(verdict.small for verdict in placement.verdicts):
            self._sweeper.finish(_SWEEP_WAIT_S)
            placement = self._place(request, record.size, source)
        if placement.pool is None:
            raise ResourceExhausted(f"no pool fits volume {request.name!r}: {placement.explain()}")
        pool = self._pools.get(placement.pool)
        project, sector_size = pool.free_project(volume), pool.abilities.sector_size
        record = new_record(request, now=record.created, project=project, sector_size=sector_size, like=like)
        if source is not None:
            self._restorer.make(request, record, source, pool, patience_s)
            record = pool.store.load(volume)
        else:
            leftover = self._host.stat(pool.layout.new(volume)) is not None
            operations = life.create(record, pool.layout, pool.abilities, leftover=leftover)
            with pool.promising(record):
                self._executor.run("create", operations)
        _log.debug("created volume %s: %d bytes, %s in pool %s", volume, record.size, record.backend, pool.spec.name)
        return VolumeView(id=volume, pool=pool.spec.name, record=record)

    def _place(self, request: VolumeRequest, size: Bytes, source: Source | None) -> Placement:
        """Where a volume goes: beside its source where it fits there, since that takes no copy of the data."""
        if source is None:
            return self.explain(request, size)
        wanted = shape(request.parameters, request.capabilities, source.origin.record)
        beside = [view for view in self._pools.views() if view.name == source.pool.spec.name]
        placement = place(request.parameters, wanted, size, beside)
        return placement if placement.pool else place(request.parameters, wanted, size, self._pools.views())

    def explain(self, request: VolumeRequest, size: Bytes | None = None) -> Placement:
        """Where a volume would go, and why not elsewhere; *size* where it is known already."""
        wanted = shape(request.parameters, request.capabilities)
        if size is None:
            size = sizes.deliverable(request.capacity, sizes.smallest(wanted.backend, wanted.filesystem))
        return place(request.parameters, wanted, size, self._pools.views())

    def delete(self, shown: str, patience_s: float) -> None:
        """Remove a volume; no error where it is not there.

        Raises:
            FailedPrecondition: it is in use on this node, or its record is damaged.
            Unavailable: it may be in a pool that is missing.
        """
        volume = known_id(shown)
        if volume is None:
            return
        with self._locks.hold(volume, patience_s):
            self._restorer.cancel(volume, patience_s)
            try:
                pool, _ = self._pools.find(shown)
            except NotFound:
                for pool in self._pools.all():
                    pool.store.sync(volume)
                return
            pool.store.load(volume)  # what cannot be believed is not removed either
            self._check_unused(pool, volume)
            if self._copies.is_read(volume):
                raise Busy(f"volume {volume} is being copied; try again when that is done")
            trash = pool.store.unused_trash(volume)
            try:
                self._executor.run("delete", life.delete(pool.layout.volume(volume), trash))
            except Exception:
                if not pool.store.exists(volume):  # it failed after the commit
                    self._forget(pool, volume, trash)
                raise
            self._forget(pool, volume, trash)
            _log.debug("deleted volume %s from pool %s", volume, pool.spec.name)

    def _forget(self, pool: Pool, volume: VolumeId, trash: str) -> None:
        pool.forget(volume)
        self._sweeper.add(trash)

    def _check_unused(self, pool: Pool, volume: VolumeId) -> None:
        loops = self._observer.loops(pool.layout, volume)
        points = self._observer.mount_points(pool.layout, volume, loops)
        if points:
            raise FailedPrecondition(f"volume {volume} is in use: it is mounted at {', '.join(points)}")
        if loops:
            raise FailedPrecondition(f"volume {volume} is in use: {loops[0].path} is attached to it; unstage it first")

    def get(self, shown: str) -> VolumeView:
        """A volume by its id.

        Raises:
            NotFound: there is none.
            Unavailable: it may be in a pool that is missing.
        """
        return self._view(*self._pools.find(shown))

    def _view(self, pool: Pool, volume: VolumeId) -> VolumeView:
        try:
            record = pool.store.load(volume)
        except DamagedRecord as error:
            return VolumeView(id=volume, pool=pool.spec.name, record=None, problem=str(error))
        return VolumeView(id=volume, pool=pool.spec.name, record=record, problem=self._problem(pool, record))

    def _problem(self, pool: Pool, record: VolumeRecord) -> str:
        """What can be seen to be wrong with a volume's bytes."""
        try:
            data = self._host.stat(pool.layout.data(record.id))
            image = self._host.stat(pool.layout.image(record.id))
        except SyscallFailed as error:
            return f"its files cannot be read: {error}"
        found = data or image
        if found is None:
            return "its data is gone from the pool"
        if found.kind is FileKind.FILE and found.size < record.size:
            return f"its image has {found.size} bytes instead of {record.size}"
        return ""

    def list(self, after: str, count: int) -> tuple[list[VolumeView], str]:
        """At most *count* volumes (0: all) in the order of their ids, beginning behind *after*.

        The second value is where to go on, "" at the end.
        """
        where = {volume: pool for pool in self._pools.all() for volume in pool.store.volumes()}
        ids = sorted(where)
        start = bisect.bisect_right(ids, after) if after else 0
        chosen = ids[start : start + count] if count else ids[start:]
        views = []
        for volume in chosen:
            try:
                views.append(self._view(where[volume], volume))
            except NotFound:
                continue  # deleted meanwhile
        more = bool(count) and start + count < len(ids)
        return views, chosen[-1] if more else ""

    def capacity(self, request: VolumeRequest) -> Capacity:
        """Room for volumes of that kind.

        Raises:
            InvalidArgument: there is no such kind.
        """
        wanted = shape(request.parameters, request.capabilities)
        least = sizes.smallest(wanted.backend, wanted.filesystem)
        views = [view for view in self._pools.views() if not unfit(request.parameters, wanted, view)]
        rooms = [room for view in views if (room := available(request.parameters, view)) >= least]
        return Capacity(available=Bytes(sum(rooms)), largest=max(rooms, default=Bytes(0)), smallest=least)
