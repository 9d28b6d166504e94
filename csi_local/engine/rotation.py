"""Giving an encrypted volume another key, while it is used or not; at every instant a key opens it."""

import logging
from contextlib import suppress

from csi_local.engine.copies import Copies
from csi_local.engine.execute import Executor
from csi_local.engine.keys import Action, GivenKeys, Keys
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.host.api import Host
from csi_local.model.errors import Busy, CommandFailed, FailedPrecondition, InvalidArgument, Unauthenticated
from csi_local.model.operations import AddKey, KeepHeader, Operation, ProveKey, RemoveKey, RemoveTree
from csi_local.model.secret import Secret
from csi_local.model.volume import Encryption, FormatState, VolumeRecord
from csi_local.store.layout import Layout

_log = logging.getLogger(__name__)


class Rotator:
    """The use cases of a new key. cryptsetup itself lets one at a time change a header."""

    def __init__(
        self, host: Host, pools: Pools, executor: Executor, locks: KeyedLocks, keys: Keys, copies: Copies
    ) -> None:
        self._copies = copies
        self._host = host
        self._pools = pools
        self._executor = executor
        self._locks = locks
        self._keys = keys

    def rotate(self, shown: str, old: Secret, new: Secret) -> VolumeRecord:
        """Let *new* open a volume, and *old* no more; done again, it ends what was cut short.

        Nobody waits for it: neither a driver that runs, nor pods.

        Raises:
            InvalidArgument: the two are the same.
            NotFound: there is no such volume.
            FailedPrecondition: it is not encrypted, or was never staged, and so has no key yet.
            Unauthenticated: neither is its key.
            Busy: it is being deleted.
        """
        if old.reveal() == new.reveal():  # it would be added, proved, and removed
            raise InvalidArgument("the two keys are the same")
        pool, volume = self._pools.find(shown)
        record = pool.store.load(volume)
        encryption = _encryption(record)
        if encryption.state is not FormatState.FORMATTED:
            raise FailedPrecondition(f"volume {shown} was never staged: its first staging gives it a key")
        self._replace(pool, record, encryption, old, new)
        return record

    def settle(self, shown: str, given: GivenKeys, patience_s: float) -> None:
        """Let a volume's key open it and the one before it no more, as whoever has them says now.

        Raises:
            NotFound: there is no such volume.
            FailedPrecondition: it is not encrypted, or this node is not set up for that.
            Unauthenticated: there is no key, or neither is its.
            Unavailable: who has the keys cannot be asked now.
            Busy: somebody else is at work on it, or copies it: a header of before with key slots of afterwards would
                be opened by neither key.
        """
        pool, volume = self._pools.find(shown)
        with self._locks.hold(volume, patience_s):
            if self._copies.is_read(volume):
                raise Busy(f"volume {shown} is being copied; try again when that is done")
            record = pool.store.load(volume)
            encryption = _encryption(record)
            with self._keys.get(record, encryption, Action.ROTATE, given) as new:
                if encryption.state is not FormatState.FORMATTED:
                    return  # that is the key which its first staging will give it
                with self._keys.previous(record, encryption, given, ask=True) or Secret(b"") as old:
                    if old and old.reveal() != new.reveal():
                        self._replace(pool, record, encryption, old, new)
                    else:
                        self._check_done(pool, record, new)

    def catch_up(self, pool: Pool, record: VolumeRecord, encryption: Encryption, new: Secret, given: GivenKeys) -> None:
        """Where the key before it is at hand and opens a volume, or what is to be its header one day, let *new* do so.

        Raises:
            Busy: it is being given another key at this moment.
        """
        if encryption.state is not FormatState.FORMATTED:
            return
        with self._keys.previous(record, encryption, given, ask=False) or Secret(b"") as old:
            if old and old.reveal() != new.reveal() and self._is_stale(pool, record, old, new):
                self._replace(pool, record, encryption, old, new)

    def _is_stale(self, pool: Pool, record: VolumeRecord, old: Secret, new: Secret) -> bool:
        """Whether a rotation is due, or was cut short: the copy of the header comes last."""
        if self._host.opens(pool.layout.image(record.id), old):
            return True
        copy = pool.layout.header_copy(record.id)
        try:
            there = self._host.stat(copy) is not None
            return there and (self._host.opens(copy, old) or not self._host.opens(copy, new))
        except CommandFailed:  # it was overwritten, and not written again
            return True

    def _check_done(self, pool: Pool, record: VolumeRecord, new: Secret) -> None:
        """See that a volume has a key, and that no rotation to it was cut short: the copy of the header comes last.

        Raises:
            Unauthenticated: it needs the key before it as well.
        """
        if not self._host.opens(pool.layout.image(record.id), new):
            raise Unauthenticated(f"volume {record.id}: that is not its key, and nobody has the one before it")
        copy = pool.layout.header_copy(record.id)
        with suppress(CommandFailed):  # it was overwritten: that comes after the old key's end
            if self._host.stat(copy) is not None and not self._host.opens(copy, new):
                raise Unauthenticated(
                    f"volume {record.id}: an earlier change of its key was cut short, so that the key before it still"
                    " opens it, and nobody has that one: give both once more"
                )

    def _replace(self, pool: Pool, record: VolumeRecord, encryption: Encryption, old: Secret, new: Secret) -> None:
        image = pool.layout.image(record.id)
        with self._host.lock(pool.layout.volume(record.id)):
            if not any(self._host.opens(image, key) for key in (old, new)):
                raise Unauthenticated(f"volume {record.id}: neither of the two is its key; nothing has been changed")
            copied = self._host.stat(pool.layout.header_copy(record.id)) is not None
            operations = _plan(record, encryption, pool.layout, copied=copied)
            self._executor.run("rotate", operations, key=old, new_key=new)
        _log.info("volume %s has its new key", record.id)


def _encryption(record: VolumeRecord) -> Encryption:
    if record.encryption is None:
        raise FailedPrecondition(f"volume {record.id} is not encrypted")
    return record.encryption


def _plan(record: VolumeRecord, encryption: Encryption, layout: Layout, *, copied: bool) -> tuple[Operation, ...]:
    """The copy of the header has the old key slot until the end; that is overwritten before there is another.

    It is removed too: without room for another there is none, and the next staging tries again.
    """
    image, copy = layout.image(record.id), layout.header_copy(record.id)
    return (
        AddKey(path=image, encryption=encryption),
        ProveKey(path=image),
        RemoveKey(path=image),
        *((RemoveTree(path=copy),) if copied else ()),
        KeepHeader(path=copy, source=image),
    )
