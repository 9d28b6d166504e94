"""The disk under a pool fails, hangs, fills up, becomes read-only or goes: clear answers, recovery without a restart.

One pool has the trouble, another has not and must not notice.
"""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, cast

import grpc
import pytest

from csi_local._proto import csi_pb2 as csi
from tests.client import Code, outcome
from tests.driver import serving
from tests.observe import MIB, get, put, unmount, until
from tests.uml import linux
from tests.uml.conftest import GROUNDS, make_filesystem, mounted, preloaded
from tests.uml.faulty import FaultyDisk, in_use
from tests.uml.writing import ROOT, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.client import Volume
    from tests.driver import Driver

pytestmark = pytest.mark.uml

SIZE, LARGE = 64 * MIB, 96 * MIB
DATA = b"precious" * 1000
PROMPT_SECONDS = 20.0
"""An answer that takes longer is a hang."""
ROUND_SECONDS = 0.5
QUICK = f"""
try:
    from csi_local.engine import sweeper
    sweeper._ROUND_S = sweeper._MISSING_ROUND_S = {ROUND_SECONDS}
except ImportError:
    pass  # another Python than the driver's
"""
"""The driver looks after missing pools every ten seconds: too long to wait for it in each test."""
ROUNDS = 4 * ROUND_SECONDS
CLEAR = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION, Code.ABORTED}
DIRECTORY, LOOPFILE = {"backend": "directory"}, {"backend": "loopfile"}
MS_REMOUNT = 0x20


class House:
    """A driver with a pool `bad`, where there is trouble, and a pool `good`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._turn = 0
        self.directory = self.make("directory", "bad", DIRECTORY)
        self.loopfile = self.make("loopfile", "bad", LOOPFILE)
        self.idle = self.create_idle()
        self.spare = self.make("spare", "bad", DIRECTORY)
        self.neighbour = self.make("neighbour", "good", LOOPFILE)
        driver.detach(self.spare)

    def create_idle(self) -> Volume:
        """Create a formatted volume that nobody uses."""
        volume = self.make("idle", "bad", LOOPFILE)
        self.driver.detach(volume)
        return volume

    def make(self, name: str, pool: str, params: dict[str, str]) -> Volume:
        """Create a volume with data that a pod uses."""
        fs = "ext4" if params is LOOPFILE else ""
        volume = self.driver.create(name, SIZE, params={**params, "pool": pool}, fs=fs)
        put(self.driver.attach(volume), DATA)
        return volume

    @property
    def troubled(self) -> tuple[Volume, ...]:
        """All volumes of the bad pool."""
        return self.directory, self.loopfile, self.idle, self.spare

    def fresh(self, pool: str = "bad") -> Callable[[], Volume]:
        """Return a call that creates one more volume."""
        self._turn += 1
        params = {**LOOPFILE, **({"pool": pool} if pool else {})}
        return partial(self.driver.create, f"fresh-{self._turn}", SIZE, params=params, fs="ext4")

    def stage_again(self) -> None:
        """Stage what is staged, without making the folder for it: on a failing disk that is not even seen."""
        self.driver.node.NodeStageVolume(
            csi.NodeStageVolumeRequest(
                volume_id=self.directory.id,
                staging_target_path=str(self.driver.staging_path(self.directory)),
                volume_capability=self.directory.capability,
                volume_context=self.directory.context,
            )
        )

    def calls(self, *, full: bool = False) -> dict[str, Callable[[], object]]:
        """Return all that a CO may want of the bad pool; those with a ! need its disk."""
        driver = self.driver
        return {
            "create a directory !": partial(
                driver.create, "fresh-directory", SIZE, params={**DIRECTORY, "pool": "bad", "quota": "advisory"}
            ),
            "create a loopfile !": self.fresh(),
            "create again": partial(driver.create, "idle", SIZE, params={**LOOPFILE, "pool": "bad"}, fs="ext4"),
            "grow the directory !": partial(driver.expand_controller, self.directory, LARGE),
            "grow the loopfile !": partial(driver.expand_controller, self.idle, LARGE),
            **({} if full else {"delete !": partial(driver.delete, self.idle)}),
            "grow on the node": partial(driver.expand_node, self.loopfile, SIZE),
            "stage": partial(driver.stage, self.spare),
            "stage a loopfile !": partial(driver.stage, self.idle),
            "stage again": self.stage_again,
            "publish again": partial(driver.publish, self.directory),
            "stats": partial(driver.stats, self.directory, driver.target_path(self.directory)),
            "stats of a loopfile": partial(driver.stats, self.loopfile, driver.target_path(self.loopfile)),
            "list": driver.volumes,
            "capacity": driver.capacity,
        }

    def demand_clear_answers(self, *, works: frozenset[str] = frozenset()) -> None:
        """Call everything: each is answered promptly, by a code that says what it is about; those in `works` work."""
        wrong = []
        for name, call in self.calls(full=bool(works)).items():
            began = time.monotonic()
            code, said = answer(call)
            seconds = time.monotonic() - began
            verdict = f"{name}: {code.name} after {seconds:.1f} s: {said}"
            print(verdict)
            must_work, must_fail = name in works, name.endswith("!") and name not in works
            clear = code in CLEAR and len(said) > len("disk") and "not foreseen" not in said
            if seconds > PROMPT_SECONDS or not ((code is Code.OK and not must_fail) or (clear and not must_work)):
                wrong.append(verdict)
        assert not wrong, "\n".join(wrong)

    def demand_good_neighbour(self) -> None:
        """See that the other pool notices nothing."""
        driver = self.driver
        for pool in ("good", ""):
            volume = self.fresh(pool)()
            put(driver.attach(volume), DATA)
            driver.expand_controller(volume, LARGE)
            driver.detach(volume)
            driver.delete(volume)
        assert get(driver.target_path(self.neighbour), len(DATA)) == DATA
        driver.detach(self.neighbour)
        assert get(driver.attach(self.neighbour), len(DATA)) == DATA

    def let_go(self) -> None:
        """Take the pods away from the bad pool, which must be possible whatever has happened to it."""
        for volume in (self.directory, self.loopfile):
            self.driver.detach(volume)
        for volume in (self.idle, self.spare):
            self.driver.unstage(volume)

    def demand_recovery(self) -> None:
        """See that all is as it was and works again, without a restart."""
        driver = self.driver
        until(lambda: outcome(partial(driver.stage, self.idle)) is Code.OK, "the pool is back", seconds=15)
        for volume in self.troubled:
            assert get(driver.attach(volume), len(DATA)) == DATA
        for volume in (self.directory, self.idle):
            assert driver.expand(volume, LARGE) == LARGE
        volume = self.fresh()()
        put(driver.attach(volume), DATA)
        self.demand_good_neighbour()
        driver.release()
        assert not (left := driver.leftovers()), left


def answer(call: Callable[[], object]) -> tuple[Code, str]:
    """Return the code and the message that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        ended = cast("grpc.Call", error)
        return ended.code(), ended.details() or ""
    return Code.OK, ""


@contextmanager
def house(pool: str, folder: Path) -> Iterator[House]:
    """Serve both pools, with volumes in them."""
    env = preloaded(folder, QUICK)
    with serving(f"bad={pool}", "good=path:{root}/good", env=env) as driver:
        try:
            yield House(driver)
        finally:
            print(driver.output())


@pytest.fixture
def faulty(disk: Path) -> Iterator[FaultyDisk]:
    """Lend a disk that can fail."""
    with FaultyDisk(disk) as lent:
        yield lent


def make_io_fail(home: House, faulty: FaultyDisk) -> None:
    """Let the disk fail, and the filesystem notice."""
    faulty.fail()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        put(home.driver.target_path(home.directory), DATA)


def test_a_path_pool_whose_disk_fails_recovers_when_it_is_mounted_again(faulty: FaultyDisk, tmp_path: Path) -> None:
    make_filesystem(GROUNDS["xfs"].mkfs, faulty.device)
    with mounted(faulty.device, "prjquota") as pool, house(f"path:{pool}", tmp_path) as home:
        make_io_fail(home, faulty)
        home.demand_clear_answers()
        home.demand_good_neighbour()
        home.let_go()
        faulty.mend()
        unmount(pool, lazily=True)
        until(lambda: not in_use(faulty.device), "the driver lets go of a pool that was unmounted")
        linux.mount(str(faulty.device), str(pool), "xfs", options="prjquota")
        home.demand_recovery()


def test_a_device_pool_whose_disk_fails_and_goes_recovers_when_it_is_back(faulty: FaultyDisk, tmp_path: Path) -> None:
    with house(f"device:{faulty.device}", tmp_path) as home:
        make_io_fail(home, faulty)
        home.demand_clear_answers()
        home.demand_good_neighbour()
        home.let_go()
        unmount(home.driver.pool_roots()[0], lazily=True)
        until(lambda: not in_use(faulty.device), "the driver lets go of a pool that was unmounted")
        faulty.go()
        time.sleep(ROUNDS)
        home.demand_clear_answers()
        home.demand_good_neighbour()
        faulty.come_back()
        home.demand_recovery()


def test_a_disk_that_hangs_holds_up_its_own_pool_alone(faulty: FaultyDisk, tmp_path: Path) -> None:
    make_filesystem(GROUNDS["xfs"].mkfs, faulty.device)
    with mounted(faulty.device, "prjquota") as pool, house(f"path:{pool}", tmp_path) as home:
        doomed, held = home.make("doomed", "bad", DIRECTORY), home.fresh()
        home.driver.detach(doomed)
        calls: list[Callable[[], object]] = [
            held,
            partial(home.driver.delete, doomed),
            partial(home.driver.stage, home.idle),
        ]
        with ThreadPoolExecutor(len(calls)) as callers:
            with faulty.hanging():
                answers = [callers.submit(answer, call) for call in calls]
                time.sleep(ROUNDS)  # the driver looks after its pools meanwhile
                home.demand_good_neighbour()
                good = home.driver.pool_roots()[1]
                until(lambda: not list(good.glob(".trash*")), "what was deleted next door is removed")
                assert {answer(call)[0] for call in (home.driver.volumes, home.driver.capacity)} == {Code.OK}
                assert not any(one.done() for one in answers)
            assert {one.result()[0] for one in answers} == {Code.OK}
        home.driver.delete(held())
        home.demand_recovery()


def test_an_unmounted_pool_is_not_taken_for_an_empty_one(disk: Path, tmp_path: Path) -> None:
    make_filesystem(GROUNDS["xfs"].mkfs, disk)
    with mounted(disk, "prjquota") as pool, house(f"path:{pool}", tmp_path) as home:
        unmount(pool, lazily=True)
        home.demand_clear_answers()
        time.sleep(ROUNDS)
        home.demand_clear_answers()
        assert not list(pool.iterdir())
        home.demand_good_neighbour()
        assert get(home.driver.target_path(home.directory), len(DATA)) == DATA
        linux.mount(str(disk), str(pool), "xfs", options="prjquota")
        home.demand_recovery()


def test_a_read_only_pool_is_used_again_once_it_is_writable(disk: Path, tmp_path: Path) -> None:
    make_filesystem(GROUNDS["xfs"].mkfs, disk)
    with mounted(disk, "prjquota") as pool, house(f"path:{pool}", tmp_path) as home:
        home.driver.detach(home.loopfile)  # what is open for writing keeps a filesystem from becoming read-only
        home.driver.delete(home.loopfile)
        home.loopfile = home.directory
        linux.mount("", str(pool), flags=MS_REMOUNT | linux.MS_RDONLY, options="prjquota")
        home.demand_clear_answers()
        time.sleep(ROUNDS)
        home.demand_good_neighbour()
        assert get(home.driver.target_path(home.directory), len(DATA)) == DATA
        linux.mount("", str(pool), flags=MS_REMOUNT, options="prjquota")
        home.demand_recovery()


@pytest.mark.parametrize("filesystem", GROUNDS)
def test_a_pool_filled_to_the_last_byte_frees_room_by_deletion(filesystem: str, disk: Path, tmp_path: Path) -> None:
    ground = GROUNDS[filesystem]
    make_filesystem(ground.mkfs, disk)
    with mounted(disk, ground.options) as pool, house(f"path:{pool}", tmp_path) as home:
        fill_to_the_last_byte(pool)
        home.demand_clear_answers(works=frozenset({"stage", "stage a loopfile !", "list", "capacity", "stats"}))
        for volume in (home.directory, home.loopfile):
            assert get(home.driver.target_path(volume), len(DATA)) == DATA
        home.demand_good_neighbour()
        home.driver.unstage(home.idle)
        before = room(pool)
        home.driver.delete(home.idle)
        until(lambda: room(pool) >= before + 0.9 * SIZE, "the room of a deleted volume is back")
        for filler in pool.glob("filler*"):
            filler.unlink()
        until(lambda: answer(home.create_idle)[0] is Code.OK, "the room of deleted files is back")
        home.demand_recovery()


def fill_to_the_last_byte(pool: Path) -> None:
    """Use up all blocks there are: large files first, then small ones."""
    assert "No space left" in fill(pool, writer=ROOT, name="filler", at_most=1024 * MIB)
    with suppress(OSError):
        for number in range(10_000):
            put(pool, b"x" * 4096, name=f"filler-{number}")


def room(path: Path) -> int:
    """Return how many bytes are free."""
    seen = os.statvfs(path)
    return seen.f_bfree * seen.f_frsize
