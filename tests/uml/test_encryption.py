"""Encrypted volumes in the hands of a CO: LUKS2 through the kernel's own dm-crypt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from tests import observe
from tests.client import Code, Mode, refused
from tests.driver import PROGRAM, serving
from tests.observe import KIB, MIB
from tests.rules.kinds import LUKS_BLOCK, LUKS_BTRFS, LUKS_EXT4, Kind, fresh_name
from tests.uml.conftest import uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client import Volume
    from tests.driver import Driver

pytestmark = [pytest.mark.uml, pytest.mark.usefixtures("nothing_left")]

KEY = "correct horse battery staple"
HEADER = 16 * MIB
SECRETS = {"encryptionKey": KEY}
DATA = b"what nobody else may read, " * 4096
KEY_PROGRAM = """#!/bin/sh
question=$(cat)
echo "$question" >>{folder}/questions
case $question in
    *'"keyName": "none"'*) echo "no such key" >&2; exit 2 ;;
    *'"keyName": "down"'*) echo "the vault is sealed" >&2; exit 1 ;;
    *'"keyName": "empty"'*) exit 0 ;;
esac
echo "{key}"
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make key files and a key program."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "fast.key").write_text(f"{KEY}\n")
    (folder / "empty.key").write_text("\n")
    (folder / "out").symlink_to("/etc/hostname")
    program = folder / "key-program"
    program.write_text(KEY_PROGRAM.format(folder=folder, key=KEY))
    program.chmod(0o700)
    return folder


@pytest.fixture(scope="module")
def running(keys: Path) -> Iterator[Driver]:
    """Serve a pool."""
    args = ["--key-dir", str(keys), "--key-program", str(keys / "key-program"), "--log-level", "debug"]
    with serving("image:{root}/pool.img,size=2Gi,allocation=thin", args=args) as driver:
        yield driver


@pytest.fixture
def driver(running: Driver) -> Driver:
    """Give the driver, which is sent the right key unless a test says otherwise."""
    running.secrets = SECRETS
    return running


def carrier(driver: Driver, volume: Volume) -> Path:
    """Return the open device of a volume."""
    loops = [device for device, file in observe.loops().items() if file == str(driver.backing_file(volume))]
    (device,) = [device for device, below in observe.mapped().items() if below in loops]
    return Path(device)


def header_of(driver: Driver, volume: Volume) -> bytes:
    """Return what is in front of a volume's data."""
    with driver.backing_file(volume).open("rb") as image:
        return image.read(HEADER)


def open_by_hand(path: Path, name: str) -> None:
    """Do what a person would."""
    argv = ["cryptsetup", "open", "--key-file=-", str(path), name]
    subprocess.run(argv, input=KEY.encode(), check=True, env={**os.environ, "DM_DISABLE_UDEV": "1"})


@contextmanager
def opened_by_hand(path: Path, name: str) -> Iterator[None]:
    """Open it for a while."""
    open_by_hand(path, name)
    try:
        yield
    finally:
        subprocess.run(["dmsetup", "remove", name], check=True)  # noqa: S607


@pytest.mark.parametrize("kind", [LUKS_EXT4, LUKS_BTRFS, LUKS_BLOCK], ids=str)
def test_a_life(driver: Driver, kind: Kind) -> None:
    """Opening takes the time here, so that much is looked at on one volume."""
    volume = kind.create(driver, mode=Mode.SINGLE_NODE_MULTI_WRITER)
    image = driver.backing_file(volume)
    assert (volume.size, image.stat().st_size) == (kind.size, kind.size + HEADER)
    target = driver.attach(volume)
    observe.put(target, DATA)
    device = carrier(driver, volume)
    assert observe.device_size(device) == kind.size
    assert observe.mapper_name(str(device)) == f"csi-local-{volume.id}"
    header = header_of(driver, volume)
    driver.detach(volume)
    assert not driver.standing()
    assert observe.allocated(image) >= kind.size + HEADER
    assert not holds(image, DATA[:64])

    with refused(Code.UNAUTHENTICATED):
        driver.stage(volume, secrets={"encryptionKey": "wrong"})
    with refused(Code.UNAUTHENTICATED):  # as after a reboot: it would be staged again
        driver.publish(volume, secrets={})
    assert not driver.standing()
    driver.stage(volume, secrets={"encryptionKey": f"{KEY}\n"})  # what an editor puts there is no part of the key
    assert header_of(driver, volume) == header, "it was formatted again"

    driver.secrets = {}  # what is staged needs none to be published
    target = driver.publish(volume, "read-only", readonly=True)
    assert observe.get(target, len(DATA)) == DATA
    with pytest.raises(OSError, match=r"Read-only|not permitted"):
        observe.put(target, b"x")
    driver.unpublish(volume, "read-only")
    assert len(observe.belongings(driver.root).loops) == 2, "the pool's, and the volume's"
    assert observe.get(driver.publish(volume), len(DATA)) == DATA


@pytest.mark.parametrize("secrets", [{}, {"encryptionKey": ""}, {"encryptionKey": "\n"}, {"key": KEY}], ids=repr)
def test_without_a_key_nothing_is_formatted(driver: Driver, secrets: dict[str, str]) -> None:
    volume = LUKS_EXT4.create(driver)
    with refused(Code.UNAUTHENTICATED) as refusal:
        driver.stage(volume, secrets=secrets)
    assert "encryptionKey" in refusal.message
    assert observe.nonzero(driver.backing_file(volume)) is None
    assert not driver.standing()


def test_a_key_in_a_file_of_the_node(driver: Driver) -> None:
    driver.secrets = {}
    volume = LUKS_EXT4.create(driver, params={"keyProvider": "file", "keyName": "fast.key"})
    observe.put(driver.attach(volume), DATA)


def test_a_key_that_a_program_prints(driver: Driver, keys: Path) -> None:
    driver.secrets = {}
    params = {"keyProvider": "exec", "keyName": "team-a", "csi.storage.k8s.io/pvc/name": "data"}
    volume = LUKS_EXT4.create(driver, params=params)
    driver.attach(volume)
    assert driver.expand(volume, 2 * LUKS_EXT4.size) == 2 * LUKS_EXT4.size
    assert observe.device_size(carrier(driver, volume)) == 2 * LUKS_EXT4.size
    asked = {"version": 1, "volume": volume.id, "name": volume.id, "keyName": "team-a"}
    labels = {"csi.storage.k8s.io/pvc/name": "data"}
    lines = (keys / "questions").read_text().splitlines()[-2:]
    assert [json.loads(line) for line in lines] == [
        {**asked, "action": action, "labels": labels} for action in ("open", "grow")
    ]


@pytest.mark.parametrize(
    ("provider", "name", "code", "says"),
    [
        ("file", "none.key", Code.UNAUTHENTICATED, "cannot be read"),
        ("file", "empty.key", Code.UNAUTHENTICATED, "is empty"),
        ("file", "out", Code.FAILED_PRECONDITION, "a link out of there"),
        ("exec", "none", Code.UNAUTHENTICATED, "no such key"),
        ("exec", "down", Code.UNAVAILABLE, "the vault is sealed"),
        ("exec", "empty", Code.UNAUTHENTICATED, "is empty"),
    ],
)
def test_a_node_without_the_key(driver: Driver, provider: str, name: str, code: Code, says: str) -> None:
    volume = LUKS_EXT4.create(driver, params={"keyProvider": provider, "keyName": name})
    with refused(code) as refusal:
        driver.stage(volume)
    assert says in refusal.message
    assert observe.nonzero(driver.backing_file(volume)) is None
    assert not driver.standing()


def test_what_somebody_else_has_opened(driver: Driver) -> None:
    volume, other = LUKS_EXT4.create(driver), LUKS_EXT4.create(driver)
    driver.stage(volume)
    driver.unstage(volume)
    with opened_by_hand(driver.backing_file(volume), "by-hand"):
        with refused(Code.FAILED_PRECONDITION) as refusal:
            driver.stage(volume)
        assert "is open as by-hand" in refusal.message
        with refused(Code.FAILED_PRECONDITION):
            driver.delete(volume)
    with opened_by_hand(driver.backing_file(volume), f"csi-local-{other.id}"):
        with refused(Code.FAILED_PRECONDITION) as refusal:
            driver.stage(other)
        assert f"has the name csi-local-{other.id}" in refusal.message
    assert not driver.standing()


def test_open_and_not_mounted(driver: Driver) -> None:
    """What a driver leaves that died before it mounted; the next staging takes it, unstaging closes it."""
    volume = LUKS_EXT4.create(driver)
    observe.put(driver.attach(volume), DATA)
    driver.detach(volume)
    image, name = driver.backing_file(volume), f"csi-local-{volume.id}"
    open_by_hand(image, name)
    driver.unstage(volume)
    assert not driver.standing()
    open_by_hand(image, name)
    driver.attach(volume)
    driver.detach(volume)
    assert not driver.standing()

    # As when a disk was pulled and is back: the device is over what was, and nobody uses it.
    open_by_hand(image, name)
    os.sync()
    copy = image.with_name("copy")
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)  # noqa: S607
    copy.rename(image)
    assert observe.get(driver.attach(volume), len(DATA)) == DATA


def leave_half_open(driver: Driver, volume: Volume, *, loaded: bool) -> None:
    """Do what a cryptsetup does that is killed while it opens: device mapper takes three calls for that."""
    image, name = driver.backing_file(volume), f"csi-local-{volume.id}"
    uuid = f"CRYPT-LUKS2-{uuid_of(image).replace('-', '')}-{name}"
    subprocess.run(["dmsetup", "create", name, "--uuid", uuid, "--notable"], check=True, capture_output=True)  # noqa: S607
    if not loaded:
        return
    losetup = ["losetup", "--find", "--show", str(image)]
    loop = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    table = f"0 {LUKS_EXT4.size // 512} crypt aes-xts-plain64 {'ab' * 64} 0 {loop} {HEADER // 512}\n"
    subprocess.run(["dmsetup", "load", name], input=table, check=True, text=True)  # noqa: S607
    subprocess.run(["losetup", "--detach", loop], check=True)  # noqa: S607


@pytest.mark.parametrize("amid", ["made", "loaded"])
def test_an_opening_that_was_cut_short(driver: Driver, amid: str) -> None:
    volume = LUKS_EXT4.create(driver)
    observe.put(driver.attach(volume), DATA)
    driver.detach(volume)
    leave_half_open(driver, volume, loaded=amid == "loaded")
    assert observe.get(driver.attach(volume), len(DATA)) == DATA
    driver.detach(volume)
    if amid == "loaded":  # else nothing is to be seen, and nothing held
        leave_half_open(driver, volume, loaded=True)
        driver.unstage(volume)
    assert not driver.standing()


def test_discard_is_a_choice(driver: Driver) -> None:
    for choice, given_back in (("no", False), ("yes", True)):
        params = {"allocation": "thin", "encryptionDiscard": choice}
        volume = LUKS_EXT4.create(driver, params=params)
        target = driver.attach(volume)
        observe.put(target, os.urandom(16 * MIB))
        full = observe.allocated(driver.backing_file(volume))
        (target / "data").unlink()
        os.sync()
        subprocess.run(["fstrim", str(target)], check=given_back, capture_output=True)  # noqa: S607
        assert (observe.allocated(driver.backing_file(volume)) < full - 8 * MIB) == given_back


def test_thick_stays_thick(driver: Driver) -> None:
    """What is given back by those who chose that is reserved again at the next staging."""
    volume = LUKS_EXT4.create(driver, params={"encryptionDiscard": "yes"})
    image, size = driver.backing_file(volume), LUKS_EXT4.size + HEADER
    target = driver.attach(volume)
    assert observe.allocated(image) >= size
    subprocess.run(["fstrim", str(target)], check=True)  # noqa: S607
    assert observe.allocated(image) < size
    driver.detach(volume)
    driver.attach(volume)
    assert observe.allocated(image) >= size
    driver.expand(volume, 2 * LUKS_EXT4.size)
    assert observe.allocated(image) >= size + LUKS_EXT4.size


# --- what a key costs


def cryptsetups() -> int:
    """How many run now."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found += (process / "comm").read_text() == "cryptsetup\n"
    return found


def test_one_is_opened_at_a_time_with_the_memory_of_its_class(driver: Driver) -> None:
    volumes = [LUKS_EXT4.create(driver) for _ in range(3)]
    staging = [threading.Thread(target=driver.stage, args=(one,)) for one in volumes]
    for thread in staging:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in staging):
        seen.add(cryptsetups())
    assert seen == {0, 1}
    for volume in volumes:
        assert observe.mounts(driver.staging_path(volume))
        driver.unstage(volume)
    driver.stage(volumes[0], secrets={"encryptionKey": "battery staple", "previousEncryptionKey": KEY})
    argv = ["cryptsetup", "luksDump", str(driver.backing_file(volumes[0]))]
    dump = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    cost = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in dump.splitlines() if ":" in line}
    assert (cost["PBKDF"], cost["Memory"], cost["Time cost"], cost["Threads"]) == ("argon2id", "8192", "4", "1")


# --- copies, another key, a lost header


def header_left(image: BinaryIO) -> bytes:
    """Return what is left of the header in a file that has no name any more."""
    image.seek(0)
    return image.read(2 * MIB).strip(b"\0")


def test_copies_and_their_end(driver: Driver) -> None:
    """A snapshot of a volume in use, and a volume made from it, with the same key; each is erased as it is deleted."""
    volume = LUKS_EXT4.create(driver)
    observe.put(driver.attach(volume), DATA)
    snapshot = driver.snapshot(volume)
    restored = LUKS_EXT4.create(driver, size=2 * LUKS_EXT4.size, source=snapshot)
    target = driver.attach(restored)
    assert observe.get(target, len(DATA)) == DATA
    assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize > 1.8 * LUKS_EXT4.size
    observe.put(target, b"other", name="other")
    assert carrier(driver, volume) != carrier(driver, restored)
    with refused(Code.INVALID_ARGUMENT):
        driver.create("plain", LUKS_EXT4.size, fs="ext4", source=snapshot)

    driver.detach(restored)
    (root,) = driver.pool_roots()
    kept = root / "snapshots" / snapshot.snapshot_id / "disk.img"
    with kept.open("rb") as one, driver.backing_file(restored).open("rb") as other:
        assert header_left(one)
        driver.delete_snapshot(snapshot)
        driver.delete(restored)
        assert header_left(one) == header_left(other) == b""
    assert observe.get(driver.target_path(volume), len(DATA)) == DATA


def run(driver: Driver, command: str, *words: str, crash_point: str = "") -> subprocess.CompletedProcess[str]:
    """Run one of the program's other commands on the driver's pool."""
    argv = [str(PROGRAM), command, "--pool", *driver.pools, "--run-dir", str(driver.root / "run"), *words]
    env = {**os.environ, "CSI_LOCAL_CRASH_POINT": crash_point}
    return subprocess.run(argv, check=False, capture_output=True, text=True, env=env)


def opens(path: Path, key: str) -> bool:
    """Whether a key opens a volume, to cryptsetup's mind."""
    argv = ["cryptsetup", "open", "--test-passphrase", "--key-file=-", str(path)]
    return subprocess.run(argv, input=key.encode(), check=False, capture_output=True).returncode == 0


def test_another_key_while_a_pod_uses_it(driver: Driver, keys: Path) -> None:
    volume = LUKS_EXT4.create(driver)
    observe.put(driver.attach(volume), DATA)
    (keys / "new.key").write_text("battery staple\n")
    files = ["--old-key-file", str(keys / "fast.key"), "--new-key-file", str(keys / "new.key")]
    done = run(driver, "rotate-key", volume.id, *files, crash_point="kill:rotate:2:RemoveKey")
    assert done.returncode == -signal.SIGKILL
    assert all(opens(driver.backing_file(volume), key) for key in (KEY, "battery staple"))
    done = run(driver, "rotate-key", volume.id, *files)
    assert (done.returncode, done.stderr) == (0, "")
    driver.detach(volume)
    with refused(Code.UNAUTHENTICATED):
        driver.stage(volume)
    driver.secrets = {"encryptionKey": "battery staple"}
    assert observe.get(driver.attach(volume), len(DATA)) == DATA


def test_another_key_with_the_next_pod(driver: Driver) -> None:
    """The Secret has both keys: the volume's next staging, and that of what was made from its snapshot, rotates."""
    volume = LUKS_EXT4.create(driver)
    observe.put(driver.attach(volume), DATA)
    restored = LUKS_EXT4.create(driver, source=driver.snapshot(volume))
    driver.detach(volume)
    with refused(Code.UNAUTHENTICATED):
        driver.stage(volume, secrets={"encryptionKey": "battery staple", "previousEncryptionKey": "wrong"})
    assert opens(driver.backing_file(volume), KEY)
    driver.secrets = {"encryptionKey": "battery staple", "previousEncryptionKey": KEY}
    for one in (volume, restored):
        assert observe.get(driver.attach(one), len(DATA)) == DATA
        for path in (driver.backing_file(one), driver.backing_file(one).with_name("header.img")):
            assert (opens(path, KEY), opens(path, "battery staple")) == (False, True)


def test_a_lost_header(driver: Driver) -> None:
    """What doctor does about it is in `tests/unit/test_encryption.py`."""
    volume = LUKS_EXT4.create(driver)
    observe.put(driver.attach(volume), DATA)
    driver.detach(volume)
    image = driver.backing_file(volume)
    with image.open("r+b") as file:
        file.write(bytes(HEADER))
        with refused(Code.FAILED_PRECONDITION) as refusal:
            driver.stage(volume)
        assert "nothing is found on it now; it is left as it is" in refusal.message
        file.seek(0)
        assert not file.read(HEADER).strip(b"\0")
        file.seek(0)
        file.write(image.with_name("header.img").read_bytes())
    assert observe.get(driver.attach(volume), len(DATA)) == DATA


# --- the key is nowhere


@contextmanager
def watching(needle: bytes) -> Iterator[set[str]]:
    """Look for it in the command line and environment of every process, again and again."""
    found: set[str] = set()
    done = threading.Event()

    def look() -> None:
        own = os.getpid()
        while not done.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with suppress(OSError):
                        if int(process.name) != own and needle in (process / name).read_bytes():
                            found.add(f"{name} of {(process / 'comm').read_text().strip()}")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def test_the_key_is_nowhere(driver: Driver) -> None:
    marker = "hunter2-MARKER-of-a-key"
    driver.secrets = {"encryptionKey": marker}
    kind = replace(LUKS_EXT4, size=32 * MIB)
    with watching(marker.encode()) as seen:
        volume = kind.create(driver, name=fresh_name(), secrets=driver.secrets)
        driver.attach(volume)
        driver.expand(volume, 48 * MIB)
        driver.detach(volume)
        with refused(Code.UNAUTHENTICATED):
            driver.stage(volume, secrets={"encryptionKey": f"{marker}-wrong"})
        driver.stage(volume, secrets={"encryptionKey": f"{marker}-new", "previousEncryptionKey": marker})
    assert not seen
    assert volume.id in driver.output()
    for path in (driver.log, *driver.volume_dir(volume).iterdir()):
        assert not holds(path, marker.encode()), path
    (root,) = driver.pool_roots()
    os.sync()
    assert not holds(driver.root / "pool.img", marker.encode()), f"somewhere in {root}"


def holds(path: Path, needle: bytes) -> bool:
    """Whether the bytes stand anywhere in a file; its holes are skipped."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        offset = 0
        while offset < end:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return False
            data = os.pread(file.fileno(), 4 * MIB + KIB, offset)
            if needle in data:
                return True
            offset += 4 * MIB
    return False
