"""A node of a cluster, as the controller sees one: a lease, a pool, and answers to LocalVolumes. It has no disk."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from csi_local.engine.api import VolumeView
from csi_local.kube import resources, volume_resource
from csi_local.kube.api import Api
from csi_local.kube.cache import Cache
from csi_local.kube.pool_resource import new_pool, pool_status
from csi_local.model.errors import Conflict, DriverError, FailedPrecondition, NotFound, ResourceExhausted
from csi_local.model.pool import Abilities, Media, PoolKind, PoolSpec, PoolView
from csi_local.model.quantity import GIB, Bytes
from csi_local.model.volume import VolumeRecord
from csi_local.plan.request import new_record
from csi_local.plan.sizes import grown
from tests.fake.kubernetes import Refused

if TYPE_CHECKING:
    from csi_local.kube.api import Object
    from tests.fake.kubernetes import Kubernetes

NAMESPACE = "csi-local"
_ABLE = Abilities(filesystem="xfs", reflink=True, discard=True, direct_io=True, sector_size=4096, preallocate=True)
_SPEC = PoolSpec(name="fast", kind=PoolKind.PATH, target="/mnt")


class Node:
    """Has *room* bytes, and what of it is taken.

    Attributes:
        shown: the room that its LocalPool tells of, where that is another than there is.
        fails: what it answers to whatever is to be made, if anything.
        in_use: names of volumes that cannot be removed.
        removed: names of those that were asked to go and went.
        awake: while cleared, it does nothing.
    """

    def __init__(self, server: Kubernetes, name: str, room: int = 10 * GIB, *, shown: int | None = None) -> None:
        self.name, self.room, self.shown = name, room, shown
        self.volumes: dict[str, VolumeRecord] = {}
        self.fails: DriverError | None = None
        self.removed: list[str] = []
        self.in_use: set[str] = set()
        self.awake = threading.Event()
        self.awake.set()
        self.answers = 0
        self._server = server
        self._api = Api(server.credentials)
        self._cache = Cache(self._api, resources.VOLUMES, selector=resources.selector(name))
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._cache.listen(lambda _name, _old, _new: self._due.set())
        self._thread = threading.Thread(target=self._run, daemon=True)
        with suppress(Refused):
            server.create(resources.NODES, {"metadata": {"name": name}})
        self.renew()
        self.show_room()

    def start(self) -> Node:
        """Begin to answer."""
        self._cache.start()
        self._thread.start()
        return self

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self.awake.set()
        self._due.set()
        self._cache.stop()
        self._api.close()
        self._thread.join(5)

    def renew(self, at: float | None = None) -> None:
        """Renew its lease, now or as of then."""
        collection, name = resources.leases(NAMESPACE), resources.lease_name(self.name)
        spec = {"holderIdentity": self.name, "renewTime": resources.micro_time(time.time() if at is None else at)}
        try:
            self._server.patch(collection, name, {"spec": spec})
        except Refused:
            labels = {resources.NODE_LABEL: self.name}
            self._server.create(collection, {"metadata": {"name": name, "labels": labels}, "spec": spec})

    def show_room(self) -> None:
        """Tell of its pool."""
        left = self.room - sum(record.size for record in self.volumes.values())
        room = Bytes(left if self.shown is None else self.shown)
        view = PoolView(
            name="fast", kind=PoolKind.PATH, media=Media.SSD, abilities=_ABLE, total=Bytes(self.room), room=room,
            thin_room=room,
        )  # fmt: skip
        made, name = new_pool(_SPEC, self.name), resources.pool_resource_name(self.name, "fast")
        with suppress(Refused):
            self._server.create(resources.POOLS, made)
        status = pool_status(made, view, uuid="u", promised=0, volumes=len(self.volumes), now=resources.timestamp(0))
        self._server.patch(resources.POOLS, name, status, status=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.wait(0.2)
            self._due.clear()
            for wanted in self._cache.items():
                self.awake.wait()
                if not self._stopping.is_set() and not resources.answered(wanted):
                    self._answer(wanted)

    def _answer(self, wanted: Object) -> None:
        name = resources.name_of(wanted)
        metadata = {"resourceVersion": wanted["metadata"]["resourceVersion"]}
        try:
            if resources.wanted_absent(wanted):
                self._remove(name, wanted)
                return
            record = self._provide(name, wanted)
            view = VolumeView(id=record.id, node=self.name, pool="fast", record=record)
            patch = volume_resource.ready_status(wanted, view, now=resources.timestamp(time.time()))
        except (Conflict, NotFound):
            return
        except DriverError as error:
            patch = volume_resource.failed_status(wanted, error, now=resources.timestamp(time.time()))
        try:
            self._api.patch(resources.VOLUMES, name, {**patch, "metadata": metadata}, status=True)
            self.answers += 1
        except DriverError:
            self._due.set()

    def _provide(self, name: str, wanted: Object) -> VolumeRecord:
        if self.fails is not None:
            raise self.fails
        if name in self.volumes:
            before = self.volumes[name]
            size = grown(before, volume_resource.capacity_range(wanted))
        else:
            before = new_record(volume_resource.volume_request(wanted), now=1)
            size = before.size
        others = sum(record.size for key, record in self.volumes.items() if key != name)
        if others + size > self.room:
            raise ResourceExhausted(f"no room for {size} bytes")
        self.volumes[name] = VolumeRecord(
            id=before.id, name=before.name, size=size, backend=before.backend, block=before.block,
            filesystem=before.filesystem, parameters=before.parameters,
        )  # fmt: skip
        return self.volumes[name]

    def _remove(self, name: str, wanted: Object) -> None:
        if name in self.in_use:
            raise FailedPrecondition(f"volume {name} is in use")
        self.volumes.pop(name, None)
        self.removed.append(name)
        version = wanted["metadata"]["resourceVersion"]
        self._api.patch(resources.VOLUMES, name, {"metadata": {"finalizers": [], "resourceVersion": version}})
        self._api.delete(resources.VOLUMES, name)
