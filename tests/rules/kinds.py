"""The kinds of volume that a rule is tried on."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.client import Client, Mode, Volume
from tests.observe import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A sort of volume, and a size that it can have."""

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    fs: str = ""
    block: bool = False
    size: int = 64 * MIB

    def create(
        self,
        driver: Client,
        *,
        name: str = "",
        size: int = 0,
        mode: Mode.Mode.ValueType = Mode.SINGLE_NODE_WRITER,
        params: Mapping[str, str] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Volume:
        """Create a volume of this kind; further words are those of `Driver.create`."""
        return driver.create(
            name or fresh_name(),
            size or self.size,
            params={**self.params, **(params or {})},
            fs=self.fs,
            block=self.block,
            mode=mode,
            **options,
        )

    def __str__(self) -> str:
        return self.name


DIRECTORY = Kind(name="directory", params={"backend": "directory"})
EXT4 = Kind(name="loopfile-ext4", params={"backend": "loopfile"}, fs="ext4")
XFS = Kind(name="loopfile-xfs", params={"backend": "loopfile"}, fs="xfs", size=320 * MIB)
BTRFS = Kind(name="loopfile-btrfs", params={"backend": "loopfile"}, fs="btrfs", size=256 * MIB)
BLOCK = Kind(name="loopfile-block", params={"backend": "loopfile"}, block=True)

_LUKS = {"encryption": "luks2", "kdfMemory": "8Mi"}
LUKS_EXT4 = Kind(name="luks-ext4", params=_LUKS, fs="ext4")
LUKS_XFS = Kind(name="luks-xfs", params=_LUKS, fs="xfs", size=320 * MIB)
LUKS_BTRFS = Kind(name="luks-btrfs", params=_LUKS, fs="btrfs", size=256 * MIB)
LUKS_BLOCK = Kind(name="luks-block", params=_LUKS, block=True)

EVERY = (DIRECTORY, EXT4, XFS, BLOCK)
MOUNTED = (DIRECTORY, EXT4, XFS)
LOOPFILES = (EXT4, XFS, BLOCK)

every_kind = pytest.mark.parametrize("kind", EVERY, ids=str)
mounted_kinds = pytest.mark.parametrize("kind", MOUNTED, ids=str)
loopfile_kinds = pytest.mark.parametrize("kind", LOOPFILES, ids=str)


def fresh_name() -> str:
    """Return a name as external-provisioner makes them."""
    return f"pvc-{uuid.uuid4()}"
