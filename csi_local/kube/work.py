"""A queue of names that want looking at: each is in it once, and with one worker at a time."""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from csi_local.kube.retry import pause_after

_log = logging.getLogger(__name__)
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 30.0
_STUCK_S = 1800.0
"""One piece of work may take long (a large image is written out); not that long."""


class WorkQueue:
    """Calls a function for each name that was added, with several threads.

    A name that is added while somebody works on it is worked on once more afterwards. Where the function raises, or
    returns False, the name comes again later, and later each time, until it has succeeded. Where it was added and
    worked on before that, what came of that counts alone: a name never comes again for two reasons.
    """

    def __init__(self, work: Callable[[str], bool], workers: int, name: str = "agent") -> None:
        self._work = work
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._wanted: set[str] = set()
        self._under_way: dict[str, float] = {}
        self._later: list[tuple[float, str]] = []
        """Some are overtaken: :attr:`_due` says which of them count."""
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the work under way, or when time runs out."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def add(self, name: str) -> None:
        """Have *name* looked at soon."""
        with self._changed:
            self._add(name)

    def _add(self, name: str) -> None:
        if name not in self._wanted:
            self._wanted.add(name)
            if name not in self._under_way:
                self._waiting.append(name)
                self._changed.notify()

    @property
    def problem(self) -> str:
        """Why it is not at work, or ""."""
        with self._changed:
            began = min(self._under_way.values(), default=None)
        if began is not None and time.monotonic() - began > _STUCK_S:
            return f"a worker has been busy with one thing for {time.monotonic() - began:.0f} s"
        return "" if all(thread.is_alive() for thread in self._threads) else "a worker has ended"

    def _run(self) -> None:
        while (name := self._take()) is not None:
            try:
                done = self._work(name)
            except Exception:  # noqa: BLE001 (the thread must live; the log has it)
                _log.exception("working on %s", name)
                done = False
            self._finish(name, done=done)

    def _take(self) -> str | None:
        """The next name; None at the end."""
        with self._changed:
            while not self._stopping:
                pause = self._release()
                if self._waiting:
                    name = self._waiting.popleft()
                    self._wanted.discard(name)
                    self._due.pop(name, None)
                    self._under_way[name] = time.monotonic()
                    return name
                self._changed.wait(pause)
            return None

    def _release(self) -> float | None:
        """Let those in whose time has come; seconds until the next one's."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            due, name = heapq.heappop(self._later)
            if self._due.get(name) == due:
                del self._due[name]
                self._add(name)
        return self._later[0][0] - now if self._later else None

    def _finish(self, name: str, *, done: bool) -> None:
        with self._changed:
            del self._under_way[name]
            if name in self._wanted:
                self._waiting.append(name)
                self._changed.notify()
            if done:
                self._failures.pop(name, None)
                return
            failures = self._failures.get(name, 0)
            self._failures[name] = failures + 1
            pause = pause_after(failures, _FIRST_RETRY_S, _LAST_RETRY_S)
            due = self._due[name] = time.monotonic() + pause
            heapq.heappush(self._later, (due, name))
            self._changed.notify()


class Marks:
    """Why names were added to a queue, beside what can be seen of them."""

    def __init__(self) -> None:
        self._marked: dict[str, str] = {}

    def set(self, name: str, why: str = "marked") -> None:
        """Mark a name."""
        self._marked[name] = why

    def discard(self, name: str) -> None:
        """Take a name's mark off, if it has one."""
        self._marked.pop(name, None)

    @contextmanager
    def taken(self, name: str) -> Iterator[str]:
        """Why a name is marked, or ""; the mark comes off, and back on where the work that it is for fails."""
        why = self._marked.pop(name, "")
        try:
            yield why
        except Exception:
            if why:
                self._marked.setdefault(name, why)
            raise
