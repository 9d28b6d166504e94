"""Checking what is in the pools, and mending what may safely be mended (``csi-local doctor``).

Looking changes nothing, and needs nobody's leave: it can be done beside a driver that runs. Mending needs the lock
that a driver holds for life. What is a finding, and which of them are mended, ``plan.check`` decides.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from csi_local.engine import making
from csi_local.engine.execute import Executor
from csi_local.engine.looking import Look, Place, look
from csi_local.host.api import Host
from csi_local.model.errors import (
    Busy,
    DriverError,
    FailedPrecondition,
    SyscallFailed,
)
from csi_local.model.operations import RemoveTree
from csi_local.model.pool import PoolKind, PoolSpec
from csi_local.plan import check_snapshots
from csi_local.plan.check import judge
from csi_local.plan.findings import (
    Finding,
    PoolSeen,
    Severity,
    TakeOver,
)
from csi_local.store.layout import (
    GROUP_FILE,
    HEADER_COPY,
    POOL_FILE,
    RECORD_FILE,
    SNAPSHOT_FILE,
    UNFINISHED,
    is_leftover,
)

_ROUNDS = 4
"""Mending one thing lets another be mended: a device is detached, then the deleted volume it was on is removed."""

_WRITTEN = (POOL_FILE, RECORD_FILE, SNAPSHOT_FILE, GROUP_FILE, HEADER_COPY)
"""The files whose writing may have been cut short."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was mended, and what there is to say now."""

    seen: tuple[PoolSeen, ...]
    findings: tuple[Finding, ...]
    mended: tuple[Finding, ...] = ()


class _Noting(ExitStack):
    """Knows whether anything was entered in it: whether visiting a pool had to open, and so lock, it."""

    used = False

    def enter_context(self, cm: AbstractContextManager[T]) -> T:
        """As in an ``ExitStack``."""
        entered = super().enter_context(cm)
        self.used = True
        return entered


def find(host: Host, spec: PoolSpec, run_dir: str, held: ExitStack, *, to_mend: bool) -> Place:
    """The pool at its place, until *held* is left; locked *to_mend*, unless a driver has it. It is never made."""
    busy = False
    visit = held.enter_context(_Noting())
    try:
        busy = _has_driver(host, spec)
        root = making.visit_pool(host, spec, run_dir, visit)
    except DriverError as error:
        return Place(spec=spec, problem=str(error), busy=busy)
    if to_mend and not busy and not visit.used:
        try:
            held.enter_context(host.lock(spec.target))
        except Busy:  # it has just started
            busy = True
    return Place(spec=spec, root=root, busy=busy, ours=to_mend and not busy)


def _has_driver(host: Host, spec: PoolSpec) -> bool:
    """Whether somebody holds the pool's lock; ours lasts a microsecond."""
    if host.stat(spec.target) is None:
        return False
    try:
        with host.lock(spec.target):
            return False
    except Busy:
        return True


class Checker:
    """Looks at places and mends there; *us* is the user that the driver runs as."""

    def __init__(self, host: Host, places: Sequence[Place], us: int) -> None:
        self._host = host
        self._places = places
        self._us = us
        self._executor = Executor(host, lambda _name: None)

    def check(self) -> Report:
        """Look, and change nothing."""
        seen = tuple(look(self._host, place, self._us) for place in self._places)
        return Report(seen=seen, findings=tuple(judge(seen, check_snapshots.judge(seen))))

    def repair(self) -> Report:
        """Thaw what is frozen, mend what may be mended, and look again: only what then is gone was mended."""
        mended: list[Finding] = []
        failed: dict[tuple[str, str, str], str] = {}
        ours = {place.spec.name for place in self._places if place.ours}
        for place in self._places:
            if place.ours:
                mended += self._thaw(place)
        tried: list[Finding] = []
        for _ in range(_ROUNDS):
            todo = [one for one in self.check().findings if one.mend and one.pool in ours and one not in tried]
            for finding in todo:
                tried.append(finding)
                try:
                    self._mend(finding)
                except DriverError as error:
                    failed[finding.key] = str(error)
            if not todo:
                break
        now = self.check()
        still = {finding.key for finding in now.findings}
        mended += [finding for finding in tried if finding.key not in still]
        findings = [*self._refused(), *(_with_failure(one, failed.get(one.key, "")) for one in now.findings)]
        return Report(seen=now.seen, findings=tuple(findings), mended=tuple(mended))

    def _refused(self) -> Iterator[Finding]:
        for place in self._places:
            if place.busy:
                yield Finding(
                    severity=Severity.ERROR,
                    pool=place.spec.name,
                    where="",
                    found="nothing was mended: a running csi-local has this pool open",
                    fix="stop the driver (pods go on working without it), do this again, and start it",
                )

    def _mend(self, finding: Finding) -> None:
        for operation in finding.mend:
            match operation:
                case TakeOver(path=path, owner=owner, mode=mode):
                    self._host.set_owner(path, owner, mode)
                case RemoveTree(path=path) if not _removable(path):
                    raise FailedPrecondition(f"{path} is nothing that --repair removes")
                case _:
                    self._executor.run("repair", (operation,))

    def _thaw(self, place: Place) -> Iterator[Finding]:
        """Thaw the filesystems on this pool's own loop devices: first the pool's, which the others write to.

        That a filesystem is frozen cannot be read anywhere: thawing fails where it is not. So this is done only here,
        only on what no driver is using, and nowhere but on our own devices.
        """
        own = self._host.loops(place.spec.target) if place.spec.kind is PoolKind.IMAGE else ()
        look = Look(self._host, place, self._us)
        loops = [*own, *(loop.device for loop in look.loops(look.volumes()))]
        for device in (one for loop in loops for one in (loop, *self._host.mapped_over(loop.device))):
            point = look.observer.reached_at(device, look.mounts)
            if point is None:
                continue
            try:
                found = "it was frozen: all writing to it waited" if self._host.thaw(point) else ""
            except SyscallFailed as error:
                found = f"it may be frozen, and cannot be thawed: {error}"
            if found:
                fix = "see what froze it: a backup that was cut short?"
                yield Finding(severity=Severity.WARNING, pool=place.spec.name, where=point, found=found, fix=fix)


def _removable(path: str) -> bool:
    """What --repair may remove at all: what the sweeper removes, and a file whose writing was cut short."""
    name = path.rpartition("/")[2]
    return is_leftover(name) or (name.removesuffix(UNFINISHED) in _WRITTEN and name.endswith(UNFINISHED))


def _with_failure(finding: Finding, why: str) -> Finding:
    return replace(finding, fix=f"--repair could not: {why}", mend=()) if why else finding
