"""A client that works on volumes of its own, one step after the other, until it is told to stop."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING

from tests.soak.calls import REST_SECONDS
from tests.soak.holding import Holding
from tests.soak.kinds import MIX
from tests.soak.operations import Operations
from tests.soak.tally import Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.soak.calls import Caller
    from tests.soak.gate import Gate
    from tests.soak.power import Power
    from tests.soak.tally import Tally

VOLUMES = 3
QUESTIONS = frozenset({"get", "stats"})
"""A wrong answer to one of these leaves what is known as it is."""
AROUND = 0.08
"""How often something is asked that is about no volume in particular."""


class Worker:
    """One of the clients."""

    def __init__(
        self,
        number: int,
        caller: Caller,
        dice: Random,
        gate: Gate,
        tally: Tally,
        power: Power,
    ) -> None:
        self._number = number
        self._root = power.driver.root
        self._caller = caller
        self._dice = dice
        self._gate = gate
        self._tally = tally
        self._operations = Operations(caller, dice, power)
        self._made = 0
        self.holdings = [self._another() for _ in range(VOLUMES)]
        self.stop = False

    def _another(self) -> Holding:
        self._made += 1
        name = f"soak-{self._number}-{self._made}"
        return Holding(name=name, kind=self._dice.choice(MIX), root=self._root)

    def work(self) -> None:
        """Do one thing after the other."""
        while not self.stop and not self._tally.enough:
            with self._gate.passing():
                if self._dice.random() < AROUND:
                    self._ask_around()
                else:
                    self._work_on_one()

    def _ask_around(self) -> None:
        choices = self._operations.around()
        _, name, act = self._dice.choices(choices, [weight for weight, *_ in choices])[0]
        sure = [h for h in self.holdings if not h.resting]
        self._try(name, lambda: act(sure), None)

    def _work_on_one(self) -> None:
        ready = [number for number, h in enumerate(self.holdings) if not (h.resting or h.broken)]
        if not ready:
            time.sleep(0.02)
            return
        number = self._dice.choice(ready)
        h = self.holdings[number]
        choices = self._operations.possible(h)
        _, name, act = self._dice.choices(choices, [weight for weight, *_ in choices])[0]
        existed = bool(h.size)
        self._try(name, lambda: act(h), h)
        if existed and not h.size and not h.broken and self._dice.random() < 0.5:
            self.holdings[number] = self._another()  # otherwise the same name, of the same kind, may come again

    def _try(self, name: str, act: Callable[[], None], h: Holding | None) -> None:
        try:
            act()
        except Violation as wrong:
            self._fail(name, str(wrong), h)
        except Exception:  # noqa: BLE001 - a pod that cannot read or write is as bad as a wrong answer
            self._fail(name, traceback.format_exc(), h)
        else:
            self._tally.operation(name)
        if h is not None and self._caller.stale:
            h.rest_until = time.monotonic() + REST_SECONDS
        self._caller.stale = False

    def _fail(self, name: str, text: str, h: Holding | None) -> None:
        if self._caller.stopped:
            return  # the line was cut by whoever wants an end
        about = "" if h is None else f"{h}: "
        if h is not None and name not in QUESTIONS:
            h.broken = True
        self._tally.violation(f"{name}: {text}", about)

    def take_down(self) -> None:
        """Verify everything for the last time, and undo it by the calls that a CO makes."""
        for h in self.holdings:
            if not h.broken:
                self._try("take down", lambda h=h: self._take_down(h), h)  # type: ignore[misc]

    def _take_down(self, h: Holding) -> None:
        if h.size and not h.staged:
            self._operations.stage(h)
        if h.size and not h.targets:
            self._operations.publish(h)
        if h.size:
            self._operations.verify(h)
        while h.targets:
            self._operations.unpublish(h)
        if h.staged:
            self._operations.unstage(h)
        if h.size:
            self._operations.delete(h)
