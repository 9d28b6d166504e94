"""Encrypted claims, where the nodes' kernel has dm-crypt; where it has not, what users are told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.processes import eventually
from tests.e2e.test_nodes import ROOM_SECONDS, room
from tests.e2e.workloads import Workloads, pod_spec, wait_for_event, with_claim

if TYPE_CHECKING:
    from tests.e2e.api import Object

pytestmark = pytest.mark.e2e

CLASS, SECRET = "encrypted", "volume-key"
NODES = ("node-a", "node-b")
WRITE, READ = "echo kept > /data/file; sync", "test $(cat /data/file) = kept"
ANNOTATION = "csi-local.io/rotate-key"


def can_encrypt(workloads: Workloads) -> bool:
    """Whether the nodes say that they can, and mean the same kernel."""
    said = {pool["status"]["abilities"]["encryption"] for pool in workloads.cluster.api.list("LocalPool")}
    assert len(said) == 1, "they have one kernel, and do not agree about it"
    return bool(said.pop())


def volume_of(workloads: Workloads, claim: str) -> Object | None:
    """Return the LocalVolume of a claim."""
    listed = workloads.cluster.api.list("LocalVolume")
    return next((one for one in listed if one["spec"].get("claim", {}).get("name") == claim), None)


def rotate(workloads: Workloads, claim: str, request: str) -> None:
    """Ask for another key."""
    change = {"metadata": {"annotations": {ANNOTATION: request}}}
    workloads.cluster.api.patch("PersistentVolumeClaim", claim, change)


def test_what_is_written_is_there_under_another_key_or_nobody_is_promised_anything(workloads: Workloads) -> None:
    if can_encrypt(workloads):
        _kept(workloads)
    else:
        _refused(workloads)


def _kept(workloads: Workloads) -> None:
    cluster = workloads.cluster
    eventually("nodes offer room", ROOM_SECONDS, lambda: all(room(workloads, CLASS, node) > 0 for node in NODES))
    workloads.create({"kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"encryptionKey": "first"}})
    claim = workloads.claim(CLASS)
    workloads.running(pod := workloads.pod(with_claim(pod_spec(WRITE), claim)))
    keys = {"encryptionKey": "second", "previousEncryptionKey": "first"}
    cluster.api.patch("Secret", SECRET, {"stringData": keys})
    rotate(workloads, claim, "1")
    wait_for_event(cluster, claim, "is opened by its new key alone")
    cluster.api.patch("Secret", SECRET, {"data": {"previousEncryptionKey": None}})
    workloads.end(pod)
    workloads.succeeded(workloads.pod(with_claim(pod_spec(READ, once=True), claim)))


def _refused(workloads: Workloads) -> None:
    eventually("nodes offer none", ROOM_SECONDS, lambda: all(room(workloads, CLASS, node) == 0 for node in NODES))
    claim = workloads.claim(CLASS)
    assert "the kernel has no dm-crypt" in wait_for_event(workloads.cluster, claim, "cannot encrypt")
    workloads.drop(claim)
    eventually("nothing is left of it", ROOM_SECONDS, lambda: volume_of(workloads, claim) is None)


def test_another_key_for_a_volume_that_has_none(workloads: Workloads) -> None:
    """All that is between the annotation and the node, whatever its kernel can do."""
    claim = workloads.claim("immediate")
    workloads.bound(claim)
    rotate(workloads, claim, "2026-11-26")
    wait_for_event(workloads.cluster, claim, "is not encrypted")
    found = volume_of(workloads, claim)
    assert found is not None
    told = found["status"]["keyRotation"]
    assert (told["request"], told["error"]["code"]) == ("2026-11-26", "FAILED_PRECONDITION")
    assert found["status"]["phase"] == "Ready"
    assert "error" not in found["status"]
