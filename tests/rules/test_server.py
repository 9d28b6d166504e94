"""The process: its socket, its pools, its beginning and its end."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Client, Code, outcome
from tests.driver import Driver
from tests.observe import MIB
from tests.rules.kinds import BLOCK, EXT4

if TYPE_CHECKING:
    from tests.conftest import Start

pytestmark = pytest.mark.root

POOL = "path:{root}/pool"


class TestSocket:
    """One socket, for root alone, and nothing beside it."""

    def test_only_the_owner_may_talk(self, start: Start) -> None:
        driver = start(POOL)
        status = driver.socket.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600

    def test_the_umask_does_not_matter(self, start: Start) -> None:
        driver = start(POOL, before=["sh", "-c", 'umask 000; exec "$@"', "sh"])
        EXT4.create(driver)
        assert stat.S_IMODE(driver.socket.stat().st_mode) == 0o600
        loose = [path for path in (driver.root / "pool").rglob("*") if path.stat().st_mode & 0o022]
        assert not loose, "the pool is writable for others"

    def test_nothing_is_put_beside_it(self, start: Start) -> None:
        driver = start(POOL)
        EXT4.create(driver)
        assert list(driver.socket.parent.iterdir()) == [driver.socket]

    def test_a_stale_socket_is_replaced(self, folder: Path) -> None:
        driver = Driver(folder, POOL)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(driver.socket))
        driver.start()
        driver.stop()

    def test_a_socket_left_by_a_kill_is_replaced(self, start: Start) -> None:
        driver = start(POOL)
        driver.kill()
        assert driver.socket.exists()
        driver.start()

    def test_a_live_one_is_refused_and_goes_on(self, start: Start, folder: Path) -> None:
        first = start(POOL)
        second = Driver(folder, POOL)
        second.socket = first.socket
        assert str(first.socket) in second.refuse()
        assert first.is_ready()
        other = Client(first.root)
        other.connect(first.socket)
        assert other.is_ready(), "nobody new gets through"
        other.disconnect()

    @pytest.mark.parametrize("kind", ["file", "folder", "symlink"])
    def test_what_is_no_socket_is_left_alone(self, folder: Path, kind: str) -> None:
        driver = Driver(folder, POOL)
        precious = folder / "precious"
        precious.write_text("mine")
        if kind == "file":
            driver.socket.write_text("mine")
        elif kind == "folder":
            driver.socket.mkdir()
        else:
            driver.socket.symlink_to(precious)
        assert str(driver.socket) in driver.refuse()
        assert precious.read_text() == "mine"
        assert driver.socket.exists()

    @pytest.mark.parametrize(
        "endpoint",
        ["tcp://0.0.0.0:10000", "http://x", "unix://", "unix://relative.sock", "unix:///" + "x" * 200],
    )
    def test_other_endpoints_are_refused(self, folder: Path, endpoint: str) -> None:
        driver = Driver(folder, POOL, args=["--endpoint", endpoint])
        words = driver.refuse().lower()
        assert "endpoint" in words or endpoint.removeprefix("unix://") in words

    def test_the_endpoint_may_come_from_the_environment(self, start: Start) -> None:
        """The specification has CSI_ENDPOINT, and says that a plugin must listen there."""
        driver = start(POOL, env={"CSI_ENDPOINT": "unix://{root}/csi/csi.sock"})
        assert "--endpoint" not in driver.argv
        assert driver.is_ready()


class TestPools:
    """One agent for a pool."""

    @pytest.mark.parametrize("pool", ["path:{}/pool", "image:{}/pool.img,size=512Mi"])
    def test_a_second_driver_on_a_pool_is_refused_and_the_first_goes_on(
        self, start: Start, folder: Path, pool: str
    ) -> None:
        first = start(pool.format("{root}"))
        volume = BLOCK.create(first)
        target = first.attach(volume)
        observe.put(target, b"precious")
        words = Driver(folder, pool.format(first.root)).refuse()
        assert "pool" in words
        assert observe.get(target, 8) == b"precious"
        first.detach(volume)
        assert observe.get(first.attach(volume), 8) == b"precious"

    def test_a_pool_is_free_when_its_driver_was_killed(self, start: Start, folder: Path) -> None:
        first = start(POOL)
        volume = BLOCK.create(first)
        first.kill()
        with Driver(folder / "second", f"path:{first.root}/pool") as second:
            assert [each.volume_id for each in second.volumes()] == [volume.id]
        first.start()

    @pytest.mark.parametrize(
        "pool",
        [
            "path:relative",
            "p=nfs:/x",
            "/just/a/path",
            "image:{root}/pool.img",
            "image:{root}/pool.img,size=-1Gi",
            "image:{root}/pool.img,size=1Gi,fs=ntfs",
            "image:{root}/pool.img,size=1Gi,colour=red",
            "image:{root}/pool.img,size=1Pi",
            "device:/dev/no-such-device",
            "path:{root}/pool,media=tape",
            "path:{root}/pool,overcommit=0.5",
            "path:{root}/pool,reserve=101%",
        ],
    )
    def test_a_pool_that_makes_no_sense_is_refused(self, folder: Path, pool: str) -> None:
        words = Driver(folder, pool).refuse()
        assert re.search("pool|size|device|amount", words)
        assert not observe.belongings(folder).loops

    def test_a_device_with_something_on_it_is_never_formatted(self, folder: Path) -> None:
        disk = folder / "disk"
        with disk.open("wb") as file:
            file.truncate(512 * MIB)
        run("mkfs.ext4", "-q", disk)
        before = disk.read_bytes()[: 64 * MIB]
        device = run("losetup", "--find", "--show", disk).strip()
        try:
            assert device in Driver(folder / "driver", f"device:{device}").refuse()
        finally:
            run("losetup", "--detach", device)
        assert disk.read_bytes()[: 64 * MIB] == before

    def test_an_image_that_holds_something_else_is_never_formatted(self, folder: Path) -> None:
        image = folder / "pool.img"
        image.write_bytes(b"a family photo" * 1000)
        assert str(image) in Driver(folder, f"image:{image},size=512Mi").refuse()
        assert image.read_bytes() == b"a family photo" * 1000

    def test_no_pool_at_all(self, folder: Path) -> None:
        assert "pool" in Driver(folder).refuse()

    def test_one_pool_twice(self, folder: Path) -> None:
        assert "pool" in Driver(folder, POOL, POOL).refuse()

    def test_a_pool_keeps_its_volumes_when_the_driver_starts_again(self, start: Start) -> None:
        driver = start("image:{root}/pool.img,size=512Mi")
        volume = EXT4.create(driver)
        observe.put(driver.attach(volume), b"precious")
        driver.detach(volume)
        driver.kill()
        observe.take_down(driver.root)
        driver.start()
        assert observe.get(driver.attach(volume), 8) == b"precious"


def test_more_files_than_select_takes_may_be_open(start: Start) -> None:
    driver = start(POOL, before=["sh", "-c", 'ulimit -S -n 1024; exec "$@"', "sh"])
    limits = Path(f"/proc/{driver.process.pid}/limits").read_text()
    (line,) = (one for one in limits.splitlines() if one.startswith("Max open files"))
    soft, hard = map(int, line.split()[3:5])
    assert soft == min(hard, 65536)


class TestEnd:
    """How it goes."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_a_signal_ends_it_cleanly(self, start: Start, number: signal.Signals) -> None:
        driver = start(POOL)
        EXT4.create(driver)
        driver.process.send_signal(number)
        assert driver.process.wait(10) == 0
        driver.disconnect()
        assert "Traceback" not in driver.output()

    def test_a_signal_that_another_thread_takes(self, start: Start) -> None:
        """The kernel gives it to any thread, while the main one sleeps (signal(7), tgkill(2))."""
        driver = start(POOL)
        EXT4.create(driver)
        process = driver.process.pid
        threads = [int(path.name) for path in Path(f"/proc/{process}/task").iterdir()]
        other = next(number for number in threads if number != process)
        tgkill = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
        assert ctypes.CDLL(None).syscall(tgkill, process, other, int(signal.SIGTERM)) == 0
        assert driver.process.wait(10) == 0
        driver.disconnect()

    def test_a_signal_right_after_the_start(self, folder: Path) -> None:
        driver = Driver(folder, POOL)
        process = driver.launch()
        observe.until(lambda: driver.socket.exists() or process.poll() is not None, "a socket")
        driver.stop()

    def test_a_call_under_way_is_finished_or_can_be_repeated(self, start: Start) -> None:
        driver = start(POOL)
        volume = EXT4.create(driver, size=512 * MIB)
        codes: list[Code] = []
        thread = threading.Thread(target=lambda: codes.append(outcome(lambda: driver.stage(volume))))
        thread.start()
        observe.until(lambda: str(driver.backing_file(volume)) in observe.loops().values(), "staging began")
        driver.process.send_signal(signal.SIGTERM)
        thread.join()
        assert driver.process.wait(10) == 0
        driver.disconnect()
        assert codes[0] in (Code.OK, Code.UNAVAILABLE, Code.CANCELLED)
        driver.start()
        observe.put(driver.attach(volume), b"works")

    def test_a_mkfs_of_minutes_does_not_hold_it_up(self, start: Start, tmp_path: Path) -> None:
        mkfs = tmp_path / "mkfs.ext4"
        mkfs.write_text('#!/bin/sh\necho $$ > "$0.pid.new"\nmv "$0.pid.new" "$0.pid"\nexec sleep 30\n')
        mkfs.chmod(0o755)
        driver = start(POOL, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
        volume = EXT4.create(driver)
        thread = threading.Thread(target=lambda: outcome(lambda: driver.stage(volume)))
        thread.start()
        pid = tmp_path / "mkfs.ext4.pid"
        observe.until(pid.exists, "mkfs began")
        driver.stop()
        thread.join()
        mkfs.unlink()
        os.kill(int(pid.read_text()), signal.SIGKILL)
        driver.start()
        observe.put(driver.attach(volume), b"works")

    def test_probe_says_ready_and_the_log_says_where(self, start: Start) -> None:
        driver = start(POOL)
        assert driver.identity.Probe(csi.ProbeRequest()).ready.value
        assert str(driver.socket) in driver.output()


def run(*argv: str | Path) -> str:
    """Run a program and return what it prints."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
