"""Manifests: what the chart makes of values, and whether Kubernetes would take it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/chart/csi-local"
HELM = ROOT / ".tools/bin/helm"
KUBERNETES = "1.37.0"
Manifest = dict[str, Any]

_NOT_KUBERNETES = (
    "kustomize.config.k8s.io/",
    "monitoring.coreos.com/",
    "snapshot.storage.k8s.io/",
    "groupsnapshot.storage.k8s.io/",
)
"""API groups whose schemas are elsewhere."""


def helm(*arguments: str | Path, kubernetes: str = KUBERNETES) -> subprocess.CompletedProcess[str]:
    """Run ``helm template`` on the chart and see how it ends."""
    if not HELM.exists():
        pytest.fail(f"{HELM.relative_to(ROOT)} is missing; run: make tools", pytrace=False)
    argv = [HELM, "template", "csi-local", CHART, "--namespace", "csi-local", "--kube-version", kubernetes, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def rendered(*arguments: str | Path, kubernetes: str = KUBERNETES) -> list[Manifest]:
    """Give what the chart makes of these arguments."""
    done = helm(*arguments, kubernetes=kubernetes)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def documents(text: str) -> list[Manifest]:
    """Give the documents of a YAML file that are not empty."""
    return [document for document in yaml.safe_load_all(text) if document]


def check(manifests: Sequence[Manifest]) -> None:
    """Hold each to the schema of its kind; fields that do not exist are errors. No two are the same object."""
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in manifests]
    assert len(set(names)) == len(names), names
    for one in manifests:
        if not one["apiVersion"].startswith(_NOT_KUBERNETES):
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def of_kind(manifests: Sequence[Manifest], kind: str) -> dict[str, Manifest]:
    """Give those of a kind, by name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Give the name of each workload and the specification of its pods."""
    for one in manifests:
        if one["kind"] in ("Deployment", "DaemonSet"):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def container(pod: Manifest, name: str = "csi-local") -> Manifest:
    """Give a pod's container by its name."""
    found: Manifest = next(one for one in pod["containers"] if one["name"] == name)
    return found
