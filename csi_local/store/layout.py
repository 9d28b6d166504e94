"""Names inside a pool.

::

    <pool>/
      pool.json                 uuid, layout version, kind
      volumes/<id>/volume.json  the record
      volumes/<id>/data/        a directory volume's files
      volumes/<id>/data         of an adopted directory: a symbolic link to it, wherever it is
      volumes/<id>/disk.img     a loopfile volume's bytes
      snapshots/                (later)
      .new-<id>/                being made; renamed into volumes/ as the commit; swept at start
      .trash-<id>.<n>/          being removed; renamed away as the commit; swept in the background
      .probe-<n>/               what abilities are tried out in; swept at start
"""

from dataclasses import dataclass

from csi_local.model.volume import VolumeId

POOL_FILE = "pool.json"
RECORD_FILE = "volume.json"
NEW, TRASH, PROBE = ".new-", ".trash-", ".probe-"
LAYOUT_VERSION = 1
"""The version of this arrangement of files, in pool.json."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of a pool whose top directory is *root*."""

    root: str

    @property
    def pool_file(self) -> str:
        """What makes a directory a pool."""
        return f"{self.root}/{POOL_FILE}"

    @property
    def volumes(self) -> str:
        """The directory whose entries are the volumes that exist."""
        return f"{self.root}/volumes"

    def volume(self, volume: VolumeId) -> str:
        """A volume's directory."""
        return f"{self.root}/volumes/{volume}"

    def record(self, volume: VolumeId) -> str:
        """A volume's record."""
        return f"{self.volume(volume)}/{RECORD_FILE}"

    def data(self, volume: VolumeId) -> str:
        """A directory volume's files."""
        return f"{self.volume(volume)}/data"

    def image(self, volume: VolumeId) -> str:
        """A loopfile volume's bytes."""
        return f"{self.volume(volume)}/disk.img"

    def new(self, volume: VolumeId) -> str:
        """Where a volume is made before it exists."""
        return f"{self.root}/{NEW}{volume}"

    def trash(self, volume: VolumeId, number: int) -> str:
        """Where a volume that no longer exists waits for its removal."""
        return f"{self.root}/{TRASH}{volume}.{number}"


def is_leftover(name: str) -> bool:
    """Whether a name in a pool's top directory is of something half made or half removed."""
    return name.startswith((NEW, TRASH, PROBE))
