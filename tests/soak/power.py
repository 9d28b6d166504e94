"""Whether the driver's process is up, for those who must know if a fault can have to do with what they saw."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tests.soak.kinds import DIRECTORIES, LOOPFILES

if TYPE_CHECKING:
    from random import Random

    from tests.driver import Driver

SETTLED_SECONDS = 2.0
"""After a start connections are made again: only what begins later is undisturbed by it."""


class Power:
    """The switch of a driver that is running. One thread turns it; all may ask.

    Attributes:
        pools: where each pool is mounted, by its name.
        steady: held while the process is replaced, when a pool may be unmounted for a moment.
        started: when the process was started (monotonic).
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.pools = dict(zip((DIRECTORIES, LOOPFILES), driver.pool_roots(), strict=True))
        self.steady = threading.Lock()
        self.started = time.monotonic()
        self._up_since: float | None = self.started - SETTLED_SECONDS

    def calm(self, since: float) -> bool:
        """Whether no fault of the process can have touched what began at *since* (monotonic) and ends now."""
        up = self._up_since
        return up is not None and up + SETTLED_SECONDS <= since

    def cut(self) -> None:
        """End it by kill -9, and start it again."""
        with self.steady:
            self._kill()
            self._start()

    def stutter(self, dice: Random) -> None:
        """End it by kill -9, and again while it starts, and start it again."""
        with self.steady:
            self._kill()
            self.driver.launch()
            time.sleep(dice.uniform(0.0, 0.6))
            self._kill()
            self._start()

    def cycle(self) -> None:
        """SIGTERM, demand a clean end, and start it again."""
        with self.steady:
            self._up_since = None
            self.driver.stop()
            self._start()

    def _kill(self) -> None:
        self._up_since = None
        self.driver.kill()

    def _start(self) -> None:
        self.driver.start()
        self.started = self._up_since = time.monotonic()
