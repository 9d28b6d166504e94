"""Copies on the real machine of what is cut short, or for which the room ends, in the middle: never taken for whole."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.erasing import remove_erased
from csi_local.host.copying import copy_image
from csi_local.host.headers import copy_header, erase_header, restore_header
from csi_local.host.linux import LinuxHost
from csi_local.model.errors import SyscallFailed
from csi_local.model.quantity import KIB, MIB
from csi_local.model.volume import HEADER, KEY_SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b"LUKS\xba\xbe"
ENDS_AT = KEY_SLOTS - 512 * KIB


@contextmanager
def room_until(offset: int) -> Iterator[None]:
    """Let a write that goes beyond *offset* do a part of its work, and the next one fail: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a header whose key slots are full."""
    path = tmp_path / "disk.img"
    path.write_bytes(MAGIC + os.urandom(KEY_SLOTS - len(MAGIC)))
    os.truncate(path, HEADER + MIB)
    return path


class TestHeaders:
    def test_a_copy_that_has_no_room_is_none(self, image: Path, tmp_path: Path) -> None:
        copy = tmp_path / "header.img"
        with room_until(ENDS_AT), pytest.raises(SyscallFailed):
            copy_header(str(image), str(copy))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img"]
        copy_header(str(image), str(copy))
        assert copy.read_bytes() == image.read_bytes()[:KEY_SLOTS]

    @pytest.mark.parametrize("damage", [b"\0" * len(MAGIC), b"\xff" * 32 * KIB], ids=["wipefs", "overwritten"])
    def test_key_slots_do_not_outlive_a_damaged_header(self, image: Path, damage: bytes) -> None:
        """With what is known of it from elsewhere they would open it."""
        with image.open("r+b") as file:
            file.write(damage)
        before = image.read_bytes()
        erase_header(str(image))  # it may be anything
        assert image.read_bytes() == before
        erase_header(str(image), encrypted=True)
        assert not any(image.read_bytes())

    def test_what_was_never_encrypted_takes_no_room(self, tmp_path: Path) -> None:
        image = tmp_path / "disk.img"
        with image.open("xb") as file:
            file.truncate(HEADER + MIB)
        erase_header(str(image), encrypted=True)
        assert image.stat().st_blocks == 0

    def test_a_copy_that_was_cut_short_is_not_put_back(self, image: Path, tmp_path: Path) -> None:
        copy = tmp_path / "header.img"
        copy_header(str(image), str(copy))
        before = image.read_bytes()
        os.truncate(copy, ENDS_AT)
        with pytest.raises(SyscallFailed):
            restore_header(str(copy), str(image))
        assert image.read_bytes() == before

    def test_putting_it_back_without_room_fails(self, image: Path, tmp_path: Path) -> None:
        copy = tmp_path / "header.img"
        copy_header(str(image), str(copy))
        erase_header(str(image))
        with room_until(ENDS_AT), pytest.raises(SyscallFailed):
            restore_header(str(copy), str(image))
        assert not image.read_bytes().startswith(MAGIC)  # it can be tried again
        restore_header(str(copy), str(image))
        assert image.read_bytes().startswith(copy.read_bytes())

    @pytest.mark.parametrize("ended_by", ["the next", "deletion", "repair"])
    def test_of_a_copy_that_was_cut_short_no_key_slot_is_left(self, image: Path, tmp_path: Path, ended_by: str) -> None:
        """Its blocks, which another name shows here, are somebody else's next."""
        volume = tmp_path / "volume"
        volume.mkdir()
        image = image.rename(volume / "disk.img")
        unfinished, blocks = volume / "header.img.tmp", tmp_path / "blocks"
        unfinished.write_bytes(image.read_bytes()[:ENDS_AT])
        blocks.hardlink_to(unfinished)
        if ended_by == "the next":
            copy_header(str(image), str(volume / "header.img"))
        else:
            remove_erased(LinuxHost(), str(volume if ended_by == "deletion" else unfinished))
        assert not unfinished.exists()
        assert not any(blocks.read_bytes())


class TestImages:
    def test_a_source_that_is_cut_short_meanwhile(self, tmp_path: Path) -> None:
        source, asked = tmp_path / "source", []
        source.write_bytes(b"\x01" * (24 * MIB))

        def proceed() -> None:
            asked.append(True)
            if len(asked) == 2:
                os.truncate(source, 9 * MIB)

        with pytest.raises(SyscallFailed) as caught:
            copy_image(str(source), str(tmp_path / "copy"), proceed)
        assert caught.value.errno == errno.EIO
