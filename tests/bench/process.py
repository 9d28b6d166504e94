"""What the kernel says of a process: memory and time used (proc_pid_status(5), proc_pid_stat(5))."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypedDict

_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(TypedDict):
    """MiB: resident, of that not backed by files, and the most there ever was."""

    rss: float
    anonymous: float
    peak: float


def memory(pid: int) -> Memory:
    """The memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = {name: int(kib) / 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return Memory(rss=round(found["VmRSS"], 1), anonymous=round(found["RssAnon"], 1), peak=round(found["VmHWM"], 1))


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, with that of the programs it ran and waited for."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(int(after_name[index]) for index in (11, 12, 13, 14)) / _TICKS


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - only to be counted
