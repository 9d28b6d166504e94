"""A record on disk is the one that was written, or it is known to be damaged; there is nothing between."""

from __future__ import annotations

import dataclasses
import json
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi_local.model.errors import DamagedRecord
from csi_local.model.quantity import GIB, Bytes
from csi_local.model.volume import (
    Allocation,
    BackendKind,
    Cipher,
    Encryption,
    Filesystem,
    FormatState,
    KeyProvider,
    QuotaMode,
    VolumeId,
    VolumeRecord,
    volume_id,
)
from csi_local.store import records
from csi_local.store.records import decode, encode

TEXTS = st.text(max_size=20)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=3)
ENCRYPTIONS = st.builds(
    Encryption,
    cipher=st.sampled_from(Cipher),
    key_bits=st.sampled_from([256, 512]),
    sector_size=st.sampled_from([512, 4096]),
    kdf_memory=st.integers(min_value=0, max_value=1 << 40).map(Bytes),
    kdf_passes=st.integers(min_value=4, max_value=100),
    discard=st.booleans(),
    provider=st.sampled_from(KeyProvider),
    key_name=TEXTS,
    state=st.sampled_from(FormatState),
    uuid=TEXTS,
)
RECORDS = st.builds(
    VolumeRecord,
    id=TEXTS.map(volume_id),
    name=TEXTS,
    size=st.integers(min_value=0, max_value=1 << 62).map(Bytes),
    backend=st.sampled_from(BackendKind),
    block=st.booleans(),
    filesystem=st.one_of(st.none(), st.sampled_from(Filesystem)),
    allocation=st.sampled_from(Allocation),
    quota=st.sampled_from(QuotaMode),
    parameters=MAPS,
    labels=MAPS,
    mkfs_options=st.lists(TEXTS, max_size=3).map(tuple),
    project=st.integers(min_value=0, max_value=1 << 32),
    sector_size=st.sampled_from([0, 512, 4096]),
    created=st.integers(min_value=0, max_value=1 << 40),
    format=st.sampled_from(FormatState),
    fs_uuid=TEXTS,
    encryption=st.none() | ENCRYPTIONS,
    source=st.sampled_from(["", "snapshot/daily", "volume/pvc-1"]),
    ephemeral=TEXTS,
    adopted=TEXTS,
    adopted_inode=st.integers(min_value=0, max_value=1 << 63),
    adopted_born=st.integers(min_value=0, max_value=1 << 63),
)
RECORD = VolumeRecord(
    id=VolumeId("pvc-1"),
    name="pvc-1",
    size=Bytes(GIB),
    backend=BackendKind.LOOPFILE,
    filesystem=Filesystem.EXT4,
    parameters={"backend": "loopfile", "naïve": "ja\u2028\t"},
    labels={"csi.storage.k8s.io/pvc/name": "data"},
    mkfs_options=("-m", "1"),
    created=1_700_000_000,
    format=FormatState.FORMATTED,
    fs_uuid="6f0ad1a4-3c5e-4f0e-8f5c-0f6a7c1d2e3b",
)
DATA = encode(RECORD)
SEALED = dataclasses.replace(RECORD, encryption=Encryption(uuid="7e8f"))


def damaged(data: bytes) -> str:
    """Demand that *data* is no record, and return what is said of it."""
    with pytest.raises(DamagedRecord) as caught:
        decode(data, RECORD.id)
    assert "left as it is" in str(caught.value)
    return str(caught.value)


@given(RECORDS)
def test_what_is_written_is_read(record: VolumeRecord) -> None:
    assert decode(encode(record), record.id) == record


def test_every_field_is_written() -> None:
    assert set(json.loads(DATA)["volume"]) == {field.name for field in dataclasses.fields(VolumeRecord)}


def test_one_from_before_there_was_encryption() -> None:
    document = json.loads(DATA) | {"layout": 2}
    del document["volume"]["encryption"]
    document["sha256"] = sha256(records._canonical(document["volume"])).hexdigest()
    assert decode(json.dumps(document).encode(), RECORD.id) == RECORD


def test_cut_short_anywhere() -> None:
    for length in range(len(DATA.rstrip())):
        damaged(DATA[:length])


def test_emptied() -> None:
    for data in (b"", b"\0" * len(DATA), b"\n", b"{}", b"null", b"[]", b"0", b'"x"'):
        damaged(data)
    assert "is empty" in damaged(b"")


def test_every_single_bit() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            changed = bytearray(DATA)
            changed[position] ^= 1 << bit
            try:
                found = decode(bytes(changed), RECORD.id)
            except DamagedRecord:
                continue
            assert found == RECORD, f"byte {position}, bit {bit}"


@given(RECORDS, st.data())
@settings(max_examples=300)
def test_any_bit_of_any_record(record: VolumeRecord, data: st.DataObject) -> None:
    changed = bytearray(encode(record))
    position = data.draw(st.integers(min_value=0, max_value=len(changed) - 1))
    changed[position] ^= 1 << data.draw(st.integers(min_value=0, max_value=7))
    try:
        found = decode(bytes(changed), record.id)
    except DamagedRecord:
        return
    assert found == record


@given(st.binary(max_size=200))
def test_anything_else(data: bytes) -> None:
    damaged(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_json(value: object) -> None:
    damaged(json.dumps(value).encode())
    damaged(json.dumps({"layout": 1, "sha256": "", "volume": value}).encode())


def resealed(**changes: object) -> bytes:
    """Return the record with other values and the checksum that goes with them."""
    document = json.loads(DATA)
    document["volume"] |= changes
    document["sha256"] = sha256(records._canonical(document["volume"])).hexdigest()
    return json.dumps(document).encode()


@pytest.mark.parametrize("layout", [records.LAYOUT + 1, 99, 0, -1, "1", None, 1.5])
def test_another_layout(layout: object) -> None:
    document = json.loads(DATA) | {"layout": layout}
    message = damaged(json.dumps(document).encode())
    if layout in (records.LAYOUT + 1, 99):
        assert "upgrade" in message


def test_another_volume() -> None:
    with pytest.raises(DamagedRecord, match="pvc-1"):
        decode(DATA, VolumeId("pvc-2"))


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "tape"},
        {"filesystem": "ntfs"},
        {"format": "maybe"},
        {"size": "1Gi"},
        {"block": "yes"},
        {"name": 5},
        {"mkfs_options": None},
        {"created": "now"},
        {"project": [1]},
        {"encryption": "luks2"},
        {"encryption": {}},
        {"encryption": json.loads(encode(SEALED))["volume"]["encryption"] | {"cipher": "rot13"}},
        {"encryption": json.loads(encode(SEALED))["volume"]["encryption"] | {"discard": "yes"}},
    ],
)
def test_well_sealed_nonsense(changes: dict[str, object]) -> None:
    damaged(resealed(**changes))


def test_a_missing_field() -> None:
    for name in json.loads(DATA)["volume"]:
        document = json.loads(DATA)
        del document["volume"][name]
        document["sha256"] = sha256(records._canonical(document["volume"])).hexdigest()
        damaged(json.dumps(document).encode())


def test_a_field_of_a_later_version_is_no_harm() -> None:
    assert decode(resealed(later="x"), RECORD.id) == RECORD


def test_there_is_a_migration_from_every_older_layout() -> None:
    assert set(records.MIGRATIONS) == set(range(1, records.LAYOUT))


def test_a_record_of_the_first_layout() -> None:
    """As it was written before there were ephemeral volumes and adopted directories."""
    document = json.loads(DATA)
    for name in ("ephemeral", "adopted", "adopted_inode", "adopted_born"):
        del document["volume"][name]
    document["layout"] = 1
    document["sha256"] = sha256(records._canonical(document["volume"])).hexdigest()
    assert decode(json.dumps(document).encode(), RECORD.id) == RECORD
