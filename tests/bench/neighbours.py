"""Head of line: what a long operation on one volume does to calls on others.

A long operation also takes processor and disk from everybody. So the calls are measured three times: while nothing
else is done, while the driver does the long thing, and while ordinary programs do the same. What the driver is to
blame for is the difference between the last two.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from tests.bench import kinds
from tests.bench.calls import Calls
from tests.bench.numbers import Summary, summary
from tests.bench.programs import MKFS, spawn
from tests.client import Code, capability, outcome
from tests.driver import serving
from tests.observe import GIB, MIB, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.client import Volume
    from tests.driver import Driver

POOL = 200 * GIB
"""Sparse; freed blocks come back in the background, so there must be room for several rounds."""
SMALL = 4 * MIB
GROUP = 4242
LONG_S = 120.0
"""By when a long operation must have ended."""
SLOW_OPTIONS = ("-O", "^metadata_csum,^uninit_bg,^flex_bg", "-g", "256")
"""An ext4 of very many small groups, each with its tables to be written: a mkfs that takes seconds."""
SLOW_MKFS = {"backend": "loopfile", "mkfsOptions": " ".join(SLOW_OPTIONS)}


class Settings(NamedTuple):
    """How often each long operation is done, and how long it is.

    The files in a tree, GiB of the slow mkfs, the volumes that are listed, the seconds of quiet and of listing.
    """

    rounds: int
    files: int
    gib: int
    listed: int
    seconds: float


FULL = Settings(rounds=5, files=50_000, gib=12, listed=1_000, seconds=2.0)
QUICK = Settings(rounds=1, files=10_000, gib=8, listed=200, seconds=1.0)


class Delay(TypedDict):
    """Small volumes' CreateVolume + DeleteVolume while nothing, the driver, or programs do the long thing.

    `p…_over_…` are the differences in milliseconds.
    """

    quiet: Summary
    driver: Summary
    programs: Summary
    long_seconds: float
    p50_over_quiet: float
    p99_over_quiet: float
    p50_over_programs: float
    p99_over_programs: float


@dataclass(slots=True)
class _Samples:
    quiet: list[float]
    driver: list[float]
    programs: list[float]
    long: list[float]


Results = dict[str, Delay]


class Small:
    """Somebody else's small volumes, made and deleted one after the other until told to stop."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._number = 0

    def during(self, work: Callable[[], object], into: list[float]) -> float:
        """Do *work*, and meanwhile measure; return how long the work took. What began and ended within it counts."""
        ended = threading.Event()
        found: list[tuple[float, float]] = []
        with ThreadPoolExecutor(1) as thread:
            loop = thread.submit(self._loop, ended, found)
            began = time.perf_counter()
            try:
                work()
            finally:
                end = time.perf_counter()
                ended.set()
        loop.result()
        into.extend(took for at, took in found if began <= at <= end)
        return end - began

    def _loop(self, ended: threading.Event, found: list[tuple[float, float]]) -> None:
        with Calls(self._root) as calls:
            while not ended.is_set():
                self._number += 1
                request = kinds.THIN_BLOCK.request(f"small-{self._number}", SMALL)
                began = time.perf_counter()
                calls.delete(calls.create(request))
                found.append((began, time.perf_counter() - began))


def measure(settings: Settings) -> Results:
    """Measure each long operation, with the two comparisons, in alternating rounds."""
    with serving(kinds.pool("xfs", POOL, "thin")) as driver:
        bench = _Bench(driver, Small(driver.root), settings)
        longs = {
            f"first stage of an ext4 of {settings.gib} GiB, slow mkfs": bench.mkfs,
            f"publish to a group, {settings.files} files": bench.group,
            f"delete of a directory, {settings.files} files": bench.removal,
            f"list {settings.listed} volumes, again and again": bench.listing,
        }
        return {name: _delay(name, run, settings) for name, run in longs.items()}


def _delay(name: str, run: Callable[[_Samples], None], settings: Settings) -> Delay:
    print(f"  {name}", flush=True)
    samples = _Samples([], [], [], [])
    for _ in range(settings.rounds):
        run(samples)
    quiet, driver, programs = (summary(some) for some in (samples.quiet, samples.driver, samples.programs))
    return Delay(
        quiet=quiet,
        driver=driver,
        programs=programs,
        long_seconds=round(sum(samples.long) / len(samples.long), 2),
        p50_over_quiet=round(driver["p50"] - quiet["p50"], 2),
        p99_over_quiet=round(driver["p99"] - quiet["p99"], 2),
        p50_over_programs=round(driver["p50"] - programs["p50"], 2),
        p99_over_programs=round(driver["p99"] - programs["p99"], 2),
    )


class _Bench:
    """One round of each long operation: quiet, by the driver, by programs."""

    def __init__(self, driver: Driver, small: Small, settings: Settings) -> None:
        self._driver = driver
        self._small = small
        self._settings = settings
        self._pool = driver.pool_roots()[0]

    def _measure(self, samples: _Samples, by_driver: Callable[[], object], by_programs: Callable[[], object]) -> None:
        self._small.during(lambda: time.sleep(self._settings.seconds), samples.quiet)
        samples.long.append(self._small.during(by_driver, samples.driver))
        self._small.during(by_programs, samples.programs)

    def mkfs(self, samples: _Samples) -> None:
        """The first staging of a large ext4 that is slow to make."""
        size = self._settings.gib * GIB
        volume = self._driver.create("large", size, params=SLOW_MKFS, fs="ext4")
        with _file(self._pool / "large.img", size) as image:
            slow = (*MKFS["ext4"], *SLOW_OPTIONS)
            self._measure(samples, lambda: self._driver.stage(volume), lambda: _format(image, slow))
        self._unstage(volume)
        self._driver.delete(volume)

    def group(self, samples: _Samples) -> None:
        """The first publication of a volume full of files to a group."""
        volume, data = self._tree()
        access = capability(group=str(GROUP))
        target = self._driver.target_path(volume)

        def by_driver() -> None:
            self._driver.publish(volume, target, access=access)

        def by_programs() -> None:
            spawn("chgrp", "-R", str(GROUP + 1), str(data))
            spawn("chmod", "-R", "g+rwX", str(data))

        self._measure(samples, by_driver, by_programs)
        self._driver.unpublish(volume, target)
        self._discard(volume)

    def removal(self, samples: _Samples) -> None:
        """The deletion of a volume full of files, until nothing of it is left."""
        volume, data = self._tree()
        twin = self._pool / "twin"
        shutil.copytree(data, twin)
        self._unstage(volume)
        self._measure(samples, lambda: self._discard(volume), lambda: spawn("rm", "-r", str(twin)))

    def listing(self, samples: _Samples) -> None:
        """ListVolumes, all of them, one after the other. Nothing but processor time, and all in Python."""
        with Calls(self._driver.root) as calls:
            for number in range(len(self._driver.volumes()), self._settings.listed):
                calls.create(kinds.THIN_BLOCK.request(f"listed-{number:06}", MIB))
        until_then = (
            f"import time; end = time.monotonic() + {self._settings.seconds}\nwhile time.monotonic() < end: pass"
        )
        self._measure(samples, self._list, lambda: spawn(sys.executable, "-c", until_then))

    def _list(self) -> None:
        end = time.monotonic() + self._settings.seconds
        while time.monotonic() < end:
            self._driver.volumes()

    def _tree(self) -> tuple[Volume, Path]:
        """A staged directory volume full of small files."""
        volume = self._driver.create("tree", GIB, params=kinds.ADVISORY.parameters)
        staging = self._driver.stage(volume)
        for number in range(self._settings.files):
            folder = staging / f"{number // 1000:03}"
            if number % 1000 == 0:
                folder.mkdir()
            os.close(os.open(folder / f"{number:06}", os.O_CREAT | os.O_WRONLY, 0o640))
        return volume, self._driver.volume_dir(volume) / "data"

    def _unstage(self, volume: Volume) -> None:
        """Unstage a volume, again if need be: somebody else on this machine may hold its device."""
        until(lambda: outcome(lambda: self._driver.unstage(volume)) is Code.OK, "unstaged", seconds=LONG_S)

    def _discard(self, volume: Volume) -> None:
        """Delete a volume and wait until the pool has nothing of it any more."""
        if self._driver.staging_path(volume).is_mount():
            self._unstage(volume)
        self._driver.delete(volume)
        until(lambda: not list(self._pool.glob(f".trash-{volume.id}.*")), "the trash is gone", seconds=LONG_S)


@contextmanager
def _file(path: Path, size: int) -> Iterator[Path]:
    spawn("fallocate", "-l", str(size), str(path))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _format(image: Path, mkfs: Sequence[str]) -> None:
    device = spawn("losetup", "--find", "--show", "--direct-io=on", str(image))
    try:
        spawn(*mkfs, device)
    finally:
        spawn("losetup", "--detach", device)
