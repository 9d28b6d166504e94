"""A volume as an image file on a loop device: any filesystem or raw block, with a size limit by nature."""

from csi_local.model.observed import LoopDevice
from csi_local.model.operations import Attach, MakeImage, Operation, ResizeImage
from csi_local.model.volume import VolumeRecord


def make(record: VolumeRecord, image: str) -> tuple[Operation, ...]:
    """Make the image file."""
    return (MakeImage(path=image, size=record.image_size, thick=record.thick),)


def grow(after: VolumeRecord, image: str) -> tuple[Operation, ...]:
    """Make the image file as large as it is to be."""
    return (ResizeImage(path=image, size=after.image_size, thick=after.thick),)


def attach(record: VolumeRecord, image: str, present: tuple[LoopDevice, ...], *, read_only: bool = False) -> Attach:
    """Attach the image, which has the devices *present*.

    A raw block device stays by itself; a mounted one lives as long as its mounts, an encrypted one until it is closed.
    """
    keep = record.block and record.encryption is None
    return Attach(path=image, sector_size=record.sector_size, keep=keep, read_only=read_only, present=present)
