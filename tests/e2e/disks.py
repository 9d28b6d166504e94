"""The disks of the nodes: image files on loop devices, with a filesystem, so that a pool can be full or gone."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import run

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk that a node mounts at `target`."""

    image: Path
    device: str
    target: Path


def make(image: Path, target: Path, size: int, filesystem: str) -> Disk:
    """Make a disk of `size` bytes."""
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("xb") as file:
        os.truncate(file.fileno(), size)
    run(f"mkfs.{filesystem}", "-q", image)
    device = run("losetup", "--find", "--show", image).strip()
    return Disk(image=image, device=device, target=target)


def detach_all(folder: Path) -> list[str]:
    """Detach every loop device whose file is in `folder`, or on a disk whose file is; return those on the latter.

    The mounts must be gone. Devices are told apart by the device that holds their file, for the path of a file
    in a mount that is gone says nothing.
    """
    table = json.loads(run("losetup", "--list", "--json", "-O", "NAME,BACK-FILE,BACK-MAJ:MIN,MAJ:MIN") or "{}")
    rows = table.get("loopdevices", [])
    ours = [row for row in rows if Path(row["back-file"]).is_relative_to(folder)]
    numbers = {row["maj:min"].strip() for row in ours}
    left = [row for row in rows if row["back-maj:min"].strip() in numbers and row not in ours]
    for row in (*left, *ours):
        run("losetup", "--detach", row["name"])
    return [f"{row['name']} on {row['back-file']}" for row in left]
