"""The kinds of volume that the load is made of, and the two pools that they live in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.client import Mode, capability
from tests.observe import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.client import Capability

DIRECTORIES, LOOPFILES = "directories", "loopfiles"
POOLS = (
    f"{DIRECTORIES}=image:{{root}}/btrfs.img,size=4Gi,fs=btrfs",
    f"{LOOPFILES}=image:{{root}}/xfs.img,size=12Gi,fs=xfs",
)
GRANULE = 4 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of volume: the smallest that is made, how much more it may get, and the steps it grows in."""

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    fs: str = ""
    block: bool = False
    least: int = 16 * MIB
    more: int = 32 * MIB
    step: int = 4 * MIB

    @property
    def capability(self) -> Capability:
        """How it is used: at several targets at once."""
        return capability(block=self.block, fs=self.fs, mode=Mode.SINGLE_NODE_MULTI_WRITER)

    @property
    def directory(self) -> bool:
        """Whether it is a directory of its pool, and no file."""
        return self.params["backend"] == "directory"

    @property
    def thick(self) -> bool:
        """Whether its blocks are reserved."""
        return not self.directory and self.params.get("allocation") != "thin"


def _loopfile(name: str, *, thin: bool = False, fs: str = "", least: int = 16 * MIB, step: int = 4 * MIB) -> Kind:
    params = {"backend": "loopfile", "pool": LOOPFILES} | ({"allocation": "thin"} if thin else {})
    return Kind(name=name, params=params, fs=fs, block=not fs, least=least, step=step)


DIRECTORY = Kind(name="directory", params={"backend": "directory", "pool": DIRECTORIES}, least=8 * MIB)
BLOCK = _loopfile("block")
THIN_BLOCK = _loopfile("thin block", thin=True)
EXT4 = _loopfile("ext4", fs="ext4", step=16 * MIB)
THIN_EXT4 = _loopfile("thin ext4", thin=True, fs="ext4", step=16 * MIB)
XFS = _loopfile("xfs", fs="xfs", least=300 * MIB, step=32 * MIB)
THIN_XFS = _loopfile("thin xfs", thin=True, fs="xfs", least=300 * MIB, step=32 * MIB)
BTRFS = _loopfile("btrfs", fs="btrfs", least=256 * MIB, step=32 * MIB)
MIX = (DIRECTORY, DIRECTORY, DIRECTORY, BLOCK, BLOCK, THIN_BLOCK, EXT4, EXT4, THIN_EXT4, XFS, THIN_XFS, BTRFS)
"""What a worker's next volume is drawn from."""
