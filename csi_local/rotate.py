"""``csi-local rotate-key``: another key for an encrypted volume, which may be in use."""

import sys
from pathlib import Path

from csi_local.config import Config
from csi_local.engine.keys import MAX_KEY
from csi_local.model.errors import InvalidArgument
from csi_local.model.secret import Secret, without_newline
from csi_local.show import visiting


def rotate(config: Config, volume: str, old_file: str, new_file: str) -> int:
    """Let the key in one file open a volume, and that in another no more.

    Raises:
        InvalidArgument: a file cannot be read, or holds no key.
        DriverError: see ``engine.rotation``.
    """
    with visiting(config) as engine, _key(old_file) as old, _key(new_file) as new:
        engine.rotator.rotate(volume, old, new)
    sys.stdout.write(f"volume {volume} has its new key; snapshots of it, and volumes made from it, keep theirs\n")
    return 0


def _key(path: str) -> Secret:
    try:
        with Path(path).open("rb") as file:
            key = without_newline(file.read(MAX_KEY + 2))
    except OSError as error:
        raise InvalidArgument(f"key file {path}: {error.strerror}") from None
    if not 0 < len(key) <= MAX_KEY:
        raise InvalidArgument(f"key file {path} must hold 1 to {MAX_KEY} bytes")
    return Secret(key)
