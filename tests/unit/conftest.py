"""A machine and an API server in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fake.kubernetes import Kubernetes
from tests.unit.rig import Rig
from tests.unit.stage import NODE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def cluster() -> Iterator[Kubernetes]:
    with Kubernetes() as made:
        yield made


@pytest.fixture
def rig() -> Rig:
    made = Rig(node_name=NODE)
    made.start()
    return made
