"""What all custom resources have in common: names, labels, answers and conditions. Pure; the schemas are the chart's.

The controller writes what is wanted (``spec``); the node answers (``status``) once for each generation of that.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from csi_local.kube.api import Object
from csi_local.model import errors

GROUP, VERSION = "csi-local.io", "v1alpha1"
_BASE = f"/apis/{GROUP}/{VERSION}"
VOLUMES, POOLS, SNAPSHOTS = f"{_BASE}/localvolumes", f"{_BASE}/localpools", f"{_BASE}/localsnapshots"
NODES = "/api/v1/nodes"
NODE_LABEL = f"{GROUP}/node"
FINALIZER = f"{GROUP}/data"
"""Stays on a LocalVolume while its node may have its data."""

PRESENT, ABSENT = "Present", "Absent"

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DIGEST = re.compile(r"id-[0-9a-f]{40}")
_MAX_MESSAGE = 2000

_CODES: dict[type[errors.DriverError], str] = {
    errors.InvalidArgument: "INVALID_ARGUMENT",
    errors.NotFound: "NOT_FOUND",
    errors.AlreadyExists: "ALREADY_EXISTS",
    errors.OutOfRange: "OUT_OF_RANGE",
    errors.ResourceExhausted: "RESOURCE_EXHAUSTED",
    errors.FailedPrecondition: "FAILED_PRECONDITION",
    errors.Busy: "ABORTED",
    errors.Unsupported: "UNIMPLEMENTED",
    errors.Unavailable: "UNAVAILABLE",
}
_KINDS = {code: kind for kind, code in _CODES.items()}


def leases(namespace: str) -> str:
    """The collection of leases in a namespace."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def events(namespace: str) -> str:
    """The collection of events in a namespace."""
    return f"/api/v1/namespaces/{namespace}/events"


def resource_name(volume: str) -> str:
    """The name of a volume's resource: its id where that is a DNS subdomain (RFC 1123), else a digest of it."""
    if _SUBDOMAIN.fullmatch(volume) and not _DIGEST.fullmatch(volume):
        return volume
    return f"id-{hashlib.sha256(volume.encode()).hexdigest()[:40]}"


def pool_resource_name(node: str, pool: str) -> str:
    """The name of a pool's resource."""
    return f"{node}.{pool}"


def lease_name(node: str) -> str:
    """The name of the lease by which a node shows that it is there."""
    return f"csi-local-{node}"


def selector(node: str) -> str:
    """The label selector of what belongs to a node."""
    return f"{NODE_LABEL}={node}"


def timestamp(seconds: float) -> str:
    """A time (seconds since the epoch) as the API's ``Time``: whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_time(seconds: float) -> str:
    """A time as the API's ``MicroTime``, which leases have."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- objects


def resource(kind: str, name: str, node: str, spec: Object) -> Object:
    """An object of ours that belongs to *node*."""
    metadata = {"name": name, "labels": {NODE_LABEL: node}}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata, "spec": spec}


def owned_by_node(node: Object) -> Object:
    """The ``metadata`` that lets the garbage collector remove an object when its node is deleted."""
    metadata = node["metadata"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": metadata["name"], "uid": metadata["uid"]}
    return {"ownerReferences": [owner]}


def name_of(found: Object) -> str:
    """An object's name."""
    return str(found["metadata"]["name"])


def node_of(found: Object) -> str:
    """The node that is to have it."""
    return str(found["spec"]["nodeName"])


def answered(found: Object) -> bool:
    """Whether the node has answered to what is wanted now."""
    status = found.get("status", {})
    return bool(
        status.get("observedGeneration") == found["metadata"]["generation"]
        and status.get("nodeName") == found["spec"]["nodeName"]
    )


def answer(found: Object, phase: str) -> Object:
    """The fields of ``status`` that say what is answered, and by whom."""
    return {"observedGeneration": found["metadata"]["generation"], "nodeName": node_of(found), "phase": phase}


def error_of(found: Object) -> errors.DriverError | None:
    """What the node has answered instead of doing what is wanted, as an error of ours."""
    error = found.get("status", {}).get("error")
    return _KINDS.get(error["code"], errors.HostError)(error["message"]) if error else None


def error_fields(error: Exception) -> Object:
    """``status.error``; what was not foreseen is told with none of its text."""
    code = next((code for kind, code in _CODES.items() if issubclass(errors.kind_of(error), kind)), "INTERNAL")
    foreseen = isinstance(error, errors.DriverError)
    message = str(error) if foreseen else "it failed in a way that was not foreseen; the node's log has the details"
    return {"code": code, "message": message[:_MAX_MESSAGE]}


# --- conditions


def news(kind: str, *, true: bool, reason: str, message: str = "") -> Object:
    """A condition, before it is known since when."""
    return {"type": kind, "status": str(true), "reason": reason, "message": message[:_MAX_MESSAGE]}


def condition(conditions: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The condition of that kind, empty where there is none."""
    return next((one for one in conditions if one["type"] == kind), {})


def conditions(found: Object, fresh: Sequence[Object], now: str) -> list[Object]:
    """An object's conditions with *fresh* ones among them: a merge patch replaces a list as a whole."""
    before = found.get("status", {}).get("conditions", [])
    kept = [one for one in before if one["type"] not in {new["type"] for new in fresh}]
    for new in fresh:
        last = condition(before, new["type"])
        since = last["lastTransitionTime"] if last.get("status") == new["status"] else now
        kept.append(new | {"lastTransitionTime": since})
    return kept
