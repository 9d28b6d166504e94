"""The Kubernetes API for tests keeps what our client relies on."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from csi_local.kube.api import Api
from tests.contract.kubernetes import PROMISES, old_versions_expire
from tests.fake.kubernetes import Kubernetes

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("promise", PROMISES)
def test_the_api_for_tests(promise: Callable[[Api], None]) -> None:
    with Kubernetes() as server, closing(Api(server.credentials)) as api:
        promise(api)


def test_history_ends() -> None:
    with Kubernetes() as server:
        server.forget_history()
        with closing(Api(server.credentials)) as api:
            old_versions_expire(api)
