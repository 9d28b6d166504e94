"""Sizes: what is delivered lies in what was asked for, and what is promised is there."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_local.model.errors import InvalidArgument, OutOfRange
from csi_local.model.observed import Room
from csi_local.model.pool import PoolKind, PoolSpec, Share
from csi_local.model.quantity import GIB, MIB, Bytes
from csi_local.model.volume import Allocation, BackendKind, CapacityRange, Filesystem, VolumeId, VolumeRecord
from csi_local.plan import sizes
from csi_local.plan.sizes import DEFAULT_SIZE, GRANULE, LARGEST, Promises, deliverable, grown, rooms, smallest, weight

AMOUNTS = st.integers(min_value=0, max_value=1 << 45)
LEAST = st.sampled_from([Bytes(MIB), Bytes(16 * MIB), Bytes(300 * MIB)])
RECORD = VolumeRecord(id=VolumeId("v"), name="v", size=Bytes(64 * MIB), backend=BackendKind.LOOPFILE)


@given(st.builds(CapacityRange, required=AMOUNTS, limit=AMOUNTS), LEAST)
def test_deliverable(asked: CapacityRange, least: Bytes) -> None:
    try:
        size = deliverable(asked, least)
    except OutOfRange:
        possible = max(-(-asked.required // GRANULE) * GRANULE, least)
        assert 0 < asked.limit < max(possible, asked.required)
        return
    assert size % GRANULE == 0
    assert size >= max(asked.required, least)
    assert size <= (asked.limit or size)
    if asked.required >= least:
        assert size - asked.required < GRANULE


@pytest.mark.parametrize(
    ("required", "limit", "size"),
    [
        (0, 0, DEFAULT_SIZE),
        (1, 0, 16 * MIB),
        (GIB + 1, 0, GIB + GRANULE),
        (0, 20 * MIB, 20 * MIB),
        (0, 20 * MIB + 5, 20 * MIB),
        (GIB, GIB, GIB),
        (0, 2 * GIB, GIB),
    ],
)
def test_sizes_that_are(required: int, limit: int, size: int) -> None:
    assert deliverable(CapacityRange(required=required, limit=limit), Bytes(16 * MIB)) == size


@pytest.mark.parametrize(("required", "limit"), [(2, 1), (GIB + 1, GIB + 2), (0, MIB), (1, 15 * MIB)])
def test_sizes_that_cannot_be(required: int, limit: int) -> None:
    with pytest.raises(OutOfRange):
        deliverable(CapacityRange(required=required, limit=limit), Bytes(16 * MIB))


@pytest.mark.parametrize("required", [LARGEST + 1, 2**63 - 1, 10**30])
@pytest.mark.parametrize("limit", [0, 10**30])
def test_no_disk_has_that_much(required: int, limit: int) -> None:
    asked = CapacityRange(required=required, limit=limit)
    with pytest.raises(OutOfRange, match="1024Pi"):
        deliverable(asked, Bytes(0))
    with pytest.raises(OutOfRange, match="1024Pi"):
        grown(RECORD, asked)


@pytest.mark.parametrize(("required", "limit"), [(-1, 0), (0, -1), (GIB, -1), (-1, GIB)])
def test_negative(required: int, limit: int) -> None:
    asked = CapacityRange(required=required, limit=limit)
    with pytest.raises(InvalidArgument):
        deliverable(asked, Bytes(0))
    with pytest.raises(InvalidArgument):
        grown(RECORD, asked)


@given(st.integers(min_value=1, max_value=1 << 30), AMOUNTS, AMOUNTS)
def test_grown(blocks: int, required: int, limit: int) -> None:
    record = dataclasses.replace(RECORD, size=Bytes(blocks * GRANULE))
    asked = CapacityRange(required=required, limit=limit)
    try:
        size = grown(record, asked)
    except InvalidArgument:
        assert (required, limit) == (0, 0)
        return
    except OutOfRange:
        assert 0 < limit < max(record.size, -(-required // GRANULE) * GRANULE)
        return
    assert size >= max(record.size, required)
    assert size <= (limit or size)
    assert size == record.size or size - required < GRANULE
    assert grown(dataclasses.replace(record, size=size), asked) == size


def test_smallest() -> None:
    for filesystem in Filesystem:
        assert smallest(BackendKind.LOOPFILE, filesystem) >= 16 * MIB
        assert smallest(BackendKind.DIRECTORY, filesystem) == MIB
    assert smallest(BackendKind.LOOPFILE, None) == MIB
    assert smallest(BackendKind.LOOPFILE, Filesystem.BTRFS) >= 256 * MIB, "the kernel resizes no btrfs to less"


def room_of(total: int, available: int) -> Room:
    """Return what statvfs says of a filesystem."""
    return Room(
        total=Bytes(total),
        free=Bytes(available),
        available=Bytes(available),
        inodes=0,
        free_inodes=0,
        read_only=False,
    )


SPECS = st.builds(
    PoolSpec,
    name=st.just("pool"),
    kind=st.sampled_from(PoolKind),
    target=st.just("/x"),
    reserve=st.one_of(
        st.builds(Share, amount=AMOUNTS.map(Bytes)),
        st.builds(Share, percent=st.floats(min_value=0, max_value=99)),
    ),
    overcommit=st.floats(min_value=1, max_value=1000),
)
PROMISES = st.builds(Promises, reserved=AMOUNTS, pending=AMOUNTS, directories=AMOUNTS, written=AMOUNTS, thin=AMOUNTS)


@given(SPECS, AMOUNTS, AMOUNTS, PROMISES)
def test_rooms(spec: PoolSpec, total: int, free: int, promised: Promises) -> None:
    thick, thin = rooms(spec, room_of(total, min(total, free)), promised)
    assert thick % GRANULE == thin % GRANULE == 0
    assert 0 <= thick <= min(total, free)
    assert thick - GRANULE <= thin <= thick * spec.overcommit
    if thick:
        assert thick + promised.reserved + promised.directories + spec.reserve.of(total) <= total
        assert thick + spec.reserve.of(total) + promised.pending <= free


@given(SPECS, AMOUNTS, AMOUNTS, PROMISES, st.sampled_from(["reserved", "pending", "directories", "thin"]), AMOUNTS)
def test_more_promised_is_never_more_room(
    spec: PoolSpec, total: int, free: int, promised: Promises, what: str, more: int
) -> None:
    seen = room_of(total, min(total, free))
    after = dataclasses.replace(promised, **{what: getattr(promised, what) + more})
    assert all(a <= b for a, b in zip(rooms(spec, seen, after), rooms(spec, seen, promised), strict=True))


@given(SPECS, st.lists(st.integers(min_value=1, max_value=64), max_size=40))
def test_thick_volumes_never_exceed_the_pool(spec: PoolSpec, gibs: list[int]) -> None:
    """Each is let in only where there is room, and takes it: the reserve is never touched."""
    total = 100 * GIB
    taken = Promises()
    for gib in gibs:
        size = gib * GIB
        if size <= rooms(spec, room_of(total, total - taken.reserved), taken)[0]:
            taken = Promises(reserved=taken.reserved + size)
    assert taken.reserved == 0 or taken.reserved + spec.reserve.of(total) <= total


@pytest.mark.parametrize(
    ("backend", "allocation", "expected"),
    [
        (BackendKind.LOOPFILE, Allocation.THICK, Promises(reserved=64 * MIB)),
        (BackendKind.LOOPFILE, Allocation.THIN, Promises(thin=64 * MIB)),
        (BackendKind.DIRECTORY, Allocation.THICK, Promises(directories=64 * MIB)),
        (BackendKind.DIRECTORY, Allocation.THIN, Promises(directories=64 * MIB)),
    ],
)
def test_weight(backend: BackendKind, allocation: Allocation, expected: Promises) -> None:
    found = weight(dataclasses.replace(RECORD, backend=backend, allocation=allocation))
    assert found == expected
    assert found.total == sizes.weight(RECORD).total
