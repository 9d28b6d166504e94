"""What the driver's process needs, and whether it needs ever more (proc_pid_status(5)).

Samples are taken while nothing is asked of the driver. A process is compared with itself: the first sample after it
has lived for two minutes with the later ones. The slacks are for what is no leak: memory that malloc keeps, threads
of the pool that serves RPCs (64 at most, made as the load needs them) and gRPC's own, connections just being closed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.process import memory, threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WARM_SECONDS = 120.0
MEMORY_SLACK_MIB = 8.0
FD_SLACK = 8
THREAD_SLACK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A process at a moment; *age* is in seconds, and *loops* counts the devices of its volumes."""

    pid: int
    age: float
    rss: float
    fds: int
    threads: int
    loops: int
    volumes: int

    def row(self) -> tuple[object, ...]:
        """It as a row of a table."""
        return (self.pid, round(self.age), self.rss, self.fds, self.threads, self.loops, self.volumes)


def vitals(pid: int, started: float, *, loops: int, volumes: int) -> Vitals:
    """Look at a process that was started at *started* (monotonic)."""
    return Vitals(
        pid=pid,
        age=time.monotonic() - started,
        rss=memory(pid)["rss"],
        fds=len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - only to be counted
        threads=threads(pid),
        loops=loops,
        volumes=volumes,
    )


def growth(samples: Sequence[Vitals]) -> Iterator[str]:
    """Say what the last sample has more of than the first of the same process when it was warm."""
    now = samples[-1]
    warm = [one for one in samples if one.pid == now.pid and one.age >= WARM_SECONDS]
    if not warm:
        return
    then = warm[0]
    for what, before, after, slack in (
        ("MiB of memory", then.rss, now.rss, MEMORY_SLACK_MIB),
        ("open files", then.fds, now.fds, FD_SLACK),
        ("threads", then.threads, now.threads, THREAD_SLACK),
    ):
        if after > before + slack:
            yield f"{what}: {before:g} when the process was {then.age:.0f} s old, {after:g} at {now.age:.0f} s"
