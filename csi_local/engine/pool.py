"""One open pool: what it has promised, and what room is left."""

import dataclasses
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

from csi_local.host.api import Host
from csi_local.model.errors import (
    DamagedRecord,
    DriverError,
    HostError,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from csi_local.model.observed import Room, Usage
from csi_local.model.pool import Abilities, Media, PoolSpec, PoolView
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import SnapshotId, SnapshotRecord
from csi_local.model.volume import BackendKind, QuotaMode, VolumeId, VolumeRecord, is_ephemeral
from csi_local.plan import sizes
from csi_local.plan.copying import within_reach
from csi_local.plan.sizes import Promises
from csi_local.store.layout import DATA, Layout
from csi_local.store.pool_store import PoolStore

_log = logging.getLogger(__name__)
GONE = "its filesystem is no longer mounted"
_READERS = 4
"""Records read at once at the start: from a cold disk each is a wait."""
_SWEPT_BY_THEN = 1000
"""After so many more removals nothing of a volume is in the trash that counts against its quota project."""
_NOTHING = Abilities(filesystem="")


class Pool:
    """An open pool: its store, its abilities, and the sum of its promises."""

    def __init__(self, host: Host, spec: PoolSpec, root: str) -> None:
        self.spec = spec
        self.root = root
        self.store = PoolStore(host, root)
        self.uuid = self.store.open(spec.kind)
        self.abilities = host.abilities(root)
        self.media = spec.media or host.media(root)
        self._identity = host.stat(root)
        self._host = host
        self._guard = threading.Lock()
        self._weights: dict[str, Promises] = {}
        self._sum = Promises()
        self._overhead = 0
        self._projects: dict[VolumeId, int] = {}
        self._past_projects: deque[int] = deque()
        self._taken: set[int] = set()
        """Both: the volumes', and those of volumes that are gone, but perhaps not swept."""
        self.adopted: set[VolumeId] = set()

    @property
    def layout(self) -> Layout:
        """The names inside it."""
        return self.store.layout

    def load_promises(self) -> None:
        """Add up what the volumes on disk were promised; one that is damaged counts for nothing and is told of."""
        for leftover in self.store.leftovers():
            with suppress(HostError):  # most have no such directory
                self._retire(self._host.project_of(f"{leftover}/{DATA}"))
        with ThreadPoolExecutor(_READERS) as readers:
            for record in readers.map(self._read, self.store.volumes()):
                if record is not None:
                    self._keep(record)
            for snapshot in readers.map(self._read_snapshot, self.store.snapshots.all()):
                if snapshot is not None:
                    self._replace(_key(snapshot.id), sizes.snapshot_weight(snapshot, shares=self._shares))

    @property
    def _shares(self) -> bool:
        return within_reach(self.abilities)

    def _read_snapshot(self, snapshot: SnapshotId) -> SnapshotRecord | None:
        try:
            return self.store.snapshots.load(snapshot)
        except (DamagedRecord, NotFound) as error:
            _log.error("%s", error)
            return None

    def _read(self, volume: VolumeId) -> VolumeRecord | None:
        try:
            return self.store.load(volume)
        except (DamagedRecord, NotFound) as error:
            _log.error("%s", error)
            return None

    def _replace(self, key: str, weight: Promises | None) -> None:
        for sign, one in ((-1, self._weights.pop(key, Promises())), (1, weight or Promises())):
            self._sum = Promises(
                reserved=self._sum.reserved + sign * one.reserved,
                pending=self._sum.pending + sign * one.pending,
                directories=self._sum.directories + sign * one.directories,
                written=self._sum.written,
                thin=self._sum.thin + sign * one.thin,
                shared=self._sum.shared + sign * one.shared,
            )
        if weight is not None:
            self._weights[key] = weight

    @contextmanager
    def promising(self, record: VolumeRecord) -> Iterator[None]:
        """Promise a volume its room while it is made or grown; the promise stays where that succeeds.

        Raises:
            ResourceExhausted: somebody else got the room meanwhile.
        """
        written = partial(self._is_written, record)
        with self._promising(record.id, self._weight(record), written, ephemeral=bool(record.ephemeral)):
            yield
        self._keep(record)

    def _is_written(self, record: VolumeRecord) -> bool:
        """Whether its record says that size by now; where that cannot be told, it may."""
        try:
            return self.store.load(record.id).size >= record.size
        except NotFound:
            return False
        except DriverError:
            return True

    @contextmanager
    def promising_snapshot(self, record: SnapshotRecord) -> Iterator[None]:
        """Promise a snapshot its room while it is made; the promise stays where that succeeds.

        Raises:
            ResourceExhausted: there is not so much.
        """
        weight = sizes.snapshot_weight(record, shares=self._shares)
        with self._promising(_key(record.id), weight, partial(self.store.snapshots.exists, record.id)):
            yield

    @contextmanager
    def promising_aside(self, volume: VolumeId, held: Bytes) -> Iterator[None]:
        """Promise its room to what is cloned for the making of a volume, for as long as that is there.

        Raises:
            ResourceExhausted: there is not so much: what writes to the source would meet a full disk.
        """
        key = f"aside:{volume}"
        try:
            with self._promising(key, Promises(shared=held), lambda: False):
                yield
        finally:
            with self._guard:
                self._replace(key, None)

    @contextmanager
    def _promising(
        self, key: str, weight: Promises, made: Callable[[], bool], *, ephemeral: bool = False
    ) -> Iterator[None]:
        with self._guard:
            before = self._weights.get(key)
            more = weight.total - (before.total if before else 0)
            seen = self._host.room(self.root)
            room, thin_room = sizes.rooms(self.spec, seen, self._sum, self._overhead)
            room = thin_room if weight.thin else room
            if ephemeral:
                room = min(room, self._ephemeral_room(seen))
            if more > room:
                raise ResourceExhausted(f"pool {self.spec.name} has no room for another {max(more, 0)} bytes")
            self._replace(key, dataclasses.replace(weight, pending=more if weight.reserved else 0))
        try:
            yield
        except BaseException:
            kept = weight if made() else before  # it may have failed after the commit
            with self._guard:
                self._replace(key, kept)
            raise
        with self._guard:
            self._replace(key, weight)

    def _ephemeral_room(self, seen: Room) -> Bytes:
        """What inline ephemeral volumes may have beyond what they have."""
        promised = sum(weight.total for volume, weight in list(self._weights.items()) if is_ephemeral(VolumeId(volume)))
        return Bytes(max(0, self.spec.ephemeral.of(seen.total) - promised))

    def _keep(self, record: VolumeRecord) -> None:
        with self._guard:
            self._replace(record.id, self._weight(record))
            self._projects[record.id] = record.project
            self._taken.add(record.project)
            if record.adopted:
                self.adopted.add(record.id)

    def _weight(self, record: VolumeRecord) -> Promises:
        return sizes.weight(record, shares=self._shares)

    def forget(self, gone: VolumeId) -> None:
        """Take back what a volume was promised: it is gone."""
        with self._guard:
            self._replace(gone, None)
            self._retire(self._projects.pop(gone, 0))
            self.adopted.discard(gone)

    def _retire(self, project: int) -> None:
        """Give a quota project to nobody: until it is swept what has it counts, and then its limit goes with it."""
        if project:
            if len(self._past_projects) == _SWEPT_BY_THEN:
                self._taken.discard(self._past_projects.popleft())
            self._past_projects.append(project)
            self._taken.add(project)

    def forget_snapshot(self, gone: SnapshotId) -> None:
        """Take back what a snapshot was promised: it is gone."""
        with self._guard:
            self._replace(_key(gone), None)

    def sample(self) -> None:
        """See how much of what directory volumes were promised has been written."""
        written = 0
        for volume in [key for key, weight in list(self._weights.items()) if weight.directories]:
            with suppress(DriverError):
                record = self.store.load(VolumeId(volume))
                if record.quota is QuotaMode.HARD:
                    written += min(self.usage_of(record).used, record.size)
        with self._guard:
            self._sum = dataclasses.replace(self._sum, written=written)

    def measure_overhead(self) -> None:
        """See what the filesystem keeps for itself, while nothing is being made: all that is taken and not by volumes.

        Where there are directory volumes it counts as nothing, since adding them up would hold up the start; and where
        images share blocks, which count in each of them.
        """
        if self._sum.directories or self._sum.shared:
            return
        images = [self.layout.image(volume) for volume in self.store.volumes()]
        images += [f"{leftover}/disk.img" for leftover in self.store.leftovers()]
        allocated = sum(image.allocated for path in images if (image := self._host.stat(path)) is not None)
        seen = self._host.room(self.root)
        self._overhead = max(0, seen.total - seen.available - allocated)

    def used_by(self, record: VolumeRecord) -> Bytes:
        """Bytes of the pool that a volume takes now: blocks of its image, or what its directory's limit counts.

        Raises:
            Unsupported: nobody counts them (a directory without a limit).
        """
        if record.backend is BackendKind.LOOPFILE:
            image = self._host.stat(self.layout.image(record.id))
            return Bytes(image.allocated if image else 0)
        if record.quota is not QuotaMode.HARD:
            raise Unsupported("a directory without a limit is not counted")
        return self.usage_of(record).used

    def usage_of(self, record: VolumeRecord) -> Usage:
        """Limit and use of a directory volume that has a limit."""
        data = self.layout.data(record.id)
        if record.backend is BackendKind.DIRECTORY and not self.abilities.btrfs:
            return self._host.project_usage(data, record.project)
        return self._host.subvolume_usage(data)

    @property
    def gone(self) -> bool:
        """Whether something else is now where the pool was: its disk was unmounted, or another put over it."""
        now = self._host.stat(self.root)
        return now is None or self._identity is None or now.identity != self._identity.identity

    def view(self) -> PoolView:
        """The pool as placement sees it, now."""
        try:
            if self.gone:
                return absent(self.spec, GONE)
            seen = self._host.room(self.root)
        except HostError as error:
            return absent(self.spec, f"it cannot be read: {error}")
        room, thin_room = sizes.rooms(self.spec, seen, self._sum, self._overhead)
        return PoolView(
            name=self.spec.name,
            kind=self.spec.kind,
            media=self.media,
            abilities=self.abilities,
            total=seen.total,
            room=room,
            thin_room=thin_room,
            ephemeral_room=self._ephemeral_room(seen),
            promised=Bytes(self._sum.total),
            volumes=len(self._weights),
            uuid=self.uuid,
            unavailable="it is read-only" if seen.read_only else "",
        )

    def free_project(self, volume: VolumeId) -> int:
        """A quota project for a new volume: a number made from its id, or the next one that is free."""
        number = int.from_bytes(hashlib.sha256(volume.encode()).digest()[:4], "big") % 0x3FFF0000 + 0x10000
        with self._guard:
            while number in self._taken:
                number += 1
        return number


def absent(spec: PoolSpec, why: str) -> PoolView:
    """The view of a pool that cannot be used."""
    return PoolView(
        name=spec.name,
        kind=spec.kind,
        media=spec.media or Media.UNKNOWN,
        abilities=_NOTHING,
        total=Bytes(0),
        room=Bytes(0),
        thin_room=Bytes(0),
        unavailable=why,
    )


def _key(snapshot: SnapshotId) -> str:
    """Under what a snapshot's promise is kept: no volume's id holds a colon."""
    return f"snapshot:{snapshot}"
