"""What no driver may do, whatever it is asked: the judgements over answers, the log, the process and its folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.client import Code
from tests.fuzz.messages import FORGED, MARKER
from tests.observe import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

NEVER = frozenset({Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE, Code.DATA_LOSS, Code.CANCELLED})
"""UNAVAILABLE too: no pool is missing and the driver is there."""
LONGEST_LINE = 64 * KIB
MAX_GROWTH = 12 * MIB
"""Thousands of requests that leak are far beyond."""
SCANNED = MIB
"""Larger files are volumes' images, in which nothing but pods write."""
WORKERS = 64
"""How many requests the driver works on at once, at most."""

_FORGED = re.compile(rf"^\S+ \S+ ERROR +{FORGED}", re.MULTILINE)


def fault_of_answer(code: Code, message: str, *, hurried: bool) -> str:
    """Say what is wrong with an answer, or nothing; a caller in a hurry may be told that its time is up."""
    if code in NEVER or (code is Code.DEADLINE_EXCEEDED and not hurried):
        return f"{code.name}: {message}"
    if MARKER in message:
        return f"{code.name} tells a secret: {message}"
    if "metadata size" in message:
        return f"{code.name}, because the driver's message was too long for gRPC: {message}"
    if code is not Code.OK and not message.strip():
        return f"{code.name} without a message"
    return ""


def faults_of_log(log: str) -> Iterator[str]:
    """Say what is wrong with the driver's log."""
    if "Traceback" in log:
        yield "a traceback in the log: " + log[log.index("Traceback") :][:3000]
    if MARKER in log:
        place = log.index(MARKER)
        yield f"a secret in the log: {log[max(0, place - 300) : place + 40]}"
    if _FORGED.search(log):
        yield "a request wrote a line of its own into the log"
    longest = max(log.splitlines(), key=len, default="")
    if len(longest) > LONGEST_LINE:
        yield f"a line of {len(longest)} characters in the log: {longest[:300]}…"


def files_with_secrets(root: Path) -> list[Path]:
    """Return the files below `root` that hold a secret, or have one in their name."""
    found = []
    for path in root.rglob("*"):
        small = path.is_file() and not path.is_symlink() and path.stat().st_size <= SCANNED
        if MARKER in path.name or (small and MARKER.encode() in path.read_bytes()):
            found.append(path)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What a process has: bytes of memory, open files, threads."""

    memory: int
    files: tuple[str, ...]
    threads: int

    def grew_since(self, before: Vitals) -> bool:
        """Say whether it has much more memory than `before`: it leaks, or malloc keeps several 4 MiB messages' room."""
        return self.memory - before.memory > MAX_GROWTH

    def faults_since(self, before: Vitals) -> Iterator[str]:
        """Say what else has leaked since `before`."""
        if len(self.files) > len(before.files):
            yield f"open files: {sorted(self.files)}, before: {sorted(before.files)}"


def vitals(pid: int) -> Vitals:
    """Look at a process (proc_pid_status(5))."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    names = []
    for handle in (proc / "fd").iterdir():
        try:
            names.append(re.sub(r"\d+", "", str(handle.readlink())))
        except FileNotFoundError:
            continue
    return Vitals(
        memory=int(status["VmRSS"].split()[0]) * KIB, files=tuple(names), threads=int(status["Threads"].strip())
    )
