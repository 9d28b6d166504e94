"""Asking the driver until it answers: through deaths of the process, absurd deadlines, lost and doubled calls.

A call whose client gave up may still be worked on. What comes next for that volume must not overtake it, so the
volume is left alone for a moment after the call was repeated; a CO has the same reason for one call at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc

from csi_local._proto import csi_pb2_grpc as rpc
from tests.client import Code
from tests.soak.tally import Violation

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from tests.soak.power import Power
    from tests.soak.tally import Tally

DEADLINE_SECONDS = 60.0
GIVE_UP_SECONDS = 120.0
REST_SECONDS = 5.0
AFTER_FILLING_SECONDS = 10.0
NEVER = frozenset({Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS, Code.UNIMPLEMENTED})
PLAIN, TWICE, HURRIED, VANISHED = "plain", "the same call twice at once", "absurd deadline", "client vanished"
MANNERS, WEIGHTS = (PLAIN, TWICE, HURRIED, VANISHED), (85, 7, 5, 3)
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    ("grpc.initial_reconnect_backoff_ms", 5),
    ("grpc.min_reconnect_backoff_ms", 5),
    ("grpc.max_reconnect_backoff_ms", 50),
)


class Line:
    """A connection to the driver, and its RPCs by name."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=_OPTIONS)
        self._stubs = (
            rpc.IdentityStub(self._channel),
            rpc.ControllerStub(self._channel),
            rpc.NodeStub(self._channel),
        )

    def method(self, name: str) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        """An RPC."""
        found = [getattr(stub, name) for stub in self._stubs if hasattr(stub, name)]
        return cast("grpc.UnaryUnaryMultiCallable[Any, Any]", found[0])

    def another(self) -> Line:
        """Make one more connection to the same driver."""
        return Line(self._socket)

    def close(self) -> None:
        """Hang up: calls under way are cancelled."""
        self._channel.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a call ended."""

    code: Code
    message: str
    response: Any
    calm: bool
    began: float

    @property
    def ok(self) -> bool:
        """Whether it was granted."""
        return self.code is Code.OK


class Pressure:
    """Whether a pool is being filled, so that there may be no room."""

    def __init__(self) -> None:
        self._filling = False
        self._ended = float("-inf")

    def begin(self) -> None:
        """From now on there may be none."""
        self._filling = True

    def end(self) -> None:
        """There should soon be enough again."""
        self._ended = time.monotonic()
        self._filling = False

    def excuses(self, began: float) -> bool:
        """Whether what began then may have found no room."""
        return self._filling or began < self._ended + AFTER_FILLING_SECONDS


class Caller:
    """One client with its own connection; it is used by one thread."""

    def __init__(self, line: Line, power: Power, tally: Tally, pressure: Pressure, dice: Random) -> None:
        self._line = line
        self._power = power
        self._tally = tally
        self._pressure = pressure
        self._dice = dice
        self.stopped = False
        self.stale = False
        """Whether since this was last cleared a call was given up that may still be worked on."""

    def close(self) -> None:
        """Hang up, and repeat nothing any more."""
        self.stopped = True
        self._line.close()

    def ask(self, name: str, request: object, *accepted: Code, manner: str = "") -> Answer:
        """Call until the answer is one of *accepted*, OK if none is named; RESOURCE_EXHAUSTED in its time only.

        Raises:
            Violation: there is another answer, and no fault excuses it.
        """
        wanted = accepted or (Code.OK,)
        manner = manner or self._dice.choices(MANNERS, WEIGHTS)[0]
        if manner != PLAIN:
            self._tally.fault(manner)
            self._disturb(manner, name, request, wanted)
        began = time.monotonic()
        while True:
            answer = self.once(name, request)
            if self._settles(answer, name, wanted):
                return answer
            if time.monotonic() - began > GIVE_UP_SECONDS or self.stopped:
                raise Violation(f"{name} is still not answered: {answer.code.name}: {answer.message}")
            time.sleep(self._dice.uniform(0.005, 0.05))

    def once(self, name: str, request: object, seconds: float = DEADLINE_SECONDS) -> Answer:
        """Call once, and wait for the driver if it is not there."""
        began = time.monotonic()
        try:
            response = self._line.method(name)(request, timeout=seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            return self._ended(name, cast("grpc.Call", error), None, began, hurried=seconds < 1)
        return self._ended(name, None, response, began, hurried=seconds < 1)

    def _ended(
        self, name: str, failed: grpc.Call | None, response: object, began: float, *, hurried: bool = False
    ) -> Answer:
        code, message = (failed.code(), failed.details() or "") if failed else (Code.OK, "")
        calm = self._power.calm(began)
        self._tally.answer(name, code, time.monotonic() - began if calm and not hurried else None)
        if calm and (code in NEVER or (code is not Code.OK and not message.strip())):
            raise Violation(f"{name} answers {code.name}: {message or '(no message)'}")
        return Answer(code=code, message=message, response=response, calm=calm, began=began)

    def _settles(self, answer: Answer, name: str, wanted: tuple[Code, ...]) -> bool:
        """Whether it is the answer; False where it is to be asked for again."""
        if answer.code is Code.RESOURCE_EXHAUSTED and answer.code in wanted:
            if not self._pressure.excuses(answer.began):
                raise Violation(f"{name} finds no room, and no pool is full: {answer.message}")
            return True
        if answer.code in wanted:
            return True
        if not answer.calm and answer.code in {Code.UNAVAILABLE, Code.CANCELLED, *NEVER}:
            return False  # what the driver itself has answered, if it has, is in its log
        if answer.code is Code.ABORTED:
            if "still being formatted" in answer.message:
                self._tally.fault("(a dead driver's mkfs was still running)")
            return False
        names = ", ".join(code.name for code in wanted)
        raise Violation(f"{name} answers {answer.code.name} and not {names}: {answer.message}")

    # Calls that are not to be relied on: whatever became of them, the same is asked again

    def _disturb(self, manner: str, name: str, request: object, wanted: tuple[Code, ...]) -> None:
        if manner == TWICE:
            self._twice(name, request, wanted)
            return
        self.stale = True
        if manner == HURRIED:
            answer = self.once(name, request, self._dice.choice((0.0005, 0.002, 0.005, 0.02, 0.1)))
            if answer.calm and answer.code is not Code.DEADLINE_EXCEEDED:
                self._settles(answer, name, wanted)
            return
        line = self._line.another()
        line.method(name).future(request, timeout=DEADLINE_SECONDS, wait_for_ready=True)
        time.sleep(self._dice.choice((0.0, 0.001, 0.005, 0.02, 0.1)))
        line.close()

    def _twice(self, name: str, request: object, wanted: tuple[Code, ...]) -> None:
        began = time.monotonic()
        line = self._line.another()
        try:
            first = line.method(name).future(request, timeout=DEADLINE_SECONDS, wait_for_ready=True)
            mine = self.once(name, request)
            error = cast("grpc.Call | None", first.exception())
            answers = [mine, self._ended(name, error, None, began)]
        finally:
            line.close()
        for answer in answers:
            self._settles(answer, name, wanted)
