"""What a pool is: as configured, and as found."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from csi_local.model.errors import InvalidArgument
from csi_local.model.quantity import Bytes, parse_bytes
from csi_local.model.text import DNS_LABEL
from csi_local.model.volume import Allocation, Filesystem


class PoolKind(StrEnum):
    """What a pool is made from."""

    PATH = "path"
    IMAGE = "image"
    DEVICE = "device"


class Media(StrEnum):
    """What the disk under a pool is."""

    SSD = "ssd"
    HDD = "hdd"
    NVME = "nvme"
    UNKNOWN = "unknown"


class QuotaSupport(StrEnum):
    """How a pool's filesystem can limit a directory."""

    NONE = "none"
    PROJECT = "project"
    QGROUP = "qgroup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of a pool: a number of bytes, or a percentage of the whole."""

    amount: Bytes = Bytes(0)
    percent: float = 0.0

    def of(self, total: int) -> Bytes:
        """That part of a pool of *total* bytes."""
        return Bytes(self.amount + int(total * self.percent / 100))


DEFAULT_RESERVE = Share(percent=2.0)
"""Filesystems slow down and fail in odd ways when completely full."""

ALL = Share(percent=100.0)

MIN_POOL_IMAGE = Bytes(512 * 1024 * 1024)
"""Room for the smallest XFS (300 MiB) and something in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """A pool as configured.

    Attributes:
        target: the directory, image file or block device.
        size: bytes of the image file (``image`` only).
        filesystem: made on an image or a device.
        allocation: whether the image file's own blocks are reserved.
        media: None to read it from the disk.
        reserve: the part that is kept back.
        overcommit: how often the pool's room may be promised to thin volumes; 1 promises it once.
        ephemeral: the part that inline ephemeral volumes may have in all; pods' authors ask for them.
        mounted: whether a filesystem must be mounted at the directory (``path`` only).
    """

    name: str
    kind: PoolKind
    target: str
    size: Bytes = Bytes(0)
    filesystem: Filesystem = Filesystem.XFS
    allocation: Allocation = Allocation.THICK
    media: Media | None = None
    reserve: Share = DEFAULT_RESERVE
    overcommit: float = 1.0
    ephemeral: Share = ALL
    mounted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a pool can do, found out by trying.

    Attributes:
        sector_size: the smallest direct I/O, in bytes, and so the logical block size of loop devices on it.
        quota_reason: why it cannot limit directories, where it cannot.
        encryption: whether this node can encrypt what is on it; *encryption_reason* says why not.
    """

    filesystem: str
    reflink: bool = False
    quota: QuotaSupport = QuotaSupport.NONE
    subvolumes: bool = False
    discard: bool = False
    direct_io: bool = False
    sector_size: int = 4096
    preallocate: bool = False
    quota_reason: str = ""
    encryption: bool = False
    encryption_reason: str = ""

    @property
    def btrfs(self) -> bool:
        """Whether its directories are subvolumes; known even where nothing can be tried, on a full pool say."""
        return self.filesystem == "btrfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool as placement sees it. All amounts are bytes, after the reserve and all promises.

    Attributes:
        room: what a new thick or directory volume could get.
        thin_room: what a new thin volume could be promised.
        ephemeral_room: what of either an inline ephemeral volume could have.
        promised: the sizes of its volumes, added up.
        volumes: how many it has.
        uuid: what it calls itself, wherever its disk is plugged in.
        unavailable: why the pool cannot be used now, or "".
    """

    name: str
    kind: PoolKind
    media: Media
    abilities: Abilities
    total: Bytes
    room: Bytes
    thin_room: Bytes
    ephemeral_room: Bytes = Bytes(0)
    promised: Bytes = Bytes(0)
    volumes: int = 0
    uuid: str = ""
    unavailable: str = ""


E = TypeVar("E", bound=StrEnum)


class _Answer(StrEnum):
    YES = "yes"
    NO = "no"


_KEYS = {
    PoolKind.PATH: {"media", "reserve", "overcommit", "ephemeral", "mounted"},
    PoolKind.IMAGE: {"media", "reserve", "overcommit", "ephemeral", "size", "fs", "allocation"},
    PoolKind.DEVICE: {"media", "reserve", "overcommit", "ephemeral", "fs"},
}


def parse_pool(text: str) -> PoolSpec:
    """Read ``NAME=KIND:ARG[,key=value…]``, for example ``fast=image:/var/lib/fast.img,size=20Gi,media=ssd``.

    Raises:
        InvalidArgument: it is not that; the message names what is allowed.
    """
    name, equals, rest = text.partition("=")
    kind, colon, rest = rest.partition(":")
    if not equals or not colon:
        raise InvalidArgument(f"pool {text!r}: write NAME=KIND:ARG[,key=value…], e.g. fast=path:/mnt/ssd,media=ssd")
    target, *pairs = rest.split(",")
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in options:
            raise InvalidArgument(f"pool {name!r}: {pair!r} is not key=value, or is given twice")
        options[key] = value
    return pool_spec(name, kind, target, options)


def pool_spec(name: str, kind: str, target: str, options: Mapping[str, str]) -> PoolSpec:
    """A pool from its parts, each checked.

    Raises:
        InvalidArgument: a part is wrong; the message names what is allowed.
    """
    where = f"pool {name!r}"
    if not DNS_LABEL.fullmatch(name):
        raise InvalidArgument(f"{where}: a pool's name is lower-case letters, digits and '-', at most 63")
    pool_kind = one_of(PoolKind, kind, f"{where}: kind")
    if not target.startswith("/") or ".." in target.split("/") or not target.isprintable():
        raise InvalidArgument(f"{where}: {target!r} must be an absolute path without '..'")
    unknown = sorted(set(options) - _KEYS[pool_kind])
    if unknown:
        allowed = ", ".join(sorted(_KEYS[pool_kind]))
        raise InvalidArgument(f"{where}: unknown key {unknown[0]!r}; a {kind} pool takes {allowed}")
    size = parse_bytes(options["size"]) if "size" in options else Bytes(0)
    if pool_kind is PoolKind.IMAGE and size < MIN_POOL_IMAGE:
        raise InvalidArgument(f"{where}: an image pool needs size= of at least 512Mi")
    return PoolSpec(
        name=name,
        kind=pool_kind,
        target=target,
        size=size,
        filesystem=one_of(Filesystem, options.get("fs", "xfs"), f"{where}: fs"),
        allocation=one_of(Allocation, options.get("allocation", "thick"), f"{where}: allocation"),
        media=one_of(Media, options["media"], f"{where}: media") if "media" in options else None,
        reserve=_reserve(options["reserve"], where) if "reserve" in options else DEFAULT_RESERVE,
        ephemeral=_share(options["ephemeral"], f"{where}: ephemeral") if "ephemeral" in options else ALL,
        overcommit=_ratio(options.get("overcommit", "1"), where),
        mounted=one_of(_Answer, options.get("mounted", "no"), f"{where}: mounted") is _Answer.YES,
    )


def one_of(kind: type[E], text: str, where: str) -> E:
    """*text* as a member of *kind*.

    Raises:
        InvalidArgument: there is no such member; the message names those there are.
    """
    try:
        return kind(text)
    except ValueError:
        raise InvalidArgument(f"{where} {text!r} does not exist; there are {', '.join(kind)}") from None


def _reserve(text: str, where: str) -> Share:
    share = _share(text, f"{where}: reserve")
    if share.percent >= ALL.percent:
        raise InvalidArgument(f"{where}: reserve {text} leaves nothing")
    return share


def _share(text: str, where: str) -> Share:
    if not text.endswith("%"):
        return Share(amount=parse_bytes(text))
    percent = _number(text[:-1], where)
    if percent > ALL.percent:
        raise InvalidArgument(f"{where} {text} is more than there is")
    return Share(percent=percent)


def _ratio(text: str, where: str) -> float:
    ratio = _number(text, f"{where}: overcommit")
    if not 1 <= ratio <= 1000:  # noqa: PLR2004
        raise InvalidArgument(f"{where}: overcommit {text} must be between 1 and 1000")
    return ratio


def _number(text: str, where: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise InvalidArgument(f"{where} {text!r} is not a number")
    return float(text)
