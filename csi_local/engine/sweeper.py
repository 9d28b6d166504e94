"""The one background thread: it removes what was deleted, tries missing pools again, and samples usage."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from csi_local.engine.erasing import remove_erased
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.host.api import Host
from csi_local.model.errors import DriverError, HostError
from csi_local.store.layout import PROBE, TRASH

_log = logging.getLogger(__name__)
_ROUND_S = 60.0
_MISSING_ROUND_S = 10.0
"""While a pool is missing: pods wait for it."""
_SETTLE_AFTER_S = 0.5
_SETTLE_TIMES = 3
"""A btrfs frees a destroyed subvolume after one commit and its blocks after the next."""


class Sweeper:
    """Removes trash, and does what must be done now and then."""

    def __init__(self, host: Host, pools: Pools) -> None:
        self._host = host
        self._pools = pools
        self._paths: deque[str] = deque()
        self._changed = threading.Condition()
        self._working = False
        self._stopping = False
        self._unsettled = 0
        self._chores: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def every_round(self, chore: Callable[[], None]) -> None:
        """Do this too, now and then."""
        self._chores.append(chore)

    def start(self) -> None:
        """Begin, with what an earlier driver left behind."""
        for pool in self._pools.all():
            self._add_leftovers(pool)
        self._thread.start()

    def stop(self) -> None:
        """End, perhaps amid a removal; what is not removed is found at the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def add(self, path: str) -> None:
        """Remove *path* soon."""
        with self._changed:
            self._paths.append(path)
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Wait until all that was added is removed, its room is back and counted, or time runs out."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paths and not self._working, timeout_s)
        self._settle()
        self._pools.sample()

    def _add_leftovers(self, pool: Pool) -> None:
        """What could not be removed before; not what is being made, which is beside it."""
        for path in pool.store.leftovers():
            if _is_trash(path):
                self.add(path)

    def _run(self) -> None:
        last_round = -math.inf
        while not self._stopping:
            if time.monotonic() - last_round >= (_ROUND_S if self._pools.ready else _MISSING_ROUND_S):
                self._round()
                last_round = time.monotonic()
            pause = _SETTLE_AFTER_S if self._unsettled else _MISSING_ROUND_S  # one may be missing at any moment
            with self._changed:
                woken = self._changed.wait_for(lambda: self._stopping or self._paths, pause)
                path = self._paths.popleft() if self._paths and not self._stopping else None
                self._working = path is not None
            if path is not None:
                self._remove(path)
                self._unsettled = _SETTLE_TIMES
                with self._changed:
                    self._working = False
                    self._changed.notify_all()
            elif self._unsettled and not woken:
                self._unsettled -= 1
                self._settle()

    def _settle(self) -> None:
        for pool in self._pools.all():
            if pool.abilities.btrfs:
                with suppress(DriverError):
                    self._host.settle(pool.root)

    def _remove(self, path: str) -> None:
        if not _is_trash(path):
            return
        try:
            remove_erased(self._host, path)
        except DriverError as error:
            _log.warning("%s is not removed yet: %s", path, error)
        except Exception:  # noqa: BLE001 (the thread must live; the log has it)
            _log.exception("removing %s", path)

    def _round(self) -> None:
        try:
            self._pools.retry()
            for pool in self._pools.all():
                with suppress(HostError):  # a disk that fails is told of when it is used
                    self._add_leftovers(pool)
            self._pools.sample()
            for chore in self._chores:
                chore()
        except DriverError as error:
            _log.warning("looking after the pools: %s", error)
        except Exception:  # noqa: BLE001 (likewise)
            _log.exception("looking after the pools")


def _is_trash(path: str) -> bool:
    return path.rpartition("/")[2].startswith((TRASH, PROBE))
