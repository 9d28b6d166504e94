"""Another key for a volume: how a claim asks for it, how its LocalVolume does, and the answer. Pure."""

from csi_local.kube.api import Object
from csi_local.kube.events import About
from csi_local.kube.resources import GROUP, error_fields, made, wanted_absent
from csi_local.model.volume import KeyProvider

ANNOTATION = f"{GROUP}/rotate-key"
"""Of a claim: another value than before asks for another key."""

_MAX_REQUEST = 253
"""Characters of it that count."""

_DRIVER = GROUP
"""What PersistentVolumes call this driver."""

_AGAIN = ("UNAVAILABLE", "ABORTED")
"""What a node tries again by itself."""


def request_of(claim: Object) -> str:
    """What a claim asks for; "" for nothing."""
    return str(claim["metadata"].get("annotations", {}).get(ANNOTATION, ""))[:_MAX_REQUEST]


def claim_key(claim: Object) -> str:
    """What tells claims of all namespaces apart."""
    return f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"


def lean_claim(claim: Object) -> Object:
    """As much of a claim as is needed here: next to nothing, of nearly all of them."""
    metadata, request = claim["metadata"], request_of(claim)
    kept = {name: metadata[name] for name in ("namespace", "name", "uid", "resourceVersion")}
    if not request:
        return {"metadata": kept}
    volume = claim["spec"].get("volumeName", "")
    return {"metadata": kept | {"annotations": {ANNOTATION: request}}, "spec": {"volumeName": volume}}


def handle_of(claim: Object, persistent: Object) -> str | None:
    """The id of a claim's volume; None where its PersistentVolume is not this driver's, or another claim's.

    Anybody who may make a claim can write the name of any PersistentVolume into it.
    """
    spec = persistent["spec"]
    source = spec.get("csi") or {}
    ours = source.get("driver") == _DRIVER and (spec.get("claimRef") or {}).get("uid") == claim["metadata"]["uid"]
    return str(source["volumeHandle"]) if ours else None


def wanted_rotation(claim: Object, persistent: Object, volume: Object) -> Object:
    """``spec.keyRotation``; where the keys are in a Secret, that which the kubelet takes them from."""
    metadata = claim["metadata"]
    wanted = {"request": request_of(claim), "claim": {name: metadata[name] for name in ("namespace", "name", "uid")}}
    secret = persistent["spec"]["csi"].get("nodeStageSecretRef")
    provider = volume["spec"].get("parameters", {}).get("keyProvider", KeyProvider.SECRET)
    if secret and provider == KeyProvider.SECRET:
        wanted["secret"] = {name: secret[name] for name in ("namespace", "name")}
    return wanted


def is_due(volume: Object) -> bool:
    """Whether a volume is to have another key, and its node has not said that it has, or cannot have it."""
    wanted = volume["spec"].get("keyRotation")
    if not wanted or wanted_absent(volume) or not made(volume, "volumeId"):
        return False
    told = volume["status"].get("keyRotation", {})
    return told.get("request") != wanted["request"] or told.get("error", {}).get("code") in _AGAIN


def rotation_status(volume: Object, error: Exception | None) -> Object:
    """The patch of ``status`` that says which rotation is done, or why it is not."""
    told = error_fields(error) if error is not None else None
    return {"status": {"keyRotation": {"request": volume["spec"]["keyRotation"]["request"], "error": told}}}


def about_asker(volume: Object) -> About:
    """The claim that asked."""
    claim = volume["spec"]["keyRotation"]["claim"]
    return About(kind="PersistentVolumeClaim", namespace=claim["namespace"], name=claim["name"], uid=claim["uid"])
