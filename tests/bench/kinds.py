"""The kinds of volume that are measured, each with the pool it lives in and the requests that make it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from csi_local._proto import csi_pb2 as csi
from tests.client import capability
from tests.observe import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.client import Capability


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of volume.

    `pool_fs` is the filesystem of the image pool beneath it, `fs` its own on the loop device.
    """

    name: str
    pool_fs: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    block: bool = False
    fs: str = ""

    @property
    def capability(self) -> Capability:
        """How it is used."""
        return capability(block=self.block, fs=self.fs)

    def request(self, name: str, size: int) -> csi.CreateVolumeRequest:
        """CreateVolume for one of these."""
        return csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=size),
            volume_capabilities=[self.capability],
            parameters=self.parameters,
        )


DIRECTORY = Kind(name="directory", pool_fs="btrfs", parameters={"backend": "directory"})
BLOCK = Kind(name="raw block", pool_fs="xfs", parameters={"backend": "loopfile"}, block=True)
EXT4 = Kind(name="ext4", pool_fs="xfs", parameters={"backend": "loopfile"}, fs="ext4")
XFS = Kind(name="xfs", pool_fs="xfs", parameters={"backend": "loopfile"}, fs="xfs")
BTRFS = Kind(name="btrfs", pool_fs="xfs", parameters={"backend": "loopfile"}, fs="btrfs")
KINDS = (DIRECTORY, BLOCK, EXT4, XFS, BTRFS)

THIN_BLOCK = Kind(
    name="thin raw block",
    pool_fs="xfs",
    parameters={"backend": "loopfile", "allocation": "thin"},
    block=True,
)
"""The quickest volume to make: a sparse file. For tests with very many."""
THIN_EXT4 = Kind(name="thin ext4", pool_fs="xfs", parameters={"backend": "loopfile", "allocation": "thin"}, fs="ext4")
ADVISORY = Kind(name="advisory directory", pool_fs="xfs", parameters={"backend": "directory", "quota": "advisory"})
"""A plain directory, removed file by file."""


def pool(filesystem: str, size: int, allocation: str = "thick") -> str:
    """An image pool beneath the driver's folder."""
    return f"pool=image:{{root}}/pool.img,size={-(-size // GIB)}Gi,fs={filesystem},allocation={allocation}"
