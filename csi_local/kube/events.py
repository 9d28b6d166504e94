"""Events on claims and on the node: for what a person should see in ``kubectl describe``."""

import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from csi_local.kube import resources
from csi_local.kube.api import Api, Object
from csi_local.model.errors import AlreadyExists, DriverError

_log = logging.getLogger(__name__)
_COMPONENT = "csi-local"
_AGAIN_S = 3600.0
"""How long the API server keeps an Event by default (``--event-ttl``): until then the same is not said again."""
_BURST, _REFILL_S = 20.0, 10.0
_REMEMBERED = 1000
_MAX_MESSAGE = 1024
"""Characters in a message (k8s.io/api/core/v1, EventSeries and validation of events)."""
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an Event is about.

    Attributes:
        namespace: of the object, "" where it has none.
        uid: ``kubectl describe`` looks for Events by it.
        version: of the API that has it.
    """

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    version: str = "v1"


def about_node(name: str) -> About:
    """A node. The kubelet takes its name for its uid in Events, and kubectl looks for that."""
    return About(kind="Node", name=name, uid=name)


def about_claim(namespace: str, name: str, volume_name: str) -> About:
    """A claim; its uid is the end of the name that the provisioner gives to the volume (``pvc-UID``)."""
    return About(kind="PersistentVolumeClaim", namespace=namespace, name=name, uid=_uid(volume_name))


def about_snapshot(labels: Mapping[str, str], snapshot_name: str) -> About | None:
    """The VolumeSnapshot that the snapshotter's labels tell of; its uid as a claim's (``snapshot-UID``)."""
    return _about_copy("VolumeSnapshot", "snapshot.storage.k8s.io/v1", labels, snapshot_name)


def about_group(labels: Mapping[str, str], group_name: str) -> About | None:
    """The VolumeGroupSnapshot, likewise (``groupsnapshot-UID``)."""
    return _about_copy("VolumeGroupSnapshot", "groupsnapshot.storage.k8s.io/v1", labels, group_name)


def _about_copy(kind: str, version: str, labels: Mapping[str, str], name_with_uid: str) -> About | None:
    namespace, name = (labels.get(f"csi.storage.k8s.io/{kind.lower()}/{key}", "") for key in ("namespace", "name"))
    if not (namespace and name):
        return None
    return About(kind=kind, namespace=namespace, name=name, uid=_uid(name_with_uid), version=version)


def _uid(name: str) -> str:
    found = _UID.search(name)
    return found[0] if found else ""


class Events:
    """Tells of what needs a person: the same only once an hour, and not too much at once."""

    def __init__(self, api: Api, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._node = node
        self._clock = clock
        self._guard = threading.Lock()
        self._said: OrderedDict[str, float] = OrderedDict()
        self._allowance, self._counted = _BURST, clock()

    def warn(self, about: About, reason: str, message: str) -> None:
        """Say it, also in the log. What the API does not take is lost: it is in the log.

        *reason* is one word, as programs read it (``PoolMissing``).
        """
        self._say("Warning", about, reason, message)

    def tell(self, about: About, reason: str, message: str) -> None:
        """Say likewise what somebody has waited for, and what is as it should be."""
        self._say("Normal", about, reason, message)

    def _say(self, kind: str, about: About, reason: str, message: str) -> None:
        name = _event_name(about, reason, message)
        if not self._is_new(name):
            return
        level = logging.WARNING if kind == "Warning" else logging.INFO
        _log.log(level, "%s %s: %s: %s", about.kind, about.name, reason, message)
        if not self._is_allowed():
            return
        event = _event(name, about, reason, message, self._node) | {"type": kind}
        collection = resources.events(event["metadata"]["namespace"])
        try:
            try:
                self._api.create(collection, event)
            except AlreadyExists:  # said by an earlier process
                self._api.patch(collection, name, {"lastTimestamp": event["lastTimestamp"]})
        except DriverError as error:
            _log.info("an event is lost: %s", error)

    def _is_new(self, name: str) -> bool:
        now = self._clock()
        with self._guard:
            said = self._said.get(name)
            if said is not None and now - said < _AGAIN_S:
                return False
            self._said[name] = now
            self._said.move_to_end(name)
            if len(self._said) > _REMEMBERED:
                self._said.popitem(last=False)
            return True

    def _is_allowed(self) -> bool:
        now = self._clock()
        with self._guard:
            self._allowance = min(_BURST, self._allowance + (now - self._counted) / _REFILL_S)
            self._counted = now
            if self._allowance < 1:
                return False
            self._allowance -= 1
            return True


def _event_name(about: About, reason: str, message: str) -> str:
    """A name that the same Event always has, so that a restarted process does not say everything again."""
    said = repr((about, reason, message))
    return f"csi-local.{hashlib.sha256(said.encode()).hexdigest()[:32]}"


def _event(name: str, about: About, reason: str, message: str, node: str) -> Object:
    now = resources.timestamp(time.time())
    namespace = about.namespace or "default"
    involved = {"kind": about.kind, "name": about.name, "apiVersion": about.version}
    if about.namespace:
        involved["namespace"] = about.namespace
    if about.uid:
        involved["uid"] = about.uid
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "reason": reason,
        "message": message[:_MAX_MESSAGE],
        "source": {"component": _COMPONENT, "host": node},
        "reportingComponent": _COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
