"""Claims and pods as users write them, and what can be asked about them while they run."""

from __future__ import annotations

import itertools
import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.e2e.images import TEST_IMAGE
from tests.e2e.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.e2e.api import Object
    from tests.e2e.cluster import Cluster

MOUNT = "/data"
IDLE = "trap 'exit 0' TERM; sleep 100000 & wait"
"""What a container does after its script: it ends at once when it is asked to."""
POD_SECONDS = 60.0
GRACE_SECONDS = 1
"""Not 0: a pod without grace is gone from the API before its volumes are unpublished."""
LAST = frozenset({"PersistentVolumeClaim", "PersistentVolume"})
"""What is removed when nothing uses it any more."""
PHASES_OF_END = frozenset({"Succeeded", "Failed"})
_counter = itertools.count(1)


def claim_manifest(
    name: str,
    storage_class: str,
    size: str = "64Mi",
    *,
    mode: str = "ReadWriteOnce",
    block: bool = False,
    volume: str = "",
    source: Mapping[str, str] | None = None,
    **metadata: Any,  # noqa: ANN401
) -> Object:
    """Return a PersistentVolumeClaim; what it begins as a copy of is its `source`."""
    spec: Object = {
        "accessModes": [mode],
        "storageClassName": storage_class,
        "volumeMode": "Block" if block else "Filesystem",
        "resources": {"requests": {"storage": size}},
    }
    if volume:
        spec["volumeName"] = volume
    if source:
        spec["dataSource"] = dict(source)
    return {"kind": "PersistentVolumeClaim", "metadata": {"name": name, **metadata}, "spec": spec}


def pod_spec(script: str = ":", *, node: str = "", once: bool = False, **more: Any) -> Object:  # noqa: ANN401
    """Return a pod's spec with one container that runs `script` and then idles, or ends when it is to run `once`."""
    container: Object = {
        "name": "main",
        "image": TEST_IMAGE,
        "command": ["sh", "-ec", script if once else f"{script}; {IDLE}"],
    }
    spec: Object = {"terminationGracePeriodSeconds": GRACE_SECONDS, "containers": [container]}
    if once:
        spec["restartPolicy"] = "Never"
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {**spec, **more}


def with_claim(spec: Object, claim: str, *, block: bool = False, read_only: bool = False, **mount: Any) -> Object:  # noqa: ANN401
    """Give a pod's container the volume of a claim: at MOUNT, or as the device /dev/volume."""
    source = {"persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
    return with_volume(spec, source, block=block, **mount)


def with_volume(spec: Object, source: Mapping[str, Any], *, block: bool = False, **mount: Any) -> Object:  # noqa: ANN401
    """Give a pod's container a volume from any source."""
    name = f"volume-{len(spec.get('volumes', ()))}"
    container = dict(spec["containers"][0])
    if block:
        container["volumeDevices"] = [{"name": name, "devicePath": "/dev/volume"}]
    else:
        mounts = [*container.get("volumeMounts", ()), {"name": name, "mountPath": MOUNT, **mount}]
        container["volumeMounts"] = mounts
    return {**spec, "containers": [container], "volumes": [*spec.get("volumes", ()), {"name": name, **source}]}


def ephemeral(storage_class: str, size: str = "64Mi") -> Object:
    """Return a generic ephemeral volume."""
    spec = claim_manifest("-", storage_class, size)["spec"]
    return {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}


@dataclass(slots=True)
class Workloads:
    """What one test makes, and all of its removal. Names are the test's own."""

    cluster: Cluster
    prefix: str
    _made: list[tuple[str, str]] = field(default_factory=list)

    def name(self, word: str) -> str:
        """Return a name that no other test has."""
        return f"{self.prefix}-{word}-{os.getpid()}-{next(_counter)}"

    def create(self, manifest: Object) -> str:
        """Create an object, to be removed after the test."""
        name: str = manifest["metadata"]["name"]
        self.cluster.api.create(manifest)
        self._made.append((manifest["kind"], name))
        return name

    # Claims

    def claim(self, storage_class: str, size: str = "64Mi", **more: Any) -> str:  # noqa: ANN401
        """Create a claim and return its name."""
        return self.create(claim_manifest(self.name("claim"), storage_class, size, **more))

    def bound(self, claim: str, seconds: float = 60.0) -> Object:
        """Wait until a claim is bound, and return its volume."""

        def volume(found: Object | None) -> str:
            return found["spec"].get("volumeName", "") if found and found["status"].get("phase") == "Bound" else ""

        name = self.cluster.api.wait("PersistentVolumeClaim", claim, volume, seconds=seconds, what=f"{claim} is bound")
        answer = self.cluster.api.get("PersistentVolume", name)
        assert answer is not None
        return answer

    # Pods

    def pod(self, spec: Object, **metadata: Any) -> str:  # noqa: ANN401
        """Create a pod and return its name."""
        name = self.name("pod")
        return self.create({"kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec})

    def running(self, *pods: str, seconds: float = POD_SECONDS) -> list[Object]:
        """Wait until pods run, and return them."""

        def runs(found: Object | None) -> Object | None:
            phase = (found or {}).get("status", {}).get("phase")
            assert phase not in PHASES_OF_END, f"it ended: {(found or {}).get('status')}"
            return found if phase == "Running" else None

        found = [self.cluster.api.wait("Pod", pod, runs, seconds=seconds, what=f"{pod} runs") for pod in pods]
        return [pod for pod in found if pod is not None]

    def succeeded(self, pod: str, seconds: float = POD_SECONDS) -> None:
        """Wait until the container of a pod has ended, and demand that it did so without an error."""

        def ended(found: Object | None) -> str:
            phase: str = (found or {}).get("status", {}).get("phase", "")
            return phase if phase in PHASES_OF_END else ""

        phase = self.cluster.api.wait("Pod", pod, ended, seconds=seconds, what=f"{pod} ends")
        assert phase == "Succeeded", f"{pod}: {self.logs(pod)}"

    def logs(self, pod: str) -> str:
        """Return what the container of a pod wrote."""
        return str(self.cluster.api.request("GET", f"/api/v1/namespaces/default/pods/{pod}/log"))

    def node_of(self, pod: str) -> str:
        """Return the node that a pod is on."""
        found = self.cluster.api.get("Pod", pod)
        assert found is not None
        return str(found["spec"].get("nodeName", ""))

    def run_in(self, pod: str, script: str) -> str:
        """Run a shell script in the container of a running pod and return what it printed."""
        found = self.cluster.api.get("Pod", pod)
        assert found is not None
        container = found["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        node = self.cluster.node(found["spec"]["nodeName"])
        return node.ctr("task", "exec", "--exec-id", uuid.uuid4().hex, container, "sh", "-ec", script)

    def end(self, *pods: str) -> None:
        """Delete pods and wait until they are gone."""
        for pod in pods:
            self.cluster.api.delete("Pod", pod, grace=GRACE_SECONDS)
        for pod in pods:
            self.cluster.api.gone("Pod", pod)

    def drop(self, *claims: str) -> None:
        """Delete claims and wait until they are gone."""
        for claim in claims:
            self.cluster.api.delete("PersistentVolumeClaim", claim)
        for claim in claims:
            self.cluster.api.gone("PersistentVolumeClaim", claim)

    # The end of the test

    def remove(self) -> None:
        """Remove all that was made, pods first."""
        first = sorted(self._made, key=lambda made: made[0] in LAST)
        for kind, names in itertools.groupby(first, key=lambda made: made[0]):
            listed = [name for _, name in names]
            for name in listed:
                self.cluster.api.delete(kind, name)
            for name in listed:
                self.cluster.api.gone(kind, name)
        self._made.clear()


def resource_of(cluster: Cluster, kind: str, handle: str) -> Object | None:
    """Return the LocalVolume or LocalSnapshot of a handle; others that are there may have no status yet."""
    key = {"LocalVolume": "volumeId", "LocalSnapshot": "snapshotId"}[kind]
    return next((one for one in cluster.api.list(kind) if one.get("status", {}).get(key) == handle), None)


def events_about(cluster: Cluster, name: str) -> Sequence[str]:
    """Return the messages of the events about an object."""
    return [event["message"] for event in cluster.api.list("Event") if event["involvedObject"]["name"] == name]


def wait_for_event(cluster: Cluster, name: str, word: str, seconds: float = 60.0) -> str:
    """Wait until an event about an object has this word in it."""

    def look() -> str | None:
        return next((message for message in events_about(cluster, name) if word in message), None)

    return eventually(f"an event about {name} that says {word!r}", seconds, look)
