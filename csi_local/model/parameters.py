"""StorageClass parameters: the only reader of them."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from csi_local.model import encryption
from csi_local.model.encryption import parse_encryption
from csi_local.model.errors import InvalidArgument
from csi_local.model.pool import Media, one_of
from csi_local.model.quantity import Bytes, parse_bytes
from csi_local.model.volume import Allocation, BackendKind, Encryption, Filesystem, QuotaMode

FS_TYPE = "csi.storage.k8s.io/fstype"
_OTHERS = ("allocation", "backend", "media", "mkfsOptions", "placement", "pool", "quota", FS_TYPE)
NAMES = tuple(sorted((*_OTHERS, *encryption.NAMES)))
"""Every parameter there is."""

PVC_NAME, PVC_NAMESPACE = "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace"
LABELS = (PVC_NAME, PVC_NAMESPACE, "csi.storage.k8s.io/pv/name")
"""What the provisioner adds with ``--extra-create-metadata``; kept for people, never compared."""

_CONTEXT = "csi.storage.k8s.io/"
EPHEMERAL = f"{_CONTEXT}ephemeral"
"""What the kubelet says of an inline volume, where the CSIDriver object has ``podInfoOnMount``."""

POD_LABELS = tuple(f"{_CONTEXT}{name}" for name in ("pod.name", "pod.namespace", "pod.uid", "serviceAccount.name"))
"""What the kubelet says of the pod; kept for people, never compared."""

TOKENS = f"{_CONTEXT}serviceAccount.tokens"
"""Tokens of the pod, where the CSIDriver object asks for them, as ours does not: never kept, never shown."""

_ADMINISTRATORS = ("mkfsOptions", *(name for name in encryption.NAMES if name != "encryption"))
EPHEMERAL_NAMES = ("size", *(name for name in NAMES if name not in _ADMINISTRATORS))
"""Every attribute that a pod's author may give an inline volume."""

PLACEMENTS = ("spread", "pack")

_MKFS_FLAGS = {
    Filesystem.EXT4: frozenset("bEgGiIJjmNOrT"),
    Filesystem.XFS: frozenset("bdilmn"),
    Filesystem.BTRFS: frozenset("dmnOR"),
}
_MKFS_LONG = {Filesystem.BTRFS: ("--checksum", "--csum", "--features", "--metadata", "--data", "--nodesize")}
_MKFS_VALUE = re.compile(r"[A-Za-z0-9^][A-Za-z0-9=,.^_-]*")
_MKFS_FORBIDDEN = re.compile(
    r"(^|,)(file|name|logdev|rtdev|device|discard|nodiscard|size|uuid|root_[a-z]+|offset"
    r"|test_fs|revision|journal_dev|bigalloc)(=|,|$)"
)
"""bigalloc: resize2fs(8) does not grow it, and neither does the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassParameters:
    """The parameters of a StorageClass, understood.

    Attributes:
        backend: None where the class leaves it open.
        fs_type: None where the class leaves it open.
        encryption: None where volumes are not encrypted.
        given: the parameters as they came, without the labels; a retry must give the same.
    """

    backend: BackendKind | None = None
    pool: str = ""
    media: Media | None = None
    placement: str = "spread"
    allocation: Allocation = Allocation.THICK
    quota: QuotaMode = QuotaMode.HARD
    fs_type: Filesystem | None = None
    mkfs_options: tuple[str, ...] = ()
    encryption: Encryption | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_ephemeral(context: Mapping[str, str]) -> tuple[Bytes, ClassParameters]:
    """Read the volume context of an inline ephemeral volume: its size, and what a StorageClass would say of it.

    It was written by whoever may make a pod, not by an administrator. So what would let a pod have more than it
    was given (a limit that nobody enforces) or hand options to a program that runs as root (mkfs) is refused.

    Raises:
        InvalidArgument: a name or value does not exist, or is not a pod's to choose; the message names those that are.
    """
    labels = {key: value for key, value in context.items() if key in POD_LABELS}
    given = {key: value for key, value in context.items() if key not in (*POD_LABELS, EPHEMERAL, TOKENS)}
    unknown = sorted(set(given) - set(EPHEMERAL_NAMES))
    if unknown:
        what = "is an administrator's to set, in a StorageClass" if unknown[0] in _ADMINISTRATORS else "does not exist"
        raise InvalidArgument(
            f"attribute {unknown[0]!r} of an inline volume {what}; there are {', '.join(EPHEMERAL_NAMES)}"
        )
    if "size" not in given:
        raise InvalidArgument("an inline volume needs the attribute size, for example 1Gi")
    size = parse_bytes(given["size"])
    if not size:
        raise InvalidArgument("the size of an inline volume cannot be 0")
    found = parse_parameters({key: value for key, value in given.items() if key != "size"})
    if found.encryption is not None:
        raise InvalidArgument("an inline volume cannot be encrypted: use a claim of an encrypted class")
    if found.quota is QuotaMode.ADVISORY:
        raise InvalidArgument("quota: advisory is an administrator's to set, in a StorageClass: nothing enforces it")
    return size, replace(found, given=given, labels=labels)


def parse_parameters(parameters: Mapping[str, str]) -> ClassParameters:
    """Read the parameters of a StorageClass.

    Raises:
        InvalidArgument: a name or value does not exist; the message names those that do.
    """
    labels = {key: value for key, value in parameters.items() if key in LABELS}
    given = {key: value for key, value in parameters.items() if key not in LABELS}
    unknown = sorted(set(given) - set(NAMES))
    if unknown:
        raise InvalidArgument(f"unknown StorageClass parameter {unknown[0]!r}; there are {', '.join(NAMES)}")
    placement = given.get("placement", "spread")
    if placement not in PLACEMENTS:
        raise InvalidArgument(f"placement {placement!r} does not exist; there are {', '.join(PLACEMENTS)}")
    return ClassParameters(
        backend=one_of(BackendKind, given["backend"], "backend") if "backend" in given else None,
        pool=given.get("pool", ""),
        media=one_of(Media, given["media"], "media") if "media" in given else None,
        placement=placement,
        allocation=one_of(Allocation, given.get("allocation", "thick"), "allocation"),
        quota=one_of(QuotaMode, given.get("quota", "hard"), "quota"),
        fs_type=parse_filesystem(given.get(FS_TYPE, "")),
        mkfs_options=_split(given.get("mkfsOptions", "")),
        encryption=parse_encryption(given),
        given=given,
        labels=labels,
    )


def parse_filesystem(text: str) -> Filesystem | None:
    """*text* as a filesystem, None for "".

    Raises:
        InvalidArgument: there is no such filesystem here.
    """
    return one_of(Filesystem, text, "filesystem") if text else None


def check_mkfs_options(filesystem: Filesystem, options: tuple[str, ...]) -> tuple[str, ...]:
    """*options* for ``mkfs.<filesystem>``, where each is harmless.

    The program runs as root, so only tuning is let through: nothing that names a file or another device, changes the
    size, makes what is no filesystem for use, or undoes what the driver itself decides (mke2fs(8), mkfs.xfs(8),
    mkfs.btrfs(8)).

    Raises:
        InvalidArgument: an option is not among those.
    """
    words = iter(options)
    for word in words:
        name, joined, value = word.partition("=")
        if name in _MKFS_LONG.get(filesystem, ()):
            value = value if joined else next(words, "")
        elif len(word) >= 2 and word[0] == "-" and word[1] in _MKFS_FLAGS[filesystem]:  # noqa: PLR2004
            value = word[2:]
            if not value and word != "-j":
                value = next(words, "")
        else:
            raise _refused(filesystem, word)
        if (value or word != "-j") and (not _MKFS_VALUE.fullmatch(value) or _MKFS_FORBIDDEN.search(value)):
            raise _refused(filesystem, f"{word} {value}")
    return options


def _refused(filesystem: Filesystem, word: str) -> InvalidArgument:
    allowed = ", ".join(f"-{letter}" for letter in sorted(_MKFS_FLAGS[filesystem]))
    return InvalidArgument(
        f"mkfsOptions: {word!r} is not allowed for {filesystem}; allowed are {allowed} with plain values"
        " (no paths, no devices, no size)"
    )


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidArgument(f"mkfsOptions {text!r}: {error}") from None
