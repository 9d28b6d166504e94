"""A process that may open nothing more, on the real machine: it must not take that for "there is nothing"."""

from __future__ import annotations

import errno
import os
import resource
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.host import cpus, crypt, filesystems, loop
from csi_local.host.linux import LinuxHost
from csi_local.model.errors import SHORTAGE, SyscallFailed, Unavailable, kind_of
from csi_local.model.observed import LoopDevice
from csi_local.model.snapshot import GroupRequest
from tests.unit.rig import PATIENCE_S
from tests.unit.test_snapshots import XFS, Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEVICE = LoopDevice(path="/dev/null", device=0, backing=(0, 0), read_only=False, autoclear=False)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let every open fail."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    "look",
    [
        partial(loop._look, "/dev/null"),
        loop.all_loops,
        partial(loop.loops, "/etc/hostname"),
        partial(loop.detach, DEVICE),
        crypt.all_mapped,
        partial(crypt._mapped, "dm-0"),
        partial(crypt.mapped_over, os.makedev(7, 0)),
        partial(filesystems.device_under, "/", os.makedev(0, 50)),
        partial(LinuxHost().openers, "/dev/null"),
    ],
    ids=str,
)
def test_what_cannot_be_seen_is_not_taken_for_gone(look: Callable[[], object]) -> None:
    caught: Exception | None = None
    with no_more_files():
        try:
            look()
        except Exception as error:  # noqa: BLE001 (pytest may open files)
            caught = error
    assert isinstance(caught, SyscallFailed), repr(caught)
    assert caught.errno == errno.EMFILE


def test_what_is_gone_is_gone() -> None:
    assert loop._look("/dev/none") is None
    assert loop._open("/dev/none", os.O_RDONLY) is None
    assert crypt._mapped("none") is None
    assert list(crypt.mapped_over(os.makedev(240, 0))) == []


class Rounds(threading.Event):
    """A wait for the end that comes after three rounds, without a pause."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 3

    def wait(self, timeout: float | None = None) -> bool:
        """See ``threading.Event.wait``."""
        del timeout
        self.left -= 1
        return self.left < 0


def test_who_looks_for_a_better_processor_outlives_it() -> None:
    one = cpus.OneCpu()
    one._stopping = rounds = Rounds()
    cpus._gather({min(cpus.ALL)})
    try:
        with no_more_files():
            one._run()
    finally:
        cpus._gather(cpus.ALL)
    assert rounds.left < 0


@pytest.mark.parametrize("number", SHORTAGE, ids=errno.errorcode.get)
def test_a_record_that_cannot_be_opened_is_not_taken_for_damaged(number: int) -> None:
    bench = Bench(XFS)
    volume = bench.volume("data")
    snapshot = bench.snapshot("daily", volume)
    rig = bench.rig
    group = rig.groups.create(GroupRequest(name="group", sources=(volume,)), PATIENCE_S)
    asked: tuple[Callable[[], object], ...] = (
        partial(bench.volume, "data"),
        partial(rig.volumes.get, volume),
        partial(rig.snapshots.get, snapshot.id),
        partial(rig.groups.get, group.id),
        partial(rig.volumes.delete, volume, PATIENCE_S),
    )
    for ask in asked:
        rig.host.fail("read_file", number)
        with pytest.raises(SyscallFailed) as failed:
            ask()
        assert kind_of(failed.value) is Unavailable
        ask()
