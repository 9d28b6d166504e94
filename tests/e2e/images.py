"""Container images without a registry: Docker archives with one layer of files, as `ctr images import` takes them."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.node import PAUSE_IMAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

BUSYBOX = Path("/bin/busybox")
TEST_IMAGE = "localhost/e2e-busybox:1"
"""What the pods of the scenarios run."""
PROVISIONER_IMAGE = "registry.k8s.io/sig-storage/csi-provisioner:v5.1.0"
RESIZER_IMAGE = "registry.k8s.io/sig-storage/csi-resizer:v1.12.0"
SNAPSHOTTER_IMAGE = "registry.k8s.io/sig-storage/csi-snapshotter:v8.3.0"
SIDECARS = {
    "csi-provisioner": PROVISIONER_IMAGE,
    "csi-resizer": RESIZER_IMAGE,
    "csi-snapshotter": SNAPSHOTTER_IMAGE,
}

FOLDERS = (
    "bin",
    "dev",
    "etc",
    "home",
    "mnt",
    "proc",
    "root",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "var/run",
    "var/tmp",
)
USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"
GROUPS = "root:x:0:\nnogroup:x:65534:\ngroup:x:50000:user\n"
WORLD_WRITABLE = 0o1777


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The layer of an image: folders, then files with their content, then symbolic links."""

    folders: Sequence[str] = ()
    files: Sequence[tuple[str, Path | str]] = ()
    links: Sequence[tuple[str, str]] = ()

    def write(self, path: Path) -> str:
        """Write it as a tar file and return its digest."""
        with tarfile.open(path, "w") as tar:
            for folder in self.folders:
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, WORLD_WRITABLE if "tmp" in folder else 0o755
                tar.addfile(entry)
            for name, content in self.files:
                data = content.encode() if isinstance(content, str) else content.read_bytes()
                _add(tar, name, data, 0o644 if isinstance(content, str) else 0o755)
            for name, target in self.links:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def busybox_layer() -> Layer:
    """Every program of busybox, and a few users."""
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    return Layer(
        folders=FOLDERS,
        files=[("bin/busybox", BUSYBOX), ("etc/passwd", USERS), ("etc/group", GROUPS)],
        links=[(f"bin/{name}", "busybox") for name in applets if name != "busybox"] + [("usr/bin/env", "/bin/busybox")],
    )


def make(archive: Path, names: list[str], layers: list[Layer], entrypoint: list[str], arguments: list[str]) -> Path:
    """Write an image with these names."""
    parts = [archive.with_suffix(f".layer{number}") for number in range(len(layers))]
    digests = [layer.write(part) for layer, part in zip(layers, parts, strict=True)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": digests},
        "config": {"Entrypoint": entrypoint, "Cmd": arguments, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
    }
    raw = json.dumps(config).encode()
    name = hashlib.sha256(raw).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": names, "Layers": [part.name for part in parts]}]
    with tarfile.open(archive, "w") as tar:
        _add(tar, name, raw, 0o644)
        for part in parts:
            tar.add(part, part.name)
            part.unlink()
        _add(tar, "manifest.json", json.dumps(manifest).encode(), 0o644)
    return archive


def make_stand_ins(folder: Path, programs: Path) -> list[Path]:
    """Make the images that a cluster needs beside the driver's: pods' own, the pause image, the sidecars'."""
    folder.mkdir(parents=True, exist_ok=True)
    busybox = busybox_layer()
    made = [
        make(folder / "pause.tar", [PAUSE_IMAGE], [busybox], ["/bin/sleep"], ["infinity"]),
        make(folder / "busybox.tar", [TEST_IMAGE], [busybox], [], ["sh"]),
    ]
    for program, name in SIDECARS.items():
        layer = Layer(files=[(program, programs / program)])
        made.append(make(folder / f"{program}.tar", [name], [layer], [f"/{program}"], []))
    return made


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
