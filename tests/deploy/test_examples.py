from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from csi_local.model.parameters import parse_parameters
from csi_local.rpc.identity import DRIVER_NAME
from tests.deploy.manifests import ROOT, Manifest, check, documents, of_kind

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = sorted((ROOT / "deploy/examples").glob("*.yaml"))
BASE = sorted((ROOT / "deploy/kustomize/base").glob("*.yaml"))


SECRETS = re.compile(r"csi[.]storage[.]k8s[.]io/.*secret-(name|namespace)")
"""What csi-provisioner keeps for itself."""


def read(paths: list[Path]) -> list[Manifest]:
    """Give all manifests of some files."""
    return [one for path in paths for one in documents(path.read_text())]


@pytest.mark.parametrize("paths", [EXAMPLES, [one for one in BASE if one.stem != "kustomization"]])
def test_kubernetes_takes_them_all_together(paths: list[Path]) -> None:
    assert paths
    check(read(paths))


def test_every_claim_is_of_a_class_that_there_is() -> None:
    manifests = read(EXAMPLES)
    classes = of_kind(manifests, "StorageClass")
    claims = [one["spec"] for one in of_kind(manifests, "PersistentVolumeClaim").values()]
    for pod in of_kind(manifests, "Pod").values():
        templates = [one["ephemeral"]["volumeClaimTemplate"] for one in pod["spec"]["volumes"] if "ephemeral" in one]
        claims += [one["spec"] for one in templates]
    assert len(claims) == 7
    assert {one["storageClassName"] for one in claims} <= {"", *classes}


def test_the_driver_knows_every_parameter() -> None:
    for one in of_kind(read(EXAMPLES), "StorageClass").values():
        assert one["provisioner"] == DRIVER_NAME
        given = one.get("parameters", {}).items()
        parse_parameters({name: value for name, value in given if not SECRETS.fullmatch(name)})


def test_every_snapshot_is_of_a_class_and_a_claim_that_there_are() -> None:
    manifests = read(EXAMPLES)
    classes = [of_kind(manifests, f"Volume{group}SnapshotClass") for group in ("", "Group")]
    assert {one["driver"] for found in classes for one in found.values()} == {DRIVER_NAME}
    snapshots = of_kind(manifests, "VolumeSnapshot")
    claims = of_kind(manifests, "PersistentVolumeClaim")
    assert snapshots
    for one in snapshots.values():
        assert one["spec"]["volumeSnapshotClassName"] in classes[0]
        assert one["spec"]["source"]["persistentVolumeClaimName"] in claims
    groups = of_kind(manifests, "VolumeGroupSnapshot").values()
    assert {one["spec"]["volumeGroupSnapshotClassName"] for one in groups} == set(classes[1])
    sources = [claim["spec"]["dataSource"] for claim in claims.values() if "dataSource" in claim["spec"]]
    assert [source["name"] in of_kind(manifests, source["kind"]) for source in sources] == [True, True]
