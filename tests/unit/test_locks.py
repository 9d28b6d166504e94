"""One at a time for each key, and nobody waits for another key."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi_local.engine.locks import MAX_WAITING, KeyedLocks
from csi_local.model.errors import Busy
from tests.observe import until


def test_one_at_a_time() -> None:
    locks, inside, most = KeyedLocks(), [0], [0]

    def work() -> None:
        with locks.hold("a", 10):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            inside[0] -= 1

    with ThreadPoolExecutor(MAX_WAITING) as pool:
        for done in [pool.submit(work) for _ in range(40)]:
            done.result()
    assert most == [1]
    assert locks._entries == {}


def test_other_keys_do_not_wait() -> None:
    locks = KeyedLocks()
    with locks.hold("a", 0), locks.hold("b", 0), locks.hold("c", 0):
        assert set(locks._entries) == {"a", "b", "c"}
    assert locks._entries == {}


@pytest.mark.parametrize("patience", [0.0, -5.0, 0.05])
def test_patience_ends(patience: float) -> None:
    locks = KeyedLocks()
    with locks.hold("a", 0):
        began = time.monotonic()
        with pytest.raises(Busy, match="under way"), locks.hold("a", patience):
            pass
        assert max(0.0, patience) <= time.monotonic() - began < 2
    with locks.hold("a", 0):
        pass


def test_who_waits_gets_it() -> None:
    locks, order = KeyedLocks(), list[str]()

    def wait() -> None:
        with locks.hold("a", 10):
            order.append("second")

    with locks.hold("a", 0):
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: locks._entries["a"].users == 2, "the other waits")
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_too_many_are_turned_away_at_once() -> None:
    locks = KeyedLocks()

    def wait() -> None:
        with locks.hold("a", 10):
            pass

    with locks.hold("a", 0):
        threads = [threading.Thread(target=wait) for _ in range(MAX_WAITING)]
        for thread in threads:
            thread.start()
        until(lambda: locks._entries["a"].users == MAX_WAITING + 1, "all of them wait")
        began = time.monotonic()
        with pytest.raises(Busy, match="too many"), locks.hold("a", 10):
            pass
        assert time.monotonic() - began < 1
    for thread in threads:
        thread.join(10)
    assert locks._entries == {}


def test_an_error_inside_lets_go() -> None:
    locks = KeyedLocks()
    with pytest.raises(ValueError, match="mine"), locks.hold("a", 0):
        raise ValueError("mine")
    with locks.hold("a", 0):
        pass
    assert locks._entries == {}
