"""Inline ephemeral volumes: made when their pod is published, gone when it is unpublished.

Such a volume is mounted in one place only, its pod's target, where it is staged and published in one. So nothing has to
be found again after a restart but the volume itself: its id comes from the CO's handle, its record names the target.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from csi_local.engine.locks import KeyedLocks
from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.engine.publish import Publisher
from csi_local.engine.volumes import Volumes
from csi_local.host.api import Host
from csi_local.model.errors import AlreadyExists, DamagedRecord, DriverError, InvalidArgument
from csi_local.model.volume import Capability, MountAccess, VolumeId, VolumeRecord, ephemeral_id, is_ephemeral
from csi_local.plan.request import VolumeRequest

_log = logging.getLogger(__name__)
_SWEEP_PATIENCE_S = 1.0


class Ephemeral:
    """The use cases of volumes that live and die with one pod."""

    def __init__(self, host: Host, pools: Pools, locks: KeyedLocks, volumes: Volumes, publisher: Publisher) -> None:
        self._observer = Observer(host)
        self._pools = pools
        self._locks = locks
        self._volumes = volumes
        self._publisher = publisher
        self._gone: set[VolumeId] = set()

    def publish(self, request: VolumeRequest, patience_s: float, *, read_only: bool) -> None:
        """Make a volume and mount it at its target, or find that an identical request did.

        Where that fails, what this call made is removed again: the CO takes most errors for the end of it.

        Raises:
            InvalidArgument: it cannot be asked for in that way.
            AlreadyExists: it is there, and differs.
            ResourceExhausted: no pool has the room, or the node has its limit of volumes.
            FailedPrecondition: something else is at the target.
        """
        (capability,) = request.capabilities
        if not isinstance(capability.access, MountAccess):
            raise InvalidArgument("an inline volume is a filesystem, never a raw block device")
        target = self._publisher.plain(request.ephemeral)
        request, volume = replace(request, ephemeral=target), ephemeral_id(request.name)
        wanted = _mounted(capability, capability.access, read_only=read_only)
        with self._locks.hold(f"ephemeral {request.name}", patience_s):
            made = self._pools.locate(volume) is None
            try:
                self._volumes.create(request, patience_s)
                self._publisher.stage_ephemeral(volume, target, wanted, patience_s)
            except DriverError as error:
                if made and not isinstance(error, AlreadyExists):
                    self._undo(volume, target, patience_s)
                raise

    def _undo(self, volume: VolumeId, target: str, patience_s: float) -> None:
        for pool in self._pools.having(volume):
            with suppress(DriverError):
                self._publisher.unpublish_ephemeral(pool, volume, target, patience_s)
            with suppress(DriverError):  # it sees whether the volume is still mounted
                self._volumes.delete_ephemeral(pool, volume, patience_s)

    def unpublish(self, handle: str, target: str, patience_s: float) -> bool:
        """Unmount and remove the volume with that handle; whether there was one, and at that target.

        A pool that was missing when its pod started again may have another: that goes too, so that the pod can.

        Raises:
            FailedPrecondition: something else is mounted at the target, or it is still in use.
        """
        volume, target = ephemeral_id(handle), self._publisher.plain(target)
        with self._locks.hold(f"ephemeral {handle}", patience_s):
            pools = [pool for pool in self._pools.having(volume) if _belongs_at(pool, volume, target)]
            pools.sort(key=lambda pool: not self._observer.is_mounted_at(pool.layout, volume, target))
            for pool in pools:
                self._publisher.unpublish_ephemeral(pool, volume, target, patience_s)
                self._volumes.delete_ephemeral(pool, volume, patience_s)
            return bool(pools)

    def sweep(self) -> None:
        """Remove the volumes whose pods are gone for ever: the kubelet's directory of the pod is not there any more.

        It removes that last of all, and so will not ask for the volume's end. Seen twice, to be sure.
        """
        gone = {record.id: record for pool in self._pools.all() for record in self._without_pod(pool)}
        for volume in self._gone & gone.keys():
            _log.warning("inline volume %s is removed: its pod is gone, and %s with it", volume, gone[volume].ephemeral)
            try:
                self.unpublish(gone[volume].name, gone[volume].ephemeral, _SWEEP_PATIENCE_S)
            except DriverError as error:  # the next round tries again
                _log.warning("inline volume %s is not removed yet: %s", volume, error)
        self._gone = set(gone)

    def _without_pod(self, pool: Pool) -> Iterator[VolumeRecord]:
        for volume in filter(is_ephemeral, pool.store.volumes()):
            with suppress(DriverError):  # a damaged record is doctor's to tell of
                record = pool.store.load(volume)
                if self._observer.pod_is_gone(record):
                    yield record


def _belongs_at(pool: Pool, volume: VolumeId, target: str) -> bool:
    """Whether a volume was made for that target: a PersistentVolume that borrows its handle must not be its end."""
    try:
        return pool.store.load(volume).ephemeral == target
    except DamagedRecord:  # the pod must be able to go
        return True


def _mounted(capability: Capability, access: MountAccess, *, read_only: bool) -> Capability:
    """The same, for the one mount there is: read-only is among its options."""
    more = ("ro",) if read_only and "ro" not in access.flags else ()
    return replace(capability, access=replace(access, flags=(*access.flags, *more)))
