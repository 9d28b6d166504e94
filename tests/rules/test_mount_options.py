"""mount_flags and volume_mount_group: honoured to the letter, or refused with nothing mounted."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Capability, Code, Mode, Volume, capability, outcome, refused
from tests.rules.kinds import DIRECTORY, EXT4, XFS, Kind, mounted_kinds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

NONSENSE = ["no-such-option", "noatime=yes", "-o", "--bind", "\N{SNOWMAN}", "noatime no", "a=b=c", "=x"]
HOSTILE = [
    "loop",
    "loop=/dev/loop0",
    "offset=512",
    "bind",
    "rbind",
    "move",
    "remount",
    "remount,rw",
    "shared",
    "private",
    "dev=/dev/vda",
    "device=/dev/vda",
    "subvol=..",
    "subvol=/",
    "subvolid=5",
    "logdev=/dev/vda",
    "rtdev=/dev/vda",
    "journal_path=/dev/vda",
    "journal_dev=0x100",
    "noatime,remount",
    "noatime,dev=/dev/vda",
    "noatime\nremount",
    "helper=/bin/sh",
    "X-mount.mkdir",
    "x-mount.mkdir=0777",
    "defaults,loop",
    "mand;id",
]


FEW = ["no-such-option", "bind", "remount", "loop", "dev=/dev/vda", "subvol=..", "noatime,suid,remount"]


def with_flags(kind: Kind, *flags: str, mode: Mode.Mode.ValueType = Mode.SINGLE_NODE_WRITER) -> Capability:
    """Return the capability of this kind with mount flags."""
    return capability(fs=kind.fs, flags=flags, mode=mode)


def options(target: Path) -> frozenset[str]:
    """Return the options that the kernel shows for a mount, its own and its filesystem's."""
    mount = observe.mount_at(target)
    assert mount is not None, f"nothing is mounted at {target}"
    return mount.options | mount.super_options


def attach(driver: Driver, volume: Volume, access: Capability) -> Path:
    """Stage and publish with one capability, as kubelet does."""
    driver.stage(volume, access=access)
    return driver.publish(volume, access=access)


class TestFlags:
    """What the user writes into mountOptions."""

    @mounted_kinds
    @pytest.mark.parametrize(
        "flags",
        [["noatime"], ["noexec"], ["nosuid"], ["nodev"], ["noatime", "noexec", "nosuid", "nodev"], ["ro"]],
        ids=",".join,
    )
    def test_flags_of_the_mount_are_seen(self, driver: Driver, kind: Kind, flags: Sequence[str]) -> None:
        target = attach(driver, kind.create(driver), with_flags(kind, *flags))
        assert set(flags) <= options(target)

    @mounted_kinds
    def test_without_flags_there_are_none(self, driver: Driver, kind: Kind) -> None:
        mount = observe.mount_at(driver.attach(kind.create(driver)))
        assert mount is not None
        assert not {"ro", "noexec", "noatime", "sync"} & (mount.options | mount.super_options)

    @mounted_kinds
    def test_flags_may_come_with_create_too(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, flags=["noatime"])
        assert "noatime" in options(driver.attach(volume))

    @mounted_kinds
    def test_noexec_stops_a_program(self, driver: Driver, kind: Kind) -> None:
        target = attach(driver, kind.create(driver), with_flags(kind, "noexec"))
        program = target / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        with pytest.raises(PermissionError):
            subprocess.run([program], check=True)

    @mounted_kinds
    def test_ro_is_read_only(self, driver: Driver, kind: Kind) -> None:
        target = attach(driver, kind.create(driver), with_flags(kind, "ro"))
        with pytest.raises(OSError, match="Read-only"):
            observe.put(target, b"x")

    @pytest.mark.parametrize(
        "flags", [["discard"], ["commit=30"], ["commit=30", "noatime", "errors=remount-ro"]], ids=",".join
    )
    def test_flags_of_the_filesystem_are_seen(self, driver: Driver, flags: Sequence[str]) -> None:
        volume = EXT4.create(driver, params={"allocation": "thin"})
        assert set(flags) <= options(attach(driver, volume, with_flags(EXT4, *flags)))

    @mounted_kinds
    def test_two_targets_have_their_own_flags(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver, mode=Mode.SINGLE_NODE_MULTI_WRITER)
        driver.stage(volume)
        strict = with_flags(kind, "noexec", mode=Mode.SINGLE_NODE_MULTI_WRITER)
        assert "noexec" in options(driver.publish(volume, "strict", access=strict))
        assert "noexec" not in options(driver.publish(volume, "plain"))

    @mounted_kinds
    def test_a_retry_with_the_same_flags_is_the_same(self, driver: Driver, kind: Kind) -> None:
        volume, access = kind.create(driver), with_flags(kind, "noatime", "noexec")
        target = attach(driver, volume, access)
        before = driver.standing()
        driver.restart()
        attach(driver, volume, access)
        assert driver.standing() == before
        assert {"noatime", "noexec"} <= options(target)

    @mounted_kinds
    @pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
    def test_staged_again_with_other_flags(self, driver: Driver, kind: Kind, *, restart: bool) -> None:
        volume = kind.create(driver)
        driver.stage(volume, access=with_flags(kind, "noatime"))
        if restart:
            driver.restart()
        with refused(Code.ALREADY_EXISTS):
            driver.stage(volume, access=with_flags(kind, "noexec"))

    @pytest.mark.parametrize(
        ("kind", "flag"),
        [(EXT4, flag) for flag in (*NONSENSE, *HOSTILE)] + [(kind, flag) for kind in (DIRECTORY, XFS) for flag in FEW],
        ids=ascii,
    )
    def test_nonsense_and_tricks_are_refused_and_nothing_is_mounted(
        self, driver: Driver, kind: Kind, flag: str
    ) -> None:
        volume = kind.create(driver)
        with refused(Code.INVALID_ARGUMENT):
            driver.stage(volume, access=with_flags(kind, flag))
        assert not driver.standing()
        observe.put(driver.attach(volume), b"works without")

    @mounted_kinds
    @pytest.mark.parametrize("flag", FEW)
    def test_tricks_are_refused_at_publish_too(self, driver: Driver, kind: Kind, flag: str) -> None:
        volume = kind.create(driver)
        driver.stage(volume)
        with refused(Code.INVALID_ARGUMENT):
            driver.publish(volume, access=with_flags(kind, flag))
        assert not driver.target_path(volume).exists()
        driver.publish(volume)

    def test_a_refused_flag_at_create_makes_nothing(self, driver: Driver) -> None:
        if outcome(lambda: EXT4.create(driver, flags=["bind"])) is not Code.OK:
            with refused(Code.INVALID_ARGUMENT):
                EXT4.create(driver, flags=["bind"])
            assert not driver.volumes()


class TestGroup:
    """A CO that asks for a group gets it; the kubelet does not, since only it knows the pod's fsGroupChangePolicy."""

    GID = 4711

    @pytest.fixture(autouse=True)
    def _not_announced(self, driver: Driver) -> None:
        answer = driver.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
        assert csi.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP not in {one.rpc.type for one in answer.capabilities}

    def group(self, kind: Kind, gid: str = str(GID), *flags: str) -> Capability:
        return capability(fs=kind.fs, group=gid, flags=flags)

    @mounted_kinds
    def test_a_member_of_the_group_can_write_and_hands_it_on(self, driver: Driver, kind: Kind) -> None:
        target = attach(driver, kind.create(driver), self.group(kind))
        status = target.stat()
        assert status.st_gid == self.GID
        assert status.st_mode & stat.S_ISGID
        assert stat.S_IMODE(status.st_mode) & 0o070 == 0o070
        as_member("mkdir sub && touch file sub/file", cwd=target, gid=self.GID)
        assert {path.stat().st_gid for path in (target / "file", target / "sub/file")} == {self.GID}

    @mounted_kinds
    def test_who_is_not_in_the_group_cannot_write(self, driver: Driver, kind: Kind) -> None:
        target = attach(driver, kind.create(driver), self.group(kind))
        with pytest.raises(subprocess.CalledProcessError):
            as_member("touch file", cwd=target, gid=self.GID + 1)

    @mounted_kinds
    def test_the_group_stays_over_a_restage_and_may_change(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        attach(driver, volume, self.group(kind))
        driver.detach(volume)
        target = attach(driver, volume, self.group(kind))
        as_member("touch file", cwd=target, gid=self.GID)
        driver.detach(volume)
        target = attach(driver, volume, self.group(kind, "4712"))
        as_member("touch other", cwd=target, gid=4712)

    @mounted_kinds
    def test_without_a_group_nothing_changes(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        target = driver.attach(volume)
        os.chown(target, 1000, 1000)
        target.chmod(0o700)
        driver.detach(volume)
        status = driver.attach(volume).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1000, 0o700)

    @mounted_kinds
    def test_a_group_on_a_read_only_volume(self, driver: Driver, kind: Kind) -> None:
        volume, access = kind.create(driver), self.group(kind)
        driver.stage(volume, access=access)
        target = driver.publish(volume, access=access, readonly=True)
        with pytest.raises(OSError, match="Read-only"):
            observe.put(target, b"x")

    @pytest.mark.parametrize(
        "gid", ["root", "-1", "4294967296", "4294967295", "1 2", "0x10", "1.5", " 1", "\u0661"], ids=ascii
    )
    def test_a_group_that_is_no_number_is_refused(self, driver: Driver, gid: str) -> None:
        volume = EXT4.create(driver)
        with refused(Code.INVALID_ARGUMENT):
            driver.stage(volume, access=self.group(EXT4, gid))
        assert observe.mount_at(driver.staging_path(volume)) is None

    def test_a_symlink_in_the_volume_does_not_hand_the_group_to_others(self, driver: Driver, tmp_path: Path) -> None:
        volume = EXT4.create(driver)
        outside = tmp_path / "outside"
        outside.write_text("not yours")
        (driver.attach(volume) / "link").symlink_to(outside)
        driver.detach(volume)
        attach(driver, volume, self.group(EXT4))
        assert outside.stat().st_gid == 0


def as_member(script: str, *, cwd: Path, gid: int) -> None:
    """Run a script as nobody, with this group."""
    subprocess.run(
        ["sh", "-c", f"umask 007; {script}"],  # noqa: S607
        cwd=cwd,
        user=65534,
        group=gid,
        extra_groups=[],
        check=True,
        capture_output=True,
    )
