"""Snapshots: how long each takes, how long a writer waits for one, and what others notice."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from tests.bench import kinds
from tests.bench.neighbours import Small
from tests.bench.numbers import Summary, ms, summary
from tests.driver import serving
from tests.observe import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from csi_local._proto import csi_pb2 as csi
    from tests.bench.kinds import Kind
    from tests.client import Volume
    from tests.driver import Driver

POOL = 60 * GIB
SIZES = {"1 GiB": GIB, "1 TiB": 1 << 40}
LOOPS = (kinds.THIN_EXT4, replace(kinds.THIN_EXT4, name="thin xfs", fs="xfs"))
TREES = (kinds.ADVISORY, kinds.DIRECTORY)
FILES, FILE_BYTES, FOLDERS = 2000, 200 * MIB // 2000, 20
PIECE = os.urandom(64 << 10)
WRITER_PAUSE_S = 0.001
REMOVED_S = 0.5
"""After that a removal, which goes on in the background, disturbs nothing."""


class Settings(NamedTuple):
    """How many snapshots are taken of each volume."""

    times: int


FULL, QUICK = Settings(times=40), Settings(times=8)


class Loop(TypedDict):
    """A volume on a loop device: snapshots while it is unused, and while it is written to.

    `stall` is the longest that a write took, in milliseconds; `stall_quiet` while no snapshots were taken.
    """

    unused: Summary
    written: Summary
    stall: float
    stall_quiet: float


class Tree(TypedDict):
    """A directory volume of 200 MiB in 2,000 files."""

    snapshot: Summary
    restore: Summary
    clone: Summary


class Others(TypedDict):
    """Creating and deleting other volumes, while nothing else and while snapshots and restores of the tree are made."""

    quiet: Summary
    meanwhile: Summary


class Results(TypedDict):
    """By kind and size, by kind, by kind."""

    loops: dict[str, Loop]
    trees: dict[str, Tree]
    others: dict[str, Others]


def measure(settings: Settings) -> Results:
    """Measure loop volumes on XFS, and trees on both filesystems."""
    results = Results(loops={}, trees={}, others={})
    with serving(f"{kinds.pool('xfs', POOL, 'thin')},overcommit=1000") as driver:
        for kind in LOOPS:
            for size, number in SIZES.items():
                print(f"  {kind.name} of {size}", flush=True)
                results["loops"][f"{kind.name}, {size}"] = _loop(driver, kind, number, settings)
    for kind in TREES:
        name = f"directory on {kind.pool_fs}"
        print(f"  {name}", flush=True)
        with serving(kinds.pool(kind.pool_fs, POOL, "thin")) as driver:
            volume = _full_of_files(driver, kind)
            results["trees"][name] = _tree(driver, kind, volume, settings)
            results["others"][name] = _others(driver, kind, volume, settings)
    return results


def _snapshots(driver: Driver, volume: Volume, times: int) -> list[float]:
    took, made = [], []
    for number in range(times):
        began = time.perf_counter()
        made.append(driver.snapshot(volume, f"{volume.id}-{number}"))
        took.append(time.perf_counter() - began)
        time.sleep(0.05)
    for snapshot in made:
        driver.delete_snapshot(snapshot)
    return took


def _loop(driver: Driver, kind: Kind, size: int, settings: Settings) -> Loop:
    volume = driver.create(f"loop-{kind.fs}-{size}", size, params=kind.parameters, fs=kind.fs)
    target = driver.attach(volume)
    (target / "something").write_bytes(PIECE * 1024)
    driver.detach(volume)
    unused = _snapshots(driver, volume, settings.times)
    driver.attach(volume)
    with _writer(target) as quiet:
        time.sleep(0.1 * settings.times)
    with _writer(target) as stalls:
        written = _snapshots(driver, volume, settings.times)
    driver.detach(volume)
    driver.delete(volume)
    return Loop(unused=summary(unused), written=summary(written), stall=ms(max(stalls)), stall_quiet=ms(max(quiet)))


@contextmanager
def _writer(target: Path) -> Iterator[list[float]]:
    """Write 64 KiB again and again to a file of 64 MiB, as fast as a busy pod; what each took is in the list."""
    took: list[float] = [0.0]
    done = threading.Event()

    def write() -> None:
        fd = os.open(target / "written", os.O_WRONLY | os.O_CREAT)
        try:
            for number in count():
                if done.wait(WRITER_PAUSE_S):
                    return
                began = time.perf_counter()
                os.pwrite(fd, PIECE, number % 1024 * len(PIECE))
                took.append(time.perf_counter() - began)
        finally:
            os.close(fd)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()


def _full_of_files(driver: Driver, kind: Kind) -> Volume:
    volume = driver.create("tree", GIB, params=kind.parameters)
    staging = driver.stage(volume)
    data = os.urandom(FILE_BYTES)
    for folder in range(FOLDERS):
        (staging / str(folder)).mkdir()
    for number in range(FILES):
        (staging / str(number % FOLDERS) / f"{number:05}").write_bytes(data)
    os.sync()
    return volume


def _timed(action: Callable[[], object], into: list[float]) -> None:
    began = time.perf_counter()
    action()
    into.append(time.perf_counter() - began)


def _copies(
    driver: Driver, kind: Kind, volume: Volume, number: int, into: tuple[list[float], ...], *, pause_s: float = 0.0
) -> None:
    """One snapshot, one restore of it, one clone; then away with them."""
    snapshot, restore, clone = into
    name = f"of-the-tree-{number}"
    _timed(lambda: driver.snapshot(volume, name), snapshot)
    taken: csi.Snapshot = driver.snapshot(volume, name)
    for source, took, word in ((taken, restore, "restored"), (volume, clone, "cloned")):
        made = f"{word}-{number}"
        _timed(lambda made=made, source=source: driver.create(made, params=kind.parameters, source=source), took)  # type: ignore[misc]
        driver.delete(replace(volume, id=made))
        time.sleep(pause_s)
    driver.delete_snapshot(taken)


def _tree(driver: Driver, kind: Kind, volume: Volume, settings: Settings) -> Tree:
    snapshot, restore, clone = list[float](), list[float](), list[float]()
    for number in range(settings.times // 4):
        _copies(driver, kind, volume, number, (snapshot, restore, clone), pause_s=REMOVED_S)
        time.sleep(REMOVED_S)
    return Tree(snapshot=summary(snapshot), restore=summary(restore), clone=summary(clone))


def _others(driver: Driver, kind: Kind, volume: Volume, settings: Settings) -> Others:
    small = Small(driver.root)
    quiet, meanwhile = list[float](), list[float]()
    ignored: tuple[list[float], ...] = ([], [], [])

    def work() -> None:
        for number in range(settings.times // 4):
            _copies(driver, kind, volume, 1000 + number, ignored)

    small.during(lambda: time.sleep(2), quiet)
    small.during(work, meanwhile)
    return Others(quiet=summary(quiet), meanwhile=summary(meanwhile))
