"""`csi-local node` as the cluster meets it: a process, its sockets, and an API server that the test plays."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from csi_local._proto import csi_pb2 as csi
from csi_local._proto import pluginregistration_pb2 as pb
from csi_local._proto import pluginregistration_pb2_grpc as pb_grpc
from tests import observe
from tests.client import Mode, Volume, capability
from tests.driver import PROGRAM, Driver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.fake.kubernetes import Kubernetes

VOLUMES = "/apis/csi-local.io/v1alpha1/localvolumes"
POOLS = "/apis/csi-local.io/v1alpha1/localpools"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/csi-local/leases"
EVENTS = "/api/v1/namespaces/default/events"
Object = dict[str, Any]


class Node(Driver):
    """One node. Its volumes are made, grown and removed through the API, as the controller does it."""

    def __init__(self, root: Path, *pools: str, api: Kubernetes, **options: Any) -> None:  # noqa: ANN401
        super().__init__(root, *pools, **options)
        self.api = api
        self.kubelet = root / "kubelet"
        self.registration = self.kubelet / "plugins_registry" / "csi-local.io-reg.sock"
        (root / "kubeconfig").write_text(api.kubeconfig)

    @property
    def argv(self) -> list[str]:
        """The command line."""
        pools = [word for pool in self.pools for word in ("--pool", pool)]
        where = ["--endpoint", f"unix://{self.socket}", "--kubelet-dir", str(self.kubelet)]
        who = ["--node-id", self.node_id, "--run-dir", str(self.root / "run")]
        api = ["--kubeconfig", str(self.root / "kubeconfig"), "--http-address", "127.0.0.1:0"]
        return [*self.before, str(PROGRAM), "node", *where, *who, *api, *pools, *self.args]

    # --- the controller's part

    def want(
        self,
        name: str,
        size: int,
        *,
        params: Mapping[str, str] | None = None,
        fs: str = "",
        block: bool = False,
        claim: str = "",
    ) -> Volume:
        """Want a volume, without waiting for it."""
        access: Object = {"accessMode": "SINGLE_NODE_MULTI_WRITER"} | ({"block": True} if block else {})
        if fs:
            access["fsType"] = fs
        spec: Object = {
            "volumeName": name,
            "nodeName": self.node_id,
            "state": "Present",
            "attempt": 0,
            "capacity": {"requiredBytes": size, "limitBytes": 0},
            "capabilities": [access],
            "parameters": dict(params or {}),
        }
        if claim:
            spec["claim"] = {"namespace": "default", "name": claim}
        metadata = {
            "name": name,
            "labels": {"csi-local.io/node": self.node_id},
            "finalizers": ["csi-local.io/data"],
        }
        self.api.create(
            VOLUMES, {"apiVersion": "csi-local.io/v1alpha1", "kind": "LocalVolume", "metadata": metadata, "spec": spec}
        )
        wanted = capability(fs=fs, block=block, mode=Mode.SINGLE_NODE_MULTI_WRITER)
        return Volume(id=name, size=size, capability=wanted)

    def provide(self, name: str, size: int, **options: Any) -> Volume:  # noqa: ANN401
        """Want a volume, and demand that it is made."""
        volume = self.want(name, size, **options)
        status = self.answer(name)
        assert status["phase"] == "Ready", status
        return Volume(id=status["volumeId"], size=status["capacityBytes"], capability=volume.capability)

    def change(self, name: str, **spec: Any) -> None:  # noqa: ANN401
        """Want something else of it."""
        attempt = self.api.get(VOLUMES, name)["spec"]["attempt"] + 1
        self.api.patch(VOLUMES, name, {"spec": {"attempt": attempt, **spec}})

    def answer(self, name: str) -> Object:
        """Wait for the node's answer; return the status."""

        def answered(found: Object | None) -> bool:
            status = (found or {}).get("status", {})
            return found is not None and status.get("observedGeneration") == found["metadata"]["generation"]

        return dict(self.api.until(VOLUMES, name, answered)["status"])

    def grow(self, name: str, size: int) -> Object:
        """Want it larger; return the answer."""
        self.change(name, capacity={"requiredBytes": size, "limitBytes": 0})
        return self.answer(name)

    def remove(self, name: str) -> None:
        """Want it no more, and wait until it is gone."""
        self.change(name, state="Absent")
        self.wait_gone(name)

    def wait_gone(self, name: str) -> None:
        """Wait until nothing of it is left in the API."""
        self.api.until(VOLUMES, name, lambda found: found is None)

    def delete(self, volume: Volume) -> None:
        """Remove a volume."""
        self.remove(volume.id)

    def volumes(self) -> list[csi.Volume]:
        """Return all that are wanted."""
        return [csi.Volume(volume_id=one["metadata"]["name"]) for one in self.api.all(VOLUMES)]

    def events(self) -> list[tuple[str, str]]:
        """Return the Events there are: about what, and why."""
        return sorted((one["involvedObject"]["kind"], one["reason"]) for one in self.api.all(EVENTS))

    # --- the kubelet's part

    def register(self) -> pb.PluginInfo:
        """Do as the kubelet does with a socket in its directory."""
        with grpc.insecure_channel(f"unix://{self.registration}") as channel:
            stub = pb_grpc.RegistrationStub(channel)
            info = stub.GetInfo(pb.InfoRequest(), timeout=10, wait_for_ready=True)
            stub.NotifyRegistrationStatus(
                pb.RegistrationStatus(plugin_registered=True), timeout=10, wait_for_ready=True
            )
        return info

    def page(self, path: str) -> tuple[int, str]:
        """Ask for a page over HTTP."""
        ports = observe.until(lambda: re.findall(r"http on port (\d+)", self.output()), "it says its port")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def on_disk(self) -> list[str]:
        """Return the volumes that the pools have."""
        return sorted(path.name for root in self.pool_roots() for path in (root / "volumes").iterdir())

    def everything_written(self) -> str:
        """Return all that the API has been given."""
        return json.dumps(self.api.objects)

    def rss(self) -> int:
        """Return the bytes of memory that the process has."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        status = dict(line.split(":", 1) for line in lines)  # proc_pid_status(5)
        return int(status["VmRSS"].split()[0]) * observe.KIB
