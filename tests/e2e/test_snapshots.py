"""Snapshots as users take them: what was there then is in the new claim, also under load, and across two volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.processes import eventually
from tests.e2e.workloads import claim_manifest, events_about, pod_spec, resource_of, with_claim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.api import Object
    from tests.e2e.node import Node
    from tests.e2e.workloads import Workloads

pytestmark = pytest.mark.e2e

CLASS = "local"
RESTORED = "immediate"
"""A StorageClass that says nothing of a filesystem, so that a copy has its source's."""
ROUNDS = 3
UNSTAGE_SECONDS = 60.0

DATABASE = """
n=0
while :; do
  n=$((n + 1)); record="$n $(head -c 600 /dev/urandom | base64 | tr -d '\\n')"
  echo "$record $(echo "$record" | md5sum | cut -c 1-32)" | dd of=/data/journal oflag=append conv=notrunc,fsync
  echo $n | dd of=/data/new conv=fsync; mv /data/new /data/committed
done 2>/dev/null & :"""
"""Records in order, each with its checksum and synced before the next; then how many there are, by a rename."""
CONSISTENT = """
last=0
while read -r n body sum; do
  test $n = $((last + 1)); last=$n
  test $(echo "$n $body" | md5sum | cut -c 1-32) = $sum
done < /data/journal
test $last -ge $(cat /data/committed); echo $last
"""
IN_ORDER = """
n=0
while :; do n=$((n + 1)); for at in data log; do
  echo $n | dd of=/$at/records oflag=append conv=notrunc,fsync
done; done 2>/dev/null & :"""
"""Each record goes to the first volume, and when it is safe there to the second."""
CHECKS = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n", "-f")}


def snapshot(workloads: Workloads, claim: str) -> str:
    """Take a snapshot of a claim, and return its name when it is ready."""
    name = workloads.name("snapshot")
    spec = {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": claim}}
    workloads.create({"kind": "VolumeSnapshot", "metadata": {"name": name}, "spec": spec})
    workloads.cluster.api.wait("VolumeSnapshot", name, ready, what=f"{name} is ready")
    return name


def ready(found: Object | None) -> bool:
    return bool(found and found.get("status", {}).get("readyToUse"))


def node_of(workloads: Workloads, taken: str) -> str:
    """Return the node that a snapshot is on."""
    api = workloads.cluster.api
    snapshot = api.get("VolumeSnapshot", taken)
    assert snapshot is not None
    content = api.get("VolumeSnapshotContent", snapshot["status"]["boundVolumeSnapshotContentName"])
    assert content is not None
    found = resource_of(workloads.cluster, "LocalSnapshot", content["status"]["snapshotHandle"])
    assert found is not None
    return str(found["spec"]["nodeName"])


def restored(workloads: Workloads, source: str, size: str, kind: str = "VolumeSnapshot", *, block: bool = False) -> str:
    """Make a claim that begins as a snapshot, or as another claim."""
    group = {"apiGroup": "snapshot.storage.k8s.io"} if kind == "VolumeSnapshot" else {}
    begins = {"kind": kind, "name": source, **group}
    return workloads.create(claim_manifest(workloads.name("restored"), RESTORED, size, source=begins, block=block))


def read(workloads: Workloads, claim: str, script: str, *, log: str = "") -> str:
    """Run a script in a pod that has a claim at /data, and a second one at /log; return what it printed."""
    spec = with_claim(pod_spec(script, once=True), claim)
    pod = workloads.pod(with_claim(spec, log, mountPath="/log") if log else spec)
    workloads.succeeded(pod)
    found = workloads.logs(pod)
    workloads.end(pod)
    return found


@pytest.mark.parametrize("storage_class", ["ssd", "directory"])
def test_a_new_claim_has_what_was_there_when_the_snapshot_was_taken(workloads: Workloads, storage_class: str) -> None:
    claim = workloads.claim(storage_class, "320Mi")
    workloads.running(pod := workloads.pod(with_claim(pod_spec("echo then > /data/file; sync"), claim)))
    taken = snapshot(workloads, claim)
    workloads.run_in(pod, "echo now > /data/file; sync")
    workloads.end(pod)
    workloads.drop(claim)
    begins = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": taken}
    again = workloads.create(claim_manifest(workloads.name("again"), storage_class, "640Mi", source=begins))
    node = node_of(workloads, taken)
    script = "cat /data/file; df -Pk /data | tail -1 | awk '{ print ($2 > 500 * 1024) }'"
    reader = workloads.pod(with_claim(pod_spec(script, once=True, node=node), again))
    workloads.succeeded(reader)
    assert workloads.logs(reader).split() == ["then", "1"]


def test_a_pod_that_waits_elsewhere_follows_its_copy(workloads: Workloads) -> None:
    """The scheduler knows nothing of snapshots, and would choose the same node again and again."""
    claim = workloads.claim("ssd")
    workloads.running(pod := workloads.pod(with_claim(pod_spec("echo then > /data/file; sync"), claim)))
    taken = snapshot(workloads, claim)
    here, begins = workloads.node_of(pod), {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot"}
    again = workloads.create(claim_manifest(workloads.name("again"), "ssd", source={**begins, "name": taken}))
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [here]}]}
    wish = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": term}]}
    reader = workloads.pod(with_claim(pod_spec("cat /data/file", once=True, affinity={"nodeAffinity": wish}), again))
    workloads.succeeded(reader)
    assert (workloads.logs(reader), workloads.node_of(reader)) == ("then\n", here)
    assert any("affinity" in message for message in events_about(workloads.cluster, reader))


def test_many_pods_read_one_copy(workloads: Workloads) -> None:
    claim = workloads.claim("thin-xfs", "320Mi")
    workloads.running(pod := workloads.pod(with_claim(pod_spec("echo then > /data/file; sync"), claim)))
    begins = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot(workloads, claim)}
    manifest = claim_manifest(workloads.name("shared"), RESTORED, "320Mi", mode="ReadOnlyMany", source=begins)
    shared = workloads.create(manifest)
    readers = [workloads.pod(with_claim(pod_spec(), shared)) for _ in range(2)]
    workloads.running(*readers)
    for reader in readers:
        said = workloads.run_in(reader, "cat /data/file; (echo now > /data/file) 2>&1 || true")
        assert said.startswith("then")
        assert "Read-only file system" in said
    workloads.end(pod)


def test_a_raw_block_claim_comes_back_with_its_bytes(workloads: Workloads) -> None:
    claim = workloads.claim("ssd", block=True)
    script = "echo then | dd of=/dev/volume bs=4096 conv=sync,fsync 2>/dev/null"
    workloads.running(pod := workloads.pod(with_claim(pod_spec(script), claim, block=True)))
    taken = snapshot(workloads, claim)
    workloads.run_in(pod, "echo now | dd of=/dev/volume bs=4096 conv=sync,fsync 2>/dev/null")
    again = restored(workloads, taken, "64Mi", block=True)
    reader = workloads.pod(with_claim(pod_spec("head -c 4 /dev/volume", once=True), again, block=True))
    workloads.succeeded(reader)
    assert workloads.logs(reader) == "then"


def test_a_clone_and_its_source_go_their_ways(workloads: Workloads) -> None:
    claim = workloads.claim("thin-xfs", "320Mi")
    workloads.running(pod := workloads.pod(with_claim(pod_spec("echo then > /data/file; sync"), claim)))
    clone = restored(workloads, claim, "320Mi", "PersistentVolumeClaim")
    workloads.bound(clone)
    workloads.run_in(pod, "echo now > /data/file; sync")
    assert read(workloads, clone, "cat /data/file; echo other > /data/file") == "then\n"
    assert workloads.run_in(pod, "cat /data/file") == "now\n"


@pytest.mark.parametrize(("filesystem", "size"), [("ext4", "128Mi"), ("xfs", "320Mi")])
def test_each_snapshot_under_load_is_a_database_that_needs_no_repair(
    workloads: Workloads, filesystem: str, size: str
) -> None:
    claim = workloads.claim(f"thin-{filesystem}", size)
    workloads.running(pod := workloads.pod(with_claim(pod_spec(DATABASE), claim)))

    def committed() -> int:
        return int(workloads.run_in(pod, "until cat /data/committed 2>/dev/null; do :; done"))

    committed()
    taken: list[tuple[int, str, int]] = []
    for _ in range(ROUNDS):
        before = committed()
        taken.append((before, snapshot(workloads, claim), committed()))
    workloads.end(pod)
    claims = [restored(workloads, name, size) for _, name, _ in taken]
    for (before, _, after), again in zip(taken, claims, strict=True):
        assert before <= int(read(workloads, again, CONSISTENT)) <= after + 1
        node, image = image_of(workloads, again)
        unstaged(node, image)
        node.run(*CHECKS[filesystem], image)
    assert taken[0][0] < taken[-1][0], "the database did not get on between the snapshots"


def image_of(workloads: Workloads, claim: str) -> tuple[Node, str]:
    """The node of a claim's volume, and its image there."""
    name = workloads.bound(claim)["spec"]["csi"]["volumeHandle"]
    found = workloads.cluster.api.get("LocalVolume", name)
    assert found is not None
    node = workloads.cluster.node(found["spec"]["nodeName"])
    return node, f"/mnt/{found['status']['pool']}/volumes/{name}/disk.img"


def unstaged(node: Node, image: str) -> None:
    """Wait until the kubelet has let go of a volume, which it does after its pod has left the API."""
    folder = Path(image).parent.name

    def gone() -> bool:
        return not any(folder in file for file in node.loop_devices().values())

    eventually(f"{image} is unstaged", UNSTAGE_SECONDS, gone)


def test_a_group_is_of_one_moment(workloads: Workloads) -> None:
    labels = {"app": workloads.name("database")}
    claims = [
        workloads.create(claim_manifest(workloads.name(word), "only-node-b", labels=labels)) for word in ("data", "log")
    ]
    spec = with_claim(with_claim(pod_spec(IN_ORDER), claims[0]), claims[1], mountPath="/log")
    workloads.running(pod := workloads.pod(spec))
    workloads.run_in(pod, "until test -e /log/records; do :; done")
    groups = [group(workloads, labels, claims) for _ in range(ROUNDS)]
    workloads.end(pod)
    seen = set()
    for members in groups:
        data, log = (restored(workloads, member, "64Mi") for member in members)
        script = "tail -n 1 /data/records; tail -n 1 /log/records"
        ahead, behind = map(int, read(workloads, data, script, log=log).split())
        assert behind <= ahead <= behind + 1
        seen.add(ahead)
    assert len(seen) == ROUNDS, "the pod did not get on between the groups"


def group(workloads: Workloads, labels: dict[str, str], claims: Sequence[str]) -> list[str]:
    """Take a group of the claims with these labels; return the snapshots of *claims*."""
    api, name = workloads.cluster.api, workloads.name("group")
    spec = {"volumeGroupSnapshotClassName": CLASS, "source": {"selector": {"matchLabels": labels}}}
    workloads.create({"kind": "VolumeGroupSnapshot", "metadata": {"name": name}, "spec": spec})
    api.wait("VolumeGroupSnapshot", name, ready, what=f"{name} is ready")
    members = {
        one["spec"]["source"]["persistentVolumeClaimName"]: one["metadata"]["name"]
        for one in api.list("VolumeSnapshot", "default")
        if name in [owner["name"] for owner in one["metadata"].get("ownerReferences", ())]
    }
    for member in members.values():
        api.wait("VolumeSnapshot", member, ready, what=f"{member} is ready")
    return [members[claim] for claim in claims]
