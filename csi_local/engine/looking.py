"""One look at one pool: all that ``plan.check`` judges, as it was seen. Nothing is changed by it."""

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from csi_local.engine.observe import Observer, mount_under
from csi_local.host.api import Host
from csi_local.model.errors import (
    DriverError,
    FailedPrecondition,
    HostError,
    NotFound,
    SyscallFailed,
    Unavailable,
)
from csi_local.model.observed import FileKind, LoopDevice
from csi_local.model.pool import PoolKind, PoolSpec
from csi_local.model.snapshot import SnapshotId
from csi_local.model.volume import BackendKind, FormatState, QuotaMode, VolumeId, VolumeRecord
from csi_local.plan.findings import (
    BindSeen,
    GroupSeen,
    LimitSeen,
    LoopSeen,
    PoolSeen,
    Seen,
    SnapshotSeen,
    VolumeSeen,
)
from csi_local.store.layout import (
    HEADER_COPY,
    NEW,
    TRASH,
    Layout,
)
from csi_local.store.pool_store import PoolStore

_IMAGE = re.compile(rf"/(volumes/[^/]+|({re.escape(NEW)}|{re.escape(TRASH)})[^/]+)/disk\.img")
"""Where images of volumes are or were, from the top of a pool: nothing else is ever taken for an orphan's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A pool to look at.

    Attributes:
        root: its top directory; "" where *problem* says why it cannot be looked at.
        busy: whether a driver has it open.
        ours: whether we hold its lock, and so may mend.
    """

    spec: PoolSpec
    root: str = ""
    problem: str = ""
    busy: bool = False
    ours: bool = False


class Look:
    """One look at one pool."""

    def __init__(self, host: Host, place: Place, us: int) -> None:
        self._host = host
        self._place = place
        self._us = us
        self._layout = Layout(place.root)
        self._store = PoolStore(host, place.root)
        self._real = host.real_path(place.root)
        self.observer = Observer(host)
        self.mounts = host.mounts()
        under = mount_under(self._real, self.mounts)
        if under is None:
            raise SyscallFailed(f"find the mount that {self._real} is in", errno.ENOENT)
        self._under = under

    def pool(self) -> PoolSeen:
        """All that there is to see."""
        spec, root = self._place.spec, self._place.root
        try:
            uuid, damage = self._store.open(spec.kind), ""
        except (FailedPrecondition, Unavailable, HostError) as error:
            uuid, damage = "", str(error)
        volumes = self.volumes()
        snapshots, groups = self._snapshots(), self._groups()
        known = {*volumes, *(one.id for one in snapshots), *(one.id for one in groups)}
        places = (self._layout.volumes, self._layout.snapshots, self._layout.groups)
        strays = (seen for place in places for seen in self._files(place) if seen.name not in known)
        return PoolSeen(
            name=spec.name,
            kind=spec.kind,
            root=root,
            damage=damage,
            uuid=uuid,
            busy=self._place.busy,
            us=self._us,
            filesystem=self._under.filesystem,
            names=tuple(self._files(root)),
            strays=tuple(strays),
            volumes=tuple(seen for volume in volumes if (seen := self._volume(volume)) is not None),
            snapshots=snapshots,
            groups=groups,
            loops=tuple(self.loops(volumes)),
            binds=tuple(self._binds()),
        )

    # Files

    def _seen(self, path: str) -> Seen | None:
        """None where it is not there, or went meanwhile."""
        try:
            info = self._host.stat(path)
            return Seen(path=path, info=info, owner=self._host.owner(path)) if info is not None else None
        except SyscallFailed as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _files(self, directory: str) -> Iterator[Seen]:
        there = self._host.stat(directory)
        if there is not None and there.kind is FileKind.DIRECTORY:
            for name in sorted(self._host.list_dir(directory)):
                seen = self._seen(f"{directory}/{name}")
                if seen is not None:
                    yield seen

    # Volumes

    def volumes(self) -> list[VolumeId]:
        """The ids of the volumes there are."""
        there = self._host.stat(self._layout.volumes)
        return sorted(self._store.volumes()) if there is not None and there.kind is FileKind.DIRECTORY else []

    def _volume(self, volume: VolumeId) -> VolumeSeen | None:
        """None where it was deleted meanwhile."""
        top = self._seen(self._layout.volume(volume))
        if top is None:
            return None
        try:
            files = (top, *self._files(top.path))
            record = self._store.load(volume)
        except NotFound:
            return None
        except (FailedPrecondition, Unavailable, HostError) as error:
            damage = str(error).removeprefix(f"volume {volume!r}: ").partition("; ")[0]
            return VolumeSeen(id=volume, files=self._what_can_be_seen(top), damage=damage)
        seen = VolumeSeen(id=volume, files=files, record=record, pod_gone=self.observer.pod_is_gone(record))
        if record.adopted:
            return replace(seen, adopted=self._host.stat(record.adopted))
        if record.backend is BackendKind.DIRECTORY:
            return replace(seen, limit=self._limit(record, seen.file("data")))
        return self._with_signature(seen, record)

    def _what_can_be_seen(self, top: Seen) -> tuple[Seen, ...]:
        try:
            return (top, *self._files(top.path))
        except HostError:
            return (top,)

    def _limit(self, record: VolumeRecord, data: Seen | None) -> LimitSeen | None:
        if record.quota is not QuotaMode.HARD or data is None or data.info.kind is not FileKind.DIRECTORY:
            return None
        btrfs = self._under.filesystem == "btrfs"
        if btrfs and data.info.device == self._device:  # a limit set on it would be the whole pool's
            return LimitSeen(problem="its directory is not a subvolume")
        project = 0
        try:
            project = 0 if btrfs else self._host.project_of(data.path)
            usage = (
                self._host.subvolume_usage(data.path) if btrfs else self._host.project_usage(data.path, record.project)
            )
        except SyscallFailed as error:
            if error.errno == errno.ENOENT:  # nobody ever set one
                return LimitSeen(project=project)
            return LimitSeen(problem=str(error))
        return LimitSeen(project=project, total=usage.total, used=usage.used)

    def _with_signature(self, seen: VolumeSeen, record: VolumeRecord) -> VolumeSeen:
        image = seen.file("disk.img")
        whole = image is not None and image.info.kind is FileKind.FILE and image.info.size >= record.size
        state = record.encryption.state if record.encryption else record.format
        if image is None or not whole or state is not FormatState.FORMATTED:
            return seen
        try:
            seen = replace(seen, signature=self._host.probe(image.path))
            copy = seen.file(HEADER_COPY)
            if seen.signature is None and copy is not None and copy.info.kind is FileKind.FILE:
                return replace(seen, copied=self._host.probe(copy.path))
        except HostError as error:
            return replace(seen, unreadable=str(error))
        return seen

    # Snapshots

    def _snapshots(self) -> tuple[SnapshotSeen, ...]:
        store = self._store.snapshots
        found = (self._snapshot(snapshot, store.find(snapshot)) for snapshot in sorted(store.all()))
        return tuple(seen for seen in found if seen is not None)

    def _snapshot(self, snapshot: SnapshotId, path: str | None) -> SnapshotSeen | None:
        """None where it was deleted meanwhile."""
        top = self._seen(path) if path else None
        if path is None or top is None:
            return None
        above = path.rpartition("/")[0]
        group = "" if above == self._layout.snapshots else above.rpartition("/")[2]
        seen = SnapshotSeen(id=snapshot, group=group, files=self._what_can_be_seen(top))
        try:
            return replace(seen, record=self._store.snapshots.load(snapshot))
        except NotFound:
            return None
        except (FailedPrecondition, HostError) as error:
            return replace(seen, damage=_plainly(error))

    def _groups(self) -> tuple[GroupSeen, ...]:
        found = []
        for group in sorted(self._store.snapshots.groups()):
            top = self._seen(self._layout.group(group))
            if top is None:
                continue
            seen = GroupSeen(id=group, files=self._what_can_be_seen(top))
            try:
                found.append(replace(seen, members=self._store.snapshots.load_group(group).members))
            except (NotFound, FailedPrecondition, HostError) as error:
                found.append(replace(seen, damage=_plainly(error)))
        return tuple(found)

    # Loop devices and mounts

    @property
    def _device(self) -> int:
        """The number that files directly in the pool have as their device."""
        top = self._host.stat(self._place.root)
        return top.device if top is not None else 0

    def loops(self, volumes: Sequence[VolumeId]) -> Iterator[LoopSeen]:
        """The loop devices on images of *volumes*, and on images that were some volume's once."""
        here = self._device
        attached = [loop for loop in self._host.all_loops() if loop.backing[0] == here]
        images = {}
        for volume in volumes if attached else ():
            image = self._host.stat(self._layout.image(volume))
            if image is not None:
                images[image.identity] = volume
        for device in attached:
            of = images.get(device.backing)
            file = self._host.backing_path(device.device) if of is None else self._layout.image(of)
            if of is None and not self._was_image(file):
                continue
            over = (device, *self._host.mapped_over(device.device))
            points = tuple(point for one in over for point in self.observer.points_of(one, self.mounts))
            users = self._users(device) if of is None and not points else ""
            yield LoopSeen(device=device, file=file, volume=of, points=points, users=users)

    def _was_image(self, file: str) -> bool:
        """Whether that is where an image of this pool would be. On a shared filesystem it must be below our top."""
        inside = file.removeprefix(self._real)
        if inside == file and self._place.spec.kind is PoolKind.PATH:
            return False
        return _IMAGE.fullmatch(inside) is not None

    def _users(self, device: LoopDevice) -> str:
        if reason := self._host.in_use(device.path):
            return reason
        processes = self._host.openers(device.path)
        return f"it is open in process {', '.join(map(str, processes))}" if processes else ""

    def _binds(self) -> Iterator[BindSeen]:
        """Mounts, anywhere, of directories that are volumes of this pool, or were, or are to be."""
        top = self._under.root.rstrip("/") + self._real[len(self._under.point.rstrip("/")) :].rstrip("/")
        for mount in self.mounts:
            inside = mount.root.removeprefix(f"{top}/")
            below = mount.device == self._under.device and mount.root.startswith(f"{top}/")
            if below and inside.startswith(("volumes/", NEW, TRASH)):
                yield BindSeen(point=mount.point, inside=inside)


def _plainly(error: DriverError) -> str:
    """What is wrong with a record, without its name, which is shown beside, and without what follows from that."""
    return str(error).partition(": ")[2].partition("; ")[0] or str(error)


def look(host: Host, place: Place, us: int) -> PoolSeen:
    """What is seen of a pool, or why nothing is."""
    spec = place.spec
    problem = place.problem
    if not problem:
        try:
            return Look(host, place, us).pool()
        except HostError as error:
            problem = f"it cannot be read: {error}"
    return PoolSeen(name=spec.name, kind=spec.kind, problem=problem, busy=place.busy)
