"""The node's side of the custom resources: what this node's LocalVolumes and the like want, it does, and answers.

The disk says what exists; a resource's spec says what is wanted, and its status what was answered. Work is due while
the status has not observed the spec's generation. Whatever is cut short is simply due again: each step finds what an
earlier attempt has done.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

from csi_local.kube import resources
from csi_local.kube.api import Api, Object
from csi_local.kube.cache import Cache
from csi_local.kube.events import Events, about_node
from csi_local.kube.kind import Kind, V, View
from csi_local.kube.pools import Owner
from csi_local.kube.work import Marks, WorkQueue
from csi_local.model.errors import AlreadyExists, Conflict, DriverError, NotFound, Unavailable

_log = logging.getLogger(__name__)
WORKERS = 8
"""Mostly they wait for a disk or for the API."""
Told = Callable[[str, str, float], None]
"""Told of everything done: operation, result, seconds."""


class Agent(Generic[V]):
    """Does what the resources of one kind want of one node."""

    def __init__(
        self,
        api: Api,
        owner: Owner,
        kind: Kind[V],
        events: Events,
        *,
        told: Told,
        changed: Callable[[], None],
        crash_point: Callable[[str], None],
        workers: int = WORKERS,
    ) -> None:
        """*changed* is called when the pools have more or less room than before.

        Where its *owner* has left the cluster, what was forgotten with it gets no resources again.
        """
        self.cache = Cache(api, kind.collection, selector=resources.selector(owner.node))
        self._api = api
        self._node = owner.node
        self._owner = owner
        self._kind = kind
        self._events = events
        self._told = told
        self._changed = changed
        self._pass = crash_point
        self._queue = WorkQueue(self._work, workers, name=kind.resource)
        self._guard = threading.Lock()
        self._fresh: dict[str, str] = {}
        """Ids of what was made and whose making was not acknowledged yet, by their resource's name."""
        self._strays = Marks()
        """Ids of what is on disk and has no resource that the cache knows, likewise."""
        self._again = Marks()
        """Resources whose removal failed, and that are tried again though nobody has asked again."""
        self._suspects = Marks()
        """Resources of data whose health may be another than they say."""
        self._unseen: Sequence[V] | None = None
        """What was surveyed before it was known what is wanted."""
        self.cache.listen(self._seen)

    def start(self) -> None:
        """Begin; where the API is not there yet, begin when it is."""
        self._queue.start()
        self.cache.start()

    def stop(self) -> None:
        """End after the work under way."""
        self.cache.stop()
        self._queue.stop()

    @property
    def problem(self) -> str:
        """Why it is not at work, or ""; that the API cannot be reached is no reason."""
        return self._queue.problem or self.cache.check_alive()

    @property
    def unconnected(self) -> str:
        """Why it does not know what is wanted now, or ""."""
        return "" if self.cache.connected_since is not None else "the Kubernetes API cannot be watched"

    def _seen(self, name: str, old: Object | None, new: Object | None) -> None:
        if new is not None and self._kind.acknowledged(new):
            self._settle(name)  # also where the answer to our answer was lost
        just_released = old is not None and new is not None and _held(old) and not _held(new)
        cut_short = old is None and new is not None and self._kind.pending(new)
        if new is not None and not just_released and (cut_short or not resources.answered(new)):
            self._queue.add(name)

    def ended(self, identifier: str) -> None:
        """Look at something again whose making went on in the background, and has ended, or was given up."""
        name = resources.resource_name(identifier)
        self._again.set(name)
        self._queue.add(name)

    def surveyed(self, found: Sequence[V]) -> None:
        """Compare what is on disk with what the resources say; what differs, or is not answered, is looked at."""
        if not self.cache.synced:
            self._unseen = found
            return
        here = {resources.resource_name(view.id): view for view in found}
        for wanted in self.cache.items():
            name = resources.name_of(wanted)
            view = here.pop(name, None)
            if resources.wanted_absent(wanted):
                self._again.set(name)
                self._queue.add(name)
            elif not resources.answered(wanted) or self._kind.pending(wanted):
                self._queue.add(name)
            elif self._kind.acknowledged(wanted) and _differs(wanted, view):
                self._suspects.set(name)
                self._queue.add(name)
        for name, view in here.items():
            self._strays.set(name, view.id)
            self._queue.add(name)

    def catch_up(self) -> None:
        """Look at what was surveyed before it was known what is wanted."""
        found = self._unseen
        if found is not None and self.cache.synced:
            self._unseen = None
            self.surveyed(found)

    # --- one resource

    def _work(self, name: str) -> bool:
        """Do what is due; whether nothing is left to do."""
        wanted = self.cache.get(name)
        try:
            return self._without(name) if wanted is None else self._with(name, wanted)
        except (Conflict, NotFound):  # it has changed, perhaps by this very work, whose answer was lost: look again
            return False
        except DriverError as error:
            _log.info("%s %s waits: %s", self._kind.resource, name, error)
            return False

    def _with(self, name: str, wanted: Object) -> bool:
        """Something with a resource of this node."""
        self._strays.discard(name)
        absent, answered = resources.wanted_absent(wanted), resources.answered(wanted)
        with self._again.taken(name) as again, self._suspects.taken(name) as suspect:
            if absent and not answered:
                return self._remove(name, wanted)
            if absent and again:
                return self._remove_after_all(name)
            if answered and (absent or not self._kind.pending(wanted)):
                return self._check(name, wanted) if suspect else True
            return self._provide(name, wanted)

    def _provide(self, name: str, wanted: Object) -> bool:
        began = time.perf_counter()
        there = self._kind.acknowledged(wanted)
        operation = self._kind.operation("keep" if there else "create")
        try:
            view = self._kind.keep(wanted) if there else self._create(name, wanted)
            patch = self._kind.ready_status(wanted, view, now=_now())
            result = "OK"
        except Exception as error:  # noqa: BLE001 (whoever waits for an answer must get one)
            patch, result = self._failure(operation, name, wanted, error)
        if resources.says(wanted, patch):  # a copy that goes on
            return True
        self._pass(f"agent-{operation}:done")
        self._answer(name, wanted, patch)
        self._pass(f"agent-{operation}:answered")
        self._told(operation, result, time.perf_counter() - began)
        self._changed()
        if wanted["metadata"].get("deletionTimestamp"):
            self._hold_back(name, wanted)
        return True

    def _create(self, name: str, wanted: Object) -> V:
        identifier = self._kind.id_of(wanted)
        try:
            self._kind.get(identifier)
        except (NotFound, Unavailable):  # the latter: it is in none of the pools that are open
            with self._guard:
                self._fresh[name] = identifier
        try:
            return self._kind.create(wanted)
        except BaseException:
            self._settle(name)
            raise

    def _remove(self, name: str, wanted: Object) -> bool:
        began, operation = time.perf_counter(), self._kind.operation("delete")
        try:
            self._kind.delete(self._kind.id_of(wanted))
        except Exception as error:  # noqa: BLE001 (likewise)
            patch, result = self._failure(operation, name, wanted, error)
            self._answer(name, wanted, patch)
            self._told(operation, result, time.perf_counter() - began)
            return True
        self._pass(f"agent-{operation}:done")
        metadata = wanted["metadata"]
        others = [one for one in metadata.get("finalizers", []) if one != resources.FINALIZER]
        freed = {"metadata": {"finalizers": others, "resourceVersion": metadata["resourceVersion"]}}
        self._api.patch(self._kind.collection, name, freed)
        self._pass(f"agent-{operation}:released")
        if others or not metadata.get("deletionTimestamp"):
            self._api.delete(self._kind.collection, name, uid=metadata["uid"])
        self._pass(f"agent-{operation}:answered")
        self._told(operation, "OK", time.perf_counter() - began)
        self._changed()
        return True

    def _remove_after_all(self, name: str) -> bool:
        """Remove what could not be removed when it was to go, unless it is to stay by now: the watch may be late."""
        now = self._api.get(self._kind.collection, name)
        self.cache.observe(now)
        return self._remove(name, now) if resources.wanted_absent(now) else True

    def _failure(self, operation: str, name: str, wanted: Object, error: Exception) -> tuple[Object, str]:
        if not isinstance(error, DriverError):
            _log.error("%s of %s failed in a way that was not foreseen", operation, name, exc_info=error)
        else:
            _log.warning("%s of %s %s: %s", operation, self._kind.resource, name, error)
        patch = self._kind.failed_status(wanted, error, now=_now())
        return patch, patch["status"]["error"]["code"]

    def _answer(self, name: str, wanted: Object, patch: Object) -> None:
        """Write the status of the very version that was acted on, so that nobody is told of what is no longer so.

        Raises:
            Conflict, NotFound: it has changed or gone. What was made for it, and is another node's business now, is
                removed: nobody was told of it.
            Unavailable: the API cannot be reached.
        """
        guarded = {**patch, "metadata": {"resourceVersion": wanted["metadata"]["resourceVersion"]}}
        try:
            self.cache.observe(self._api.patch(self._kind.collection, name, guarded, status=True))
        except (Conflict, NotFound):
            self._withdraw(name)
            raise
        self._settle(name)

    def _settle(self, name: str) -> None:
        """Nothing is left that was made for a resource and may be withdrawn: it is somebody's by now, or gone."""
        with self._guard:
            self._fresh.pop(name, None)

    def _withdraw(self, name: str) -> None:
        """Remove what was made and never acknowledged, where it is no longer wanted here."""
        with self._guard:
            identifier = self._fresh.get(name)
        if identifier is None:
            return
        what = f"{self._kind.noun} {identifier}"
        try:
            now = self._api.get(self._kind.collection, name)
            if resources.node_of(now) == self._node:
                return
            _log.info("%s is wanted on node %s by now; what was made here is removed", what, resources.node_of(now))
        except NotFound:
            _log.info("%s is not wanted any more; what was made is removed", what)
        self._kind.delete(identifier)
        self._settle(name)
        self._changed()

    # --- what is on disk and what is said

    def _without(self, name: str) -> bool:
        """Something without a resource of this node."""
        self._again.discard(name)
        self._suspects.discard(name)
        self._withdraw(name)
        with self._strays.taken(name) as identifier:
            return self._stray(name, identifier) if identifier else True

    def _stray(self, name: str, identifier: str) -> bool:
        """Something that is on disk."""
        try:
            view = self._kind.get(identifier)
        except (NotFound, Unavailable):
            return True
        try:
            other = self._api.get(self._kind.collection, name)
        except NotFound:
            return self._adopt(name, view)
        noun, resource, node = self._kind.noun, self._kind.resource, resources.node_of(other)
        if node != self._node and self._is_leftover(view, other):
            _log.warning(
                "%s %s was never used and is on node %s by now; what is left here is removed", noun, identifier, node
            )
            self._kind.delete(identifier)
            self._changed()
        elif node != self._node:
            self._warn_node(
                f"{noun.capitalize()}OfAnotherNode",
                f"{noun} {identifier} is in pool {view.pool} here, and {resource} {name} says that node {node} has it."
                f" Was this node renamed, or its disk moved? Then set spec.nodeName and the label of the {resource} to"
                f" {self._node}; the {noun} is left alone",
            )
        return True

    def _is_leftover(self, view: V, other: Object) -> bool:
        """Whether something was made here, never acknowledged because this process died, and then made elsewhere.

        Only where it surely holds nothing, the other node has acknowledged its own, and that is on another disk: a node
        that was renamed, or a disk that was moved, has the very pool that the other node once told of.
        """
        if not (self._kind.is_empty(view) and self._kind.made(other)):
            return False
        here, there = resources.pool_resource_name(self._node, view.pool), other["status"]["pool"]
        try:
            ours, theirs = (
                self._api.get(resources.POOLS, name)["status"]["uuid"]
                for name in (here, resources.pool_resource_name(resources.node_of(other), there))
            )
        except (NotFound, KeyError):
            return False
        return bool(ours) and bool(theirs) and ours != theirs

    def _adopt(self, name: str, view: V) -> bool:
        """Give something a resource: the API lost it, or its disk was moved here."""
        noun, resource = self._kind.noun, self._kind.resource
        adopted = self._kind.adopted(view)
        if adopted is None:
            self._warn_node(f"{noun.capitalize()}Damaged", view.problem)
            return True
        self._owner.check_there()
        try:
            made = self._api.create(self._kind.collection, adopted)
        except AlreadyExists:
            return True
        patch = self._kind.ready_status(made, view, now=_now())
        self.cache.observe(self._api.patch(self._kind.collection, name, patch, status=True))
        _log.warning("%s %s in pool %s had no %s; it has one now", noun, view.id, view.pool, resource)
        return True

    def _check(self, name: str, wanted: Object) -> bool:
        """Say how data is, where that is not what its resource says."""
        try:
            problem = self._kind.get(self._kind.id_of(wanted)).problem
        except NotFound as error:
            problem = f"its data is gone: {error}"
        except DriverError as error:
            problem = str(error)
        patch = resources.health_status(wanted, problem, now=_now())
        if patch is not None:
            self._answer(name, wanted, patch)
            if problem:
                what = self._kind.noun
                self._warn(wanted, f"{what.capitalize()}Unhealthy", f"{what} {name}: {problem}")
            else:
                _log.info("%s %s is healthy again", self._kind.noun, name)
        return True

    def _hold_back(self, name: str, wanted: Object) -> None:
        self._warn(
            wanted,
            "DeletionHeldBack",
            f"{self._kind.resource} {name} was deleted by hand; that removes no data. It goes, with its data, when"
            f" {self._kind.goes_with}",
        )

    def _warn(self, wanted: Object, reason: str, message: str) -> None:
        """An Event on the claim, say, or on the node where there is no claim."""
        about = self._kind.about(wanted)
        self._events.warn(about or about_node(self._node), reason, message)

    def _warn_node(self, reason: str, message: str) -> None:
        self._events.warn(about_node(self._node), reason, message)


def _held(wanted: Object) -> bool:
    """Whether it must not go yet."""
    return resources.FINALIZER in wanted["metadata"].get("finalizers", ())


def _differs(wanted: Object, view: View | None) -> bool:
    problem = "its data is gone" if view is None else view.problem
    return resources.health_status(wanted, problem, now=_now()) is not None


def _now() -> str:
    return resources.timestamp(time.time())
