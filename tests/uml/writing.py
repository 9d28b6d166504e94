"""Writers: zeros until the kernel objects, with one or the other set of privileges."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.observe import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROOT = ()
CONTAINER_ROOT = ("setpriv", "--bounding-set=-sys_resource")
"""Root as containers have it: container runtimes do not give it CAP_SYS_RESOURCE."""
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def fill(folder: Path, *, writer: Sequence[str] = CONTAINER_ROOT, name: str = "data", at_most: int = 256 * MIB) -> str:
    """Append zeros to a file until it has grown by `at_most`, or cannot; return what was objected."""
    options = ["bs=1M", f"count={at_most // MIB}", "oflag=append", "conv=notrunc,fsync", "status=none"]
    argv = [*writer, "dd", "if=/dev/zero", f"of={name}", *options]
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    ended = subprocess.run(argv, check=False, capture_output=True, text=True, env=env, cwd=folder)
    return ended.stderr.strip()


def usage(folder: Path) -> int:
    """Return how many bytes the files of a folder have, subfolders included."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
