"""Processes that live no longer than the one that started them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""Even a SIGKILL of this process takes the program along (PR_SET_PDEATHSIG, prctl(2))."""
CGROUPS = Path("/sys/fs/cgroup")
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.05


def run(*argv: str | Path, input_text: str | None = None, seconds: float = 120.0) -> str:
    """Run a program to its end and return what it printed.

    Raises AssertionError with all it said when it fails.
    """
    words = [str(word) for word in argv]
    done = subprocess.run(words, input=input_text, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def eventually(what: str, seconds: float, look: Callable[[], T | None]) -> T:
    """Return the first true answer of `look`, which is asked again and again; for what cannot be watched."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(LOOK_SECONDS)
    return answer


def remove_cgroups() -> None:
    """Remove the cgroups of containers that are no more. A kubelet that starts looks for the container of each."""
    for top in (CGROUPS / "k8s.io", *CGROUPS.glob("*/k8s.io")):
        for below, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):  # in use
                Path(below).rmdir()


@dataclass(slots=True, kw_only=True)
class Daemon:
    """A program in the background with its output in a file. It can be started again after it has ended."""

    name: str
    argv: Sequence[str | Path]
    log: Path
    within: Sequence[str] = ()
    """What runs it inside a node: nsenter, whose child is then the program itself."""
    env: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting until it is of use."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIES_WITH_US, *self.within, *map(str, self.argv)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                cwd=self.log.parent,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The program's process id, as seen from here."""
        assert self._process is not None, f"{self.name} was never started"
        outer = self._process.pid
        if not self.within:
            return outer
        children = Path(f"/proc/{outer}/task/{outer}/children")
        return int(eventually(f"{self.name} runs in its node", STOP_SECONDS, lambda: children.read_text().split())[0])

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Demand that it runs; the message is the end of what it wrote."""
        if not self.running:
            raise AssertionError(f"{self.name} has ended:\n{self.last_words()}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal and wait for its end; SIGKILL follows if it does not come."""
        if not self.running:
            return
        assert self._process is not None
        os.kill(self.pid, number)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)

    def wait(self) -> None:
        """Wait for its end, which somebody else has caused."""
        if self._process is not None:
            self._process.wait(STOP_SECONDS)

    def last_words(self) -> str:
        """Return the end of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
