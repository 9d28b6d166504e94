"""The nodes as the controller sees them: which are there, and which has room for a volume."""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from csi_local.kube.api import Api, Object
from csi_local.kube.cache import Cache
from csi_local.kube.pool_resource import pool_view
from csi_local.kube.resources import NODES, lease_name, node_of
from csi_local.model.accessibility import Accessibility
from csi_local.model.errors import NotFound, Unavailable
from csi_local.model.parameters import ClassParameters
from csi_local.model.pool import PoolView
from csi_local.model.quantity import Bytes
from csi_local.plan.placement import available, place
from csi_local.plan.request import Shape

LEASE_S = 40.0
"""A node whose lease has not been renewed for this long counts as gone; it renews every 10 s."""

NOT_THERE = "it is not there (its lease is old)"

_PROMISE_S = 3.0
"""How long after its answer a volume is held against a pool that has said nothing since; a change is told in 1 s."""
_HOPE_S = 10.0
"""How long after something was removed a node may have more room than its pools say; a busy one says it late."""

_See = Callable[[str], list[PoolView]]
"""A node's pools, in one of the ways to look at them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Room that a volume takes and that its pool's resource may not show yet.

    Attributes:
        pool: the name of the pool's resource.
        settled: when (monotonic seconds) its node has answered; None while it has not.
    """

    pool: str
    size: int
    settled: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The node for a volume, or None; *why* says of each node that was passed over what stood in the way."""

    node: str | None
    why: str


def in_cluster(api: Api, node: str) -> bool:
    """Whether the cluster has a Node of that name, as the API has it now.

    Raises:
        Unavailable: the API does not answer, or does not let us ask.
    """
    try:
        api.get(NODES, node)
    except NotFound:
        return False
    return True


class Nodes:
    """What leases and pools say of the nodes."""

    def __init__(
        self,
        leases: Cache,
        pools: Cache,
        in_cluster: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """*in_cluster* asks the API whether a node is in the cluster.

        *clock* is for a node's first lease alone: then it is told by the change of it, not by the node's clock.
        """
        self._leases, self._clock, self._monotonic = leases, clock, monotonic
        self._in_cluster = in_cluster
        self._guard = threading.Lock()
        self._renewed: dict[str, float | None] = {}
        self._views: dict[str, dict[str, PoolView]] = {}
        self._promises: dict[str, Promise] = {}
        self._gave_back: dict[str, float] = {}
        leases.listen(self._lease)
        pools.listen(self._pool)

    # --- what comes in

    def _lease(self, name: str, before: Object | None, now: Object | None) -> None:
        if now is None:
            self._renewed.pop(name, None)
            return
        renewed = now["spec"].get("renewTime")
        if before is None:
            age = max(0.0, self._clock() - datetime.fromisoformat(renewed).timestamp()) if renewed else LEASE_S
            self._renewed[name] = self._monotonic() - age if age < LEASE_S else None
        elif before["spec"].get("renewTime") != renewed:
            self._renewed[name] = self._monotonic()

    def _pool(self, name: str, before: Object | None, now: Object | None) -> None:
        with self._guard:
            if now is not None:
                self._views.setdefault(node_of(now), {})[name] = pool_view(now)
            if before is not None and (now is None or node_of(now) != node_of(before)):
                self._drop(name, node_of(before))
            for volume in [key for key, one in self._promises.items() if one.pool == name and one.settled is not None]:
                del self._promises[volume]  # this view has it

    def _drop(self, name: str, node: str) -> None:
        views = self._views.get(node, {})
        views.pop(name, None)
        if not views:  # else every node that ever was would be gone through for each volume
            self._views.pop(node, None)
            self._gave_back.pop(node, None)

    # --- what is asked

    def alive(self, node: str) -> bool:
        """Whether a node is there: it renews its lease, or nobody could have seen it renew.

        Where we could not watch, silence says nothing; a lease that was old when it was first seen does.
        """
        renewed = self._renewed.get(lease_name(node))
        watching = self._leases.connected_since
        if renewed is None or watching is None:
            return renewed is not None
        return self._monotonic() - max(renewed, watching) < LEASE_S

    def check_alive(self, node: str, what: str) -> None:
        """See that a node is there.

        Raises:
            Unavailable: it is not; *what* of it is wanted.
            NotFound: it has left the cluster, and *what* with it.
        """
        if self.removed(node):
            raise NotFound(f"node {node}, which had {what}, has left the cluster")
        if not self.alive(node):
            raise Unavailable(f"node {node}, which has {what}, is not there; it goes on when the node is back")

    def removed(self, node: str) -> bool:
        """Whether a node has left the cluster: it is silent, and the API says that there is no such Node.

        What a cache does not have is no proof: leases and pools are also deleted by hand, and made anew.

        Raises:
            Unavailable: the API does not answer.
        """
        return not self.alive(node) and not self._in_cluster(node)

    def choose(
        self, parameters: ClassParameters, shape: Shape, size: Bytes, where: Accessibility, passed: Mapping[str, str]
    ) -> Choice:
        """The first node wished for that has room; after those, where any will do, the one that placement prefers.

        *passed* are nodes that have refused already, and why. Where only what is promised and not yet made stands in
        the way, or what may just have been removed, a node is asked all the same: it alone knows exactly.
        """
        choice = self._choose(parameters, shape, size, where, passed, self.views)
        if choice.node is None and self._promises:
            choice = self._choose(parameters, shape, size, where, passed, self._shown)
        if choice.node is None and self._gave_back:
            hope = self._choose(parameters, shape, size, where, passed, self._hoped)
            return hope if hope.node else choice
        return choice

    def _choose(
        self,
        parameters: ClassParameters,
        shape: Shape,
        size: Bytes,
        where: Accessibility,
        passed: Mapping[str, str],
        see: _See,
    ) -> Choice:
        reasons: list[str] = []
        fitting: dict[str, Bytes] = {}
        others = sorted(set(self._views) - set(where.nodes)) if where.anywhere else []
        for node in (*where.nodes, *others):
            room, reason = self._judge(node, parameters, shape, size, passed, see)
            if reason:
                reasons.append(f"node {node}: {reason}")
            elif node in where.nodes:
                return Choice(node=node, why="")
            else:
                fitting[node] = room
        if not fitting:
            return Choice(node=None, why="; ".join(reasons) or "no node has a pool that it may be in")
        sign = 1 if parameters.placement == "pack" else -1
        return Choice(node=min(fitting, key=lambda node: (sign * fitting[node], node)), why="")

    def _judge(
        self,
        node: str,
        parameters: ClassParameters,
        shape: Shape,
        size: Bytes,
        passed: Mapping[str, str],
        see: _See,
    ) -> tuple[Bytes, str]:
        """The room of the pool that a node would choose, or why it cannot have the volume."""
        if node in passed:
            return Bytes(0), passed[node]
        views = see(node)
        if not views:
            return Bytes(0), "it has no pools"
        if not self.alive(node):
            return Bytes(0), NOT_THERE
        placement = place(parameters, shape, size, views)
        if placement.pool is None:
            return Bytes(0), placement.explain()
        return next(available(parameters, view) for view in views if view.name == placement.pool), ""

    def views(self, node: str) -> list[PoolView]:
        """A node's pools, less what was promised to volumes that they do not show yet."""
        with self._guard:
            return [self._less(name, view) for name, view in self._views.get(node, {}).items()]

    def _shown(self, node: str) -> list[PoolView]:
        """A node's pools, as they say themselves."""
        return list(self._views.get(node, {}).values())

    def _hoped(self, node: str) -> list[PoolView]:
        """A node's pools, those of one that has just removed something as if they had no volumes at all."""
        gave_back = self._gave_back.get(node)
        if gave_back is None or self._monotonic() - gave_back > _HOPE_S:
            return self._shown(node)
        return [_emptied(view) for view in self._shown(node)]

    def all_views(self, where: Accessibility) -> list[PoolView]:
        """The pools of all nodes that are there and allowed."""
        nodes = [node for node in list(self._views) if where.allows(node) and self.alive(node)]
        return [view for node in nodes for view in self.views(node)]

    def _less(self, name: str, view: PoolView) -> PoolView:
        now = self._monotonic()
        taken = 0
        for volume, promise in list(self._promises.items()):
            if promise.settled is not None and now - promise.settled > _PROMISE_S:
                del self._promises[volume]
            elif promise.pool == name:
                taken += promise.size
        if not taken:
            return view
        return dataclasses.replace(
            view, room=Bytes(max(0, view.room - taken)), thin_room=Bytes(max(0, view.thin_room - taken))
        )

    # --- promises and hopes

    def give_back(self, node: str) -> None:
        """Say that a node has removed something: it may have more room than its pools say yet."""
        self._gave_back[node] = self._monotonic()

    def promise(self, volume: str, node: str, parameters: ClassParameters, shape: Shape, size: Bytes) -> None:
        """Count a volume against the pool that its node will most likely choose, until the pool shows it."""
        pool = place(parameters, shape, size, self.views(node)).pool
        name = next((key for key, view in list(self._views.get(node, {}).items()) if view.name == pool), None)
        with self._guard:
            self._promises.pop(volume, None)
            if name is not None:
                self._promises[volume] = Promise(pool=name, size=size)

    def settle(self, volume: str) -> None:
        """Say that a volume's node has answered: the promise goes with the next word of its pool."""
        with self._guard:
            if (promise := self._promises.get(volume)) is not None:
                self._promises[volume] = dataclasses.replace(promise, settled=self._monotonic())

    def forget(self, volume: str) -> None:
        """Say that a volume is not to be made."""
        with self._guard:
            self._promises.pop(volume, None)


def _emptied(view: PoolView) -> PoolView:
    """A pool as it would be at most if all were removed that is in it."""
    most = Bytes(view.total + view.promised)
    return dataclasses.replace(view, room=most, thin_room=most)
