"""Formatted once, never again: whatever the image or blkid seem to say, mkfs does not run and the data stays.

The driver finds its programs by its PATH, so that a folder put before the others holds a mkfs that tells of being
called, and any blkid that a test wants.
"""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.client import Code, outcome, refused
from tests.driver import serving
from tests.observe import get, loops, put, until
from tests.rules.kinds import BTRFS, EXT4, XFS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.client import Volume
    from tests.driver import Driver

pytestmark = pytest.mark.root

DATA = b"precious" * 1000
MKFS = {"ext4": "mkfs.ext4", "xfs": "mkfs.xfs", "btrfs": "mkfs.btrfs"}
SUPERBLOCKS = {"ext4": (0, 4096), "xfs": (0, 4096), "btrfs": (64 * 1024, 4096)}
"""Where blkid looks for each: offset and length."""
FAILING = (Code.FAILED_PRECONDITION, Code.UNAVAILABLE)
PATIENCE_S = 30
"""The driver's with blkid."""


class Bench:
    """A driver, a formatted volume with data in it that nobody uses, and the programs that the driver finds."""

    def __init__(self, driver: Driver, programs: Path, kind: Kind) -> None:
        self.driver = driver
        self.programs = programs
        self.kind = kind
        self.volume, self.other = self.make("formatted"), self.make("other")
        self.calls = programs / "mkfs-calls"
        for name in ("mkfs", *MKFS.values()):
            self.install(name, f'echo "$0 $*" >> {self.calls}; exit 1')

    def make(self, name: str) -> Volume:
        """Create a volume, use it once, and let it go."""
        volume = self.kind.create(self.driver, name=name)
        put(self.driver.attach(volume), DATA + name.encode())
        self.driver.detach(volume)
        return volume

    @property
    def image(self) -> Path:
        """The file that is the volume."""
        return self.driver.backing_file(self.volume)

    def install(self, name: str, script: str) -> None:
        """Put a program before the real one of that name."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def remove(self, name: str) -> None:
        """Let the real one be found again."""
        (self.programs / name).unlink()

    def demand_refusal(self, *words: str, codes: tuple[Code, ...] = (Code.FAILED_PRECONDITION,)) -> None:
        """Demand that staging is refused, by a message with these words, and that nothing is written."""
        before = self.image.stat()
        with refused(*codes) as refusal:
            self.driver.stage(self.volume)
        for word in words:
            assert word in refusal.message, refusal.message
        after = self.image.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns), "the image was written to"
        self.driver.unstage(self.volume)
        self.demand_no_mkfs()

    def demand_no_mkfs(self) -> None:
        """Demand that no mkfs was called."""
        assert not self.calls.exists(), self.calls.read_text()

    def demand_data(self, volume: Volume | None = None) -> None:
        """Demand that the volume has what was written to it."""
        volume = volume or self.volume
        wanted = DATA + volume.id.encode()
        assert get(self.driver.attach(volume), len(wanted) + 1) == wanted
        self.driver.detach(volume)
        self.demand_no_mkfs()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder that the driver looks into first."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def running(programs: Path) -> Iterator[Driver]:
    """Serve a pool."""
    path = f"{programs}:{os.environ['PATH']}"
    with serving("pool=image:{root}/pool.img,size=3Gi,allocation=thin", env={"PATH": path}) as driver:
        yield driver


@pytest.fixture
def driver(running: Driver) -> Driver:
    """Name the driver that `nothing_left` looks after."""
    return running


@pytest.fixture(params=[EXT4, XFS, BTRFS], ids=str)
def bench(request: pytest.FixtureRequest, driver: Driver, programs: Path, nothing_left: None) -> Iterator[Bench]:  # noqa: ARG001
    """Make a formatted volume, and afterwards the real programs found again."""
    yield Bench(driver, programs, request.param)
    shutil.rmtree(programs)
    programs.mkdir()


def test_the_wrapper_is_what_the_driver_calls(bench: Bench) -> None:
    """Without this, "no mkfs was called" would mean nothing."""
    fresh = bench.kind.create(bench.driver, name="fresh")
    with refused(Code.INTERNAL, Code.FAILED_PRECONDITION, Code.UNAVAILABLE):
        bench.driver.stage(fresh)
    assert MKFS[bench.kind.fs] in bench.calls.read_text()


def test_an_image_whose_superblock_is_gone(bench: Bench) -> None:
    offset, length = SUPERBLOCKS[bench.kind.fs]
    superblock = overwrite(bench.image, offset, bytes(length))
    bench.demand_refusal(bench.kind.fs, "nothing is found")
    overwrite(bench.image, offset, superblock)
    bench.demand_data()


def test_an_image_that_reads_as_blank_from_end_to_end(bench: Bench) -> None:
    aside = bench.image.with_suffix(".aside")
    size = bench.image.stat().st_size
    image = bench.image.rename(aside).with_suffix(".img")
    with image.open("wb") as blank:
        blank.truncate(size)
    bench.demand_refusal(bench.kind.fs, "nothing is found")
    aside.rename(image)
    bench.demand_data()


def test_a_filesystem_that_is_damaged_behind_its_superblock(bench: Bench) -> None:
    """The kernel sees it, blkid does not; it may write to its own log, but what is there afterwards is what was."""
    offset, length = SUPERBLOCKS[bench.kind.fs]
    first, size = offset + length, bench.image.stat().st_size
    aside = bench.image.with_suffix(".aside")
    shutil.copyfile(bench.image, aside)
    with bench.image.open("r+b") as image:
        image.seek(first)
        image.write(bytes(size - first))
    with refused(*FAILING) as refusal:
        bench.driver.stage(bench.volume)
    assert refusal.message
    bench.driver.unstage(bench.volume)
    bench.demand_no_mkfs()
    aside.rename(bench.image)
    bench.demand_data()


def test_an_image_that_was_exchanged_for_another_volumes(bench: Bench) -> None:
    mine, others = bench.image, bench.driver.backing_file(bench.other)
    exchange(mine, others)
    bench.demand_refusal(bench.kind.fs, "is found on it", "UUID")
    exchange(mine, others)
    bench.demand_data()
    bench.demand_data(bench.other)


def test_an_image_that_is_gone_or_cut_short(bench: Bench) -> None:
    image, aside = bench.image, bench.image.with_suffix(".aside")
    size = image.stat().st_size
    shutil.copyfile(image, aside)
    os.truncate(image, size // 2)
    bench.demand_refusal(f"{size // 2} bytes", str(size))
    aside.rename(image)
    bench.demand_data()


def test_a_blkid_that_says_nothing_is_there(bench: Bench) -> None:
    bench.install("blkid", "exit 2")
    bench.demand_refusal(bench.kind.fs, "nothing is found")
    bench.remove("blkid")
    bench.demand_data()


@pytest.mark.parametrize("bench", [EXT4], ids=str, indirect=True)
@pytest.mark.parametrize("status", [1, 2, 4, 8])
def test_a_blkid_that_fails(bench: Bench, status: int) -> None:
    bench.install("blkid", f'echo "blkid: it went wrong" >&2; exit {status}')
    bench.demand_refusal("blkid", "it went wrong", codes=FAILING)
    bench.remove("blkid")
    bench.demand_data()


def test_a_blkid_that_says_something_else_is_there(bench: Bench) -> None:
    bench.install("blkid", "echo TYPE=vfat; echo UUID=1234-ABCD")
    bench.demand_refusal(bench.kind.fs, "vfat", "1234-ABCD")
    bench.remove("blkid")
    bench.demand_data()


@pytest.mark.parametrize("bench", [EXT4], ids=str, indirect=True)
def test_a_blkid_that_cannot_be_run(bench: Bench) -> None:
    (bench.programs / "blkid").write_text("#!/no/such/interpreter\n")
    (bench.programs / "blkid").chmod(0o755)
    bench.demand_refusal("blkid", codes=FAILING)
    bench.remove("blkid")
    bench.demand_data()


@pytest.mark.parametrize("bench", [EXT4], ids=str, indirect=True)
def test_a_blkid_that_does_not_end(bench: Bench) -> None:
    """It has a child, as a wrapper has, which keeps its output open after it was killed itself."""
    bench.install("blkid", f"sleep {PATIENCE_S + 20}")
    began = time.monotonic()
    bench.demand_refusal("blkid", "no end", codes=FAILING)
    assert time.monotonic() - began < PATIENCE_S + 5
    bench.remove("blkid")
    bench.demand_data()


def test_mkfs_of_a_dead_driver_keeps_its_device(bench: Bench, programs: Path) -> None:
    """It has not opened the device yet: without that, the kernel would give the device to the next volume."""
    name, begun, go = MKFS[bench.kind.fs], programs / "begun", programs / "go"
    real = shutil.which(name)
    bench.install(name, f'touch {begun}; while [ ! -e {go} ]; do sleep 0.05; done; exec {real} "$@"')
    driver, fresh = bench.driver, bench.kind.create(bench.driver, name="fresh")
    with ThreadPoolExecutor(1) as pool:
        staging = pool.submit(outcome, lambda: driver.stage(fresh))
        until(begun.exists, "mkfs has begun")
        driver.kill()
        assert staging.result() is not Code.OK
    driver.start()
    image = str(driver.backing_file(fresh))
    assert image in loops().values()
    with refused(Code.ABORTED):
        driver.stage(fresh)
    go.touch()
    until(lambda: image not in loops().values(), "mkfs has ended")
    bench.remove(name)
    put(driver.attach(fresh), DATA)


def test_no_blkid_at_all(programs: Path) -> None:
    path = f"{programs}:{os.environ['PATH']}"
    with serving("pool=path:{root}/pool", env={"PATH": path}) as driver:
        bench = Bench(driver, programs, EXT4)
        driver.stop()
        driver.before = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /usr/sbin/blkid && exec "$@"', "sh"]
        driver.start()
        bench.demand_refusal("blkid", "not installed", codes=FAILING)
        driver.stop()
        driver.before = []
        driver.start()
        bench.demand_data()
        driver.release()
        assert not (left := driver.leftovers()), left


def overwrite(file: Path, offset: int, data: bytes) -> bytes:
    """Write durably, and return what was there."""
    handle = os.open(file, os.O_RDWR)
    try:
        before = os.pread(handle, len(data), offset)
        os.pwrite(handle, data, offset)
        os.fsync(handle)
    finally:
        os.close(handle)
    return before


def exchange(one: Path, other: Path) -> None:
    """Give each of two files the other's name."""
    aside = one.rename(one.with_suffix(".aside"))
    other.rename(one)
    aside.rename(other)
