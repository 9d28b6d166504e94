"""What goes on in the background: removing what was deleted, trying missing pools again, sampling usage.

Each pool's trash has a thread of its own, so that a disk which hangs holds up no other's room.
"""

import logging
import math
import threading
import time
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
_END_WITHIN_S = 1.0
_SETTLE_AFTER_S = 0.5
_SETTLE_TIMES = 3
"""A btrfs frees a destroyed subvolume after one commit and its blocks after the next."""


class Sweeper:
    """Removes trash, and does what must be done now and then."""

    def __init__(self, host: Host, pools: Pools) -> None:
        self._host = host
        self._pools = pools
        self._trash: dict[str, dict[str, None]] = {}
        """The paths to remove, in order, by the pool's root; each until it is removed."""
        self._changed = threading.Condition()
        self._stopping = False
        self._chores: list[Callable[[], None]] = []
        self._threads: list[threading.Thread] = []

    def every_round(self, chore: Callable[[], None]) -> None:
        """Do this too, now and then."""
        self._chores.append(chore)

    def start(self) -> None:
        """Begin, with what an earlier driver left behind."""
        for pool in self._pools.all():
            self._add_leftovers(pool)
        self._begin(self._run)

    def stop(self) -> None:
        """End, perhaps amid a removal; what is not removed is found at the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + _END_WITHIN_S
        for thread in self._threads:
            thread.join(timeout=max(0, deadline - time.monotonic()))

    def add(self, path: str) -> None:
        """Remove *path*, which is in the root of a pool, soon."""
        root = path.rpartition("/")[0]
        with self._changed:
            if root not in self._trash and not self._stopping:
                self._begin(self._empty, root)
            self._trash.setdefault(root, {})[path] = None
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Wait until all that was added is removed, its room is back and counted, or time runs out."""
        with self._changed:
            self._changed.wait_for(lambda: not any(self._trash.values()), timeout_s)
        self._settle()
        self._pools.sample()

    def _add_leftovers(self, pool: Pool) -> None:
        """What could not be removed before; not what is being made, which is beside it."""
        for path in pool.store.leftovers():
            if _is_trash(path):
                self.add(path)

    def _begin(self, work: Callable[..., None], *arguments: str) -> None:
        thread = threading.Thread(target=work, args=arguments, name="sweeper", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _empty(self, root: str) -> None:
        """Remove the trash of one pool, and settle that when no more comes."""
        unsettled = 0
        while True:
            with self._changed:
                trash = self._trash[root]
                self._changed.wait_for(
                    lambda: self._stopping or self._trash[root], _SETTLE_AFTER_S if unsettled else None
                )
                if self._stopping:
                    return
                path = next(iter(trash), None)
            if path is None:
                unsettled -= 1
                self._settle(root)
                continue
            self._remove(path)
            unsettled = _SETTLE_TIMES
            with self._changed:
                del trash[path]
                self._changed.notify_all()

    def _run(self) -> None:
        last_round = -math.inf
        while not self._stopping:
            if time.monotonic() - last_round >= (_ROUND_S if self._pools.ready else _MISSING_ROUND_S):
                self._round()
                last_round = time.monotonic()
            with self._changed:  # one may be missing at any moment
                self._changed.wait_for(lambda: self._stopping, _MISSING_ROUND_S)

    def _settle(self, root: str = "") -> None:
        """Settle one pool, or all."""
        for pool in self._pools.all():
            if pool.abilities.btrfs and root in ("", pool.root):
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
