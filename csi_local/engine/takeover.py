"""What an earlier driver left on this node: volumes that are staged, and filesystems that it froze."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.host.api import Host
from csi_local.model.errors import HostError
from csi_local.model.observed import LoopDevice, Stack
from csi_local.model.volume import VolumeId

_log = logging.getLogger(__name__)


def take_over(host: Host, pool: Pool) -> set[VolumeId]:
    """The volumes of a pool that are staged, as far as can be seen; those that were left frozen are thawed."""
    observer, loops = Observer(host), host.all_loops()
    backing = {loop.backing for loop in loops}
    ours: set[tuple[int, int]] = set()
    staged: set[VolumeId] = set()
    bound = {mount.root.partition("/volumes/")[2].partition("/")[0] for mount in host.mounts("/volumes/")}
    with suppress(HostError):  # a disk that fails now is told of when it is used
        for volume in pool.store.volumes() if backing or bound else ():
            image = host.stat(pool.layout.image(volume))
            attached = image is not None and image.identity in backing
            if image is not None and attached:
                ours.add(image.identity)
            if volume in bound or attached:
                staged.add(volume)
        staged |= {volume for volume in pool.adopted if observer.mount_points(pool.layout, volume, Stack())}
    _thaw(host, observer, [loop for loop in loops if loop.backing in ours])
    return staged


def _thaw(host: Host, observer: Observer, loops: Sequence[LoopDevice]) -> None:
    """A filesystem that was frozen for a copy stays so when whoever froze it dies; its pods would wait for ever."""
    mounts = host.mounts("/dev/") if loops else ()
    for device in (one for loop in loops for one in (loop, *host.mapped_over(loop.device))):
        with suppress(HostError):
            point = observer.reached_at(device, mounts)
            if point and host.thaw(point):
                _log.warning("the filesystem on %s at %s was left frozen; it is thawed", device.path, point)
