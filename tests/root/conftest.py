"""Fixtures of this tier."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.observe import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["xfs", "btrfs", "ext4"])
def filesystem(request: pytest.FixtureRequest) -> str:
    """Name the filesystem that a test is run on."""
    return str(request.param)


@pytest.fixture
def place(filesystem: str, folder: Path) -> Iterator[Path]:
    """Give a folder on a scratch filesystem."""
    image, point = folder / "scratch.img", folder / "scratch"
    with image.open("wb") as file:
        file.truncate(GIB)
    subprocess.run([f"/usr/sbin/mkfs.{filesystem}", "-q", image], check=True)
    point.mkdir()
    subprocess.run(["/usr/bin/mount", "-o", "loop", image, point], check=True)
    yield point
    observe.take_down(folder)
