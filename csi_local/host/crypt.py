"""Encrypted devices: cryptsetup(8) makes and opens them, sysfs tells of them, an ioctl closes them (linux/dm-ioctl.h).

The key goes to cryptsetup on its standard input. How much memory argon2id takes is pinned when a volume is formatted,
and one device is opened at a time, so that a node that starts many pods needs that memory once.
"""

import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from csi_local.host import loop
from csi_local.host.headers import METADATA
from csi_local.host.run import find, run
from csi_local.host.syscalls import failing_as, ioctl, opened
from csi_local.model.errors import SHORTAGE, Busy, CommandFailed, SyscallFailed
from csi_local.model.observed import MappedDevice
from csi_local.model.quantity import KIB, Bytes
from csi_local.model.secret import Secret
from csi_local.model.volume import HEADER, KEY_SLOTS, Encryption

WRONG_KEY, BUSY = 2, 5
"""Exit statuses (cryptsetup(8), RETURN CODES)."""

_CONTROL = "/dev/mapper/control"
_MISC_MAJOR = 10
_IOCTL = struct.Struct("=3I2IIiIIIQ128s129s7x")
_REMOVE, _STATUS, _TARGET_VERSION = 0xC138FD04, 0xC138FD07, 0xC138FD11
_FLAGS, _HAS_TABLE = 7, 1 << 5
"""Where an answer's flags are among its fields, and DM_ACTIVE_PRESENT_FLAG."""
_TIMEOUT_S = 110.0
_ANSWER = 16 * KIB
_BUSY_FOR_S, _BUSY_PAUSE_S = 2.0, 0.05
_opening = threading.Lock()


def support() -> str:
    """Why nothing can be encrypted here; "" where it can. Asking loads the kernel's module."""
    if find("cryptsetup") is None:
        return "cryptsetup is not installed: apt-get install cryptsetup-bin"
    try:
        _control(_TARGET_VERSION, "crypt", "ask for dm-crypt")
    except SyscallFailed as error:
        return f"the kernel has no dm-crypt ({error}): modprobe dm-crypt, or a kernel with CONFIG_DM_CRYPT"
    return ""


def _control(request: int, name: str, what: str) -> int:
    """An ioctl of device mapper, for a device or a target of that *name*; the flags of the answer."""
    _make_control()
    buffer = bytearray(_ANSWER)
    _IOCTL.pack_into(buffer, 0, 4, 0, 0, len(buffer), _IOCTL.size, 0, 0, 0, 0, 0, 0, name.encode(), b"")
    with opened(_CONTROL, os.O_RDWR) as fd:
        ioctl(fd, request, buffer, what)
    return int(_IOCTL.unpack_from(buffer)[_FLAGS])


def _make_control() -> None:
    """Where there is no udev, nobody else does."""
    if os.path.exists(_CONTROL):
        return
    with open("/proc/misc", encoding="ascii") as file:
        numbers = [int(number) for number, name in (line.split() for line in file) if name == "device-mapper"]
    if numbers:
        with failing_as(f"make {_CONTROL}"):
            os.makedirs(os.path.dirname(_CONTROL), exist_ok=True)
            os.mknod(_CONTROL, stat.S_IFCHR | 0o600, os.makedev(_MISC_MAJOR, numbers[0]))


# --- making and opening


def format_encrypted(device: str, encryption: Encryption, key: Secret) -> None:
    """See ``host.api.Crypt.format_encrypted``."""
    argv = ["luksFormat", "--batch-mode", "--type", "luks2", "--uuid", encryption.uuid]
    argv += ["--cipher", encryption.cipher, "--key-size", str(encryption.key_bits)]
    argv += ["--sector-size", str(encryption.sector_size), "--offset", str(HEADER // 512)]
    argv += ["--luks2-metadata-size", str(METADATA // 2), "--luks2-keyslots-size", str(KEY_SLOTS - METADATA)]
    _cryptsetup([*argv, *_kdf(encryption), device], key, on=device)


def _kdf(encryption: Encryption) -> list[str]:
    """Pinned: by default cryptsetup takes what it finds free at that moment, which a later one may not find."""
    memory, passes = str(encryption.kdf_memory // KIB), str(encryption.kdf_passes)
    pinned = ["--pbkdf-memory", memory, "--pbkdf-force-iterations", passes, "--pbkdf-parallel", "1"]
    return ["--pbkdf", "argon2id", *pinned]


def open_encrypted(device: str, name: str, key: Secret, *, discard: bool) -> MappedDevice:
    """See ``host.api.Crypt.open_encrypted``."""
    discards = ["--allow-discards"] if discard else []
    _remove_empty(name)
    _cryptsetup(["open", "--type", "luks2", *discards, device, name], key, on=device)
    found = next((one for one in all_mapped() if one.name == name), None)
    if found is None:
        raise SyscallFailed(f"open {device} as {name}", errno.ENXIO)
    _make_node(found)
    return found


def _remove_empty(name: str) -> None:
    """Take a name back that a cryptsetup got for its device and was killed: it is in no list yet, and in the way."""
    try:
        if not _control(_STATUS, name, f"look at {name}") & _HAS_TABLE:
            _control(_REMOVE, name, f"remove the empty device {name}")
    except SyscallFailed as error:
        if error.errno != errno.ENXIO:  # there is none
            raise


def close_encrypted(device: MappedDevice) -> None:
    """See ``host.api.Crypt.close_encrypted``."""
    deadline = time.monotonic() + _BUSY_FOR_S
    while any((one.name, one.uuid) == (device.name, device.uuid) for one in all_mapped()):
        try:
            _control(_REMOVE, device.name, f"close {device.name}")
        except SyscallFailed as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:  # udev looks at what has just been made
                time.sleep(_BUSY_PAUSE_S)
            elif error.errno != errno.ENXIO:
                raise
    with suppress(FileNotFoundError):
        os.unlink(f"/dev/mapper/{device.name}")


def resize_encrypted(device: MappedDevice, key: Secret) -> Bytes:
    """See ``host.api.Crypt.resize_encrypted``."""
    _cryptsetup(["resize", device.name], key)
    return loop.device_size(device.path)


def _cryptsetup(words: Sequence[str], key: Secret, more: Secret | None = None, on: str = "") -> None:
    """Run it alone; a *key* that ends with a newline has that newline in it.

    *more* is another key, which it reads from the file that is its last argument.

    Raises:
        Busy: its turn has not come. One whose disk hangs cannot even be killed.
    """
    verb, *rest = words
    if not _opening.acquire(timeout=_TIMEOUT_S):
        raise Busy(f"cryptsetup {verb} has waited {_TIMEOUT_S:.0f} s for others; try again")
    try:
        run(["cryptsetup", verb, "--key-file=-", *rest], timeout_s=_TIMEOUT_S, secret=key, more=more, on=on)
    except CommandFailed as error:
        if error.status == BUSY:
            raise SyscallFailed(str(error), errno.EBUSY) from error
        raise
    finally:
        _opening.release()


# --- keys


def opens(path: str, key: Secret) -> bool:
    """See ``host.api.Crypt.opens``."""
    try:
        _cryptsetup(["open", "--type", "luks2", "--test-passphrase", path], key)
    except CommandFailed as error:
        if error.status != WRONG_KEY:
            raise
        return False
    return True


def add_key(path: str, encryption: Encryption, key: Secret, new: Secret) -> None:
    """See ``host.api.Crypt.add_key``."""
    _cryptsetup(["luksAddKey", "--batch-mode", *_kdf(encryption), path], key, new)


def remove_key(path: str, key: Secret) -> None:
    """See ``host.api.Crypt.remove_key``."""
    _cryptsetup(["luksRemoveKey", "--batch-mode", path], key)


# --- seeing


def all_mapped() -> Sequence[MappedDevice]:
    """See ``host.api.Crypt.all_mapped``."""
    with failing_as("list the mapped devices"):
        names = [name for name in os.listdir("/sys/block") if name.startswith("dm-")]
    return [found for name in names if (found := _mapped(name)) is not None]


def mapped_over(device: int) -> Sequence[MappedDevice]:
    """See ``host.api.Crypt.mapped_over``."""
    holders = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/holders"
    try:
        names = os.listdir(holders)
    except OSError as error:
        if error.errno in SHORTAGE:
            raise SyscallFailed(f"list {holders}", error.errno) from error
        return []
    return [found for name in names if (found := _mapped(name)) is not None]


def _mapped(name: str) -> MappedDevice | None:
    """What sysfs says of a device; None where it is none of device mapper's, or went meanwhile."""
    top = f"/sys/block/{name}"
    try:
        return MappedDevice(
            path=f"/dev/{name}",
            device=_number(f"{top}/dev"),
            read_only=_text(f"{top}/ro") == "1",
            name=_text(f"{top}/dm/name"),
            uuid=_text(f"{top}/dm/uuid"),
            below=tuple(_below(f"{top}/slaves")),
            live=_text(f"{top}/size") != "0",
        )
    except OSError as error:
        if error.errno in SHORTAGE:
            raise SyscallFailed(f"look at {top}", error.errno) from error
        return None


def _below(slaves: str) -> Iterator[int]:
    for name in os.listdir(slaves):
        yield _number(f"{slaves}/{name}/dev")


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().strip()


def _number(path: str) -> int:
    major, _, minor = _text(path).partition(":")
    return os.makedev(int(major), int(minor))


def _make_node(device: MappedDevice) -> None:
    """Where there is no udev, a container has only the nodes that it was started with."""
    with suppress(FileNotFoundError):
        if os.stat(device.path).st_rdev == device.device:
            return
        os.unlink(device.path)
    with failing_as(f"make {device.path}"):
        os.mknod(device.path, stat.S_IFBLK | 0o660, device.device)
