"""Volumes: create, delete, get, list, and how much room there is for more."""

import bisect
import logging
import time
from collections.abc import Callable
from functools import partial

from csi_local.engine.api import VolumeView
from csi_local.engine.copies import Copies
from csi_local.engine.erasing import headers_in
from csi_local.engine.execute import Executor
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.engine.restoring import Restorer
from csi_local.engine.sources import Source
from csi_local.engine.sweeper import Sweeper
from csi_local.host.api import Host
from csi_local.model.accessibility import ANYWHERE, Accessibility
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
from csi_local.model.volume import VolumeId, VolumeRecord, check_name, is_ephemeral, known_id
from csi_local.plan import life, sizes
from csi_local.plan.placement import Capacity, Placement, capacity_of, place
from csi_local.plan.request import VolumeRequest, check_same, new_record, shape
from csi_local.plan.staging import lost

_log = logging.getLogger(__name__)
_SWEEP_WAIT_S = 5.0


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
        node: str = "",
    ) -> None:
        """*node* is the name of the node that this is, and so of all that is made here."""
        self._host = host
        self._pools = pools
        self._executor = executor
        self._locks = locks
        self._sweeper = sweeper
        self._clock = clock
        self._node = node
        self._observer = Observer(host)
        self._copies = copies
        self._restorer = Restorer(host, pools, executor, locks, copies)

    def create(self, request: VolumeRequest, patience_s: float, where: Accessibility = ANYWHERE) -> VolumeView:
        """Make a volume, or find the one that an identical request made.

        Raises:
            InvalidArgument, OutOfRange: the request cannot be met anywhere.
            AlreadyExists: the name is taken by a different volume.
            NotFound: what it is to be made from is not there.
            Busy: the data is still being copied; the same request again finds it.
            ResourceExhausted: it must be on other nodes, or no pool here fits; the message goes through all of them.
        """
        if not where.allows(self._node):
            raise ResourceExhausted(f"the volume must be on another node than {self._node}")
        check_name(request.name)
        volume = request.id
        with self._locks.hold(volume, patience_s):
            self._restorer.join(request, patience_s)
            pool = self._pools.locate(volume)
            if pool is None:
                return self._make(request, volume, patience_s)
            record = pool.store.load(volume)
            check_same(record, request)
            pool.store.sync(volume)
            return self._shown(pool, volume, record)

    def _make(self, request: VolumeRequest, volume: VolumeId, patience_s: float) -> VolumeView:
        source = self._restorer.find(request.source) if request.source else None
        like = source.origin.record if source else None
        size, now = new_record(request, now=0, like=like).size, int(self._clock())
        placement = self._place(request, size, source)
        if placement.pool is None and any(verdict.small for verdict in placement.verdicts):
            self._sweeper.finish(_SWEEP_WAIT_S)
            placement = self._place(request, size, source)
        if placement.pool is None:
            raise ResourceExhausted(f"no pool fits volume {request.name!r}: {placement.explain()}")
        pool = self._pools.get(placement.pool)
        project, sector_size = pool.free_project(volume), pool.abilities.sector_size
        record_of = partial(new_record, request, now=now, project=project, sector_size=sector_size)
        if source is not None:
            self._restorer.make(request, lambda seen: record_of(like=seen), source, pool, patience_s)
            record = pool.store.load(volume)
        else:
            record = record_of()
            leftover = self._host.stat(pool.layout.new(volume)) is not None
            operations = life.create(record, pool.layout, pool.abilities, leftover=leftover)
            with pool.promising(record):
                self._executor.run("create", operations)
        _log.debug("created volume %s: %d bytes, %s in pool %s", volume, record.size, record.backend, pool.spec.name)
        return self._shown(pool, volume, record)

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
        views = self._pools.views()
        return place(request.parameters, wanted, size, views, ephemeral=bool(request.ephemeral))

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
            record = pool.store.load(volume)  # what cannot be believed is not removed either
            self._remove(pool, volume, encrypted=record.encryption is not None)

    def delete_ephemeral(self, pool: Pool, volume: VolumeId, patience_s: float) -> None:
        """Remove an ephemeral volume, whatever its record says: its content was never to outlive its pod.

        Raises:
            FailedPrecondition: it is in use on this node.
        """
        with self._locks.hold(volume, patience_s):
            if pool.store.exists(volume):
                self._remove(pool, volume)

    def _remove(self, pool: Pool, volume: VolumeId, *, encrypted: bool = False) -> None:
        self._check_unused(pool, volume)
        if self._copies.is_read(volume):
            raise Busy(f"volume {volume} is being copied; try again when that is done")
        trash = pool.store.unused_trash(volume)
        try:
            place = pool.layout.volume(volume)
            if encrypted:
                with self._host.lock(place):  # nobody gives it another key meanwhile
                    self._executor.run("delete", life.delete(place, trash, headers_in(self._host, place)))
            else:
                self._executor.run("delete", life.delete(place, trash))
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
        devices = self._observer.stack(pool.layout, volume)
        points = self._observer.mount_points(pool.layout, volume, devices)
        if points:
            raise FailedPrecondition(f"volume {volume} is in use: it is mounted at {', '.join(points)}")
        if devices.top:
            raise FailedPrecondition(f"volume {volume} is in use: {devices.top[0].path} is on it; unstage it first")

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
            return self._shown(pool, volume, None, str(error))
        return self._shown(pool, volume, record, self._problem(pool, record))

    def _shown(self, pool: Pool, volume: VolumeId, record: VolumeRecord | None, problem: str = "") -> VolumeView:
        return VolumeView(id=volume, node=self._node, pool=pool.spec.name, record=record, problem=problem)

    def _problem(self, pool: Pool, record: VolumeRecord) -> str:
        """What can be seen to be wrong with a volume's bytes."""
        try:
            if record.adopted:
                there = self._host.stat(record.adopted)
                return "" if record.adopted_is(there) else lost(record, there)
            data = self._host.stat(pool.layout.data(record.id))
            image = self._host.stat(pool.layout.image(record.id))
        except SyscallFailed as error:
            return f"its files cannot be read: {error}"
        found = data or image
        if found is None:
            return "its data is gone from the pool"
        if found.kind is FileKind.FILE and found.size < record.image_size:
            return f"its image has {found.size} bytes instead of {record.image_size}"
        return ""

    def list(self, after: str, count: int, *, ephemeral: bool = False) -> tuple[list[VolumeView], str]:
        """At most *count* volumes (0: all) in the order of their ids, beginning behind *after*.

        The second value is where to go on, "" at the end. Those of a single pod are among them only with *ephemeral*.
        """
        there = ((volume, pool) for pool in self._pools.all() for volume in pool.store.volumes())
        where = {volume: pool for volume, pool in there if ephemeral or not is_ephemeral(volume)}
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

    def capacity(self, request: VolumeRequest, where: Accessibility = ANYWHERE) -> Capacity:
        """Room for volumes of that kind; none where they must be on other nodes.

        Raises:
            InvalidArgument: there is no such kind.
        """
        wanted = shape(request.parameters, request.capabilities)
        return capacity_of(request.parameters, wanted, self._pools.views() if where.allows(self._node) else [])
