"""How long, and with which seed. A failure prints the seed; with it the same requests are made again."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.driver import Driver, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def seconds() -> float:
    """Return how long the storm is to last."""
    return float(os.environ.get("CSI_LOCAL_FUZZ_SECONDS", "25"))


@pytest.fixture
def seed() -> str:
    """Return the seed of everything random here, and print it (which pytest shows when the test fails)."""
    chosen = os.environ.get("CSI_LOCAL_FUZZ_SEED") or secrets.token_hex(4)
    print(f"CSI_LOCAL_FUZZ_SEED={chosen}")
    return chosen


@pytest.fixture
def driver() -> Iterator[Driver]:
    """Run a driver that logs as much as it can, with a pool that can do quota and the quick-start default."""
    pools = ("image:{root}/btrfs.img,size=2Gi,fs=btrfs", "image:{root}/xfs.img,size=4Gi")
    with serving(*pools, args=["--log-level", "debug"]) as driver:
        yield driver
