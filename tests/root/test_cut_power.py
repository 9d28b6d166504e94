"""What a disk has at one moment of what was synced by then, as the next start finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from csi_local.host.linux import LinuxHost
from csi_local.model.quantity import Bytes
from tests import observe
from tests.observe import MIB

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

SMALL, LARGE = Bytes(16 * MIB), Bytes(32 * MIB)


@pytest.mark.parametrize("thick", [True, False])
def test_an_image_that_was_resized_and_not_synced_is_synced_by_who_finds_it(
    place: Path, folder: Path, *, thick: bool
) -> None:
    """A driver died in between; the next one says in the record that the volume has grown."""
    host, image = LinuxHost(), place / "disk.img"
    host.make_image(str(image), SMALL, thick=thick)
    host.sync_filesystem(str(place))
    with image.open("r+b") as file:
        if thick:
            os.posix_fallocate(file.fileno(), SMALL, LARGE - SMALL)
        else:
            file.truncate(LARGE)
    host.resize_image(str(image), LARGE, thick=thick)
    host.replace_file(str(place / "volume.json"), b"it is large")
    shutil.copyfile(folder / "scratch.img", folder / "cut.img")
    observe.unmount(place)
    subprocess.run(["/usr/bin/mount", "-o", "loop", folder / "cut.img", place], check=True)
    assert (place / "volume.json").exists()
    assert image.stat().st_size == LARGE
