"""Which volumes are staged on this node, as far as this process knows, and how many there may be."""

import threading

from csi_local.engine.observe import Observer
from csi_local.engine.pools import Pools
from csi_local.model.errors import DriverError, ResourceExhausted
from csi_local.model.volume import Capability, MountAccess, VolumeId


class Staged:
    """Volumes, with the paths at which this process staged them; of those that an earlier one did, it has no paths."""

    def __init__(self, observer: Observer, pools: Pools, limit: int) -> None:
        """At most *limit* volumes; 0 for as many as one likes."""
        self._observer = observer
        self._pools = pools
        self._limit = limit
        self._guard = threading.Lock()
        self._how: dict[VolumeId, dict[str, Capability]] = {}

    def volumes(self) -> list[VolumeId]:
        """All of them."""
        return list(self._how)

    def how(self, volume: VolumeId, path: str) -> Capability | None:
        """What a volume was staged for at *path*, where that is known."""
        return self._how.get(volume, {}).get(path)

    def mounts(self) -> list[str]:
        """Where volumes are mounted, and not only ready as raw block devices."""
        found = [(path, how) for paths in list(self._how.values()) for path, how in list(paths.items())]
        return [path for path, how in found if isinstance(how.access, MountAccess)]

    def count(self, volume: VolumeId) -> None:
        """Count a volume that is there, whatever the limit."""
        self._how.setdefault(volume, {})

    def admit(self, volume: VolumeId) -> bool:
        """Count a volume that is to be staged; whether it was counted already.

        Raises:
            ResourceExhausted: the node has as many as it may have.
        """
        if volume not in self._how and self._is_full():
            for gone in [one for one in self.volumes() if self._is_gone(one)]:
                self.forget(gone)
        with self._guard:
            known = volume in self._how
            if not known and self._is_full():
                raise ResourceExhausted(f"this node has its limit of {self._limit} volumes staged")
            self.count(volume)
        return known

    def remember(self, volume: VolumeId, path: str, capability: Capability) -> None:
        """A volume is staged at *path*; how it was staged there first is what counts."""
        self._how.setdefault(volume, {}).setdefault(path, capability)

    def leave(self, volume: VolumeId, path: str) -> None:
        """A volume has left *path*, and is staged elsewhere."""
        self._how.get(volume, {}).pop(path, None)

    def forget(self, volume: VolumeId) -> None:
        """A volume has left this node."""
        self._how.pop(volume, None)

    def _is_full(self) -> bool:
        return 0 < self._limit <= len(self._how)

    def _is_gone(self, volume: VolumeId) -> bool:
        """Whether a volume is on this node no longer: somebody else unmounted it, or it was removed."""
        try:
            if not (pools := self._pools.having(volume)):
                return self._pools.ready
            devices = self._observer.stack(pools[0].layout, volume)
            return not devices.loops and not self._observer.mount_points(pools[0].layout, volume, devices)
        except DriverError:
            return False
