"""How a running cluster gets from the program that starts it to the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.cluster import Cluster

CLUSTER: pytest.StashKey[Cluster] = pytest.StashKey()
SHARED: pytest.StashKey[bool] = pytest.StashKey()
"""Whether other tests run in the cluster meanwhile."""


class Provided:
    """A pytest plugin that hands a cluster to the session, and to that every so-manieth test if it has only a share."""

    def __init__(self, cluster: Cluster, share: tuple[int, int] = (0, 1)) -> None:
        self._cluster = cluster
        self._number, self._shares = share

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep it where the fixtures look for it."""
        config.stash[CLUSTER] = self._cluster
        config.stash[SHARED] = self._shares > 1

    @pytest.hookimpl(trylast=True)  # after `-m`
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the others' tests to them."""
        items[:] = items[self._number :: self._shares]
