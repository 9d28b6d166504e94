"""GetCapacity tells the truth: what it offers can be created, and what it does not offer cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.client import Capability, Client, Code, Mode, capability, outcome, refused
from tests.driver import Driver, serving
from tests.observe import GIB, MIB
from tests.rules.kinds import BLOCK, DIRECTORY, EXT4, XFS, Kind, fresh_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Start

pytestmark = pytest.mark.root

SHORTAGE = (Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED)
METADATA = 16 * MIB
"""What the pool's filesystem may take for itself, one way or the other."""

pools = pytest.mark.parametrize(
    ("fs", "kind"),
    [
        pytest.param("btrfs", DIRECTORY, id="directory-on-btrfs"),
        pytest.param("btrfs", BLOCK, id="loopfile-on-btrfs"),
        pytest.param("xfs", BLOCK, id="loopfile-on-xfs"),
        pytest.param("xfs", EXT4, id="loopfile-ext4-on-xfs"),
        pytest.param("ext4", BLOCK, id="loopfile-on-ext4"),
    ],
)


def room(driver: Client, kind: Kind = BLOCK, *, node: str = "", **params: str) -> int:
    """Return what GetCapacity offers for this kind."""
    return driver.capacity({**kind.params, **params}, node=node).available_capacity


def largest(driver: Client, kind: Kind) -> int:
    """Return the largest volume that GetCapacity promises."""
    answer = driver.capacity(kind.params, access=capability(block=kind.block, fs=kind.fs))
    assert answer.HasField("maximum_volume_size"), "a local volume cannot be larger than its pool: say so"
    return answer.maximum_volume_size.value


@pools
def test_the_largest_volume_offered_can_be_had_and_no_larger_one(start: Start, fs: str, kind: Kind) -> None:
    driver = start("image:{root}/pool.img,size=1Gi,fs=" + fs)
    offered = largest(driver, kind)
    assert offered > 256 * MIB
    with refused(*SHORTAGE):
        kind.create(driver, size=offered + 1)
    volume = kind.create(driver, size=offered)
    assert volume.size >= offered
    observe.put(driver.attach(volume), b"usable")


@pools
def test_room_goes_with_a_volume_and_comes_back(start: Start, fs: str, kind: Kind) -> None:
    driver = start("image:{root}/pool.img,size=1Gi,fs=" + fs)
    before = room(driver, kind)
    volume = kind.create(driver, size=256 * MIB)
    taken = before - room(driver, kind)
    assert abs(taken - volume.size) <= METADATA
    driver.attach(volume)
    driver.detach(volume)
    assert abs(before - room(driver, kind) - taken) <= METADATA, "use is not allocation"
    driver.delete(volume)
    observe.until(lambda: room(driver, kind) >= before - METADATA, "the room is back")


@pools
def test_a_full_pool_says_so_with_the_code_that_makes_the_scheduler_look_elsewhere(
    start: Start, fs: str, kind: Kind
) -> None:
    driver = start("image:{root}/pool.img,size=1Gi,fs=" + fs)
    made = 0
    while outcome(lambda: kind.create(driver, size=192 * MIB)) is Code.OK:
        made += 1
        assert made * 192 * MIB < GIB, "more was handed out than there is"
    assert made >= 3
    with refused(Code.RESOURCE_EXHAUSTED):
        kind.create(driver, size=192 * MIB)
    assert room(driver, kind) < 192 * MIB
    assert len(driver.volumes()) == made


def test_a_failed_create_takes_no_room(start: Start) -> None:
    driver = start("image:{root}/pool.img,size=1Gi")
    before = room(driver)
    for _ in range(20):
        with refused(*SHORTAGE):
            BLOCK.create(driver, size=2 * GIB)
    assert room(driver) == before


def test_directories_and_images_share_the_room(start: Start) -> None:
    """A hard limit that is not backed by room would be a promise broken inside a pod."""
    driver = start("image:{root}/pool.img,size=1Gi,fs=btrfs")
    DIRECTORY.create(driver, size=512 * MIB)
    with refused(Code.RESOURCE_EXHAUSTED):
        BLOCK.create(driver, size=512 * MIB)
    with refused(Code.RESOURCE_EXHAUSTED):
        DIRECTORY.create(driver, size=512 * MIB)


def test_room_is_the_same_after_a_restart(start: Start) -> None:
    driver = start("image:{root}/pool.img,size=1Gi,fs=btrfs")
    for kind in (DIRECTORY, BLOCK):
        kind.create(driver, size=128 * MIB)
    before = room(driver), room(driver, DIRECTORY)
    driver.restart()
    after = room(driver), room(driver, DIRECTORY)
    assert all(abs(a - b) <= METADATA for a, b in zip(before, after, strict=True))


def test_two_pools_do_not_make_one_large_volume(start: Start) -> None:
    driver = start("image:{root}/a.img,size=1Gi", "image:{root}/b.img,size=1Gi")
    assert largest(driver, BLOCK) < GIB
    with refused(*SHORTAGE):
        BLOCK.create(driver, size=1200 * MIB)
    BLOCK.create(driver, size=700 * MIB)
    BLOCK.create(driver, size=700 * MIB)


@pytest.mark.parametrize("reserve", ["512Mi", "50%", str(512 * MIB)])
def test_a_reserve_is_kept_back(start: Start, reserve: str) -> None:
    free = start("image:{root}/pool.img,size=1Gi,reserve=0")
    kept = start("image:{root}/pool.img,size=1Gi,reserve=" + reserve)
    assert abs(room(free) - room(kept) - 512 * MIB) <= 4 * METADATA, "a share is one of what is usable"
    with refused(*SHORTAGE):
        BLOCK.create(kept, size=600 * MIB)
    BLOCK.create(kept, size=384 * MIB)
    with refused(Code.RESOURCE_EXHAUSTED):
        BLOCK.create(kept, size=256 * MIB)


class TestThin:
    """Thin volumes may promise more than there is, as far as the pool allows and no further."""

    THIN = Kind(name="thin", params={"backend": "loopfile", "allocation": "thin"}, block=True)

    def test_by_default_no_more_is_promised_than_there_is(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=1Gi")
        self.THIN.create(driver, size=640 * MIB)
        with refused(Code.RESOURCE_EXHAUSTED):
            self.THIN.create(driver, size=640 * MIB)

    def test_an_overcommitted_pool_promises_its_ratio(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=1Gi,overcommit=2")
        assert room(driver, self.THIN) > 1.5 * GIB
        assert room(driver) < GIB, "a thick volume needs real room"
        for _ in range(3):
            self.THIN.create(driver, size=590 * MIB)
        with refused(Code.RESOURCE_EXHAUSTED):
            self.THIN.create(driver, size=590 * MIB)

    def test_what_thin_volumes_were_promised_is_not_given_to_thick_ones(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=1Gi")
        self.THIN.create(driver, size=640 * MIB)
        with refused(Code.RESOURCE_EXHAUSTED):
            BLOCK.create(driver, size=640 * MIB)

    def test_a_thin_pool_takes_little_of_what_is_below(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=4Gi,allocation=thin")
        assert observe.allocated(driver.root / "pool.img") < GIB
        assert BLOCK.create(driver, size=64 * MIB).size == 64 * MIB

    def test_a_thick_pool_takes_all_of_it(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=1Gi")
        assert observe.allocated(driver.root / "pool.img") >= GIB


@pytest.fixture(scope="module")
def two_pools() -> Iterator[Driver]:
    """Run a driver with an SSD and a disk, or so it is told."""
    with serving("image:{root}/ssd.img,size=1Gi,media=ssd", "image:{root}/hdd.img,size=2Gi,media=hdd") as driver:
        yield driver


@pytest.mark.usefixtures("nothing_left")
class TestQuestions:
    """GetCapacity with parameters, capabilities and topology."""

    @pytest.fixture
    def driver(self, two_pools: Driver) -> Driver:
        """Talk to the driver with two media."""
        return two_pools

    def test_without_a_question_it_is_the_room_there_is(self, driver: Driver) -> None:
        assert driver.capacity().available_capacity > GIB

    def test_this_node(self, driver: Driver) -> None:
        assert room(driver, node="node-1") == room(driver) > 0

    def test_a_node_that_is_not_this_one(self, driver: Driver) -> None:
        assert room(driver, node="node-2") == 0

    def test_the_secrets_of_a_class_are_not_looked_at(self, driver: Driver) -> None:
        """csi-provisioner asks with all parameters that the class has."""
        steps = ("provisioner", "controller-publish", "node-stage", "node-publish", "controller-expand", "node-expand")
        named = {f"csi.storage.k8s.io/{one}-secret-{what}": "x" for one in steps for what in ("name", "namespace")}
        assert driver.capacity(named).available_capacity == driver.capacity().available_capacity

    def test_each_medium(self, driver: Driver) -> None:
        assert 0 < room(driver, media="ssd") < GIB < room(driver, media="hdd") < 2 * GIB

    def test_a_medium_that_is_not_here(self, driver: Driver) -> None:
        assert room(driver, media="nvme") == 0
        with refused(Code.RESOURCE_EXHAUSTED):
            BLOCK.create(driver, params={"media": "nvme"})

    def test_a_volume_is_put_on_the_medium_it_asks_for(self, driver: Driver) -> None:
        before = room(driver, media="ssd"), room(driver, media="hdd")
        BLOCK.create(driver, size=256 * MIB, params={"media": "ssd"})
        assert abs(before[0] - room(driver, media="ssd") - 256 * MIB) <= METADATA
        assert room(driver, media="hdd") == before[1]

    def test_a_backend_that_no_pool_can_do(self, driver: Driver) -> None:
        """This kernel's XFS has no project quota, so there is no room for hard-limited directories."""
        assert room(driver, DIRECTORY) == 0
        assert room(driver, DIRECTORY, quota="advisory") > 0

    @pytest.mark.parametrize(
        ("params", "access"),
        [
            pytest.param({"backend": "directory", "quota": "advisory"}, capability(block=True), id="block"),
            pytest.param({}, capability(mode=Mode.MULTI_NODE_MULTI_WRITER), id="many nodes"),
            pytest.param({}, capability(fs="ntfs"), id="filesystem"),
        ],
    )
    def test_no_room_for_what_cannot_be_created(
        self, driver: Driver, params: dict[str, str], access: Capability
    ) -> None:
        if outcome(lambda: driver.capacity(params, access=access)) is not Code.INVALID_ARGUMENT:
            assert driver.capacity(params, access=access).available_capacity == 0

    @pytest.mark.parametrize(("name", "value"), [("colour", "red"), ("backend", "zfs"), ("media", "tape")])
    def test_unknown_parameters(self, driver: Driver, name: str, value: str) -> None:
        with refused(Code.INVALID_ARGUMENT) as error:
            driver.capacity({name: value})
        assert name in error.message

    def test_the_smallest_volume_offered_can_be_had(self, driver: Driver) -> None:
        answer = driver.capacity(XFS.params, access=capability(fs="xfs"))
        if answer.HasField("minimum_volume_size"):
            smallest = answer.minimum_volume_size.value
            volume = driver.create(fresh_name(), smallest, limit=smallest, params=XFS.params, fs="xfs")
            assert volume.size == smallest
            driver.attach(volume)

    def test_spread_fills_the_emptier_and_pack_the_fuller(self, driver: Driver) -> None:
        spread = BLOCK.create(driver, params={"placement": "spread"})
        pack = BLOCK.create(driver, params={"placement": "pack"})
        small, large = driver.pool_roots()
        assert driver.volume_dir(spread).is_relative_to(large)
        assert driver.volume_dir(pack).is_relative_to(small)
