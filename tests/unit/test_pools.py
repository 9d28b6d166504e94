"""Open pools: two drivers for one node, for a moment; and what is remembered of volumes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.pools import Pools
from csi_local.engine.survey import seen
from csi_local.model.errors import Busy
from csi_local.model.volume import volume_id
from tests.fake.host import new_host
from tests.unit.rig import PATIENCE_S, RUN_DIR, Rig, request

if TYPE_CHECKING:
    from tests.fake.host import FakeHost

MIB = 1 << 20


def new_driver(rig: Rig) -> Pools:
    """Another driver on the same machine."""
    return Pools(rig.host, rig.specs, RUN_DIR)


class Ending(Rig):
    """A driver that is told to end while it makes a volume, and another one that begins."""

    other: Pools | None = None

    def _pass(self, name: str) -> None:
        super()._pass(name)
        if self.other is None:
            self.pools.leave()
            self.other = new_driver(self)
            self.other.open(patient=True, pause=lambda _seconds: None)


@pytest.fixture
def host() -> FakeHost:
    host = new_host()
    host.make_dirs("/pools/dirs")
    return host


def test_what_an_ending_driver_still_makes_is_not_swept_by_the_next(host: FakeHost) -> None:
    rig = Ending("dirs=path:/pools/dirs", host=host)
    rig.start()
    rig.volumes.create(request("data", 16 * MIB, {}), PATIENCE_S)
    assert rig.other is not None
    assert "in use by another csi-local" in rig.other.missing()
    rig.host.crash()  # its process is gone at last
    assert [pool.spec.name for pool in rig.other.retry()] == ["dirs"]
    assert [*rig.other.get("dirs").store.volumes()] == ["data"]


def test_an_ending_driver_leaves_no_mount_and_every_lock() -> None:
    rig = Rig()
    rig.start()
    rig.pools.leave()
    assert [mount.point for mount in rig.host.mounts(RUN_DIR)] == []
    with pytest.raises(Busy, match="another csi-local"):
        new_driver(rig).open()
    rig.host.crash()
    new_driver(rig).open()


def test_a_patient_driver_lets_another_end_before_it_says_anything() -> None:
    rig = Rig()
    rig.start()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            rig.host.crash()

    new = new_driver(rig)
    new.open(patient=True, pause=pause)
    assert new.ready
    assert len(pauses) == 3


def test_a_patient_driver_waits_for_another_no_longer_than_a_pod_may_take_to_end() -> None:
    rig = Rig()
    rig.start()
    pauses: list[float] = []
    new = new_driver(rig)
    new.open(patient=True, pause=pauses.append)
    assert sum(pauses) == 30
    assert not new.all()


def test_a_pool_that_is_only_missing_is_not_waited_for() -> None:
    rig = Rig("dirs=path:/nowhere", "loops=image:/pools/loops.img,size=4Gi")
    new = new_driver(rig)
    pauses: list[float] = []
    new.open(patient=True, pause=pauses.append)
    assert (pauses, [pool.spec.name for pool in new.all()]) == ([], ["loops"])


def test_of_volumes_that_are_gone_little_is_remembered_and_that_not_for_ever() -> None:
    rig = Rig()
    rig.start()
    pool = rig.pools.get("loops")
    made = rig.volumes.create(request("data", 16 * MIB, {"pool": "loops"}), PATIENCE_S).record
    assert made is not None
    rig.volumes.delete("data", PATIENCE_S)
    first = pool.free_project(made.id)
    pool._keep(replace(made, project=first))
    pool.forget(made.id)
    assert pool.free_project(made.id) != first, "what is still in the trash counts against it"
    for number in range(1, 3000):
        pool._keep(replace(made, id=volume_id(f"volume-{number}"), project=number, adopted="/somewhere"))
        pool.forget(volume_id(f"volume-{number}"))
    assert (len(pool._projects), len(pool._past_projects), pool.adopted) == (0, 1000, set())
    assert pool.free_project(made.id) == first


def test_a_volume_that_nobody_can_look_at_hides_no_other() -> None:
    rig = Rig()
    rig.start()
    for name in ("bad", "good"):
        rig.volumes.create(request(name, 16 * MIB, {}), PATIENCE_S)

    def look(shown: str) -> str:
        if shown == "bad":
            raise ZeroDivisionError
        return shown

    assert list(seen(rig.pools, lambda pool: pool.store.volumes(), look)) == ["good"]
