"""What the programs say that check and grow an ext4, and what is made of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from csi_local.host import filesystems, syscalls
from csi_local.model.errors import CommandFailed, DriverError, FailedPrecondition
from csi_local.model.volume import Filesystem

if TYPE_CHECKING:
    from pathlib import Path

LEFT = "UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY."


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder whose programs are found before the system's: both content."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("e2fsck", "resize2fs"):
        says(tmp_path / name, "", 0)
    return tmp_path


def says(program: Path, text: str, status: int | str) -> None:
    end = f"exit {status}" if isinstance(status, int) else f"kill -{status} $$"
    program.write_text(f"#!/bin/sh\necho '{text}'\n{end}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("status", [0, 1])
def test_clean_or_corrected(programs: Path, status: int) -> None:
    says(programs / "e2fsck", "", status)
    filesystems.grow_unmounted("/dev/null")


@pytest.mark.parametrize(("name", "status"), [("e2fsck", 4), ("e2fsck", 8), ("e2fsck", 12), ("resize2fs", 1)])
def test_errors_that_are_left(programs: Path, name: str, status: int) -> None:
    says(programs / name, "x" * 5000 + LEFT, status)
    with pytest.raises(FailedPrecondition, match=LEFT) as caught:
        filesystems.grow_unmounted("/dev/null")
    assert len(str(caught.value)) < 1000
    assert "e2fsck" in str(caught.value)


def test_of_a_mounted_one(programs: Path) -> None:
    says(programs / "resize2fs", LEFT, 1)
    with pytest.raises(FailedPrecondition, match=LEFT):
        filesystems.grow_mounted("/none", Filesystem.EXT4, "/dev/null")
    says(programs / "resize2fs", "Operation not permitted", 1)
    with pytest.raises(FailedPrecondition, match="CAP_SYS_RESOURCE"):
        filesystems.grow_mounted("/none", Filesystem.EXT4, "/dev/null")


@pytest.mark.parametrize(
    ("offset", "bit"), [(0x3A, 0x2), (0x5C, 0x200), (0x64, 0x200)], ids=["errors", "sparse_super2", "bigalloc"]
)
def test_what_the_kernel_does_not_grow(tmp_path: Path, offset: int, bit: int) -> None:
    superblock = bytearray(2048)
    (tmp_path / "image").write_bytes(superblock)
    plain = filesystems.grows_mounted(str(tmp_path / "image"), Filesystem.EXT4)
    assert plain == syscalls.has_capability(syscalls.CAP_SYS_RESOURCE)
    superblock[1024 + offset : 1024 + offset + 2] = bit.to_bytes(2, "little")
    (tmp_path / "image").write_bytes(superblock)
    assert not filesystems.grows_mounted(str(tmp_path / "image"), Filesystem.EXT4)
    assert filesystems.grows_mounted(str(tmp_path / "image"), Filesystem.XFS)


def test_a_program_that_is_killed_says_nothing(programs: Path) -> None:
    says(programs / "e2fsck", LEFT, "KILL")
    with pytest.raises(DriverError) as caught:
        filesystems.grow_unmounted("/dev/null")
    assert type(caught.value) is CommandFailed
