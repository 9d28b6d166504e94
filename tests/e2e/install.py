"""The driver, put into the cluster as a user does: the image that the Dockerfile makes, and the chart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.e2e.processes import run

if TYPE_CHECKING:
    from tests.e2e.cluster import Cluster

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/chart/csi-local"
HELM = ROOT / ".tools/bin/helm"
NAMESPACE = "csi-local"
DRIVER = "csi-local.io"
TOPOLOGY_KEY = "topology.csi-local.io/node"
SNAPSHOT_CLASSES = ROOT / "deploy/examples/snapshotclasses.yaml"
INSTALL_SECONDS = 60
IMAGE_SECONDS = 600.0
FSTYPE = "csi.storage.k8s.io/fstype"

KEY = {"namespace": "default", "name": "volume-key"}
"""The Secret with the key of encrypted volumes."""
ENCRYPTED = {"encryption": "luks2", "media": "ssd", "allocation": "thin", FSTYPE: "ext4"}
ENCRYPTED |= {
    f"csi.storage.k8s.io/node-{what}-secret-{one}": KEY[one]
    for what in ("stage", "publish", "expand")
    for one in ("namespace", "name")
}


def _storage_class(name: str, *, when: str = "WaitForFirstConsumer", **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"name": name, "volumeBindingMode": when, **more}


def _group(name: str, nodes: str, *pools: str) -> dict[str, Any]:
    expression = {"key": "kubernetes.io/hostname", "operator": nodes, "values": ["node-a"]}
    term = {"matchExpressions": [expression]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {
        "name": name,
        "affinity": {"nodeAffinity": required},
        "pools": [{"name": pool, "path": f"/mnt/{pool}", "media": pool, "mounted": "yes"} for pool in pools],
        "directories": [f"/mnt/{pool}" for pool in pools],
    }


VALUES: dict[str, Any] = {
    "nodeGroups": [
        _group("first", "In", "ssd", "hdd", "nvme"),
        _group("others", "NotIn", "ssd", "hdd"),
    ],
    "node": {"rotationSecrets": [KEY]},
    "sidecars": {"snapshotter": {"groupSnapshots": True}},
    "storageClasses": [
        _storage_class("ssd", parameters={"media": "ssd", FSTYPE: "ext4"}),
        _storage_class("hdd", parameters={"media": "hdd", FSTYPE: "ext4"}),
        _storage_class("thin-xfs", parameters={"media": "ssd", "allocation": "thin", FSTYPE: "xfs"}),
        _storage_class("directory", parameters={"backend": "directory", "pool": "hdd", FSTYPE: "btrfs"}),
        _storage_class("immediate", when="Immediate", parameters={"media": "ssd", "allocation": "thin"}),
        _storage_class("nvme", parameters={"media": "nvme", "allocation": "thin", FSTYPE: "xfs"}),
        _storage_class("thin-ext4", parameters={"media": "ssd", "allocation": "thin", FSTYPE: "ext4"}),
        _storage_class("encrypted", when="Immediate", parameters=ENCRYPTED),
        _storage_class("retain", reclaimPolicy="Retain", parameters={"media": "ssd", "allocation": "thin"}),
        _storage_class(
            "only-node-b",
            when="Immediate",
            parameters={"media": "ssd", "allocation": "thin"},
            allowedTopologies=[{"matchLabelExpressions": [{"key": TOPOLOGY_KEY, "values": ["node-b"]}]}],
        ),
    ],
}
"""Both disks of every node, and a class for each thing that a scenario is about."""


def build_image(archive: Path) -> None:
    """Build the image from the Dockerfile and save it. Needs the network, if only for the locked wheels."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OUTPUT": str(archive)}
    subprocess.run([ROOT / "scripts/image.sh"], check=True, env=environment, timeout=IMAGE_SECONDS)


def install(cluster: Cluster, **changed: Any) -> None:  # noqa: ANN401
    """Install the chart, or upgrade it to changed values, and return when every container is ready."""
    values = cluster.folder / "values.yaml"
    values.write_text(yaml.safe_dump({**VALUES, **changed}))
    where = ("--kubeconfig", cluster.kubeconfig, "--namespace", NAMESPACE)
    wait = ("--wait", "--timeout", f"{INSTALL_SECONDS}s")
    argv = (HELM, "upgrade", "--install", "csi-local", CHART, "--values", values)
    try:
        run(*argv, *where, "--create-namespace", *wait, seconds=INSTALL_SECONDS + 30.0)
    except AssertionError:
        collect(cluster)
        raise


def make_snapshot_classes(cluster: Cluster) -> None:
    """Make the snapshot classes that the examples show."""
    for manifest in yaml.safe_load_all(SNAPSHOT_CLASSES.read_text()):
        cluster.api.create(manifest)


def collect(cluster: Cluster) -> None:
    """Write what the driver's pods say, and what Kubernetes says of them, beside the other logs."""
    kubectl = (cluster.programs / "kubectl", "--kubeconfig", cluster.kubeconfig, "--namespace", NAMESPACE)
    pods = run(*kubectl, "get", "pods", "--output", "name").split()
    words = [("describe", "pods"), ("get", "events")]
    words += [("logs", pod, "--all-containers", "--prefix", *more) for pod in pods for more in ((), ("--previous",))]
    with (cluster.folder / "logs/csi-local.log").open("w", encoding="utf-8") as log:
        for one in words:
            done = subprocess.run([*kubectl, *one], capture_output=True, text=True, check=False, timeout=60)
            log.write(f"--- {' '.join(one)}\n{done.stdout}{done.stderr}\n")
