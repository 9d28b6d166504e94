"""The page for Prometheus."""

from __future__ import annotations

import logging
import subprocess
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from csi_local.engine.survey import Survey
from csi_local.model.parameters import parse_parameters
from csi_local.plan.request import VolumeRequest
from csi_local.rpc.metrics import Metrics
from tests.unit.rig import PATIENCE_S, Rig, request

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
CLAIM = {
    "csi.storage.k8s.io/pvc/namespace": "shop",
    "csi.storage.k8s.io/pvc/name": "db",
    "csi.storage.k8s.io/pv/name": "pvc-1",
}


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.start()
    return made


@pytest.fixture
def survey(rig: Rig) -> Survey:
    return Survey(rig.volumes, rig.pools)


@pytest.fixture
def metrics(rig: Rig, survey: Survey) -> Metrics:
    made = Metrics()
    made.pools(rig.pools.views)
    made.volumes(lambda: survey.found)
    return made


def samples(metrics: Metrics) -> Mapping[str, float]:
    """Read the page: each sample's value, under its name and labels as the page has them."""
    found = {}
    for family in text_string_to_metric_families(metrics.page().content.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if value)
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_calls_and_operations(metrics: Metrics) -> None:
    for code, seconds in (("OK", 0.002), ("OK", 0.2), ("ABORTED", 3.0)):
        metrics.rpc("NodeStageVolume", code, seconds)
    metrics.operation("create", "OK", 0.02)
    found = samples(metrics)
    assert found["csi_local_rpc_duration_seconds_count{code=OK,method=NodeStageVolume}"] == 2
    assert found["csi_local_rpc_duration_seconds_sum{code=ABORTED,method=NodeStageVolume}"] == 3
    assert found["csi_local_operation_duration_seconds_count{operation=create,result=OK}"] == 1


def test_the_log_is_counted(metrics: Metrics) -> None:
    log = logging.Logger("test")  # noqa: LOG001 (one that nobody else has)
    log.addHandler(metrics.log_handler())
    for say in (log.info, log.warning, log.error, log.critical):
        say("x")
    found = samples(metrics)
    assert found["csi_local_log_messages_total{level=warning}"] == 1
    assert found["csi_local_log_messages_total{level=error}"] == 2


def test_a_pool(metrics: Metrics, rig: Rig) -> None:
    rig.volumes.create(request("a", 8 * MIB, {"pool": "loops"}), PATIENCE_S)
    found, (view,) = samples(metrics), [view for view in rig.pools.views() if view.name == "loops"]
    assert found["csi_local_pool_ready{pool=loops}"] == 1
    assert found["csi_local_pool_size_bytes{pool=loops}"] == view.total
    assert found["csi_local_pool_room_bytes{pool=loops}"] == view.room
    assert found["csi_local_pool_promised_bytes{pool=loops}"] == 16 * MIB  # the smallest ext4
    assert found["csi_local_pool_volumes{pool=loops}"] == 1
    (info,) = [name for name in found if name.startswith("csi_local_pool_info{") and "pool=loops" in name]
    for label in ("filesystem=xfs", "kind=image", "media=", "quota=", "reflink=yes", "discard="):
        assert label in info


def test_a_missing_pool_has_no_size(metrics: Metrics, rig: Rig) -> None:
    rig.host.unmount(rig.pools.get("loops").root)
    found = samples(metrics)
    assert found["csi_local_pool_ready{pool=loops}"] == 0
    assert "csi_local_pool_size_bytes{pool=loops}" not in found


def test_a_volume_is_its_claim_s(metrics: Metrics, rig: Rig, survey: Survey) -> None:
    wanted = VolumeRequest(
        name="pvc-1",
        capacity=request("", 32 * MIB, {}).capacity,
        capabilities=request("", 0, {}).capabilities,
        parameters=parse_parameters({"pool": "loops", **CLAIM}),
    )
    rig.volumes.create(wanted, PATIENCE_S)
    survey.look()
    labels = "{namespace=shop,persistentvolume=pvc-1,persistentvolumeclaim=db,pool=loops,volume=pvc-1}"
    found = samples(metrics)
    assert found[f"csi_local_volume_size_bytes{labels}"] == 32 * MIB
    assert found[f"csi_local_volume_used_bytes{labels}"] == 32 * MIB
    assert found[f"csi_local_volume_healthy{labels}"] == 1
    rig.host.remove_tree(rig.pool_of("pvc-1").layout.image(survey.found[0].view.id))
    survey.look()
    assert samples(metrics)[f"csi_local_volume_healthy{labels}"] == 0


def test_prometheus_finds_nothing_to_complain_about(metrics: Metrics, rig: Rig, survey: Survey) -> None:
    rig.volumes.create(request("a", 8 * MIB, {}), PATIENCE_S)
    survey.look()
    metrics.rpc("NodeStageVolume", "OK", 0.1)
    metrics.operation("create", "OK", 0.1)
    ran = subprocess.run(
        ["promtool", "check", "metrics"],  # noqa: S607 (make setup brings it)
        input=metrics.page().content,
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, b"")
