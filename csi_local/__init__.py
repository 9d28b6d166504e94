"""csi-local: a CSI driver that turns a node's own disks into Kubernetes volumes."""

__version__ = "0.1.0"
