"""What a volume is: as asked for, and as recorded."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from csi_local.model.errors import InvalidArgument
from csi_local.model.observed import FileInfo, FileKind
from csi_local.model.quantity import MIB, Bytes

VolumeId = NewType("VolumeId", str)
"""A volume's id: always a safe file name of at most 63 characters (see :func:`volume_id`)."""

MAX_NAME = 128
"""Bytes in a volume name (CSI specification, "Size Limits")."""

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_DIGEST = re.compile(r"(sha256|ephemeral)-[0-9a-f]{40}")
_EPHEMERAL = "ephemeral-"


def volume_id(name: str) -> VolumeId:
    """The id of the volume called *name*: a pure function, so that a retry finds its volume without a search.

    It is the name itself where that is a safe file name, else a digest of it. A name that looks like such a
    digest, or like :func:`ephemeral_id`'s, is digested too, so that no two names share an id.
    """
    if _SAFE.fullmatch(name) and not _DIGEST.fullmatch(name):
        return VolumeId(name)
    return VolumeId(f"sha256-{_digest(name)}")


def ephemeral_id(handle: str) -> VolumeId:
    """The id of the inline ephemeral volume with that *handle* of the CO's: never that of an ordinary volume."""
    return VolumeId(f"{_EPHEMERAL}{_digest(handle)}")


def is_ephemeral(volume: VolumeId) -> bool:
    """Whether a volume lives and dies with one pod; its id says so, whatever became of its record."""
    return volume.startswith(_EPHEMERAL) and _DIGEST.fullmatch(volume) is not None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def stored_id(name: str) -> VolumeId | None:
    """The name of a directory among the volumes as an id, or None where it cannot be a volume of ours."""
    return VolumeId(name) if _SAFE.fullmatch(name) else None


def known_id(text: str) -> VolumeId | None:
    """What a CO calls a volume as an id, or None where no volume of ours can have it.

    An ephemeral volume is known by its handle alone: by its id nobody can stage, publish, grow or delete it.
    """
    volume = stored_id(text)
    return None if volume is None or is_ephemeral(volume) else volume


class BackendKind(StrEnum):
    """Where a volume's bytes live."""

    DIRECTORY = "directory"
    LOOPFILE = "loopfile"


class Filesystem(StrEnum):
    """The filesystems a volume can have on its loop device."""

    EXT4 = "ext4"
    XFS = "xfs"
    BTRFS = "btrfs"


class Allocation(StrEnum):
    """Whether blocks are reserved when the volume is made (thick) or when they are written (thin)."""

    THICK = "thick"
    THIN = "thin"


class QuotaMode(StrEnum):
    """Whether a directory volume's size is enforced by the filesystem (hard) or only recorded (advisory)."""

    HARD = "hard"
    ADVISORY = "advisory"


class AccessMode(StrEnum):
    """CSI's access modes, under the specification's names."""

    SINGLE_NODE_WRITER = "SINGLE_NODE_WRITER"
    SINGLE_NODE_READER_ONLY = "SINGLE_NODE_READER_ONLY"
    SINGLE_NODE_SINGLE_WRITER = "SINGLE_NODE_SINGLE_WRITER"
    SINGLE_NODE_MULTI_WRITER = "SINGLE_NODE_MULTI_WRITER"
    MULTI_NODE_READER_ONLY = "MULTI_NODE_READER_ONLY"
    MULTI_NODE_SINGLE_WRITER = "MULTI_NODE_SINGLE_WRITER"
    MULTI_NODE_MULTI_WRITER = "MULTI_NODE_MULTI_WRITER"

    @property
    def multi_node(self) -> bool:
        """Whether several nodes are to see what one of them writes, which a local disk cannot give."""
        return self.startswith("MULTI_NODE") and not self.read_only

    @property
    def read_only(self) -> bool:
        """Whether the mode itself forbids writing."""
        return self in (AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountAccess:
    """A filesystem is wanted: its type ("" for any), mount options, and the group that may write."""

    fs_type: str = ""
    flags: tuple[str, ...] = ()
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAccess:
    """A raw block device is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """How a volume is to be used (CSI ``VolumeCapability``)."""

    access: MountAccess | BlockAccess
    mode: AccessMode

    @property
    def block(self) -> bool:
        """Whether a raw block device is wanted."""
        return isinstance(self.access, BlockAccess)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRange:
    """How large a volume may be, in bytes; 0 means not given (CSI ``CapacityRange``)."""

    required: int = 0
    limit: int = 0


class FormatState(StrEnum):
    """How far the one and only formatting of a volume has come.

    ``none`` is for volumes that are never formatted: directories and raw block.
    """

    NONE = "none"
    UNFORMATTED = "unformatted"
    FORMATTING = "formatting"
    FORMATTED = "formatted"


class KeyProvider(StrEnum):
    """Who is asked for the key of an encrypted volume."""

    SECRET = "secret"  # noqa: S105 (a word, and no password)
    FILE = "file"
    EXEC = "exec"


class Cipher(StrEnum):
    """Ciphers of encrypted volumes, as dm-crypt calls them; the second is for processors without AES instructions."""

    AES_XTS = "aes-xts-plain64"
    ADIANTUM = "xchacha20,aes-adiantum-plain64"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """How a volume is encrypted: LUKS2, the header in front of the data. Never the key.

    Attributes:
        key_bits: of the key that the data is encrypted with (XTS splits it in two).
        sector_size: bytes that are encrypted together.
        kdf_memory: bytes that argon2id takes to open it.
        kdf_passes: how often it goes through them.
        discard: whether blocks that are discarded are given back, which shows which are in use.
        provider: who has the key, under *key_name*.
        state: how far the one and only formatting has come.
        uuid: of the header that was made, or, while ``formatting``, is about to be.
    """

    cipher: Cipher = Cipher.AES_XTS
    key_bits: int = 512
    sector_size: int = 4096
    kdf_memory: Bytes = Bytes(32 * MIB)
    kdf_passes: int = 4
    discard: bool = False
    provider: KeyProvider = KeyProvider.SECRET
    key_name: str = ""
    state: FormatState = FormatState.UNFORMATTED
    uuid: str = ""


HEADER = Bytes(16 * MIB)
"""What an encrypted volume's image has in front of the data, as LUKS2 has by default."""

KEY_SLOTS = Bytes(2 * MIB)
"""What of it is used: eight key slots, with what says where they are. A copy of it lies beside the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """Everything that is remembered about a volume; what the kernel can tell is not in it.

    Attributes:
        size: bytes delivered.
        filesystem: of a loopfile volume that is mounted; None for raw block and directories.
        parameters: the StorageClass parameters as they came, to compare a retry with.
        labels: what the provisioner says of the claim (names only), for people.
        project: quota project id of a directory volume on XFS or ext4, else 0.
        sector_size: logical block size of the loop device, fixed for the volume's life.
        created: seconds since the epoch.
        fs_uuid: of the filesystem made, or, while ``formatting``, about to be made.
        encryption: None where the bytes on disk are the content.
        source: what it was made from, as ``snapshot/<id>`` or ``volume/<id>``; "" where it began empty.
        adopted: of a volume that is a directory elsewhere, its path; "" for every other. The directory itself is known
            again by its inode and by when it was made: a device's number may be another after the next start.
        ephemeral: of an inline ephemeral volume the one path at which its pod has it; "" for every other.
    """

    id: VolumeId
    name: str
    size: Bytes
    backend: BackendKind
    block: bool = False
    filesystem: Filesystem | None = None
    allocation: Allocation = Allocation.THICK
    quota: QuotaMode = QuotaMode.HARD
    parameters: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    mkfs_options: tuple[str, ...] = ()
    project: int = 0
    sector_size: int = 0
    created: int = 0
    format: FormatState = FormatState.NONE
    fs_uuid: str = ""
    encryption: Encryption | None = None
    source: str = ""
    ephemeral: str = ""
    adopted: str = ""
    adopted_inode: int = 0
    adopted_born: int = 0

    @property
    def image_size(self) -> Bytes:
        """Bytes of a loopfile volume's image."""
        return Bytes(self.size + HEADER) if self.encryption else self.size

    @property
    def promised(self) -> Bytes:
        """Bytes that a loopfile volume takes of its pool when all of it is written."""
        return Bytes(self.image_size + KEY_SLOTS) if self.encryption else self.size

    def adopted_is(self, found: FileInfo | None) -> bool:
        """Whether that is the directory that was adopted."""
        if found is None or found.kind is not FileKind.DIRECTORY:
            return False
        return (found.inode, found.born) == (self.adopted_inode, self.adopted_born)

    @property
    def thick(self) -> bool:
        """Whether its blocks are reserved."""
        return self.allocation is Allocation.THICK


def check_name(name: str, of: str = "volume") -> str:
    """*name*, where it can be that of a volume (or *of* something else).

    Raises:
        InvalidArgument: it is empty, too long, or holds control characters other than white space
            (CSI specification, CreateVolume).
    """
    if not name:
        raise InvalidArgument(f"the {of} has no name")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise InvalidArgument(f"the {of}'s name is longer than {MAX_NAME} bytes")
    if _CONTROL.search(name):
        raise InvalidArgument(f"the {of}'s name holds control characters")
    return name
