"""The engine of the controller: what is wanted goes into LocalVolumes, and their nodes answer.

``ResourceExhausted`` tells the CO that the scheduler may try another node; what else its answers mean, and how writes
of several controllers are told apart, is said in :mod:`csi_local.kube.desired`.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from csi_local.engine.api import VolumeView
from csi_local.kube.api import Object
from csi_local.kube.desired import Desired, gone_or_answered, gone_or_refused
from csi_local.kube.nodes import NOT_THERE, Nodes
from csi_local.kube.resources import ABSENT, PRESENT, answered, error_of, node_of, resource_name, wanted_absent
from csi_local.kube.volume_resource import (
    capacity_fields,
    capacity_range,
    made,
    new_volume,
    node_expansion_required,
    volume_request,
    volume_view,
)
from csi_local.model.accessibility import ANYWHERE, Accessibility
from csi_local.model.errors import (
    AlreadyExists,
    Busy,
    DamagedRecord,
    DriverError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from csi_local.model.quantity import Bytes
from csi_local.model.snapshot import ContentSource, SourceKind
from csi_local.model.volume import Capability, CapacityRange, VolumeId, VolumeRecord, check_name, known_id, volume_id
from csi_local.plan import sizes
from csi_local.plan.placement import Capacity, capacity_of
from csi_local.plan.request import VolumeRequest, check_same, check_usable, new_record, shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a volume can be made from: the node that has it, and what such a volume is like; None: nobody can tell."""

    node: str
    like: VolumeRecord | None


def node_that_has(volumes: Desired, shown: str) -> str:
    """The node of a volume, of which something is wanted there.

    Raises:
        NotFound: there is no such volume, or its node has left the cluster.
        Unavailable: its node is not there.
    """
    found = volumes.find_made(shown, made)
    if found is None:
        raise NotFound(f"there is no volume {shown!r}")
    volumes.nodes.check_alive(node_of(found), f"volume {shown}")
    return node_of(found)


def _no_snapshots(_shown: str) -> Origin | None:
    return None


def _nobody_waits(_request: VolumeRequest) -> bool:
    return False


class Remote:
    """Volumes and their sizes, through the Kubernetes API."""

    def __init__(
        self,
        volumes: Desired,
        snapshot: Callable[[str], Origin | None] = _no_snapshots,
        awaited: Callable[[VolumeRequest], bool] = _nobody_waits,
    ) -> None:
        """*snapshot* finds a snapshot by its id; *awaited* says whether a pod waits on the node that is preferred."""
        self.volumes = volumes
        self.awaited = awaited
        self._snapshot = snapshot

    # --- create

    def create(self, request: VolumeRequest, patience_s: float, where: Accessibility = ANYWHERE) -> VolumeView:
        """Have a node make a volume, or find the one that an identical request made.

        Raises:
            InvalidArgument, OutOfRange: the request cannot be met anywhere.
            AlreadyExists: the name is taken by a different volume.
            NotFound: what it is to be made from is not there, or was on a node that has left the cluster.
            ResourceExhausted: no node that it may be on has room, or is there with a disk that works, or has what it is
                to be made from; or not the one where a pod waits for it.
            Unavailable: the node that has what it is to be made from is not there, or its disk is not.
            Busy: its node has not answered within *patience_s*; asked again, this goes on where it was.
        """
        volume = volume_id(check_name(request.name))
        creation = _Creation(self, request, volume, where)
        with self.volumes.held(resource_name(volume), patience_s) as until:
            try:
                return creation.run(until)
            finally:
                self.nodes.settle(volume)

    def origin(self, source: ContentSource | None) -> Origin | None:
        """What a request names; None where there is no such thing."""
        if source is None:
            return None
        if source.kind is SourceKind.SNAPSHOT:
            return self._snapshot(source.id)
        found = self.volumes.find_made(source.id, made)
        return Origin(node=node_of(found), like=volume_view(found).record) if found else None

    # --- delete

    def delete(self, shown: str, patience_s: float) -> None:
        """Have its node remove a volume; no error where it is not there, or its node has left the cluster.

        Raises:
            Unavailable: its node is not there; it will be removed when it is back.
            DriverError: what the node has answered: FailedPrecondition where it is in use.
        """
        if (volume := known_id(shown)) is not None:
            self.volumes.remove(resource_name(volume), patience_s)

    # --- look

    def get(self, shown: str) -> VolumeView:
        """A volume by its id.

        Raises:
            NotFound: there is none.
        """
        return volume_view(self._known(shown))

    def list(self, after: str, count: int) -> tuple[list[VolumeView], str]:
        """At most *count* volumes (0: all) in the order of their ids, beginning behind *after*; and where to go on."""
        there = {str(found["status"]["volumeId"]): found for found in self.volumes.items() if made(found)}
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
        return capacity_of(request.parameters, wanted, self.nodes.all_views(where)).coarse()

    def _known(self, shown: str) -> Object:
        found = self.volumes.find_made(shown, made)
        if found is None:
            raise NotFound(f"there is no volume {shown!r}")
        return found

    # --- expand

    def expand(
        self, shown: str, capacity: CapacityRange, capability: Capability | None, patience_s: float
    ) -> tuple[Bytes, bool]:
        """Have its node make a volume larger; return its size, and whether the node still has something to do.

        Raises:
            NotFound: there is no such volume, or its node has left the cluster.
            InvalidArgument, OutOfRange: the size asked for cannot be delivered.
            ResourceExhausted: its pool has no room for that.
        """
        asked = False
        with self.volumes.held(resource_name(shown), patience_s) as until:
            while True:
                found = self._known(shown)
                record = _record(found)
                if wanted_absent(found):
                    raise Busy(f"volume {shown} is being removed")
                if capability is not None:
                    check_usable(record, capability)
                if sizes.grown(record, capacity) <= record.size:
                    if capacity_range(found).required > record.size:  # an earlier wish that could not be met
                        self.volumes.write(found, {"capacity": capacity_fields(capacity)})
                    return record.size, node_expansion_required(found)
                if not asked:
                    _, asked = self.volumes.write(found, {"capacity": capacity_fields(capacity)})
                elif not answered(found):
                    self.volumes.wait(found, until, gone_or_answered)
                else:
                    raise error_of(found) or Unavailable(f"volume {shown} has not grown; try again")

    @property
    def nodes(self) -> Nodes:
        """What is known of the nodes."""
        return self.volumes.nodes


class _Creation:
    """One call of CreateVolume: which nodes it has asked, and what they said."""

    def __init__(self, remote: Remote, request: VolumeRequest, volume: VolumeId, where: Accessibility) -> None:
        self._volumes = remote.volumes
        self._request = request
        self._volume = volume
        self._name = resource_name(volume)
        self._where = where
        self._awaited = remote.awaited
        self._origin = remote.origin(request.source)
        record = new_record(request, now=0) if request.source is None else None
        self._size, self._taken = (record.size, record.promised) if record else (Bytes(0), Bytes(0))
        self._shape = shape(request.parameters, request.capabilities)
        self._passed: dict[str, str] = {}
        self._asked: str | None = None

    def run(self, until: float) -> VolumeView:
        """Go on until a node has made it, or none can."""
        found = self._volumes.known(self._name)
        while True:
            if found is not None and made(found) and self._volumes.nodes.removed(node_of(found)):
                found = self._volumes.forget(found)  # who asks for a volume has none; what was not made is moved anyway
                continue
            if found is None:
                found = self._begin()
            if made(found) and not wanted_absent(found):
                return self._existing(found)
            found = self._next(found, until)

    def _begin(self) -> Object:
        node = self._choose(None)
        if self._origin and self._origin.like:
            new_record(_unencrypted(self._request), now=0, like=self._origin.like)  # raises where it cannot be
        wanted = new_volume(self._request, self._volume, node)
        self._asked = node
        return self._volumes.post(wanted)

    def _existing(self, found: Object) -> VolumeView:
        check_same(_record(found), self._request)
        if not self._where.allows(node_of(found)):
            raise ResourceExhausted(f"volume {self._request.name!r} is on node {node_of(found)} already")
        return volume_view(found)

    def _next(self, found: Object, until: float) -> Object | None:
        """One step on; what the resource is after it."""
        node = node_of(found)
        there = self._volumes.nodes.alive(node)
        if wanted_absent(found) and (made(found) or (there and not gone_or_refused(found))):
            return self._volumes.wait_gone(found, until)  # and begin anew
        self._check_asked(volume_request(found))
        if wanted_absent(found):  # there is nothing to wait for: its node is away, or cannot remove what it may have
            return self._move(found)
        if answered(found):
            return self._refused(found, error_of(found))
        if not there or not self._where.allows(node):
            self._passed[node] = NOT_THERE if not there else "it is not one that was wished for"
            return self._move(found)
        self._asked = node
        self._volumes.wait(found, until, gone_or_answered)
        return self._volumes.known(self._name)

    def _check_asked(self, asked: VolumeRequest) -> None:
        """See that what is being made is what is wanted.

        What a copy gets is its source's business as well, and one that its node has just found on its disk is described
        by what it is: so only what must be said alike is compared, and the rest when it is there.
        """
        if self._request.source is None and asked.source is None:
            check_same(new_record(asked, now=0), self._request)
        elif _in_common(asked) != _in_common(self._request):
            name = self._request.name
            raise AlreadyExists(f"volume {name!r} is being made from something else, or in another way")

    def _refused(self, found: Object, error: DriverError | None) -> Object | None:
        """What to do when a node has answered with an error: another node, the same again, or give up."""
        node = node_of(found)
        if self._asked != node:  # it was another call that was refused
            return self._move(found)
        is_copy = self._request.source is not None  # then it waits for its source's disk: no other node has that
        if isinstance(error, ResourceExhausted) or (isinstance(error, Unavailable) and not is_copy):
            self._passed[node] = str(error)
            return self._move(found)
        raise self._volumes.refused(found)

    def _move(self, found: Object) -> Object | None:
        node = self._choose(found)
        now, written = self._volumes.write(found, {"nodeName": node, "state": PRESENT})
        self._asked = node if written else None
        return now

    def _choose(self, found: Object | None) -> str:
        """The node to ask next.

        Raises:
            ResourceExhausted: there is none; what was asked for is taken away again.
        """
        if self._request.source is not None:
            return self._choose_for(self._request.source, found)
        nodes, parameters = self._volumes.nodes, self._request.parameters
        choice = nodes.choose(parameters, self._shape, self._size, self._where, self._passed)
        if choice.node is not None and self._elsewhere(choice.node):
            choice = nodes.choose(parameters, self._shape, self._size, self._where.narrowed, self._passed)
        if choice.node is None:
            nodes.forget(self._volume)
            raise self._exhausted(found, choice.why)
        nodes.promise(self._volume, choice.node, parameters, self._shape, self._taken)
        return choice.node

    def _elsewhere(self, node: str) -> bool:
        """Whether *node* is not the one where a pod waits: better none, and the scheduler looks for both together."""
        preferred = self._where.nodes[:1]
        return bool(preferred) and node not in preferred and self._awaited(self._request)

    def _choose_for(self, source: ContentSource, found: Object | None) -> str:
        """The one node that can make a copy: that of the source, be there room or not; a pod that waits follows.

        Raises:
            NotFound: there is no such source, or its node has left the cluster.
            ResourceExhausted: that node refuses, or is none of those where the volume may be.
            Unavailable: it is not there.
        """
        if self._origin is not None:
            node = self._origin.node
        elif found is not None:  # the source has gone since; its node knows how far it came
            node = node_of(found)
        else:
            raise NotFound(f"there is no {source.kind} {source.id!r}")
        if not self._where.allows(node):
            raise self._exhausted(found, f"{source.kind} {source.id} is on node {node}, where the volume may not be")
        self._volumes.nodes.check_alive(node, f"{source.kind} {source.id}")
        if node in self._passed:
            raise self._exhausted(found, f"node {node}, which has {source.kind} {source.id}: {self._passed[node]}")
        return node

    def _exhausted(self, found: Object | None, why: str) -> ResourceExhausted:
        if found is not None and not wanted_absent(found):
            self._volumes.write(found, {"state": ABSENT})
        return ResourceExhausted(f"no node can have volume {self._request.name!r}: {why}")


def _in_common(request: VolumeRequest) -> tuple[str, dict[str, str], frozenset[bool]]:
    """What all requests for one copy say alike, however its resource came to be."""
    block = frozenset(capability.block for capability in request.capabilities)
    return request.source_text, dict(request.parameters.given), block


def _unencrypted(request: VolumeRequest) -> VolumeRequest:
    """What can be checked here of a request for a copy: how its source is encrypted is known to the node alone."""
    return replace(request, parameters=replace(request.parameters, encryption=None))


def _record(found: Object) -> VolumeRecord:
    view = volume_view(found)
    if view.record is None:
        raise DamagedRecord(view.problem or f"node {view.node} cannot read the record of volume {view.id}")
    return view.record
