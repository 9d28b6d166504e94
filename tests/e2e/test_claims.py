"""Claims of every kind: what pods write is there when they come back, and nothing is left when they are deleted."""

from __future__ import annotations

import pytest

from tests.e2e import leaks
from tests.e2e.install import TOPOLOGY_KEY
from tests.e2e.workloads import Workloads, claim_manifest, ephemeral, pod_spec, resource_of, with_claim, with_volume

pytestmark = pytest.mark.e2e

WRITE, READ = "echo kept > /data/file; sync", "test $(cat /data/file) = kept"


@pytest.mark.parametrize("storage_class", ["ssd", "hdd", "thin-xfs", "directory"])
def test_a_pod_finds_what_another_wrote_to_the_claim_before_it(workloads: Workloads, storage_class: str) -> None:
    claim = workloads.claim(storage_class, "320Mi")
    writer = workloads.pod(with_claim(pod_spec(WRITE), claim))
    workloads.running(writer)
    node = workloads.node_of(writer)
    workloads.end(writer)
    reader = workloads.pod(with_claim(pod_spec(READ, once=True), claim))
    workloads.succeeded(reader)
    assert workloads.node_of(reader) == node, "a local volume holds its pods on its node"


def test_a_container_that_is_killed_finds_its_files_when_it_is_back(workloads: Workloads) -> None:
    script = "test -e /data/file && exit 0; echo kept > /data/file; exit 1"
    pod = workloads.pod(
        with_claim(pod_spec(script, once=True, restartPolicy="OnFailure"), workloads.claim("immediate"))
    )
    workloads.succeeded(pod)


@pytest.mark.parametrize("media", ["ssd", "hdd"])
def test_a_class_with_a_medium_takes_a_disk_of_that_kind(workloads: Workloads, media: str) -> None:
    pod = workloads.pod(with_claim(pod_spec(), claim := workloads.claim(media)))
    workloads.running(pod)
    volume = workloads.bound(claim)
    found = resource_of(workloads.cluster, "LocalVolume", volume["spec"]["csi"]["volumeHandle"])
    assert found
    assert found["status"]["pool"] == media


def test_a_raw_block_pod_has_a_device_of_the_size_asked_for(workloads: Workloads) -> None:
    claim = workloads.claim("ssd", "64Mi", block=True)
    script = (
        "test $(blockdev --getsize64 /dev/volume) = 67108864;"
        " echo kept | dd of=/dev/volume bs=4096 conv=sync 2>&1; sync"
    )
    writer = workloads.pod(with_claim(pod_spec(script), claim, block=True))
    workloads.running(writer)
    workloads.end(writer)
    reader = workloads.pod(with_claim(pod_spec("head -c 4 /dev/volume", once=True), claim, block=True))
    workloads.succeeded(reader)
    assert workloads.logs(reader) == "kept"


def test_read_write_once_pod_keeps_a_second_pod_waiting(workloads: Workloads) -> None:
    claim = workloads.claim("immediate", mode="ReadWriteOncePod")
    first = workloads.pod(with_claim(pod_spec(), claim))
    workloads.running(first)
    second = workloads.pod(with_claim(pod_spec(), claim))

    def refused(pod: dict[str, object] | None) -> bool:
        return "ReadWriteOncePod" in str((pod or {}).get("status"))

    workloads.cluster.api.wait("Pod", second, refused, what="the scheduler refuses a second pod")
    workloads.end(first)
    workloads.running(second)


def test_pods_of_one_node_share_a_claim(workloads: Workloads) -> None:
    claim = workloads.claim("ssd")
    pods = [workloads.pod(with_claim(pod_spec("echo $HOSTNAME >> /data/$HOSTNAME"), claim)) for _ in range(3)]
    found = workloads.running(*pods)
    assert len({pod["spec"]["nodeName"] for pod in found}) == 1
    assert sorted(workloads.run_in(pods[0], "ls /data | grep -v lost").split()) == sorted(pods)


def test_a_daemonset_shares_one_claim_on_its_node(workloads: Workloads) -> None:
    claim = workloads.claim("only-node-b")
    workloads.bound(claim)
    spec = with_claim(pod_spec("date > /data/$HOSTNAME", node="node-b"), claim)
    name = workloads.name("set")
    labels = {"app": name}
    workloads.create(
        {
            "kind": "DaemonSet",
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        }
    )
    beside = workloads.pod(with_claim(pod_spec(), claim))
    workloads.cluster.api.wait(
        "DaemonSet", name, lambda found: bool(found and found["status"].get("numberReady") == 1), what="it is ready"
    )
    workloads.running(beside)
    assert workloads.node_of(beside) == "node-b"
    assert f"{name}-" in workloads.run_in(beside, "ls /data")


def test_sub_paths_show_their_part_of_the_volume(workloads: Workloads) -> None:
    claim = workloads.claim("immediate")
    pod = workloads.pod(with_claim(pod_spec("echo part > /data/file"), claim, subPath="a/b"))
    workloads.running(pod)
    whole = workloads.pod(with_claim(pod_spec("cat /data/a/b/file", once=True), claim))
    workloads.succeeded(whole)
    assert workloads.logs(whole) == "part\n"


@pytest.mark.parametrize("storage_class", ["ssd", "directory"])
def test_the_group_of_a_pod_may_write(workloads: Workloads, storage_class: str) -> None:
    security = {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000}
    spec = pod_spec("echo mine > /data/file; stat -c %g /data/file", once=True, securityContext=security)
    pod = workloads.pod(with_claim(spec, workloads.claim(storage_class)))
    workloads.succeeded(pod)
    assert workloads.logs(pod) == "2000\n"


def test_a_file_with_another_group_is_given_to_the_next_pods(workloads: Workloads) -> None:
    claim = workloads.claim("thin-xfs", "320Mi")
    """As its fsGroupChangePolicy says: the kubelet looks at every file."""
    security = {"fsGroup": 2000, "fsGroupChangePolicy": "Always"}
    change = "touch /data/file; chgrp 3000 /data/file; sync"
    workloads.running(pod := workloads.pod(with_claim(pod_spec(change, securityContext=security), claim)))
    workloads.end(pod)
    reader = workloads.pod(with_claim(pod_spec("stat -c %g /data/file", once=True, securityContext=security), claim))
    workloads.succeeded(reader)
    assert workloads.logs(reader) == "2000\n"


def test_a_read_only_pod_cannot_write(workloads: Workloads) -> None:
    claim = workloads.claim("ssd")
    workloads.running(pod := workloads.pod(with_claim(pod_spec(WRITE), claim)))
    workloads.end(pod)
    reader = with_claim(pod_spec(f"{READ}; ! touch /data/no 2>/dev/null", once=True), claim, read_only=True)
    workloads.succeeded(workloads.pod(reader))


@pytest.mark.alone
def test_a_generic_ephemeral_volume_lives_as_long_as_its_pod(workloads: Workloads) -> None:
    pod = workloads.pod(with_volume(pod_spec(WRITE), ephemeral("ssd")))
    workloads.running(pod)
    assert workloads.run_in(pod, "cat /data/file") == "kept\n"
    workloads.end(pod)
    leaks.demand_none(workloads.cluster)


@pytest.mark.alone
def test_an_inline_volume_lives_as_long_as_its_pod(workloads: Workloads) -> None:
    source = {"csi": {"driver": "csi-local.io", "volumeAttributes": {"media": "ssd", "size": "64Mi"}}}
    pod = workloads.pod(with_volume(pod_spec(WRITE), source))
    workloads.running(pod)
    assert workloads.run_in(pod, "cat /data/file") == "kept\n"
    workloads.end(pod)
    leaks.demand_none(workloads.cluster)


@pytest.mark.parametrize("storage_class", ["thin-xfs", "directory"])
def test_editing_a_claim_grows_its_volume_under_a_running_pod(workloads: Workloads, storage_class: str) -> None:
    claim = workloads.claim(storage_class, "320Mi")
    workloads.running(pod := workloads.pod(with_claim(pod_spec(WRITE), claim)))
    workloads.cluster.api.patch(
        "PersistentVolumeClaim", claim, {"spec": {"resources": {"requests": {"storage": "640Mi"}}}}
    )
    workloads.cluster.api.wait(
        "PersistentVolumeClaim",
        claim,
        lambda found: bool(found and found["status"]["capacity"]["storage"] == "640Mi"),
        what=f"{claim} has grown",
    )
    if storage_class != "directory":
        kibibytes = int(workloads.run_in(pod, "df -Pk /data | tail -1").split()[1])
        assert kibibytes > 500 * 1024
    workloads.run_in(pod, f"{READ}; dd if=/dev/zero of=/data/more bs=1M count=400 2>/dev/null")


def test_a_retained_volume_is_there_after_its_claim_until_it_is_released(workloads: Workloads) -> None:
    api = workloads.cluster.api
    claim = workloads.claim("retain")
    workloads.running(pod := workloads.pod(with_claim(pod_spec(WRITE), claim)))
    volume = workloads.bound(claim)
    name = volume["metadata"]["name"]
    workloads.end(pod)
    workloads.drop(claim)
    api.wait("PersistentVolume", name, lambda found: bool(found and found["status"]["phase"] == "Released"))
    api.patch("PersistentVolume", name, {"spec": {"claimRef": None}})
    again = workloads.create(claim_manifest(workloads.name("again"), "retain", volume=name))
    workloads.succeeded(workloads.pod(with_claim(pod_spec(READ, once=True), again)))
    api.patch("PersistentVolume", name, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})


def test_an_immediate_claim_is_bound_without_a_pod(workloads: Workloads) -> None:
    volume = workloads.bound(workloads.claim("immediate"))
    terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert [e["key"] for term in terms for e in term["matchExpressions"]] == [TOPOLOGY_KEY]


def test_a_claim_that_waits_for_its_pod_goes_where_the_pod_goes(workloads: Workloads) -> None:
    for node in ("node-a", "node-b"):
        workloads.running(pod := workloads.pod(with_claim(pod_spec(node=node), workloads.claim("ssd"))))
        assert workloads.node_of(pod) == node


def test_allowed_topologies_choose_the_node(workloads: Workloads) -> None:
    claims = [workloads.claim("only-node-b") for _ in range(4)]
    for claim in claims:
        terms = workloads.bound(claim)["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
        assert [e["values"] for term in terms for e in term["matchExpressions"]] == [["node-b"]]
