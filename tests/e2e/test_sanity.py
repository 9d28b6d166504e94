"""csi-sanity, the conformance suite, against the sockets of the controller's and a node's pod."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e import leaks
from tests.e2e.node import KUBELET_DIR
from tests.e2e.own_pods import driver_pods, ready_pods
from tests.sanity.run import CLUSTER_SKIPS, CSI_SANITY, EXPANDED_SIZE, ONE_THREAD, VOLUME_SIZE, judge

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.cluster import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

NODE = "node-a"
"""The only one with a disk of the kind that the volumes are made on, so that they are where they are staged."""
KINDS = {
    "xfs": ({"media": "nvme", "allocation": "thin", "csi.storage.k8s.io/fstype": "xfs"}, "mount"),
    "block": ({"media": "nvme", "allocation": "thin"}, "block"),
}
SANITY_SECONDS = 240.0


@pytest.mark.parametrize("kind", KINDS)
def test_csi_sanity_finds_nothing_to_complain_of(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    parameters, access = KINDS[kind]
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump(parameters))
    node = cluster.node(NODE)
    ready_pods(cluster)  # a test before may have ended a node's
    pods = driver_pods(cluster, "controller")
    uid = next(pod["metadata"]["uid"] for pod in pods if pod["spec"]["nodeName"] == NODE)
    report = tmp_path / "report.xml"
    argv = [
        *("env", *(f"{name}={value}" for name, value in ONE_THREAD.items()), str(CSI_SANITY)),
        f"--csi.endpoint=unix://{KUBELET_DIR}/plugins/csi-local.io/csi.sock",
        f"--csi.controllerendpoint=unix://{KUBELET_DIR}/pods/{uid}/volumes/kubernetes.io~empty-dir/socket/csi.sock",
        f"--csi.mountdir={KUBELET_DIR}/sanity/mount",
        f"--csi.stagingdir={KUBELET_DIR}/sanity/staging",
        f"--csi.testvolumeparameters={tmp_path}/parameters.yaml",
        f"--csi.testvolumeaccesstype={access}",
        f"--csi.testvolumesize={VOLUME_SIZE}",
        f"--csi.testvolumeexpandsize={EXPANDED_SIZE}",
        f"--ginkgo.junit-report={report}",
        "--ginkgo.no-color",
    ]
    node.run("mkdir", "-p", KUBELET_DIR / "sanity")
    with suppress(AssertionError):  # the report says it better
        node.run(*argv, seconds=SANITY_SECONDS)
    _, complaints = judge(report, CLUSTER_SKIPS)
    assert not complaints, "\n".join(complaints)
    leaks.demand_none(cluster)
