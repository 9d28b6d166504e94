"""Names inside a pool.

::

    <pool>/
      pool.json                 uuid, layout version, kind
      volumes/<id>/volume.json  the record
      volumes/<id>/data/        a directory volume's files
      volumes/<id>/data         of an adopted directory: a symbolic link to it, wherever it is
      volumes/<id>/disk.img     a loopfile volume's bytes
      volumes/<id>/header.img   of an encrypted one: a copy of the header that disk.img begins with
      snapshots/<id>/           snapshot.json, and data/ or disk.img as the volume had it
      groups/<id>/group.json    snapshots of one moment,
      groups/<id>/<snapshot>/   and each of them, as above: so a group begins and ends whole
      .new-<id>/                being made; renamed into volumes/ as the commit; swept at start
      .new-snapshot:<id>/       likewise; .new-group:<id>/ and .new-adopted:<id>/ too
      .trash-<id>.<n>/          being removed; renamed away as the commit; swept in the background
      .probe-<n>/               what abilities are tried out in; swept at start
"""

from dataclasses import dataclass

from csi_local.model.snapshot import GroupId, SnapshotId
from csi_local.model.volume import VolumeId

POOL_FILE = "pool.json"
RECORD_FILE, SNAPSHOT_FILE, GROUP_FILE = "volume.json", "snapshot.json", "group.json"
DATA, IMAGE, HEADER_COPY = "data", "disk.img", "header.img"
UNFINISHED = ".tmp"
"""What a file's name ends with while it is written (``host.api.Files.replace_file``)."""
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
        return f"{self.volume(volume)}/{DATA}"

    def image(self, volume: VolumeId) -> str:
        """A loopfile volume's bytes."""
        return f"{self.volume(volume)}/{IMAGE}"

    def header_copy(self, volume: VolumeId) -> str:
        """A copy of an encrypted volume's header."""
        return f"{self.volume(volume)}/{HEADER_COPY}"

    @property
    def snapshots(self) -> str:
        """The directory whose entries are the snapshots that exist."""
        return f"{self.root}/snapshots"

    def snapshot(self, snapshot: SnapshotId) -> str:
        """A snapshot's directory."""
        return f"{self.snapshots}/{snapshot}"

    @property
    def groups(self) -> str:
        """The directory whose entries are the groups that exist."""
        return f"{self.root}/groups"

    def group(self, group: GroupId) -> str:
        """A group's directory."""
        return f"{self.groups}/{group}"

    def member(self, group: GroupId, snapshot: SnapshotId) -> str:
        """The directory of a snapshot that was taken with a group."""
        return f"{self.group(group)}/{snapshot}"

    def new(self, volume: VolumeId) -> str:
        """Where a volume is made before it exists."""
        return f"{self.root}/{NEW}{volume}"

    def new_adopted(self, volume: VolumeId) -> str:
        """Where the record of an adopted directory is made, beside a driver that may be making a volume of that id."""
        return f"{self.root}/{NEW}adopted:{volume}"

    def new_snapshot(self, snapshot: SnapshotId) -> str:
        """Where a snapshot is made before it exists. No volume's id holds a colon."""
        return f"{self.root}/{NEW}snapshot:{snapshot}"

    def new_group(self, group: GroupId) -> str:
        """Where a group's record is made before the group exists."""
        return f"{self.root}/{NEW}group:{group}"

    def trash(self, name: str, number: int) -> str:
        """Where what no longer exists waits for its removal: a volume by its id, others by ``<kind>:<id>``."""
        return f"{self.root}/{TRASH}{name}.{number}"


def is_leftover(name: str) -> bool:
    """Whether a name in a pool's top directory is of something half made or half removed."""
    return name.startswith((NEW, TRASH, PROBE))
