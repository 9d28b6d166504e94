"""Which filesystems are frozen at this moment, so that none stays frozen when the driver ends."""

import logging
import threading

from csi_local.model.errors import Busy

_log = logging.getLogger(__name__)


class Stillness:
    """The points at which filesystems are frozen for a copy; whoever stops the driver waits until there is none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._points: set[str] = set()
        self._over = False

    def begin(self, point: str) -> None:
        """Say that the filesystem there is about to be frozen.

        Raises:
            Busy: the driver stops.
        """
        with self._changed:
            if self._over:
                raise Busy("the driver stops; try again")
            self._points.add(point)

    def end(self, point: str) -> None:
        """Say that it is frozen no more."""
        with self._changed:
            self._points.discard(point)
            self._changed.notify_all()

    def stop(self, wait_s: float) -> None:
        """Let no other be frozen, and wait until those that are have been thawed, or time runs out."""
        with self._changed:
            self._over = True
            if not self._changed.wait_for(lambda: not self._points, wait_s):
                _log.error("left frozen for the next driver to thaw: %s", ", ".join(sorted(self._points)))
