"""Programs that have keys: the administrator's own, which may hang, start others, or never stop talking."""

from __future__ import annotations

import os
import select
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from csi_local.host.run import ask
from csi_local.model.errors import CommandFailed
from csi_local.model.quantity import MIB

if TYPE_CHECKING:
    from pathlib import Path

LONG_S = 60.0
QUESTION = b'{"version": 1}\n'


def program(folder: Path, body: str) -> str:
    """Write a shell script."""
    path = folder / "key-program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return str(path)


def wait_until_closed(pipe: int) -> None:
    """Wait until all are gone that had it open for writing: only then is there an end of what is read (pipe(7))."""
    hung_up = select.poll()
    hung_up.register(pipe, 0)
    with suppress(BlockingIOError):
        assert os.read(pipe, 1) == b""
        return
    assert hung_up.poll(LONG_S * 1000) == [(pipe, select.POLLHUP)]


def test_an_answer(folder: Path) -> None:
    status, answer, complaint = ask(program(folder, "cat; echo warning >&2; exit 3"), QUESTION, timeout_s=LONG_S)
    assert (status, answer.reveal(), complaint) == (3, QUESTION, "warning")


def test_one_that_does_not_listen(folder: Path) -> None:
    assert ask(program(folder, "echo key"), QUESTION, timeout_s=LONG_S)[1].reveal() == b"key\n"


@pytest.mark.parametrize("waits", ["sleep 600; echo key", "exec >&- 2>&-; sleep 600", "sleep 600 & echo key"])
def test_what_it_waits_for_is_killed_with_it(folder: Path, waits: str) -> None:
    os.mkfifo(held := folder / "held")
    reading = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(CommandFailed, match="no end after 1 s, killed"):
            ask(program(folder, f"exec 3>{held}; {waits}"), QUESTION, timeout_s=1.0)
        wait_until_closed(reading)
    finally:
        os.close(reading)


def test_one_that_never_stops_talking(folder: Path) -> None:
    """The driver's container has a limit of memory: what is kept of it has one too."""
    tracemalloc.start()
    try:
        with pytest.raises(CommandFailed, match="an answer of more than 65536 bytes, killed"):
            ask(program(folder, "head -c 64M /dev/zero"), QUESTION, timeout_s=LONG_S)
        complains = "head -c 64M /dev/zero >&2; echo >&2; echo the vault is sealed >&2; exit 1"
        status, _, complaint = ask(program(folder, complains), QUESTION, timeout_s=LONG_S)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    assert status == 1
    assert complaint.endswith("the vault is sealed")
