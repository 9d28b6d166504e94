"""Counting calls, letting one of them fail, and ending the process in the middle of one."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from csi_local.model.errors import SyscallFailed

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Calls")


class Crash(BaseException):
    """The process is dead. Nothing may catch it, and what does gets the same again from every call."""


@dataclass(slots=True)
class _Planned:
    method: str
    countdown: int
    error: int | None
    late: bool


class Calls:
    """What befalls the calls of a host.

    Attributes:
        counts: how often each method was called; a step inside a method counts as ``method.step``.
        moments: how many calls, steps and returns there were in all: the points at which a process can die.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.moments = 0
        self.frozen = False
        self.one_at_a_time = threading.RLock()
        self._planned: list[_Planned] = []

    def fail(self, method: str, number: int, *, nth: int = 1, late: bool = False) -> None:
        """Let the n-th call of *method* ("": of any) from now on fail with errno *number*.

        It has done nothing then, unless *late* says that it has done its work.
        """
        self._planned.append(_Planned(method, nth, number, late))

    def die(self, moment: int) -> None:
        """Let the process die at the n-th moment from now on: before, within, or after a call."""
        self._planned.append(_Planned("", moment, None, late=False))

    @property
    def planned(self) -> int:
        """How many plans have not come true yet."""
        return len(self._planned)

    def calm(self) -> None:
        """Forget what was planned and has not happened."""
        self._planned.clear()

    def end_here(self) -> None:
        """Let every call from now on raise `Crash`, so that what a dead process would not do is not done."""
        self.frozen = True

    def step(self, name: str, *, late: bool = False) -> None:
        """Pass a point where something may happen; *late*: where the work is done and only the answer is missing."""
        if self.frozen:
            raise Crash(name)
        self.moments += 1
        if not late:
            self.counts[name] += 1
        for planned in list(self._planned):
            if planned.method in ("", name) and (planned.error is None or planned.late == late):
                planned.countdown -= 1
                if planned.countdown == 0:
                    self._planned.remove(planned)
                    self._happen(planned, name)

    def _happen(self, planned: _Planned, name: str) -> None:
        if planned.error is not None:
            raise SyscallFailed(f"{name} (as planned by the test)", planned.error)
        self.end_here()
        raise Crash(name)


def call(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make a method one of the host's calls."""

    def called(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.one_at_a_time:
            self.step(method.__name__)
            result = method(self, *args, **kwargs)
            self.step(method.__name__, late=True)
            return result

    return functools.update_wrapper(called, method)
