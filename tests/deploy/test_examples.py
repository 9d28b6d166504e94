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
    assert len(claims) == 5
    assert {one["storageClassName"] for one in claims} <= {"", *classes}


def test_the_driver_knows_every_parameter() -> None:
    for one in of_kind(read(EXAMPLES), "StorageClass").values():
        assert one["provisioner"] == DRIVER_NAME
        parse_parameters({name: value for name, value in one["parameters"].items() if not SECRETS.fullmatch(name)})
