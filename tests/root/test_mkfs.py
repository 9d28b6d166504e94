"""A mkfs that does not begin, because of what another device says."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.host.linux import LinuxHost
from csi_local.model.errors import Busy, FailedPrecondition
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import Filesystem

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def test_a_uuid_that_a_dead_drivers_mkfs_still_holds_is_waited_for(folder: Path) -> None:
    host, made_as = LinuxHost(), str(uuid.uuid4())
    files = [str(folder / name) for name in ("orphan", "volume")]
    for file in files:
        host.make_image(file, Bytes(300 * MIB), thick=False)

    def make(device: str) -> None:
        host.make_filesystem(device, Filesystem.BTRFS, uuid=made_as, label="", options=(), thick=False)

    with host.attach(files[1], sector_size=0, keep=False) as volume:
        with host.attach(files[0], sector_size=0, keep=False) as orphan:
            make(orphan.path)
            with pytest.raises(Busy, match="try again"):
                make(volume.path)
            assert host.probe(volume.path) is None
        make(volume.path)  # at once: nothing remembers the device that was
        found = host.probe(volume.path)
    assert found is not None
    assert found.uuid == made_as


def test_options_that_make_another_filesystem_are_found_out(folder: Path) -> None:
    """It would be mounted, written to, and never again taken for what was recorded."""
    host, file, made_as = LinuxHost(), str(folder / "volume"), str(uuid.uuid4())
    host.make_image(file, Bytes(64 * MIB), thick=False)
    with host.attach(file, sector_size=0, keep=False) as volume:
        make = partial(host.make_filesystem, volume.path, Filesystem.EXT4, uuid=made_as, label="", thick=False)
        with pytest.raises(FailedPrecondition, match="ext4dev"):
            make(options=("-E", "test_fs"))
        make(options=("-O", "^has_journal"))
