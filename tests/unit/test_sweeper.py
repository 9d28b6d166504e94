"""When the sweeper looks, and what waits for what."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from csi_local.engine import sweeper
from csi_local.engine.pools import Pools
from csi_local.engine.sweeper import Sweeper
from tests.fake.host import FakeHost
from tests.observe import until
from tests.unit.rig import RUN_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from csi_local.engine.pool import Pool


class Counting(Pools):
    """No pools, and how often they were tried again."""

    retries = 0

    def retry(self) -> list[Pool]:
        """Count."""
        self.retries += 1
        return []


def test_a_pool_that_goes_between_two_rounds_is_not_waited_for_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "_ROUND_S", 3600.0)
    monkeypatch.setattr(sweeper, "_MISSING_ROUND_S", 0.01)
    host = FakeHost()
    pools = Counting(host, (), RUN_DIR)
    at_work = Sweeper(host, pools)
    at_work.start()
    try:
        until(lambda: pools.retries == 1, "the first round")
        pools._missing["fast"] = "its disk is gone"
        until(lambda: pools.retries > 1, "it is tried again")
    finally:
        at_work.stop()


SLOW = ("/slow/.trash-a.1", "/slow/.trash-b.1")
FAST = ("/fast/.trash-a.1", "/fast/.trash-b.1")


class Hanging(FakeHost):
    """A machine with trash in two pools; the disk of one hangs while something is to be removed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.answers = threading.Event(), threading.Event()
        for path in (*SLOW, *FAST):
            self.make_dirs(path)

    def remove_tree(self, path: str) -> None:
        """See ``Files.remove_tree``."""
        if path in SLOW:
            self.reached.set()
            assert self.answers.wait(30)
        super().remove_tree(path)


@pytest.fixture
def host() -> Hanging:
    return Hanging()


@pytest.fixture
def stuck(host: Hanging) -> Iterator[Sweeper]:
    """Give a sweeper that has come upon the disk that hangs, with all trash before it."""
    at_work = Sweeper(host, Counting(host, (), RUN_DIR))
    at_work.start()
    for path in (*SLOW, *FAST):
        at_work.add(path)
    assert host.reached.wait(10)
    yield at_work
    host.answers.set()
    at_work.stop()


def test_a_disk_that_hangs_holds_up_no_other_pools_trash(stuck: Sweeper, host: Hanging) -> None:
    until(lambda: all(host.stat(path) is None for path in FAST), "the other pool's trash is removed")
    stuck.finish(0.01)
    assert all(host.stat(path) is not None for path in SLOW)
    host.answers.set()
    stuck.finish(10)
    assert all(host.stat(path) is None for path in SLOW)


def test_what_hangs_does_not_keep_the_driver_from_ending(stuck: Sweeper, host: Hanging) -> None:
    stuck.stop()
    host.answers.set()
    until(lambda: host.stat(SLOW[0]) is None, "what was begun is ended")
    stuck.stop()
    assert host.stat(SLOW[1]) is not None
