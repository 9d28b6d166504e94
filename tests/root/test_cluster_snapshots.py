"""Snapshots and what is made from them in a cluster: content as a CO sees it, and programs killed in the middle."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from csi_local.kube import resources
from tests import observe
from tests.client import Code, Volume, refused
from tests.cluster import InCluster, in_cluster
from tests.observe import MIB, until
from tests.rules.kinds import EXT4
from tests.rules.test_snapshots import TestContent as Content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from csi_local._proto import csi_pb2 as csi

    T = TypeVar("T")

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

SNAPSHOTS = 24
LONG_S = 60.0
GOING_ON = (Code.ABORTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED)  # the last: the channel was closed


@pytest.fixture(scope="module")
def shared() -> Iterator[InCluster]:
    with in_cluster("image:{root}/btrfs.img,size=4Gi,fs=btrfs", "image:{root}/xfs.img,size=6Gi") as driver:
        yield driver


@pytest.fixture
def driver(shared: InCluster) -> InCluster:
    return shared


class TestInCluster(Content):
    """What the rules say of content holds here too."""


def test_requests(driver: InCluster) -> None:
    volume, other = EXT4.create(driver), EXT4.create(driver)
    made = [driver.snapshot(volume, f"s{number}") for number in range(3)]
    assert driver.snapshot(volume, "s0") == made[0]
    assert driver.snapshots(source_volume_id=volume.id) == made
    assert driver.snapshots(source_volume_id=other.id) == []
    assert driver.snapshots(snapshot_id="s1") == [made[1]]
    assert driver.snapshots(snapshot_id="../s1") == []
    with refused(Code.ALREADY_EXISTS):
        driver.snapshot(other, "s0")
    with refused(Code.NOT_FOUND):
        driver.snapshot(Volume(id="none"), "s9")
    with refused(Code.RESOURCE_EXHAUSTED):
        EXT4.create(driver, source=made[0], nodes=["node-2"])
    driver.delete_snapshot(made[0])
    with refused(Code.NOT_FOUND):
        EXT4.create(driver, source=made[0])


def persist(call: Callable[[], T]) -> T:
    """Ask until the answer is final, as the sidecars do."""
    deadline = time.monotonic() + LONG_S
    while True:
        try:
            return call()
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel is being replaced
            code = error.code() if isinstance(error, grpc.Call) else Code.UNAVAILABLE
            if code not in GOING_ON or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def kill_controller(driver: InCluster) -> None:
    driver.head.kill()
    driver.head.start()
    driver.controller = driver.head.controller


def kill_node(driver: InCluster) -> None:
    driver.kill()
    driver.restart()


def kill_api(driver: InCluster) -> None:
    with driver.api.outage():
        time.sleep(0.5)


@pytest.mark.parametrize("mischief", [kill_controller, kill_node, kill_api])
def test_killed_among_many(driver: InCluster, mischief: Callable[[InCluster], None]) -> None:
    """Each snapshot is whole and each restore has its data, however often they had to be asked for."""
    volume = EXT4.create(driver)
    content = os.urandom(MIB)
    observe.put(driver.attach(volume), content)
    driver.detach(volume)

    def take(number: int) -> tuple[csi.Snapshot, Volume]:
        snapshot = persist(lambda: driver.snapshot(volume, f"{volume.id}-{number}"))
        return snapshot, persist(lambda: EXT4.create(driver, name=f"{snapshot.snapshot_id}-restored", source=snapshot))

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(take, number) for number in range(SNAPSHOTS)]
        until(lambda: len(driver.api.all(resources.SNAPSHOTS)) > SNAPSHOTS // 4, "some are under way")
        mischief(driver)
        made = [call.result() for call in calls]
    assert {one.snapshot_id for one, _ in made} == {one.snapshot_id for one in driver.snapshots()}
    assert all(one.ready_to_use for one in driver.snapshots())
    restored = made[-1][1]
    assert observe.get(driver.attach(restored), MIB) == content
    driver.detach(restored)
    with ThreadPoolExecutor(8) as pool:
        gone = [pool.submit(persist, lambda one=one: driver.delete_snapshot(one)) for one, _ in made]
        until(lambda: len(driver.api.all(resources.SNAPSHOTS)) < SNAPSHOTS * 3 // 4, "some are gone")
        mischief(driver)
        for call in gone:
            call.result()
    assert driver.api.all(resources.SNAPSHOTS) == []
