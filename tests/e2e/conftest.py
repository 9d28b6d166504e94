"""The cluster and each test's part of it. `make e2e` starts the cluster and then pytest, in one process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.conftest import FAILED
from tests.e2e import leaks
from tests.e2e.provided import CLUSTER, SHARED
from tests.e2e.workloads import Workloads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster import Cluster

NAME_LENGTH = 40


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Cluster:
    """Give the cluster with the driver in it."""
    if CLUSTER not in pytestconfig.stash:
        pytest.fail("there is no cluster; run: sudo make e2e", pytrace=False)
    return pytestconfig.stash[CLUSTER]


@pytest.fixture
def workloads(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Workloads]:
    """Make claims and pods for one test; afterwards nothing of them may be left, on the API or on any node.

    What is left by tests that share the cluster is seen when the last of them has ended.
    """
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:NAME_LENGTH].rstrip("-")
    made = Workloads(cluster, name)
    yield made
    made.remove()
    if not request.config.stash[SHARED] and not request.node.stash.get(FAILED, True):
        leaks.demand_none(cluster)
