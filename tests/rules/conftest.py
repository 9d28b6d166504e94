"""One driver for the whole tier. A module that needs pools of its own overrides `driver`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.driver import Driver, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_driver() -> Iterator[Driver]:
    """Run a driver with one pool that can do quota, and one that is the quick-start default."""
    with serving("image:{root}/btrfs.img,size=4Gi,fs=btrfs", "image:{root}/xfs.img,size=6Gi") as driver:
        yield driver


@pytest.fixture
def driver(shared_driver: Driver) -> Driver:
    """Give the driver that a test talks to."""
    return shared_driver
