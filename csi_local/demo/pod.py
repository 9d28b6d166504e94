"""What the demo's pods do with a volume at a path: each demands that it is right, and may return what it saw."""

import hashlib
import mmap
import os
from pathlib import Path

from csi_local.model.errors import FailedPrecondition
from csi_local.model.quantity import MIB, format_bytes


def see(right: bool, otherwise: str) -> None:  # noqa: FBT001 (an assertion that is never compiled away)
    """Demand something, or fail with what is the case *otherwise*."""
    if not right:
        raise FailedPrecondition(otherwise)


def write(target: str, name: str, size: int) -> str:
    """Write a file of *size* bytes, durably, and its checksum beside it."""
    chunk, digest = os.urandom(MIB), hashlib.sha256()
    with Path(target, name).open("wb") as file:
        for _ in range(size // MIB):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    Path(target, f"{name}.sha256").write_text(digest.hexdigest(), encoding="ascii")
    return ""


def check(target: str, name: str) -> str:
    """Hold a file to its checksum."""
    with Path(target, name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    see(digest == checksum(target, name), f"{name} has changed")
    return ""


def checksum(target: str, name: str) -> str:
    """What a file's checksum was when it was written."""
    return Path(target, f"{name}.sha256").read_text(encoding="ascii")


def zeros(target: str) -> str:
    """Demand that a device holds nothing."""
    with Path(target).open("rb") as device:
        while block := device.read(MIB):
            see(not block.strip(b"\0"), "there is old data on a new volume")
    return ""


def write_block(target: str, offset: int) -> str:
    """Write to a device at *offset* bytes, and read it back, past every cache."""
    fd = os.open(target, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as page:
            page.write(b"csi-local" * 100)
            os.pwrite(fd, page, offset)
            with mmap.mmap(-1, MIB) as back:
                os.preadv(fd, [back], offset)
                see(back[:900] == page[:900], "the device does not read back")
    finally:
        os.close(fd)
    return ""


def overfill(target: str) -> str:
    """Write 300 MiB where they do not fit; how far it came."""
    written = 0
    try:
        with Path(target, "too-much").open("wb", buffering=0) as file:
            while written < 300 * MIB:
                written += file.write(os.urandom(MIB))
                os.fsync(file.fileno())
    except OSError as error:
        Path(target, "too-much").unlink()
        return f"stopped at {format_bytes(written // MIB * MIB)} ({error.strerror})"
    raise FailedPrecondition("more than the limit could be written")
