"""Many callers at once: each gets its answer, and none gets another's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Mode, Volume, capability, outcome
from tests.observe import MIB
from tests.rules.kinds import BLOCK, EXT4, XFS, Kind, every_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

THREADS = 8


def at_once(*calls: Callable[[], object]) -> list[Code]:
    """Make the calls at the same time and return their codes in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def insist(call: Callable[[], object]) -> None:
    """Repeat a call while it is told that another one is under way, as a CO does."""
    observe.until(lambda: outcome(call) is Code.OK, "a repeated call succeeds")


@every_kind
def test_the_same_create(driver: Driver, kind: Kind) -> None:
    made: list[Volume] = []
    codes = at_once(*[lambda: made.append(kind.create(driver, name="same"))] * THREADS)
    assert set(codes) <= {Code.OK, Code.ABORTED}
    assert Code.OK in codes
    assert all(volume == made[0] for volume in made)
    assert len(driver.volumes()) == 1


def test_two_creates_of_one_name_that_differ(driver: Driver) -> None:
    sizes = [size * MIB for size in (8, 16, 24, 32)]
    codes = at_once(*[partial(BLOCK.create, driver, name="rivals", size=size, limit=size) for size in sizes])
    assert codes.count(Code.OK) == 1
    assert set(codes) <= {Code.OK, Code.ABORTED, Code.ALREADY_EXISTS}
    assert len(driver.volumes()) == 1


@every_kind
def test_the_same_stage(driver: Driver, kind: Kind) -> None:
    """Two mkfs over one image, or two loop devices on it, would be the end of it."""
    volume = kind.create(driver)
    codes = at_once(*[lambda: driver.stage(volume)] * THREADS)
    assert set(codes) <= {Code.OK, Code.ABORTED}
    insist(lambda: driver.stage(volume))
    if kind.params["backend"] == "loopfile":
        image = str(driver.backing_file(volume))
        assert list(observe.loops().values()).count(image) == 1
    observe.put(driver.publish(volume), b"x")


@every_kind
def test_publishing_to_many_targets(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver, mode=Mode.SINGLE_NODE_MULTI_WRITER)
    driver.stage(volume)
    names = [f"target-{number}" for number in range(THREADS)]
    codes = at_once(*[partial(driver.publish, volume, name) for name in names])
    assert set(codes) <= {Code.OK, Code.ABORTED}
    for name in names:
        insist(partial(driver.publish, volume, name))
        assert len(observe.mounts(driver.target_path(volume, name))) == 1
    codes = at_once(*[partial(driver.unpublish, volume, name) for name in names])
    assert set(codes) <= {Code.OK, Code.ABORTED}


@every_kind
def test_a_single_writer_is_single_in_a_race(driver: Driver, kind: Kind) -> None:
    volume = kind.create(driver, mode=Mode.SINGLE_NODE_SINGLE_WRITER)
    driver.stage(volume)
    names = [f"target-{number}" for number in range(THREADS)]
    codes = at_once(*[partial(driver.publish, volume, name) for name in names])
    assert codes.count(Code.OK) == 1
    assert set(codes) <= {Code.OK, Code.ABORTED, Code.FAILED_PRECONDITION}


@every_kind
def test_delete_against_stage(driver: Driver, kind: Kind) -> None:
    """One of them wins; never both."""
    for _ in range(5):
        volume = kind.create(driver)
        stage, delete = at_once(partial(driver.stage, volume), partial(driver.delete, volume))
        assert (stage, delete) != (Code.OK, Code.OK), "a volume in use was deleted"
        assert stage in (Code.OK, Code.ABORTED, Code.NOT_FOUND)
        assert delete in (Code.OK, Code.ABORTED, Code.FAILED_PRECONDITION)
        insist(partial(driver.unstage, volume))
        insist(partial(driver.delete, volume))


def test_different_volumes_at_once(driver: Driver) -> None:
    def whole_life(number: int) -> None:
        kind = (EXT4, XFS, BLOCK)[number % 3]
        volume = kind.create(driver, name=f"busy-{number}")
        data = os.urandom(MIB)
        target = driver.attach(volume)
        observe.put(target, data)
        driver.detach(volume)
        assert observe.get(driver.attach(volume), MIB) == data
        driver.detach(volume)
        driver.delete(volume)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(whole_life, range(THREADS)))
    assert not driver.volumes()


def test_a_long_call_does_not_hold_up_the_others(driver: Driver) -> None:
    large = EXT4.create(driver, size=2048 * MIB, params={"mkfsOptions": "-E lazy_itable_init=0"})
    with ThreadPoolExecutor(1) as pool:
        staging = pool.submit(driver.stage, large)
        rounds = 0
        while not staging.done() or not rounds:
            volume = BLOCK.create(driver, size=MIB)
            observe.put(driver.attach(volume), b"x")
            assert {volume.id, large.id} == {each.volume_id for each in driver.volumes()}
            driver.detach(volume)
            driver.delete(volume)
            rounds += 1
        staging.result()
    observe.put(driver.publish(large), b"x")


@pytest.mark.parametrize("deadline", [0.001, 0.01, 0.05])
@every_kind
def test_a_caller_that_gives_up_can_ask_again(driver: Driver, kind: Kind, deadline: float) -> None:
    request = csi.CreateVolumeRequest(
        name="impatient",
        capacity_range=csi.CapacityRange(required_bytes=kind.size),
        volume_capabilities=[capability(block=kind.block, fs=kind.fs)],
        parameters=kind.params,
    )
    for _ in range(3):
        code = outcome(lambda: driver.controller.CreateVolume(request, timeout=deadline))
        assert code in (Code.OK, Code.DEADLINE_EXCEEDED, Code.ABORTED)
    made: list[csi.Volume] = []
    insist(lambda: made.append(driver.controller.CreateVolume(request).volume))
    volume = Volume(id=made[0].volume_id, capability=request.volume_capabilities[0])
    staging = csi.NodeStageVolumeRequest(
        volume_id=volume.id,
        staging_target_path=str(driver.staging_path(volume)),
        volume_capability=volume.capability,
    )
    driver.staging_path(volume).mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        outcome(lambda: driver.node.NodeStageVolume(staging, timeout=deadline))
    insist(lambda: driver.stage(volume))
    observe.put(driver.publish(volume), b"usable")
    assert len(driver.volumes()) == 1


def test_a_crowd_on_one_connection(driver: Driver) -> None:
    """More calls at once than any pool of threads has threads."""
    futures = [driver.controller.ListVolumes.future(csi.ListVolumesRequest()) for _ in range(500)]
    assert all(isinstance(future, grpc.Future) for future in futures)
    assert all(not future.result().entries for future in futures)
