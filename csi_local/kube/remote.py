"""The engine of the controller: what is wanted goes into LocalVolumes, and their nodes answer.

Everything here may be interrupted at any point and asked again, of this controller or of another: what counts is
the resource. A write is guarded by the version that was seen, and who loses looks again.

``Busy`` and ``Unavailable`` tell the CO that the work may still be going on; ``ResourceExhausted`` that it is not, and
that the scheduler may try another node. What a node has refused is taken away again: nobody will ask for it.
"""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from csi_local.engine.api import VolumeView
from csi_local.engine.locks import KeyedLocks
from csi_local.kube.api import Api, Object
from csi_local.kube.cache import Cache, Predicate
from csi_local.kube.nodes import NOT_THERE, Nodes
from csi_local.kube.resources import (
    ABSENT,
    NODE_LABEL,
    PRESENT,
    VOLUMES,
    answered,
    error_of,
    name_of,
    node_of,
    resource_name,
)
from csi_local.kube.volume_resource import (
    capacity_fields,
    capacity_range,
    made,
    new_volume,
    node_expansion_required,
    volume_request,
    volume_view,
    wanted_absent,
)
from csi_local.model.accessibility import ANYWHERE, Accessibility
from csi_local.model.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    DamagedRecord,
    DriverError,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from csi_local.model.quantity import Bytes
from csi_local.model.volume import Capability, CapacityRange, VolumeId, VolumeRecord, check_name, known_id, volume_id
from csi_local.plan import sizes
from csi_local.plan.placement import Capacity, capacity_of
from csi_local.plan.request import VolumeRequest, check_same, check_usable, new_record, shape

_log = logging.getLogger(__name__)


class Remote:
    """Volumes and their sizes, through the Kubernetes API."""

    def __init__(self, api: Api, volumes: Cache, nodes: Nodes, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._volumes = volumes
        self._nodes = nodes
        self._clock = clock
        self._locks = KeyedLocks()

    # --- create

    def create(self, request: VolumeRequest, patience_s: float, where: Accessibility = ANYWHERE) -> VolumeView:
        """Have a node make a volume, or find the one that an identical request made.

        Raises:
            InvalidArgument, OutOfRange: the request cannot be met anywhere.
            AlreadyExists: the name is taken by a different volume.
            ResourceExhausted: no node that it may be on has room, or is there.
            Busy: its node has not answered within *patience_s*; asked again, this goes on where it was.
        """
        volume = volume_id(check_name(request.name))
        creation = _Creation(self, request, volume, where)
        until = self._clock() + patience_s
        with self._locks.hold(volume, patience_s):
            try:
                return creation.run(until)
            finally:
                self._nodes.settle(volume)

    # --- delete

    def delete(self, shown: str, patience_s: float) -> None:
        """Have its node remove a volume; no error where it is not there, or its node has left the cluster.

        Raises:
            Unavailable: its node is not there; it will be removed when it is back.
            DriverError: what the node has answered: FailedPrecondition where it is in use.
        """
        volume = known_id(shown)
        if volume is None:
            return
        name, asked = resource_name(volume), False
        until = self._clock() + patience_s
        with self._locks.hold(volume, patience_s):
            found = self.find(name)
            while found is not None:
                if not wanted_absent(found) or (answered(found) and not asked):
                    found, written = self.write(found, {"state": ABSENT})
                    asked = asked or written
                elif answered(found) and (error := error_of(found)) is not None:
                    if not isinstance(error, Busy | Unavailable):
                        self.write(found, {"state": PRESENT})  # it stays: nobody may find it removed later
                    raise error
                elif self._nodes.removed(node_of(found)):
                    found = self._let_go(found)
                else:
                    self.wait(found, until, _gone_or_refused)
                    found = self.known(name)

    def _let_go(self, found: Object) -> Object | None:
        """Forget a volume whose node has left the cluster; its data is not touched. What is left of the resource."""
        name, version = name_of(found), found["metadata"]["resourceVersion"]
        _log.warning("volume %s was on node %s, which has left the cluster; it is forgotten", name, node_of(found))
        try:
            self._api.patch(VOLUMES, name, {"metadata": {"resourceVersion": version, "finalizers": []}})
            self._api.delete(VOLUMES, name)
        except NotFound:
            return None
        except Conflict:
            return self.read(name)
        return None

    # --- look

    def get(self, shown: str) -> VolumeView:
        """A volume by its id.

        Raises:
            NotFound: there is none.
        """
        return volume_view(self._known(shown))

    def list(self, after: str, count: int) -> tuple[list[VolumeView], str]:
        """At most *count* volumes (0: all) in the order of their ids, beginning behind *after*; and where to go on."""
        there = {str(found["status"]["volumeId"]): found for found in self._volumes.items() if made(found)}
        ids = sorted(there)
        start = bisect_right(ids, after) if after else 0
        chosen = ids[start : start + count] if count else ids[start:]
        more = bool(count) and start + count < len(ids)
        return [volume_view(there[volume]) for volume in chosen], chosen[-1] if more else ""

    def capacity(self, request: VolumeRequest, where: Accessibility = ANYWHERE) -> Capacity:
        """Room for volumes of that kind on the nodes where they may be.

        It is coarse: every change of it is written into the API for each class and node, and while a hundred claims
        are bound that was a fifth of all writes.

        Raises:
            InvalidArgument: there is no such kind.
        """
        wanted = shape(request.parameters, request.capabilities)
        return capacity_of(request.parameters, wanted, self._nodes.all_views(where)).coarse()

    def _known(self, shown: str) -> Object:
        volume = known_id(shown)
        found = self.find(resource_name(volume)) if volume is not None else None
        if found is None or not made(found):
            raise NotFound(f"there is no volume {shown!r}")
        return found

    # --- expand

    def expand(
        self, shown: str, capacity: CapacityRange, capability: Capability | None, patience_s: float
    ) -> tuple[Bytes, bool]:
        """Have its node make a volume larger; return its size, and whether the node still has something to do.

        Raises:
            NotFound: there is no such volume.
            InvalidArgument, OutOfRange: the size asked for cannot be delivered.
            ResourceExhausted: its pool has no room for that.
        """
        until, asked = self._clock() + patience_s, False
        with self._locks.hold(shown, patience_s):
            while True:
                found = self._known(shown)
                record = _record(found)
                if wanted_absent(found):
                    raise Busy(f"volume {shown} is being removed")
                if capability is not None:
                    check_usable(record, capability)
                if sizes.grown(record, capacity) <= record.size:
                    if capacity_range(found).required > record.size:  # an earlier wish that could not be met
                        self.write(found, {"capacity": capacity_fields(capacity)})
                    return record.size, node_expansion_required(found)
                if not asked:
                    _, asked = self.write(found, {"capacity": capacity_fields(capacity)})
                elif not answered(found):
                    self.wait(found, until, _gone_or_answered)
                else:
                    raise error_of(found) or Unavailable(f"volume {shown} has not grown; try again")

    # --- resources

    @property
    def nodes(self) -> Nodes:
        """What is known of the nodes."""
        return self._nodes

    def known(self, name: str) -> Object | None:
        """A volume's resource as far as the cache knows."""
        return self._volumes.get(name)

    def find(self, name: str) -> Object | None:
        """A volume's resource; where the cache has none, the API is asked: another controller may have just made it."""
        return self._volumes.get(name) or self.read(name)

    def read(self, name: str) -> Object | None:
        """A volume's resource as the API has it now."""
        try:
            found = self._api.get(VOLUMES, name)
        except NotFound:
            return None
        self._volumes.observe(found)
        return found

    def post(self, made_up: Object) -> Object:
        """Make a resource, or return the one that somebody else has just made."""
        try:
            found = self._api.create(VOLUMES, made_up)
        except AlreadyExists:
            found = self._api.get(VOLUMES, name_of(made_up))
        self._volumes.observe(found)
        return found

    def write(self, found: Object, spec: Mapping[str, Any]) -> tuple[Object | None, bool]:
        """Change what is wanted of a volume as it was seen, and have its node answer anew.

        What comes back is the volume as it is then (None: gone), and whether it was changed: where somebody else has
        changed it meanwhile it was not, and one must look again.
        """
        wanted = {**spec, "attempt": found["spec"].get("attempt", 0) + 1}
        metadata: Object = {"resourceVersion": found["metadata"]["resourceVersion"]}
        if "nodeName" in spec:
            metadata["labels"] = {NODE_LABEL: spec["nodeName"]}
        try:
            changed = self._api.patch(VOLUMES, name_of(found), {"metadata": metadata, "spec": wanted})
        except (Conflict, NotFound):
            return self.read(name_of(found)), False
        self._volumes.observe(changed)
        return changed, True

    def wait(self, found: Object, until: float, ended: Predicate) -> None:
        """Wait for what *ended* says of a volume, which its node is to bring about.

        Raises:
            Unavailable: the node is not there.
            Busy: not within the time.
        """
        node, name = node_of(found), name_of(found)
        if not self._nodes.alive(node):
            raise Unavailable(f"node {node}, which has volume {name}, is not there; it goes on when the node is back")
        if not self._volumes.wait(name, ended, until - self._clock()):
            raise Busy(f"node {node} is still at work on volume {name}; try again")


class _Creation:
    """One call of CreateVolume: which nodes it has asked, and what they said."""

    def __init__(self, remote: Remote, request: VolumeRequest, volume: VolumeId, where: Accessibility) -> None:
        self._remote = remote
        self._request = request
        self._volume = volume
        self._name = resource_name(volume)
        self._where = where
        record = new_record(request, now=0)
        self._size, self._taken = record.size, record.promised
        self._shape = shape(request.parameters, request.capabilities)
        self._passed: dict[str, str] = {}
        self._asked: str | None = None

    def run(self, until: float) -> VolumeView:
        """Go on until a node has made it, or none can."""
        found = self._remote.known(self._name)
        while True:
            if found is None:
                found = self._begin()
            if made(found) and not wanted_absent(found):
                return self._existing(found)
            found = self._next(found, until)

    def _begin(self) -> Object:
        node = self._choose(None)
        wanted = new_volume(self._request, self._volume, node)
        self._asked = node
        return self._remote.post(wanted)

    def _existing(self, found: Object) -> VolumeView:
        check_same(_record(found), self._request)
        if not self._where.allows(node_of(found)):
            raise ResourceExhausted(f"volume {self._request.name!r} is on node {node_of(found)} already")
        return volume_view(found)

    def _next(self, found: Object, until: float) -> Object | None:
        """One step on; what the resource is after it."""
        node = node_of(found)
        there = self._remote.nodes.alive(node)
        if wanted_absent(found) and (there or made(found)):  # being removed: begin anew when it is
            self._remote.wait(found, until, _gone_or_back)
            if (now := self._remote.known(self._name)) is not None and wanted_absent(now) and (error := error_of(now)):
                raise error
            return now
        if not wanted_absent(found):
            check_same(new_record(volume_request(found), now=0), self._request)
        if answered(found) and not wanted_absent(found):
            return self._refused(found, error_of(found))
        if not there or wanted_absent(found) or not self._where.allows(node):
            self._passed[node] = NOT_THERE if not there else "it is not one that was wished for"
            return self._move(found)
        self._asked = node
        self._remote.wait(found, until, _gone_or_answered)
        return self._remote.known(self._name)

    def _refused(self, found: Object, error: DriverError | None) -> Object | None:
        """What to do when a node has answered with an error: another node, the same again, or give up."""
        node = node_of(found)
        if self._asked != node:  # it was another call that was refused
            return self._move(found)
        if isinstance(error, ResourceExhausted):
            self._passed[node] = str(error)
            return self._move(found)
        error = error or Unavailable(f"node {node} has not made the volume; try again")
        if not isinstance(
            error, Busy | Unavailable | AlreadyExists | FailedPrecondition
        ):  # the last: something is there
            self._remote.write(found, {"state": ABSENT})
        raise error

    def _move(self, found: Object) -> Object | None:
        node = self._choose(found)
        now, written = self._remote.write(found, {"nodeName": node, "state": PRESENT})
        self._asked = node if written else None
        return now

    def _choose(self, found: Object | None) -> str:
        """The node to ask next.

        Raises:
            ResourceExhausted: there is none; what was asked for is taken away again.
        """
        nodes, parameters = self._remote.nodes, self._request.parameters
        choice = nodes.choose(parameters, self._shape, self._size, self._where, self._passed)
        if choice.node is None:
            nodes.forget(self._volume)
            if found is not None and not wanted_absent(found):
                self._remote.write(found, {"state": ABSENT})
            raise ResourceExhausted(f"no node can have volume {self._request.name!r}: {choice.why}")
        nodes.promise(self._volume, choice.node, parameters, self._shape, self._taken)
        return choice.node


def _gone_or_answered(found: Object | None) -> bool:
    return found is None or answered(found)


def _gone_or_refused(found: Object | None) -> bool:
    return found is None or (answered(found) and error_of(found) is not None)


def _gone_or_back(found: Object | None) -> bool:
    return found is None or not wanted_absent(found) or _gone_or_refused(found)


def _record(found: Object) -> VolumeRecord:
    view = volume_view(found)
    if view.record is None:
        raise DamagedRecord(view.problem or f"node {view.node} cannot read the record of volume {view.id}")
    return view.record
