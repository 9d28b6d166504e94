"""Snapshots are of one moment: of a volume that is being written to, and across the volumes of a group."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.driver import serving
from tests.observe import MIB
from tests.rules.kinds import EXT4, XFS, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.client import Volume
    from tests.driver import Driver

pytestmark = pytest.mark.root

RECORD = 512
ROUNDS = 5


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with serving("image:{root}/pool.img,size=8Gi,allocation=thin") as running:
        yield running


@contextmanager
def running(work: Callable[[int], None]) -> Iterator[None]:
    """Do *work* again and again, with a number that counts up, until the context is left."""
    done = threading.Event()
    failed: list[BaseException] = []

    def loop() -> None:
        number = 0
        try:
            while not done.is_set():
                number += 1
                work(number)
        except BaseException as error:  # noqa: BLE001 (raised below)
            failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        time.sleep(0.1)
        yield
    finally:
        done.set()
        thread.join()
    assert not failed, failed


def append(path: Path, number: int) -> None:
    """Write a record durably."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, str(number).encode().ljust(RECORD, b"."))
        os.fdatasync(fd)
    finally:
        os.close(fd)


def last(path: Path) -> int:
    """Return the number of the last record; all before it must be there."""
    data = path.read_bytes()
    numbers = [int(data[at : at + RECORD].rstrip(b".\0") or b"0") for at in range(0, len(data), RECORD)]
    while numbers and numbers[-1] == 0:  # a block of a file's end that was not written yet
        numbers.pop()
    assert numbers == list(range(1, len(numbers) + 1))
    return len(numbers)


def intact(driver: Driver, volume: Volume) -> None:
    """Demand that the filesystem on a volume's image needs no repair, once its log was replayed."""
    image = driver.backing_file(volume)
    check = ["e2fsck", "-fn"] if volume.capability.mount.fs_type == "ext4" else ["xfs_repair", "-n", "-f"]
    done = subprocess.run([f"/usr/sbin/{check[0]}", *check[1:], image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [EXT4, XFS], ids=str)
def test_what_was_synced_first_is_there_whatever_came_later(driver: Driver, kind: Kind) -> None:
    """A writer syncs a record to one volume, then the same to another. No group has the second without the first."""
    first, second = (kind.create(driver, name=f"{kind.fs}-{name}") for name in ("first", "second"))
    logs = [driver.attach(volume) / "log" for volume in (first, second)]
    seen = set()

    def both(number: int) -> None:
        for log in logs:
            append(log, number)

    groups = []
    with running(both):
        for number in range(ROUNDS):
            groups.append(driver.snapshot_group(f"{kind.fs}-{number}", first, second))
            time.sleep(0.05)
    for group in groups:
        of = {one.source_volume_id: one for one in group.snapshots}
        made = [kind.create(driver, name=f"r-{volume.id}", source=of[volume.id]) for volume in (first, second)]
        ahead, behind = (last(driver.attach(volume) / "log") for volume in made)
        assert behind <= ahead <= behind + 1
        seen.add(ahead)
        for volume in made:
            driver.detach(volume)
            intact(driver, volume)
            driver.delete(volume)
        driver.delete_group(group.group_snapshot_id)
    assert len(seen) == ROUNDS, "the writer did not get on between the groups"
    for volume in (first, second):
        driver.detach(volume)
        driver.delete(volume)


@pytest.mark.parametrize("kind", [EXT4, XFS], ids=str)
def test_a_database_that_goes_on(driver: Driver, kind: Kind) -> None:
    """Pages are rewritten and each round ends with a sync and a rename; every restore is one round, whole."""
    volume = kind.create(driver, name=f"{kind.fs}-database")
    target = driver.attach(volume)

    def commit(number: int) -> None:
        page = str(number).encode().ljust(64, b".") * 1024
        with (target / "new").open("wb") as file:
            file.write(page * 16)
            file.flush()
            os.fsync(file.fileno())
        (target / "new").rename(target / "table")

    snapshots = []
    with running(commit):
        for number in range(ROUNDS):
            snapshots.append(driver.snapshot(volume, f"{kind.fs}-{number}"))
            time.sleep(0.1)
    for snapshot in snapshots:
        restored = kind.create(driver, name=f"r-{snapshot.snapshot_id}", source=snapshot)
        table = (driver.attach(restored) / "table").read_bytes()
        assert len(table) == MIB
        assert len({table[at : at + 64] for at in range(0, MIB, 64)}) == 1
        driver.detach(restored)
        intact(driver, restored)
        driver.delete(restored)
        driver.delete_snapshot(snapshot)
    driver.detach(volume)
    driver.delete(volume)
