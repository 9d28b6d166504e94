"""The Kubernetes API as the scenarios use it: objects are dictionaries, and waiting is watching."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode, urlsplit

from tests.e2e import control_plane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

T = TypeVar("T")
Object = dict[str, Any]

PLURALS = {
    "StorageClass": "storageclasses",
    "CSIStorageCapacity": "csistoragecapacities",
    "VolumeSnapshotClass": "volumesnapshotclasses",
    "VolumeGroupSnapshotClass": "volumegroupsnapshotclasses",
}
"""Where it is not the kind in small letters and an s."""
NAMESPACED = frozenset(
    {
        "CSIStorageCapacity",
        "DaemonSet",
        "Deployment",
        "Event",
        "Lease",
        "PersistentVolumeClaim",
        "Pod",
        "Secret",
        "VolumeGroupSnapshot",
        "VolumeSnapshot",
    }
)
GROUPS = {
    "DaemonSet": "apps/v1",
    "Deployment": "apps/v1",
    "StorageClass": "storage.k8s.io/v1",
    "CSIDriver": "storage.k8s.io/v1",
    "CSINode": "storage.k8s.io/v1",
    "CSIStorageCapacity": "storage.k8s.io/v1",
    "LocalVolume": "csi-local.io/v1alpha1",
    "LocalPool": "csi-local.io/v1alpha1",
    "LocalSnapshot": "csi-local.io/v1alpha1",
    "LocalGroupSnapshot": "csi-local.io/v1alpha1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "VolumeSnapshot": "snapshot.storage.k8s.io/v1",
    "VolumeSnapshotClass": "snapshot.storage.k8s.io/v1",
    "VolumeSnapshotContent": "snapshot.storage.k8s.io/v1",
    "VolumeGroupSnapshot": "groupsnapshot.storage.k8s.io/v1beta1",
    "VolumeGroupSnapshotClass": "groupsnapshot.storage.k8s.io/v1beta1",
    "VolumeGroupSnapshotContent": "groupsnapshot.storage.k8s.io/v1beta1",
    "Lease": "coordination.k8s.io/v1",
}
"""The API version of each kind; of what is not here it is v1."""
MERGE_PATCH = "application/merge-patch+json"
REQUEST_SECONDS = 30.0
WATCH_SECONDS = 10.0
IDLE_SECONDS = 20.0
OUTAGE_SECONDS = 0.2


class ApiError(Exception):
    """The API server refused a request, with `code`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Api:
    """A client for the cluster whose keys are in `keys`, for many threads: each takes a connection that is idle."""

    def __init__(self, keys: Path) -> None:
        self._tls = ssl.create_default_context(cafile=str(keys / "ca.crt"))
        self._headers = {"Authorization": f"Bearer {control_plane.token(keys, 'admin')}"}
        self._idle: list[tuple[float, http.client.HTTPSConnection]] = []

    # Requests

    def request(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Any:  # noqa: ANN401
        """Make one request and return what was answered. Raises ApiError, or OSError if nobody answers."""
        connection = self._take()
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, data, {**self._headers, "Content-Type": content_type})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        self._idle.append((time.monotonic(), connection))
        if response.status >= http.client.BAD_REQUEST:
            raise ApiError(response.status, answer.decode(errors="replace"))
        return json.loads(answer) if answer[:1] in (b"{", b"[") else answer.decode()

    def _take(self) -> http.client.HTTPSConnection:
        """A connection that was used a moment ago, or a new one: the server closes those that are idle for long."""
        try:
            used, connection = self._idle.pop()
        except IndexError:
            return self._connect(REQUEST_SECONDS)
        if time.monotonic() - used < IDLE_SECONDS:
            return connection
        connection.close()
        return self._take()

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """Return an object, or None when there is no such."""
        try:
            answer: Object = self.request("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if error.code == http.client.NOT_FOUND:
                return None
            raise
        return answer

    def list(self, kind: str, namespace: str | None = None, labels: str = "") -> list[Object]:
        """Return all objects of a kind, of one namespace or of all."""
        path = path_of(kind, namespace) + (f"?{urlencode({'labelSelector': labels})}" if labels else "")
        items: list[Object] = self.request("GET", path)["items"]
        return items

    def create(self, manifest: Mapping[str, Any]) -> Object:
        """Create what a manifest describes."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        full = {"apiVersion": GROUPS.get(kind, "v1"), **manifest}
        answer: Object = self.request("POST", path_of(kind, metadata.get("namespace", "default")), full)
        return answer

    def patch(self, kind: str, name: str, change: object, namespace: str = "default", part: str = "") -> Object:
        """Change what is named in `change`; with `part`, that subresource."""
        path = path_of(kind, namespace, name) + (f"/{part}" if part else "")
        answer: Object = self.request("PATCH", path, change, MERGE_PATCH)
        return answer

    def delete(self, kind: str, name: str, namespace: str = "default", *, grace: int | None = None) -> None:
        """Ask for an object's end, if it is there."""
        body = None if grace is None else {"gracePeriodSeconds": grace}
        try:
            self.request("DELETE", path_of(kind, namespace, name), body)
        except ApiError as error:
            if error.code != http.client.NOT_FOUND:
                raise

    # Waiting

    def wait(
        self,
        kind: str,
        name: str,
        until: Callable[[Object | None], T],
        *,
        namespace: str = "default",
        seconds: float = 60.0,
        what: str = "",
    ) -> T:
        """Return the first true answer of `until` about an object as it is and as it changes; None when it is gone.

        Raises AssertionError with the object's last state after `seconds`.
        """
        deadline = time.monotonic() + seconds
        last: Object | None = None
        while time.monotonic() < deadline:
            try:
                for last in self._states(kind, name, namespace, deadline):
                    if answer := until(last):
                        return answer
            except (ConnectionError, TimeoutError, http.client.HTTPException, ApiError):
                time.sleep(OUTAGE_SECONDS)  # the API server may be the one that was killed
        shown = json.dumps({key: (last or {}).get(key) for key in ("status", "spec")}, indent=1)
        raise AssertionError(f"{what or f'{kind} {name}'}: not within {seconds:g} s; last seen: {shown}")

    def gone(self, kind: str, name: str, namespace: str = "default", seconds: float = 60.0) -> None:
        """Wait until there is no such object."""
        self.wait(
            kind, name, lambda found: found is None, namespace=namespace, seconds=seconds, what=f"{kind} {name} gone"
        )

    def _states(self, kind: str, name: str, namespace: str, deadline: float) -> Iterator[Object | None]:
        field = f"metadata.name={name}"
        listed = self.request("GET", f"{path_of(kind, namespace)}?{urlencode({'fieldSelector': field})}")
        yield next(iter(listed["items"]), None)
        seconds = max(1, min(WATCH_SECONDS, deadline - time.monotonic()))
        for event in self.watch(kind, namespace, listed["metadata"]["resourceVersion"], seconds, field):
            yield None if event["type"] == "DELETED" else event["object"]

    def watch(
        self, kind: str, namespace: str | None, version: str, seconds: float, field: str = ""
    ) -> Iterator[Object]:
        """Yield what happens to objects of a kind after `version`, for so many seconds."""
        query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(int(seconds)), "fieldSelector": field}
        connection = self._connect(seconds + REQUEST_SECONDS)
        try:
            connection.request("GET", f"{path_of(kind, namespace)}?{urlencode(query)}", None, self._headers)
            for line in connection.getresponse():
                event: Object = json.loads(line)
                if event.get("type") == "ERROR" or "type" not in event:
                    return
                yield event
        finally:
            connection.close()

    def _connect(self, seconds: float) -> http.client.HTTPSConnection:
        server = urlsplit(control_plane.SERVER)
        assert server.hostname is not None
        return http.client.HTTPSConnection(server.hostname, server.port, context=self._tls, timeout=seconds)


def path_of(kind: str, namespace: str | None = None, name: str = "") -> str:
    """Return the path of an object, or of the collection of its kind."""
    group = GROUPS.get(kind, "v1")
    root = f"/apis/{group}" if "/" in group else f"/api/{group}"
    within = f"/namespaces/{namespace}" if namespace and kind in NAMESPACED else ""
    return f"{root}{within}/{PLURALS.get(kind, kind.lower() + 's')}" + (f"/{name}" if name else "")
