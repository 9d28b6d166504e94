"""Giving an encrypted volume another key, while it is used or not; at every instant a key opens it."""

from csi_local.engine.execute import Executor
from csi_local.engine.pools import Pools
from csi_local.host.api import Host
from csi_local.model.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from csi_local.model.operations import AddKey, EraseHeader, KeepHeader, Operation, ProveKey, RemoveKey
from csi_local.model.secret import Secret
from csi_local.model.volume import Encryption, FormatState, VolumeRecord
from csi_local.store.layout import Layout


class Rotator:
    """The use case of a new key.

    Nobody waits for it: neither a driver that runs, nor pods. cryptsetup itself lets one at a time change a header.
    """

    def __init__(self, host: Host, pools: Pools, executor: Executor) -> None:
        self._host = host
        self._pools = pools
        self._executor = executor

    def rotate(self, shown: str, old: Secret, new: Secret) -> VolumeRecord:
        """Let *new* open a volume, and *old* no more; done again, it ends what was cut short.

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
        encryption = record.encryption
        if encryption is None or encryption.state is not FormatState.FORMATTED:
            why = "is not encrypted" if encryption is None else "was never staged: its first staging gives it a key"
            raise FailedPrecondition(f"volume {shown} {why}")
        image = pool.layout.image(volume)
        with self._host.lock(pool.layout.volume(volume)):
            if not any(self._host.opens(image, key) for key in (old, new)):
                raise Unauthenticated(f"volume {shown}: neither of the two is its key; nothing has been changed")
            copied = self._host.stat(pool.layout.header_copy(volume)) is not None
            operations = _plan(record, encryption, pool.layout, copied=copied)
            self._executor.run("rotate", operations, key=old, new_key=new)
        return record


def _plan(record: VolumeRecord, encryption: Encryption, layout: Layout, *, copied: bool) -> tuple[Operation, ...]:
    """The copy of the header has the old key slot until the end; that is overwritten before there is another."""
    image, copy = layout.image(record.id), layout.header_copy(record.id)
    return (
        AddKey(path=image, encryption=encryption),
        ProveKey(path=image),
        RemoveKey(path=image),
        *((EraseHeader(path=copy),) if copied else ()),
        KeepHeader(path=copy, source=image),
    )
