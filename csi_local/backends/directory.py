"""A volume as a directory of the pool's filesystem: native speed, and a limit where that filesystem has one."""

from csi_local.model.operations import (
    CommitSubvolume,
    LimitProject,
    LimitSubvolume,
    MakeDirectory,
    MakeSubvolume,
    OpenToPods,
    Operation,
    SyncDirectory,
)
from csi_local.model.pool import Abilities
from csi_local.model.quantity import Bytes
from csi_local.model.volume import QuotaMode, VolumeRecord


def make(record: VolumeRecord, data: str, abilities: Abilities) -> tuple[Operation, ...]:
    """Make the directory *data*, limited while it is empty."""
    limits = limit(record, data, record.size, abilities)
    if abilities.btrfs:
        return (MakeSubvolume(path=data), *(limits or (CommitSubvolume(path=data),)))
    return (MakeDirectory(path=data), OpenToPods(path=data), *limits, SyncDirectory(path=data))


def limit(record: VolumeRecord, data: str, size: Bytes, abilities: Abilities) -> tuple[Operation, ...]:
    """Let the filesystem enforce *size*; nothing for an advisory one."""
    if record.quota is QuotaMode.ADVISORY:
        return ()
    if abilities.btrfs:
        return (LimitSubvolume(path=data, size=size), CommitSubvolume(path=data))
    return (LimitProject(path=data, project=record.project, size=size),)
