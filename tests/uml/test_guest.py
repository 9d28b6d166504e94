"""The guest is what this tier takes it for: without these, a pass elsewhere would mean little."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from tests import observe
from tests.observe import MIB
from tests.uml import linux
from tests.uml.conftest import MKFS_EXT4_PRJQUOTA, MKFS_XFS, make_filesystem, mounted

pytestmark = pytest.mark.uml

CAP_SYS_RESOURCE = 24
"""capabilities(7); linux/capability.h."""


def test_root_has_every_capability_a_driver_can_use() -> None:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    assert effective >> CAP_SYS_RESOURCE & 1


def test_dm_crypt_encrypts(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write(bytes(MIB))
    table = f"0 2048 crypt aes-xts-plain64 {'00' * 32}{'11' * 32} 0 {disk} 0"
    subprocess.run(["dmsetup", "create", "plain", "--table", table], check=True)  # noqa: S607
    try:
        observe.put(Path("/dev/mapper/plain"), b"secret" * 100)
        assert observe.get(Path("/dev/mapper/plain"), 6) == b"secret"
    finally:
        subprocess.run(["dmsetup", "remove", "plain"], check=True)  # noqa: S607
    assert b"secret" not in observe.get(disk, MIB)


@pytest.mark.parametrize("mkfs", [MKFS_XFS, MKFS_EXT4_PRJQUOTA], ids=["xfs", "ext4"])
def test_project_quota_can_be_mounted(mkfs: tuple[str, ...], disk: Path) -> None:
    make_filesystem(mkfs, disk)
    with mounted(disk, "prjquota") as path:
        mount = observe.mount_at(path)
        assert mount is not None
        assert "prjquota" in mount.super_options


def test_loop_devices_do_direct_io_on_the_disk_under_tmp(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    argv = ["losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", str(image)]
    loop = Path(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())
    try:
        assert Path("/sys/block", loop.name, "loop/dio").read_text().strip() == "1"
        observe.put(loop, b"x" * 4096)
        assert observe.get(image.parent, 4096, name="image") == b"x" * 4096
    finally:
        subprocess.run(["losetup", "--detach", str(loop)], check=True)  # noqa: S607


def test_the_host_cannot_be_written(tmp_path: Path) -> None:
    linux.mount("none", str(tmp_path), "hostfs", options="/")
    try:
        for folder in ("var/tmp", "root", str(Path(__file__).parent).lstrip("/")):
            with pytest.raises(OSError, match="Read-only") as refusal:
                (tmp_path / folder / "written-by-the-guest").touch()
            assert refusal.value.errno == errno.EROFS
    finally:
        linux.umount(str(tmp_path))
