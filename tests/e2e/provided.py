"""How a running cluster gets from the program that starts it to the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.cluster import Cluster

CLUSTER: pytest.StashKey[Cluster] = pytest.StashKey()


class Provided:
    """A pytest plugin that hands a cluster to the session."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep it where the fixtures look for it."""
        config.stash[CLUSTER] = self._cluster
