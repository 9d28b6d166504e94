"""One run: the driver, its clients, the faults, a look at everything each minute, and at the end nothing left."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.driver import serving
from tests.soak.calls import Caller, Line, Pressure
from tests.soak.checkpoint import Checkpoint
from tests.soak.gate import Gate
from tests.soak.kinds import POOLS
from tests.soak.mischief import Mischief
from tests.soak.power import Power
from tests.soak.probe import Prober
from tests.soak.tally import Tally, Violation
from tests.soak.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.driver import Driver
    from tests.soak.holding import Holding

CYCLE_SECONDS = 540.0
"""A time in which the process dies again and again, and twice that time in which it lives and must not grow."""
CHECKPOINT_SECONDS = 60.0
FAULT_SECONDS = (0.5, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to be."""

    seconds: float
    seed: int
    at_once: int

    @property
    def checkpoint_seconds(self) -> float:
        """Between two looks."""
        return min(CHECKPOINT_SECONDS, self.seconds / 3)

    def stormy(self, elapsed: float) -> bool:
        """Whether the process may die now. A run too short for what needs minutes is stormy for the most of it."""
        if self.seconds < CYCLE_SECONDS:
            return elapsed < self.seconds * 2 / 3
        return elapsed % CYCLE_SECONDS < CYCLE_SECONDS / 3


def soak(plan: Plan) -> Tally:
    """Do it, and say what happened. An exception (an interrupt, say) ends it early; nothing is left in any case."""
    tally = Tally()
    with serving(*POOLS, before=["setsid"]) as driver:  # Ctrl-C in a terminal is not for the driver
        try:
            Soak(driver, plan, tally).run()
        except (KeyboardInterrupt, SystemExit):
            if driver.running:  # perhaps not yet so far that it can be stopped
                driver.kill()
            raise
        except AssertionError as error:  # it did not start or stop as it should
            tally.violation(f"the process: {error}")
        except Violation as error:
            tally.violation(str(error))
        if tally.violations:
            print(f"the end of the driver's log:\n{driver.last_words()}", flush=True)
    return tally


class Soak:
    """The main thread's part: it turns the power, makes mischief, and looks."""

    def __init__(self, driver: Driver, plan: Plan, tally: Tally) -> None:
        self._plan = plan
        self._tally = tally
        self._dice = Random(f"{plan.seed}-main")  # noqa: S311 - dice
        self._power = Power(driver)
        self._pressure = Pressure()
        self._gate = Gate()
        self._callers: list[Caller] = []
        self._mischief = Mischief(self._caller("mischief"), self._pressure, self._dice, self._power)
        self._checkpoint = Checkpoint(self._power, self._caller("checkpoint"), tally, self._mischief)
        self._prober = Prober(self._caller("probe"), tally)
        self._workers = [self._worker(number) for number in range(plan.at_once)]

    def _caller(self, name: str) -> Caller:
        dice = Random(f"{self._plan.seed}-{name}")  # noqa: S311 - dice
        caller = Caller(Line(self._power.driver.socket), self._power, self._tally, self._pressure, dice)
        self._callers.append(caller)
        return caller

    def _worker(self, number: int) -> Worker:
        name = f"worker-{number}"
        dice = Random(f"{self._plan.seed}-{name}-steps")  # noqa: S311 - dice
        return Worker(number, self._caller(name), dice, self._gate, self._tally, self._power)

    @property
    def _holdings(self) -> list[Holding]:
        return [h for worker in self._workers for h in worker.holdings]

    def run(self) -> None:
        """Load, faults and looks; then everything is taken down."""
        try:
            self._mischief.damage()
            self._prober.start()
            with self._working([worker.work for worker in self._workers]):
                self._disturb()
                for worker in self._workers:
                    worker.stop = True
            self._look()
            with self._working([worker.take_down for worker in self._workers]):
                pass
            self._end()
        finally:
            self._prober.stop()
            for caller in self._callers:
                caller.close()

    @contextmanager
    def _working(self, jobs: Sequence[Callable[[], None]]) -> Iterator[None]:
        """Run threads beside the block, and wait for them; where the block breaks off, cut their lines first."""
        threads = [threading.Thread(target=job, name=f"worker-{n}", daemon=True) for n, job in enumerate(jobs)]
        for thread in threads:
            thread.start()
        try:
            yield
            for thread in threads:
                thread.join()
        except BaseException:
            for worker in self._workers:
                worker.stop = True
            for caller in self._callers:
                caller.close()
            for thread in threads:
                thread.join()
            raise

    def _disturb(self) -> None:
        began = time.monotonic()
        next_look, next_fault = self._plan.checkpoint_seconds, self._dice.uniform(*FAULT_SECONDS)
        while (elapsed := time.monotonic() - began) < self._plan.seconds and not self._tally.enough:
            if elapsed >= next_look:
                self._look()
                next_look = time.monotonic() - began + self._plan.checkpoint_seconds
            elif elapsed >= next_fault:
                self._inject(stormy=self._plan.stormy(elapsed))
                next_fault = time.monotonic() - began + self._dice.uniform(*FAULT_SECONDS)
            time.sleep(0.05)

    def _inject(self, *, stormy: bool) -> None:
        faults: list[tuple[int, str, Callable[[], None]]] = [
            (1, "pool nearly filled", lambda: self._mischief.fill(deadly=False)),
            (1, "leftovers planted", self._mischief.plant),
        ]
        if stormy:
            faults += [
                (4, "kill -9", self._power.cut),
                (1, "kill -9, twice", lambda: self._power.stutter(self._dice)),
                (2, "SIGTERM", self._power.cycle),
                (1, "kill -9 with a full pool", lambda: self._mischief.fill(deadly=True)),
            ]
        _, name, act = self._dice.choices(faults, [weight for weight, *_ in faults])[0]
        self._tally.fault(name)
        act()

    def _look(self) -> None:
        with self._gate.alone():
            while resting := [h for h in self._holdings if h.resting]:
                time.sleep(max(0.0, resting[0].rest_until - time.monotonic()))
            self._checkpoint.look(self._holdings)

    def _end(self) -> None:
        """What is planted is swept by a new process; then there is nothing but what is known to be wrong."""
        self._mischief.mend()
        self._mischief.damaged.clear()
        self._power.cycle()
        self._checkpoint.look(self._holdings)
        if not self._tally.violations:
            for left in self._power.driver.leftovers():
                self._tally.violation(f"left behind: {left}")
