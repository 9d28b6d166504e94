"""Groups: snapshots of several volumes of one moment, which begin and end together."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from csi_local.engine.api import GroupView
from csi_local.engine.copies import Copies
from csi_local.engine.execute import Executor
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.engine.sources import Source, Sources, snapshot_key
from csi_local.engine.sweeper import Sweeper
from csi_local.host.api import Host
from csi_local.model.errors import AlreadyExists, Busy, InvalidArgument, NotFound
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import GroupId, GroupRecord, GroupRequest, SnapshotRecord, group_id
from csi_local.model.volume import check_name, known_id
from csi_local.plan import grouping, life
from csi_local.plan.grouping import Member
from csi_local.store.layout import IMAGE


class Groups:
    """The use cases around groups of snapshots."""

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

    def create(self, request: GroupRequest, patience_s: float) -> GroupView:
        """Take snapshots of several volumes at one moment, or find those that an identical request took.

        Raises:
            InvalidArgument: no volume is named.
            NotFound: a volume is not there.
            AlreadyExists: the name is taken by a group of other volumes.
            ResourceExhausted: their pool has no room for what the snapshots hold.
            FailedPrecondition: the volumes are in several pools, or one is in use and cannot be held still.
        """
        group = group_id(check_name(request.name, "group"))
        if not request.sources:
            raise InvalidArgument("source_volume_ids are missing")
        with self._locks.hold(_key(group), patience_s):
            there = self._pools.locate_group(group)
            if there is not None:
                found = self._view(there, group)
                grouping.check_same_group(request, [one.record for one in found.members])
                there.store.snapshots.sync()
                return found
            sources = [self._sources.volume(shown) for shown in sorted(set(request.sources))]
            pool = sources[0].pool
            grouping.check_one_pool({source.pool.spec.name for source in sources}, pool.abilities)
            self._take(request, pool, sources, patience_s)
            return self._view(pool, group)

    def _take(self, request: GroupRequest, pool: Pool, sources: Sequence[Source], patience_s: float) -> None:
        group = GroupRecord(id=group_id(request.name), name=request.name, members=(), created=self._clock())
        place = pool.layout.new_group(group.id)
        leftover = self._host.stat(place) is not None
        pool.store.snapshots.prepare()
        with ExitStack() as held:  # in one order, so that two groups never wait for each other
            origins = [held.enter_context(self._sources.held(source, patience_s)).origin for source in sources]
            grouping.check_can_be_held_still(origins)
            members = [
                Member(record=grouping.member(request, group, origin.record), origin=origin, place=place)
                for origin in origins
            ]
            self._check_free(members)
            members = [self._counted(pool, member) for member in members]
            self._executor.run("group", grouping.take(members, place, pool.abilities, leftover=leftover))
        try:
            members = [self._measured(member) for member in members]
            group = replace(group, members=tuple(member.record.id for member in members))
            with ExitStack() as promised:
                for member in members:
                    promised.enter_context(pool.promising_snapshot(member.record))
                self._executor.run("group-keep", grouping.finish(group, members, place, pool.layout, pool.abilities))
        except Exception:
            if self._host.stat(place) is not None:
                self._sweep(pool, place, group.id, [member.record for member in members])
            raise

    def _check_free(self, members: Sequence[Member]) -> None:
        """A snapshot of its own may have the name that a member is to have: nobody could say which of them is meant."""
        for member in members:
            if self._pools.locate_snapshot(member.record.id) is not None:
                raise AlreadyExists(f"a snapshot {member.record.name!r} exists ({member.record.id}); take another name")

    def _counted(self, pool: Pool, member: Member) -> Member:
        if not member.origin.directory:
            return member
        return replace(member, record=replace(member.record, held=self._sources.holds(pool, member.origin)))

    def _measured(self, member: Member) -> Member:
        image = self._host.stat(f"{member.path}/{IMAGE}")
        return replace(member, record=replace(member.record, held=Bytes(image.allocated))) if image else member

    def _sweep(self, pool: Pool, path: str, group: GroupId, members: Sequence[SnapshotRecord]) -> None:
        trash = pool.store.unused_trash(f"group:{group}")
        encrypted = [f"{member.id}/{IMAGE}" for member in members if member.volume.encryption]
        try:
            self._executor.run("group-drop", life.delete(path, trash, encrypted))
        finally:
            if self._host.stat(path) is None:  # it may have failed after the commit
                self._sweeper.add(trash)

    def delete(self, shown: str, members: Sequence[str], patience_s: float) -> None:
        """Remove a group with all its snapshots; no error where it is not there.

        Raises:
            InvalidArgument: *members* are not those that it has.
            Busy: a volume is being made from one.
        """
        if known_id(shown) is None:
            return
        with self._locks.hold(_key(shown), patience_s):
            try:
                pool, group = self._pools.find_group(shown)
            except NotFound:
                for each in self._pools.all():
                    each.store.snapshots.sync()
                return
            record = pool.store.snapshots.load_group(group)
            grouping.check_members(record, members)
            records: list[SnapshotRecord] = []
            with ExitStack() as held:
                for snapshot in sorted(record.members):
                    held.enter_context(self._locks.hold(snapshot_key(snapshot), patience_s))
                    if self._copies.is_read(snapshot_key(snapshot)):
                        raise Busy(f"a volume is being made from snapshot {snapshot}; try again when that is done")
                    with suppress(NotFound):  # it was lost; what is left can be deleted all the same
                        records.append(pool.store.snapshots.load(snapshot))
                try:
                    self._sweep(pool, pool.layout.group(group), group, records)
                except Exception:
                    if not pool.store.snapshots.group_exists(group):  # it failed after the commit
                        self._forget(pool, record)
                    raise
                self._forget(pool, record)

    @staticmethod
    def _forget(pool: Pool, group: GroupRecord) -> None:
        for snapshot in group.members:
            pool.forget_snapshot(snapshot)

    def get(self, shown: str, members: Sequence[str] = ()) -> GroupView:
        """A group by its id.

        Raises:
            NotFound: there is none.
            InvalidArgument: *members* are not those that it has.
        """
        pool, group = self._pools.find_group(shown)
        view = self._view(pool, group)
        grouping.check_members(view.record, members)
        return view

    def _view(self, pool: Pool, group: GroupId) -> GroupView:
        record = pool.store.snapshots.load_group(group)
        snapshots = [pool.store.snapshots.load(snapshot) for snapshot in record.members]
        return GroupView(record=record, members=tuple(self._sources.shown(pool, one) for one in snapshots))


def _key(group: str) -> str:
    """The key of a group's lock, which is no volume's id."""
    return f"group {group}"
