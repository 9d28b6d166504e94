"""Taking over a directory that exists: it becomes a volume where it is, and nothing in it is touched.

Only a record is made, by the same rename that commits every volume. So it can be done beside a driver that runs: that
asks the disk for volumes, and is promised nothing by one whose bytes are not the pool's.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from csi_local.engine.execute import Executor
from csi_local.engine.observe import mount_under
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.host.api import Host
from csi_local.model.errors import AlreadyExists, DriverError, FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from csi_local.model.observed import FileInfo, FileKind
from csi_local.model.pool import PoolKind
from csi_local.model.quantity import MIB, Bytes, format_bytes
from csi_local.model.volume import BackendKind, QuotaMode, VolumeRecord, check_name, volume_id
from csi_local.plan import life
from csi_local.plan.adopting import unadoptable
from csi_local.plan.sizes import LARGEST
from csi_local.store.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptRequest:
    """A directory that is to be a volume.

    Attributes:
        name: the volume's; "" for one made from the path.
        size: what to say that it has, in bytes; None for the size of its filesystem. Nothing enforces it.
        pool: the pool that is to know of it; "" where there is only one, or one on the same filesystem.
        labels: the claim that it is for (names only), for people.
    """

    path: str
    name: str = ""
    size: Bytes | None = None
    pool: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Adopter:
    """The use case of a directory that becomes a volume."""

    def __init__(self, host: Host, pools: Pools, executor: Executor, clock: Callable[[], float]) -> None:
        self._host = host
        self._pools = pools
        self._executor = executor
        self._clock = clock

    def adopt(self, request: AdoptRequest) -> tuple[str, VolumeRecord]:
        """Record the directory as a volume, or find that this was done; return the pool's name and the record.

        Raises:
            InvalidArgument: it is no directory, or one that must not be a volume.
            OutOfRange: no volume has that size.
            AlreadyExists: the name is that of another volume, or the volume has another size or is another pool's.
            Unavailable: a pool is missing that might have the name.
        """
        path, found = self._resolve(request.path)
        record = self._record(request, path, found)
        try:
            pool, _ = self._pools.find(record.id)
        except NotFound:
            return self._make(request, record, found)
        there = pool.store.load(record.id)
        if there.adopted != path or not there.adopted_is(found):
            raise AlreadyExists(f"volume {record.id} exists, and is not {path}; choose another name")
        if request.pool not in ("", pool.spec.name):
            raise AlreadyExists(f"{path} is volume {record.id} already, and pool {pool.spec.name} has its record")
        if request.size is not None and there.size != record.size:
            raise AlreadyExists(f"{path} is volume {record.id} already, of {format_bytes(there.size)}")
        pool.store.sync(record.id)
        return pool.spec.name, there

    def _resolve(self, path: str) -> tuple[str, FileInfo]:
        """The path without links, once and for all, and what is there."""
        real = self._host.real_path(path)
        found = self._host.stat(real)
        if found is None or found.kind is not FileKind.DIRECTORY:
            raise InvalidArgument(f"{path} is {f'a {found.kind}' if found else 'not there'}; a directory is needed")
        if not real.isprintable():
            raise InvalidArgument(f"{real!r} holds characters that cannot be printed")
        return real, found

    def _record(self, request: AdoptRequest, path: str, found: FileInfo) -> VolumeRecord:
        name = request.name or f"adopted-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
        whole = self._host.room(path).total
        size = request.size or Bytes(max(whole - whole % MIB, MIB))
        if size > LARGEST:
            raise OutOfRange(f"{format_bytes(size)} are too many; no volume has more than {format_bytes(LARGEST)}")
        return VolumeRecord(
            id=volume_id(check_name(name)),
            name=name,
            size=size,
            backend=BackendKind.DIRECTORY,
            quota=QuotaMode.ADVISORY,
            parameters={"backend": str(BackendKind.DIRECTORY), "quota": str(QuotaMode.ADVISORY)},
            labels=dict(request.labels),
            created=int(self._clock()),
            adopted=path,
            adopted_inode=found.inode,
            adopted_born=found.born,
        )

    def _make(self, request: AdoptRequest, record: VolumeRecord, found: FileInfo) -> tuple[str, VolumeRecord]:
        path = record.adopted
        under = mount_under(path, self._host.mounts())
        if why := unadoptable(path, under.filesystem if under else "", self._places(path), self._adopted()):
            raise InvalidArgument(f"{path} cannot be adopted: {why}")
        pool = self._choose(request.pool, found)
        self._executor.run("adopt", life.adopt(record, pool.layout))
        return pool.spec.name, record

    def _places(self, path: str) -> dict[str, str]:
        """Where pools are, with their names: of this driver, open or not, and of others that *path* is in."""
        above = [path, *map(str, PurePosixPath(path).parents)]
        found = {top: f"at {top}" for top in above if self._is_pool(Layout(top))}
        configured = {spec.target: spec.name for spec in self._pools.specs if spec.kind is not PoolKind.DEVICE}
        opened = {pool.root: pool.spec.name for pool in self._pools.all()}
        ours = {self._host.real_path(place): name for place, name in {**configured, **opened}.items()}
        return {**found, **ours}

    def _is_pool(self, layout: Layout) -> bool:
        return all(self._host.stat(path) is not None for path in (layout.pool_file, layout.volumes))

    def _adopted(self) -> dict[str, str]:
        """The directories that are volumes already."""
        found = {}
        for pool in self._pools.all():
            for volume in pool.store.volumes():
                with suppress(DriverError):  # what is damaged is not asked
                    found[str(volume)] = pool.store.load(volume).adopted
        return {volume: path for volume, path in found.items() if path}

    def _choose(self, name: str, found: FileInfo) -> Pool:
        """The pool that is to have the record."""
        pools = self._pools.all()
        if name:
            fitting = [pool for pool in pools if pool.spec.name == name]
        elif len(pools) > 1:
            tops = {pool.spec.name: self._host.stat(pool.root) for pool in pools}
            fitting = [pool for pool in pools if (top := tops[pool.spec.name]) and top.device == found.device]
        else:
            fitting = pools
        if len(fitting) != 1:
            names = ", ".join(pool.spec.name for pool in pools)
            raise FailedPrecondition(f"say which pool is to know of it, with --record-in; there are {names}")
        return fitting[0]
