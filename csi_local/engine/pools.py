"""The pools of this node: opening them, and where a volume, snapshot or group is."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from csi_local.engine import making
from csi_local.engine.pool import GONE, Pool, absent
from csi_local.host.api import Host
from csi_local.model.errors import (
    Busy,
    DriverError,
    FailedPrecondition,
    HostError,
    NotFound,
    Unavailable,
)
from csi_local.model.pool import PoolSpec, PoolView
from csi_local.model.snapshot import GroupId, SnapshotId
from csi_local.model.volume import VolumeId, ephemeral_id, known_id
from csi_local.store.layout import NEW, Layout

_log = logging.getLogger(__name__)
T = TypeVar("T")
_ANOTHER_ENDS_WITHIN_S = 30
"""How long Kubernetes lets a pod end (``terminationGracePeriodSeconds``)."""


class Pools:
    """All pools of the node, by name."""

    def __init__(self, host: Host, specs: Sequence[PoolSpec], run_dir: str, *, visiting: bool = False) -> None:
        """*visiting* looks only: nothing is made, formatted, tidied up, or taken from a driver that runs."""
        self._open_pool = making.visit_pool if visiting else making.open_pool
        self._visiting = visiting
        self._host = host
        self._specs = specs
        self._run_dir = run_dir
        self._guard = threading.Lock()
        """Held while a pool changes between being open and being missing."""
        self._open: dict[str, Pool] = {}
        self._missing = {spec.name: "not opened yet" for spec in specs}
        self._locked = False
        self._held: dict[str, ExitStack] = {}
        self._uuids: dict[str, str] = {}
        self._tolerated: tuple[type[DriverError], ...] = (Unavailable, HostError)
        self._listeners: list[Callable[[Pool], None]] = []

    def before_use(self, listener: Callable[[Pool], None]) -> None:
        """Have *listener* told of each pool that is opened from now on, before anybody else can find it."""
        self._listeners.append(listener)

    def open(self, *, patient: bool = False, pause: Callable[[float], None] = time.sleep) -> None:
        """Open every pool that is there; what is missing or failing is tried again by :meth:`retry`.

        A *patient* one waits for those that must not be used as well, and may have none: where somebody else says
        what this node's pools are, one that is wrong must not keep pods from the others. And it lets another driver
        end first: what it said of volumes without their pools would be wrong.

        Raises:
            DriverError: a pool must not be used (it holds something else, somebody else uses it), or none is there.
        """
        if patient:
            self._tolerated = (DriverError,)
        try:
            self.retry()
            for _ in range(_ANOTHER_ENDS_WITHIN_S):
                if not self._locked:
                    break
                pause(1.0)
                self.retry()
        except BaseException:
            self.close()
            raise
        if not self._open and not patient:
            raise Unavailable(f"no pool can be used: {self.missing()}")

    def retry(self) -> list[Pool]:
        """Try to open the pools that are not; return those that now are."""
        self._let_go()
        opened, self._locked = [], False
        for spec in self._specs:
            if spec.name not in self._missing:
                continue
            with ExitStack() as held:
                try:
                    pool = self._adopt(spec, self._open_pool(self._host, spec, self._run_dir, held))
                except self._tolerated as error:
                    self._locked = self._locked or isinstance(error, Busy)
                    said = self._missing[spec.name] == str(error)
                    self._missing[spec.name] = str(error)
                    _log.log(logging.DEBUG if said else logging.ERROR, "pool %s: %s", spec.name, error)
                    continue
                with self._guard:
                    self._held[spec.name] = held.pop_all()
                    self._open[spec.name] = pool
                    del self._missing[spec.name]
            opened.append(pool)
        return opened

    def _adopt(self, spec: PoolSpec, root: str) -> Pool:
        if spec.name in self._uuids and self._host.stat(Layout(root).pool_file) is None:
            raise Unavailable(f"{root} is empty: the filesystem that the pool is on is not mounted")
        pool = Pool(self._host, spec, root)
        if pool.uuid != self._uuids.setdefault(spec.name, pool.uuid):
            raise Unavailable(f"{root} holds another pool (uuid {pool.uuid}, not {self._uuids[spec.name]})")
        for path in [] if self._visiting else pool.store.leftovers():
            name = path.rpartition("/")[2]
            if name.startswith(NEW):  # out of the way of a retry; the sweeper takes it from there
                self._host.rename(path, pool.store.unused_trash(name.removeprefix(NEW)))
        pool.load_promises()
        pool.measure_overhead()
        for listener in self._listeners:
            listener(pool)
        return pool

    def close(self) -> None:
        """Let the pools go; one whose volumes are in use stays mounted for them."""
        with self._guard:
            all_held = list(self._held.values())
            self._held.clear()
            self._open.clear()
        for held in all_held:
            held.close()

    def leave(self) -> None:
        """As :meth:`close`, at the end of the process; but the pools stay locked until the kernel has ended it.

        Threads that could not be waited for still work in them, and another driver would sweep what they are making.
        """
        for pool in self.all():
            making.leave_pool(self._host, pool.spec, pool.root)

    @property
    def ready(self) -> bool:
        """Whether every pool is open."""
        return not self._missing

    def missing(self) -> str:
        """The pools that are not open and why, or ""."""
        return "; ".join(f"{name}: {why}" for name, why in dict(self._missing).items())

    @property
    def specs(self) -> Sequence[PoolSpec]:
        """What was configured, open or not."""
        return self._specs

    def all(self) -> list[Pool]:
        """The open pools."""
        return list(self._open.values())

    def get(self, name: str) -> Pool:
        """An open pool by name.

        Raises:
            Unavailable: it is open no more.
        """
        if (pool := self._open.get(name)) is None:
            raise Unavailable(f"pool {name}: {self._missing.get(name, GONE)}")
        return pool

    def views(self) -> list[PoolView]:
        """All configured pools, those that are missing too."""
        there = [(spec, self._open.get(spec.name)) for spec in self._specs]
        return [pool.view() if pool else absent(spec, self._missing.get(spec.name, GONE)) for spec, pool in there]

    def sample(self) -> None:
        """See in every pool how much of what directories were promised has been written."""
        for pool in self.all():
            pool.sample()

    def locate(self, volume: VolumeId) -> Pool | None:
        """The pool that has the volume; asked of the disks, not of memory.

        Raises:
            FailedPrecondition: two have: one was missing when the other's was made.
        """
        return self._only(f"volume {volume}", self._search(lambda pool: pool.store.exists(volume))[0])

    def locate_snapshot(self, snapshot: SnapshotId) -> Pool | None:
        """The pool that has the snapshot, if one has."""
        return self._only(f"snapshot {snapshot}", self._search(lambda pool: pool.store.snapshots.exists(snapshot))[0])

    def locate_group(self, group: GroupId) -> Pool | None:
        """The pool that has the group, if one has."""
        return self._only(f"group {group}", self._search(lambda pool: pool.store.snapshots.group_exists(group))[0])

    def having(self, volume: VolumeId) -> list[Pool]:
        """Every open pool that has the volume: two, where one was missing when the other's was made."""
        return self._search(lambda pool: pool.store.exists(volume))[0]

    @staticmethod
    def _only(what: str, found: list[Pool]) -> Pool | None:
        if len(found) > 1:
            names = " and ".join(pool.spec.name for pool in found)
            raise FailedPrecondition(
                f"{what} is in the pools {names}; nobody but you can tell which is right: move the other's"
                " directory out of its pool"
            )
        return found[0] if found else None

    def _search(self, has: Callable[[Pool], bool]) -> tuple[list[Pool], dict[str, str]]:
        """The pools that have something, and those that cannot say, with the reason: a failing disk is one pool's."""
        found, failing = [], {}
        for pool in self.all():
            for last in (False, True):  # asked twice: an error that passes must not hide a volume
                try:
                    if has(pool):
                        found.append(pool)
                    break
                except HostError as error:
                    if last:
                        failing[pool.spec.name] = str(error)
        return found, failing

    def _let_go(self) -> None:
        """Close the pools that are gone, so that they are opened again when they are back."""
        for pool in self.all():
            if _is_gone(pool):
                name = pool.spec.name
                with self._guard:
                    if self._open.get(name) is not pool:  # somebody else let it go, and may have opened it again
                        continue
                    self._missing[name] = GONE
                    del self._open[name]
                    held = self._held.pop(name)
                held.close()

    def find(self, shown: str, *, ephemeral: bool = False) -> tuple[Pool, VolumeId]:
        """The pool that has the volume with that id; or, with *ephemeral*, the one inline volume with that handle.

        Raises:
            NotFound: none has.
            Unavailable: none has, but one is missing that might.
        """
        known = known_id(shown)
        volumes = [*([known] if known else []), *([ephemeral_id(shown)] if ephemeral else [])]
        return self._find(f"volume {shown!r}", volumes, lambda pool, one: pool.store.exists(one))

    def find_snapshot(self, shown: str) -> tuple[Pool, SnapshotId]:
        """The pool that has the snapshot with that id.

        Raises:
            NotFound: none has.
            Unavailable: none has, but one is missing that might.
        """
        known = [SnapshotId(shown)] if known_id(shown) else []
        return self._find(f"snapshot {shown!r}", known, lambda pool, one: pool.store.snapshots.exists(one))

    def find_group(self, shown: str) -> tuple[Pool, GroupId]:
        """The pool that has the group with that id.

        Raises:
            NotFound: none has.
            Unavailable: none has, but one is missing that might.
        """
        known = [GroupId(shown)] if known_id(shown) else []
        return self._find(f"group {shown!r}", known, lambda pool, one: pool.store.snapshots.group_exists(one))

    def _find(self, what: str, ids: Sequence[T], has: Callable[[Pool, T], bool]) -> tuple[Pool, T]:
        failing: dict[str, str] = {}
        for one in ids:
            found, failing = self._search(partial(_has, one, has))
            if (pool := self._only(what, found)) is not None:
                return pool, one
        self._let_go()
        if ids and (unknown := {**self._missing, **failing}):
            missing = "; ".join(f"{name}: {why}" for name, why in unknown.items())
            raise Unavailable(f"{what} is in none of the open pools, but not all are open ({missing})")
        raise NotFound(f"there is no {what} on this node")


def _is_gone(pool: Pool) -> bool:
    """Whether a pool must be opened anew; one whose disk fails is there, and keeps no other from being looked after."""
    try:
        return pool.gone
    except HostError as error:
        _log.warning("pool %s: %s", pool.spec.name, error)
        return False


def _has(one: T, has: Callable[[Pool, T], bool], pool: Pool) -> bool:
    return has(pool, one)
