"""The node's side of the custom resources: what this node's LocalVolumes want, it does, and answers.

The disk says which volumes exist; a LocalVolume's spec says what is wanted, and its status what was answered. Work is
due while the status has not observed the spec's generation. Whatever is cut short is simply due again: each step
finds what an earlier attempt has done.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from csi_local.engine.api import SizeEngine, VolumeEngine, VolumeView
from csi_local.engine.survey import Surveyed
from csi_local.kube import resources, volume_resource
from csi_local.kube.api import Api, Object
from csi_local.kube.cache import Cache
from csi_local.kube.events import Events, about_claim, about_node
from csi_local.kube.work import WorkQueue
from csi_local.model.errors import AlreadyExists, Conflict, DriverError, FailedPrecondition, NotFound, Unavailable
from csi_local.model.volume import CapacityRange, FormatState, VolumeId, check_name, volume_id

_log = logging.getLogger(__name__)
WORKERS = 8
"""Mostly they wait for a disk or for the API."""
_PATIENCE_S = 30.0
Told = Callable[[str, str, float], None]
"""Told of everything done: operation, result, seconds."""


class Agent:
    """Does what the LocalVolumes of one node want."""

    def __init__(
        self,
        api: Api,
        node: str,
        engine: tuple[VolumeEngine, SizeEngine],
        events: Events,
        *,
        told: Told,
        changed: Callable[[], None],
        crash_point: Callable[[str], None],
        workers: int = WORKERS,
    ) -> None:
        """*changed* is called when the pools have more or less room than before."""
        self.cache = Cache(api, resources.VOLUMES, selector=resources.selector(node))
        self._api = api
        self._node = node
        self._volumes, self._sizes = engine
        self._events = events
        self._told = told
        self._changed = changed
        self._pass = crash_point
        self._queue = WorkQueue(self._work, workers)
        self._guard = threading.Lock()
        self._fresh: dict[str, VolumeId] = {}
        """Volumes that were made and whose making was not acknowledged yet, by their LocalVolume's name."""
        self._strays: dict[str, VolumeId] = {}
        """Volumes on disk that the cache has no LocalVolume of."""
        self._again: set[str] = set()
        """LocalVolumes whose removal failed, and that are tried again though nobody has asked again."""
        self._suspects: set[str] = set()
        """LocalVolumes whose health may be another than they say."""
        self._unseen: Sequence[Surveyed] = ()
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
        return self._queue.problem

    @property
    def unconnected(self) -> str:
        """Why it does not know what is wanted now, or ""."""
        return "" if self.cache.connected_since is not None else "the Kubernetes API cannot be watched"

    def _seen(self, name: str, old: Object | None, new: Object | None) -> None:
        just_released = old is not None and new is not None and _held(old) and not _held(new)
        if new is not None and not just_released and not resources.answered(new):
            self._queue.add(name)

    def surveyed(self, found: Sequence[Surveyed]) -> None:
        """Compare what is on disk with what the LocalVolumes say; what differs is looked at, one by one."""
        if not self.cache.synced:
            self._unseen = found
            return
        here = {resources.resource_name(one.view.id): one.view for one in found}
        for wanted in self.cache.items():
            name = resources.name_of(wanted)
            view = here.pop(name, None)
            if volume_resource.wanted_absent(wanted):
                self._again.add(name)
                self._queue.add(name)
            elif _acknowledged(wanted) and _differs(wanted, "its data is gone" if view is None else view.problem):
                self._suspects.add(name)
                self._queue.add(name)
        for name, view in here.items():
            self._strays[name] = view.id
            self._queue.add(name)

    def catch_up(self) -> None:
        """Look at what was surveyed before it was known what is wanted."""
        if self._unseen and self.cache.synced:
            found, self._unseen = self._unseen, ()
            self.surveyed(found)

    # --- one LocalVolume

    def _work(self, name: str) -> bool:
        """Do what is due; whether nothing is left to do."""
        wanted = self.cache.get(name)
        try:
            if wanted is None:
                return self._without(name)
            again = name in self._again
            self._again.discard(name)
            if volume_resource.wanted_absent(wanted) and (again or not resources.answered(wanted)):
                return self._remove(name, wanted)
            if resources.answered(wanted):
                return self._check(name, wanted)
            return self._provide(name, wanted)
        except (Conflict, NotFound):  # it has changed, perhaps by this very work, whose answer was lost: look again
            return False
        except Unavailable as error:
            _log.info("LocalVolume %s waits: %s", name, error)
            return False

    def _provide(self, name: str, wanted: Object) -> bool:
        began = time.perf_counter()
        operation = "expand" if _acknowledged(wanted) else "create"
        try:
            view = self._expand(wanted) if _acknowledged(wanted) else self._create(name, wanted)
            patch = volume_resource.ready_status(wanted, view, now=_now())
            result = "OK"
        except Exception as error:  # noqa: BLE001 (whoever waits for an answer must get one)
            patch, result = self._failure(operation, name, wanted, error)
        self._pass(f"agent-{operation}:done")
        self._answer(name, wanted, patch)
        self._pass(f"agent-{operation}:answered")
        self._told(operation, result, time.perf_counter() - began)
        self._changed()
        if wanted["metadata"].get("deletionTimestamp"):
            self._hold_back(name, wanted)
        return True

    def _create(self, name: str, wanted: Object) -> VolumeView:
        request = volume_resource.volume_request(wanted)
        volume = volume_id(check_name(request.name))
        try:
            self._volumes.get(volume)
        except (NotFound, Unavailable):  # the latter: it is in none of the pools that are open
            with self._guard:
                self._fresh[name] = volume
        try:
            return self._volumes.create(request, _PATIENCE_S)
        except BaseException:
            with self._guard:
                self._fresh.pop(name, None)
            raise

    def _expand(self, wanted: Object) -> VolumeView:
        """A volume that was acknowledged is never made again: that would give out an empty one in its place."""
        volume = _id_of(wanted)
        capacity = volume_resource.capacity_range(wanted)
        try:
            if capacity != CapacityRange():
                self._sizes.expand(volume, capacity, None, _PATIENCE_S)
            view = self._volumes.get(volume)
        except NotFound:
            raise NotFound(f"the data of volume {volume} is gone from node {self._node}") from None
        if view.record is None:
            raise FailedPrecondition(view.problem)
        return view

    def _remove(self, name: str, wanted: Object) -> bool:
        began = time.perf_counter()
        try:
            self._volumes.delete(_id_of(wanted), _PATIENCE_S)
        except Exception as error:  # noqa: BLE001 (likewise)
            patch, result = self._failure("delete", name, wanted, error)
            self._answer(name, wanted, patch)
            self._told("delete", result, time.perf_counter() - began)
            return True
        self._pass("agent-delete:done")
        metadata = wanted["metadata"]
        others = [one for one in metadata.get("finalizers", []) if one != resources.FINALIZER]
        freed = {"metadata": {"finalizers": others, "resourceVersion": metadata["resourceVersion"]}}
        self._api.patch(resources.VOLUMES, name, freed)
        self._pass("agent-delete:released")
        if others or not metadata.get("deletionTimestamp"):
            self._api.delete(resources.VOLUMES, name, uid=metadata["uid"])
        self._pass("agent-delete:answered")
        self._told("delete", "OK", time.perf_counter() - began)
        self._changed()
        return True

    def _failure(self, operation: str, name: str, wanted: Object, error: Exception) -> tuple[Object, str]:
        if not isinstance(error, DriverError):
            _log.error("%s of %s failed in a way that was not foreseen", operation, name, exc_info=error)
        else:
            _log.warning("%s of LocalVolume %s: %s", operation, name, error)
        patch = volume_resource.failed_status(wanted, error, now=_now())
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
            self.cache.observe(self._api.patch(resources.VOLUMES, name, guarded, status=True))
        except (Conflict, NotFound):
            self._withdraw(name)
            raise
        with self._guard:
            self._fresh.pop(name, None)

    def _withdraw(self, name: str) -> None:
        """Remove what was made and never acknowledged, where it is no longer wanted here."""
        with self._guard:
            volume = self._fresh.get(name)
        if volume is None:
            return
        try:
            now = self._api.get(resources.VOLUMES, name)
            if resources.node_of(now) == self._node:
                return
            _log.info("volume %s is wanted on node %s by now; what was made here is removed", volume, _node(now))
        except NotFound:
            _log.info("volume %s is not wanted any more; what was made is removed", volume)
        self._volumes.delete(volume, _PATIENCE_S)
        with self._guard:
            self._fresh.pop(name, None)
        self._changed()

    # --- what is on disk and what is said

    def _without(self, name: str) -> bool:
        """A volume without a LocalVolume of this node."""
        self._withdraw(name)
        volume = self._strays.pop(name, None)
        if volume is None:
            return True
        try:
            view = self._volumes.get(volume)
        except (NotFound, Unavailable):
            return True
        try:
            other = self._api.get(resources.VOLUMES, name)
        except NotFound:
            return self._adopt(name, view)
        if (node := _node(other)) != self._node and self._is_leftover(view, other):
            _log.warning(
                "volume %s was never used and is on node %s by now; what is left here is removed", volume, node
            )
            self._volumes.delete(volume, _PATIENCE_S)
            self._changed()
        elif node != self._node:
            self._warn_node(
                "VolumeOfAnotherNode",
                f"volume {volume} is in pool {view.pool} here, and LocalVolume {name} says that node {node} has it. Was"
                f" this node renamed, or its disk moved? Then set spec.nodeName and the label of the LocalVolume to"
                f" {self._node}; the volume is left alone",
            )
        return True

    def _is_leftover(self, view: VolumeView, other: Object) -> bool:
        """Whether a volume was made here, never acknowledged because this process died, and then made elsewhere.

        Only where it surely holds nothing, the other node has acknowledged its own, and that is on another disk: a node
        that was renamed, or a disk that was moved, has the very pool that the other node once told of.
        """
        empty = view.record is not None and view.record.format is FormatState.UNFORMATTED
        if not (empty and volume_resource.made(other)):
            return False
        here, there = resources.pool_resource_name(self._node, view.pool), other["status"]["pool"]
        try:
            ours, theirs = (
                self._api.get(resources.POOLS, name)["status"]["uuid"]
                for name in (here, resources.pool_resource_name(_node(other), there))
            )
        except (NotFound, KeyError):
            return False
        return bool(ours) and bool(theirs) and ours != theirs

    def _adopt(self, name: str, view: VolumeView) -> bool:
        """Give a volume a LocalVolume: the API lost it, or its disk was moved here."""
        if view.record is None:
            self._warn_node("VolumeDamaged", view.problem)
            return True
        try:
            made = self._api.create(resources.VOLUMES, volume_resource.adopted_volume(view.record, self._node))
        except AlreadyExists:
            return True
        patch = volume_resource.ready_status(made, view, now=_now())
        self.cache.observe(self._api.patch(resources.VOLUMES, name, patch, status=True))
        _log.warning("volume %s in pool %s had no LocalVolume; it has one now", view.id, view.pool)
        return True

    def _check(self, name: str, wanted: Object) -> bool:
        """Say how a volume is, where that is not what its LocalVolume says."""
        if name not in self._suspects:
            return True
        self._suspects.discard(name)
        try:
            problem = self._volumes.get(_id_of(wanted)).problem
        except NotFound as error:
            problem = f"its data is gone: {error}"
        except DriverError as error:
            problem = str(error)
        patch = volume_resource.health_status(wanted, problem, now=_now())
        if patch is not None:
            self._answer(name, wanted, patch)
            if problem:
                self._warn_claim(name, wanted, "VolumeUnhealthy", f"volume {name}: {problem}")
            else:
                _log.info("volume %s is healthy again", name)
        return True

    def _hold_back(self, name: str, wanted: Object) -> None:
        self._warn_claim(
            name,
            wanted,
            "DeletionHeldBack",
            f"LocalVolume {name} was deleted by hand; that removes no data. It goes, with its data, when its"
            " PersistentVolume is deleted (with reclaim policy Delete)",
        )

    def _warn_claim(self, _name: str, wanted: Object, reason: str, message: str) -> None:
        """An Event on the claim, or on the node where there is no claim."""
        claim = wanted["spec"].get("claim")
        if claim:
            about = about_claim(claim["namespace"], claim["name"], wanted["spec"]["volumeName"])
            self._events.warn(about, reason, message)
        else:
            self._warn_node(reason, message)

    def _warn_node(self, reason: str, message: str) -> None:
        self._events.warn(about_node(self._node), reason, message)


def _acknowledged(wanted: Object) -> bool:
    """Whether somebody was ever told that the volume is there."""
    return bool(wanted.get("status", {}).get("volumeId"))


def _held(wanted: Object) -> bool:
    """Whether it must not go yet."""
    return resources.FINALIZER in wanted["metadata"].get("finalizers", ())


def _differs(wanted: Object, problem: str) -> bool:
    return volume_resource.health_status(wanted, problem, now=_now()) is not None


def _id_of(wanted: Object) -> VolumeId:
    return volume_id(wanted["spec"]["volumeName"])


def _node(wanted: Object) -> str:
    return resources.node_of(wanted)


def _now() -> str:
    return resources.timestamp(time.time())
