"""Encryption as a layer: LUKS2 between a volume's loop device and its filesystem, or its raw block device."""

from csi_local.model.observed import LoopDevice, MappedDevice
from csi_local.model.operations import Attach, Operation, UseDevice
from csi_local.model.volume import Encryption, VolumeId

SIGNATURE = "crypto_LUKS"
"""What blkid(8) calls it."""

_PREFIX = "csi-local-"


def mapper_name(volume: VolumeId) -> str:
    """What a volume's device is opened as; device mapper takes 127 characters."""
    return f"{_PREFIX}{volume}"


def is_opened_as(volume: VolumeId, encryption: Encryption, found: MappedDevice) -> bool:
    """Whether a mapped device is that volume's, as whoever opened it named it (cryptsetup's ``dm_prepare_uuid``)."""
    name = mapper_name(volume)
    return found.name == name and found.uuid == f"CRYPT-LUKS2-{encryption.uuid.replace('-', '')}-{name}"


def attach(opened: MappedDevice, present: tuple[LoopDevice, ...], *, read_only: bool) -> Operation:
    """Use the device that is open; for reading only through a loop device over it, which needs no key."""
    if not read_only:
        return UseDevice(device=opened)
    return Attach(path=opened.path, sector_size=0, keep=True, read_only=True, present=present)
