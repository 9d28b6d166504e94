"""The runner, on the host: what goes in and out of a guest, and what is left when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.observe import mounts, until
from tests.uml.umlrun import CHECKOUT, KERNEL, TIMED_OUT

pytestmark = pytest.mark.root

RUN = [sys.executable, "-m", "tests.uml.umlrun"]


def test_output_and_exit_code_are_the_commands() -> None:
    script = "uname -r; lsblk --noheadings --output NAME; echo wrong >&2; exit 7"
    argv = [*RUN, "--scratch", "1G", "--", "sh", "-c", script]
    ended = subprocess.run(argv, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    version = subprocess.run([KERNEL, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    assert (ended.stdout, ended.stderr, ended.returncode) == (f"{version}\nubda\n", "wrong\n", 7)


def test_a_guest_ends_at_its_time_limit() -> None:
    argv = [*RUN, "--time-limit", "4", "--", "sleep", "60"]
    assert subprocess.run(argv, cwd=CHECKOUT, check=False, capture_output=True).returncode == TIMED_OUT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_guest_ends_with_its_runner_and_leaves_no_mount(number: signal.Signals) -> None:
    argv = [*RUN, "--", "sh", "-c", "echo up; sleep 60"]
    with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == b"up\n"
        (first,) = children(runner.pid)
        namespace = namespace_of(first)
        assert namespace is not None
        assert namespace != namespace_of(os.getpid())
        runner.send_signal(number)
        runner.wait(5)
    until(lambda: namespace not in map(namespace_of, processes()), "all of the guest's processes are gone")
    assert not [mount for mount in mounts() if mount.source == "umlrun"]


def processes() -> list[int]:
    """Return all processes."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def children(pid: int) -> list[int]:
    """Return the children of a process with one thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def namespace_of(pid: int) -> str | None:
    """Return the process namespace a process is in; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink().name
    except OSError:
        return None
