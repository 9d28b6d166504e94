"""A volume on its node: stage, publish, unpublish, unstage, and how full it is."""

import errno
import logging
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from csi_local.engine.copies import Copies
from csi_local.engine.crypt import Layers, Opened
from csi_local.engine.execute import Executor
from csi_local.engine.glance import Glance
from csi_local.engine.keys import NONE_GIVEN, GivenKeys
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.engine.staged import Staged
from csi_local.engine.takeover import take_over
from csi_local.engine.usage import usage_at
from csi_local.host.api import Host
from csi_local.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SyscallFailed,
    Unavailable,
)
from csi_local.model.mount_options import MountOptions
from csi_local.model.observed import FileKind, Usage
from csi_local.model.operations import Detach, Operation, RemoveTarget, SetGroup, Unmount
from csi_local.model.volume import (
    BackendKind,
    Capability,
    FormatState,
    MountAccess,
    VolumeId,
    VolumeRecord,
    ephemeral_id,
    is_ephemeral,
)
from csi_local.plan import publishing, staging
from csi_local.plan.publishing import Publication
from csi_local.plan.request import check_usable, mount_options

_log = logging.getLogger(__name__)

_NOT_MOUNTABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EUCLEAN, errno.EBADMSG})
"""What a kernel says of a filesystem that it does not know, or that is damaged (mount(2), EUCLEAN in errno(3))."""


class Publisher:
    """The use cases of a volume on its node.

    What is mounted where is asked of the kernel. Only what the kernel cannot tell (with which capability a path was
    published) is remembered, and only for as long as this process lives.
    """

    def __init__(
        self,
        host: Host,
        pools: Pools,
        executor: Executor,
        locks: KeyedLocks,
        copies: Copies,
        layers: Layers,
        max_volumes: int,
    ) -> None:
        self._host = host
        self._copies = copies
        self._layers = layers
        self._pools = pools
        self._executor = executor
        self._locks = locks
        self._observer = Observer(host)
        self._glance = Glance(host)
        self._staged = Staged(self._observer, pools, max_volumes)
        self._published: dict[VolumeId, dict[str, Publication]] = {}

    def take_over(self) -> None:
        """See which volumes an earlier driver left staged, and thaw those that it left frozen.

        In a pool that is opened later too, before it is used: that driver may be long in dying, just then.
        """
        for pool in self._pools.all():
            self._take_over(pool)
        self._pools.before_use(self._take_over)

    def _take_over(self, pool: Pool) -> None:
        for volume in take_over(self._host, pool):
            self._staged.count(volume)

    def plain(self, path: str) -> str:
        """*path* as the kernel shows it: with the links on the way to it followed, and itself left alone."""
        parent, _, name = path.rpartition("/")
        plain = f"{self._host.real_path(parent or '/').rstrip('/')}/{name}"
        for pool in self._pools.all():
            ours = (f"{one}/" for one in (pool.layout.volumes, pool.layout.snapshots, pool.layout.groups))
            if f"{plain}/".startswith((*ours, f"{pool.root}/.")):
                raise InvalidArgument(f"{path} is in pool {pool.spec.name}, among its volumes")
            if f"{pool.root}/".startswith(f"{plain.rstrip('/')}/"):
                raise InvalidArgument(f"a mount at {path} would hide pool {pool.spec.name}, which is at {pool.root}")
        return plain

    def _check_no_target(self, volume: VolumeId, path: str) -> None:
        """See that a staging path is none of the volume's targets."""
        if path in self._published.get(volume, {}):
            raise InvalidArgument(f"{path} is a target that volume {volume} is published at, and no staging path")

    def _check_apart(self, *paths: str) -> None:
        """See that no path is inside a volume: that could not be unmounted first, and the one inside it never."""
        targets = [target for targets in list(self._published.values()) for target in list(targets)]
        for point in (*self._staged.mounts(), *targets):
            if inside := [path for path in paths if path.startswith(f"{point}/")]:
                raise InvalidArgument(f"{inside[0]} is inside a volume, which is mounted on {point}")

    @contextmanager
    def _alone_at(self, patience_s: float, *paths: str) -> Iterator[None]:
        """Be the only one at these paths: what was seen there must still be so when something is mounted."""
        with ExitStack() as held:
            for path in sorted(set(paths)):
                held.enter_context(self._locks.hold(path, patience_s))
            yield

    # --- staging

    def stage(
        self, shown: str, path: str, capability: Capability, patience_s: float, given: GivenKeys = NONE_GIVEN
    ) -> None:
        """Make a volume ready on this node; the keys *given* are those that came with the request.

        Raises:
            Unauthenticated: it is encrypted, and the key is missing or wrong.
            NotFound: there is no such volume.
            InvalidArgument: it cannot be used in that way.
            AlreadyExists, FailedPrecondition: see ``plan.staging.stage``.
            ResourceExhausted: the node has as many volumes as it may have.
        """
        pool, volume = self._pools.find(shown)
        path = self.plain(path)
        with self._locks.hold(volume, patience_s), self._alone_at(patience_s, path):
            record = pool.store.load(volume)
            check_usable(record, capability)
            self._check_no_target(volume, path)
            self._check_apart(path)
            self._stage(pool, record, path, capability, given)

    def _stage(
        self, pool: Pool, record: VolumeRecord, path: str, capability: Capability, given: GivenKeys = NONE_GIVEN
    ) -> None:
        known = self._staged.admit(record.id)
        try:
            if record.backend is BackendKind.LOOPFILE:
                self._copies.disturb(record.id, f"volume {record.id} has been staged meanwhile")
            opened = self._open(pool, record, path, given)
            try:
                self._mount(pool, opened.record if opened else record, path, capability, opened)
            except Exception:
                if opened is not None and opened.fresh:
                    self._layers.close(pool, record)
                raise
        except BaseException:
            if not known:
                self._staged.forget(record.id)
            raise
        self._staged.remember(record.id, path, capability)

    def _open(self, pool: Pool, record: VolumeRecord, path: str, given: GivenKeys) -> Opened | None:
        """Open an encrypted volume that is not staged there already: what is refused leaves nothing open."""
        encryption = record.encryption
        if encryption is None or self._observer.is_mounted_at(pool.layout, record.id, path):
            return None
        staging.check_place(path, self._host.stat(path))
        return self._layers.open(pool, record, encryption, given)

    def _mount(
        self, pool: Pool, record: VolumeRecord, path: str, capability: Capability, opened: Opened | None
    ) -> None:
        seen = self._glance.at_staging(pool, record, path, opened, self._staged.how(record.id, path))
        options = _options(record, capability)
        new_uuid = str(uuid.uuid4())
        operations = staging.stage(record, capability, options, path, pool.layout, seen, new_uuid)
        self._run_mounting(record, operations, options)

    def stage_ephemeral(self, volume: VolumeId, target: str, capability: Capability, patience_s: float) -> None:
        """Mount an ephemeral volume at its *target*, which is all of its staging and publishing.

        Raises:
            NotFound: there is no such volume.
            AlreadyExists, FailedPrecondition: see ``plan.staging.stage``.
            ResourceExhausted: the node has as many volumes as it may have.
        """
        with self._locks.hold(volume, patience_s), self._alone_at(patience_s, target):
            if (pool := self._pools.locate(volume)) is None:
                raise NotFound(f"volume {volume} was removed meanwhile")
            record = pool.store.load(volume)
            self._check_apart(target)
            self._stage(pool, record, target, capability)
            access = capability.access
            group = access.group if isinstance(access, MountAccess) else None
            read_only = "ro" in self._host.mount_flags(target)
            if group is not None and not read_only:
                self._executor.run("stage-group", (SetGroup(path=target, group=group),))
            wanted = Publication(volume=volume, capability=capability, read_only=read_only)
            self._published.setdefault(volume, {})[target] = wanted

    def unpublish_ephemeral(self, pool: Pool, volume: VolumeId, target: str, patience_s: float) -> None:
        """Unmount an ephemeral volume and remove its target.

        Raises:
            FailedPrecondition: something else is mounted at the target.
        """
        with self._locks.hold(volume, patience_s), self._alone_at(patience_s, target):
            self._unpublish(pool, volume, target)
            devices = self._observer.stack(pool.layout, volume)
            if self._observer.mount_points(pool.layout, volume, devices):
                return  # somebody bound it elsewhere, which keeps it from being removed
            self._executor.run("unstage", staging.let_go(devices))
            self._staged.forget(volume)

    def _run_mounting(self, record: VolumeRecord, operations: tuple[Operation, ...], options: MountOptions) -> None:
        """Mount options that the kernel refuses are the request's fault; a filesystem that it refuses is nobody's."""
        try:
            self._executor.run("stage", operations)
        except SyscallFailed as error:
            if not str(error).startswith("mount ") or error.errno not in _NOT_MOUNTABLE:
                raise
            if error.errno == errno.EINVAL and (options.data or options.flags):
                raise InvalidArgument(f"the kernel refuses these mount options: {error}") from error
            made = f" as {' '.join(record.mkfs_options)} made it" if record.mkfs_options else ""
            raise FailedPrecondition(
                f"volume {record.id}: the kernel does not mount its {record.filesystem}{made}, and its log (dmesg) says"
                f" why; the data is left as it is: {error}"
            ) from error

    def unstage(self, shown: str, path: str, patience_s: float) -> None:
        """Take a volume from this node; no error where it is not there, or does not exist.

        Raises:
            FailedPrecondition: it is still published.
        """
        path = self.plain(path)
        place = self._locate(shown, path)
        if place is None:
            return
        pool, volume = place
        with self._locks.hold(volume, patience_s), self._alone_at(patience_s, path):
            _, ours = self._observer.look(pool.layout, volume, path)
            devices = self._observer.stack(pool.layout, volume)
            points = self._observer.mount_points(pool.layout, volume, devices)
            others = tuple(point for point in points if point != path)
            nodes = {point for device in devices.top for point in self._observer.nodes_of(device)}
            published = tuple(point for point in others if point in {*nodes, *self._published.get(volume, {})})
            covered = path in points and not ours
            operations = staging.unstage(
                path, ours=ours, covered=covered, devices=devices, others=others, published=published
            )
            self._executor.run("unstage", operations)
            if others:
                self._staged.leave(volume, path)
            else:
                self._staged.forget(volume)

    def _locate(self, shown: str, path: str) -> tuple[Pool, VolumeId] | None:
        """Where a volume is that is to leave *path*; None where there is none, and so nothing to do.

        Raises:
            Unavailable: something is mounted there, and a pool is missing that may have the volume.
        """
        try:
            pool, volume = self._pools.find(shown, ephemeral=True)
        except NotFound:
            return None
        except Unavailable:
            there = self._observer.mounted_at(path)
            ids = (VolumeId(shown), ephemeral_id(shown))
            lost = [volume for volume in ids if there is not None and self._observer.is_lost(volume, there)]
            if there is not None and not lost:
                raise
            for volume in lost:
                self._leave_lost(volume, path)
            return None
        return None if is_ephemeral(volume) else (pool, volume)  # that is left by nobody but its pod

    def _leave_lost(self, volume: VolumeId, path: str) -> None:
        """Let pods go whose disk is gone: their mounts would also keep it from coming back."""
        _log.warning("volume %s is taken from %s; its pool cannot be read", volume, path)
        self._executor.run("leave", (Unmount(path=path),))
        at = self._host.stat(path)  # not before: a disk that fails does not even say what is mounted
        if at is not None and at.kind is FileKind.DIRECTORY:  # a device's node may be elsewhere too, in use or not
            self._layers.close_lost(volume)
        published = path in self._published.get(volume, {}) or is_ephemeral(volume)
        self._forget(volume, path)
        if published:
            self._remove_target(path)

    # --- publishing

    def publish(
        self,
        shown: str,
        paths: tuple[str, str],
        capability: Capability,
        patience_s: float,
        given: GivenKeys = NONE_GIVEN,
        *,
        read_only: bool,
    ) -> None:
        """Make a staged volume appear at a target; *paths* are staging and target.

        A volume that should be staged and is not (after a reboot, say) is staged again, with the keys that came.

        Raises:
            Unauthenticated: that needs a key, which is missing or wrong.
            NotFound: there is no such volume.
            InvalidArgument, AlreadyExists, FailedPrecondition: see ``plan.publishing.publish``.
        """
        pool, volume = self._pools.find(shown)
        staged, target = paths = (self.plain(paths[0]), self.plain(paths[1]))
        if staged == target:
            raise InvalidArgument("the target path and the staging path are the same")
        self._check_no_target(volume, staged)
        with self._locks.hold(volume, patience_s), self._alone_at(patience_s, *paths):
            record = pool.store.load(volume)
            check_usable(record, capability)
            self._check_apart(*paths)
            wanted = Publication(volume=record.id, capability=capability, read_only=read_only)
            operations = self._plan(pool, record, wanted, paths)  # what is refused leaves nothing staged
            if self._ensure_staged(pool, record, staged, capability, given):
                operations = self._plan(pool, record, wanted, paths)
            self._executor.run("publish", operations)
            self._published.setdefault(volume, {})[target] = wanted

    def _plan(
        self, pool: Pool, record: VolumeRecord, wanted: Publication, paths: tuple[str, str]
    ) -> tuple[Operation, ...]:
        seen = self._glance.at_target(pool, record, paths, wanted, self._published.get(record.id, {}))
        return publishing.publish(record, wanted, _options(record, wanted.capability), paths, pool.layout, seen)

    def _ensure_staged(
        self, pool: Pool, record: VolumeRecord, path: str, capability: Capability, given: GivenKeys
    ) -> bool:
        """Stage again what should be staged; whether that was needed."""
        if record.block:
            devices = self._observer.stack(pool.layout, record.id)
            opened = any(device.live for device in devices.opened)
            staged = bool(devices.writable) if record.encryption is None else opened
        else:
            staged = self._observer.is_mounted_at(pool.layout, record.id, path)
        if staged:
            return False
        begun = record.encryption is None or record.encryption.state is FormatState.FORMATTED
        begun = begun and record.format in (FormatState.NONE, FormatState.FORMATTED)
        if not begun or self._host.stat(path) is None:
            raise FailedPrecondition(f"volume {record.id} is not staged at {path}: call NodeStageVolume first")
        _log.warning("volume %s should be staged at %s and is not: staging it again", record.id, path)
        self._stage(pool, record, path, capability, given)
        return True

    def unpublish(self, shown: str, target: str, patience_s: float) -> None:
        """Take a volume from a target and remove the target; no error where it is not there, or does not exist.

        Raises:
            FailedPrecondition: something else is mounted at the target.
        """
        target = self.plain(target)
        place = self._locate(shown, target)
        if place is None:
            return
        pool, volume = place
        with self._locks.hold(volume, patience_s), self._alone_at(patience_s, target):
            self._unpublish(pool, volume, target)
            self._detach_read_only(pool, volume)

    def _unpublish(self, pool: Pool, volume: VolumeId, target: str) -> None:
        at, ours = self._observer.look(pool.layout, volume, target)
        if at is not None and not ours:  # a device that was detached: the node that a pod was given says no more whose
            given = at.mount_root and at.kind is FileKind.BLOCK and target in self._published.get(volume, {})
            ours = given or self._observer.is_dead_loop(at)
        if not ours and target in self._observer.mount_points(
            pool.layout, volume, self._observer.stack(pool.layout, volume)
        ):
            raise FailedPrecondition(f"volume {volume} is mounted on {target}, and something else over that")
        if at is None:
            self._forget(volume, target)
            return
        if at.mount_root and not ours:
            raise FailedPrecondition(f"something other than volume {volume} is mounted on {target}; it is left alone")
        self._executor.run("unpublish", (Unmount(path=target),) if ours else ())
        self._forget(volume, target)
        if ours and self._observer.is_mounted_at(pool.layout, volume, target):
            raise FailedPrecondition(f"volume {volume} is mounted on {target} more than once; try again")
        self._remove_target(target)

    def _forget(self, volume: VolumeId, target: str) -> None:
        publications = self._published.get(volume, {})
        publications.pop(target, None)
        if not publications:
            self._published.pop(volume, None)

    def _remove_target(self, target: str) -> None:
        at = self._host.stat(target)
        if at is None or at.kind not in (FileKind.DIRECTORY, FileKind.FILE) or (at.kind is FileKind.FILE and at.size):
            return
        try:
            self._executor.run("unpublish-target", (RemoveTarget(path=target),))
        except SyscallFailed as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):  # somebody has put something there
                raise
            _log.warning("the target is left: %s", error)

    def _detach_read_only(self, pool: Pool, volume: VolumeId) -> None:
        """A read-only device is made for a publication, and goes with the last of them."""
        devices = self._observer.stack(pool.layout, volume)
        extra = [loop for loop in (*devices.loops, *devices.readers) if loop.read_only and not loop.autoclear]
        unused = tuple(Detach(loop=loop) for loop in extra if not any(self._observer.nodes_of(loop)))
        if unused:
            self._executor.run("unpublish-detach", unused)

    # --- how full, how well

    def stats(self, shown: str, path: str) -> tuple[Usage, VolumeRecord, str]:
        """How full a volume is at *path*, and what is wrong with it ("" for nothing).

        Raises:
            NotFound: there is no such volume, or it is not at *path*.
        """
        pool, volume = self._pools.find(shown, ephemeral=True)
        record = pool.store.load(volume)
        if not self._observer.is_mounted_at(pool.layout, record.id, path):
            raise NotFound(f"volume {shown} is not at {path}")
        usage, problem = usage_at(self._host, pool, record, path)
        return usage, record, problem or self._mount_problem(record, path)

    def _mount_problem(self, record: VolumeRecord, path: str) -> str:
        known = self._published.get(record.id, {}).get(path)
        if not record.block and known is not None and known.writable and "ro" in self._host.mount_flags(path):
            return "the filesystem has become read-only, which it does after errors; look at the kernel's log"
        return ""


def _options(record: VolumeRecord, capability: Capability) -> MountOptions:
    if not isinstance(capability.access, MountAccess):
        return MountOptions()
    return mount_options(capability.access, record.filesystem, record.allocation)
