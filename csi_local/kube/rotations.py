"""The node's side of changing keys: what LocalVolumes ask for, beside whatever else they want, is done and answered.

The keys are in the Secret that the kubelet takes them from; which of them a node may read is the administrator's
choice (``node.rotationSecrets`` of the chart). Cut short anywhere, it is due again: done twice, it is done once.
"""

import base64
import logging
import time
from collections.abc import Callable
from typing import Protocol

from csi_local.engine.keys import KEY, NONE_GIVEN, PREVIOUS, GivenKeys
from csi_local.kube import resources
from csi_local.kube.agent import Told
from csi_local.kube.api import Api, Object
from csi_local.kube.cache import Cache
from csi_local.kube.events import Events
from csi_local.kube.kind import PATIENCE_S
from csi_local.kube.rotation_resource import about_asker, is_due, rotation_status
from csi_local.kube.work import WorkQueue
from csi_local.model.errors import DriverError, Unavailable
from csi_local.model.secret import Secret

_log = logging.getLogger(__name__)


class KeyEngine(Protocol):
    """Changes keys. What it raises is told in :mod:`csi_local.engine.rotation`."""

    def settle(self, shown: str, given: GivenKeys, patience_s: float) -> None:
        """Let a volume's key open it and the one before it no more, as whoever has them says now."""


class KeyRotations:
    """Changes the keys of this node's volumes, one after the other, as their LocalVolumes ask for it."""

    def __init__(
        self,
        api: Api,
        volumes: Cache,
        engine: KeyEngine,
        events: Events,
        *,
        told: Told,
        crash_point: Callable[[str], None],
    ) -> None:
        self._api = api
        self._volumes = volumes
        self._engine = engine
        self._events = events
        self._told = told
        self._pass = crash_point
        self._queue = WorkQueue(self._work, 1, name="rotation")
        volumes.listen(self._seen)

    def start(self) -> None:
        """Begin."""
        self._queue.start()

    def stop(self) -> None:
        """End after the work under way."""
        self._queue.stop()

    @property
    def problem(self) -> str:
        """Why it is not at work, or ""."""
        return self._queue.problem

    def _seen(self, name: str, old: Object | None, new: Object | None) -> None:
        """What is tried again by itself needs no word of it; its own answers come by here as well."""
        if new is None or not is_due(new):
            return
        if old is None or not is_due(old) or old["spec"]["keyRotation"] != new["spec"]["keyRotation"]:
            self._queue.add(name)

    def _work(self, name: str) -> bool:
        """Change one key; whether nothing is left to do."""
        volume = self._volumes.get(name)
        if volume is None or not is_due(volume):
            return True
        began = time.perf_counter()
        error = self._settle(volume)
        self._pass("agent-rotate:done")
        patch = rotation_status(volume, error)
        if resources.says(volume, patch):  # that it cannot be done yet
            return False
        try:
            now = self._api.patch(resources.VOLUMES, name, patch, status=True)
        except DriverError as lost:
            _log.info("the answer about the key of volume %s waits: %s", name, lost)
            return False
        self._volumes.observe(now)
        self._pass("agent-rotate:answered")
        self._tell(volume, error)
        result = now["status"]["keyRotation"].get("error", {}).get("code", "OK")
        self._told("rotate", result, time.perf_counter() - began)
        return not is_due(now)

    def _settle(self, volume: Object) -> Exception | None:
        """Change it; what stood in the way, if anything."""
        try:
            self._engine.settle(volume["status"]["volumeId"], self._given(volume), PATIENCE_S)
        except DriverError as error:
            return error
        except Exception as error:  # noqa: BLE001 (it must be answered; the log has it)
            _log.exception("changing the key of volume %s failed in a way that was not foreseen", volume["status"])
            return error
        return None

    def _given(self, volume: Object) -> GivenKeys:
        """The keys of the Secret, where there is one; they are asked for each time, and kept nowhere."""
        where = volume["spec"]["keyRotation"].get("secret")
        if not where:
            return NONE_GIVEN
        try:
            data = self._api.get(resources.secrets(where["namespace"]), where["name"]).get("data") or {}
        except Unavailable as error:
            hint = "nodes may read those Secrets that the chart's node.rotationSecrets has"
            raise Unavailable(f"{error}; {hint}") from error
        key, previous = (Secret(base64.b64decode(data[one])) if one in data else None for one in (KEY, PREVIOUS))
        return GivenKeys(key=key, previous=previous)

    def _tell(self, volume: Object, error: Exception | None) -> None:
        name, request = volume["status"]["volumeId"], volume["spec"]["keyRotation"]["request"]
        if error is None:
            said = f"volume {name} is opened by its new key alone (rotate-key: {request})"
            self._events.tell(about_asker(volume), "KeyRotated", said)
        else:
            why = resources.error_fields(error)["message"]
            said = f"the key of volume {name} was not changed (rotate-key: {request}): {why}"
            self._events.warn(about_asker(volume), "KeyRotationFailed", said)
