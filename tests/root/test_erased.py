"""What is left on the disk of headers that were overwritten: nothing that a key would open."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from csi_local.model.quantity import KIB, MIB
from csi_local.model.volume import HEADER, KEY_SLOTS, Filesystem
from tests.contract.conftest import machine_with

if TYPE_CHECKING:
    from tests.contract.conftest import Machine

pytestmark = pytest.mark.root

MAGIC, SLOT = b"LUKS\xba\xbe", b"a key slot, of which there are many"
USED = 256 * KIB
"""As many bytes as a key slot has, and where one begins."""


def is_on_disk(machine: Machine) -> bool:
    """Whether a key slot is anywhere on the disk below the scratch filesystem, in blocks that are free too."""
    machine.host.sync_filesystem(machine.root)
    with (
        Path(f"{machine.outside}/scratch.img").open("rb") as disk,
        mmap.mmap(disk.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return data.find(SLOT) >= 0


@pytest.mark.parametrize("filesystem", [Filesystem.BTRFS, Filesystem.XFS])
def test_a_header_and_its_copy(filesystem: Filesystem, tmp_path: Path) -> None:
    with machine_with(filesystem, tmp_path) as machine:
        image, copy = machine.image("disk.img", HEADER + MIB), f"{machine.root}/header.img"
        with Path(image).open("r+b") as file:
            file.write(MAGIC + SLOT * (KEY_SLOTS // len(SLOT) - 1))
        machine.host.copy_header(image, copy)
        assert is_on_disk(machine)
        for path in (image, copy):
            machine.host.erase_header(path)
        assert not is_on_disk(machine)


@pytest.mark.parametrize("first", ["image", "clone"])
@pytest.mark.parametrize("filesystem", [Filesystem.BTRFS, Filesystem.XFS])
def test_a_key_that_was_given_up_after_the_image_was_cloned(filesystem: Filesystem, first: str, tmp_path: Path) -> None:
    with machine_with(filesystem, tmp_path) as machine:
        image, clone = machine.image("disk.img", HEADER + MIB, thick=True), f"{machine.root}/clone"
        with Path(image).open("r+b") as file:
            file.write(MAGIC + SLOT * (KEY_SLOTS // len(SLOT) - 1))
            file.seek(HEADER)
            file.write(b"data")
        machine.host.clone_image(image, clone)
        assert Path(clone).read_bytes() == Path(image).read_bytes()
        with Path(image).open("r+b") as file:
            file.seek(USED)
            file.write(bytes(USED))
        machine.host.sync_file(image)
        for path in (image, clone) if first == "image" else (clone, image):
            machine.host.erase_header(path)
        assert not is_on_disk(machine)
