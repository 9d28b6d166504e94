"""Placement: which pool a volume goes to, and why not to the others.

The matching rule: a pool is (room, backends it can carry, media, what its filesystem can do), a request is (size,
backend, media, needs). Among the pools that fit, ``placement`` chooses: ``spread`` takes the one with the most
room, ``pack`` the one with the least that is enough. Equal rooms go by name, so that the answer never varies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from csi_local.model.parameters import ClassParameters
from csi_local.model.pool import PoolView, QuotaSupport
from csi_local.model.quantity import Bytes, format_bytes
from csi_local.model.volume import HEADER, Allocation, BackendKind, QuotaMode
from csi_local.plan import sizes
from csi_local.plan.request import Shape

_COARSE_BITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one pool; *small* says that only its room stood in the way."""

    pool: str
    small: bool = False
    fits: bool
    taken: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The pool chosen, if any, and a verdict on each."""

    pool: str | None
    verdicts: Sequence[Verdict]

    def explain(self) -> str:
        """One line for an error message."""
        if not self.verdicts:
            return "this node has no pools"
        return "; ".join(f"pool {verdict.pool}: {verdict.reason}" for verdict in self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Room for new volumes of one kind, in bytes: in all, the largest possible, and the smallest possible."""

    available: Bytes
    largest: Bytes
    smallest: Bytes

    def coarse(self) -> "Capacity":
        """The same, rounded down by less than two in a hundred, so that it seldom changes."""
        largest = max(_coarse(self.largest), self.smallest) if self.largest else self.largest
        return replace(self, available=max(_coarse(self.available), largest), largest=largest)


def _coarse(room: Bytes) -> Bytes:
    low = max(0, room.bit_length() - _COARSE_BITS)
    return Bytes(room >> low << low)


def place(
    parameters: ClassParameters, shape: Shape, size: Bytes, pools: Iterable[PoolView], *, ephemeral: bool = False
) -> Placement:
    """Choose a pool for a volume of *size* bytes. An *ephemeral* one has what its pool keeps for such."""
    views = sorted((_for_ephemeral(view) if ephemeral else view for view in pools), key=lambda view: view.name)
    reasons = {view.name: unfit(parameters, shape, view) or _too_small(parameters, size, view) for view in views}
    fitting = [view for view in views if not reasons[view.name]]
    pack = parameters.placement == "pack"
    fitting.sort(key=lambda view: available(parameters, view) * (1 if pack else -1))
    chosen = fitting[0].name if fitting else None
    verdicts = []
    for view in views:
        room = format_bytes(available(parameters, view))
        taken = view.name == chosen
        rule = "the least room that is enough" if pack else "the most room"
        fits = f"taken: {room} free, {rule}" if taken else f"fits ({room} free), but another has {rule}"
        reason = reasons[view.name] or fits
        small = bool(reasons[view.name]) and not unfit(parameters, shape, view)
        verdict = Verdict(pool=view.name, small=small, fits=not reasons[view.name], taken=taken, reason=reason)
        verdicts.append(verdict)
    return Placement(pool=chosen, verdicts=tuple(verdicts))


def _for_ephemeral(view: PoolView) -> PoolView:
    most = view.ephemeral_room
    return replace(view, room=min(view.room, most), thin_room=min(view.thin_room, most))


def capacity_of(parameters: ClassParameters, shape: Shape, pools: Iterable[PoolView]) -> Capacity:
    """The room that these pools have for such volumes."""
    least = sizes.smallest(shape.backend, shape.filesystem)
    fitting = [view for view in pools if not unfit(parameters, shape, view)]
    rooms = [room for view in fitting if (room := available(parameters, view)) >= least]
    return Capacity(available=Bytes(sum(rooms)), largest=max(rooms, default=Bytes(0)), smallest=least)


def available(parameters: ClassParameters, view: PoolView) -> Bytes:
    """The room a pool has for such volumes."""
    header = HEADER if parameters.encryption else 0
    thin = parameters.allocation is Allocation.THIN and parameters.backend is not BackendKind.DIRECTORY
    return Bytes(max(0, (view.thin_room if thin else view.room) - header))


def unfit(parameters: ClassParameters, shape: Shape, view: PoolView) -> str:
    """Why a pool cannot carry such a volume, whatever its room; or ""."""
    if view.unavailable:
        return view.unavailable
    if parameters.pool and parameters.pool != view.name:
        return f"the class asks for pool {parameters.pool}"
    if parameters.media and parameters.media != view.media:
        return f"its media is {view.media}, the class asks for {parameters.media}"
    if shape.backend is BackendKind.DIRECTORY:
        return _unfit_for_directory(parameters, shape, view)
    if parameters.allocation is Allocation.THICK and not view.abilities.preallocate:
        return f"{view.abilities.filesystem} cannot reserve blocks; allow allocation: thin"
    if not view.abilities.direct_io:
        return f"{view.abilities.filesystem} has no direct I/O, which loop devices need"
    if parameters.encryption is not None and not view.abilities.encryption:
        return f"its node cannot encrypt: {view.abilities.encryption_reason or 'it does not say that it can'}"
    return ""


def _unfit_for_directory(parameters: ClassParameters, shape: Shape, view: PoolView) -> str:
    if shape.filesystem is not None and shape.filesystem != view.abilities.filesystem:
        return f"its filesystem is {view.abilities.filesystem}, the class asks for {shape.filesystem}"
    if parameters.quota is QuotaMode.HARD and view.abilities.quota is QuotaSupport.NONE:
        why = view.abilities.quota_reason or f"{view.abilities.filesystem} has no quota"
        return f"it cannot limit a directory ({why}); use quota: advisory, or backend: loopfile"
    return ""


def _too_small(parameters: ClassParameters, size: Bytes, view: PoolView) -> str:
    room = available(parameters, view)
    if size <= room:
        return ""
    return f"{format_bytes(size)} does not fit, it has room for {format_bytes(room)}"
