"""Opening a pool of each kind, and making it where it is new. Formatting happens here once, or never.

* ``path``: the directory must exist.
* ``image``: the file is made and formatted under a provisional name and then given its own; so a file that has the
  name is never formatted again.
* ``device``: formatted only where nothing at all is found on it: no signature, no partition, no user, no byte other
  than zero. Afterwards it is known by its label.
"""

import errno
import hashlib
import uuid
from contextlib import ExitStack, suppress
from pathlib import PurePosixPath

from csi_local.engine.observe import mount_under
from csi_local.host.api import Host
from csi_local.model.errors import DriverError, FailedPrecondition, SyscallFailed, Unavailable
from csi_local.model.observed import FileKind
from csi_local.model.pool import PoolKind, PoolSpec
from csi_local.model.quantity import format_bytes
from csi_local.model.volume import Allocation, Filesystem
from csi_local.store.layout import Layout

LABEL = "csi-local"
"""The label of every filesystem made for a pool."""

_SECTOR_SIZE = 0
"""The kernel takes the smallest that direct I/O to the image's disk can have."""
_PROVISIONAL = ".csi-local-new"
_OPTIONS = {Filesystem.EXT4: (("-O", "quota,project", "-E", "quotatype=prjquota"), ())}
"""What a pool's filesystem is made with, the best first."""


def open_pool(host: Host, spec: PoolSpec, run_dir: str, held: ExitStack) -> str:
    """Make the pool's place usable and return its top directory; *held* lets it go again.

    Raises:
        FailedPrecondition: it must not be used as a pool; the message says what was found.
        Busy: another driver uses it.
        Unavailable: it is not there.
    """
    if spec.kind is PoolKind.PATH:
        return _open_path(host, spec, held)
    if spec.kind is PoolKind.IMAGE:
        return _open_image(host, spec, run_dir, held)
    return _open_device(host, spec, run_dir, held)


def visit_pool(host: Host, spec: PoolSpec, run_dir: str, held: ExitStack) -> str:
    """The top directory of a pool that is there, for looking only: a driver that has it open is not disturbed.

    Raises:
        Unavailable: it has not been made yet, or cannot be reached.
    """
    root = spec.target
    if spec.kind is not PoolKind.PATH:
        source = host.real_path(spec.target)
        if host.stat(source) is None:
            raise Unavailable(f"{spec.target} is not there yet; csi-local serve makes it")
        root = _mount_point(host, spec, run_dir)
        if not _is_mounted(host, source, root):
            signature = host.probe(source)
            if signature is None or signature.label != LABEL:
                raise Unavailable(f"{spec.target} holds {signature.type if signature else 'nothing'}, and no pool")
            open_pool(host, spec, run_dir, held)
    if host.stat(Layout(root).pool_file) is None:
        raise Unavailable(f"{spec.target} is not a pool yet; csi-local serve makes it one")
    return root


def leave_pool(host: Host, spec: PoolSpec, root: str) -> None:
    """Unmount an open pool, unless volumes that are in use lie in it; it stays locked."""
    if spec.kind is not PoolKind.PATH:
        _leave(host, root)


def _open_path(host: Host, spec: PoolSpec, held: ExitStack) -> str:
    found = host.stat(spec.target)
    if found is None:
        raise Unavailable(f"directory {spec.target} does not exist; make it, or mount its disk")
    if found.kind is not FileKind.DIRECTORY:
        raise FailedPrecondition(f"pool {spec.name}: {spec.target} is a {found.kind}, not a directory")
    if spec.mounted and not found.mount_root:
        raise Unavailable(f"nothing is mounted at {spec.target}; mount its disk")
    held.enter_context(host.lock(spec.target))
    return spec.target


def _open_image(host: Host, spec: PoolSpec, run_dir: str, held: ExitStack) -> str:
    found = host.stat(spec.target)
    if found is None:
        _make_image(host, spec, run_dir)
        found = host.stat(spec.target)
    if found is None or found.kind is not FileKind.FILE:
        raise FailedPrecondition(f"pool {spec.name}: {spec.target} is not a file")
    held.enter_context(host.lock(spec.target))
    host.sync_dir(_parent(host, spec))  # whoever gave it its name may have been stopped before that was durable
    signature = host.probe(spec.target)
    if signature is None or signature.label != LABEL:
        what = f"holds {signature.type}" if signature else "is blank"
        raise FailedPrecondition(
            f"pool {spec.name}: {spec.target} exists, and it {what}: it was not made by csi-local and is left as it is."
            " Remove it, or choose another file"
        )
    point = _mount_point(host, spec, run_dir)
    if not _is_mounted(host, spec.target, point):
        with host.attach(spec.target, sector_size=_SECTOR_SIZE, keep=False) as loop:
            _mount(host, loop.path, point, Filesystem(signature.type))
    held.callback(_leave, host, point)
    return point


def _make_image(host: Host, spec: PoolSpec, run_dir: str) -> None:
    parent = _parent(host, spec)
    if host.stat(parent) is None:
        raise Unavailable(f"directory {parent} does not exist; make it first")
    target = f"{parent.rstrip('/')}/{spec.target.rpartition('/')[2]}"
    new = target + _PROVISIONAL
    point = _mount_point(host, spec, run_dir)
    if host.stat(new) is not None:
        with host.lock(new):
            if _is_mounted(host, new, point):  # a trial that was cut short
                host.unmount(point)
            host.remove(new)
    try:
        host.make_image(new, spec.size, thick=spec.allocation is Allocation.THICK)
        with (
            host.lock(new),
            host.attach(new, sector_size=_SECTOR_SIZE, keep=False) as loop,
        ):
            _format(host, loop.path, spec, point, thick=True)
        host.rename(new, target)
    except SyscallFailed as error:
        with suppress(DriverError):
            host.remove(new)
        if error.errno in (errno.ENOSPC, errno.EFBIG):
            raise FailedPrecondition(
                f"pool {spec.name}: there is no room for an image of {format_bytes(spec.size)} at {spec.target}: take a"
                " smaller size, or allocation=thin to reserve no blocks for it"
            ) from error
        raise
    except BaseException:
        with suppress(DriverError):
            host.remove(new)
        raise


def _parent(host: Host, spec: PoolSpec) -> str:
    """The directory that a pool's image is in, which is synced, and not the link that may lead to it."""
    return host.real_path(spec.target.rpartition("/")[0] or "/")


def _open_device(host: Host, spec: PoolSpec, run_dir: str, held: ExitStack) -> str:
    found = host.stat(spec.target)
    device = host.real_path(spec.target)
    if found is None or host.stat(device) is None:
        raise Unavailable(f"device {spec.target} is not there")
    held.enter_context(host.lock(device))
    point = _mount_point(host, spec, run_dir)
    if _is_mounted(host, device, point):
        held.callback(_leave, host, point)
        return point
    if reason := host.in_use(device):
        raise FailedPrecondition(f"pool {spec.name}: {spec.target} is not used: {reason}")
    signature = host.probe(device)
    if signature is None:
        offset = host.first_data(device)
        if offset is not None:
            raise FailedPrecondition(
                f"pool {spec.name}: {spec.target} is not used: no known format is on it, but there is data at byte"
                f" {offset}. If it may be lost: wipefs -a {spec.target} && blkdiscard -z {spec.target}"
            )
        _format(host, device, spec, point, thick=False)
        signature = host.probe(device)
    if signature is None or signature.label != LABEL:
        what = f"{signature.type} (UUID {signature.uuid or 'none'})" if signature else "nothing, after it was formatted"
        raise FailedPrecondition(
            f"pool {spec.name}: {spec.target} is not used: it holds {what}. If that may be lost:"
            f" wipefs -a {spec.target} && blkdiscard -z {spec.target}"
        )
    _mount(host, device, point, Filesystem(signature.type))
    held.callback(_leave, host, point)
    return point


def _format(host: Host, device: str, spec: PoolSpec, point: str, *, thick: bool) -> None:
    """Format what was found to be blank, and see that it can be mounted: a kernel may lack ext4's quota."""
    choices = _OPTIONS.get(spec.filesystem, ((),))
    for options in choices:
        host.make_filesystem(device, spec.filesystem, uuid=str(uuid.uuid4()), label=LABEL, options=options, thick=thick)
        try:
            _mount(host, device, point, spec.filesystem)
        except SyscallFailed:
            if options == choices[-1]:
                raise
        else:
            host.unmount(point)
            return


def _mount_point(host: Host, spec: PoolSpec, run_dir: str) -> str:
    """Where the pool is mounted: always the same for the same pool, so that a new driver finds an old mount."""
    digest = hashlib.sha256(spec.target.encode()).hexdigest()[:12]
    for above in reversed(PurePosixPath(run_dir).parents):
        if host.stat(str(above)) is None:
            host.make_dir(str(above), exist_ok=True)
    for directory in (run_dir, f"{run_dir}/pools"):
        host.make_dir(directory, exist_ok=True)
    point = f"{run_dir}/pools/{spec.name}-{digest}"
    host.make_dir(point, exist_ok=True)
    return point


def _is_mounted(host: Host, source: str, point: str) -> bool:
    """Whether *source*, an image or a device, is mounted at *point*.

    Raises:
        FailedPrecondition: something else is.
    """
    at, below = host.stat(point), host.stat(source)
    if at is None or below is None or not at.mount_root:
        return False
    device = host.device_at(point)
    if device in (below.special, *(loop.device for loop in host.loops(source))):
        return True
    raise FailedPrecondition(f"{point} has something other than {source} mounted on it; unmount it")


def _mount(host: Host, device: str, point: str, filesystem: Filesystem) -> None:
    """Mount with project quota where the kernel has it for this filesystem."""
    if filesystem is not Filesystem.BTRFS:
        try:
            host.mount(device, point, filesystem, frozenset(), ["prjquota"])
        except SyscallFailed:
            pass
        else:
            return
    host.mount(device, point, filesystem, frozenset(), [])


def _leave(host: Host, point: str) -> None:
    """Unmount a pool, unless volumes that are in use lie in it."""
    with suppress(DriverError):  # its disk may fail
        top = host.stat(point)
        if top is None or any(loop.backing[0] == top.device for loop in host.all_loops()):
            return
        if _is_mounted_elsewhere(host, point):  # a directory volume: without the pool its disk seems another's
            return
        host.unmount(point)
        host.remove(point)


def _is_mounted_elsewhere(host: Host, point: str) -> bool:
    """Whether something in the filesystem at *point* is mounted at another place too."""
    mounts = host.mounts()
    here = host.real_path(point)
    pool = mount_under(here, mounts)
    return pool is not None and any(one.device == pool.device and one.point != here for one in mounts)
