"""What the programs of a Kubernetes cluster have beside an engine and a server: the API, and what they tell each other.

Loaded by them alone: a driver that is on its own needs no HTTP client in its memory.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from csi_local.config import Config
from csi_local.engine.api import GroupEngine, SizeEngine, SnapshotEngine, VolumeEngine
from csi_local.engine.copies import Copies
from csi_local.engine.pools import Pools
from csi_local.engine.sources import snapshot_of
from csi_local.engine.survey import Survey, Surveyed, seen
from csi_local.kube import resources
from csi_local.kube.agent import WORKERS, Agent, Told
from csi_local.kube.api import Api
from csi_local.kube.cache import Cache
from csi_local.kube.claims import Claims
from csi_local.kube.desired import Desired
from csi_local.kube.events import Events
from csi_local.kube.group_kind import GroupKind
from csi_local.kube.kind import Kind, V
from csi_local.kube.nodes import Nodes, in_cluster
from csi_local.kube.pools import LEASE_S, POOLS_PAUSE_S, POOLS_S, Beat, NodeLease, PoolReports
from csi_local.kube.remote import Remote
from csi_local.kube.remote_groups import RemoteGroups
from csi_local.kube.remote_snapshots import RemoteSnapshots
from csi_local.kube.rotations import KeyEngine, KeyRotations
from csi_local.kube.snapshot_kind import SnapshotKind
from csi_local.kube.volume_kind import VolumeKind
from csi_local.kube.waiting import awaited
from csi_local.model.errors import InvalidArgument, Unavailable

_log = logging.getLogger(__name__)
_TELL_S = 10.0
_ORPHANS_S = 60.0
"""Between two looks for what nodes that have left the cluster will never do."""
_SNAPSHOT_WORKERS, _GROUP_WORKERS = 4, 2

Check = Callable[[], str]
"""Says what is wrong, or "" where nothing is."""


class SomePool:
    """A node is ready when it has a pool: one disk that is missing is no reason to keep pods from the others."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    @property
    def ready(self) -> bool:
        """Whether there is one."""
        return bool(self._pools.all())


class ClusterView:
    """What the controller knows of the cluster, and its engine over that."""

    def __init__(self, config: Config) -> None:
        if config.credentials is None:
            raise InvalidArgument("nothing says how to reach the Kubernetes API")
        self.server = config.credentials.server
        api = self._api = Api(config.credentials)
        pools = Cache(api, resources.POOLS)
        leases = Cache(api, resources.leases(config.namespace), selector=resources.NODE_LABEL)
        self._caches = {"pools": pools, "leases": leases}
        nodes = Nodes(leases, pools, partial(in_cluster, api))
        volumes = self._desired(resources.VOLUMES, nodes, "volume")
        groups = self._desired(resources.GROUPS, nodes, "group")
        snapshots = self._desired(resources.SNAPSHOTS, nodes, "snapshot")
        self.groups = RemoteGroups(groups, volumes)
        self.snapshots = RemoteSnapshots(snapshots, groups, volumes)
        self.volumes = Remote(volumes, self.snapshots.origin, partial(awaited, api))
        self._claims = Claims(api, volumes)
        self._desires = (volumes, snapshots, groups)
        self._orphans = Beat("orphans", self._forget_orphans, _ORPHANS_S)

    def _desired(self, collection: str, nodes: Nodes, noun: str) -> Desired:
        cache = self._caches[f"{noun}s"] = Cache(self._api, collection)
        return Desired(self._api, collection, cache, nodes, noun=noun)

    @property
    def ready(self) -> bool:
        """Whether it knows all there is."""
        return all(cache.synced for cache in self._caches.values())

    @property
    def alive(self) -> Mapping[str, Check]:
        """Whether each thread runs."""
        own: Mapping[str, Check] = {"claims": self._claims.check_alive, "orphans": lambda: self._orphans.problem}
        return {**{name: cache.check_alive for name, cache in self._caches.items()}, **own}

    @property
    def synced(self) -> Mapping[str, Check]:
        """Whether each cache is filled."""
        return {name: cache.check_synced for name, cache in self._caches.items()}

    def start(self) -> None:
        """Begin to watch."""
        for cache in self._caches.values():
            cache.start()
        self._claims.start()
        self._orphans.start()

    def _forget_orphans(self) -> None:
        if not self.ready:
            raise Unavailable("not all is listed yet")
        for one in self._desires:
            one.forget_orphans()

    def wait(self) -> None:
        """Wait until all is known, however long the API is away."""
        for name, cache in self._caches.items():
            while not cache.wait_synced(_TELL_S):
                _log.warning("waiting for the Kubernetes API to list %s", name)

    def stop(self) -> None:
        """End."""
        self._orphans.stop()
        self._claims.stop()
        for cache in self._caches.values():
            cache.stop()
        self._api.close()


class NodeEngine(Protocol):
    """The use cases on this machine that a cluster can ask for."""

    @property
    def pools(self) -> Pools:
        """The pools."""

    @property
    def copies(self) -> Copies:
        """What goes on in the background."""

    @property
    def volumes(self) -> VolumeEngine:
        """Volumes."""

    @property
    def sizes(self) -> SizeEngine:
        """Their sizes."""

    @property
    def snapshots(self) -> SnapshotEngine:
        """Snapshots."""

    @property
    def groups(self) -> GroupEngine:
        """Groups of them."""

    @property
    def rotator(self) -> KeyEngine:
        """Keys."""


class ClusterPart:
    """What makes a node a part of the cluster: its agents, its LocalPools, its Lease."""

    def __init__(self, config: Config, engine: NodeEngine, told: Told, crash_point: Callable[[str], None]) -> None:
        if config.credentials is None:
            raise InvalidArgument("nothing says how to reach the Kubernetes API")
        self._engine = engine
        self._api = api = Api(config.credentials)
        node = config.node_id
        events = Events(api, node)
        reports = self._reports = PoolReports(api, node, engine.pools, config.pools, events)
        self._pools = Beat("pools", reports.report, POOLS_S, POOLS_PAUSE_S)
        self._node_lease = NodeLease(
            api, node, config.namespace, lambda: self._problem or self._unconnected, lost=self._tell_anew
        )

        def agent(kind: Kind[V], workers: int) -> Agent[V]:
            return Agent(
                api,
                self._node_lease.owner,
                kind,
                events,
                told=told,
                changed=self._pools.ask,
                crash_point=crash_point,
                workers=workers,
            )

        self._volumes = agent(VolumeKind(engine.volumes, engine.sizes, node), WORKERS)
        self._snapshots = agent(SnapshotKind(engine.snapshots, node), _SNAPSHOT_WORKERS)
        self._groups = agent(GroupKind(engine.groups, node), _GROUP_WORKERS)
        self._agents = (self._volumes, self._snapshots, self._groups)
        volumes = self._volumes.cache
        self._keys = KeyRotations(api, volumes, engine.rotator, events, told=told, crash_point=crash_point)
        engine.copies.listen(self._copied)
        self._lease = Beat("lease", self._renew, LEASE_S)
        self.survey = Survey(engine.volumes, engine.pools, self._surveyed)
        self._parts = (self._pools, self._keys, *self._agents, self._lease, self.survey)

    @property
    def _problem(self) -> str:
        return next((part.problem for part in (*self._agents, self._keys) if part.problem), "")

    @property
    def _unconnected(self) -> str:
        return next((agent.unconnected for agent in self._agents if agent.unconnected), "")

    def _tell_anew(self) -> None:
        self._reports.doubt()
        self._pools.ask()

    def _renew(self) -> None:
        for agent in self._agents:
            agent.catch_up()
        self._node_lease.renew()

    def _surveyed(self, found: Sequence[Surveyed]) -> None:
        self._volumes.surveyed([one.view for one in found])
        pools = self._engine.pools
        snapshots = seen(pools, lambda pool: pool.store.snapshots.all(), self._engine.snapshots.get)
        self._snapshots.surveyed([one for one in snapshots if one.ready and not (one.record and one.record.group)])
        self._groups.surveyed(list(seen(pools, lambda pool: pool.store.snapshots.groups(), self._engine.groups.get)))

    def _copied(self, key: str) -> None:
        if (snapshot := snapshot_of(key)) is not None:
            self._snapshots.ended(snapshot)

    @property
    def alive(self) -> Mapping[str, Check]:
        """Of what belongs to this process alone."""
        return {"agent": lambda: self._problem, "lease": lambda: self._lease.problem}

    @property
    def looking(self) -> Mapping[str, Check]:
        """Of what looks at disks: where one hangs a restart mends nothing, and keeps pods from the other pools."""
        return {"look": lambda: self._pools.problem, "survey": lambda: self.survey.problem}

    def start(self) -> None:
        """Begin, or begin when the API is there."""
        for part in self._parts:
            part.start()

    def stop(self) -> None:
        """End after the work under way."""
        for part in reversed(self._parts):
            part.stop()
        self._api.close()
