"""The records of one pool, on disk."""

import itertools
import json
import uuid
from collections.abc import Iterator

from csi_local.host.api import Host
from csi_local.model.errors import SHORTAGE, DamagedRecord, FailedPrecondition, NotFound, SyscallFailed, Unavailable
from csi_local.model.pool import PoolKind
from csi_local.model.volume import VolumeId, VolumeRecord, stored_id
from csi_local.store.layout import LAYOUT_VERSION, Layout, is_leftover
from csi_local.store.records import decode, encode
from csi_local.store.snapshot_store import SnapshotStore


class PoolStore:
    """Reads and writes the records below *root*. It keeps nothing in memory: the disk is the truth."""

    def __init__(self, host: Host, root: str) -> None:
        self.layout = Layout(root)
        self.snapshots = SnapshotStore(host, self.layout)
        self._host = host
        self._trash_numbers = itertools.count(1)

    def open(self, kind: PoolKind) -> str:
        """Make the directory a pool, or see that it is one; return the pool's uuid.

        Raises:
            FailedPrecondition: pool.json is newer, or of another kind of pool.
            Unavailable: it is damaged, or missing while there are volumes.
        """
        if self._host.stat(self.layout.pool_file) is None:
            if self._host.stat(self.layout.volumes) is not None and self._host.list_dir(self.layout.volumes):
                raise Unavailable(
                    f"{self.layout.pool_file} is missing, but there are volumes: restore it from a backup, or write"
                    f' {{"layout":{LAYOUT_VERSION},"uuid":"{uuid.uuid4()}","kind":"{kind}"}} into it'
                )
            self._host.make_dir(self.layout.volumes, exist_ok=True)
            document = {"layout": LAYOUT_VERSION, "uuid": str(uuid.uuid4()), "kind": str(kind)}
            self._host.replace_file(self.layout.pool_file, json.dumps(document).encode() + b"\n")
        try:
            document = json.loads(self._host.read_file(self.layout.pool_file))
            layout, identity, made_as = int(document["layout"]), str(document["uuid"]), document["kind"]
        except (ValueError, KeyError, TypeError):
            raise Unavailable(f"{self.layout.pool_file} is damaged; restore it from a backup") from None
        if layout > LAYOUT_VERSION:
            raise FailedPrecondition(f"{self.layout.pool_file} has layout {layout}: upgrade the driver")
        if made_as != kind:
            raise FailedPrecondition(f"{self.layout.root} was made as a pool of kind {made_as}, not {kind}")
        return identity

    def load(self, volume: VolumeId) -> VolumeRecord:
        """A volume's record.

        Raises:
            NotFound: there is no such volume in this pool.
            DamagedRecord: there is, but its record cannot be believed.
        """
        try:
            return decode(self._host.read_file(self.layout.record(volume)), volume)
        except SyscallFailed as error:
            if error.errno in SHORTAGE:
                raise
            if self._host.stat(self.layout.volume(volume)) is None:
                raise NotFound(f"there is no volume {volume!r}") from None
            if self._host.stat(self.layout.record(volume)) is None:
                raise DamagedRecord(f"volume {volume!r}: its record is missing; its data is left alone") from None
            raise DamagedRecord(f"volume {volume!r}: its record cannot be read: {error}") from error

    def exists(self, volume: VolumeId) -> bool:
        """Whether the volume's directory has its final name."""
        return self._host.stat(self.layout.volume(volume)) is not None

    def write(self, path: str, record: VolumeRecord) -> None:
        """Write a record durably, replacing any that is at *path*."""
        self._host.replace_file(path, encode(record))

    def sync(self, volume: VolumeId) -> None:
        """Make durable what an earlier request did and was perhaps stopped, or failed, before it could sync.

        Whoever finds a volume made, gone or changed and only says so must call this first: the next power cut would
        undo what nobody has synced.
        """
        if self.exists(volume):
            self._host.sync_dir(self.layout.volume(volume))
        self._host.sync_dir(self.layout.volumes)

    def volumes(self) -> Iterator[VolumeId]:
        """The ids of the volumes that exist, in no order; what cannot be one of ours is passed over."""
        for name in self._host.list_dir(self.layout.volumes, directories_only=True):
            volume = stored_id(name)
            if volume is not None:
                yield volume

    def leftovers(self) -> list[str]:
        """Paths of everything half made or half removed."""
        return [f"{self.layout.root}/{name}" for name in self._host.list_dir(self.layout.root) if is_leftover(name)]

    def unused_trash(self, name: str) -> str:
        """A path in the pool that is free for a volume, or ``<kind>:<id>``, on its way out."""
        while self._host.stat(path := self.layout.trash(name, next(self._trash_numbers))) is not None:
            continue
        return path
