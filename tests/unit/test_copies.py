"""Long copies: how they begin and end."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.copies import Copies
from csi_local.model.errors import Busy, FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from csi_local.host.api import Proceed

WAIT_S = 60.0


def no_thread(_work: Callable[[], None]) -> None:
    """What `threading.Thread.start` does where the system has no more."""
    raise RuntimeError("can't start new thread")


def at_once(_proceed: Proceed) -> None:
    """Copy nothing."""


def until(event: threading.Event, _proceed: Proceed) -> None:
    """Copy until that happens."""
    event.wait()


@pytest.fixture
def full() -> Iterator[Copies]:
    """Copies of which as many are at work as may be, and another waits that reads *data*."""
    copies, end = Copies(), threading.Event()
    for name in ("first", "second"):
        assert not copies.run(name, "", name, partial(until, end), 0)
    assert not copies.run("clone", "data", "asked", at_once, 0)
    yield copies
    end.set()
    copies.stop(WAIT_S)


def test_one_that_waits_for_others_can_be_cancelled(full: Copies) -> None:
    full.cancel("clone", WAIT_S)
    assert "clone" not in full.asked()
    assert not full.is_read("data")


def test_one_that_waits_for_others_ends_when_its_source_is_used(full: Copies) -> None:
    full.disturb("data", "it has been staged meanwhile")
    with pytest.raises(FailedPrecondition, match="staged"):
        full.run("clone", "data", "asked", at_once, WAIT_S)
    assert not full.is_read("data")


def test_they_wait_for_each_other() -> None:
    copies, end = Copies(), threading.Event()
    began = [threading.Event() for _ in range(3)]

    def work(number: int, _proceed: Proceed) -> None:
        began[number].set()
        end.wait()

    for number in range(3):
        assert not copies.run(str(number), "", number, partial(work, number), 0)
    assert sum(one.is_set() for one in began) <= 2
    end.set()
    assert all(one.wait(WAIT_S) for one in began)


def test_one_that_cannot_begin_is_not_under_way() -> None:
    copies = Copies(spawn=no_thread)
    with pytest.raises(Busy, match="new thread"):
        copies.run("clone", "data", "asked", at_once, WAIT_S)
    assert not copies.is_read("data")
    assert copies.asked() == {}
    copies._spawn = lambda work: work()
    assert copies.run("clone", "data", "asked", at_once, WAIT_S)
