"""When the sweeper looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi_local.engine import sweeper
from csi_local.engine.pools import Pools
from csi_local.engine.sweeper import Sweeper
from tests.fake.host import FakeHost
from tests.observe import until
from tests.unit.rig import RUN_DIR

if TYPE_CHECKING:
    import pytest

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
