"""The resources of one kind, as whoever writes what is wanted of them sees them.

Everything here may be interrupted at any point and asked again, of this controller or of another: what counts is
the resource. A write is guarded by the version that was seen, and who loses looks again.

``Busy`` and ``Unavailable`` tell the CO that the work may still be going on; every other error that it is not. What a
node has refused is taken away again: nobody will ask for it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from csi_local.engine.locks import KeyedLocks
from csi_local.kube.api import Api, Object
from csi_local.kube.cache import Cache, Predicate
from csi_local.kube.nodes import Nodes
from csi_local.kube.resources import (
    ABSENT,
    FINALIZER,
    NODE_LABEL,
    PRESENT,
    answered,
    error_of,
    name_of,
    node_of,
    resource_name,
    told,
    wanted_absent,
)
from csi_local.model.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    DriverError,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from csi_local.model.volume import known_id

_log = logging.getLogger(__name__)


class Desired:
    """Reads and writes what is wanted, and waits for what nodes answer."""

    def __init__(
        self,
        api: Api,
        collection: str,
        cache: Cache,
        nodes: Nodes,
        *,
        noun: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*noun* is what messages call one of them."""
        self.nodes = nodes
        self._api = api
        self._collection = collection
        self._cache = cache
        self._noun = noun
        self._clock = clock
        self._locks = KeyedLocks()
        cache.listen(self._hear)

    def _hear(self, _name: str, before: Object | None, now: Object | None) -> None:
        if before is not None and now is None and told(before):
            self.nodes.give_back(node_of(before))

    @contextmanager
    def held(self, name: str, patience_s: float) -> Iterator[float]:
        """Have no other call work on it here; until when (on the clock of :meth:`wait`) the caller is patient.

        Raises:
            Busy: somebody does.
        """
        until = self._clock() + patience_s
        with self._locks.hold(name, patience_s):
            yield until

    # --- one resource

    def items(self) -> list[Object]:
        """All that the cache knows."""
        return self._cache.items()

    def known(self, name: str) -> Object | None:
        """A resource as far as the cache knows."""
        return self._cache.get(name)

    def find(self, name: str) -> Object | None:
        """A resource; where the cache has none, the API is asked: another controller may have just made it."""
        return self._cache.get(name) or self.read(name)

    def find_made(self, shown: str, made: Callable[[Object], bool]) -> Object | None:
        """What a CO calls by the id *shown*, if it is *made*; likewise, as another controller may know that by now."""
        if (identifier := known_id(shown)) is None:
            return None
        name = resource_name(identifier)
        found = self._cache.get(name)
        if found is None or not made(found):
            found = self.read(name)
        return found if found is not None and made(found) else None

    def read(self, name: str) -> Object | None:
        """A resource as the API has it now."""
        try:
            found = self._api.get(self._collection, name)
        except NotFound:
            return None
        self._cache.observe(found)
        return found

    def post(self, made_up: Object) -> Object:
        """Make a resource, or return the one that somebody else has just made."""
        try:
            found = self._api.create(self._collection, made_up)
        except AlreadyExists:
            found = self._api.get(self._collection, name_of(made_up))
        self._cache.observe(found)
        return found

    def write(self, found: Object, spec: Mapping[str, Any]) -> tuple[Object | None, bool]:
        """Change what is wanted of a resource as it was seen, and have its node answer anew.

        What comes back is the resource as it is then (None: gone), and whether it was changed: where somebody else has
        changed it meanwhile it was not, and one must look again.
        """
        wanted = {**spec, "attempt": found["spec"].get("attempt", 0) + 1}
        before = found["metadata"]
        node = spec.get("nodeName", node_of(found))
        metadata: Object = {"resourceVersion": before["resourceVersion"], "labels": {NODE_LABEL: node}}
        if "nodeName" in spec and not before.get("finalizers") and "deletionTimestamp" not in before:
            metadata["finalizers"] = [FINALIZER]  # somebody was about to forget it
        try:
            changed = self._api.patch(self._collection, name_of(found), {"metadata": metadata, "spec": wanted})
        except (Conflict, NotFound):
            return self.read(name_of(found)), False
        self._cache.observe(changed)
        return changed, True

    def wait(self, found: Object, until: float, ended: Predicate) -> None:
        """Wait for what *ended* says of a resource, which its node is to bring about.

        Raises:
            Unavailable: the node is not there.
            NotFound: it has left the cluster.
            Busy: not within the time.
        """
        node, what = node_of(found), f"{self._noun} {name_of(found)}"
        self.nodes.check_alive(node, what)
        if found["metadata"].get("labels", {}).get(NODE_LABEL) != node:  # somebody took it off: the node cannot see it
            self.write(found, {})
        if not self._cache.wait(name_of(found), ended, until - self._clock()):
            raise Busy(f"node {node} is still at work on {what}; try again")

    # --- what is to be there

    def provide(
        self,
        name: str,
        patience_s: float,
        *,
        begin: Callable[[], Object],
        check: Callable[[Object], None],
        made: Callable[[Object], bool],
    ) -> Object:
        """Have a node make something that no other node could make, or find it.

        Args:
            name: of the resource.
            patience_s: how long to wait.
            begin: what to post where there is nothing.
            check: raises where what is there, or is being made, is something else.
            made: whether its node has said that it is there.

        Raises:
            Unavailable: its node is not there.
            NotFound: it has left the cluster.
            Busy: it has not answered within the time; asked again, this goes on where it was.
            DriverError: what it has answered.
        """
        with self.held(name, patience_s) as until:
            found, asked = self.known(name), False
            while True:
                if found is None:
                    found, asked = self.post(begin()), True
                elif (wanted_absent(found) or not made(found)) and self.nodes.removed(node_of(found)):
                    found = self.forget(found)
                elif wanted_absent(found) and (made(found) or not gone_or_refused(found)):
                    found = self.wait_gone(found, until)
                else:
                    check(found)
                    if made(found) and not wanted_absent(found):
                        return found
                    if not answered(found):
                        self.wait(found, until, gone_or_answered)
                        found, asked = self.known(name), True
                    elif asked:
                        raise self.refused(found)
                    else:
                        found, asked = self.write(found, {"state": PRESENT})

    def wait_gone(self, found: Object, until: float) -> Object | None:
        """Wait until something is gone that is being removed, or is wanted again; what is there then.

        Raises:
            DriverError: its node cannot remove it.
        """
        self.wait(found, until, _gone_or_back)
        now = self.known(name_of(found))
        if now is not None and wanted_absent(now) and (error := error_of(now)):
            raise error
        return now

    def refused(self, found: Object) -> DriverError:
        """Why a node has not made what is wanted; it is taken away again, where the error is final."""
        error = error_of(found) or Unavailable(f"node {node_of(found)} has not made {self._noun} {name_of(found)}")
        if isinstance(error, AlreadyExists | FailedPrecondition):  # something may be there, and is not ours to remove
            self._forget(found)
        elif not isinstance(error, Busy | Unavailable):
            self.write(found, {"state": ABSENT})
        return error

    # --- what is to be there no more

    def remove(self, name: str, patience_s: float) -> None:
        """Have its node remove something; no error where it is not there, or its node has left the cluster.

        Raises:
            Unavailable: its node is not there; it will be removed when it is back.
            DriverError: what the node has answered: FailedPrecondition where it is in use.
        """
        with self.held(name, patience_s) as until:
            found, asked = self.find(name), False
            while found is not None:
                if not wanted_absent(found) or (answered(found) and not asked):
                    found, written = self.write(found, {"state": ABSENT})
                    asked = asked or written
                elif answered(found) and (error := error_of(found)) is not None:
                    if not isinstance(error, Busy | Unavailable):
                        self.write(found, {"state": PRESENT})  # it stays: nobody may find it removed later
                    raise error
                elif self.nodes.removed(node_of(found)):
                    found = self.forget(found)
                else:
                    self.wait(found, until, gone_or_refused)
                    found = self.known(name)

    def forget_orphans(self) -> None:
        """Forget what is to go, or was never made, on nodes that have left the cluster.

        Where the CO has given a creation up, it will not ask for its deletion, nor can anybody else do it. What was
        made stays until it is deleted: a claim may have it.

        Raises:
            Unavailable: the API does not answer.
        """
        orphans = [found for found in self.items() if wanted_absent(found) or not told(found)]
        gone = {node for node in set(map(node_of, orphans)) if self.nodes.removed(node)}
        for found in orphans:
            if node_of(found) in gone:
                self.forget(found)

    def forget(self, found: Object) -> Object | None:
        """Take a resource away whose node has left the cluster: it will do and answer nothing any more.

        What is there then: nothing, or what somebody else has made of it meanwhile.
        """
        name, node = name_of(found), node_of(found)
        _log.warning("%s %s is forgotten: node %s has left the cluster", self._noun, name, node)
        return self._forget(found)

    def _forget(self, found: Object) -> Object | None:
        """Take a resource away and touch no data. What is left of it, where somebody has changed it meanwhile."""
        name, version = name_of(found), found["metadata"]["resourceVersion"]
        try:
            freed = {"metadata": {"resourceVersion": version, "finalizers": []}}
            version = self._api.patch(self._collection, name, freed)["metadata"]["resourceVersion"]
            self._api.delete(self._collection, name, version=version)
        except NotFound:
            return None
        except Conflict:
            return self.read(name)
        return None


def gone_or_answered(found: Object | None) -> bool:
    """Whether there is nothing to wait for any more."""
    return found is None or answered(found)


def gone_or_refused(found: Object | None) -> bool:
    """Whether what was to be removed is gone, or stays."""
    return found is None or (answered(found) and error_of(found) is not None)


def _gone_or_back(found: Object | None) -> bool:
    return found is None or not wanted_absent(found) or gone_or_refused(found)
