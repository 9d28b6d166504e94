"""Pods that wait for a claim: where one does, its node has been chosen, with all in view that the pod needs."""

from csi_local.kube import resources
from csi_local.kube.api import Api
from csi_local.model.errors import NotFound
from csi_local.model.parameters import PVC_NAME, PVC_NAMESPACE
from csi_local.plan.request import VolumeRequest

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""The scheduler's annotation of a claim (Kubernetes, "Well-known labels, annotations and taints")."""


def awaited(api: Api, request: VolumeRequest) -> bool:
    """Whether a pod waits for a volume on the node that its request prefers.

    csi-provisioner prefers a node in a request of either kind; which one it is, only the claim says.

    Raises:
        Unavailable: the API does not answer.
    """
    labels = request.parameters.labels
    namespace, name = labels.get(PVC_NAMESPACE), labels.get(PVC_NAME)
    if not namespace or not name:
        return False
    try:
        claim = api.get(resources.claims(namespace), name)
    except NotFound:
        return False
    return SELECTED_NODE in claim["metadata"].get("annotations", {})
