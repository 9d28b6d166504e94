"""Opening: an encrypted volume's image becomes a device with its content, and closing it again.

Format once, here too: a header is made only for a record that says ``unformatted`` or ``formatting``, after the intent
with its UUID was written. On a formatted volume a header that is missing or another's is an error, data untouched.
"""

import dataclasses
from dataclasses import dataclass

from csi_local.backends import loopfile, luks
from csi_local.model.errors import Busy, FailedPrecondition
from csi_local.model.observed import FileInfo, LoopDevice, MappedDevice, Signature
from csi_local.model.operations import (
    CloseEncrypted,
    FormatEncrypted,
    OpenEncrypted,
    Operation,
    SyncDirectory,
    WriteRecord,
)
from csi_local.model.volume import Encryption, FormatState, VolumeRecord
from csi_local.plan.staging import check_bytes, reserve_again
from csi_local.store.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeen:
    """What was observed before opening.

    Attributes:
        bytes_there: the image.
        loops: devices attached to it.
        over: what is open over the writable one of them.
        named: what is open under the volume's name, over whatever it is.
        signature: what is on the image; None where nothing is.
    """

    bytes_there: FileInfo | None = None
    loops: tuple[LoopDevice, ...] = ()
    over: tuple[MappedDevice, ...] = ()
    named: MappedDevice | None = None
    signature: Signature | None = None


def opened(record: VolumeRecord, encryption: Encryption, seen: LayerSeen) -> MappedDevice | None:
    """The volume's device, where it is open already.

    Raises:
        FailedPrecondition: somebody else has opened the volume, or something else has its name.
    """
    name = luks.mapper_name(record.id)
    for device in seen.over:
        if not luks.is_opened_as(record.id, encryption, device):
            raise FailedPrecondition(
                f"volume {record.id} is open as {device.name} ({device.path}), which this driver did not do; close it"
                " first: two writers would destroy its content"
            )
    if seen.named is not None and seen.named not in seen.over:
        if not luks.is_opened_as(record.id, encryption, seen.named):
            raise FailedPrecondition(
                f"{seen.named.path} has the name {name} and is not volume {record.id}; close it first"
            )
        return None
    return seen.over[0] if seen.over else None


def open_layer(
    record: VolumeRecord, encryption: Encryption, layout: Layout, seen: LayerSeen, new_uuid: str
) -> tuple[Operation, ...]:
    """Open a volume, which is not open; the key comes beside the plan.

    Raises:
        FailedPrecondition: the image is not what it should be, or the volume is open in another way.
        Busy: a program that an earlier driver started is still making the header.
    """
    check_bytes(record, layout, seen.bytes_there)
    opened(record, encryption, seen)
    # Left over a loop device that is not the image's any more, its pool having come back: nobody uses what is closed.
    stale = (CloseEncrypted(opened=seen.named),) if seen.named is not None else ()
    attach = loopfile.attach(record, layout.image(record.id), seen.loops)
    before = (*stale, *reserve_again(record, layout, seen.bytes_there))
    name = luks.mapper_name(record.id)
    if encryption.state is FormatState.FORMATTED:
        _check_header(record, encryption, seen)
        synced = SyncDirectory(
            path=layout.volume(record.id)
        )  # as with filesystems: a power cut must not undo the record
        return (*before, synced, attach, OpenEncrypted(name=name, encryption=encryption))
    intent, made, done = _format(record, encryption, layout, seen, new_uuid)
    return (*before, *intent, attach, made, done, OpenEncrypted(name=name, encryption=made.encryption))


def _check_header(record: VolumeRecord, encryption: Encryption, seen: LayerSeen) -> None:
    found = seen.signature
    if found is None or (found.type, found.uuid) != (luks.SIGNATURE, encryption.uuid):
        there = f"{found.type} (UUID {found.uuid or 'none'})" if found else "nothing"
        raise FailedPrecondition(
            f"volume {record.id} was encrypted (LUKS header {encryption.uuid}), but {there} is found on it now; it is"
            " left as it is"
        )


def _format(
    record: VolumeRecord, encryption: Encryption, layout: Layout, seen: LayerSeen, new_uuid: str
) -> tuple[tuple[Operation, ...], FormatEncrypted, WriteRecord]:
    """The intent, the header, and the record that it is made."""
    interrupted = encryption.state is FormatState.FORMATTING
    writable = [loop for loop in seen.loops if not loop.read_only]
    if interrupted and writable:  # cryptsetup outlives the driver that started it
        raise Busy(f"volume {record.id}: {writable[0].path} is still being formatted, it seems; try again")
    uuid = encryption.uuid if interrupted else new_uuid
    if seen.signature is not None and not (interrupted and seen.signature.uuid == uuid):
        raise FailedPrecondition(
            f"volume {record.id} was never formatted, but {layout.image(record.id)} holds {seen.signature.type}"
            f" (UUID {seen.signature.uuid or 'none'}); it is left as it is"
        )
    path = layout.record(record.id)
    begun = dataclasses.replace(encryption, state=FormatState.FORMATTING, uuid=uuid)
    ended = dataclasses.replace(begun, state=FormatState.FORMATTED)
    intent = WriteRecord(path=path, record=dataclasses.replace(record, encryption=begun))
    done = WriteRecord(path=path, record=dataclasses.replace(record, encryption=ended))
    return () if interrupted else (intent,), FormatEncrypted(encryption=ended), done
