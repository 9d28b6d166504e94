"""When things happened to objects, as a watch tells it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from http.client import HTTPException
from typing import TYPE_CHECKING

from tests.e2e.api import ApiError, path_of

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
        there: dict[str, Object] = {}

        def tell(change: str, found: Object) -> None:
            name = found["metadata"]["name"]
            if change == "DELETED":
                there.pop(name, None)
            else:
                there[name] = found
            for event in events(change, found):
                self._mark((name, event))

        def follow() -> None:
            with suppress(
                OSError, HTTPException, ValueError, ApiError
            ):  # the cluster has ended, and with it this thread
                while True:  # a watch ends now and then; what happened meanwhile is told late, but told
                    listed = self._api.request("GET", path_of(kind, namespace))
                    now = {item["metadata"]["name"]: item for item in listed["items"]}
                    for name in set(there) - set(now):
                        tell("DELETED", there[name])
                    for item in now.values():
                        tell("ADDED", item)
                    for change in self._api.watch(
                        kind, namespace, listed["metadata"]["resourceVersion"], WATCH_SECONDS
                    ):
                        tell(change["type"], change["object"])

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
