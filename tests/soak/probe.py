"""Asking Probe four times a second, from the side: a driver that is up answers at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from csi_local._proto import csi_pb2 as csi
from tests.soak.tally import Violation

if TYPE_CHECKING:
    from tests.soak.calls import Caller
    from tests.soak.tally import Tally

PAUSE_SECONDS = 0.25
LIMIT_SECONDS = 1.0


class Prober:
    """A thread that asks."""

    def __init__(self, caller: Caller, tally: Tally) -> None:
        self._caller = caller
        self._tally = tally
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="prober", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and hang up."""
        self._end.set()
        self._caller.close()
        if self._thread.is_alive():
            self._thread.join()

    def _ask(self) -> None:
        while not self._end.wait(PAUSE_SECONDS):
            try:
                self._once()
            except Violation as wrong:
                if not self._end.is_set():
                    self._tally.violation(f"Probe: {wrong}")
            except ValueError:  # the line was closed
                return

    def _once(self) -> None:
        answer = self._caller.once("Probe", csi.ProbeRequest(), LIMIT_SECONDS)
        if answer.calm and not self._end.is_set():
            if not answer.ok:
                raise Violation(f"{answer.code.name} within {LIMIT_SECONDS:g} s: {answer.message}")
            if not answer.response.ready.value:
                raise Violation("not ready")
