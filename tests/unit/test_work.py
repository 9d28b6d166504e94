"""The agent's queue."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from csi_local.kube.work import WorkQueue
from tests.observe import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def queues() -> Iterator[Callable[..., WorkQueue]]:
    made: list[WorkQueue] = []

    def make(work: Callable[[str], bool], workers: int = 4) -> WorkQueue:
        made.append(WorkQueue(work, workers))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_each_is_worked_on(queues: Callable[..., WorkQueue]) -> None:
    done: Counter[str] = Counter()
    guard = threading.Lock()

    def work(name: str) -> bool:
        with guard:
            done[name] += 1
        return True

    queue = queues(work)
    for number in range(100):
        queue.add(str(number))
    until(lambda: len(done) == 100, "all are done")
    assert set(done.values()) == {1}
    assert not queue.problem


def test_never_twice_at_once_and_once_more_where_it_was_added_meanwhile(queues: Callable[..., WorkQueue]) -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    at_once: list[int] = []
    inside = 0

    def work(_name: str) -> bool:
        nonlocal inside
        inside += 1
        at_once.append(inside)
        begun.release()
        assert go_on.acquire(timeout=10)
        inside -= 1
        return True

    queue = queues(work)
    queue.add("a")
    assert begun.acquire(timeout=10)
    for _ in range(5):
        queue.add("a")
    assert not begun.acquire(timeout=0.05)
    go_on.release()
    assert begun.acquire(timeout=10)
    go_on.release()
    until(lambda: inside == 0, "it is done")
    assert not begun.acquire(timeout=0.05)
    assert at_once == [1, 1]


def test_those_that_fail_come_again_later_and_later(queues: Callable[..., WorkQueue]) -> None:
    times: list[float] = []

    def work(_name: str) -> bool:
        times.append(time.monotonic())
        if len(times) == 1:
            raise RuntimeError("not foreseen")
        return len(times) == 4

    queue = queues(work)
    queue.add("a")
    until(lambda: len(times) == 4, "it came four times")
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] >= 0.05
    assert pauses[1] >= 0.1
    assert pauses[2] >= 0.2
    time.sleep(0.05)
    assert len(times) == 4
    assert not queue.problem


def test_one_that_is_added_between_its_failures_comes_again_for_one_reason_and_after_a_success_for_none() -> None:
    queue = WorkQueue(lambda _name: True, 1)  # the test is its worker

    def work(name: str, *, done: bool) -> str | None:
        queue.add(name)
        taken = queue._take()
        queue._finish(name, done=done)
        return taken

    assert [work("a", done=done) for done in (False, False, False, True)] == ["a"] * 4
    work("later", done=False)
    for _ in range(4):  # longer than whatever was put off before
        assert queue._take() == "later"
        queue._finish("later", done=False)


def test_one_that_fails_keeps_nobody_waiting(queues: Callable[..., WorkQueue]) -> None:
    done: list[str] = []

    def work(name: str) -> bool:
        if name != "bad":
            done.append(name)
        return name != "bad"

    queue = queues(work, workers=1)
    queue.add("bad")
    queue.add("good")
    until(lambda: done == ["good"], "the other is done")


def test_a_queue_that_was_stopped_says_so(queues: Callable[..., WorkQueue]) -> None:
    queue = queues(lambda _name: True)
    queue.stop()
    queue.add("a")
    assert queue.problem == "a worker has ended"
