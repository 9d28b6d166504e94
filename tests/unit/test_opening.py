"""Opening: over every state that can be observed, a header is made once; and a key is shown nowhere."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from csi_local.model.errors import Busy, DriverError, FailedPrecondition
from csi_local.model.observed import FileInfo, FileKind, LoopDevice, MappedDevice, Signature
from csi_local.model.operations import CloseEncrypted, FormatEncrypted, KeepHeader, OpenEncrypted, WriteRecord
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.secret import Secret
from csi_local.model.volume import (
    HEADER,
    BackendKind,
    Encryption,
    FormatState,
    VolumeId,
    VolumeRecord,
)
from csi_local.plan.opening import LayerSeen, open_layer, opened
from csi_local.store.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64 * MIB


class TestSecret:
    def test_it_is_shown_nowhere(self) -> None:
        secret = Secret(b"hunter2")
        shown = (repr(secret), str(secret), f"{secret}", f"{secret:>20}", "%s %r" % (secret, secret), repr([secret]))  # noqa: UP031
        assert not [text for text in shown if "hunter2" in text]
        with pytest.raises(TypeError):
            pickle.dumps(secret)

    def test_it_is_gone_afterwards(self) -> None:
        with Secret(b"hunter2") as secret:
            data = secret._data
            assert secret.reveal() == b"hunter2"
        assert (bytes(data), secret.reveal(), len(secret)) == (b"", b"", 0)


# --- the plan

IMAGE = FileInfo(
    kind=FileKind.FILE, size=SIZE + HEADER, allocated=SIZE + HEADER, device=1, inode=2, special=0, mount_root=False,
    gid=0, mode=0o600,
)  # fmt: skip
OLD, NEW, OTHER = "aaaa-old", "bbbb-new", "cccc-other"
LOOP = LoopDevice(path="/dev/loop1", device=1793, backing=(1, 2), read_only=False, autoclear=True)
OPEN = MappedDevice(
    path="/dev/dm-0", device=64768, read_only=False, name="csi-local-v", uuid="CRYPT-LUKS2-aaaaold-csi-local-v",
    below=(1793,),
)  # fmt: skip
BY_HAND = replace(OPEN, name="by-hand", uuid="CRYPT-LUKS2-aaaaold-by-hand")
ANOTHERS = replace(OPEN, uuid="CRYPT-LUKS2-ccccother-csi-local-v", below=(1794,))
STALE = replace(OPEN, below=())


def volume(state: FormatState) -> tuple[VolumeRecord, Encryption]:
    """Return a record, and how it is encrypted."""
    how = Encryption(state=state, uuid="" if state is FormatState.UNFORMATTED else OLD)
    record = VolumeRecord(id=VolumeId("v"), name="v", size=Bytes(SIZE), backend=BackendKind.LOOPFILE, encryption=how)
    return record, how


def everything_seen() -> Iterator[LayerSeen]:
    """Yield every combination of what can be observed."""
    signatures = [None, *(Signature(type=t, uuid=u) for t in ("crypto_LUKS", "ext4") for u in (OLD, NEW, OTHER, ""))]
    overs = ((), (OPEN,), (BY_HAND,), (OPEN, BY_HAND))
    names = (None, OPEN, ANOTHERS, STALE)
    images = (None, IMAGE, replace(IMAGE, size=SIZE), replace(IMAGE, kind=FileKind.DIRECTORY))
    for there, loops, over, named, signature in itertools.product(images, ((), (LOOP,)), overs, names, signatures):
        yield LayerSeen(bytes_there=there, loops=loops, over=over, named=named, signature=signature)


@pytest.mark.parametrize("state", [FormatState.UNFORMATTED, FormatState.FORMATTING, FormatState.FORMATTED])
def test_a_header_is_made_once(state: FormatState) -> None:
    record, how = volume(state)
    planned = 0
    for seen in everything_seen():
        try:
            operations = open_layer(record, how, Layout("/pool"), seen, NEW)
        except DriverError:
            continue
        planned += 1
        formats = [one for one in operations if isinstance(one, FormatEncrypted)]
        assert bool(formats) == (state is not FormatState.FORMATTED)
        assert seen.bytes_there == IMAGE
        assert seen.named in (None, OPEN, STALE)
        if not formats:
            assert seen.signature == Signature(type="crypto_LUKS", uuid=OLD)
            continue
        written = [one.record.encryption for one in operations if isinstance(one, WriteRecord)]
        uuid = NEW if state is FormatState.UNFORMATTED else OLD
        assert [(one.state, one.uuid) for one in written if one][-1] == (FormatState.FORMATTED, uuid)
        if state is FormatState.UNFORMATTED:
            assert [one.state for one in written if one] == [FormatState.FORMATTING, FormatState.FORMATTED]
            assert isinstance(operations[0] if not seen.named else operations[1], WriteRecord)
        assert seen.signature is None or (state is FormatState.FORMATTING and seen.signature.uuid == OLD)
        assert [type(one) for one in operations[-2:]] == [OpenEncrypted, KeepHeader]
    assert planned


def test_whose_device_it_is() -> None:
    record, how = volume(FormatState.FORMATTED)
    assert opened(record, how, LayerSeen()) is None
    assert opened(record, how, LayerSeen(over=(OPEN,), named=OPEN)) == OPEN
    assert opened(record, how, LayerSeen(named=STALE)) is None
    with pytest.raises(FailedPrecondition, match="is open as by-hand"):
        opened(record, how, LayerSeen(over=(BY_HAND,)))
    with pytest.raises(FailedPrecondition, match="has the name csi-local-v"):
        opened(record, how, LayerSeen(named=ANOTHERS))


def test_a_stale_one_is_closed_first() -> None:
    record, how = volume(FormatState.FORMATTED)
    header = Signature(type="crypto_LUKS", uuid=OLD)
    seen = LayerSeen(bytes_there=IMAGE, named=STALE, signature=header)
    assert open_layer(record, how, Layout("/pool"), seen, NEW)[0] == CloseEncrypted(opened=STALE)


def test_cryptsetup_of_a_dead_driver_is_waited_for() -> None:
    record, how = volume(FormatState.FORMATTING)
    with pytest.raises(Busy, match="still being formatted"):
        open_layer(record, how, Layout("/pool"), LayerSeen(bytes_there=IMAGE, loops=(LOOP,)), NEW)
