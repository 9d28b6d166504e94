"""Growing volumes: first the bytes (controller), then what is mounted (node)."""

import dataclasses
import logging

from csi_local.engine.crypt import Layers
from csi_local.engine.execute import Executor
from csi_local.engine.keys import NONE_GIVEN, Action, GivenKeys
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.host.api import Host
from csi_local.model.errors import FailedPrecondition, NotFound, OutOfRange
from csi_local.model.observed import Stack
from csi_local.model.operations import GrowMounted, Operation, RefreshLoops, ResizeEncrypted
from csi_local.model.quantity import Bytes
from csi_local.model.volume import BackendKind, Capability, CapacityRange, VolumeRecord
from csi_local.plan import life, sizes
from csi_local.plan.request import check_usable
from csi_local.plan.staging import SLACK, reserve

_log = logging.getLogger(__name__)


class Sizes:
    """The use cases around a volume's size."""

    def __init__(self, host: Host, pools: Pools, executor: Executor, locks: KeyedLocks, layers: Layers) -> None:
        self._host = host
        self._pools = pools
        self._executor = executor
        self._locks = locks
        self._layers = layers
        self._observer = Observer(host)

    def expand(
        self, shown: str, capacity: CapacityRange, capability: Capability | None, patience_s: float
    ) -> tuple[Bytes, bool]:
        """Make a volume larger; return its size, and whether its node still has something to do.

        Raises:
            NotFound: there is no such volume.
            InvalidArgument, OutOfRange: the size asked for cannot be delivered.
            ResourceExhausted: its pool has no room for that.
        """
        pool, volume = self._pools.find(shown)
        with self._locks.hold(volume, patience_s):
            record = pool.store.load(volume)
            if capability is not None:
                check_usable(record, capability)
            size = sizes.grown(record, capacity)
            if size > record.size:
                after = dataclasses.replace(record, size=size)
                with pool.promising(after):
                    self._executor.run("expand", life.grow(record, after, pool.layout, pool.abilities))
                _log.debug("volume %s grew from %d to %d bytes", record.id, record.size, size)
            else:
                pool.store.sync(volume)
            return size, record.backend is BackendKind.LOOPFILE

    def expand_on_node(
        self,
        shown: str,
        path: str,
        capacity: CapacityRange,
        capability: Capability | None,
        patience_s: float,
        given: GivenKeys = NONE_GIVEN,
    ) -> Bytes:
        """Let a volume's device and filesystem have the size that the volume has; return that size.

        Raises:
            Unauthenticated: it is encrypted, and the key *given* with the request is missing or wrong.
            NotFound: there is no such volume, or it is not at *path*.
            OutOfRange: it is larger than the range allows.
            FailedPrecondition: its filesystem cannot grow as it is mounted on this node; it will when staged next.
        """
        pool, volume = self._pools.find(shown)
        with self._locks.hold(volume, patience_s):
            record = pool.store.load(volume)
            if capability is not None:
                check_usable(record, capability)
            if 0 < capacity.limit < max(capacity.required, record.size):
                raise OutOfRange(f"volume {shown} has {record.size} bytes, and the range asked for does not allow them")
            if capacity.required > record.size:
                raise FailedPrecondition(
                    f"volume {shown} has {record.size} bytes; ControllerExpandVolume has not made it"
                    f" {capacity.required} bytes large yet"
                )
            devices = self._observer.stack(pool.layout, record.id)
            here = self._observer.is_mounted_at(pool.layout, record.id, path)
            if not here and not (record.block and devices.top and self._host.stat(path) is not None):
                raise NotFound(f"volume {shown} is not at {path}")
            if record.backend is BackendKind.LOOPFILE:
                self._grow_on_node(pool, record, path, devices, given)
            return record.size

    def _grow_on_node(self, pool: Pool, record: VolumeRecord, path: str, devices: Stack, given: GivenKeys) -> None:
        """Image, loop device, what is open over it, and filesystem, one after the other.

        The kernel has the key, but gives it to nobody: to change the size of what is open it is needed again.
        """
        grown: list[Operation] = [RefreshLoops(path=pool.layout.image(record.id))]
        over: list[Operation] = [RefreshLoops(path=opened.path) for opened in devices.opened]
        if record.filesystem is not None:
            least = max(0, record.size - SLACK) if record.encryption else 0
            point = self._writable(pool, record, (path, *self._observer.mount_points(pool.layout, record.id, devices)))
            over.append(GrowMounted(path=point, filesystem=record.filesystem, least=least))
        over += reserve(record, pool.layout)
        small = [one for one in devices.opened if self._host.device_size(one.path) < record.size]
        if record.encryption is None or not small:
            self._executor.run("node-expand", (*grown, *over))
            return
        resized = [ResizeEncrypted(opened=opened, size=record.size) for opened in small]
        with self._layers.key(pool, record, record.encryption, Action.GROW, given) as key:
            self._layers.run("node-expand", record, (*grown, *resized, *over), key)

    def _writable(self, pool: Pool, record: VolumeRecord, points: tuple[str, ...]) -> str:
        """The first of *points* at which the volume can be written, and so grown.

        Raises:
            FailedPrecondition: it can be at none.
        """
        for point in points:
            ours = self._observer.is_mounted_at(pool.layout, record.id, point)
            if ours and "ro" not in self._host.mount_flags(point):
                return point
        raise FailedPrecondition(
            f"volume {record.id} has its new size, but its {record.filesystem} is mounted read-only and cannot grow so;"
            " it will when it is staged next to be written"
        )
