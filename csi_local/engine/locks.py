"""One operation per volume at a time.

A second caller waits within its patience and then gets ``Busy``. No lock is ever held over two volumes' work, so
that nobody waits for somebody else's volume.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from csi_local.model.errors import Busy

MAX_WAITING = 8
"""More callers than this for one volume are turned away at once: their threads are worth more to others."""


@dataclass(slots=True)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class KeyedLocks:
    """A lock for each key, there only while somebody has or wants it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    @contextmanager
    def hold(self, key: str, patience_s: float) -> Iterator[None]:
        """Have *key* for oneself.

        Raises:
            Busy: not within *patience_s* seconds, or too many wait already.
        """
        with self._guard:
            entry = self._entries.setdefault(key, _Entry())
            if entry.users > MAX_WAITING:
                raise Busy(f"too many operations on {key!r} are waiting; try again")
            entry.users += 1
        try:
            if not entry.lock.acquire(timeout=max(0.0, patience_s)):
                raise Busy(f"another operation on {key!r} is under way; try again")
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            with self._guard:
                entry.users -= 1
                if not entry.users:
                    del self._entries[key]
