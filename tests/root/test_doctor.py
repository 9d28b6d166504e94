"""Doctor on the real kernel: a pool with one of everything that can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import pytest

from csi_local.host.linux import LinuxHost
from csi_local.host.syscalls import ioctl, opened
from csi_local.model.errors import SyscallFailed
from csi_local.model.volume import VolumeId
from csi_local.store.records import decode, encode
from tests import observe
from tests.client import Code, capability, refused
from tests.driver import PROGRAM, Driver, serving
from tests.observe import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client import Volume

pytestmark = pytest.mark.root

SIZE = 16 * MIB
THIN = {"backend": "loopfile", "allocation": "thin"}
FIFREEZE = 0xC0045877
ALONE = ["empty", "truncated", "flipped", "newer", "other", "missing", "gone", "short"]
"""Volumes that nobody may touch: errors."""


@pytest.fixture
def driver() -> Iterator[Driver]:
    with serving("fast=image:{root}/pool.img,size=2Gi,allocation=thin,fs=btrfs") as running:
        yield running


def doctor(driver: Driver, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status, and what is said of the pool's contents, by place."""
    argv = [str(PROGRAM), "doctor", "--pool", *driver.pools, "--run-dir", str(driver.root / "run"), *words]
    done = subprocess.run([*argv, "--output", "json"], capture_output=True, check=False, timeout=60, text=True)
    assert done.stderr == ""
    rows = [row for row in json.loads(done.stdout) if "path" in row]
    assert len({row["check"] for row in rows}) == len(rows), "one line for each"
    return done.returncode, {row["check"].removeprefix("pool fast: "): row for row in rows}


def test_what_is_said_of_encryption_is_so(driver: Driver) -> None:
    """Whatever this kernel can do."""
    argv = [str(PROGRAM), "doctor", "--pool", *driver.pools, "--run-dir", str(driver.root / "run"), "--output", "json"]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60, text=True)
    (said,) = [row for row in json.loads(done.stdout) if row["check"] == "pool fast can be encrypted"]
    params = {"encryption": "luks2"}
    offered = driver.capacity(params, access=capability(fs="ext4")).available_capacity
    if said["state"] == "ok":
        assert offered > SIZE
        driver.create("encrypted", SIZE, params=params, fs="ext4")
        return
    assert "the kernel has no dm-crypt" in said["fix"]
    assert "encryption: luks2 is refused here" in said["fix"]
    assert offered == 0
    with refused(Code.RESOURCE_EXHAUSTED) as refusal:
        driver.create("encrypted", SIZE, params=params, fs="ext4")
    assert "the kernel has no dm-crypt" in refusal.message
    assert driver.volumes() == []


def digest(root: Path) -> dict[str, object]:
    """All that is in a pool but the blocks of volumes in use."""
    found: dict[str, object] = {}
    for folder, _, files in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            info = path.lstat()
            text = path.read_bytes() if path.name == "volume.json" else b""
            found[str(path.relative_to(root))] = (info.st_mode, info.st_uid, info.st_ino, text)
            if path.name == "disk.img":
                found[f"{path.relative_to(root)} size"] = info.st_size
    return found


class Sick:
    """A pool, and what was done to it."""

    def __init__(self, driver: Driver) -> None:
        self.root = driver.pool_roots()[0]
        self.volumes = {name: driver.create(name, SIZE, params=THIN, fs="ext4") for name in ALONE}
        for name in ("larger", "formatting", "stranger"):
            self.volumes[name] = driver.create(name, SIZE, params=THIN, fs="ext4")
        self.volumes["holes"] = driver.create("holes", SIZE, fs="ext4")
        self.volumes["limit"] = driver.create("limit", SIZE, params={"backend": "directory"})
        for name in ("trashed", "deleted", "writers"):
            self.volumes[name] = driver.create(name, SIZE, block=True)
            driver.stage(self.volumes[name])
        self.volumes["frozen"] = self.attach(driver, "frozen")
        self.point = driver.target_path(self.volumes["frozen"])

    @staticmethod
    def attach(driver: Driver, name: str) -> Volume:
        """Create a volume and mount it."""
        volume = driver.create(name, SIZE, params=THIN, fs="ext4")
        driver.attach(volume)
        return volume

    def record(self, name: str) -> Path:
        """A volume's record."""
        return self.root / "volumes" / name / "volume.json"

    def image(self, name: str) -> Path:
        """A volume's image."""
        return self.root / "volumes" / name / "disk.img"

    def spoil_records(self) -> None:
        """Spoil records in every way."""
        whole = self.record("empty").read_bytes()
        self.record("empty").write_bytes(b"")
        self.record("truncated").write_bytes(whole[:99])
        flipped = bytearray(self.record("flipped").read_bytes())
        flipped[flipped.index(b'"size":') + 8] ^= 1
        self.record("flipped").write_bytes(flipped)
        newer = self.record("newer").read_bytes().replace(b'"layout":', b'"layout":9')
        self.record("newer").write_bytes(newer)
        self.record("other").write_bytes(self.record("larger").read_bytes())
        self.record("missing").unlink()
        self.record("stranger").chmod(0o644)
        os.chown(self.record("stranger"), 4242, 4242)
        path = self.record("formatting")
        record = decode(path.read_bytes(), VolumeId("formatting"))
        values = {name: getattr(record, name) for name in record.__slots__}
        path.write_bytes(encode(type(record)(**{**values, "format": "formatting", "fs_uuid": "x"})))

    def spoil_bytes(self) -> None:
        """Spoil images and limits, and leave leftovers and strange things."""
        self.image("gone").unlink()
        os.truncate(self.image("short"), SIZE - 4096)
        os.truncate(self.image("larger"), SIZE + 4096)
        run("fallocate", "-p", "-o", "0", "-l", str(MIB), str(self.image("holes")))
        run("btrfs", "qgroup", "limit", "none", str(self.root / "volumes/limit/data"))
        for name in (".new-a", ".trash-b.1", ".probe-c", "volumes/.stray", "strange"):
            (self.root / name / "below").mkdir(parents=True)
        (self.root / "pool.json.tmp").write_text("{")
        self.record("larger").with_name("volume.json.tmp").write_text("{")

    def spoil_loops(self) -> None:
        """Delete volumes under their devices, and attach another device."""
        for name in ("trashed", "deleted"):
            (self.root / "volumes" / name).rename(self.root / f".trash-{name}.1")
        for path in sorted((self.root / ".trash-deleted.1").iterdir()):
            path.unlink()
        (self.root / ".trash-deleted.1").rmdir()
        run("losetup", "-f", str(self.image("writers")))


def run(*argv: str) -> None:
    """Run a program."""
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


@contextmanager
def frozen(*points: Path) -> Iterator[None]:
    """Freeze filesystems; should nobody thaw them soon, do it, since who writes to one cannot even be killed."""
    for point in points:
        with opened(str(point), os.O_RDONLY) as fd:
            ioctl(fd, FIFREEZE, 0, f"freeze {point}")
    rescue = Timer(20, lambda: [LinuxHost().thaw(str(point)) for point in reversed(points)])
    rescue.start()
    try:
        yield
        assert not any(LinuxHost().thaw(str(point)) for point in points)
    finally:
        rescue.function()
        rescue.cancel()


MENDED = {
    ".new-a",
    ".trash-b.1",
    ".trash-trashed.1",
    ".probe-c",
    "pool.json.tmp",
    "volumes/larger/volume.json.tmp",
    "volumes/stranger/volume.json",
    "volumes/holes/disk.img",
    "volumes/limit/data",
}
LEFT = {
    **{f"volumes/{name}/volume.json": "error" for name in ALONE if name not in ("gone", "short")},
    "volumes/gone/disk.img": "error",
    "volumes/short/disk.img": "error",
    "volumes/larger/disk.img": "info",
    "volumes/formatting/disk.img": "info",
    "volumes/writers/disk.img": "error",
    "volumes/.stray": "warning",
    "strange": "warning",
}


def test_one_of_each(driver: Driver) -> None:
    sick = Sick(driver)
    assert doctor(driver)[0] == 0, "nothing is wrong with what the driver has made"
    driver.stop()
    sick.spoil_records()
    sick.spoil_bytes()
    sick.spoil_loops()
    devices = {Path(file).parent.name: device for device, file in observe.loops().items() if str(sick.root) in file}
    orphans = {devices[".trash-trashed.1"], devices[".trash-deleted.1"]}
    writers = {device for device, file in observe.loops().items() if file == str(sick.image("writers"))}
    before = digest(sick.root)

    status, found = doctor(driver)
    assert digest(sick.root) == before
    assert status == 1
    assert {place: row["state"] for place, row in found.items() if not place.startswith("/dev/")} == {
        **dict.fromkeys(MENDED, "warning"),
        **LEFT,
    }
    devices_found = {place: row["mendable"] for place, row in found.items() if place.startswith("/dev/")}
    assert devices_found == dict.fromkeys(orphans, True) | dict.fromkeys(writers, False)

    with frozen(sick.point, sick.root):
        status, found = doctor(driver, "--repair")
        observe.put(sick.point, b"data")
    assert status == 1
    mended = {place for place, row in found.items() if row["state"] == "mended"}
    thawed = {str(sick.root), str(driver.staging_path(sick.volumes["frozen"])), str(sick.point)} & mended
    assert mended - thawed == MENDED | orphans
    assert (len(thawed), str(sick.root) in thawed) == (2, True), "each filesystem once"
    assert {place: row["state"] for place, row in found.items() if place not in mended | writers} == LEFT
    after = digest(sick.root)
    removed = {path for path in before if path.startswith((".new", ".trash", ".probe")) or path.endswith(".tmp")}
    assert before.keys() - after.keys() == {path for path in removed if ".stray" not in path}
    assert {path for path in after if after[path] != before[path]} == {"volumes/stranger/volume.json"}
    assert observe.allocated(sick.image("holes")) >= SIZE
    assert not orphans & observe.loops().keys()
    assert writers <= observe.loops().keys()

    driver.start()
    status, found = doctor(driver, "--repair")
    assert (status, found["pool fast"]["state"]) == (1, "error")
    assert "running csi-local" in found["pool fast"]["found"]


def test_other_names_are_not_taken_over(folder: Path) -> None:
    theirs, ours = folder / "theirs", folder / "volume.json"
    theirs.write_text("data")
    theirs.chmod(0o644)
    ours.hardlink_to(theirs)
    with pytest.raises(SyscallFailed, match="EMLINK"):
        LinuxHost().set_owner(str(ours), 0, 0o600)
    assert theirs.stat().st_mode & 0o777 == 0o644
