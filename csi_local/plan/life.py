"""A volume's beginning, growth and end, as operations on its pool."""

import re
from collections.abc import Iterable

from csi_local.backends import directory, loopfile
from csi_local.model.operations import (
    Commit,
    EraseHeader,
    MakeDirectory,
    MakeLink,
    MakeRecord,
    Operation,
    RemoveTree,
    SyncDirectory,
    WriteRecord,
)
from csi_local.model.pool import Abilities
from csi_local.model.quantity import Bytes
from csi_local.model.volume import BackendKind, VolumeRecord
from csi_local.store.layout import RECORD_FILE, Layout


def create(record: VolumeRecord, layout: Layout, abilities: Abilities, *, leftover: bool) -> tuple[Operation, ...]:
    """Make everything under a provisional name, then give it the final one: that is the commit.

    On a btrfs a new subvolume makes every fsync beside it slow, and is durable only when all is: so it comes last, with
    a commit of its own. Elsewhere the directory is synced once it is complete.
    """
    place = layout.new(record.id)
    said = MakeRecord(path=f"{place}/{RECORD_FILE}", record=record)
    if record.backend is BackendKind.DIRECTORY:
        bytes_made = directory.make(record, f"{place}/data", abilities)
    else:
        bytes_made = loopfile.make(record, f"{place}/disk.img")
    late = abilities.btrfs and record.backend is BackendKind.DIRECTORY
    synced = () if late else (SyncDirectory(path=place),)
    return (
        *((RemoveTree(path=place),) if leftover else ()),
        MakeDirectory(path=place),
        said,
        *bytes_made,
        *synced,
        Commit(source=place, target=layout.volume(record.id)),
    )


def adopt(record: VolumeRecord, layout: Layout) -> tuple[Operation, ...]:
    """Make the record of a directory that is a volume where it is, under a name that no making of a volume has."""
    place = layout.new_adopted(record.id)
    return (
        RemoveTree(path=place),
        MakeDirectory(path=place),
        MakeRecord(path=f"{place}/{RECORD_FILE}", record=record),
        MakeLink(path=f"{place}/data", target=record.adopted),
        SyncDirectory(path=place),
        Commit(source=place, target=layout.volume(record.id)),
    )


def delete(record_directory: str, trash: str, encrypted: Iterable[str] = ()) -> tuple[Operation, ...]:
    """Take the final name away: that is the commit. What has no name any more is removed in the background.

    Headers of what is *encrypted*, as paths in the directory, go at once: nobody opens it again, whatever becomes of
    the blocks. Where that is cut short it is done before they are removed.
    """
    erased = (EraseHeader(path=f"{trash}/{path}") for path in encrypted)
    return (Commit(source=record_directory, target=trash), *erased)


_POD = re.compile(r"(/.*/pods/[^/]+)/volumes/[^/]+/[^/]+/mount")


def pod_directory(target: str) -> str | None:
    """The directory that the kubelet has for the pod of a *target*; None where the path is no kubelet's.

    It makes that first of all for a pod, and removes it last, when nothing of the pod is left
    (``KUBELET_DIR/pods/UID/volumes/PLUGIN/VOLUME/mount``).
    """
    found = _POD.fullmatch(target)
    return found.group(1) if found else None


def grow(record: VolumeRecord, after: VolumeRecord, layout: Layout, abilities: Abilities) -> tuple[Operation, ...]:
    """Give a volume more room, then say so: a crash between leaves more room than is promised, never less."""
    if record.backend is BackendKind.DIRECTORY:
        bytes_grown = directory.limit(record, layout.data(record.id), Bytes(after.size), abilities)
    else:
        bytes_grown = loopfile.grow(after, layout.image(record.id))
    return (*bytes_grown, WriteRecord(path=layout.record(record.id), record=after))
