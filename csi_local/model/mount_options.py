"""Mount options: which are let through, and which belong to the mount and which to the filesystem."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from csi_local.model.errors import InvalidArgument

_PER_MOUNT = """ro rw nosuid suid nodev dev noexec exec noatime atime relatime norelatime strictatime
    nodiratime diratime nosymfollow"""
PER_MOUNT = frozenset(_PER_MOUNT.split())
"""Options of a mount, so that a bind mount can have its own (mount(2), MS_REMOUNT | MS_BIND)."""

SHOWN = frozenset({"ro", "nosuid", "nodev", "noexec"})
"""Options by which a mount can be told from another when nobody remembers what it was asked for with."""

PER_FILESYSTEM = frozenset(["sync", "async", "dirsync", "lazytime", "nolazytime"])
"""Options that the kernel knows for every filesystem (mount(2)), shared by all its mounts."""

_KEYS = {
    "ext4": "acl noacl barrier nobarrier commit data data_err delalloc nodelalloc discard nodiscard errors"
    " auto_da_alloc noauto_da_alloc journal_checksum journal_async_commit user_xattr nouser_xattr stripe"
    " max_batch_time min_batch_time inode_readahead_blks block_validity noblock_validity dioread_lock"
    " dioread_nolock init_itable noinit_itable max_dir_size_kb i_version",
    "xfs": "allocsize attr2 discard nodiscard filestreams ikeep noikeep inode32 inode64 largeio nolargeio"
    " logbsize logbufs nouuid noquota swalloc swidth sunit wsync noalign",
    "btrfs": "acl noacl autodefrag noautodefrag barrier nobarrier commit compress compress-force datacow"
    " nodatacow datasum nodatasum discard nodiscard enospc_debug noenospc_debug flushoncommit noflushoncommit"
    " max_inline metadata_ratio ssd ssd_spread nossd nossd_spread space_cache nospace_cache thread_pool"
    " treelog notreelog user_subvol_rm_allowed",
}
FILESYSTEM_KEYS = {filesystem: frozenset(keys.split()) for filesystem, keys in _KEYS.items()}
"""Options of each filesystem that change how it works and nothing else (ext4(5), xfs(5), btrfs(5))."""

_ATIMES = frozenset({"noatime", "relatime", "strictatime"})
_SAME = {"norelatime": "strictatime"}
_NEGATIVES = {"rw": "ro", "async": "sync"}
"""What does not begin with ``no`` and ends something all the same."""

_VALUE = re.compile(r"[A-Za-z0-9_.:-]{0,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """Mount options, sorted.

    Attributes:
        flags: those every mount has (``PER_MOUNT`` and ``PER_FILESYSTEM``).
        data: the filesystem's own, as ``key`` or ``key=value``.
    """

    flags: frozenset[str] = frozenset()
    data: tuple[str, ...] = ()

    def per_mount(self, *, read_only: bool) -> frozenset[str]:
        """The flags that a bind mount gets, read-only where that is asked for."""
        flags = self.flags & PER_MOUNT
        return (flags - {"rw"}) | {"ro"} if read_only else flags

    @property
    def shown(self) -> frozenset[str]:
        """Those that the kernel shows of a mount."""
        return self.flags & SHOWN

    @property
    def read_only(self) -> bool:
        """Whether ``ro`` is among them."""
        return "ro" in self.flags


def parse_mount_options(words: Iterable[str], filesystem: str | None) -> MountOptions:
    """Sort *words* (each one option, or several with commas) for *filesystem*; None means a plain directory.

    Raises:
        InvalidArgument: an option is unknown, would do something other than tune a mount (``bind``,
            ``remount``, ``loop``, a path, a device, a subvolume), or contradicts another.
    """
    flags: set[str] = set()
    data: list[str] = []
    allowed = FILESYSTEM_KEYS.get(filesystem or "", frozenset())
    for word in (part for text in words for part in text.split(",")):
        key, equals, value = word.partition("=")
        if word in PER_MOUNT or (word in PER_FILESYSTEM and filesystem is not None):
            flags.add(word)
        elif key in allowed and _VALUE.fullmatch(value) and (value or not equals):
            data.append(word)
        elif word != "defaults":
            kind = filesystem or "a directory volume"
            raise InvalidArgument(f"mount option {word!r} is not allowed for {kind}")
    _check_agreement({*flags, *data})
    return MountOptions(flags=frozenset(flags), data=tuple(dict.fromkeys(data)))


def _check_agreement(words: set[str]) -> None:
    """See that no two options say the opposite: which of them would hold is the kernel's secret."""
    said: dict[str, str] = {}
    for word in sorted(words):
        if (other := said.setdefault(word.partition("=")[0], word)) != word:
            raise _both(other, word)
    for key, word in said.items():
        opposite = _NEGATIVES.get(key) or (key.removeprefix("no") if key.startswith("no") else "")
        if opposite in said:
            raise _both(said[opposite], word)
    if len(atimes := sorted({_SAME.get(key, key) for key in said} & _ATIMES)) > 1:
        raise _both(*atimes[:2])


def _both(one: str, other: str) -> InvalidArgument:
    return InvalidArgument(f"the mount options say both {one} and {other}")
