"""The snapshots and groups of one pool, on disk."""

from collections.abc import Iterator

from csi_local.host.api import Host
from csi_local.model.errors import SHORTAGE, DamagedRecord, NotFound, SyscallFailed
from csi_local.model.snapshot import GroupId, GroupRecord, SnapshotId, SnapshotRecord
from csi_local.model.volume import known_id
from csi_local.store.layout import GROUP_FILE, SNAPSHOT_FILE, Layout
from csi_local.store.records import decode_group, decode_snapshot


class SnapshotStore:
    """Finds and reads. It keeps nothing in memory: the disk is the truth."""

    def __init__(self, host: Host, layout: Layout) -> None:
        self._host = host
        self._layout = layout

    def prepare(self) -> None:
        """Make the directories that pools of earlier versions lack; durable with what is next renamed into them."""
        for path in (self._layout.snapshots, self._layout.groups):
            self._host.make_dir(path, exist_ok=True)

    def find(self, snapshot: SnapshotId) -> str | None:
        """The directory of a snapshot, alone or with its group; None where there is none."""
        path = self._layout.snapshot(snapshot)
        if self._host.stat(path) is not None:
            return path
        for group in self.groups():
            path = self._layout.member(group, snapshot)
            if self._host.stat(path) is not None:
                return path
        return None

    def load(self, snapshot: SnapshotId) -> SnapshotRecord:
        """A snapshot's record.

        Raises:
            NotFound: there is no such snapshot in this pool.
            DamagedRecord: there is, but its record cannot be believed.
        """
        path = self.find(snapshot)
        if path is None:
            raise NotFound(f"there is no snapshot {snapshot!r}")
        return decode_snapshot(self._read(path, SNAPSHOT_FILE, f"snapshot {snapshot!r}"), snapshot)

    def load_group(self, group: GroupId) -> GroupRecord:
        """A group's record.

        Raises:
            NotFound: there is no such group in this pool.
            DamagedRecord: there is, but its record cannot be believed.
        """
        return decode_group(self._read(self._layout.group(group), GROUP_FILE, f"group {group!r}"), group)

    def _read(self, directory: str, name: str, what: str) -> bytes:
        try:
            return self._host.read_file(f"{directory}/{name}")
        except SyscallFailed as error:
            if error.errno in SHORTAGE:
                raise
            if self._host.stat(directory) is None:
                raise NotFound(f"there is no {what}") from None
            raise DamagedRecord(f"{what}: its record cannot be read: {error}") from error

    def exists(self, snapshot: SnapshotId) -> bool:
        """Whether there is such a snapshot, alone or in a group."""
        return self.find(snapshot) is not None

    def group_exists(self, group: GroupId) -> bool:
        """Whether there is such a group."""
        return self._host.stat(self._layout.group(group)) is not None

    def groups(self) -> list[GroupId]:
        """The ids of the groups that exist."""
        return [GroupId(name) for name in self._names(self._layout.groups)]

    def all(self) -> Iterator[SnapshotId]:
        """The ids of the snapshots that exist, in no order."""
        yield from map(SnapshotId, self._names(self._layout.snapshots))
        for group in self.groups():
            yield from map(SnapshotId, self._names(self._layout.group(group)))

    def _names(self, directory: str) -> list[str]:
        if self._host.stat(directory) is None:
            return []
        names = self._host.list_dir(directory, directories_only=True)
        return [name for name in names if known_id(name) is not None]

    def sync(self) -> None:
        """Make durable what an earlier request did and was perhaps stopped before it could sync."""
        for path in (self._layout.root, self._layout.snapshots, self._layout.groups):
            if self._host.stat(path) is not None:
                self._host.sync_dir(path)
