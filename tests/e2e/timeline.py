"""When things happened to objects, as a watch tells it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from http.client import HTTPException
from typing import TYPE_CHECKING

from tests.e2e.api import path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.e2e.api import Api, Object

WATCH_SECONDS = 600.0
Name = tuple[str, str]
"""The name of an object, and of what became of it."""


class Timeline:
    """The moment (of time.monotonic) at which each event was first seen, of all objects of the kinds watched."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._moments: dict[Name, float] = {}
        self._changed = threading.Condition()

    def watch(self, kind: str, namespace: str | None, events: Callable[[str, Object], Iterator[str]]) -> None:
        """Follow a kind in the background; `events` names what an object's change means."""
        version = self._api.request("GET", path_of(kind, namespace))["metadata"]["resourceVersion"]

        def follow() -> None:
            with suppress(OSError, HTTPException, ValueError):  # the cluster has ended, and with it this thread
                for change in self._api.watch(kind, namespace, version, WATCH_SECONDS):
                    for event in events(change["type"], change["object"]):
                        self._mark((change["object"]["metadata"]["name"], event))

        threading.Thread(target=follow, daemon=True).start()

    def _mark(self, name: Name) -> None:
        with self._changed:
            self._moments.setdefault(name, time.monotonic())
            self._changed.notify_all()

    def wait(self, names: Iterable[str], event: str, seconds: float) -> list[float]:
        """Return when the event came to each of these objects, after it has come to all."""
        wanted = [(name, event) for name in names]
        with self._changed:
            if not self._changed.wait_for(lambda: all(each in self._moments for each in wanted), seconds):
                missing = [name for name, _ in wanted if (name, event) not in self._moments]
                raise AssertionError(f"{event}: {len(missing)} of {len(wanted)} are missing, as {missing[0]}")
            return [self._moments[each] for each in wanted]
