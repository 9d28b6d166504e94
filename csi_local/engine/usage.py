"""How full a volume is at one of its paths, and what can be seen there to be wrong with it."""

import errno

from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.host.api import Host
from csi_local.model.errors import SyscallFailed
from csi_local.model.observed import Usage
from csi_local.model.quantity import Bytes
from csi_local.model.volume import BackendKind, QuotaMode, VolumeRecord


def usage_at(host: Host, pool: Pool, record: VolumeRecord, path: str) -> tuple[Usage, str]:
    """Use of a volume that is at *path*, and what is wrong with it ("" for nothing)."""
    if record.block:
        return _of_device(host, pool, record, path)
    if record.backend is BackendKind.DIRECTORY and record.quota is QuotaMode.HARD:
        return _of_limit(host, pool, record, path)
    return _of_filesystem(host, path), ""


def _of_limit(host: Host, pool: Pool, record: VolumeRecord, path: str) -> tuple[Usage, str]:
    read_only = host.room(pool.root).read_only
    try:
        usage = pool.usage_of(record)
    except SyscallFailed as error:
        if not read_only or error.errno != errno.EROFS:  # an XFS that is read-only answers no question about quota
            raise
        usage = _of_filesystem(host, path)
    return usage, "the pool's filesystem is read-only" if read_only else ""


def _of_filesystem(host: Host, path: str) -> Usage:
    room = host.room(path)
    return Usage(
        total=room.total,
        used=Bytes(room.total - room.free),
        available=room.available,
        inodes=room.inodes,
        used_inodes=room.inodes - room.free_inodes,
        free_inodes=room.free_inodes,
    )


def _of_device(host: Host, pool: Pool, record: VolumeRecord, path: str) -> tuple[Usage, str]:
    """Of a raw block device nobody knows but its size."""
    at = host.stat(path)
    devices = Observer(host).stack(pool.layout, record.id).top
    device = next((one.path for one in devices if at is not None and one.device == at.special), None)
    size = host.device_size(device) if device else Bytes(0)
    problem = "" if size >= record.size else f"the device has {size} bytes instead of {record.size}"
    return Usage(total=size, used=Bytes(0), available=Bytes(0)), problem
