"""The disks of the nodes: image files on loop devices, with a filesystem, so that a pool can be full or gone."""

from __future__ import annotations

import json
import os
import tempfile
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

    No disk may be mounted any more. The path of a file on a disk that was mounted in a namespace which is gone says
    nothing, so those devices are told by the filesystem that holds their file.
    """
    rows = _loops()
    ours = [row["name"] for row in rows if Path(row["back-file"]).is_relative_to(folder)]
    left: dict[str, str] = {}
    for device in ours:
        with tempfile.TemporaryDirectory() as place:
            run("mount", device, place)  # the same filesystem again, if something still holds it
            left |= on_filesystem(Path(place))
            for inner in on_filesystem(Path(place)):
                run("losetup", "--detach", inner)
            run("umount", place)
        run("losetup", "--detach", device)
    return [f"{device} on {file}" for device, file in left.items()]


def on_filesystem(place: Path) -> dict[str, str]:
    """Return the loop devices whose files are in the filesystem at `place`, with those files."""
    device = place.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return {row["name"]: row["back-file"] for row in _loops() if row["back-maj:min"].strip() == number}


def _loops() -> list[dict[str, str]]:
    shown = run("losetup", "--list", "--json", "-O", "NAME,BACK-FILE,BACK-MAJ:MIN")
    rows: list[dict[str, str]] = json.loads(shown or "{}").get("loopdevices", [])
    return rows
