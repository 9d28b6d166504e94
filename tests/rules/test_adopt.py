"""`csi-local adopt` beside a driver that runs: the directory is a volume where it is, and outlives the volume."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Mode, Volume, capability, refused
from tests.driver import PROGRAM
from tests.observe import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Start
    from tests.driver import Driver

pytestmark = pytest.mark.root


@pytest.fixture
def driver(start: Start) -> Driver:
    """Run a driver with a pool that others share."""
    return start("path:{root}/disk/pool")


@pytest.fixture
def database(driver: Driver) -> Iterator[Path]:
    """Give a directory beside the pool, with something in it, which must be there in the end."""
    path = driver.root / "disk" / "database"
    path.mkdir()
    path.chmod(0o2750)
    (path / "table").write_text("rows")
    yield path
    assert (path / "table").read_text() == "rows"
    assert path.stat().st_mode & 0o7777 == 0o2750


def run(driver: Driver, *words: str, crash_point: str = "") -> subprocess.CompletedProcess[str]:
    """Run `csi-local adopt` with the driver's pools."""
    env = {**driver.env, "CSI_LOCAL_CRASH_POINT": crash_point}
    pools = [word for pool in driver.pools for word in ("--pool", pool)]
    argv = [str(PROGRAM), "adopt", *words, *pools, "--run-dir", str(driver.root / "run"), "--node-id", driver.node_id]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env)


MODES = {
    "ReadWriteOnce": Mode.SINGLE_NODE_MULTI_WRITER,
    "ReadWriteOncePod": Mode.SINGLE_NODE_SINGLE_WRITER,
    "ReadOnlyMany": Mode.MULTI_NODE_READER_ONLY,
}
"""What the kubelet makes of a PersistentVolume's access mode, of a driver that knows single writers."""


def adopt(driver: Driver, path: Path, *words: str) -> tuple[Any, Any, Volume]:
    """Adopt a directory; return the manifests, and the volume as the kubelet sees it: a PV without attributes."""
    done = run(driver, str(path), *words)
    assert done.returncode == 0, done.stderr
    volume, claim = yaml.safe_load_all(done.stdout)
    source = volume["spec"]["csi"]
    assert "volumeAttributes" not in source
    access = capability(mode=MODES[volume["spec"]["accessModes"][0]])
    return volume, claim, Volume(id=source["volumeHandle"], capability=access)


def test_a_whole_life(driver: Driver, database: Path) -> None:
    manifest, claim, volume = adopt(driver, database, "--claim", "data", "--namespace", "shop", "--size", "5Gi")
    assert manifest["spec"]["csi"]["driver"] == "csi-local.io"
    assert claim["metadata"] == {"namespace": "shop", "name": "data"}
    (listed,) = driver.volumes()
    assert (listed.volume_id, listed.capacity_bytes) == (volume.id, 5 * GIB)
    one = driver.attach(volume)
    two = driver.publish(volume, "two")
    assert (one / "table").read_text() == "rows"
    (one / "log").write_text("written by one")
    assert (two / "log").read_text() == (database / "log").read_text() == "written by one"
    usage = driver.stats(volume, one).usage
    assert {unit.unit for unit in usage} == {csi.VolumeUsage.BYTES, csi.VolumeUsage.INODES}
    with refused(Code.FAILED_PRECONDITION):
        driver.delete(volume)
    driver.unpublish(volume, "two")
    driver.detach(volume)
    driver.delete(volume)
    assert driver.volumes() == []


def test_killed_at_any_point(driver: Driver, database: Path) -> None:
    """It is recorded or not, and the same command again completes it; the driver beside it has no part in that."""
    trace = driver.root / "trace"
    first = run(driver, str(database), crash_point=f"trace:{trace}")
    driver.delete(Volume(id=yaml.safe_load(first.stdout.partition("---")[0])["spec"]["csi"]["volumeHandle"]))
    points = trace.read_text().splitlines()
    assert len(points) > 5
    for point in points:
        done = run(driver, str(database), crash_point=f"kill:{point}")
        assert done.returncode == -signal.SIGKILL
        recorded = [volume.volume_id for volume in driver.volumes()]
        assert len(recorded) == (point == points[-1])
        _, _, volume = adopt(driver, database)
        driver.attach(volume)
        driver.detach(volume)
        driver.delete(volume)
        assert not driver.leftovers()


def test_a_new_driver(driver: Driver, database: Path) -> None:
    _, _, volume = adopt(driver, database)
    target = driver.attach(volume)
    driver.kill()
    driver.start()
    before = observe.mounts(driver.root / "targets")
    driver.stage(volume)
    driver.publish(volume)
    assert observe.mounts(driver.root / "targets") == before
    driver.stop()
    observe.unmount(target)
    observe.unmount(driver.staging_path(volume))
    driver.start()
    assert (driver.publish(volume) / "table").read_text() == "rows"


def test_read_only_and_one_pod(driver: Driver, database: Path) -> None:
    manifest, _, volume = adopt(driver, database, "--access-mode", "ReadWriteOncePod", "--read-only")
    assert manifest["spec"]["csi"]["readOnly"] is True
    driver.stage(volume)
    target = driver.publish(volume, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "intruder").write_text("x")
    with refused(Code.FAILED_PRECONDITION):
        driver.publish(volume, "two", readonly=True)


def test_many_pods_that_only_read(driver: Driver, database: Path) -> None:
    _, _, volume = adopt(driver, database, "--access-mode", "ReadOnlyMany")
    driver.stage(volume)
    for target in [driver.publish(volume, name) for name in ("one", "two")]:
        assert (target / "table").read_text() == "rows"
        with pytest.raises(OSError, match="Read-only"):
            (target / "intruder").write_text("x")


def test_growth_promises_nothing(driver: Driver, database: Path) -> None:
    _, _, volume = adopt(driver, database, "--size", "1Gi")
    room = driver.capacity().available_capacity
    assert driver.expand(volume, 1 << 60) == 1 << 60
    assert abs(driver.capacity().available_capacity - room) < GIB


def test_another_directory_in_its_place(driver: Driver, database: Path) -> None:
    _, _, volume = adopt(driver, database)
    aside = database.with_name("aside")
    database.rename(aside)
    database.mkdir()
    with refused(Code.FAILED_PRECONDITION) as refusal:
        driver.stage(volume)
    assert "another directory" in refusal.message
    database.rmdir()
    database.symlink_to(aside)
    with refused(Code.FAILED_PRECONDITION):
        driver.stage(volume)
    assert not observe.mounts(driver.staging_path(volume))
    database.unlink()
    aside.rename(database)
    driver.attach(volume)


def test_moved_while_it_is_used(driver: Driver, database: Path) -> None:
    _, _, volume = adopt(driver, database)
    target = driver.attach(volume)
    aside = database.with_name("aside")
    database.rename(aside)
    assert (target / "table").read_text() == "rows"
    driver.detach(volume)
    assert not target.exists()
    aside.rename(database)


def test_a_disk_of_its_own(driver: Driver) -> None:
    """The directory is where a disk is mounted (here a directory stands for it): without it, it is not the volume."""
    disk, inside = driver.root / "disk" / "own", driver.root / "disk" / "what is on it"
    disk.mkdir()
    inside.mkdir()
    (inside / "table").write_text("rows")
    observe.mount_bind(inside, disk)
    _, _, volume = adopt(driver, disk)
    assert (driver.attach(volume) / "table").read_text() == "rows"
    driver.detach(volume)
    observe.unmount(disk)
    with refused(Code.FAILED_PRECONDITION):
        driver.stage(volume)
    observe.mount_bind(inside, disk)
    driver.attach(volume)
    driver.detach(volume)
    driver.delete(volume)
    assert (disk / "table").read_text() == "rows"
    observe.unmount(disk)


def test_a_group_of_a_pod(driver: Driver) -> None:
    path = driver.root / "disk" / "shared"
    path.mkdir()
    (path / "file").write_text("x")
    _, _, volume = adopt(driver, path)
    access = capability(mode=Mode.SINGLE_NODE_MULTI_WRITER, group="4711")
    driver.stage(volume, access=access)
    driver.publish(volume, access=access)
    assert {path.stat().st_gid, (path / "file").stat().st_gid} == {4711}


@pytest.mark.parametrize("what", ["pool", "pool/volumes", "etc", "file", "none", "above"])
def test_what_is_refused(driver: Driver, what: str) -> None:
    places = {"etc": "/etc", "above": str(driver.root / "disk"), "none": str(driver.root / "none")}
    (driver.root / "disk" / "file").touch()
    done = run(driver, places.get(what, str(driver.root / "disk" / what)))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("csi-local: ")
    assert driver.volumes() == []


def test_the_table_shows_it(driver: Driver, database: Path) -> None:
    adopt(driver, database, "--claim", "data")
    pools = [word for pool in driver.pools for word in ("--pool", pool)]
    argv = [str(PROGRAM), "volumes", *pools, "--run-dir", str(driver.root / "run")]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert str(database) in shown
    assert "default/data" in shown
