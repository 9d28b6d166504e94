"""What the kubelet is told of a node: what a restart may mend, and what it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from csi_local.cluster import ClusterPart
from csi_local.config import Config
from tests.unit.rig import RUN_DIR, Rig

if TYPE_CHECKING:
    from tests.fake.kubernetes import Kubernetes

LONG_AGO = -1e9


@pytest.fixture
def part(rig: Rig, cluster: Kubernetes) -> ClusterPart:
    config = Config(
        endpoint="",
        node_id="node-1",
        pools=tuple(rig.specs),
        run_dir=RUN_DIR,
        max_volumes=0,
        log_level="info",
        log_format="text",
        credentials=cluster.credentials,
    )
    return ClusterPart(config, rig, lambda *_: None, lambda _: None)


def wrong(part: ClusterPart) -> tuple[set[str], set[str]]:
    """Return the checks of life that fail, where all threads run, and those of readiness."""
    alive, ready = ({name for name, check in checks.items() if check()} for checks in (part.alive, part.looking))
    return alive - {"agent"}, ready


def test_a_disk_that_hangs_restarts_nothing(part: ClusterPart) -> None:
    assert wrong(part) == (set(), set())
    part.survey._looked = part._pools._acted = LONG_AGO
    assert wrong(part) == (set(), {"look", "survey"})


def test_a_loop_that_has_stopped_does(part: ClusterPart) -> None:
    part._lease._acted = LONG_AGO
    assert wrong(part) == ({"lease"}, set())
