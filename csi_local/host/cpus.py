"""All threads of the driver on one processor, whichever has the most room for them.

Python runs one thread at a time. Where its threads are spread over processors, each short system call hands Python's
lock to a thread on another one, which has to be woken from its sleep first: with sixteen requests at once that costs
more than the requests themselves. On one processor the lock changes hands without anybody being woken
(docs/decisions/0005-one-processor.md). Programs are started everywhere.
"""

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress

ALL = frozenset(os.sched_getaffinity(0))
"""The processors that the process may use."""

_LOOK_EVERY_S = 1.0
_STAT, _TASKS = "/proc/stat", "/proc/self/task"
_USER_TO_SYSTEM, _IRQ_TO_STEAL = slice(1, 4), slice(6, 9)
"""Fields of a ``cpuN`` line that are time spent working (proc_stat(5)): not idle, not waiting for a disk."""
_TOO_MUCH = 0.25
"""Of a processor's time taken by others: above this, one that has half of that is better."""

_chosen: frozenset[int] = ALL
"""Where the driver's threads are now; all processors until somebody says otherwise."""


def _move(thread: int, where: frozenset[int]) -> None:
    with suppress(OSError):  # it has ended, or the cpuset was changed and no longer has this one
        os.sched_setaffinity(thread, where)


@contextmanager
def everywhere() -> Iterator[None]:
    """Let this thread, and the programs it starts, use any processor."""
    _move(0, ALL)
    try:
        yield
    finally:
        _move(0, _chosen)


def busy() -> Mapping[int, float]:
    """The seconds that each processor has been working since the machine started."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    with open(_STAT, encoding="ascii") as file:
        for line in file:
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu":
                counted = [int(field) for field in (name[3:], *fields)]
                found[counted[0]] = (sum(counted[_USER_TO_SYSTEM]) + sum(counted[_IRQ_TO_STEAL])) / tick
    return found


def better(now: int, others: Mapping[int, float]) -> int:
    """Where to be, given the share of each processor's time that *others* took; where we are if nothing is better."""
    best = min(others, key=lambda number: (others[number], number != now))
    return best if others[now] > _TOO_MUCH and others[best] < others[now] / 2 else now


class OneCpu:
    """Keeps the threads of this process together from :meth:`start` on, and looks now and then for a better place."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="one-cpu", daemon=True)

    def start(self) -> None:
        """Begin. Threads that are made from now on begin where their maker is."""
        if len(ALL) > 1:
            worked = busy()
            _gather({min(ALL, key=lambda number: worked.get(number, 0.0))})
            self._thread.start()

    def stop(self) -> None:
        """Let everybody go everywhere again."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
            _gather(ALL)

    def _run(self) -> None:
        before, own_before = _seen(), _own()
        while not self._stopping.wait(_LOOK_EVERY_S):
            after, own = _seen(), _own()
            (now,) = _chosen
            others = {number: after[number] - before[number] for number in ALL & before.keys() & after.keys()}
            if now in others:
                others[now] -= own - own_before
                shares = {number: max(0.0, seconds) / _LOOK_EVERY_S for number, seconds in others.items()}
                if (best := better(now, shares)) != now:
                    with suppress(OSError):
                        _gather({best})
            before, own_before = after, own


def _seen() -> Mapping[int, float]:
    """The same as :func:`busy`; nothing while the process may open no more files."""
    try:
        return busy()
    except OSError:
        return {}


def _own() -> float:
    """The seconds that this process has been working."""
    times = os.times()
    return times.user + times.system


def _gather(where: Collection[int]) -> None:
    """Bring all threads of this process there."""
    global _chosen  # noqa: PLW0603 (a property of the process)
    threads = os.listdir(_TASKS)  # it may fail; then all stay where they are
    _chosen = frozenset(where)
    for thread in threads:
        _move(int(thread), _chosen)
