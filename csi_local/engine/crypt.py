"""The layer between an encrypted volume's image and its content: opened with a key, closed without."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi_local.backends import luks
from csi_local.engine.execute import Executor
from csi_local.engine.keys import Action, GivenKeys, Keys
from csi_local.engine.observe import Observer
from csi_local.engine.pool import Pool
from csi_local.engine.rotation import Rotator
from csi_local.host.api import Host
from csi_local.host.crypt import WRONG_KEY
from csi_local.model.errors import Busy, CommandFailed, FailedPrecondition, SyscallFailed, Unauthenticated
from csi_local.model.observed import FileKind, MappedDevice
from csi_local.model.operations import CloseEncrypted, Operation
from csi_local.model.secret import Secret
from csi_local.model.volume import Encryption, FormatState, VolumeId, VolumeRecord
from csi_local.plan import opening
from csi_local.plan.opening import LayerSeen
from csi_local.plan.staging import let_go

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An open volume: its record, which says that it is formatted; its device; whether it was opened just now."""

    record: VolumeRecord
    device: MappedDevice
    fresh: bool


class Layers:
    """Opens and closes encrypted volumes."""

    def __init__(self, host: Host, executor: Executor, keys: Keys, rotator: Rotator) -> None:
        self._host = host
        self._executor = executor
        self._keys = keys
        self._rotator = rotator
        self._observer = Observer(host)

    def open(self, pool: Pool, record: VolumeRecord, encryption: Encryption, given: GivenKeys) -> Opened:
        """Open a volume, unless it is open; the first time it is formatted.

        Raises:
            Unauthenticated: the key is missing, empty or wrong. Nothing was done.
            FailedPrecondition, Busy: see ``plan.opening``; or this node cannot encrypt.
        """
        self._close_cut_short(pool, record)
        seen = self._look(pool, record)
        device = opening.opened(record, encryption, seen)
        if device is not None:
            return Opened(record=record, device=device, fresh=False)
        if not pool.abilities.encryption:
            raise FailedPrecondition(f"volume {record.id} is encrypted: {pool.abilities.encryption_reason}")
        operations = opening.open_layer(record, encryption, pool.layout, seen, str(uuid.uuid4()))
        with self.key(pool, record, encryption, Action.OPEN, given) as key:
            self.run("open", record, operations, key)
        (device,) = self._observer.stack(pool.layout, record.id).opened
        return Opened(record=pool.store.load(record.id), device=device, fresh=True)

    def run(self, name: str, record: VolumeRecord, operations: tuple[Operation, ...], key: Secret) -> None:
        """Carry out a plan that takes a key.

        Raises:
            Unauthenticated: it is not the volume's.
        """
        try:
            self._executor.run(name, operations, key=key)
        except CommandFailed as error:
            if error.status != WRONG_KEY:
                raise
            raise Unauthenticated(f"volume {record.id}: that is not its key; nothing has been changed") from None

    @contextmanager
    def key(
        self, pool: Pool, record: VolumeRecord, encryption: Encryption, action: Action, given: GivenKeys
    ) -> Iterator[Secret]:
        """A volume's key, for a while; the key before it, where that is at hand, opens the volume no more.

        Raises:
            Unauthenticated, FailedPrecondition, Unavailable: see :meth:`Keys.get`.
            Busy: see :meth:`Rotator.catch_up`.
        """
        with self._keys.get(record, encryption, action, given) as key:
            self._rotator.catch_up(pool, record, encryption, key, given)
            yield key

    def _close_cut_short(self, pool: Pool, record: VolumeRecord) -> None:
        """Where mkfs was cut short, closing the device shows whether it is still at work; or its opening was."""
        opened = self._observer.stack(pool.layout, record.id).opened
        unfinished = [one for one in opened if record.format is FormatState.FORMATTING or not one.live]
        try:
            self._executor.run("open-anew", tuple(CloseEncrypted(opened=one) for one in unfinished))
        except SyscallFailed as error:
            raise Busy(f"volume {record.id}: it is still being formatted, it seems; try again: {error}") from error

    def _look(self, pool: Pool, record: VolumeRecord) -> LayerSeen:
        image = pool.layout.image(record.id)
        there = self._host.stat(image)
        loops = self._observer.loops(pool.layout, record.id)
        over = tuple(one for loop in loops for one in self._host.mapped_over(loop.device))
        name = luks.mapper_name(record.id)
        named = next((one for one in self._host.all_mapped() if one.name == name), None)
        whole = there is not None and there.kind is FileKind.FILE
        try:
            signature = self._host.probe(image) if whole and not over else None
        except CommandFailed as error:
            raise FailedPrecondition(
                f"volume {record.id}: what is on it cannot be told, and so it is left as it is: {error}"
            ) from error
        copied = self._host.stat(pool.layout.header_copy(record.id)) is not None
        return LayerSeen(bytes_there=there, loops=loops, over=over, named=named, signature=signature, copied=copied)

    def close_lost(self, volume: VolumeId) -> None:
        """Close a volume whose pool cannot be asked, unless somebody uses it: what is open keeps the pool's disk."""
        for device in self._host.all_mapped():
            if device.name == luks.mapper_name(volume):
                try:
                    self._executor.run("leave-close", (CloseEncrypted(opened=device),))
                except SyscallFailed as error:
                    _log.warning("volume %s stays open: %s", volume, error)

    def close(self, pool: Pool, record: VolumeRecord) -> None:
        """Close a volume that nobody uses."""
        self._executor.run("close", let_go(self._observer.stack(pool.layout, record.id)))
