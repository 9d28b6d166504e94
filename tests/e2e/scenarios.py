"""The scenarios: most mind only their own claims and run side by side; those marked `alone` need the whole cluster."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e import leaks
from tests.e2e.api import Api
from tests.e2e.provided import Provided

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.e2e.cluster import Cluster

SHARES = 3
"""So many at once: a scenario mostly waits for the kubelet's next look."""
ENDED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def run(cluster: Cluster, argv: Sequence[str]) -> int:
    """Run all scenarios, or, one after the other, those that pytest's arguments name; return the exit code."""
    if argv:
        return pytest.main(["-m", "e2e", "tests/e2e", *argv], plugins=[Provided(cluster)])
    outputs = [cluster.logs / f"scenarios-{number}.txt" for number in range(SHARES)]
    children = [_start(cluster, number, output) for number, output in enumerate(outputs)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for output in outputs:
        print(output.read_text(), flush=True)
    codes.append(_left(cluster))
    codes.append(pytest.main(["-m", "e2e and alone", "tests/e2e", "--durations=10"], plugins=[Provided(cluster)]))
    return next((code for code in codes if code not in ENDED), 0)


def _start(cluster: Cluster, number: int, output: Path) -> int:
    """Run one share in a process of its own."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with output.open("wb") as file:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(file.fileno(), stream.fileno())
            cluster.api = Api(cluster.keys)  # the connections are the parent's
            argv = ["-m", "e2e and not alone", "tests/e2e", "--durations=5", "-p", "no:cacheprovider"]
            code = pytest.main(argv, plugins=[Provided(cluster, share=(number, SHARES))])
    finally:
        sys.stdout.flush()
        os._exit(code)


def _left(cluster: Cluster) -> int:
    try:
        leaks.demand_none(cluster)
    except AssertionError as error:
        print(f"after the scenarios that run side by side: {error}", flush=True)
        return 1
    return 0
