"""Looking at every volume now and then: how much of its pool it takes, and what is wrong with it."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from csi_local.engine.api import VolumeEngine, VolumeView
from csi_local.engine.pool import Pool
from csi_local.engine.pools import Pools
from csi_local.model.errors import DriverError, HostError, NotFound, Unsupported
from csi_local.model.quantity import Bytes

V = TypeVar("V")
_log = logging.getLogger(__name__)
_EVERY_S = 60.0
_DEAD_AFTER = 10
"""Rounds that may be late: a disk that hangs for some minutes is no reason to call the process dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A volume, and the bytes that it takes in its pool; None where nobody counts them."""

    view: VolumeView
    used: Bytes | None


def _nobody(_found: Sequence[Surveyed]) -> None:
    pass


def seen(pools: Pools, ids: Callable[[Pool], Iterable[str]], get: Callable[[str], V]) -> Iterator[V]:
    """All volumes, or snapshots, that can be seen; a disk that fails hides its own."""
    for pool in pools.all():
        try:
            there = sorted(ids(pool))
        except HostError as error:
            _log.warning("pool %s: what is in it cannot be listed: %s", pool.spec.name, error)
            continue
        for shown in there:
            try:
                yield get(shown)
            except NotFound:
                pass  # deleted meanwhile
            except DriverError as error:
                _log.warning("%s: %s", shown, error)
            except Exception:  # noqa: BLE001 (the others must be looked at; the log has it)
                _log.exception("looking at %s", shown)


class Survey:
    """Looks at all volumes once a minute.

    Attributes:
        found: what was seen last.
    """

    def __init__(
        self,
        volumes: VolumeEngine,
        pools: Pools,
        tell: Callable[[Sequence[Surveyed]], None] = _nobody,
        *,
        every_s: float = _EVERY_S,
    ) -> None:
        """*tell* gets what was seen, each time."""
        self.found: Sequence[Surveyed] = ()
        self._volumes = volumes
        self._pools = pools
        self._tell = tell
        self._every_s = every_s
        self._looked = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="survey", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way, or without waiting for it where a disk holds it up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    @property
    def problem(self) -> str:
        """Why it is not at work, or ""."""
        late = time.monotonic() - self._looked
        return f"it has not looked for {late:.0f} s" if late > self._every_s * _DEAD_AFTER else ""

    def look(self) -> None:
        """One round."""
        views = seen(self._pools, lambda pool: pool.store.volumes(), self._volumes.get)
        self.found = tuple(Surveyed(view=view, used=self._used(view)) for view in views)
        self._tell(self.found)

    def _used(self, view: VolumeView) -> Bytes | None:
        if view.record is None:
            return None
        try:
            return self._pools.get(view.pool).used_by(view.record)
        except (HostError, Unsupported, KeyError):  # the last: its pool went meanwhile
            return None

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # noqa: BLE001 (the thread must live; the log has it)
                _log.exception("looking at the volumes")
            self._looked = time.monotonic()
            if self._stopping.wait(self._every_s):
                return
