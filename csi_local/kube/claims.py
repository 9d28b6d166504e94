"""The controller's side of changing keys: claims that ask for it, and the LocalVolumes that then do.

All claims of the cluster are watched; of those that ask for nothing next to nothing is kept. Several controllers may
do this at once: a write is guarded, and what is written already is not written again.
"""

import logging

from csi_local.kube import resources
from csi_local.kube.api import Api, Object
from csi_local.kube.cache import Cache
from csi_local.kube.desired import Desired
from csi_local.kube.rotation_resource import claim_key, handle_of, lean_claim, request_of, wanted_rotation
from csi_local.kube.work import WorkQueue
from csi_local.model.errors import DriverError, NotFound

_log = logging.getLogger(__name__)


class Claims:
    """Writes into LocalVolumes what their claims ask for by annotation."""

    def __init__(self, api: Api, volumes: Desired) -> None:
        self._api = api
        self._volumes = volumes
        self._cache = Cache(api, resources.CLAIMS, key=claim_key, keep=lean_claim)
        self._queue = WorkQueue(self._work, 1, name="claims")
        self._cache.listen(self._seen)

    def start(self) -> None:
        """Begin; where claims cannot be watched, all else goes on."""
        self._queue.start()
        self._cache.start()

    def stop(self) -> None:
        """End."""
        self._cache.stop()
        self._queue.stop()

    def check_alive(self) -> str:
        """Why it does nothing any more, or ""."""
        return self._cache.check_alive() or self._queue.problem

    def _seen(self, key: str, _old: Object | None, new: Object | None) -> None:
        if new is not None and request_of(new):
            self._queue.add(key)

    def _work(self, key: str) -> bool:
        """Pass on what one claim asks for; whether nothing is left to do."""
        claim = self._cache.get(key)
        if claim is None or not request_of(claim) or not claim["spec"]["volumeName"]:
            return True
        try:
            persistent = self._api.get(resources.PERSISTENT_VOLUMES, claim["spec"]["volumeName"])
            handle = handle_of(claim, persistent)
            if handle is None:
                return True
            volume = self._volumes.find(resources.resource_name(handle))
            return volume is not None and self._pass_on(claim, persistent, volume)
        except NotFound:
            return True
        except DriverError as error:
            _log.info("what claim %s asks for waits: %s", key, error)
            return False

    def _pass_on(self, claim: Object, persistent: Object, volume: Object) -> bool:
        wanted = wanted_rotation(claim, persistent, volume)
        if resources.wanted_absent(volume) or volume["spec"].get("keyRotation") == wanted:
            return True
        _, written = self._volumes.write(volume, {"keyRotation": {"secret": None, **wanted}})
        return written
