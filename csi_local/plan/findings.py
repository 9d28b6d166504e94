"""What a look at the pools finds: what is there, and what is not as it should be.

Values only: ``engine.check`` looks, ``plan.check`` judges, ``doctor`` shows.
"""

from dataclasses import dataclass
from enum import StrEnum

from csi_local.model.observed import FileInfo, LoopDevice, Signature
from csi_local.model.operations import OnPath, Operation
from csi_local.model.pool import PoolKind
from csi_local.model.snapshot import GroupId, SnapshotId, SnapshotRecord
from csi_local.model.volume import VolumeId, VolumeRecord
from csi_local.store.layout import Layout


class Severity(StrEnum):
    """How bad a finding is; ``info`` is not wrong, and no reason for an exit status of 1."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOver(OnPath):
    """Make the driver the owner of a file or directory of its own, and take away what others may do with it."""

    owner: int
    mode: int


# --- what is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A file or directory of the driver's own, by its path, and the user it belongs to."""

    path: str
    info: FileInfo
    owner: int

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSeen:
    """What limits a directory volume.

    Attributes:
        project: the quota project that its directory is in.
        total: the limit of the volume's project or subvolume, in bytes.
        problem: why that cannot be read, or "".
    """

    project: int = 0
    total: int = 0
    used: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSeen:
    """A volume's directory and what is in it.

    Attributes:
        files: its directory, then all that is directly in it.
        record: None where it cannot be believed; *damage* then says why.
        limit: of a directory volume that has one.
        signature: what is on the image; only looked for where a filesystem, or a LUKS header, should be there.
        unreadable: why that could not be found out, or "".
        adopted: what is where the directory was that was adopted as this volume.
        pod_gone: whether it is an inline volume whose pod is not there any more.
    """

    id: VolumeId
    files: tuple[Seen, ...]
    record: VolumeRecord | None = None
    damage: str = ""
    limit: LimitSeen | None = None
    signature: Signature | None = None
    unreadable: str = ""
    pod_gone: bool = False
    adopted: FileInfo | None = None

    def file(self, name: str) -> Seen | None:
        """What has that name in its directory."""
        return next((seen for seen in self.files[1:] if seen.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSeen:
    """A snapshot's directory and what is in it.

    Attributes:
        group: the group that it is in, or "".
        files: its directory, then all that is directly in it.
        record: None where it cannot be believed; *damage* then says why.
    """

    id: SnapshotId
    group: str
    files: tuple[Seen, ...]
    record: SnapshotRecord | None = None
    damage: str = ""

    def file(self, name: str) -> Seen | None:
        """What has that name in its directory."""
        return next((seen for seen in self.files[1:] if seen.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSeen:
    """A group's directory.

    Attributes:
        files: its directory, then all that is directly in it.
        members: what its record says; None where that cannot be believed.
        damage: why not.
    """

    id: GroupId
    files: tuple[Seen, ...]
    members: tuple[SnapshotId, ...] | None = None
    damage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSeen:
    """A loop device on a file of the pool.

    Attributes:
        file: the path that the kernel has of the file; "" where it does not tell.
        volume: whose image that is; None where it is no existing volume's.
        points: where it, or its filesystem, is mounted.
        users: who else has it open, in words; looked for only where the volume is not there.
    """

    device: LoopDevice
    file: str
    volume: VolumeId | None
    points: tuple[str, ...] = ()
    users: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindSeen:
    """A mount elsewhere of a directory in the pool: *inside* is its path below the pool's top."""

    point: str
    inside: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeen:
    """A pool's contents.

    Attributes:
        problem: why it cannot be looked at, or "".
        damage: what is wrong with pool.json, or "".
        busy: whether a driver has the pool open, so that what looks unfinished may be under way.
        us: the user that the driver runs as.
        filesystem: the name of the pool's own.
        names: what is in its top directory; strays: what is in ``volumes`` and cannot be a volume, or likewise in
            ``snapshots`` and ``groups``.
    """

    name: str
    kind: PoolKind
    root: str = ""
    problem: str = ""
    damage: str = ""
    uuid: str = ""
    busy: bool = False
    us: int = 0
    filesystem: str = ""
    names: tuple[Seen, ...] = ()
    strays: tuple[Seen, ...] = ()
    volumes: tuple[VolumeSeen, ...] = ()
    snapshots: tuple[SnapshotSeen, ...] = ()
    groups: tuple[GroupSeen, ...] = ()
    loops: tuple[LoopSeen, ...] = ()
    binds: tuple[BindSeen, ...] = ()

    @property
    def layout(self) -> Layout:
        """The names inside it."""
        return Layout(self.root)


# --- what that means


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        pool: the pool's name.
        where: a path, a device or a mount point; "" for the pool itself.
        found: what was seen, and what it means.
        fix: what to do.
        mend: what --repair does about it; nothing where that would not be safe.
        volume: the volume it is about, or "".
    """

    severity: Severity
    pool: str
    where: str
    found: str
    fix: str
    mend: tuple[Operation, ...] = ()
    volume: str = ""

    @property
    def wrong(self) -> bool:
        """Whether something is wrong, and not merely worth knowing."""
        return self.severity is not Severity.INFO

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same finding at another look."""
        return self.pool, self.where, self.found
