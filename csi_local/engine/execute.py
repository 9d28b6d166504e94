"""Carrying out a plan: operation after operation, a crash point before each and after the last, undone on failure."""

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from csi_local.engine.erasing import remove_erased
from csi_local.engine.stillness import Stillness
from csi_local.host.api import Host, Proceed
from csi_local.model import operations as op
from csi_local.model.errors import Busy, DriverError, FailedPrecondition, SyscallFailed
from csi_local.model.observed import Device, LoopDevice, MappedDevice
from csi_local.model.secret import Secret
from csi_local.store.records import encode

CrashPoint = Callable[[str], None]
"""Called with the name of each point a plan passes, ``plan:number:Operation``; a test may end the world there."""

_log = logging.getLogger(__name__)
_FRESH_MODE = 0o755


@contextmanager
def _not_in_a_pool(path: str) -> Iterator[None]:
    """A target is its caller's: where nothing can be written there, no pool is missing."""
    try:
        yield
    except SyscallFailed as error:
        if error.errno != errno.EROFS:
            raise
        raise FailedPrecondition(f"{path} is on a read-only filesystem: {error}") from error


def _on() -> None:
    """Let a plan go on: nobody asks for the end of short ones."""


@dataclass(slots=True)
class _Run:
    """What operations hand to later ones of the same plan."""

    held: ExitStack
    proceed: Proceed
    key: Secret | None
    new_key: Secret | None
    loop: LoopDevice | None = None
    opened: MappedDevice | None = None
    attached_here: bool = False
    done: list[op.Operation] = field(default_factory=list)

    def device(self) -> Device:
        """The device attached or opened before."""
        device = self.opened or self.loop
        if device is None:
            raise FailedPrecondition("the plan has no device attached")
        return device

    def its_new_key(self) -> Secret:
        """The key that is to take that one's place."""
        if self.new_key is None:
            raise FailedPrecondition("the plan needs a new key, and has none")
        return self.new_key

    def its_key(self) -> Secret:
        """The key that came beside the plan."""
        if self.key is None:
            raise FailedPrecondition("the plan needs a key, and has none")
        return self.key


class Executor:
    """Does what plans say, on *host*."""

    def __init__(self, host: Host, crash_point: CrashPoint) -> None:
        self._host = host
        self._crash_point = crash_point
        self.stillness = Stillness()

    def run(
        self,
        name: str,
        operations: Sequence[op.Operation],
        proceed: Proceed = _on,
        *,
        key: Secret | None = None,
        new_key: Secret | None = None,
    ) -> None:
        """Carry out all of *operations*, or undo what was done and raise what stopped it.

        *proceed* is asked before each and within long ones, and raises where the plan is to end. The *key* is for
        those that open encrypted devices, the *new_key* for those that give it up for another.
        """
        with ExitStack() as held:
            run = _Run(held, proceed, key, new_key)
            try:
                for number, operation in enumerate(operations):
                    self._crash_point(f"{name}:{number}:{type(operation).__name__}")
                    if _log.isEnabledFor(logging.DEBUG):
                        _log.debug("%s: %s", name, operation.describe())
                    proceed()
                    self._do(operation, run)
                    run.done.append(operation)
                if operations:
                    self._crash_point(f"{name}:{len(operations)}:end")
            except Exception:
                for operation in reversed(run.done):
                    self._undo(operation, run)
                raise

    def _do(self, operation: op.Operation, run: _Run) -> None:  # noqa: C901 (a table)
        host = self._host
        match operation:
            case op.MakeDirectory(path=path):
                host.make_dir(path)
            case op.MakeLink(path=path, target=target):
                host.make_link(path, target)
            case op.MakeSubvolume(path=path):
                host.make_subvolume(path)
            case op.RemoveTree(path=path):
                remove_erased(host, path)
            case op.SyncDirectory(path=path):
                host.sync_dir(path)
            case op.OpenToPods(path=path):
                host.set_mode(path, _FRESH_MODE)
            case op.LimitProject(path=path, project=project, size=size):
                host.limit_project(path, project, size)
            case op.LimitSubvolume(path=path, size=size):
                host.limit_subvolume(path, size)
            case op.CommitSubvolume(path=path):
                host.commit_subvolume(path)
            case op.MakeImage(path=path, size=size, thick=thick):
                host.make_image(path, size, thick=thick)
            case op.ResizeImage(path=path, size=size, thick=thick):
                host.resize_image(path, size, thick=thick)
            case op.WriteRecord(path=path, record=record):
                host.replace_file(path, encode(record))
            case op.MakeRecord(path=path, record=record):
                host.write_new_file(path, encode(record))
            case op.Commit(source=source, target=target):
                host.rename(source, target)
            case op.SetGroup(path=path, group=group):
                host.give_to_group(path, group)
            case _:
                self._do_copy(operation, run)

    def _do_copy(self, operation: op.Operation, run: _Run) -> None:
        host = self._host
        match operation:
            case op.SnapshotSubvolume(path=path, source=source, read_only=read_only):
                host.snapshot_subvolume(source, path, read_only=read_only)
            case op.CloneImage(path=path, source=source):
                host.clone_image(source, path)
            case op.CopyImage(path=path, source=source):
                host.copy_image(source, path, run.proceed)
            case op.CopyTree(path=path, source=source, share=share):
                host.copy_tree(source, path, share=share, proceed=run.proceed)
            case op.SyncFilesystem(path=path):
                host.sync_filesystem(path)
            case op.SyncFile(path=path):
                host.sync_file(path)
            case op.Freeze(path=path):
                self._freeze(path)
            case op.Thaw(path=path):
                if not self._thaw(path):
                    raise Busy(f"somebody else thawed {path} while it was copied; try again")
            case _:
                self._do_mount(operation, run)

    def _do_mount(self, operation: op.Operation, run: _Run) -> None:  # noqa: C901 (a table)
        host = self._host
        match operation:
            case op.Attach():
                self._attach(operation, run)
            case op.Detach(loop=loop):
                host.detach(loop)
            case op.MakeFilesystem(filesystem=filesystem, uuid=uuid, options=options):
                how = {"thick": operation.thick, "zeroed": operation.zeroed}
                host.make_filesystem(run.device().path, filesystem, uuid=uuid, label="", options=options, **how)
            case op.GrowUnmounted():
                host.grow_unmounted(run.device().path)
            case op.RefreshLoops(path=path):
                for loop in host.loops(path):
                    host.refresh(loop)
            case op.GrowMounted(path=path, filesystem=filesystem, least=least):
                device = run.device().path if run.opened or run.loop else self._device_under(path)
                if (grown := host.grow_mounted(path, filesystem, device)) < least:
                    raise FailedPrecondition(f"the filesystem at {path} has {grown} bytes after it grew, not {least}")
            case op.MountDevice(path=path, filesystem=filesystem, flags=flags, data=data):
                host.mount(run.device().path, path, filesystem, flags, data)
            case op.BindMount(path=path, source=source, flags=flags):
                host.bind(source, path, flags)
            case op.SeeMounted(path=path, inode=inode, born=born):
                found = host.stat(path)
                if found is None or (found.inode, found.born) != (inode, born):
                    raise FailedPrecondition(f"another directory than the one adopted was mounted at {path}: try again")
            case op.BindDevice(path=path):
                host.bind(run.device().path, path, frozenset())
            case op.MakeTargetDirectory(path=path):
                with _not_in_a_pool(path):
                    host.make_dir(path, mode=0o750)
            case op.MakeTargetFile(path=path):
                with _not_in_a_pool(path):
                    host.make_file(path)
            case op.Unmount(path=path):
                host.unmount(path)
            case op.RemoveTarget(path=path):
                with _not_in_a_pool(path):
                    host.remove(path)
            case _:
                self._do_crypt(operation, run)

    def _do_crypt(self, operation: op.Operation, run: _Run) -> None:
        host = self._host
        match operation:
            case op.UseDevice(device=device):
                run.opened = device
            case op.FormatEncrypted(encryption=encryption):
                host.format_encrypted(run.device().path, encryption, run.its_key())
            case op.OpenEncrypted(name=name, encryption=encryption):
                carrier = run.device().path
                run.opened = host.open_encrypted(carrier, name, run.its_key(), discard=encryption.discard)
            case op.CloseEncrypted(opened=opened):
                host.close_encrypted(opened)
            case op.EraseHeader(path=path):
                host.erase_header(path, encrypted=True)
            case op.KeepHeader(path=path, source=source):
                self._keep_header(path, source)
            case op.RestoreHeader(path=path, source=source):
                host.restore_header(source, path)
            case op.ResizeEncrypted(opened=opened, size=size):
                if (seen := host.resize_encrypted(opened, run.its_key())) < size:
                    raise FailedPrecondition(f"{opened.path} has {seen} bytes after it grew, instead of {size}")
            case _:
                self._do_keys(operation, run)

    def _do_keys(self, operation: op.Operation, run: _Run) -> None:
        host = self._host
        match operation:
            case op.AddKey(path=path, encryption=encryption):
                if not host.opens(path, run.its_new_key()):
                    host.add_key(path, encryption, run.its_key(), run.its_new_key())
            case op.ProveKey(path=path):
                if not host.opens(path, run.its_new_key()):
                    raise FailedPrecondition(f"the new key does not open {path}; the old one is kept")
            case op.RemoveKey(path=path):
                while host.opens(path, run.its_key()):
                    host.remove_key(path, run.its_key())
            case _:
                raise NotImplementedError(operation.describe())

    def _freeze(self, path: str) -> None:
        self.stillness.begin(path)
        try:
            self._host.freeze(path)
        except DriverError:
            self.stillness.end(path)
            raise

    def _thaw(self, path: str) -> bool:
        try:
            return self._host.thaw(path)
        finally:
            self.stillness.end(path)

    def _keep_header(self, path: str, source: str) -> None:
        """It is for a bad day; on a full pool a volume is used without, and the next staging tries again."""
        try:
            self._host.copy_header(source, path)
        except SyscallFailed as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _log.warning("there is no copy of the header of %s: %s", source, error)

    def _attach(self, operation: op.Attach, run: _Run) -> None:
        run.loop = run.held.enter_context(
            self._host.attach(
                operation.path,
                sector_size=operation.sector_size,
                keep=operation.keep,
                read_only=operation.read_only,
            )
        )
        run.attached_here = run.loop not in operation.present

    def _device_under(self, path: str) -> str:
        number = self._host.device_at(path)
        for device in (*self._host.all_loops(), *self._host.all_mapped()):
            if device.device == number:
                return device.path
        raise FailedPrecondition(f"no device of ours is under {path}")

    def _undo(self, operation: op.Operation, run: _Run) -> None:
        with suppress(DriverError):
            match operation:
                case op.MakeDirectory(path=path):
                    remove_erased(self._host, path)
                case op.MakeTargetDirectory(path=path) | op.MakeTargetFile(path=path):
                    self._host.remove(path)
                case op.MountDevice(path=path) | op.BindMount(path=path) | op.BindDevice(path=path):
                    self._host.unmount(path)
                case op.Freeze(path=path) if op.Thaw(path=path) not in run.done:
                    self._thaw(path)
                case op.OpenEncrypted() if run.opened is not None:
                    self._host.close_encrypted(run.opened)
                case op.Attach(keep=True) if run.loop is not None and run.attached_here:
                    run.held.close()
                    self._host.detach(run.loop)
