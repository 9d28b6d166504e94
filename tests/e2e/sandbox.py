"""Namespaces for a whole cluster, and what is left on the machine when they end: nothing.

A process in its own mount, network and pid namespace: when it ends, or this one is killed, the kernel kills all that
it has started and drops all that it has mounted. Loop devices, cgroups and files outlive a namespace; they are removed
here, or by the next run if this one is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e import disks
from tests.e2e.processes import DIES_WITH_US, remove_cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

PLACE = Path("/var/tmp")
PREFIX = "csi-local-e2e-"
INTERRUPTED = 128


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder for one cluster, and remove it with all that stands on it. What killed runs left goes first."""
    for stale in PLACE.glob(f"{PREFIX}*"):
        with _locked(stale) as ours:
            if ours:
                clear(stale)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
    with _locked(path):
        try:
            yield path
        finally:
            clear(path)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def clear(path: Path) -> list[str]:
    """Detach the loop devices whose files are in `path`, remove the cgroups of its containers, and the folder."""
    left = disks.detach_all(path)
    remove_cgroups()
    shutil.rmtree(path)
    return left


def run(argv: Sequence[str], env: dict[str, str]) -> int:
    """Run a program in namespaces of its own and return its exit code; a signal to us ends it and all it started."""
    unshare = ("unshare", "--fork", "--kill-child", "--mount-proc", "--mount", "--pid", "--net")
    process = subprocess.Popen(
        [*DIES_WITH_US, *unshare, *argv], env={**os.environ, **env}, stdin=subprocess.DEVNULL, start_new_session=True
    )
    interrupted: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        interrupted.append(number)
        print(f"interrupted by {signal.Signals(number).name}; tearing down", file=sys.stderr, flush=True)
        process.kill()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return INTERRUPTED + interrupted[0] if interrupted else code
