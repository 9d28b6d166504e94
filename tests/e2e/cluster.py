"""A cluster on this machine: what is in its folder, how it starts and what it leaves.

Runs inside the namespaces that `sandbox` makes, so that what is started or mounted here cannot outlive them.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.e2e import control_plane, disks
from tests.e2e.api import Api
from tests.e2e.node import BRIDGE, POD_NET, Node
from tests.e2e.processes import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.e2e.control_plane import ControlPlane

READY_SECONDS = 90.0
SNAPSHOT_CRDS = "snapshot-crds"
"""The folder in a cluster's with the custom resources of snapshots."""
DISKS = (("ssd", 6 * disks.GIB, "xfs"), ("hdd", 3 * disks.GIB, "btrfs"))
"""Name, size and filesystem of the disks that each node has at /mnt/NAME."""
ONE_MORE = ("nvme", 6 * disks.GIB, "xfs")
"""What only the first node has."""


class Cluster:
    """A control plane and its nodes."""

    def __init__(self, folder: Path, programs: Path, images: Sequence[Path], count: int = 2) -> None:
        self.folder, self.programs = folder, programs
        self.logs = folder / "logs"
        self.logs.mkdir(exist_ok=True)
        names = [f"node-{letter}" for letter in "abcd"[:count]]
        self.keys = keys = folder / "keys"
        self.control_plane: ControlPlane = control_plane.make(keys, programs, self.logs, names)
        self.api = Api(keys)
        self.kubeconfig = keys / "admin.kubeconfig"
        self.nodes = [
            Node(
                name=name,
                index=number,
                folder=folder / name,
                keys=keys,
                programs=programs,
                logs=self.logs,
                images=images,
                disks=tuple(
                    disks.make(folder / name / f"{disk}.img", Path("/mnt") / disk, size, filesystem)
                    for disk, size, filesystem in (*DISKS, ONE_MORE)[: len(DISKS) + (number == 1)]
                ),
            )
            for number, name in enumerate(names, start=1)
        ]

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def start(self) -> None:
        """Start everything, and return when all nodes are ready."""
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{control_plane.ADDRESS}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for node in self.nodes:
            run("ip", "route", "add", f"{POD_NET}.{node.index}.0/24", "via", node.address)
        self.control_plane.start()
        self._make_snapshots_known()
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            self.wait_ready(node)

    def _make_snapshots_known(self) -> None:
        """Make the custom resources of external-snapshotter, as far as they lie in the cluster's folder."""
        for path in sorted((self.folder / SNAPSHOT_CRDS).glob("*_*.yaml")):
            for manifest in yaml.safe_load_all(path.read_text()):
                self.api.create(manifest)

    def wait_ready(self, node: Node) -> None:
        """Wait until the API says that a node is ready, and there are no taints left from its start."""

        def ready(found: dict[str, object] | None) -> bool:
            node.kubelet.check()
            return found is not None and _is_ready(found)

        self.api.wait("Node", node.name, ready, seconds=READY_SECONDS, what=f"{node.name} ready")

    def stop(self) -> None:
        """Stop everything; the disks' loop devices are left to whoever made the sandbox."""
        for node in self.nodes:
            node.stop()
        self.control_plane.stop()


def _is_ready(node: dict[str, object]) -> bool:
    spec, status = node["spec"], node["status"]
    assert isinstance(spec, dict)
    assert isinstance(status, dict)
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    return ready and not spec.get("taints")


@contextmanager
def running(folder: Path, programs: Path, images: Sequence[Path], count: int = 2) -> Iterator[Cluster]:
    """Give a started cluster."""
    cluster = Cluster(folder, programs, images, count)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
