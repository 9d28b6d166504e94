"""Removing what may be encrypted: first what opens it, then the rest."""

from csi_local.host.api import Host
from csi_local.model.observed import FileKind
from csi_local.store.layout import HEADER_COPY, IMAGE, NEW, TRASH, UNFINISHED


def remove_erased(host: Host, path: str) -> None:
    """Remove whatever is there; headers of encrypted images are overwritten before.

    A volume's or a snapshot's directory has its image in it, a group's has its snapshots' directories.
    """
    there = host.stat(path)
    if there is not None and there.kind is FileKind.DIRECTORY:
        inner = host.list_dir(path, directories_only=True) if _is_group(path) else ()
        for directory in (path, *(f"{path}/{name}" for name in inner)):
            for name in headers_in(host, directory):
                host.erase_header(f"{directory}/{name}")
    elif there is not None and there.kind is FileKind.FILE:  # a copy of a header that was cut short, perhaps
        host.erase_header(path)
    host.remove_tree(path)


def headers_in(host: Host, directory: str) -> list[str]:
    """The names of those files in a volume's or snapshot's directory that may begin with a header."""
    there = ((name, host.stat(f"{directory}/{name}")) for name in (IMAGE, HEADER_COPY, HEADER_COPY + UNFINISHED))
    return [name for name, found in there if found is not None and found.kind is FileKind.FILE]


def _is_group(path: str) -> bool:
    """Whether that is a group being made or removed; what is in a volume's directory of files is its pods'."""
    return path.rpartition("/")[2].startswith((f"{NEW}group:", f"{TRASH}group:"))
