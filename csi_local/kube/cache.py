"""One collection of the Kubernetes API, kept in memory: listed once, then watched.

What is here may be late, never wrong: an object is replaced only by a later version of itself, whether it comes
from the watch, from a list, or from the answer to one of our own writes (:meth:`Cache.observe`). Outages are waited
out, and the watch goes on where it stopped; where the server no longer knows that place, all is listed anew.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from csi_local.kube.api import Api, Object
from csi_local.kube.resources import name_of
from csi_local.kube.retry import pause_after
from csi_local.model.errors import DriverError, Expired, Unavailable

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_AT_ONCE_S = 1.0
"""A watch that brought nothing and was ended sooner than this is no watch."""
_FRUITLESS = 5
"""After so many watches in a row that brought nothing all is listed anew, from where a watch may be possible again."""
_MOST_GONE = 10_000
"""Deleted objects whose last version is remembered, so that a late answer cannot bring them back."""

Listener = Callable[[str, Object | None, Object | None], None]
"""Told of each change: the name, the object before and after. Called with the cache locked: it must be quick.

Where it raises, it is told again, as everybody else is: it must bear to hear the same twice.
"""

Predicate = Callable[[Object | None], bool]


@dataclass(slots=True)
class _Waiter:
    predicate: Predicate
    met: threading.Event = field(default_factory=threading.Event)

    def hear(self, _name: str, _before: Object | None, found: Object | None) -> None:
        """See whether that is what is waited for."""
        if not self.met.is_set() and self.predicate(found):
            self.met.set()


class Cache:
    """The objects of *collection* that a label selector chooses, by name."""

    def __init__(
        self,
        api: Api,
        collection: str,
        *,
        selector: str = "",
        key: Callable[[Object], str] = name_of,
        keep: Callable[[Object], Object] = dict,
    ) -> None:
        """*key* is what they go by, where several namespaces may have the same name; *keep* says what of each stays."""
        self._api, self._collection, self._selector = api, collection, selector
        self._key, self._keep = key, keep
        self._guard = threading.RLock()
        self._objects: dict[str, Object] = {}
        self._gone: dict[str, int] = {}
        self._waiters: dict[str, list[_Waiter]] = {}
        self._listeners: list[Listener] = []
        self._untold: dict[str, Object | None] = {}
        """What objects were before a change that not everybody could be told of."""
        self._version = ""
        self._expired = True
        self._fruitless = 0
        self._failures = 0
        self._said = ""
        self._synced = threading.Event()
        self._stopping = threading.Event()
        self._connected_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{collection.rpartition('/')[2]}", daemon=True)

    def listen(self, listener: Listener) -> None:
        """Have *listener* told of each change from now on; what is here already is not told."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to list and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End soon: when the watch has something to tell, or the API's connections are closed."""
        self._stopping.set()

    @property
    def synced(self) -> bool:
        """Whether all there is has been listed once."""
        return self._synced.is_set()

    @property
    def connected_since(self) -> float | None:
        """Since when (monotonic seconds) the watch has had no gap; None while it has one."""
        return self._connected_since

    def check_alive(self) -> str:
        """Why it hears of nothing any more, or ""; that the API cannot be reached is no reason."""
        return "" if self._thread.is_alive() else "its thread has died"

    def check_synced(self) -> str:
        """Why it is not filled yet, or ""."""
        return "" if self.synced else "not listed yet"

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait for the first list; return whether it is there."""
        return self._synced.wait(timeout_s)

    def get(self, name: str) -> Object | None:
        """An object by its name. It is shared: do not change it."""
        return self._objects.get(name)

    def items(self) -> list[Object]:
        """All objects."""
        with self._guard:
            return list(self._objects.values())

    def observe(self, found: Object) -> None:
        """Take in what a write or a read was answered with, before the watch tells of it."""
        self._take(self._key(found), self._keep(found), _version(found))

    def wait(self, name: str, predicate: Predicate, patience_s: float) -> bool:
        """Wait until *predicate* is true of an object (None where it is not there); return whether it became so."""
        waiter = _Waiter(predicate)
        with self._guard:
            if predicate(self._objects.get(name)):
                return True
            self._waiters.setdefault(name, []).append(waiter)
        try:
            return waiter.met.wait(max(0.0, patience_s))
        finally:
            with self._guard:
                waiters = self._waiters[name]
                waiters.remove(waiter)
                if not waiters:
                    del self._waiters[name]

    # --- what comes in

    def _take(self, name: str, found: Object | None, version: int, *, always: bool = False) -> None:
        """Replace an object by *found*, None where it was deleted, unless a later version is known."""
        with self._guard:
            before = self._objects.get(name)
            known = _version(before) if before else self._gone.get(name, -1)
            if version > known or always:
                self._put(name, before, found, version)

    def _put(self, name: str, before: Object | None, found: Object | None, version: int) -> None:
        if found is not None:
            self._objects[name] = found = _lean(found)
            self._gone.pop(name, None)
        else:
            self._objects.pop(name, None)
            self._gone[name] = version
            if len(self._gone) > _MOST_GONE:
                del self._gone[next(iter(self._gone))]
        self._tell(name, before, found)

    def _tell(self, name: str, before: Object | None, found: Object | None) -> None:
        before = self._untold.pop(name, before)
        if before is None and found is None:
            return
        for hear in (*self._listeners, *(waiter.hear for waiter in self._waiters.get(name, ()))):
            try:
                hear(name, before, found)
            except Exception as error:  # noqa: BLE001 (the others must hear it; the log has it)
                self._untold[name] = before
                self._say_unforeseen(error)

    def _tell_again(self) -> None:
        """Tell everybody of the changes that not everybody could be told of."""
        if not self._untold:
            return
        with self._guard:
            for name in list(self._untold):
                self._tell(name, None, self._objects.get(name))

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tell_again()
                if self._expired or self._fruitless >= _FRUITLESS:
                    self._list()
                elif self._connected_since is None:
                    self._check_history()
                self._watch()
            except Expired as error:
                _log.info("%s: listing again: %s", self._collection, error)
                self._expired = True
                self._rest()
            except DriverError as error:
                began = not self._failures and not self._stopping.is_set()
                _log.log(logging.WARNING if began else logging.DEBUG, "watching %s: %s", self._collection, error)
                self._rest()
            except Exception as error:  # noqa: BLE001 (the thread must live; the log has it)
                self._say_unforeseen(error)
                self._expired = True
                self._rest()

    def _rest(self) -> None:
        """Wait before the next attempt: longer each time, until a watch has brought something."""
        self._connected_since = None
        self._stopping.wait(pause_after(self._failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        self._failures += 1

    def _say_unforeseen(self, error: Exception) -> None:
        """What is tried again and again is said once."""
        said, self._said = self._said, repr(error)
        if said != self._said:
            _log.error("watching %s", self._collection, exc_info=error)

    def _check_history(self) -> None:
        """See after an outage that the server is not one with an older past: an etcd that was restored.

        Raises:
            Expired: it is; its versions mean something else than ours.
        """
        if self._is_older(self._api.version(self._collection)):
            raise Expired("the server's versions went back: its data was restored from a backup")

    def _is_older(self, version: str) -> bool:
        return bool(self._version) and int(version) < int(self._version)

    def _list(self) -> None:
        items, version = self._api.list(self._collection, self._selector, self._keep)
        there = {self._key(one): one for one in items}
        rewound = self._is_older(version)
        with self._guard:
            if rewound:
                self._gone.clear()
            for name in [name for name in self._objects if name not in there]:
                self._take(name, None, int(version), always=rewound)
            for name, found in there.items():
                self._take(name, found, _version(found), always=rewound)
        self._version, self._expired, self._fruitless = version, False, 0
        self._synced.set()

    def _watch(self) -> None:
        """Follow one watch to its end.

        Raises:
            Unavailable: also where that came at once, and with nothing.
        """
        began = time.monotonic()
        self._connected_since = self._connected_since or began
        self._fruitless += 1
        for kind, found in self._api.watch(self._collection, self._version, selector=self._selector):
            version = _version(found)
            if kind != "BOOKMARK":
                self._take(self._key(found), None if kind == "DELETED" else self._keep(found), version)
            if version > int(self._version):  # else it brings nothing, and may be all that this server ever says
                self._version, self._fruitless, self._failures = str(version), 0, 0
            self._tell_again()
            if self._stopping.is_set():
                return
        if self._fruitless and time.monotonic() - began < _AT_ONCE_S and not self._stopping.is_set():
            raise Unavailable("the server ends watches as soon as they begin")
        self._fruitless, self._failures = 0, 0


def _lean(found: Object) -> Object:
    """An object to be kept: words that all of them have are shared, and who wrote which field is left out."""
    found = _shared(found)
    found["metadata"].pop("managedFields", None)
    return found


def _shared(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, dict):
        return {sys.intern(key): _shared(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shared(one) for one in value]
    return sys.intern(value) if isinstance(value, str) else value


def _version(found: Object) -> int:
    """An object's resource version; those of one resource can be compared (Kubernetes API concepts)."""
    return int(found["metadata"]["resourceVersion"])
