"""What the driver's pods say of themselves: health, metrics, registration, and mounts that the node sees."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.e2e.install import NAMESPACE
from tests.e2e.node import KUBELET_DIR
from tests.e2e.own_pods import driver_pods, ready_pods
from tests.e2e.workloads import pod_spec, with_claim

if TYPE_CHECKING:
    from tests.e2e.api import Object
    from tests.e2e.cluster import Cluster
    from tests.e2e.workloads import Workloads

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

PORT = 9808


def read(pod: Object, path: str) -> str:
    """Return what a pod answers there."""
    try:
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:{PORT}{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        pytest.fail(f"{pod['metadata']['name']} answers {path} with {error.code}: {error.read().decode()}")


def test_every_pod_of_the_driver_is_alive_and_ready(cluster: Cluster) -> None:
    for pod in ready_pods(cluster):
        read(pod, "/healthz")
        read(pod, "/readyz")


def test_metrics_are_what_prometheus_reads(cluster: Cluster) -> None:
    for pod in ready_pods(cluster):
        text = read(pod, "/metrics")
        lint = subprocess.run(
            ["promtool", "check", "metrics"],  # noqa: S607
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )
        assert lint.returncode == 0, lint.stdout + lint.stderr
    for pod in driver_pods(cluster, "node"):
        assert "csi_local_pool_info" in read(pod, "/metrics")


def test_no_container_of_the_driver_has_ever_been_restarted_by_its_probes(cluster: Cluster) -> None:
    reasons = [e["message"] for e in cluster.api.list("Event", NAMESPACE) if e["reason"] == "Unhealthy"]
    assert not [reason for reason in reasons if reason.startswith("Liveness")]


def test_what_is_mounted_in_the_drivers_container_is_seen_by_the_node(workloads: Workloads) -> None:
    pod = workloads.pod(with_claim(pod_spec(), workloads.claim("ssd")))
    (found,) = workloads.running(pod)
    node = workloads.cluster.node(found["spec"]["nodeName"])
    mounts = node.path("/proc/1/mountinfo").read_text()
    assert f"{KUBELET_DIR}/pods/{found['metadata']['uid']}/volumes/kubernetes.io~csi/" in mounts


def test_custom_resources_say_in_columns_what_people_ask(workloads: Workloads) -> None:
    workloads.bound(workloads.claim("immediate"))
    kubectl = workloads.cluster.programs / "kubectl"
    config = f"--kubeconfig={workloads.cluster.kubeconfig}"
    for resource, columns in (("localvolumes", ("NODE", "POOL", "PHASE")), ("localpools", ("NODE",))):
        done = subprocess.run([kubectl, config, "get", resource], capture_output=True, text=True, check=True)
        head, *rows = done.stdout.splitlines()
        assert rows
        assert all(column in head.split() for column in columns), head
