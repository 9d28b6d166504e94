"""Volumes made from a snapshot or from another volume: near, by sharing blocks, or far, by a copy in the background."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from csi_local.engine.copies import Copies
from csi_local.engine.erasing import remove_erased
from csi_local.engine.execute import Executor
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.engine.sources import Source, Sources, snapshot_key
from csi_local.host.api import Host, Proceed
from csi_local.model.errors import Busy, HostError, ResourceExhausted
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import ContentSource, SourceKind
from csi_local.model.volume import VolumeId, VolumeRecord
from csi_local.plan import copying, life
from csi_local.plan.copying import Origin, within_reach
from csi_local.plan.request import VolumeRequest

RecordOf = Callable[[VolumeRecord], VolumeRecord]
"""The record of a volume that begins with the bytes of one which has that record."""


def _asked(request: VolumeRequest) -> object:
    """What a copy is asked for: all that a retry must repeat; what the provisioner says of the claim may change."""
    return replace(request, parameters=replace(request.parameters, labels={}))


def _still(request: VolumeRequest) -> Busy:
    return Busy(f"the data of volume {request.name!r} is being copied; ask again")


class Restorer:
    """Makes a volume's bytes from a source's."""

    def __init__(self, host: Host, pools: Pools, executor: Executor, locks: KeyedLocks, copies: Copies) -> None:
        self._host = host
        self._executor = executor
        self._copies = copies
        self._sources = Sources(host, pools, locks)

    def find(self, source: ContentSource) -> Source:
        """What a request names.

        Raises:
            NotFound: there is no such snapshot or volume.
            Busy: the snapshot is not ready.
        """
        if source.kind is SourceKind.SNAPSHOT and snapshot_key(source.id) in self._copies.asked():
            raise Busy(f"snapshot {source.id} is still being copied; ask again when it is ready")
        return self._sources.find(source)

    @staticmethod
    def near(source: Source, pool: Pool) -> bool:
        """Whether a volume in *pool* can share blocks with its source."""
        return source.pool is pool and within_reach(pool.abilities)

    def make(self, request: VolumeRequest, record_of: RecordOf, source: Source, pool: Pool, patience_s: float) -> None:
        """Make a volume. Its record is made when nobody else can change its source any more.

        Raises:
            Busy: its data is still being copied; the same request again finds it.
            FailedPrecondition: the source is in use, and cannot be copied while it is.
        """
        if self.near(source, pool):
            with self._sources.held(source, patience_s) as seen:
                record = record_of(seen.origin.record)
                with pool.promising(record):
                    self._run("restore", record, seen.origin, pool, near=True)
            return
        work = partial(self._copy, record_of, source, pool, patience_s)
        reads = source.key if source.origin.kept or not within_reach(source.pool.abilities) else ""
        done = self._copies.run(request.id, reads, _asked(request), work, patience_s)
        if not done:
            raise _still(request)

    def join(self, request: VolumeRequest, patience_s: float) -> None:
        """Wait for the copy that is making a volume, if there is one.

        Raises:
            AlreadyExists: it is being made from something else, from nothing, or in another way.
            Busy: its data is still being copied; the same request again finds it.
        """
        if not self._copies.join(request.id, _asked(request), patience_s):
            raise _still(request)

    def cancel(self, volume: str, patience_s: float) -> None:
        """Give up a copy that is making that volume; no error where there is none."""
        self._copies.cancel(volume, patience_s)

    def _copy(self, record_of: RecordOf, source: Source, pool: Pool, patience_s: float, proceed: Proceed) -> None:
        """Copy data that is of one moment."""
        with ExitStack() as until_copied:
            with self._sources.held(source, patience_s) as seen:
                record = record_of(seen.origin.record)
                origin = self._still(source.pool, record.id, seen.origin, until_copied)
            with pool.promising(record):
                self._run("restore-copy", record, origin, pool, near=False, proceed=proceed)

    def _still(self, pool: Pool, volume: VolumeId, origin: Origin, until_copied: ExitStack) -> Origin:
        """What nobody changes while it is copied: a clone beside what can be used, where blocks can be shared.

        Without room for that, what nobody uses is copied itself, until somebody does.
        """
        if origin.kept or not within_reach(pool.abilities):
            copying.check_can_be_copied(origin)
            return origin
        try:
            return until_copied.enter_context(self._aside(pool, volume, origin))
        except ResourceExhausted:
            if origin.in_use or origin.directory:
                raise
            self._copies.also_reads(volume, origin.record.id)
            return origin

    @contextmanager
    def _aside(self, pool: Pool, volume: VolumeId, origin: Origin) -> Iterator[Origin]:
        aside = f"{pool.layout.new(volume)}:source"
        held = self._sources.holds(pool, origin) if origin.directory else Bytes(0)
        leftover = self._host.stat(aside) is not None
        self._executor.run("restore-aside", copying.take(origin, aside, pool.abilities, leftover=leftover))
        path = f"{aside}/{origin.path.rpartition('/')[2]}"
        try:
            image = None if origin.directory else self._host.stat(path)
            with pool.promising_aside(volume, Bytes(image.allocated) if image else held):
                yield replace(origin, path=path, kept=True, point="")
        finally:
            self._remove(pool, aside)

    def _remove(self, pool: Pool, path: str) -> None:
        try:
            remove_erased(self._host, path)
        except HostError:
            trash = pool.store.unused_trash(path.rpartition("/")[2].removeprefix(".new-"))
            self._executor.run("restore-aside-drop", life.delete(path, trash))

    def _run(
        self,
        name: str,
        record: VolumeRecord,
        origin: Origin,
        pool: Pool,
        *,
        near: bool,
        proceed: Proceed = lambda: None,
    ) -> None:
        leftover = self._host.stat(pool.layout.new(record.id)) is not None
        operations = copying.restore(record, origin, pool.layout, pool.abilities, near=near, leftover=leftover)
        self._executor.run(name, operations, proceed)
