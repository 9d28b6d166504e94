"""A short run of `make soak`, so that it stays true to what the driver is."""

from __future__ import annotations

import time

import pytest

from tests.soak.report import tables
from tests.soak.run import Plan, soak

pytestmark = pytest.mark.root

SECONDS = 12.0
"""Of load; the pools have to be made, and everything taken down."""
OPERATIONS = {"create", "stage", "publish", "write", "verify", "unpublish", "unstage", "delete", "take down"}
"""Without these a run would prove nothing."""


def test_a_mixed_load_with_faults_keeps_every_promise() -> None:
    plan = Plan(seconds=SECONDS, seed=time.time_ns() % (1 << 32), at_once=16)
    tally = soak(plan)
    print(tables(tally))
    assert not tally.violations, f"seed {plan.seed}\n" + "\n".join(tally.wrong())
    assert tally.operations.keys() >= OPERATIONS, f"seed {plan.seed}"
    assert tally.faults, f"seed {plan.seed}"
