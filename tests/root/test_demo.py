"""``csi-local demo``, as a new user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.driver import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root
INTERRUPTED = 130


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Have the demo heed SIGINT also where these tests are a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def demo(folder: Path, **env: str) -> subprocess.Popen[str]:
    """Start it."""
    argv = [str(PROGRAM), "demo", "--dir", str(folder)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})


def demand_nothing(folder: Path) -> None:
    assert not list(folder.iterdir())
    assert not observe.mounts(folder)
    assert not [file for file in observe.loops().values() if file.startswith(str(folder))]


def test_the_whole_story(folder: Path) -> None:
    with demo(folder) as process:
        printed, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    assert "restore the snapshot into a new volume" in printed
    assert "nothing leaks: no mount, loop device or file" in printed
    demand_nothing(folder)


def test_one_that_is_interrupted_while_its_pool_is_formatted_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    mkfs = tmp_path / "mkfs.xfs"
    mkfs.write_text(f"#!/bin/sh\ntouch {begun}\nexec sleep 60\n")
    mkfs.chmod(0o755)
    with demo(folder, PATH=f"{tmp_path}:{os.environ['PATH']}") as process:
        observe.until(begun.exists, "mkfs has begun", seconds=30)
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, complaints
    demand_nothing(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_one_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    with demo(folder) as process:
        observe.until(lambda: observe.mounts(folder), "its pool is mounted", seconds=30)
        time.sleep(1)
        process.send_signal(number)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, complaints
    demand_nothing(folder)
