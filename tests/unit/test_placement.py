"""Placement: what is chosen fits, always the same, and every pool hears why."""

from __future__ import annotations

import dataclasses
from random import Random  # noqa: TC003 (hypothesis reads it)
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_local.model.parameters import ClassParameters
from csi_local.model.pool import Abilities, Media, PoolKind, PoolView, QuotaSupport
from csi_local.model.quantity import GIB, MIB, Bytes
from csi_local.model.volume import HEADER, Allocation, BackendKind, Encryption, Filesystem, QuotaMode
from csi_local.plan.placement import Capacity, available, capacity_of, place, unfit
from csi_local.plan.request import Shape

ABLE = Abilities(filesystem="xfs", reflink=True, quota=QuotaSupport.PROJECT, direct_io=True, preallocate=True)
LOOPFILE = Shape(backend=BackendKind.LOOPFILE, block=False, filesystem=Filesystem.EXT4)
DIRECTORY = Shape(backend=BackendKind.DIRECTORY, block=False, filesystem=None)


def view(name: str, room: int = 10, thin_room: int = 20, **changes: Any) -> PoolView:  # noqa: ANN401
    """Return a pool with that many GiB of room."""
    plain = PoolView(
        name=name,
        kind=PoolKind.PATH,
        media=Media.SSD,
        abilities=ABLE,
        total=Bytes(100 * GIB),
        room=Bytes(room * GIB),
        thin_room=Bytes(thin_room * GIB),
    )
    return dataclasses.replace(plain, **changes)


VIEWS = st.builds(
    view,
    st.sampled_from("abcdef"),
    st.integers(min_value=0, max_value=10),
    st.integers(min_value=0, max_value=10),
    media=st.sampled_from(Media),
    unavailable=st.sampled_from(["", "", "", "its disk is missing"]),
    abilities=st.builds(
        Abilities,
        encryption=st.booleans(),
        filesystem=st.sampled_from(["xfs", "ext4", "btrfs", "tmpfs"]),
        quota=st.sampled_from(QuotaSupport),
        direct_io=st.booleans(),
        preallocate=st.booleans(),
    ),
)
POOLS = st.lists(VIEWS, max_size=6, unique_by=lambda one: one.name)
PARAMETERS = st.builds(
    ClassParameters,
    backend=st.sampled_from(BackendKind),
    pool=st.sampled_from(["", "", "a", "b"]),
    media=st.sampled_from([None, None, Media.SSD, Media.HDD]),
    placement=st.sampled_from(["spread", "pack"]),
    allocation=st.sampled_from(Allocation),
    quota=st.sampled_from(QuotaMode),
    encryption=st.none() | st.just(Encryption()),
)
FILESYSTEMS = st.one_of(st.none(), st.sampled_from(Filesystem))
SIZES = st.integers(min_value=0, max_value=12).map(lambda gib: Bytes(gib * GIB))


def shape_of(parameters: ClassParameters, filesystem: Filesystem | None) -> Shape:
    """Return the shape that goes with the parameters."""
    return Shape(backend=parameters.backend or BackendKind.LOOPFILE, block=False, filesystem=filesystem)


@given(PARAMETERS, FILESYSTEMS, SIZES, POOLS)
def test_the_one_chosen_fits_best(
    parameters: ClassParameters, filesystem: Filesystem | None, size: Bytes, pools: list[PoolView]
) -> None:
    shape = shape_of(parameters, filesystem)
    found = place(parameters, shape, size, pools)
    fitting = [one for one in pools if not unfit(parameters, shape, one) and available(parameters, one) >= size]
    assert (found.pool is None) == (not fitting)
    if found.pool is not None:
        best = min if parameters.placement == "pack" else max
        room = best(available(parameters, one) for one in fitting)
        assert found.pool == min(one.name for one in fitting if available(parameters, one) == room)


@given(PARAMETERS, FILESYSTEMS, SIZES, POOLS, st.randoms())
def test_every_pool_hears_why(
    parameters: ClassParameters, filesystem: Filesystem | None, size: Bytes, pools: list[PoolView], random: Random
) -> None:
    shape = shape_of(parameters, filesystem)
    found = place(parameters, shape, size, pools)
    assert sorted(verdict.pool for verdict in found.verdicts) == sorted(one.name for one in pools)
    assert [verdict.pool for verdict in found.verdicts if verdict.taken] == ([found.pool] if found.pool else [])
    for verdict in found.verdicts:
        assert verdict.reason
        assert f"pool {verdict.pool}: {verdict.reason}" in found.explain()
        assert verdict.fits or not verdict.taken
        assert not (verdict.small and verdict.fits)
    random.shuffle(pools)
    assert place(parameters, shape, size, pools) == found


def test_a_header_takes_room_too() -> None:
    able = dataclasses.replace(ABLE, encryption=True)
    encrypted = ClassParameters(encryption=Encryption())
    pools = [view("only", 1, abilities=able)]
    assert place(encrypted, LOOPFILE, Bytes(GIB - HEADER), pools).pool == "only"
    assert place(encrypted, LOOPFILE, Bytes(GIB - HEADER + 1), pools).pool is None
    assert capacity_of(encrypted, LOOPFILE, pools).largest == GIB - HEADER
    assert capacity_of(encrypted, LOOPFILE, [view("tiny", 0, abilities=able)]).available == 0


def test_a_node_that_cannot_encrypt() -> None:
    unable = dataclasses.replace(ABLE, encryption_reason="the kernel has no dm-crypt")
    encrypted = ClassParameters(encryption=Encryption())
    pools = [view("only", abilities=unable)]
    assert "the kernel has no dm-crypt" in place(encrypted, LOOPFILE, Bytes(GIB), pools).explain()
    assert capacity_of(encrypted, LOOPFILE, pools).available == 0
    assert place(ClassParameters(), LOOPFILE, Bytes(GIB), pools).pool == "only"


def test_without_pools() -> None:
    assert place(ClassParameters(), LOOPFILE, Bytes(1), []).explain() == "this node has no pools"


def test_spread_and_pack() -> None:
    pools = [view("middle", 5), view("large", 9), view("small", 2)]
    for placement, expected in (("spread", "large"), ("pack", "middle")):
        assert place(ClassParameters(placement=placement), LOOPFILE, Bytes(3 * GIB), pools).pool == expected
    assert place(ClassParameters(), LOOPFILE, Bytes(10 * GIB), pools).pool is None


@pytest.mark.parametrize(
    ("parameters", "shape", "changes", "reason"),
    [
        (ClassParameters(), LOOPFILE, {}, ""),
        (ClassParameters(), LOOPFILE, {"unavailable": "it is read-only"}, "read-only"),
        (ClassParameters(pool="other"), LOOPFILE, {}, "asks for pool other"),
        (ClassParameters(media=Media.NVME), LOOPFILE, {}, "its media is ssd"),
        (ClassParameters(), LOOPFILE, {"abilities": Abilities(filesystem="zfs", direct_io=True)}, "cannot reserve"),
        (ClassParameters(), LOOPFILE, {"abilities": Abilities(filesystem="zfs", preallocate=True)}, "direct I/O"),
        (ClassParameters(), DIRECTORY, {"abilities": Abilities(filesystem="zfs")}, "cannot limit a directory"),
        (ClassParameters(quota=QuotaMode.ADVISORY), DIRECTORY, {"abilities": Abilities(filesystem="zfs")}, ""),
        (ClassParameters(), DIRECTORY, {}, ""),
        (ClassParameters(), dataclasses.replace(DIRECTORY, filesystem=Filesystem.EXT4), {}, "its filesystem is xfs"),
    ],
)
def test_unfit(parameters: ClassParameters, shape: Shape, changes: dict[str, Any], reason: str) -> None:
    found = unfit(parameters, shape, view("pool", **changes))
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_thin_volume_has_other_room() -> None:
    thin = ClassParameters(allocation=Allocation.THIN)
    assert available(thin, view("pool")) == 20 * GIB
    assert available(dataclasses.replace(thin, backend=BackendKind.DIRECTORY), view("pool")) == 10 * GIB
    assert available(ClassParameters(), view("pool")) == 10 * GIB


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_coarse_room_is_never_more_and_hardly_less(largest: int, others: int) -> None:
    exact = Capacity(available=Bytes(largest + others), largest=Bytes(largest), smallest=Bytes(min(largest, 16 * MIB)))
    coarse = exact.coarse()
    for before, after in ((exact.available, coarse.available), (exact.largest, coarse.largest)):
        assert before * 63 // 64 <= after <= before
    assert coarse.smallest <= coarse.largest <= coarse.available


def test_a_small_volume_hardly_ever_changes_the_coarse_room_of_a_large_pool() -> None:
    def coarse(room: int) -> Capacity:
        return Capacity(available=Bytes(room), largest=Bytes(room), smallest=Bytes(MIB)).coarse()

    assert len({coarse(1024 * GIB - number * 16 * MIB) for number in range(100)}) <= 2
