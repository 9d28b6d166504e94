"""``csi-local adopt``: a directory that exists becomes a volume where it is, with the manifests to use it by."""

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from csi_local.app import crash_point
from csi_local.config import Config
from csi_local.engine.adopt import Adopter, AdoptRequest
from csi_local.engine.execute import Executor
from csi_local.host.linux import LinuxHost
from csi_local.model.errors import InvalidArgument
from csi_local.model.quantity import Bytes, format_bytes, parse_bytes
from csi_local.model.text import DNS_LABEL
from csi_local.model.volume import VolumeRecord
from csi_local.show import visiting

_DRIVER, _TOPOLOGY_KEY = "csi-local.io", "topology.csi-local.io/node"
_CLASS = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
Manifest = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """How Kubernetes is to see the directory.

    Attributes:
        name: of the PersistentVolumeClaim; "" for the volume's own.
        storage_class: "" for none: no provisioner then has anything to do with it.
        read_only: whether no pod may write.
    """

    name: str = ""
    namespace: str = "default"
    storage_class: str = ""
    access_mode: str = "ReadWriteOnce"
    read_only: bool = False


def adopt(config: Config, wanted: AdoptRequest, claim: Claim) -> int:
    """Record the directory, and print a PersistentVolume and a claim that are bound to each other.

    Raises:
        InvalidArgument: a name cannot be one in Kubernetes.
        DriverError: see ``engine.adopt``.
    """
    for name in (wanted.name, claim.name, claim.namespace):
        if name and not DNS_LABEL.fullmatch(name):
            raise InvalidArgument(f"{name!r} cannot be a name here: lower-case letters, digits and '-', at most 63")
    if claim.storage_class and not _CLASS.fullmatch(claim.storage_class):
        raise InvalidArgument(f"{claim.storage_class!r} cannot be the name of a StorageClass")
    with visiting(config) as engine:
        host = LinuxHost()
        adopter = Adopter(host, engine.pools, Executor(host, crash_point(config.crash_point)), time.time)
        pool, record = adopter.adopt(wanted)
    sys.stderr.write(f"csi-local: {record.adopted} is volume {record.id} now; pool {pool} has its record\n")
    _print(persistent_volume(record, claim, config.node_id), persistent_volume_claim(record, claim))
    return 0


def request(path: str, name: str, size: Bytes | None, pool: str, claim: Claim) -> AdoptRequest:
    """What is asked of the engine; the record keeps the claim's names, for people."""
    kept = {"pvc/namespace": claim.namespace, "pvc/name": claim.name} if claim.name else {}
    labels = {f"csi.storage.k8s.io/{key}": value for key, value in kept.items()}
    return AdoptRequest(path=path, name=name, size=size, pool=pool, labels=labels)


def persistent_volume(record: VolumeRecord, claim: Claim, node: str) -> Manifest:
    """A PersistentVolume that only that claim can have, on that node."""
    source: dict[str, object] = {"driver": _DRIVER, "volumeHandle": str(record.id)}
    here = {"key": _TOPOLOGY_KEY, "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": record.name},
        "spec": {
            "capacity": {"storage": _quantity(record.size)},
            "accessModes": [claim.access_mode],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": claim.storage_class,
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace,
                "name": claim.name or record.name,
            },
            "csi": {**source, "readOnly": True} if claim.read_only else source,
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


def persistent_volume_claim(record: VolumeRecord, claim: Claim) -> Manifest:
    """The claim that has that volume and no other."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": claim.namespace, "name": claim.name or record.name},
        "spec": {
            "accessModes": [claim.access_mode],
            "volumeMode": "Filesystem",
            "storageClassName": claim.storage_class,
            "volumeName": record.name,
            "resources": {"requests": {"storage": _quantity(record.size)}},
        },
    }


def parse_size(text: str | None) -> Bytes | None:
    """A size on the command line.

    Raises:
        InvalidArgument: it is none.
    """
    if text is None:
        return None
    size = parse_bytes(text)
    if not size:
        raise InvalidArgument("--size cannot be 0")
    return size


def _quantity(size: int) -> str:
    """As people write it where that is exact, else in bytes."""
    text = format_bytes(size)
    return str(size) if "." in text else text


def _print(*manifests: Manifest) -> None:
    import yaml  # noqa: PLC0415 (a driver that is run by flags need not carry it in memory)

    sys.stdout.write(yaml.safe_dump_all(manifests, sort_keys=False, default_flow_style=False))
