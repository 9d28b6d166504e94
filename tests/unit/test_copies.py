"""Long copies: how they begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from csi_local.engine.copies import Copies
from csi_local.model.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_local.host.api import Proceed

WAIT_S = 60.0


def no_thread(_work: Callable[[], None]) -> None:
    """What `threading.Thread.start` does where the system has no more."""
    raise RuntimeError("can't start new thread")


def at_once(_proceed: Proceed) -> None:
    """Copy nothing."""


def test_one_that_cannot_begin_is_not_under_way() -> None:
    copies = Copies(spawn=no_thread)
    with pytest.raises(Busy, match="new thread"):
        copies.run("clone", "data", "asked", at_once, WAIT_S)
    assert not copies.is_read("data")
    assert copies.asked() == {}
    copies._spawn = lambda work: work()
    assert copies.run("clone", "data", "asked", at_once, WAIT_S)
