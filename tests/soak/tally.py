"""What happened, counted: operations, faults, answers, how long they took, and everything that was wrong."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.client import Code
    from tests.soak.vitals import Vitals

MOST = 20
"""After so many different violations there is nothing new to learn."""
_PARTICULARS = re.compile(r"\S*\d\S*|\{.*?\}")
"""Names, sizes and paths: without them one mistake reads the same each time."""


class Violation(Exception):
    """The driver did not keep a promise."""


class Tally:
    """Counts from all threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._began = time.monotonic()
        self.operations: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.codes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.vitals: list[Vitals] = []
        self.violations: dict[str, str] = {}
        self.repeated: Counter[str] = Counter()
        self.checkpoints = 0

    def operation(self, name: str) -> None:
        """An operation was completed."""
        with self._guard:
            self.operations[name] += 1

    def fault(self, name: str) -> None:
        """A fault was injected, or something that excuses an answer was seen."""
        with self._guard:
            self.faults[name] += 1

    def answer(self, rpc: str, code: Code, seconds: float | None) -> None:
        """An RPC ended; *seconds* where neither a fault nor an absurd deadline had to do with it."""
        with self._guard:
            self.codes[rpc][code.name] += 1
            if seconds is not None:
                self.seconds[rpc].append(seconds)

    def violation(self, text: str, about: str = "") -> None:
        """Something is wrong; told at once, because a long run may yet be interrupted, but for each mistake once."""
        told = f"after {time.monotonic() - self._began:.1f} s: {about}{text}"
        sort = _PARTICULARS.sub("#", text)
        with self._guard:
            self.repeated[sort] += 1
            if sort in self.violations:
                return
            self.violations[sort] = told
        print(f"VIOLATION {told}", flush=True)

    def wrong(self) -> list[str]:
        """Every mistake, the first time it was seen, and how often it was."""
        return [f"{told} ({self.repeated[sort]} times)" for sort, told in self.violations.items()]

    @property
    def enough(self) -> bool:
        """Whether to stop early."""
        return len(self.violations) >= MOST
