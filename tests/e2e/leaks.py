"""What is left of volumes anywhere in a cluster: objects, and on the nodes files, loop devices and mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster import Cluster
    from tests.e2e.node import Node

SECONDS = 60.0
KINDS = (
    "LocalVolume",
    "LocalSnapshot",
    "LocalGroupSnapshot",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "VolumeSnapshotContent",
    "VolumeGroupSnapshotContent",
)
PLUGIN_MOUNTS = "/plugins/kubernetes.io/csi/csi-local.io/"
POD_MOUNTS = "/volumes/kubernetes.io~csi/"


def left(cluster: Cluster) -> list[str]:
    """Name everything that exists only because of a volume."""
    objects = (f"{kind} {item['metadata']['name']}" for kind in KINDS for item in cluster.api.list(kind))
    return [*objects, *(thing for node in cluster.nodes for thing in on_node(node))]


def on_node(node: Node) -> Iterator[str]:
    """Name what the kernel and the disks of a node still hold of volumes."""
    mounts = node.path("/proc/1/mountinfo").read_text().splitlines()
    for fields in map(str.split, mounts):
        if PLUGIN_MOUNTS in fields[4] or POD_MOUNTS in fields[4]:
            yield f"{node.name}: mount {fields[4]}"
    for device, file in node.loop_devices().items():
        yield f"{node.name}: {device} on {file}"
    yield from files(node)


def files(node: Node) -> Iterator[str]:
    """Name what is in the pools of a node, deleted or not."""
    for disk in node.disks:
        pool = node.path(disk.target)
        assert (pool / "pool.json").exists(), f"{pool} is no pool"
        for pattern in ("volumes/*", "snapshots/*", "groups/*", ".new-*", ".trash-*"):
            yield from (f"{node.name}: {path.relative_to(node.path('/'))}" for path in pool.glob(pattern))


def demand_none(cluster: Cluster) -> None:
    """Fail, and name it, if something is left; what is under way has a while to end."""
    last: list[str] = []

    def nothing() -> bool:
        last[:] = left(cluster)
        return not last

    try:
        eventually("nothing is left", SECONDS, nothing)
    except AssertionError as error:
        shown = "\n".join(last[:20])
        raise AssertionError(f"{len(last)} things are left behind:\n{shown}") from error
