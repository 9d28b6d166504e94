"""What the cluster knows of this node: its LocalPools, and a Lease that says that it is at work."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from csi_local.engine.pools import Pools
from csi_local.kube import pool_resource, resources
from csi_local.kube.api import Api, Object
from csi_local.kube.events import Events, about_node
from csi_local.kube.retry import pause_after
from csi_local.model.errors import AlreadyExists, DriverError, NotFound, Unavailable
from csi_local.model.pool import PoolSpec, PoolView
from csi_local.model.quantity import Bytes

_log = logging.getLogger(__name__)
LEASE_S = 10.0
"""Between renewals. The controller takes a node for gone that has missed three."""
LEASE_DURATION_S = 40
POOLS_S, POOLS_PAUSE_S = 10.0, 1.0
"""Between two looks at the pools, and between two reports, however much happens."""
_DRIFT = 0.005
"""Of a pool's size: what others write to its filesystem is told of when it is that much, or a minute old."""
_DRIFT_S = 60.0
_BELIEVED_S = 60.0
"""Then it is asked what the API has: somebody may have deleted it, or restored a backup."""
_DEAD_AFTER_S = 300.0
_RETRY_S = 1.0


class Beat:
    """A loop on a thread of its own, of which can be told whether it is alive."""

    def __init__(self, name: str, act: Callable[[], None], every_s: float, pause_s: float = 0.0) -> None:
        """*act* is called every *every_s* seconds, and when somebody asks, but then *pause_s* after the last time."""
        self._act = act
        self._every_s = every_s
        self._pause_s = pause_s
        self._asked = threading.Event()
        self._stopping = threading.Event()
        self._acted = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._acted = time.monotonic()
        self._thread.start()

    def ask(self) -> None:
        """Act soon."""
        self._asked.set()

    def stop(self) -> None:
        """End, without waiting long for what is under way."""
        self._stopping.set()
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    @property
    def problem(self) -> str:
        """Why it is not at work, or ""."""
        late = time.monotonic() - self._acted
        return f"nothing for {late:.0f} s" if late > self._every_s + _DEAD_AFTER_S else ""

    def _run(self) -> None:
        failure, failures = "", 0
        while not self._stopping.is_set():
            self._asked.clear()
            before, failure = failure, self._try()
            failures = failures + 1 if failure else 0
            if failure and failure != before:
                _log.info("%s: %s; trying again", self._thread.name, failure)
            self._acted = time.monotonic()
            self._stopping.wait(self._pause_s)
            self._asked.wait(pause(failures, self._every_s))

    def _try(self) -> str:
        try:
            self._act()
        except DriverError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (the thread must live; the log has it)
            _log.exception("%s", self._thread.name)
            return repr(error)
        return ""


def pause(failures: int, every_s: float) -> float:
    """Seconds until a beat acts again, after so many failures in a row: soon at first, never later than *every_s*."""
    return pause_after(failures - 1, _RETRY_S, every_s) if failures else every_s


class Owner:
    """This node's Node: what tells of the node goes with it.

    Attributes:
        node: its name.
    """

    def __init__(self, api: Api, node: str) -> None:
        self.node = node
        self._api = api
        self._seen = False

    def check_there(self) -> None:
        """See that the node has not left the cluster.

        Raises:
            Unavailable: its Node has been deleted.
        """
        self.metadata()

    def metadata(self) -> Object:
        """The ``metadata`` of what is to go with the Node that there is now; nothing where there never was one.

        Raises:
            Unavailable: it has been deleted. What was made now would stay, and nobody could ever tell that the node is
                gone; a Node that is made anew has another uid.
        """
        try:
            owned = resources.owned_by_node(self._api.get(resources.NODES, self.node))
        except NotFound:
            if self._seen:
                raise Unavailable(f"Node {self.node} has been deleted: nothing is told of it any more") from None
            return {}
        self._seen = True
        return owned


def _nobody() -> None:
    pass


class NodeLease:
    """Renews this node's Lease for as long as *problem* says nothing.

    Attributes:
        owner: the Node with which it goes.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        namespace: str,
        problem: Callable[[], str],
        *,
        lost: Callable[[], None] = _nobody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*lost* is called where the Lease was deleted, as all is that belongs to a Node when that is."""
        self._api = api
        self._node = node
        self._collection = resources.leases(namespace)
        self._problem = problem
        self._lost = lost
        self._clock = clock
        self.owner = Owner(api, node)
        self._owned_until = clock()

    def renew(self) -> None:
        """Say that the node is at work.

        Raises:
            DriverError: nobody heard it, or it is not so.
        """
        if problem := self._problem():
            raise Unavailable(f"the lease is not renewed: {problem}")
        name = resources.lease_name(self._node)
        spec = {
            "holderIdentity": self._node,
            "leaseDurationSeconds": LEASE_DURATION_S,
            "renewTime": resources.micro_time(time.time()),
        }
        try:
            there = self._api.patch(self._collection, name, {"spec": spec})
        except NotFound:
            metadata = {"name": name, "labels": {resources.NODE_LABEL: self._node}, **self.owner.metadata()}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            there = self._api.create(self._collection, lease)
            self._lost()
        if self._clock() >= self._owned_until:
            self._owned_until = self._clock() + _BELIEVED_S
            self._see_owner(name, there)

    def _see_owner(self, name: str, there: Object) -> None:
        """Have the Lease go with the Node that there is now; it is renewed all the same where that cannot be."""
        try:
            owner = self.owner.metadata()
            if owner and not _is_owned(there, owner):
                self._api.patch(self._collection, name, {"metadata": owner})
        except DriverError as error:
            _log.info("Lease %s does not go with its Node: %s", name, error)


def _is_owned(there: Object, owner: Object) -> bool:
    return bool(there["metadata"].get("ownerReferences") == owner.get("ownerReferences"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What was last told of a pool, and when (monotonic seconds)."""

    view: PoolView
    made: Object
    at: float


class PoolReports:
    """Keeps the LocalPools of this node as its pools are."""

    def __init__(
        self,
        api: Api,
        node: str,
        pools: Pools,
        specs: Sequence[PoolSpec],
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._node = node
        self._clock = clock
        self._owner = Owner(api, node)
        self._pools = pools
        self._specs = {spec.name: spec for spec in specs}
        self._events = events
        self._told: dict[str, _Told] = {}
        self._tidied = False

    def report(self) -> None:
        """Tell what has changed.

        Raises:
            DriverError: the API did not take it; what it did not take is told the next time.
        """
        views = self._pools.views()
        for view in views:
            if view.unavailable:
                message = f"pool {view.name} cannot be used: {view.unavailable}"
                self._events.warn(about_node(self._node), "PoolNotReady", message)
        failures = [error for view in views if (error := self._try_to_tell(view))]
        if failures:
            raise failures[0]
        if not self._tidied:
            self._tidy()
            self._tidied = True

    def _try_to_tell(self, view: PoolView) -> DriverError | None:
        """Tell of one pool, where there is news; what is wrong with that is no reason to keep silent about others."""
        told = self._told.get(view.name)
        if told is not None and not _is_news(told, view, self._clock()):
            return None
        try:
            self._tell(view)
        except DriverError as error:
            return error
        return None

    def doubt(self) -> None:
        """See anew at the next report what the API has: it may have lost all."""
        self._told.clear()

    def _tell(self, view: PoolView) -> None:
        name = resources.pool_resource_name(self._node, view.name)
        before = self._there(view.name, name)
        patch = pool_resource.pool_status(
            before,
            view,
            uuid=view.uuid,
            promised=view.promised,
            volumes=view.volumes,
            now=resources.timestamp(time.time()),
        )
        try:
            made = self._api.patch(resources.POOLS, name, patch, status=True)
        except NotFound:  # somebody deleted it
            self._told.pop(view.name, None)
            raise
        self._told[view.name] = _Told(view=view, made=made, at=self._clock())

    def _there(self, pool: str, name: str) -> Object:
        told = self._told.get(pool)
        if told is not None and self._clock() - told.at < _BELIEVED_S:
            return told.made
        wanted = pool_resource.new_pool(self._specs[pool], self._node)
        owner = self._owner.metadata()
        wanted["metadata"] |= owner
        try:
            made = self._api.get(resources.POOLS, name)
        except NotFound:
            try:
                return self._api.create(resources.POOLS, wanted)
            except AlreadyExists:
                made = self._api.get(resources.POOLS, name)
        if made.get("spec") != wanted["spec"] or not _is_owned(
            made, owner
        ):  # the configuration has changed, or the Node is another one
            made = self._api.patch(resources.POOLS, name, {"spec": wanted["spec"], "metadata": owner})
        return made

    def _tidy(self) -> None:
        """Remove the LocalPools of pools that this node no longer has in its configuration."""
        found, _ = self._api.list(resources.POOLS, resources.selector(self._node))
        ours = {resources.pool_resource_name(self._node, pool) for pool in self._specs}
        for name in {resources.name_of(one) for one in found} - ours:
            _log.info("LocalPool %s is of no pool any more and is removed", name)
            self._api.delete(resources.POOLS, name)


def _is_news(told: _Told, view: PoolView, now: float) -> bool:
    """Whether a pool has changed in a way that is worth a write."""
    if view == told.view:
        return now - told.at > _BELIEVED_S
    if now - told.at > _DRIFT_S or replace(view, room=told.view.room, thin_room=told.view.thin_room) != told.view:
        return True
    return _far(view.room, told.view.room, view.total) or _far(view.thin_room, told.view.thin_room, view.total)


def _far(one: Bytes, other: Bytes, whole: Bytes) -> bool:
    return abs(one - other) > whole * _DRIFT
