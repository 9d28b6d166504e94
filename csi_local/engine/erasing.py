"""Removing what may be encrypted: first what opens it, then the rest."""

from csi_local.host.api import Host
from csi_local.model.observed import FileKind
from csi_local.store.layout import IMAGE, NEW, TRASH


def remove_erased(host: Host, path: str) -> None:
    """Remove whatever is there; headers of encrypted images are overwritten before.

    A volume's or a snapshot's directory has its image in it, a group's has its snapshots' directories.
    """
    there = host.stat(path)
    if there is not None and there.kind is FileKind.DIRECTORY:
        inner = host.list_dir(path, directories_only=True) if _is_group(path) else ()
        for image in (f"{path}/{IMAGE}", *(f"{path}/{name}/{IMAGE}" for name in inner)):
            found = host.stat(image)
            if found is not None and found.kind is FileKind.FILE:
                host.erase_header(image)
    host.remove_tree(path)


def _is_group(path: str) -> bool:
    """Whether that is a group being made or removed; what is in a volume's directory of files is its pods'."""
    return path.rpartition("/")[2].startswith((f"{NEW}group:", f"{TRASH}group:"))
