"""The power goes at any moment: what was acknowledged is there, and nothing is there by halves."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.driver import serving
from tests.observe import MIB, get, put
from tests.uml import powercut
from tests.uml.conftest import MKFS_XFS, make_filesystem, mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.client import Volume
    from tests.driver import Driver
    from tests.uml.conftest import Disks

pytestmark = pytest.mark.uml

CUTS = 16
"""How many of the possible moments are tried, evenly spread."""
SMALL, LARGE = 64 * MIB, 96 * MIB
DATA = b"acknowledged" * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A volume of the story."""

    name: str
    backend: str
    fs: str = ""

    def create(self, driver: Driver) -> Volume:
        """Ask for it; asking again must find it."""
        return driver.create(self.name, SMALL, params={"backend": self.backend}, fs=self.fs)


DIRECTORY = Wanted(name="directory", backend="directory")
LOOPFILE = Wanted(name="loopfile", backend="loopfile", fs="ext4")
LATER = Wanted(name="later", backend="directory")
ALL = (DIRECTORY, LOOPFILE, LATER)


@dataclass(slots=True)
class Known:
    """What the client had begun, and what had been acknowledged to it, when the power went."""

    begun: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    def learn(self, mark: str) -> None:
        """Read one mark."""
        word, _, step = mark.partition(":")
        if word == "begun":
            self.begun.add(step)
        elif word == "done":
            self.done.add(step)


def test_a_power_cut_loses_nothing_acknowledged_and_leaves_nothing_half(disks: Disks) -> None:
    disk, rebuilt = disks.take(), disks.take()
    log, changes = disks.take_any(), disks.take_any()
    with powercut.Recording(disk, log) as recording:
        make_filesystem(MKFS_XFS, recording.device)
        recording.mark("done:mkfs")
        with mounted(recording.device, "prjquota") as pool:
            tell_the_story(recording, pool)
    entries = powercut.entries(log)
    known, replayed = Known(), 0
    for point in moments(entries):
        powercut.replay(log, entries[replayed:point], rebuilt)
        for entry in entries[replayed:point]:
            if entry.mark:
                known.learn(entry.mark)
        replayed = point
        print(f"the power goes after entry {point}; done: {', '.join(sorted(known.done))}")
        with powercut.cut(rebuilt, changes) as device, mounted(device, "prjquota") as pool:
            check(known, pool)
    for path in (disk, rebuilt, log, changes):
        disks.give_back(path)


def moments(entries: list[powercut.Entry]) -> list[int]:
    """Choose lengths of the prefixes to try: after a flush, once the filesystem is there."""
    start = next(number for number, entry in enumerate(entries) if entry.mark == "done:mkfs")
    possible = [number + 1 for number, entry in enumerate(entries) if number > start and entry.settles]
    step = max(1, len(possible) // CUTS)
    print(f"{len(entries)} entries, {len(possible)} moments, every {step}th is tried")
    return [*possible[::step], len(entries)]


def tell_the_story(recording: powercut.Recording, pool: Path) -> None:
    """Do what is done to volumes in their lives, and mark each step in the log."""

    @contextmanager
    def step(name: str) -> Iterator[None]:
        recording.mark(f"begun:{name}")
        yield
        recording.mark(f"done:{name}")

    with serving(f"disk=path:{pool}") as driver:
        with step("create-directory"):
            directory = DIRECTORY.create(driver)
        with step("write-directory"):
            put(driver.attach(directory), DATA)
        with step("create-loopfile"):
            loopfile = LOOPFILE.create(driver)
        with step("write-loopfile"):
            put(driver.attach(loopfile), DATA)
        with step("expand-loopfile"):
            driver.expand(loopfile, LARGE)
        with step("create-later"):
            LATER.create(driver)
        with step("delete-directory"):
            driver.detach(directory)
            driver.delete(directory)


def check(known: Known, pool: Path) -> None:
    """Start the driver on what the power cut left, and see that it is what the client must find."""
    with serving(f"disk=path:{pool}") as driver:
        sizes = {volume.volume_id: volume.capacity_bytes for volume in driver.volumes()}
        for wanted in ALL:
            if f"create-{wanted.name}" not in known.begun or f"delete-{wanted.name}" in known.done:
                assert wanted.name not in sizes
            elif f"delete-{wanted.name}" not in known.begun:
                assert wanted.name in sizes or f"create-{wanted.name}" not in known.done
                check_volume(known, wanted, driver)
        if "expand-loopfile" in known.done:
            assert sizes[LOOPFILE.name] == LARGE
        driver.release()
        assert not driver.leftovers()


def check_volume(known: Known, wanted: Wanted, driver: Driver) -> None:
    """Repeat what the client would, and demand that the volume is whole and has what was written to it."""
    volume = wanted.create(driver)
    target = driver.attach(volume)
    if f"write-{wanted.name}" in known.done:
        assert get(target, len(DATA)) == DATA
    if f"expand-{wanted.name}" in known.begun:
        assert driver.expand(volume, LARGE) == LARGE
    put(target, DATA, name="after")
    assert get(target, len(DATA), name="after") == DATA
