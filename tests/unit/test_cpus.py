"""The driver's threads on one processor."""

from __future__ import annotations

import os
import threading

from csi_local.host import cpus
from csi_local.host.cpus import OneCpu, better, busy
from csi_local.host.run import run


def elsewhere() -> frozenset[int]:
    """Where a new thread may run."""
    found: list[frozenset[int]] = []
    thread = threading.Thread(target=lambda: found.append(frozenset(os.sched_getaffinity(0))))
    thread.start()
    thread.join()
    return found[0]


def test_stays_where_others_leave_room() -> None:
    assert better(0, {0: 0.2, 1: 0.0}) == 0
    assert better(1, {0: 0.9, 1: 0.2, 2: 0.0}) == 1


def test_leaves_a_busy_processor_for_one_that_is_much_better() -> None:
    assert better(0, {0: 0.9, 1: 0.5, 2: 0.1}) == 2
    assert better(0, {0: 0.9, 1: 0.5}) == 0


def test_stays_where_nothing_is_better() -> None:
    assert better(2, {0: 0.8, 1: 0.8, 2: 0.8}) == 2


def test_every_processor_is_seen() -> None:
    assert busy().keys() >= cpus.ALL
    assert all(seconds >= 0 for seconds in busy().values())


def test_together_from_start_to_stop() -> None:
    one = OneCpu()
    one.start()
    try:
        assert len(elsewhere()) == 1
        assert len(os.sched_getaffinity(0)) == 1
        with cpus.everywhere():
            assert os.sched_getaffinity(0) == cpus.ALL
        assert len(os.sched_getaffinity(0)) == 1
        assert run(["nproc"])[1].strip() == str(len(cpus.ALL))  # programs are not held back
    finally:
        one.stop()
    assert elsewhere() == os.sched_getaffinity(0) == cpus.ALL
