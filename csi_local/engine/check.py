"""Checking what is in the pools, and mending what may safely be mended (``csi-local doctor``).

Looking changes nothing, and needs nobody's leave: it can be done beside a driver that runs. Mending needs the lock
that a driver holds for life. What is a finding, and which of them are mended, ``plan.check`` decides.
"""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from csi_local.engine import making
from csi_local.engine.execute import Executor
from csi_local.engine.observe import Observer, mount_under
from csi_local.host.api import Host
from csi_local.model.errors import (
    Busy,
    DriverError,
    FailedPrecondition,
    HostError,
    NotFound,
    SyscallFailed,
    Unavailable,
)
from csi_local.model.observed import FileKind, LoopDevice
from csi_local.model.operations import RemoveTree
from csi_local.model.pool import PoolKind, PoolSpec
from csi_local.model.snapshot import SnapshotId
from csi_local.model.volume import BackendKind, FormatState, QuotaMode, VolumeId, VolumeRecord
from csi_local.plan import check_snapshots
from csi_local.plan.check import UNFINISHED, judge
from csi_local.plan.findings import (
    BindSeen,
    Finding,
    GroupSeen,
    LimitSeen,
    LoopSeen,
    PoolSeen,
    Seen,
    Severity,
    SnapshotSeen,
    TakeOver,
    VolumeSeen,
)
from csi_local.store.layout import GROUP_FILE, NEW, POOL_FILE, RECORD_FILE, SNAPSHOT_FILE, TRASH, Layout, is_leftover
from csi_local.store.pool_store import PoolStore

_ROUNDS = 4
"""Mending one thing lets another be mended: a device is detached, then the deleted volume it was on is removed."""

_IMAGE = re.compile(rf"/(volumes/[^/]+|({re.escape(NEW)}|{re.escape(TRASH)})[^/]+)/disk\.img")
"""Where images of volumes are or were, from the top of a pool: nothing else is ever taken for an orphan's file."""

_WRITTEN = (POOL_FILE, RECORD_FILE, SNAPSHOT_FILE, GROUP_FILE)
"""The files whose writing may have been cut short."""

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was mended, and what there is to say now."""

    seen: tuple[PoolSeen, ...]
    findings: tuple[Finding, ...]
    mended: tuple[Finding, ...] = ()


class _Noting(ExitStack):
    """Knows whether anything was entered in it: whether visiting a pool had to open, and so lock, it."""

    used = False

    def enter_context(self, cm: AbstractContextManager[T]) -> T:
        """As in an ``ExitStack``."""
        entered = super().enter_context(cm)
        self.used = True
        return entered


def find(host: Host, spec: PoolSpec, run_dir: str, held: ExitStack, *, to_mend: bool) -> Place:
    """The pool at its place, until *held* is left; locked *to_mend*, unless a driver has it. It is never made."""
    busy = False
    visit = held.enter_context(_Noting())
    try:
        busy = _has_driver(host, spec)
        root = making.visit_pool(host, spec, run_dir, visit)
    except DriverError as error:
        return Place(spec=spec, problem=str(error), busy=busy)
    if to_mend and not busy and not visit.used:
        try:
            held.enter_context(host.lock(spec.target))
        except Busy:  # it has just started
            busy = True
    return Place(spec=spec, root=root, busy=busy, ours=to_mend and not busy)


def _has_driver(host: Host, spec: PoolSpec) -> bool:
    """Whether somebody holds the pool's lock; ours lasts a microsecond."""
    if host.stat(spec.target) is None:
        return False
    try:
        with host.lock(spec.target):
            return False
    except Busy:
        return True


class Checker:
    """Looks at places and mends there; *us* is the user that the driver runs as."""

    def __init__(self, host: Host, places: Sequence[Place], us: int) -> None:
        self._host = host
        self._places = places
        self._us = us
        self._executor = Executor(host, lambda _name: None)

    def check(self) -> Report:
        """Look, and change nothing."""
        seen = tuple(_look(self._host, place, self._us) for place in self._places)
        return Report(seen=seen, findings=tuple(judge(seen, check_snapshots.judge(seen))))

    def repair(self) -> Report:
        """Thaw what is frozen, mend what may be mended, and look again: only what then is gone was mended."""
        mended: list[Finding] = []
        failed: dict[tuple[str, str, str], str] = {}
        ours = {place.spec.name for place in self._places if place.ours}
        for place in self._places:
            if place.ours:
                mended += self._thaw(place)
        tried: list[Finding] = []
        for _ in range(_ROUNDS):
            todo = [one for one in self.check().findings if one.mend and one.pool in ours and one not in tried]
            for finding in todo:
                tried.append(finding)
                try:
                    self._mend(finding)
                except DriverError as error:
                    failed[finding.key] = str(error)
            if not todo:
                break
        now = self.check()
        still = {finding.key for finding in now.findings}
        mended += [finding for finding in tried if finding.key not in still]
        findings = [*self._refused(), *(_with_failure(one, failed.get(one.key, "")) for one in now.findings)]
        return Report(seen=now.seen, findings=tuple(findings), mended=tuple(mended))

    def _refused(self) -> Iterator[Finding]:
        for place in self._places:
            if place.busy:
                yield Finding(
                    severity=Severity.ERROR,
                    pool=place.spec.name,
                    where="",
                    found="nothing was mended: a running csi-local has this pool open",
                    fix="stop the driver (pods go on working without it), do this again, and start it",
                )

    def _mend(self, finding: Finding) -> None:
        for operation in finding.mend:
            match operation:
                case TakeOver(path=path, owner=owner, mode=mode):
                    self._host.set_owner(path, owner, mode)
                case RemoveTree(path=path) if not _removable(path):
                    raise FailedPrecondition(f"{path} is nothing that --repair removes")
                case _:
                    self._executor.run("repair", (operation,))

    def _thaw(self, place: Place) -> Iterator[Finding]:
        """Thaw the filesystems on this pool's own loop devices: first the pool's, which the others write to.

        That a filesystem is frozen cannot be read anywhere: thawing fails where it is not. So this is done only here,
        only on what no driver is using, and nowhere but on our own devices.
        """
        devices: list[LoopDevice] = []
        if place.spec.kind is PoolKind.IMAGE:
            devices += self._host.loops(place.spec.target)
        look = _Look(self._host, place, self._us)
        loops = [*devices, *(loop.device for loop in look.loops(look.volumes()))]
        for device in (one for loop in loops for one in (loop, *self._host.mapped_over(loop.device))):
            point = look.observer.reached_at(device, look.mounts)
            if point is None:
                continue
            try:
                found = "it was frozen: all writing to it waited" if self._host.thaw(point) else ""
            except SyscallFailed as error:
                found = f"it may be frozen, and cannot be thawed: {error}"
            if found:
                fix = "see what froze it: a backup that was cut short?"
                yield Finding(severity=Severity.WARNING, pool=place.spec.name, where=point, found=found, fix=fix)


def _removable(path: str) -> bool:
    """What --repair may remove at all: what the sweeper removes, and a file whose writing was cut short."""
    name = path.rpartition("/")[2]
    return is_leftover(name) or (name.removesuffix(UNFINISHED) in _WRITTEN and name.endswith(UNFINISHED))


def _with_failure(finding: Finding, why: str) -> Finding:
    return replace(finding, fix=f"--repair could not: {why}", mend=()) if why else finding


class _Look:
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
            return replace(seen, signature=self._host.probe(image.path))
        except HostError as error:
            return replace(seen, unreadable=str(error))

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


def _look(host: Host, place: Place, us: int) -> PoolSeen:
    spec = place.spec
    problem = place.problem
    if not problem:
        try:
            return _Look(host, place, us).pool()
        except HostError as error:
            problem = f"it cannot be read: {error}"
    return PoolSeen(name=spec.name, kind=spec.kind, problem=problem, busy=place.busy)
