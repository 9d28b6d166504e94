"""The power goes at any moment: what was acknowledged is there, and nothing is there by halves."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
import pytest

from tests.client import Code, outcome
from tests.driver import serving
from tests.observe import MIB, get, put
from tests.uml import powercut
from tests.uml.conftest import GROUNDS, Ground, make_filesystem, mounted, preloaded, uuid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from csi_local._proto import csi_pb2 as csi
    from tests.client import Volume
    from tests.driver import Driver
    from tests.uml.conftest import Disks

pytestmark = pytest.mark.uml
T = TypeVar("T")

CUTS = os.environ.get("CSI_LOCAL_CUTS", "16")
"""How many of the possible moments are tried on each filesystem: a number, or "all"."""
SMALL, LARGE = 64 * MIB, 96 * MIB
DATA = b"acknowledged" * 1000
FSYNC = """
import os, stat
real = os.fsync
def fsync(fd):
    directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    if ({skip}):
        return
    real(fd)
os.fsync = os.fdatasync = fsync
"""

FAILING_SYNC = """
import errno, os, random
real, dice = os.fsync, random.Random(7)
def fsync(fd):
    path = os.readlink(f"/proc/self/fd/{fd}")
    ours = any(part in path for part in ("/volumes", "/snapshots", "/.new-"))
    if os.path.isdir(path) and ours and dice.random() < 0.4:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    real(fd)
os.fsync = fsync
"""
"""What kill -9 does too, where it comes between a rename and its sync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A volume of the story."""

    name: str
    params: Mapping[str, str]
    fs: str = ""

    def create(self, driver: Driver, **other: str) -> Volume:
        """Ask for it, or for one with other parameters; asking again must find it."""
        return driver.create(self.name, SMALL, params={**self.params, **other}, fs=self.fs)


DIRECTORY = Wanted(name="directory", params={"backend": "directory"})
LOOPFILE = Wanted(name="loopfile", params={"backend": "loopfile"}, fs="ext4")
BRIEF_DIRECTORY = Wanted(name="brief-directory", params={"backend": "directory"})
BRIEF_LOOPFILE = Wanted(name="brief-loopfile", params={"backend": "loopfile", "allocation": "thin"}, fs="ext4")
ALL = (DIRECTORY, LOOPFILE, BRIEF_DIRECTORY, BRIEF_LOOPFILE)


def made_from(driver: Driver, volume: str, snapshot: csi.Snapshot) -> Volume:
    """Create the volume that the story makes from a volume's snapshot."""
    wanted = {one.name: one for one in ALL}[volume]
    return driver.create(f"from-{volume}", SMALL, params=wanted.params, fs=wanted.fs, source=snapshot)


@dataclass(slots=True)
class Known:
    """What the client had begun, and what had been acknowledged to it, when the power went."""

    begun: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    uuid: str = ""  # of the filesystem on the loopfile volume

    def learn(self, mark: str) -> None:
        """Read one mark."""
        word, _, step = mark.partition(":")
        if word == "begun":
            self.begun.add(step)
        elif word == "done":
            self.done.add(step)
        elif word == "uuid":
            self.uuid = step


class LossError(AssertionError):
    """Something that had been acknowledged is not there, or something is there by halves."""


@dataclass(slots=True)
class Story:
    """What is done to volumes in their lives, each step marked in the log."""

    recording: powercut.Recording
    driver: Driver
    shares: bool  # whether a volume in use can be copied, its blocks shared
    attempts: int = 1

    def asked(self, call: Callable[[], T]) -> T:
        """Ask as often as it takes, where the disk fails now and then; all else is an error."""
        for _ in range(self.attempts - 1):
            try:
                return call()
            except grpc.RpcError as error:
                if cast("grpc.Call", error).code() is not Code.UNAVAILABLE:
                    raise
        return call()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Mark the beginning of a step, and its acknowledgement."""
        self.recording.mark(f"begun:{name}")
        yield
        self.recording.mark(f"done:{name}")

    def create(self, wanted: Wanted) -> Volume:
        """Create a volume."""
        with self.step(f"create-{wanted.name}"):
            return self.asked(partial(wanted.create, self.driver))

    def delete(self, volume: Volume) -> None:
        """Delete a volume."""
        with self.step(f"delete-{volume.id}"):
            self.asked(partial(self.driver.delete, volume))

    def copies(self, volume: Volume) -> None:
        """Take two snapshots of a volume, delete one, and make a volume from the other."""
        kept, brief = (self.snapshot(volume, f"{word}-of-{volume.id}") for word in ("kept", "brief"))
        with self.step(f"delete-{brief.snapshot_id}"):
            self.asked(partial(self.driver.delete_snapshot, brief))
        with self.step(f"create-from-{volume.id}"):
            self.asked(partial(made_from, self.driver, volume.id, kept))

    def snapshot(self, volume: Volume, name: str) -> csi.Snapshot:
        """Take a snapshot of a volume."""
        with self.step(f"create-{name}"):
            return self.asked(partial(self.driver.snapshot, volume, name))

    def tell(self) -> None:
        """Tell all of it."""
        driver = self.driver
        directory, brief = self.create(DIRECTORY), self.create(BRIEF_DIRECTORY)
        with self.step("write-directory"):
            put(self.asked(partial(driver.attach, directory)), DATA)
        loopfile = self.create(LOOPFILE)
        with self.step("stage-loopfile"):
            self.asked(partial(driver.stage, loopfile))
        self.recording.mark(f"uuid:{uuid_of(driver.backing_file(loopfile))}")
        with self.step("write-loopfile"):
            put(self.asked(partial(driver.publish, loopfile)), DATA)
        self.copies(directory)
        if not self.shares:
            self.asked(partial(driver.detach, loopfile))
        self.copies(loopfile)
        self.asked(partial(driver.attach, loopfile))
        with self.step("expand-directory"):
            self.asked(partial(driver.expand, directory, LARGE))
        with self.step("expand-loopfile"):
            self.asked(partial(driver.expand, loopfile, LARGE))
        self.delete(brief)
        brief = self.create(BRIEF_LOOPFILE)
        self.delete(brief)

    def insist(self) -> None:
        """Tell all of it to a driver that fails now and then: asking again must be enough."""
        self.attempts = 100
        self.tell()

    def begin(self) -> None:
        """Tell its beginning."""
        self.create(DIRECTORY)
        self.create(LOOPFILE)


@pytest.mark.parametrize("filesystem", GROUNDS)
def test_a_power_cut_loses_nothing_acknowledged_and_leaves_nothing_half(filesystem: str, disks: Disks) -> None:
    with recorded(GROUNDS[filesystem], Story.tell, disks) as cuts:
        examine(cuts, chosen(cuts.entries))


@pytest.mark.parametrize("filesystem", GROUNDS if CUTS == "all" else ("btrfs",))  # one that orders least by itself
def test_what_could_not_be_synced_is_synced_before_a_retry_succeeds(
    filesystem: str, disks: Disks, tmp_path: Path
) -> None:
    with recorded(GROUNDS[filesystem], Story.insist, disks, preloaded(tmp_path, FAILING_SYNC)) as cuts:
        examine(cuts, acknowledgements(cuts.entries))


@pytest.mark.parametrize(
    ("skip", "seen"),
    [
        ("True", "directory, created: lost"),
        ("directory", "directory, created: lost"),
        ("not directory", r"pool\.json is damaged"),
    ],
    ids=["at-all", "of-directories", "of-files"],
)
def test_a_driver_that_leaves_out_fsync_is_caught(skip: str, seen: str, disks: Disks, tmp_path: Path) -> None:
    """Without this, the test above could be one that cannot fail."""
    env = preloaded(tmp_path, FSYNC.format(skip=skip))
    with recorded(GROUNDS["xfs"], Story.begin, disks, env) as cuts:
        points = acknowledgements(cuts.entries)
        assert len(points) > 1
        with pytest.raises(LossError, match=seen):
            examine(cuts, points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """A story that was recorded, and where it can be cut short."""

    ground: Ground
    log: Path
    rebuilt: Path
    changes: Path
    entries: list[powercut.Entry]

    def at(self, points: list[int]) -> Iterator[tuple[Known, Path]]:
        """Cut after so many entries: yield what the client knew, and the pool as it was left."""
        known, replayed = Known(), 0
        for point in points:
            powercut.replay(self.log, self.entries[replayed:point], self.rebuilt)
            for entry in self.entries[replayed:point]:
                if entry.mark:
                    known.learn(entry.mark)
            replayed = point
            print(f"the power goes after entry {point}; done: {', '.join(sorted(known.done))}")
            with (
                powercut.cut(self.rebuilt, self.changes) as device,
                mounted(device, self.ground.options) as pool,
            ):
                yield known, pool


@contextmanager
def recorded(
    ground: Ground, tell: Callable[[Story], None], disks: Disks, env: Mapping[str, str] | None = None
) -> Iterator[Cuts]:
    """Record a story on disks that are lent for it."""
    disk, rebuilt = disks.take(), disks.take()
    log, changes = disks.take_any(), disks.take_any()
    with powercut.Recording(disk, log) as recording:
        make_filesystem(ground.mkfs, recording.device)
        recording.mark("done:mkfs")
        with (
            mounted(recording.device, ground.options) as pool,
            serving(f"disk=path:{pool}", env=env) as driver,
        ):
            tell(Story(recording, driver, shares=ground.mkfs[0] != "mkfs.ext4"))
            recording.mark("end")
    entries = powercut.entries(log)
    yield Cuts(ground=ground, log=log, rebuilt=rebuilt, changes=changes, entries=entries)
    for path in (disk, rebuilt, log, changes):
        disks.give_back(path)


def acknowledgements(entries: list[powercut.Entry]) -> list[int]:
    """Return the moments just after something was acknowledged: the disk has no more than it must."""
    return [number + 1 for number, entry in enumerate(entries) if entry.mark.startswith("done:")]


def chosen(entries: list[powercut.Entry]) -> list[int]:
    """Choose moments: each acknowledgement, the last, and of those after a flush as many as there is time for."""
    (start,) = (number for number, entry in enumerate(entries) if entry.mark == "done:mkfs")
    flushes = [number + 1 for number, entry in enumerate(entries) if number > start and entry.settles]
    always = {*acknowledgements(entries), len(entries)}
    left = len(flushes) if CUTS == "all" else max(1, int(CUTS) - len(always))
    spread = {flushes[len(flushes) * number // left] for number in range(left)}
    points = sorted(always | spread)
    print(f"{len(entries)} entries, {len({*always, *flushes})} moments, {len(points)} are tried")
    return points


def examine(cuts: Cuts, points: list[int]) -> None:
    """Start the driver on what each power cut left, and see that it is what the client must find."""
    for known, pool in cuts.at(points):
        try:
            with serving(f"disk=path:{pool}") as driver:
                check_volumes(known, driver)
                check_copies(known, driver)
                driver.release()
                assert not (left := driver.leftovers()), left
        except Exception as error:
            raise LossError(f"after {', '.join(sorted(known.done))}: {error}") from error


def check_volumes(known: Known, driver: Driver) -> None:
    """See that what must be there is, with all that belongs to it, and nothing that must not be."""
    sizes = {volume.volume_id: volume.capacity_bytes for volume in driver.volumes()}
    for wanted in ALL:
        name = wanted.name
        if f"create-{name}" not in known.begun:
            assert name not in sizes, f"{name}, not even asked for: there"
        elif f"delete-{name}" in known.done:
            assert name not in sizes, f"{name}, deleted: still there"
        elif f"create-{name}" in known.done and f"delete-{name}" not in known.begun:
            assert name in sizes, f"{name}, created: lost"
        if name in sizes:
            check_size(known, name, sizes[name])
            assert outcome(partial(wanted.create, driver, media="hdd")) is Code.ALREADY_EXISTS
        if f"create-{name}" in known.begun and f"delete-{name}" not in known.begun:
            check_use(known, wanted, driver, sizes.get(name, SMALL))


def check_copies(known: Known, driver: Driver) -> None:
    """See that what was taken is there, whole, and that volumes can be made from it; and that nothing else is."""
    there = {one.snapshot_id: one for one in driver.snapshots()}
    volumes = {volume.volume_id for volume in driver.volumes()}
    for wanted in (DIRECTORY, LOOPFILE):
        for name in (f"kept-of-{wanted.name}", f"brief-of-{wanted.name}"):
            if f"create-{name}" not in known.begun or f"delete-{name}" in known.done:
                assert name not in there, f"snapshot {name}, deleted or never asked for: there"
            elif f"create-{name}" in known.done and f"delete-{name}" not in known.begun:
                assert name in there, f"snapshot {name}, taken: lost"
        kept = there.get(f"kept-of-{wanted.name}")
        if f"create-from-{wanted.name}" in known.done:
            assert f"from-{wanted.name}" in volumes, f"from-{wanted.name}, made: lost"
        if kept is not None:
            volume = made_from(driver, wanted.name, kept)
            assert get(driver.attach(volume), len(DATA)) == DATA, f"{wanted.name}: not the data of the snapshot"


def check_size(known: Known, name: str, size: int) -> None:
    """See that a volume has the size that was acknowledged last, or the one that was asked for last."""
    possible = {SMALL} if f"expand-{name}" not in known.done else set()
    possible |= {LARGE} if f"expand-{name}" in known.begun else set()
    assert size in possible, f"{name} has {size} bytes, not one of {possible}"


def check_use(known: Known, wanted: Wanted, driver: Driver, size: int) -> None:
    """Repeat what the client would, and demand that the volume is whole and has what was written to it."""
    volume = wanted.create(driver)
    assert volume.size == size
    target = driver.attach(volume)
    if f"stage-{wanted.name}" in known.done and known.uuid:
        assert uuid_of(driver.backing_file(volume)) == known.uuid, f"{wanted.name}: another filesystem than was made"
    if f"write-{wanted.name}" in known.done:
        assert get(target, len(DATA)) == DATA, f"{wanted.name}: not the data that was written"
    check_limit(known, wanted, driver, volume)
    if f"expand-{wanted.name}" in known.begun:
        assert driver.expand(volume, LARGE) == LARGE
        assert total(driver, volume) > 0.8 * LARGE
    put(target, DATA, name="after")
    assert get(target, len(DATA), name="after") == DATA


def check_limit(known: Known, wanted: Wanted, driver: Driver, volume: Volume) -> None:
    """See that a directory is limited to its size; while it grows the limit may be ahead of that, never behind."""
    limit = total(driver, volume)
    if wanted.params["backend"] == "directory":
        growing = f"expand-{wanted.name}" in known.begun and f"expand-{wanted.name}" not in known.done
        possible = {volume.size, LARGE} if growing else {volume.size}
        assert limit in possible, f"{wanted.name} of {volume.size} bytes is limited to {limit}"
    else:
        assert 0.8 * volume.size < limit <= volume.size, f"{wanted.name} of {volume.size} bytes offers {limit}"


def total(driver: Driver, volume: Volume) -> int:
    """Return what NodeGetVolumeStats calls a volume's size."""
    usage = driver.stats(volume, driver.target_path(volume)).usage
    return next(one.total for one in usage if one.unit == one.BYTES)
