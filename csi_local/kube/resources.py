"""What all custom resources have in common: names, labels, answers and conditions. Pure; the schemas are the chart's.

The controller writes what is wanted (``spec``); the node answers (``status``) once for each generation of that.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from csi_local.kube.api import Object
from csi_local.model import errors

GROUP, VERSION = "csi-local.io", "v1alpha1"
_BASE = f"/apis/{GROUP}/{VERSION}"
VOLUMES, POOLS = f"{_BASE}/localvolumes", f"{_BASE}/localpools"
SNAPSHOTS, GROUPS = f"{_BASE}/localsnapshots", f"{_BASE}/localgroupsnapshots"
NODES, CLAIMS, PERSISTENT_VOLUMES = (
    f"/api/v1/{kind}" for kind in ("nodes", "persistentvolumeclaims", "persistentvolumes")
)
NODE_LABEL = f"{GROUP}/node"
FINALIZER = f"{GROUP}/data"
"""Stays on a resource while its node may have its data."""

PRESENT, ABSENT = "Present", "Absent"

_IDS = ("volumeId", "snapshotId", "groupId")
"""Fields of a status, each for its kind."""

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DIGEST = re.compile(r"id-[0-9a-f]{40}")
_MAX_MESSAGE = 2000
_EPOCH = datetime.fromtimestamp(0, UTC)

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
    errors.Unauthenticated: "UNAUTHENTICATED",
}
_KINDS = {code: kind for kind, code in _CODES.items()}


def leases(namespace: str) -> str:
    """The collection of leases in a namespace."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def claims(namespace: str) -> str:
    """The collection of claims in a namespace."""
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"


def events(namespace: str) -> str:
    """The collection of events in a namespace."""
    return f"/api/v1/namespaces/{namespace}/events"


def secrets(namespace: str) -> str:
    """The collection of secrets in a namespace."""
    return f"/api/v1/namespaces/{namespace}/secrets"


def resource_name(identifier: str) -> str:
    """The name of what has that id: the id itself where it is a DNS subdomain (RFC 1123), else a digest of it."""
    if _SUBDOMAIN.fullmatch(identifier) and not _DIGEST.fullmatch(identifier):
        return identifier
    return f"id-{hashlib.sha256(identifier.encode()).hexdigest()[:40]}"


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


def moment(nanoseconds: int) -> str:
    """A time (nanoseconds since the epoch), to the microsecond."""
    return (_EPOCH + timedelta(microseconds=nanoseconds // 1000)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nanoseconds(text: str) -> int:
    """The nanoseconds since the epoch that such a time stands for."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1) * 1000


# --- objects


def resource(kind: str, name: str, node: str, spec: Object) -> Object:
    """An object of ours that belongs to *node*."""
    metadata = {"name": name, "labels": {NODE_LABEL: node}}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata, "spec": spec}


def with_data(kind: str, identifier: str, node: str, spec: Object) -> Object:
    """An object of ours that stands for data which *node* is to have, and that stays as long as it may."""
    spec = {**spec, "nodeName": node, "state": PRESENT, "attempt": 0}
    made = resource(kind, resource_name(identifier), node, spec)
    made["metadata"]["finalizers"] = [FINALIZER]
    return made


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


def wanted_absent(found: Object) -> bool:
    """Whether it is to go away, data and all."""
    return bool(found["spec"]["state"] == ABSENT)


def made(found: Object, field: str) -> bool:
    """Whether the node that is to have it has said so, by the id in *field*: there is data to lose."""
    status = found.get("status", {})
    return bool(status.get(field)) and status.get("nodeName") == node_of(found)


def told(found: Object) -> bool:
    """Whether any node has ever said that it has it: only then may somebody outside know it."""
    return any(found.get("status", {}).get(field) for field in _IDS)


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


def failed_status(found: Object, error: Exception, *, there: bool, now: str) -> Object:
    """The patch of ``status`` by which a node says why something is not as wanted; what is *there* stays Ready.

    *now* is a :func:`timestamp`, as in all below: a condition's time is that of its last change.
    """
    status = answer(found, "Deleting" if wanted_absent(found) else "Ready" if there else "Failed")
    status["error"] = error_fields(error)
    if not there:
        fresh = [news("Ready", true=False, reason="Failed", message=status["error"]["message"])]
        status["conditions"] = conditions(found, fresh, now)
    return {"status": status}


def says(found: Object, patch: Object) -> bool:
    """Whether a resource says already all that a patch of its ``status`` would have it say."""
    status = found.get("status", {})
    return all(status.get(key) == value for key, value in patch["status"].items())


# --- conditions


def health(problem: str) -> Object:
    """The condition that says how data is; *problem* is "" where it is well."""
    return news("Healthy", true=not problem, reason="Damaged" if problem else "AsRecorded", message=problem)


def problem_of(found: Object) -> str:
    """What its node has seen to be wrong with it, or ""."""
    healthy = condition(found.get("status", {}).get("conditions", ()), "Healthy")
    return str(healthy.get("message")) if healthy.get("status") == "False" else ""


def health_status(found: Object, problem: str, *, now: str) -> Object | None:
    """The patch that says how data is; None where that was said already."""
    if condition(found.get("status", {}).get("conditions", ()), "Healthy") and problem_of(found) == problem:
        return None
    return {"status": {"conditions": conditions(found, [health(problem)], now)}}


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
