"""A driver that stops leaves no filesystem frozen: there may be no other to thaw it."""

from __future__ import annotations

import errno
import threading

import pytest

from csi_local.engine.execute import Executor
from csi_local.model.errors import Busy, SyscallFailed
from tests.unit.test_snapshots import XFS, Bench

LONG_S = 60.0
NOW_S = 0.0


def still(bench: Bench, executor: Executor) -> bool:
    """Whether nothing is frozen, as whoever stops the driver sees it; and indeed."""
    executor.stillness.stop(NOW_S)
    return not executor.stillness._points and not bench.frozen()


def test_the_end_waits_for_a_thaw() -> None:
    bench = Bench(XFS)
    volume = bench.volume("data")
    bench.stage(volume)
    frozen: list[bool] = []

    def wait() -> None:
        executor.stillness.stop(LONG_S)
        frozen.append(bench.frozen())

    end = threading.Thread(target=wait)

    def stop(point: str) -> None:
        if point.endswith("CloneImage"):
            assert bench.frozen()
            end.start()
        if point.endswith("Thaw"):
            end.join(0.1)
            assert end.is_alive()

    executor = bench.rig.snapshots._executor = Executor(bench.rig.host, stop)
    assert bench.snapshot("daily", volume).ready
    end.join(LONG_S)
    assert frozen == [False]


def test_nothing_is_frozen_after_the_end() -> None:
    bench = Bench(XFS)
    volume = bench.volume("data")
    bench.stage(volume)
    executor = bench.rig.snapshots._executor = Executor(bench.rig.host, lambda _point: None)
    executor.stillness.stop(NOW_S)
    with pytest.raises(Busy, match="the driver stops"):
        bench.snapshot("daily", volume)
    assert still(bench, executor)
    assert bench.ids() == []
    assert bench.rig.pools.get("main").store.leftovers() == []


@pytest.mark.parametrize("fails", ["freeze", "clone_image"])
def test_what_fails_is_not_waited_for(fails: str) -> None:
    bench = Bench(XFS)
    volume = bench.volume("data")
    bench.stage(volume)
    executor = bench.rig.snapshots._executor = Executor(bench.rig.host, lambda _point: None)
    bench.rig.host.fail(fails, errno.EIO)
    with pytest.raises(SyscallFailed):
        bench.snapshot("daily", volume)
    assert still(bench, executor)


def test_it_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    executor = Executor(Bench(XFS).rig.host, lambda _point: None)
    executor.stillness.begin("/pods/data")
    executor.stillness.stop(NOW_S)
    assert "left frozen for the next driver to thaw: /pods/data" in caplog.text
