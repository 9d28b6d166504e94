"""Long copies, each on a thread of its own, that go on when whoever asked for them has stopped waiting.

A copy is found again by its key. It ends whole, with what it made under its final name, or it leaves nothing: what a
driver that dies leaves behind is swept at the next start, and the retry begins anew.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from csi_local.host.api import Proceed
from csi_local.model.errors import AlreadyExists, Busy, FailedPrecondition

_log = logging.getLogger(__name__)
_REMEMBERED = 100
"""Failures that nobody has asked about yet."""
_WAIT_S = 5.0
"""How long a request waits for a copy at most; the next one finds it. Side-cars give up after ten seconds."""
_AT_ONCE = 2
"""More copies than this wait for each other: they share a disk."""

Spawn = Callable[[Callable[[], None]], None]
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Copy:
    asked: object
    reads: frozenset[str]
    stopped_for: str = ""
    done: bool = False
    error: BaseException | None = None

    def proceed(self) -> None:
        """Raise where the copy is to end."""
        if self.stopped_for:
            raise FailedPrecondition(f"the copy was given up: {self.stopped_for}")


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="copy", daemon=True).start()


def _nothing(_proceed: Proceed) -> None:
    """What is to be done for a copy that has ended by the time somebody joins it."""


class Copies:
    """The copies under way, by what they make."""

    def __init__(self, spawn: Spawn = _on_a_thread, longest_wait_s: float = _WAIT_S) -> None:
        """*spawn* begins one; nobody waits for one any longer than that, however patient."""
        self._spawn = spawn
        self._longest_wait_s = longest_wait_s
        self._changed = threading.Condition()
        self._copies: dict[str, _Copy] = {}
        self._free = _AT_ONCE
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have *listener* told what each copy made, or did not make, when it has ended."""
        self._listeners.append(listener)

    def run(self, key: str, reads: str, asked: T, work: Callable[[Proceed], None], patience_s: float) -> bool:
        """Begin a copy, or find the one under way, and wait for it; whether it is done.

        Args:
            key: what it makes.
            reads: what must neither be written to nor removed meanwhile.
            asked: the request; only an equal one finds it.
            work: does it, asking again and again whether to proceed.
            patience_s: how long to wait, where that is not too long.

        Raises:
            AlreadyExists: what is being made is something else.
            DriverError: it failed; who asks again begins again.
        """
        with self._changed:
            copy = self._known(key, asked)
            if fresh := copy is None:
                copy = self._copies[key] = _Copy(asked, frozenset({reads}))
        if copy.asked != asked:
            raise AlreadyExists(f"{key} is being made from something else, or in another way")
        if fresh:
            self._begin(key, copy, work)
        with self._changed:
            self._changed.wait_for(lambda: copy.done, self._wait(patience_s))
            if not copy.done:
                return False
            if self._copies.get(key) is copy:
                del self._copies[key]
        if copy.error is not None:
            raise copy.error
        return True

    def _begin(self, key: str, copy: _Copy, work: Callable[[Proceed], None]) -> None:
        """Spawn it; where the system has no thread for it, it has failed: else it would be under way for ever."""
        try:
            self._spawn(lambda: self._do(key, copy, work))
        except RuntimeError as error:
            with self._changed:
                copy.done, copy.error = True, Busy(f"{key} cannot be made now: {error}; try again")
                self._changed.notify_all()

    def _known(self, key: str, asked: object) -> _Copy | None:
        """The copy that makes *key*; one that failed is there no more where something else is asked for by now."""
        copy = self._copies.get(key)
        if copy is not None and copy.done and copy.asked != asked:
            del self._copies[key]
            return None
        return copy

    def _wait(self, patience_s: float) -> float:
        return max(0.0, min(self._longest_wait_s, patience_s))

    def join(self, key: str, asked: object, patience_s: float) -> bool:
        """Wait for the copy that makes *key*, if there is one; whether there is none any more.

        Raises:
            AlreadyExists: what is being made is something else.
            DriverError: it failed; who asks again begins again.
        """
        with self._changed:
            if self._known(key, asked) is None:
                return True
        return self.run(key, "", asked, _nothing, patience_s)

    def _do(self, key: str, copy: _Copy, work: Callable[[Proceed], None]) -> None:
        try:
            with self._turn(copy):
                work(copy.proceed)
        except Exception as error:  # noqa: BLE001 (whoever asks next is told)
            _log.warning("%s: %s", key, error)
            copy.error = error
        with self._changed:
            copy.done = True
            failed = [name for name, one in self._copies.items() if one.done]
            for name in failed[:-_REMEMBERED] if copy.error is not None else [key]:
                self._copies.pop(name, None)
            self._changed.notify_all()
        for listener in self._listeners:
            listener(key)

    @contextmanager
    def _turn(self, copy: _Copy) -> Iterator[None]:
        """Wait until fewer are at work, which may take hours; one that is to end meanwhile waits no longer."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or copy.stopped_for)
            copy.proceed()
            self._free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def asked(self) -> dict[str, object]:
        """What is being copied: the requests, by what they make."""
        with self._changed:
            return {key: copy.asked for key, copy in self._copies.items() if not copy.done}

    def is_read(self, key: str) -> bool:
        """Whether a copy reads *key*."""
        with self._changed:
            return any(key in copy.reads for copy in self._copies.values() if not copy.done)

    def also_reads(self, key: str, what: str) -> None:
        """Say that the copy which makes *key* reads that too."""
        with self._changed:
            copy = self._copies[key]
            copy.reads |= {what}

    def disturb(self, key: str, why: str) -> None:
        """End the copies that read *key*: it is about to be written to. What they have read so far is of no use."""
        with self._changed:
            for copy in self._copies.values():
                if key in copy.reads:
                    copy.stopped_for = why
            self._changed.notify_all()

    def cancel(self, key: str, patience_s: float) -> None:
        """End the copy that makes *key*, and forget it.

        Raises:
            Busy: it has not ended yet.
        """
        with self._changed:
            copy = self._copies.get(key)
            if copy is None:
                return
            copy.stopped_for = "it is being deleted"
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: copy.done, self._wait(patience_s)):
                raise Busy(f"{key} is still being made; try again")
            self._copies.pop(key, None)

    def stop(self, wait_s: float) -> None:
        """End all copies."""
        with self._changed:
            for copy in self._copies.values():
                copy.stopped_for = "the driver stops"
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(copy.done for copy in self._copies.values()), wait_s)
